"""SRD, the simple recipe: normalise over the batch, project linearly, compare under a logarithm."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import full_precision, kl_divergence
from kdbench.distributed import gather_batch


def srd_loss(student_embedding: Tensor, teacher_embedding: Tensor, eps: float = 1e-4) -> Tensor:
    """log sum over batch and channels of |z_s - z_t|^4 (Miles and Mikolajczyk, arXiv:2303.11098).

    Embeddings (B, d), the student's after its projector; z is normalised over the batch with the biased variance plus
    ``eps``. The value may be negative and falls for ever; for equal embeddings it is the logarithm of the smallest normal
    number instead of minus infinity. A batch of one has no variance: 0, without gradient.
    """
    if len(student_embedding) == 1:
        return student_embedding.sum() * 0
    difference = _normalise(student_embedding, eps) - _normalise(teacher_embedding, eps)
    return torch.log(difference.square().square().sum() + torch.finfo(difference.dtype).tiny)


def srd_correlation_loss(student_embedding: Tensor, teacher_embedding: Tensor) -> Tensor:
    """log(sum over channels of |c - 1|^4 + 1e-5), c the channel's correlation (the official code's loss for DeiT).

    Embeddings and batch of one as for ``srd_loss``; the normalisation has no epsilon. A channel that is constant over the
    batch has no correlation: c = 0, without gradient.
    """
    if len(student_embedding) == 1:
        return student_embedding.sum() * 0
    correlation = (_normalise(student_embedding, 0) * _normalise(teacher_embedding, 0)).mean(dim=0)
    return torch.log((correlation - 1).square().square().sum() + 1e-5)


def _normalise(embedding: Tensor, eps: float) -> Tensor:
    """(B, d), each channel with mean 0 and variance 1 over the batch; 0 where it varies by no more than rounding."""
    value = full_precision(embedding)
    variance, mean = torch.var_mean(value, dim=0, correction=0)
    alive = variance > (8 * torch.finfo(value.dtype).eps * mean).square()
    return torch.where(alive, (value - mean) * torch.where(alive, variance + eps, 1).rsqrt(), 0)


@register_method("srd")
class SRD(Method):
    """Miles and Mikolajczyk, Understanding the Role of the Projector in Knowledge Distillation, AAAI 2024 (arXiv:2303.11098).

    L = ce_weight CE + kd_weight KD + srd_weight SRD. A linear layer brings the student's embedding, the mean over
    the positions of its last stage without class tokens, to the width of the teacher's, the vector before its
    classifier. ``variant`` "distance" is ``srd_loss`` with weight 2, the official code for ResNet34 to ResNet18 on
    ImageNet-1K and the default; "correlation" is ``srd_correlation_loss`` with weight 1, the one for DeiT, which is the
    preset for ViT students there. The code has no values for CIFAR-100.

    Statistics are those of the joint batch of all processes. A batch of one contributes nothing.

    Ours: CE and KL share the student's only classifier, where the code's DeiT has a head for each; a last stage lies
    before the final norm of ViT, Swin, MLP and ConvNeXt; channels that are constant over the batch, which the
    code divides by 0, count as uncorrelated and have no gradient.

    Trap: the logarithm makes the gradient independent of the loss's scale; its value says little.
    """

    display, family, fidelity = "SRD", "hint", "reference"
    needs = frozenset({"logits", "stages", "embedding"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {"imagenet1k:vit": {"variant": "correlation", "srd_weight": 1.0}}
    carries_kd: ClassVar[dict[str, str]] = {
        "temperature": "temperature",
        "kd_weight": "kd_weight",
        "ce_weight": "ce_weight",
    }
    citation: ClassVar[dict[str, Any]] = {
        "key": "miles2024srd",
        "authors": "Miles, Roy and Mikolajczyk, Krystian",
        "title": "Understanding the Role of the Projector in Knowledge Distillation",
        "venue": "AAAI",
        "year": 2024,
        "arxiv": "2303.11098",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        variant: Literal["distance", "correlation"] = "distance",
        srd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 2.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        kd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        self.loss = {"distance": srd_loss, "correlation": srd_correlation_loss}[variant]
        self.srd_weight = srd_weight
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.temperature = temperature
        self.project = nn.Linear(student.stages[-1].channels, teacher.embedding_dim)

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.stages is not None
        assert teacher.embedding is not None
        projected = self.project(student.stages[-1].map.mean(dim=(2, 3)))
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "kd": self.kd_weight * kl_divergence(student.logits, teacher.logits, self.temperature),
            "srd": self.srd_weight * self.loss(gather_batch(projected), gather_batch(teacher.embedding)),
        }
