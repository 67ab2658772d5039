"""Running a net stage by stage: stem, stages 1 to 4, head, with the features between them open to change.

Read from top to bottom: ``State`` (what flows between stages), ``StagewiseNet`` (what a method calls), and at the end
how each architecture is cut (``_CUTS``). A cut lists the net's steps in the order in which timm's own
``forward_features`` runs them; the taps say after which step each stage ends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from timm.models.convnext import ConvNeXt
from timm.models.efficientnet import EfficientNet
from timm.models.mlp_mixer import MlpMixer
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from kdbench.errors import KdbenchError
from kdbench.method import NUM_STAGES, Feature
from kdbench.nets.classic.net import ClassicNet
from kdbench.suite.net import Tap

Step = Callable[[Tensor], Tensor]


class StagewiseError(KdbenchError):
    """A net that cannot be run stage by stage, or a state that does not fit it."""


@dataclass(frozen=True)
class State:
    """What flows between two stages of a net. Never changed in place: ``with_map`` returns a new one.

    Attributes:
        value: in the net's own layout: (B, c, h, w) "nchw", (B, h, w, c) "nhwc", (B, P + h * w, c) "tokens".
        layout: ``"nchw"``, ``"nhwc"`` or ``"tokens"``.
        grid: (height, width) of the positions.
        num_class_tokens: P, the class tokens that precede the positions in "tokens".
    """

    value: Tensor
    layout: str
    grid: tuple[int, int]
    num_class_tokens: int = 0

    @property
    def map(self) -> Tensor:
        """(B, c, h, w) without class tokens."""
        if self.layout == "nchw":
            return self.value
        if self.layout == "nhwc":
            return self.value.permute(0, 3, 1, 2)
        return self.value[:, self.num_class_tokens :].transpose(1, 2).unflatten(2, self.grid)

    @property
    def class_tokens(self) -> Tensor | None:
        """(B, P, c), or None for a net without class tokens."""
        return self.value[:, : self.num_class_tokens] if self.num_class_tokens else None

    def with_map(self, value: Tensor) -> State:
        """The state with the map (B, c, h, w) in place of its own and its class tokens kept."""
        grid = (value.shape[2], value.shape[3])
        return replace(self, value=_to_layout(value, self.layout, self.class_tokens), grid=grid)

    def feature(self, layout: str) -> Feature:
        """The state as the ``Feature`` that ``TappedNet`` hands out; ``layout`` is that of its net."""
        return Feature(self.map, self.class_tokens, layout)


class StagewiseNet:
    """A net as stem, stages 1 to 4 and head; together they equal the net's own forward.

    Stage k ends at the net's k-th tap, so that ``stage(k, state).map`` is what ``Outputs.stages[k - 1].map`` holds; the
    head is all that follows the last tap: final norms, pooling, classifier. A ViT's stem ends after the position
    embedding, a ResNet's after its pooling. In timm >= 1, a Swin or ConvNeXt downsamples at the start of a stage.

    The net's modes and its frozen parameters stay as they are: gradients run through to whatever was put into a state.
    Batch norms of a net in train mode take every run into their statistics.

    Args:
        net: of timm, of an architecture for which ``can_run_stagewise`` holds.
        taps: where its stages end.
        input_size: (height, width) of its input in pixels.
        name: of the net, for messages.
    """

    def __init__(self, net: nn.Module, taps: Sequence[Tap], input_size: tuple[int, int], name: str) -> None:
        self.net: Any = net
        self.taps = taps
        self.input_size = input_size
        self.name = name

    def stem(self, images: Tensor) -> State:
        """Images (B, 3, h, w), normalised for this net (``Outputs.images``), to the state that enters stage 1.

        Raises:
            StagewiseError: if the net's architecture is not known.
        """
        cut = self._cut()
        value = _run(cut.steps[: cut.stem_end], images)
        return self._state(value, cut, self._patch_grid(images.shape[-2:]) if cut.layout == "tokens" else None)

    def stage(self, number: int, state: State) -> State:
        """Run stage ``number``, 1 to 4, on the state that the stem or the previous stage gave.

        Raises:
            StagewiseError: for another number.
        """
        if number not in range(1, NUM_STAGES + 1):
            raise StagewiseError(f"net {self.name}: stage {number!r} is unknown; stages are 1, 2, 3, 4")
        cut = self._cut()
        start = cut.stem_end if number == 1 else cut.stage_ends[number - 2]
        value = _run(cut.steps[start : cut.stage_ends[number - 1]], state.value)
        return self._state(value, cut, state.grid)

    def final(self, state: State) -> State:
        """Run what lies between stage 4 and the pooling, the final norm of most nets, on the state after stage 4."""
        cut = self._cut()
        return self._state(_run(cut.steps[cut.stage_ends[-1] :], state.value), cut, state.grid)

    def head(self, state: State) -> tuple[Tensor, Tensor]:
        """State after stage 4 to (embedding (B, d), logits (B, C))."""
        embedding = self.net.forward_head(self.final(state).value, pre_logits=True)
        return embedding, self.net.get_classifier()(embedding)

    def state_from_map(self, value: Tensor, class_tokens: Tensor | None = None) -> State:
        """Make a state out of a map (B, c, h, w) that comes from elsewhere, for example from another net.

        The map must have the shape that the next stage expects (``NetInfo.stage_inputs``).

        Args:
            value: the map.
            class_tokens: (B, P, c), for a net with P class tokens. Without them the net's own are taken, as they enter
                its first block: learned vectors plus position, which have not yet seen an image.

        Raises:
            StagewiseError: for a map or class tokens of a wrong shape.
        """
        cut = self._cut()
        count = cut.num_class_tokens
        if value.ndim != 4:
            raise StagewiseError(f"net {self.name}: a map has the shape (B, c, h, w), not {tuple(value.shape)}")
        if class_tokens is None and count:
            class_tokens = self._own_class_tokens(count).to(value.dtype).expand(value.shape[0], -1, -1)
        expected = (value.shape[0], count, value.shape[1]) if count else None
        given = None if class_tokens is None else tuple(class_tokens.shape)
        if given != expected:
            raise StagewiseError(f"net {self.name}: class tokens of shape {given}, expected {expected}")
        grid = (value.shape[2], value.shape[3])
        return State(_to_layout(value, cut.layout, class_tokens), cut.layout, grid, count)

    def _patch_grid(self, image_size: Sequence[int]) -> tuple[int, int]:
        embed = self.net.patch_embed if hasattr(self.net, "patch_embed") else self.net.stem
        height, width = embed.dynamic_feat_size(tuple(image_size))
        return height, width

    def _own_class_tokens(self, count: int) -> Tensor:
        """(1, P, c): what the stem puts before the patches; it does not depend on them."""
        net = self.net
        height, width = self._patch_grid(self.input_size)
        shape = (height, width) if net.dynamic_img_size else (height * width,)
        patches = net.pos_embed if net.pos_embed is not None else net.cls_token
        tokens: Tensor = net._pos_embed(patches.new_zeros(1, *shape, net.embed_dim))
        return net.norm_pre(tokens[:, :count])

    def _cut(self) -> _Cut:
        """Cut the net anew on each call: a list of its modules, which stays right when modules are exchanged or copied."""
        architecture = _architecture(self.net, self.taps)
        if architecture is None:
            raise StagewiseError(
                f"net {self.name}: {type(self.net).__name__} cannot be run stage by stage with the taps {list(self.taps)}; "
                f"known are {', '.join(a.base.__name__ for a in _CUTS)}"
            )
        steps = architecture.steps(self.net)
        ends = tuple(architecture.end(self.net, tap) if isinstance(tap, int) else len(steps) for tap in self.taps)
        return _Cut(
            steps=steps,
            stem_end=min(architecture.stem, ends[0]),
            stage_ends=ends,
            layout=architecture.layout,
            num_class_tokens=getattr(self.net, "num_prefix_tokens", 0) if architecture.layout == "tokens" else 0,
        )

    @staticmethod
    def _state(value: Tensor, cut: _Cut, grid: tuple[int, int] | None) -> State:
        """Wrap a value; ``grid`` is that of the tokens, which plain nets keep; maps bring their own."""
        if cut.layout == "nchw":
            grid = (value.shape[2], value.shape[3])
        elif cut.layout == "nhwc":
            grid = (value.shape[1], value.shape[2])
        assert grid is not None
        return State(value, cut.layout, grid, cut.num_class_tokens)


def can_run_stagewise(net: nn.Module, taps: Sequence[Tap]) -> bool:
    """Whether ``StagewiseNet`` knows the net's architecture, with these taps."""
    return _architecture(net, taps) is not None


@dataclass(frozen=True)
class _Cut:
    """A net as its steps in order, and where stem and stages end (numbers of steps)."""

    steps: list[Step]
    stem_end: int
    stage_ends: tuple[int, ...]
    layout: str
    num_class_tokens: int


@dataclass(frozen=True)
class _Architecture:
    """How a class of nets is cut.

    Attributes:
        base: the class; subclasses count as long as they inherit its forward.
        layout: of the values between its steps.
        steps: the steps of its ``forward_features``.
        stem: number of steps before the first block.
        end: number of steps that give the entry ``index`` of its ``forward_intermediates``.
        final_is_map: whether the tap "final" is a map (B, c, h, w).
    """

    base: type[nn.Module]
    layout: str
    steps: Callable[[Any], list[Step]]
    stem: int
    end: Callable[[Any, int], int]
    final_is_map: bool = False


_CUTS = (
    _Architecture(
        base=ResNet,
        layout="nchw",
        steps=lambda net: [net.conv1, net.bn1, net.act1, net.maxpool, net.layer1, net.layer2, net.layer3, net.layer4],
        stem=4,
        end=lambda net, index: 4 + index if index else 3,  # entry 0 is taken before the pooling
        final_is_map=True,
    ),
    _Architecture(
        base=ClassicNet,
        layout="nchw",
        steps=lambda net: net.steps(),
        stem=1,
        end=lambda net, index: 1 + index,
        final_is_map=True,
    ),
    _Architecture(
        base=EfficientNet,
        layout="nchw",
        steps=lambda net: [net.conv_stem, net.bn1, *net.blocks, net.conv_head, net.bn2],
        stem=2,
        end=lambda net, index: 2 + net.stage_ends[index],
        final_is_map=True,
    ),
    _Architecture(
        base=ConvNeXt,
        layout="nchw",
        steps=lambda net: [net.stem, *net.stages, net.norm_pre],
        stem=1,
        end=lambda net, index: 2 + index,
        final_is_map=True,
    ),
    _Architecture(
        base=VisionTransformer,
        layout="tokens",
        steps=lambda net: [net.patch_embed, net._pos_embed, net.patch_drop, net.norm_pre, *net.blocks, net.norm],
        stem=4,
        end=lambda net, index: 5 + index,
    ),
    _Architecture(
        base=SwinTransformer,
        layout="nhwc",
        steps=lambda net: [net.patch_embed, *net.layers, net.norm],
        stem=1,
        end=lambda net, index: 2 + index,
    ),
    _Architecture(
        base=MlpMixer,
        layout="tokens",
        steps=lambda net: [net.stem, *net.blocks, net.norm],
        stem=1,
        end=lambda net, index: 2 + index,
    ),
)


def _architecture(net: nn.Module, taps: Sequence[Tap]) -> _Architecture | None:
    if any(isinstance(tap, str) and tap != "final" for tap in taps):  # a module may end between two steps
        return None
    for architecture in _CUTS:
        if not isinstance(net, architecture.base):
            continue
        inherits = all(
            getattr(type(net), name) is getattr(architecture.base, name)
            for name in ("forward_features", "forward_intermediates")
        )
        # A dropped patch leaves no grid.
        drops = not isinstance(getattr(net, "patch_drop", None), (nn.Identity, type(None)))
        if inherits and not drops and (architecture.final_is_map or "final" not in taps):
            return architecture
        return None
    return None


def _run(steps: list[Step], value: Tensor) -> Tensor:
    for step in steps:
        value = step(value)
    return value


def _to_layout(value: Tensor, layout: str, class_tokens: Tensor | None) -> Tensor:
    """Map (B, c, h, w) to ``layout``, class tokens (B, P, c) first."""
    if layout == "nchw":
        return value
    if layout == "nhwc":
        return value.permute(0, 2, 3, 1)
    tokens = value.flatten(2).transpose(1, 2)
    return tokens if class_tokens is None else torch.cat([class_tokens, tokens], dim=1)
