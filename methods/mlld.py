"""Logit distillation on three levels (samples, classes, batch), at several temperatures, on two views of each image."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import full_precision, inner_products
from kdbench.distributed import gather_batch
from kdbench.errors import HyperparameterError, KdbenchError

#: The paper's batch, at which both correlation losses are as published. They would grow with the batch, the classes' with
#: its square, and are scaled to this one.
_BATCH = 64


def instance_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Softened KL divergence, times T^2, of the samples that ``mask`` selects, over all B (Jin et al. 2023).

    Logits (B, C), mask (B,) of 0 and 1 or None for all. The divisor is B, not the number selected, as in the code.
    """
    student_log = F.log_softmax(full_precision(student_logits) / temperature, dim=1)
    teacher_log = F.log_softmax(full_precision(teacher_logits) / temperature, dim=1)
    divergence = F.kl_div(student_log, teacher_log, reduction="none", log_target=True).sum(dim=1)
    return _select(divergence, mask).mean() * temperature**2


def class_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Squared difference of the class correlations P^T P * 64 / B, (C, C), over C; of the rows that ``mask`` (C,) selects."""
    student, teacher = _probabilities(student_logits, temperature), _probabilities(teacher_logits, temperature)
    scale = (_BATCH / len(student)) ** 2
    return _select(_gram_difference(student.t(), teacher.t()), mask).mean() * scale


def batch_loss(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float, mask: Tensor | None = None
) -> Tensor:
    """Squared difference of the sample correlations P P^T, (B, B), times 64 / B^2; of the rows that ``mask`` (B,) selects."""
    student, teacher = _probabilities(student_logits, temperature), _probabilities(teacher_logits, temperature)
    return _select(_gram_difference(student, teacher), mask).mean() * (_BATCH / len(student))


def confidence_masks(teacher_logits: Tensor) -> tuple[Tensor, Tensor]:
    """Samples (B,) and classes (C,) of whose teacher confidence is at most the median, as 0 and 1. Logits (B, C).

    A sample's confidence is its largest probability, a class's the sum of its probabilities over the batch, at T = 1.
    """
    probabilities = _probabilities(teacher_logits, 1.0).detach()
    samples, classes = probabilities.amax(dim=1), probabilities.sum(dim=0)
    return (samples <= samples.quantile(0.5)).to(samples.dtype), (classes <= classes.quantile(0.5)).to(classes.dtype)


def _probabilities(logits: Tensor, temperature: float) -> Tensor:
    return F.softmax(full_precision(logits) / temperature, dim=1)


def _select(values: Tensor, mask: Tensor | None) -> Tensor:
    return values if mask is None else values * mask


def _gram_difference(first: Tensor, second: Tensor) -> Tensor:
    """Row sums (rows,) of the squared difference of two Gram matrices."""
    return (inner_products(second, second) - inner_products(first, first)).square().sum(dim=1)


@register_method("mlld")
class MLLD(Method):
    """Jin, Wang, Lin, Multi-Level Logit Distillation, CVPR 2023.

    Each image is seen twice, weakly and strongly augmented. On both views, and at each temperature: the divergence of
    each sample, the correlation of classes, the correlation of samples. On the weak view the first two count only for
    the samples and the classes of which the teacher is less sure than the median of the weak view, the correlation of
    samples counts only for those samples on both views: the masks of the released code. The masks, and both
    correlations, are over the batch of all processes.

    The correlations of a batch of B are scaled by 64 / B, to the paper's batch: unscaled, the term of classes would be
    200 times as large at 1,024.

    Where the released code differs from this:

    - it reduces each loss to a number before it masks, so that a mask only halves the whole term; here a mask selects;
    - it takes the strong view's divergence and class correlation at T = 2 and 6 from the weak view; here they are the
      strong view's own;
    - it computes the strong view's correlations of classes and of samples and leaves them out; here they count.

    The recipe of the paper also has a lower learning rate (0.025 for the 32 px nets), 240 epochs and batches of 64.
    The paper's strong view is RandAugment(2, 10), image by image. Here a whole batch is transformed on the device, with
    an affine map, brightness, contrast and one erased square drawn for each image.
    Both nets see two views in each step, so a step costs about twice that of KD.
    """

    display, family, fidelity = "MLLD", "logits", "paper"
    needs = frozenset({"logits", "strong"})
    version = 2
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "imagenet1k": {"temperatures": (1.0, 3.0, 5.0, 2.0, 6.0), "ce_weight": 0.5, "kd_weight": 0.5}
    }
    citation: ClassVar[dict[str, Any]] = {
        "key": "jin2023mlld",
        "authors": "Jin, Ying and Wang, Jiaqi and Lin, Dahua",
        "title": "Multi-Level Logit Distillation",
        "venue": "CVPR",
        "year": 2023,
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        temperatures: Annotated[tuple[float, ...], Range(above=0)] = (4.0, 3.0, 5.0, 2.0, 6.0),
        ce_weight: Annotated[float, Range(at_least=0)] = 0.1,
        kd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 0.9,
    ) -> None:
        super().__init__(student, teacher, task)
        if not temperatures:
            raise HyperparameterError(f"temperatures = {temperatures!r}: must name at least one temperature")
        self.temperatures = tuple(temperatures)
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        if student.strong is None or teacher.strong is None:
            net = "student" if student.strong is None else "teacher"
            raise KdbenchError(f"mlld needs the strongly augmented view of each batch, and {net}.strong is None")
        supervised = batch.task_loss(student.logits) + batch.task_loss(student.strong.logits)
        weak = gather_batch(student.logits), gather_batch(teacher.logits)
        strong = gather_batch(student.strong.logits), gather_batch(teacher.strong.logits)
        samples, classes = confidence_masks(weak[1])
        kd = [instance_loss(*weak, t, samples) + instance_loss(*strong, t) for t in self.temperatures]
        by_class = [class_loss(*weak, t, classes) + class_loss(*strong, t) for t in self.temperatures]
        by_batch = [batch_loss(*weak, t, samples) + batch_loss(*strong, t, samples) for t in self.temperatures]
        return {
            "ce": self.ce_weight * supervised,
            "kd": self.kd_weight * torch.stack(kd).sum(),
            "class": self.kd_weight * torch.stack(by_class).sum(),
            "batch": self.kd_weight * torch.stack(by_batch).sum(),
        }
