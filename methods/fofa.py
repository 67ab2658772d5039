"""Feature distillation by region-aware attention in the student and prompts inside the frozen teacher (FOFA, PAT)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, StageInfo, Task, register_method
from kdbench.blocks import init_like_ofa, kl_divergence, resize_map, tokens_to_map
from kdbench.distributed import gather_batch
from kdbench.errors import HyperparameterError
from kdbench.method import NUM_STAGES
from kdbench.methods.reviewkd import hcl_loss


class PatchGrid(nn.Module):
    """Cut a map (B, c, h, w) into a grid of patches and embed each: (B, dim, rows, columns).

    The patch is ceil(h / rows) x ceil(w / columns); where the map is no multiple of it (7 x 7 into 4 x 4, or a map
    smaller than the grid), the map is first resized to the next multiple, nearest neighbour.
    """

    def __init__(self, channels: int, size: tuple[int, int], dim: int, grid: tuple[int, int]) -> None:
        super().__init__()
        patch = (math.ceil(size[0] / grid[0]), math.ceil(size[1] / grid[1]))
        self.size = (patch[0] * grid[0], patch[1] * grid[1])
        self.embed = nn.Conv2d(channels, dim, patch, stride=patch)

    def forward(self, value: Tensor) -> Tensor:
        return self.embed(resize_map(value, self.size))


class RegionAttention(nn.Module):
    """Region-aware attention: patches of all four student stages attend to each other (arXiv:2501.08885, "RAA").

    Each stage becomes grid x grid tokens; self-attention over the tokens of all stages, without residual and without
    output projection. Positions are added to queries and keys after their projection, values have none. Returns one
    (B, grid * grid, dim) per stage.
    """

    positions: Tensor

    def __init__(self, stages: Sequence[StageInfo], grid: int, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.patches = nn.ModuleList(
            PatchGrid(stage.channels, (stage.height, stage.width), dim, (grid, grid)) for stage in stages
        )
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key_value = nn.Linear(dim, 2 * dim)
        self.register_buffer("positions", sinusoids(len(stages) * grid * grid, dim), persistent=False)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        patches = [embed(value).flatten(2).transpose(1, 2) for embed, value in zip(self.patches, maps, strict=True)]
        tokens = self.norm(torch.cat(patches, dim=1))
        key, value = self.key_value(tokens).chunk(2, dim=2)
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (self.query(tokens) + self.positions, key + self.positions, value)
        )
        mixed = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        return mixed.chunk(len(maps), dim=1)


class ToTokens(nn.Module):
    """Aligner to a teacher stage of tokens: (B, n, dim) to a map (B, channels, height, width)."""

    def __init__(self, tokens: int, dim: int, target: StageInfo) -> None:
        super().__init__()
        self.size = (target.height, target.width)
        self.norm_tokens = nn.BatchNorm1d(tokens)
        self.widen = nn.Linear(dim, target.channels)
        self.norm_channels = nn.BatchNorm1d(target.channels)
        self.spread = nn.Linear(tokens, target.num_tokens)

    def forward(self, tokens: Tensor) -> Tensor:
        channels = self.widen(self.norm_tokens(tokens)).transpose(1, 2)
        return self.spread(self.norm_channels(channels)).unflatten(2, self.size)


class ToMap(nn.Module):
    """Aligner to a teacher stage of maps: (B, n, dim), n a square, to (B, channels, height, width).

    Norm and 1 x 1 convolution come before the resizing, with which they commute (the statistics of the norm differ
    where the size is no multiple of the grid): far cheaper at 56 x 56, and defined at batch size 1 on one pixel.
    """

    def __init__(self, tokens: int, dim: int, target: StageInfo) -> None:
        super().__init__()
        self.grid = math.isqrt(tokens)
        self.size = (target.height, target.width)
        self.norm = nn.BatchNorm2d(dim)
        self.project = nn.Conv2d(dim, target.channels, 1, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return resize_map(self.project(self.norm(tokens_to_map(tokens, self.grid, self.grid))), self.size)


class SqueezeExcite(nn.Module):
    """Channel attention (Hu et al., arXiv:1709.01507): the input times a gate in (0, 1) per channel."""

    def __init__(self, channels: int, ratio: int = 16) -> None:
        super().__init__()
        hidden = max(
            channels // ratio, 8
        )  # a few units at least: narrow nets would have one or two, which may all be dead
        self.gate = nn.Sequential(
            nn.Conv2d(channels, hidden, 1), nn.ReLU(), nn.Conv2d(hidden, channels, 1), nn.Sigmoid()
        )

    def forward(self, value: Tensor) -> Tensor:
        return value * self.gate(value.mean((2, 3), keepdim=True))


class Prompt(nn.Module):
    """The adaptive-feedback prompt before one teacher stage (arXiv:2501.08885, "AFP"): x + beta * prompt(x, feedback).

    Args:
        entry: shape of the stage's input, which the prompt changes.
        output: shape of the stage's output, which the feedback has.
        feedback: whether there is feedback.
    """

    def __init__(self, entry: StageInfo, output: StageInfo, feedback: bool) -> None:
        super().__init__()
        channels = entry.channels
        groups = math.gcd(channels, 4)
        self.size = (entry.height, entry.width)
        self.beta = nn.Parameter(torch.zeros(1))
        self.prompt = nn.Sequential(
            nn.Conv2d(channels, channels, 1, groups=groups),
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels),
            nn.Conv2d(channels, channels, 1),
            SqueezeExcite(channels),
            nn.Conv2d(channels, channels, 1, groups=groups),
        )
        self.align = nn.Conv2d(output.channels, channels, 1) if feedback else None
        self.fuse = (
            nn.Sequential(
                nn.Conv2d(2 * channels, channels, 1),
                nn.Conv2d(channels, channels, 5, padding=2),
                nn.Conv2d(channels, channels, 1),
                SqueezeExcite(channels),
                nn.Conv2d(channels, channels, 1),
            )
            if feedback
            else nn.Identity()
        )

    def forward(self, value: Tensor, feedback: Tensor | None) -> Tensor:
        """Map (B, c, h, w) and feedback (c', h', w') of the stage's output to the prompted map (B, c, h, w)."""
        prompted = value
        if self.align is not None and feedback is not None:
            aligned = resize_map(self.align(feedback[None]), self.size).expand(value.shape[0], -1, -1, -1)
            prompted = self.fuse(torch.cat([value, aligned], dim=1))
        return value + self.beta * self.prompt(prompted)


def sinusoids(length: int, dim: int) -> Tensor:
    """(length, dim), dim even: sines and cosines of the position (Vaswani et al., arXiv:1706.03762, sec. 3.5)."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32) * (-math.log(10000.0) / dim))
    return torch.stack([torch.sin(position * frequency), torch.cos(position * frequency)], dim=2).flatten(1)


@register_method("fofa")
class FOFA(Method):
    """Lin et al., Perspective-Aware Teaching: Adapting Knowledge for Heterogeneous Distillation, ICCV 2025
    (arXiv:2501.08885).

    Its first version is called Feature-based One-For-All (FOFA).

    L = ce_weight CE + kd_weight KL(clean teacher || student) + feature_weight sum over the stages of HCL(aligned
    student, prompted teacher) + clean_weight KL(clean teacher || prompted teacher). The student's four stages are mixed
    by region-aware attention; prompts in front of the teacher's stages make its features easier to match. The feature
    loss trains both: it runs back through the frozen teacher into the prompts, at several times the teacher's cost.

    As the paper means it, not as released. The released code takes the last token for the class token (timm has it
    first), adds one position vector per sample instead of per token, and lets squeeze-and-excitation return its gate
    instead of the gated input, so that its prompts are constant over space. Here class tokens pass by the prompts
    untouched, positions are those of the tokens, and the gate multiplies; with that, attention and prompts equal the
    released modules.

    Feedback: the paper hands the difference between the aligned student and the prompted teacher of the previous
    iteration to the prompt. That difference belongs to other images, so all that it can tell is what differs on the
    average; here it is averaged over the batch (of all processes), which also fits batches of any size. It is kept in
    persistent buffers, so that a resumed run continues with the same numbers; the first iteration has feedback 0. A
    difference of the current images would let the prompt copy the student.

    Ours: maps that do not divide into the grid are resized (see ``PatchGrid``); hidden widths of at least 8 in the
    squeeze; fewer groups where 4 do not divide the channels; feedback aligned by a 1 x 1 convolution and resizing.

    Traps: the prompts' weights have zero gradient in the first step, because beta starts at 0 (it has one). Images that
    the teacher was given must allow gradients (``no_grad``, not ``inference_mode``).
    """

    display, family, fidelity = "FOFA (PAT)", "hybrid", "paper"
    needs = frozenset({"logits", "stages", "stagewise"})
    version = 2
    carries_kd: ClassVar[dict[str, str]] = {
        "temperature": "temperature",
        "kd_weight": "kd_weight",
        "ce_weight": "ce_weight",
    }
    # Small images need no width of 512; the matrix of small nets must stay a matter of minutes.
    presets: ClassVar[dict[str, dict[str, Any]]] = {"digits": {"dim": 128, "heads": 4}}
    citation: ClassVar[dict[str, Any]] = {
        "key": "lin2025pat",
        "authors": "Lin, Jhe-Hao and Yao, Yi and Hsu, Chan-Feng and Xie, Hongxia and Shuai, Hong-Han and Cheng, "
        "Wen-Huang",
        "title": "Perspective-Aware Teaching: Adapting Knowledge for Heterogeneous Distillation",
        "venue": "ICCV",
        "year": 2025,
        "arxiv": "2501.08885",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        kd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        feature_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        clean_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 1.0,
        queries: Annotated[int, Range(at_least=16)] = 64,
        dim: Annotated[int, Range(at_least=2)] = 512,
        heads: Annotated[int, Range(at_least=1)] = 8,
        feedback: bool = True,
    ) -> None:
        super().__init__(student, teacher, task)
        grid = math.isqrt(max(queries, 0) // NUM_STAGES)
        if grid < 2 or NUM_STAGES * grid * grid != queries:
            raise HyperparameterError(
                f"queries = {queries!r}: must be 4 n^2 with n of 2 or more: 16, 36, 64, 100, 144, ..."
            )
        if dim % heads or dim % 2:
            raise HyperparameterError(f"dim = {dim!r}: must be even and a multiple of heads = {heads!r}")
        self.weights = {"ce": ce_weight, "kd": kd_weight, "feature": feature_weight, "clean": clean_weight}
        self.temperature = temperature
        self.feedback = feedback
        self.attention = RegionAttention(student.stages, grid, dim, heads)
        self.aligners = nn.ModuleList(
            (ToTokens if stage.layout == "tokens" else ToMap)(grid * grid, dim, stage) for stage in teacher.stages
        )
        self.prompts = nn.ModuleList(
            Prompt(entry, output, feedback) for entry, output in zip(teacher.stage_inputs, teacher.stages, strict=True)
        )
        init_like_ofa(self.aligners)  # attention and prompts keep torch's own, as in the released code
        if feedback:
            for number, stage in enumerate(teacher.stages, 1):
                self.register_buffer(f"feedback_{number}", torch.zeros(stage.channels, stage.height, stage.width))

    @classmethod
    def supports(cls, student: NetInfo, teacher: NetInfo) -> str | None:
        if not teacher.stagewise:
            return f"prompts need a teacher that runs stage by stage; {teacher.name} cannot"
        return None

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.stages is not None
        aligned = self.align([stage.map for stage in student.stages])
        prompted, prompted_logits = self.prompt_teacher(teacher)
        if self.feedback and self.training:
            self._keep_feedback(aligned, prompted)
        # Under autocast the prompted logits come in half precision.
        prompted_logits = prompted_logits.to(torch.promote_types(prompted_logits.dtype, teacher.logits.dtype))
        features = [hcl_loss(ours, theirs) for ours, theirs in zip(aligned, prompted, strict=True)]
        terms = {
            "ce": batch.task_loss(student.logits),
            "kd": kl_divergence(student.logits, teacher.logits, self.temperature),
            "feature": torch.stack(features).sum(),
            "clean": kl_divergence(prompted_logits, teacher.logits),
        }
        return {name: self.weights[name] * term for name, term in terms.items()}

    def align(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Four student maps to four maps in the teacher's shapes."""
        return [aligner(tokens) for aligner, tokens in zip(self.aligners, self.attention(maps), strict=True)]

    def prompt_teacher(self, teacher: Outputs) -> tuple[list[Tensor], Tensor]:
        """Run the teacher with prompts before its stages: the four maps (B, c, h, w) and the logits (B, C)."""
        assert teacher.stagewise is not None
        assert teacher.images is not None
        state = teacher.stagewise.stem(teacher.images)
        maps = []
        for number, prompt in enumerate(self.prompts, 1):
            # Cloned: the buffer changes before the backward pass, which needs the old value.
            feedback = self.get_buffer(f"feedback_{number}").clone() if self.feedback else None
            state = teacher.stagewise.stage(number, state.with_map(prompt(state.map, feedback)))
            maps.append(state.map)
        return maps, teacher.stagewise.head(state)[1]

    @torch.no_grad()
    def _keep_feedback(self, aligned: Sequence[Tensor], prompted: Sequence[Tensor]) -> None:
        for number, (ours, theirs) in enumerate(zip(aligned, prompted, strict=True), 1):
            difference = (ours - theirs).mean(dim=0, keepdim=True)
            buffer = self.get_buffer(f"feedback_{number}")
            buffer.copy_(gather_batch(difference.to(buffer.dtype)).mean(dim=0))
