"""Distillation through an assistant that is fused from the student's and the teacher's own modules (TAS, FBT)."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from timm.models.swin_transformer import SwinTransformerBlock
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, StageInfo, Task, register_method
from kdbench.blocks import init_like_ofa, inner_products, one_hot
from kdbench.distributed import gather_batch
from kdbench.methods.fofa import PatchGrid
from kdbench.methods.ofa import ofa_loss

#: The learned temperatures of InfoNCE stay between these.
LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.01, 1.0


def info_nce(first: Tensor, second: Tensor, temperature: Tensor | float) -> Tensor:
    """Contrast within the batch: the same image attracts, all others repel (van den Oord et al., arXiv:1807.03748).

    Unit vectors (B, d); cross-entropy over rows and over columns of the similarities, halved. 0 at batch size 1.
    """
    similarity = inner_products(first, second) / temperature
    same = torch.arange(similarity.shape[0], device=similarity.device)
    return (F.cross_entropy(similarity, same) + F.cross_entropy(similarity.T, same)) / 2


class LocalToGlobal(nn.Module):
    """The projector L2G: patch embedding to the shape that the next net's stage 4 expects, norm, one Swin block.

    Args:
        source: what stage 3 of the first net gives.
        target: what stage 4 of the second net expects.
        window: side of the attention's windows in positions, at most.
        head_dim: channels per head, at least.
    """

    def __init__(self, source: StageInfo, target: StageInfo, window: int, head_dim: int) -> None:
        super().__init__()
        grid = (target.height, target.width)
        self.patches = PatchGrid(source.channels, (source.height, source.width), target.channels, grid)
        self.norm = nn.LayerNorm(target.channels)
        self.block = SwinTransformerBlock(
            target.channels,
            grid,
            num_heads=_num_heads(target.channels, head_dim),
            window_size=(_window(target.height, window), _window(target.width, window)),
        )
        init_like_ofa(self)
        tokens = torch.empty(1, target.class_tokens, target.channels)
        self.class_tokens = nn.Parameter(nn.init.trunc_normal_(tokens, std=0.02)) if target.class_tokens else None

    def forward(self, value: Tensor) -> tuple[Tensor, Tensor | None]:
        """Map (B, c, h, w) to a map (B, c', h', w') and class tokens (B, P, c'), None where the target has none."""
        mixed = self.block(self.norm(self.patches(value).permute(0, 2, 3, 1))).permute(0, 3, 1, 2)
        return mixed, None if self.class_tokens is None else self.class_tokens.expand(len(mixed), -1, -1)


@register_method("tas")
class TAS(Method):
    """Li et al., Fuse Before Transfer: Knowledge Fusion for Heterogeneous Distillation, ICCV 2025 (arXiv:2410.12342).

    Its first version is called TAS.

    A fusion net f stands between teacher t and student s: stages 1 to 3 of one net, a projector L2G, stage 4 and
    classifier of the other; only L2G is new. CNN stages come first and attention or MLP last, whichever is the teacher;
    in pairs without that contrast (CNN and CNN, or none a CNN) the student's stages come first.
    L = ce_weight CE(s) + D(t, s) + D(t, f) + D(f, s) with D(i, j) = nce_weight InfoNCE(f_i, f_j) + ofa_weight
    OFA(p_i, p_j) on pooled features f and class distributions p; j learns from i.

    From summaries of the paper, its code unread. Known: the fusion, the three distances, InfoNCE with a learned
    temperature, OFA's loss, average-pooled features (here the mean of stage 4 over its positions, class tokens left
    out). Our choices: each feature goes through a Linear to ``dim`` and L2 normalisation, as widths differ; InfoNCE is
    symmetric; one temperature per distance, kept in (0.01, 1) by a sigmoid on the log scale, where a clamp would have
    no gradient at its bounds; the fusion net's features and logits are constants where the student learns from them
    (otherwise it would be pulled down to the student); the teacher's modules are frozen but pass gradients on; the
    supervised term has weight 1 and is the student's alone; the Swin block has windows of at most 7 and 32 channels per
    head, after a norm; for a net with class tokens, L2G learns the ones that enter stage 4. OFA's exponent is 1, as in
    OFA-KD on CIFAR-100.

    Traps: D(t, f) also trains the student's shared stages, which is meant; without it training collapses in the paper's
    ablation. The student's own stages are run a second time only where it comes last, then stage 4 of a net that is no
    CNN: it draws its drop-path anew, and a batch norm in there would take up fused features too (none of the nets that
    run stage by stage has one there). InfoNCE is 0 at batch size 1.
    """

    display, family, fidelity = "TAS (FBT)", "hybrid", "reconstruction"
    needs = frozenset({"logits", "stages", "stagewise"})
    version = 2
    citation: ClassVar[dict[str, Any]] = {
        "key": "li2025fbt",
        "authors": "Li, Guopeng and Wang, Qiang and Yan, Ke and Ding, Shouhong and Gao, Yuan and Xia, Gui-Song",
        "title": "Fuse Before Transfer: Knowledge Fusion for Heterogeneous Distillation",
        "venue": "ICCV",
        "year": 2025,
        "arxiv": "2410.12342",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        nce_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        ofa_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        eps: Annotated[float, Range(above=0, search=(1, 2))] = 1.0,
        temperature: Annotated[float, Range(above=0.01, below=1, search=(0.02, 0.5), scale="log")] = 0.07,
        dim: Annotated[int, Range(at_least=1)] = 512,
        window: Annotated[int, Range(at_least=1)] = 7,
        head_dim: Annotated[int, Range(at_least=1)] = 32,
    ) -> None:
        super().__init__(student, teacher, task)
        self.ce_weight = ce_weight
        self.nce_weight = nce_weight
        self.ofa_weight = ofa_weight
        self.eps = eps
        self.student_last = teacher_comes_first(student, teacher)
        first, last = (teacher, student) if self.student_last else (student, teacher)
        self.project = LocalToGlobal(first.stages[2], last.stage_inputs[3], window, head_dim)
        self.embed_student = nn.Linear(student.stages[-1].channels, dim)
        self.embed_teacher = nn.Linear(teacher.stages[-1].channels, dim)
        self.embed_fusion = nn.Linear(last.stages[-1].channels, dim)
        share = math.log(temperature / LOWEST_TEMPERATURE) / math.log(HIGHEST_TEMPERATURE / LOWEST_TEMPERATURE)
        self.raw_temperatures = nn.Parameter(torch.full((3,), math.log(share / (1 - share))))

    @classmethod
    def supports(cls, student: NetInfo, teacher: NetInfo) -> str | None:
        last = student if teacher_comes_first(student, teacher) else teacher
        if not last.stagewise:
            return f"the fusion net ends with stage 4 of {last.name}, which does not run stage by stage"
        return None

    @property
    def temperatures(self) -> Tensor:
        """(3,): of the distances (t, s), (t, f) and (f, s)."""
        share = torch.sigmoid(self.raw_temperatures)
        return LOWEST_TEMPERATURE * torch.exp(share * math.log(HIGHEST_TEMPERATURE / LOWEST_TEMPERATURE))

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.stages is not None
        assert teacher.stages is not None
        fused_map, fused_logits = self.fuse(student, teacher)
        # Under autocast the fusion net's logits come in half precision.
        fused_logits = fused_logits.to(torch.promote_types(fused_logits.dtype, student.logits.dtype))
        embedding = {
            "student": _embed(student.stages[-1].map, self.embed_student),
            "teacher": _embed(teacher.stages[-1].map, self.embed_teacher),
            "fusion": _embed(fused_map, self.embed_fusion),
        }
        logits = {"student": student.logits, "teacher": teacher.logits, "fusion": fused_logits}
        pairs = (("teacher", "student"), ("teacher", "fusion"), ("fusion", "student"))
        terms = {"ce": self.ce_weight * batch.task_loss(student.logits)}
        for (source, learner), temperature in zip(pairs, self.temperatures.unbind(), strict=True):
            # The teacher's Linear has to learn; the fusion's learns from the teacher, for the student it is constant.
            target = embedding[source].detach() if source == "fusion" else embedding[source]
            mask = one_hot(batch.hard_labels, self.task.num_classes, logits[learner].dtype)
            name = f"{source}_{learner}"
            terms[f"nce_{name}"] = self.nce_weight * info_nce(embedding[learner], target, temperature)
            terms[f"ofa_{name}"] = self.ofa_weight * ofa_loss(logits[learner], logits[source].detach(), mask, self.eps)
        return terms

    def fuse(self, student: Outputs, teacher: Outputs) -> tuple[Tensor, Tensor]:
        """Last map (B, c, h, w) and logits (B, C) of the fusion net. Stages 1 to 3 have run: their features are at hand."""
        first, last = (teacher, student) if self.student_last else (student, teacher)
        assert first.stages is not None
        assert last.stagewise is not None
        state = last.stagewise.state_from_map(*self.project(first.stages[2].map))
        state = last.stagewise.stage(4, state)
        return state.map, last.stagewise.head(state)[1]


def teacher_comes_first(student: NetInfo, teacher: NetInfo) -> bool:
    """Whether the fusion net begins with the teacher: only where the teacher is the one CNN of the pair."""
    return teacher.family == "cnn" and student.family != "cnn"


def _embed(feature_map: Tensor, linear: nn.Linear) -> Tensor:
    """Last maps (B, c, h, w) to unit vectors (world * B, dim): pooled, mapped, gathered over all processes."""
    return gather_batch(F.normalize(linear(feature_map.mean(dim=(2, 3))), dim=1))


def _num_heads(channels: int, head_dim: int) -> int:
    """The most heads of at least ``head_dim`` channels that divide ``channels``; 1 where there is none."""
    return max(n for n in range(1, max(channels // head_dim, 1) + 1) if channels % n == 0)


def _window(side: int, largest: int) -> int:
    """The largest window up to ``largest`` that divides ``side``; padding instead where that is below half of it."""
    largest = min(side, largest)
    divisor = max(n for n in range(1, largest + 1) if side % n == 0)
    return divisor if 2 * divisor >= largest else largest
