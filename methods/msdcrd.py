"""Contrastive distillation of multi-scale features, reconstructed."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import inner_products, resize_map
from kdbench.distributed import gather_batch
from kdbench.errors import HyperparameterError


def contrast(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """InfoNCE inside each group, from student to teacher and back, halved (van den Oord et al. 2018).

    Args:
        student, teacher: (G, n, d), unit vectors; the positive of a vector is the other net's at the same place, its
            negatives are the other n - 1 of the same group.
        temperature: of the cosines.

    With n = 1 there are no negatives: then one minus the cosine. Unchanged by a common reordering inside the groups.
    """
    if student.shape[1] == 1:
        return (1 - (student * teacher).sum(dim=-1)).mean()
    scores = inner_products(student, teacher) / temperature
    forth = F.log_softmax(scores, dim=2).diagonal(dim1=1, dim2=2)
    back = F.log_softmax(scores, dim=1).diagonal(dim1=1, dim2=2)
    return -(forth.mean() + back.mean()) / 2


def window_means(feature_map: Tensor, window: tuple[int, int], stride: int) -> Tensor:
    """(B, c, h, w) to (B, P, c): the means of a sliding window; windows at the far edges are cut where the map ends."""
    return F.avg_pool2d(feature_map, window, stride, ceil_mode=True).flatten(2).transpose(1, 2)


@register_method("msdcrd")
class MSDCRD(Method):
    """Wang et al., Contrastive Representation Distillation via Multi-Scale Feature Decoupling, 2025 (arXiv:2502.05835).

    A reconstruction: only the abstracts were read and no code is published. Known are sliding-window pooling of a
    feature map at several scales, contrastive losses sample-wise and feature-wise, and negatives from one batch without
    a memory. Everything else is our choice, and no result of it reproduces the paper's:

    - stage 4 of both nets, class tokens dropped, average-pooled to the smaller of the two grids and at most ``grid``;
    - square windows of 7 (global), 4 and 2, moved by ``stride``, cut to the grid where it is smaller;
    - one linear layer per net to ``dim``, shared by all scales (the paper calls itself free of parameters; widths have
      to be matched somehow), unit length;
    - sample-wise: the same window over the images of the batch, gathered over all processes; feature-wise: the windows
      of one image; both InfoNCE in both directions, mean over the scales. The paper's selection of samples by category
      could not be read and is left out;
    - temperature 0.07, weights 1, no logit term.

    A batch of one has no other image: the sample-wise term is then one minus the cosine. A single window per image has
    no feature-wise term.
    """

    display, family, fidelity = "MSDCRD", "hybrid", "reconstruction"
    needs = frozenset({"logits", "stages"})
    version = 2
    citation: ClassVar[dict[str, Any]] = {
        "key": "wang2025msdcrd",
        "authors": "Wang, Cuipeng and Wang, Haipeng",
        "title": "Contrastive Representation Distillation via Multi-Scale Feature Decoupling",
        "venue": "arXiv",
        "year": 2025,
        "arxiv": "2502.05835",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        grid: Annotated[int, Range(at_least=1)] = 7,
        windows: Annotated[tuple[int, ...], Range(at_least=1)] = (7, 4, 2),
        stride: Annotated[int, Range(at_least=1)] = 2,
        dim: Annotated[int, Range(at_least=1)] = 128,
        temperature: Annotated[float, Range(above=0, search=(0.03, 0.5), scale="log")] = 0.07,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        sample_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        feature_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        if not windows:
            raise HyperparameterError("windows = (): must name at least one window")
        self.stride = stride
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.sample_weight = sample_weight
        self.feature_weight = feature_weight
        first, second = student.stages[-1], teacher.stages[-1]
        self.size = min(grid, first.height, second.height), min(grid, first.width, second.width)
        # cut to the grid, and each only once
        self.windows = tuple(dict.fromkeys((min(w, self.size[0]), min(w, self.size[1])) for w in windows))
        self.embed_student = nn.Linear(first.channels, dim)
        self.embed_teacher = nn.Linear(second.channels, dim)

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.stages is not None
        assert teacher.stages is not None
        source, target = resize_map(student.stages[-1].map, self.size), resize_map(teacher.stages[-1].map, self.size)
        sample_wise, feature_wise = [], []
        for window in self.windows:
            ours = F.normalize(self.embed_student(window_means(source, window, self.stride)), dim=-1)
            theirs = F.normalize(self.embed_teacher(window_means(target, window, self.stride)), dim=-1)
            everyone = gather_batch(ours).transpose(0, 1), gather_batch(theirs).transpose(0, 1)
            sample_wise.append(contrast(*everyone, self.temperature))
            if ours.shape[1] > 1:
                feature_wise.append(contrast(ours, theirs, self.temperature))
        terms = {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "sample": self.sample_weight * torch.stack(sample_wise).mean(),
        }
        if feature_wise:
            terms["feature"] = self.feature_weight * torch.stack(feature_wise).mean()
        return terms
