"""FitNets: regress the teacher's features at every stage."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, StageInfo, Task, register_method
from kdbench.blocks import init_like_ofa, kl_divergence, resize_map
from kdbench.method import stage_numbers


@register_method("fitnet")
class FitNet(Method):
    """Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015 (arXiv:1412.6550).

    Hints alone, without KD: at each of ``stages`` an aligner (``aligner``) gives the student's feature the shape of the
    teacher's, class tokens dropped, and the mean squared error to it is added to the supervised loss. All is trained
    jointly, without the two phases of the original paper. ``fitnet-kd`` is the version of the tables at 224 px.

    At 32 px (preset ``cifar100-32``) the literature has one hint, the second stage after the stem (``feats[2]``), with
    weight 100 and no KD (mdistiller, RepDistiller). Their regressor ends in BatchNorm and ReLU; ours does not, since a
    ReLU reaches no negative target of a ViT or an MLP.

    Ours: pairs whose grids do not divide each other.

    Trap: features are not normalised, so the loss has the scale of the teacher's features, which differs by orders of
    magnitude between architectures. Bad results with a ConvNeXt teacher are a property of the method.
    """

    display, family, fidelity = "FitNet", "hint", "paper"
    needs = frozenset({"logits", "stages"})
    version = 2
    presets: ClassVar[dict[str, dict[str, Any]]] = {"cifar100-32": {"fit_weight": 100.0, "stages": (2,)}}
    citation: ClassVar[dict[str, Any]] = {
        "key": "romero2015fitnets",
        "authors": "Romero, Adriana and Ballas, Nicolas and Kahou, Samira Ebrahimi and Chassang, Antoine and Gatta, "
        "Carlo and Bengio, Yoshua",
        "title": "FitNets: Hints for Thin Deep Nets",
        "venue": "ICLR",
        "year": 2015,
        "arxiv": "1412.6550",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        fit_weight: Annotated[float, Range(at_least=0, search=(0.01, 100), scale="log")] = 1.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        stages: Annotated[tuple[int, ...], Range(at_least=1, at_most=4)] = (1, 2, 3, 4),
    ) -> None:
        super().__init__(student, teacher, task)
        stage_numbers(stages=stages)
        self.fit_weight = fit_weight
        self.ce_weight = ce_weight
        self.stages = stages
        self.aligners = nn.ModuleList(aligner(student.stages[n - 1], teacher.stages[n - 1]) for n in stages)
        init_like_ofa(self.aligners)

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.stages is not None
        assert teacher.stages is not None
        fit = student.logits.new_zeros(())
        for number, align in zip(self.stages, self.aligners, strict=True):
            fit = fit + align(student.stages[number - 1].map, teacher.stages[number - 1].map)
        return {"ce": self.ce_weight * batch.task_loss(student.logits), "fit": self.fit_weight * fit}


@register_method("fitnet-kd")
class FitNetKD(FitNet):
    """Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015 (arXiv:1412.6550), with KD.

    ``fitnet`` plus KD, which is what the tables on heterogeneous pairs at 224 px call FitNet (Hao840/OFAKD, issue 10;
    PAT, arXiv:2501.08885, whose weights these are: 1 for each of hints, KD at T = 1 and labels). Four stages everywhere.
    """

    display = "FitNet + KD"
    version = 1
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    carries_kd: ClassVar[dict[str, str]] = {
        "temperature": "temperature",
        "kd_weight": "kd_weight",
        "ce_weight": "ce_weight",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        fit_weight: Annotated[float, Range(at_least=0, search=(0.01, 100), scale="log")] = 1.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        kd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 1.0,
        stages: Annotated[tuple[int, ...], Range(at_least=1, at_most=4)] = (1, 2, 3, 4),
    ) -> None:
        super().__init__(student, teacher, task, fit_weight=fit_weight, ce_weight=ce_weight, stages=stages)
        self.kd_weight = kd_weight
        self.temperature = temperature

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        kd = self.kd_weight * kl_divergence(student.logits, teacher.logits, self.temperature)
        return {**super().forward(batch, student, teacher), "kd": kd}


def aligner(student: StageInfo, teacher: StageInfo) -> Aligner:
    """Build the module that regresses one teacher stage from one student stage.

    With r the ratio of the two grids (a whole number, the same in height and width), c_s, c_t the widths:

    - map to map, equal grids: 1 x 1 convolution without bias;
    - map to tokens: student finer or equal, convolution with kernel and stride r; teacher finer, its r x r neighbouring
      tokens are joined on channels and the student gets a 1 x 1 convolution to c_t * r^2;
    - tokens to map: student finer or equal, r x r neighbouring tokens joined on channels, then a 1 x 1 convolution;
      teacher finer, a linear layer to c_t * r^2 whose outputs are laid out as r x r positions;
    - tokens to tokens: student finer or equal, neighbours joined, then a linear layer; teacher with more tokens, a
      linear layer from each token to L_t * c_t / L_s numbers, read channel-first as (c_t, L_t). The last is a reshape
      and no spatial upsampling: it mixes positions, as the published baseline does.

    Everything else (ours): the student's map is pooled or interpolated to the teacher's grid, then a 1 x 1 convolution.
    """
    down, up = _ratio(student, teacher), _ratio(teacher, student)
    wide, narrow = student.channels, teacher.channels
    from_map, to_map = student.layout == "map", teacher.layout == "map"
    if from_map and to_map:
        return Aligner(_Resize(teacher), nn.Conv2d(wide, narrow, 1, bias=False))
    if from_map and down:
        return Aligner(nn.Conv2d(wide, narrow, down, stride=down))
    if from_map and up:
        return Aligner(nn.Conv2d(wide, narrow * up**2, 1), join=up)
    if to_map and down:
        return Aligner(nn.PixelUnshuffle(down), nn.Conv2d(wide * down**2, narrow, 1))
    if to_map and up:
        return Aligner(_ChannelLinear(wide, narrow * up**2), nn.PixelShuffle(up))
    if not from_map and not to_map and down:
        return Aligner(nn.PixelUnshuffle(down), _ChannelLinear(wide * down**2, narrow))
    numbers = teacher.num_tokens * narrow
    if not from_map and not to_map and teacher.num_tokens > student.num_tokens and numbers % student.num_tokens == 0:
        return Aligner(_ChannelLinear(wide, numbers // student.num_tokens), _Reshape(teacher))
    return Aligner(_Resize(teacher), nn.Conv2d(wide, narrow, 1))


class Aligner(nn.Module):
    """Mean squared error between an aligned student map and the teacher's.

    Args:
        layers: bring the student's map (B, c_s, h_s, w_s) to the shape of the target.
        join: join ``join`` x ``join`` neighbouring positions of the teacher on its channels first.
    """

    def __init__(self, *layers: nn.Module, join: int = 1) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)
        self.join = join

    def forward(self, student_map: Tensor, teacher_map: Tensor) -> Tensor:
        return F.mse_loss(self.layers(student_map), F.pixel_unshuffle(teacher_map, self.join))


class _ChannelLinear(nn.Linear):
    """A linear layer over the channels of a map: a token net's layer, and initialised as one."""

    def forward(self, value: Tensor) -> Tensor:
        return super().forward(value.movedim(1, -1)).movedim(-1, 1)


class _Resize(nn.Module):
    """Pool or interpolate a map to the grid of a stage."""

    def __init__(self, stage: StageInfo) -> None:
        super().__init__()
        self.size = (stage.height, stage.width)

    def forward(self, value: Tensor) -> Tensor:
        return resize_map(value, self.size, mode="bilinear")


class _Reshape(nn.Module):
    """Read the numbers of a map (B, c, h, w), channels slowest, as a map of the shape of a stage."""

    def __init__(self, stage: StageInfo) -> None:
        super().__init__()
        self.shape = (stage.channels, stage.height, stage.width)

    def forward(self, value: Tensor) -> Tensor:
        return value.reshape(-1, *self.shape)


def _ratio(fine: StageInfo, coarse: StageInfo) -> int:
    """Side of the square of fine positions that makes one coarse position, or 0 where the grids do not divide."""
    ratio = fine.height // coarse.height
    divides = (fine.height, fine.width) == (ratio * coarse.height, ratio * coarse.width)
    return ratio if divides else 0
