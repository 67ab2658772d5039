"""CRD: noise-contrastive estimation between student and teacher embeddings with memory banks over the training set."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.distributed import draw_for_batch, gather_batch

#: Keeps the ratio of the noise-contrastive estimate from 0/0 (Tian et al., official code).
_EPS = 1e-7

#: Scalars that a chunk of samples may hold at once, 256 MB in single precision.
_CHUNK = 2**26

#: Score against the whole bank where it has at most this many rows per contrast: a matrix product of that size costs no
#: more than fetching the rows one by one, and far less on a data set of the size of CIFAR-100.
_DENSE_UP_TO = 64


@register_method("crd")
class CRD(Method):
    """Tian et al., Contrastive Representation Distillation, ICLR 2020 (arXiv:1910.10699).

    Both embeddings are mapped linearly to ``dim`` numbers of unit length; ``ContrastMemory`` tells each sample's pair
    from ``num_negatives`` samples of other classes. No KD term. The weight 1 is that of OFA-KD's protocol; the preset
    for CIFAR-100 at 32 px, 0.8, that of the official code.

    Negatives are drawn with replacement on the device (as OFA-KD does; the official code repeats only where there are
    fewer than ``num_negatives``), so the method works on data sets of any size. If all samples have one class they are
    drawn from all of them. Under several processes the banks are updated with the batch of all of them: the released
    code loses the updates of all but the first.

    Trap: after mixup the bank's row of a sample holds the embedding of a mixture, as in OFA-KD.
    """

    display, family, fidelity = "CRD", "relation", "reference"
    needs = frozenset({"logits", "embedding", "index"})
    presets: ClassVar[dict[str, dict[str, Any]]] = {"cifar100-32": {"crd_weight": 0.8}}
    citation: ClassVar[dict[str, Any]] = {
        "key": "tian2020crd",
        "authors": "Tian, Yonglong and Krishnan, Dilip and Isola, Phillip",
        "title": "Contrastive Representation Distillation",
        "venue": "ICLR",
        "year": 2020,
        "arxiv": "1910.10699",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        crd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        temperature: Annotated[float, Range(above=0, search=(0.03, 0.5), scale="log")] = 0.07,
        momentum: Annotated[float, Range(at_least=0, at_most=1)] = 0.5,
        dim: Annotated[int, Range(at_least=1)] = 128,
        num_negatives: Annotated[int, Range(at_least=1)] = 16384,
    ) -> None:
        super().__init__(student, teacher, task)
        self.crd_weight = crd_weight
        self.ce_weight = ce_weight
        self.num_negatives = num_negatives
        self.memory = ContrastMemory(task.num_train, dim, temperature, momentum)
        self.negatives = OtherClassSampler(task.train_labels, task.num_classes)
        self.student_linear = nn.Linear(student.embedding_dim, dim)
        self.teacher_linear = nn.Linear(teacher.embedding_dim, dim)

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.embedding is not None
        assert teacher.embedding is not None
        negatives = self.negatives(batch.labels, self.num_negatives)
        contrast = self.memory(
            F.normalize(self.student_linear(student.embedding), dim=1),
            F.normalize(self.teacher_linear(teacher.embedding), dim=1),
            batch.index,
            torch.cat([batch.index[:, None], negatives], dim=1),
        )
        return {"ce": self.ce_weight * batch.task_loss(student.logits), "crd": self.crd_weight * contrast}


class ContrastMemory(nn.Module):
    """The two memory banks of CRD and the loss on them (Tian et al., arXiv:1910.10699; official code).

    The student's embeddings are scored against the teacher's bank and the other way round; after scoring, the rows of
    the batch move towards its embeddings. The normalisers Z are set at the first batch and then frozen.

    Args:
        num_samples: rows N of a bank, one per training sample.
        dim: width of the embeddings.
        temperature: divides the inner products.
        momentum: share of the old row that an update keeps, in [0, 1].
    """

    memory_student: Tensor
    memory_teacher: Tensor
    z_student: Tensor
    z_teacher: Tensor

    def __init__(self, num_samples: int, dim: int, temperature: float = 0.07, momentum: float = 0.5) -> None:
        super().__init__()
        self.temperature = temperature
        self.momentum = momentum
        bound = 1 / math.sqrt(dim / 3)
        self.register_buffer("memory_student", torch.empty(num_samples, dim).uniform_(-bound, bound))
        self.register_buffer("memory_teacher", torch.empty(num_samples, dim).uniform_(-bound, bound))
        # 0 until the first batch. Double precision is free for one number, and does not promote what it divides.
        self.register_buffer("z_student", torch.zeros((), dtype=torch.float64))
        self.register_buffer("z_teacher", torch.zeros((), dtype=torch.float64))
        self._normalised = False

    def forward(
        self, student_embedding: Tensor, teacher_embedding: Tensor, index: Tensor, contrast_index: Tensor
    ) -> Tensor:
        """Return the loss, then update the banks.

        Args:
            student_embedding: (B, dim), of unit length.
            teacher_embedding: (B, dim), of unit length; gradients reach it.
            index: (B,) int64, the rows of the batch.
            contrast_index: (B, 1 + K) int64, the rows to score: each sample's own first, then its K negatives.
        """
        student_embedding = student_embedding.to(self.memory_student.dtype)
        teacher_embedding = teacher_embedding.to(self.memory_teacher.dtype)
        student_rows, teacher_rows = student_embedding.detach(), teacher_embedding.detach()
        # Gradients are worked out here, because the rows they need change before the backward pass.
        with torch.no_grad(), torch.autocast(student_embedding.device.type, enabled=False):
            if not self._normalised:
                self._normalise(student_rows, teacher_rows, contrast_index)
            student_loss, student_gradient = self._one_side(
                student_rows, self.memory_teacher, contrast_index, self.z_student
            )
            teacher_loss, teacher_gradient = self._one_side(
                teacher_rows, self.memory_student, contrast_index, self.z_teacher
            )
            self._update(index, student_rows, teacher_rows)
        return _with_gradient(student_loss, student_embedding, student_gradient) + _with_gradient(
            teacher_loss, teacher_embedding, teacher_gradient
        )

    def _one_side(self, rows: Tensor, bank: Tensor, index: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """The loss of one net's rows against the other's bank, and its gradient by the rows, chunk by chunk: what is scored
        is fetched once, for the scores and for the gradient."""
        losses, gradients = [], []
        for part, chosen in zip(*chunks(rows, bank, index), strict=True):
            scores, fetched = bank_scores(part, bank, chosen)
            loss, slope = nce_loss(scores.div_(self.temperature), z, len(bank))
            losses.append(loss * (len(part) / len(rows)))
            gradients.append(weighted_rows(slope, bank, chosen, fetched).mul_(len(part) / len(rows)))
        return torch.stack(losses).sum(), torch.cat(gradients).div_(self.temperature)

    def _normalise(self, student_rows: Tensor, teacher_rows: Tensor, index: Tensor) -> None:
        """Set Z of both sides from this batch, unless a checkpoint brought them. Never read on the host, and done once: the
        exponentials of all scores cost as much as the loss itself."""
        means = []
        for rows, bank in ((student_rows, self.memory_teacher), (teacher_rows, self.memory_student)):
            sums = [
                bank_scores(part, bank, chosen)[0].div_(self.temperature).exp_().sum()
                for part, chosen in zip(*chunks(rows, bank, index), strict=True)
            ]
            means.append(torch.stack(sums).sum() / index.numel())
        first = gather_batch(torch.stack(means)[None]).mean(dim=0).double() * len(self.memory_student)
        for stored, value in ((self.z_student, first[0]), (self.z_teacher, first[1])):
            stored.copy_(torch.where(stored > 0, stored, value))
        self._normalised = True

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._normalised = False  # whether it was is in the loaded Z, which the host does not read

    def _update(self, index: Tensor, student_rows: Tensor, teacher_rows: Tensor) -> None:
        index = gather_batch(index)
        for bank, rows in ((self.memory_student, student_rows), (self.memory_teacher, teacher_rows)):
            moved = self.momentum * bank[index] + (1 - self.momentum) * gather_batch(rows)
            bank.index_copy_(0, index, F.normalize(moved, dim=1))


class OtherClassSampler(nn.Module):
    """Draws training samples of other classes than a sample's own, uniformly and with replacement, without rejection.

    The samples are sorted by class once. A draw from the N - n samples that are not of a class with n samples is
    shifted past the block of that class.

    Args:
        train_labels: (N,) int64. Values are not read on the "meta" device.
        num_classes: number of classes C.
    """

    order: Tensor
    start: Tensor
    count: Tensor
    span: Tensor

    def __init__(self, train_labels: Tensor, num_classes: int) -> None:
        super().__init__()
        if train_labels.is_meta:
            order = torch.empty_like(train_labels)
            start, count, span = train_labels.new_empty(3, num_classes)
        else:
            order = train_labels.argsort(stable=True)
            count = torch.bincount(train_labels, minlength=num_classes)
            start = count.cumsum(0) - count
            # A class that is alone has no other samples; it draws from all, with nothing to skip.
            span = torch.where(count < len(order), len(order) - count, len(order))
            count = len(order) - span
        # Known from the task, so not worth a place in the checkpoint.
        for name, value in (("order", order), ("start", start), ("count", count), ("span", span)):
            self.register_buffer(name, value, persistent=False)

    def forward(self, labels: Tensor, number: int) -> Tensor:
        """(B,) labels to (B, ``number``) positions in the training set."""
        span, start, count = (value[labels][:, None] for value in (self.span, self.start, self.count))
        draws = draw_for_batch(lambda count: torch.randint(2**62, (count, number), device=labels.device), len(labels))
        draws = draws.remainder_(span)
        return self.order[draws.add_(count * (draws >= start))]


def nce_loss(scores: Tensor, z: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """Noise-contrastive loss and its gradient (Tian et al., arXiv:1910.10699; official code).

    With P = exp(score) / Z, noise density 1/N and K negatives: -log P_0 / (P_0 + K/N + eps) for the positive, and
    -log (K/N) / (P_k + K/N + eps) for each negative; summed over these, mean over the batch.

    Args:
        scores: (B, 1 + K), already divided by the temperature, the positive first.
        z: the normaliser Z, a scalar.
        num_samples: N.

    Returns:
        the loss, a scalar, and its derivative by the scores (B, 1 + K).
    """
    batch, noise = len(scores), (scores.shape[1] - 1) / num_samples
    log_p = scores - z.log()
    p = log_p.exp()
    total = p + (noise + _EPS)
    slope = p.div_(total)
    log_total = total.log_()
    negatives = (math.log(noise) - log_total[:, 1:]).sum() if noise else scores.new_zeros(())
    loss = -((log_p[:, 0] - log_total[:, 0]).sum() + negatives) / batch
    slope[:, 0] -= 1
    return loss, slope.div_(batch)


def bank_scores(rows: Tensor, bank: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Inner products of each row (B, d) with its own choice ``index`` (B, M) of the bank's rows (N, d): (B, M).

    Also what ``weighted_rows`` may use again: the chosen rows (B, M, d), or the scores (B, N) against the whole bank.
    """
    if is_dense(bank, index):
        every = rows @ bank.mT
        return every.gather(1, index), every
    fetched = bank[index]
    return torch.einsum("bmd,bd->bm", fetched, rows), fetched


def weighted_rows(weights: Tensor, bank: Tensor, index: Tensor, fetched: Tensor) -> Tensor:
    """Sum of each sample's chosen rows ``index`` (B, M) of the bank (N, d) with its ``weights`` (B, M): (B, d).

    ``fetched`` comes from ``bank_scores`` and may be written over.
    """
    if is_dense(bank, index):
        return fetched.zero_().scatter_add_(1, index, weights) @ bank
    return torch.einsum("bmd,bm->bd", fetched, weights)


def is_dense(bank: Tensor, index: Tensor) -> bool:
    """Whether scores are taken from a product with the whole bank; see ``_DENSE_UP_TO``."""
    return len(bank) <= _DENSE_UP_TO * index.shape[1]


def chunks(rows: Tensor, bank: Tensor, index: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Split a batch so that what a chunk fetches stays below a bound."""
    per_sample = len(bank) if is_dense(bank, index) else index.shape[1] * bank.shape[1]
    size = max(_CHUNK // per_sample, 1)
    return rows.split(size), index.split(size)


def _with_gradient(value: Tensor, source: Tensor, gradient: Tensor) -> Tensor:
    """``value`` as a function of ``source`` with a known gradient: the added term is 0, its derivative ``gradient``."""
    return value + ((source - source.detach()) * gradient).sum()
