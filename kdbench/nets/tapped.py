"""A timm net that returns logits, and its four stages and its embedding where they are asked for."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import timm
import torch
import torch.nn.functional as F
from timm.models.resnet import ResNet
from torch import Tensor, nn

import kdbench.nets.classic.models
import kdbench.nets.small
import kdbench.nets.swin_small  # noqa: F401 - all three register nets with timm
from kdbench.errors import KdbenchError, nearest
from kdbench.method import NUM_STAGES, Feature, NetInfo, Outputs, StageInfo
from kdbench.nets.classic.net import ClassicNet
from kdbench.nets.cost import MacCounter
from kdbench.nets.stagewise import StagewiseNet, State, can_run_stagewise
from kdbench.suite.net import NetSpec, Tap

#: timm's module of a model -> family of the net. A suite's ``family:`` goes first.
_FAMILY_OF_MODULE = {
    **dict.fromkeys(
        ("convnext", "densenet", "dla", "edgenext", "efficientnet", "ghostnet", "hardcorenas", "hrnet", "inception_v3",
         "mobilenetv3", "nfnet", "regnet", "repvgg", "resnet", "resnetv2", "rexnet", "sknet", "vgg", "small.resnet"), "cnn",
    ),
    **dict.fromkeys(
        ("beit", "cait", "deit", "eva", "flexivit", "levit", "pvt_v2", "swin_transformer", "swin_transformer_v2", "twins",
         "vision_transformer", "xcit"), "vit",
    ),
    **dict.fromkeys(("mlp_mixer",), "mlp"),
}  # fmt: skip


class NetError(KdbenchError):
    """A net that cannot be built or tapped."""


class TappedNet(nn.Module):
    """A timm net with its preprocessing, run as ``net(images, needs) -> Outputs``.

    Args:
        spec: the net.
        num_classes: width of its logits.
        name: its name in the suite.

    Raises:
        NetError: for a name or an argument that timm does not know, or stages that cannot be tapped.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: NetSpec, num_classes: int, name: str = "") -> None:
        super().__init__()
        self.spec = spec
        self.name = name or spec.timm
        net: Any = _create(spec, num_classes, self.name)
        self.net = net
        config = net.pretrained_cfg
        self.family = spec.family or _family(self.net, self.name)
        self.layout = "map" if self.family == "cnn" else "tokens"
        self.input_size: tuple[int, int] = spec.input_size or tuple(config["input_size"][1:])
        self.taps = _resolve_taps(self.net, spec.taps, self.name)
        self._returns_class_tokens = "return_prefix_tokens" in inspect.signature(net.forward_intermediates).parameters
        normalisation = {key: tuple(getattr(spec, key) or config[key]) for key in ("mean", "std")}
        for key, values in normalisation.items():
            self.register_buffer(key, torch.tensor(values, dtype=torch.float32).view(1, 3, 1, 1), persistent=False)
        #: Nets with equal preprocessing share their input. Kept on the host, since every step compares it.
        self.preprocessing: tuple[object, ...] = (self.input_size, *normalisation["mean"], *normalisation["std"])

    @property
    def classifier(self) -> nn.Module:
        """The layer from the embedding to the logits."""
        return self.net.get_classifier()

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalise raw images (B, 3, h, w) in [0, 1] for this net, resized (bilinear) to its input size where they differ."""
        if tuple(images.shape[-2:]) != self.input_size:
            images = F.interpolate(images, self.input_size, mode="bilinear", align_corners=False, antialias=True)
        return (images - self.mean) / self.std

    def forward(self, images: Tensor, needs: Collection[str] = ("logits",)) -> Outputs:
        """Run the net on raw images (B, 3, h, w) in [0, 1]; compute what ``needs`` names (see ``kdbench.method.NEEDS``)."""
        return self.run(self.preprocess(images), needs)

    def run(self, inputs: Tensor, needs: Collection[str] = ("logits",)) -> Outputs:
        """Run the net on what ``preprocess`` returned."""
        stages = None
        if "stages" in needs:
            with _inputs_of(self._last_activations if "preactivation" in needs else ()) as before:
                final, stages = self._tap(inputs)
            for stage, value in zip(stages, before, strict=False):
                stage.preactivation = value
        else:
            final = self.net.forward_features(inputs)
        embedding = self.net.forward_head(final, pre_logits=True)
        return Outputs(
            logits=_full(self.classifier(embedding)),
            stages=stages,
            embedding=_full(embedding) if "embedding" in needs else None,
            classifier=self.classifier if "classifier" in needs else None,
            images=inputs if "stagewise" in needs else None,
            stagewise=self.stagewise if "stagewise" in needs else None,
        )

    @functools.cached_property
    def _last_activations(self) -> list[nn.Module]:
        """What is given each tapped stage before its activation, of ResNets and classic nets; empty for other nets."""
        if "final" in self.taps:
            return []
        if isinstance(self.net, ClassicNet):
            activations = self.net.activations()
            return [activations[int(tap)] for tap in self.taps] if activations else []
        if not isinstance(self.net, ResNet):
            return []
        stages: list[Any] = [self.net.get_submodule(self.net.feature_info[int(tap)]["module"]) for tap in self.taps]
        # a stage is its blocks, the stem its activation alone
        ends = [stage[-1] if isinstance(stage, nn.Sequential) else stage for stage in stages]
        return [getattr(end, "act3", getattr(end, "act2", end)) for end in ends]

    @property
    def stagewise(self) -> StagewiseNet:
        """The net as a sequence of stages."""
        return StagewiseNet(self.net, self.taps, self.input_size, self.name)

    def _tap(self, inputs: Tensor) -> tuple[Tensor, list[Feature]]:
        indices = [tap for tap in self.taps if tap != "final"]
        kwargs: dict[str, Any] = {"return_prefix_tokens": True} if self._returns_class_tokens else {}
        final, values = self.net.forward_intermediates(inputs, indices=indices, **kwargs)
        by_index = dict(zip(indices, values, strict=True))
        stages = []
        for tap in self.taps:
            value = final if tap == "final" else by_index[tap]
            class_tokens = None
            if isinstance(value, (tuple, list)):
                value, class_tokens = value
                class_tokens = class_tokens if class_tokens is not None and class_tokens.shape[1] else None
            stages.append(Feature(value, class_tokens, self.layout))
        return final, stages

    def describe(self, watching: AbstractContextManager[Any] | None = None) -> NetInfo:
        """Shapes of the four stages and of the embedding, by running the net once without data (device "meta").

        Args:
            watching: entered while it runs.
        """
        training = self.training
        self.eval()
        inputs = self.preprocess(torch.zeros(1, 3, *self.input_size, device=self.mean.device))
        runs_stagewise = can_run_stagewise(self.net, self.taps)
        states: list[State] = []
        with torch.no_grad():
            with watching or contextlib.nullcontext():
                outputs = self.run(inputs, {"logits", "stages", "embedding"})
            for number in range(NUM_STAGES) if runs_stagewise else ():
                states.append(self.stagewise.stage(number, states[-1]) if number else self.stagewise.stem(inputs))
        self.train(training)
        assert outputs.stages is not None
        assert outputs.embedding is not None
        for number, stage in enumerate(outputs.stages, 1):
            if stage.map.ndim != 4:
                raise NetError(
                    f"net {self.name}: stage {number} has shape {tuple(stage.map.shape)}, not (B, c, h, w); set its taps"
                )
        return NetInfo(
            name=self.name,
            family=self.family,
            stages=tuple(
                StageInfo(
                    stage.channels,
                    *stage.size,
                    self.layout,
                    0 if stage.class_tokens is None else stage.class_tokens.shape[1],
                )
                for stage in outputs.stages
            ),
            embedding_dim=outputs.embedding.shape[-1],
            num_classes=outputs.logits.shape[-1],
            input_size=self.input_size,
            stagewise=runs_stagewise,
            linear_classifier=isinstance(self.classifier, nn.Linear),
            stage_inputs=tuple(
                StageInfo(state.map.shape[1], *state.grid, self.layout, state.num_class_tokens) for state in states
            ),
        )


@contextlib.contextmanager
def _inputs_of(modules: Sequence[nn.Module]) -> Iterator[list[Tensor]]:
    """What each of ``modules`` is given inside the block, in their order; copies, since activations write in place."""
    kept: list[Tensor] = []
    handles = [module.register_forward_pre_hook(lambda _, args: kept.append(args[0].clone())) for module in modules]
    try:
        yield kept
    finally:
        for handle in handles:
            handle.remove()


def _full(value: Tensor) -> Tensor:
    """Logits and embeddings leave autocast in 32 bits: what methods compute from them is cheap and sensitive to rounding."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


def preprocessing_of(spec: NetSpec) -> dict[str, Any]:
    """Input size, normalisation and evaluation crop of a net as fields of a ``NetSpec``; timm's where the spec sets none."""
    config = timm.get_pretrained_cfg(spec.timm) if timm.is_model(spec.timm.split(".")[0]) else None
    known = config.to_dict() if config is not None else {}
    return {
        "input_size": spec.input_size or tuple(known["input_size"][1:]),
        "mean": spec.mean or tuple(known["mean"]),
        "std": spec.std or tuple(known["std"]),
        "crop_pct": spec.crop_pct or known["crop_pct"],
        "interpolation": spec.interpolation or known["interpolation"],
    }


def describe(spec: NetSpec, num_classes: int, name: str = "") -> NetInfo:
    """``NetInfo`` of a net, without memory for its weights. Cached."""
    return _describe(spec.model_dump_json(), num_classes, name or spec.timm)[0]


def count_parameters(spec: NetSpec, num_classes: int, name: str = "") -> int:
    """Number of parameters of a net. Cached with ``describe``."""
    return _describe(spec.model_dump_json(), num_classes, name or spec.timm)[1]


def macs_of(spec: NetSpec, num_classes: int, name: str = "") -> int:
    """Multiply-adds of one image of a net's own input size. Cached with ``describe``."""
    return _describe(spec.model_dump_json(), num_classes, name or spec.timm)[2]


@functools.lru_cache(maxsize=256)
def _describe(spec: str, num_classes: int, name: str) -> tuple[NetInfo, int, int]:
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            net, counter = TappedNet(NetSpec.model_validate(json.loads(spec)), num_classes, name), MacCounter()
            info = net.describe(counter)
            return info, sum(parameter.numel() for parameter in net.parameters()), counter.macs
    except KdbenchError:
        raise
    except Exception as error:  # timm's architectures differ in many ways
        raise NetError(f"net {name}: its stages cannot be tapped ({type(error).__name__}: {error})") from error


def state_hash(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and bytes of all parameters and persistent buffers."""
    return hash_of_state(module.state_dict())


def hash_of_state(state: Mapping[str, Tensor]) -> str:
    """``state_hash`` of a module with this state dict."""
    digest = hashlib.sha256()
    for name, value in sorted(state.items()):
        array = value.detach().cpu().contiguous()
        digest.update(f"{name}:{array.dtype}:{tuple(array.shape)};".encode())
        # flat, since the strides of dimensions of size 1 may be anything
        digest.update(array.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _create(spec: NetSpec, num_classes: int, name: str) -> nn.Module:
    base = spec.timm.split(".")[0]
    if not timm.is_model(base):
        raise NetError(f"net {name}: timm has no model {spec.timm!r}; {nearest(base, timm.list_models())}")
    try:
        net = timm.create_model(spec.timm, pretrained=False, num_classes=num_classes, **spec.args)
    except (TypeError, AssertionError, ValueError, RuntimeError) as error:
        raise NetError(f"net {name}: timm cannot build {spec.timm} with {spec.args}: {error}") from error
    for method in ("forward_intermediates", "forward_head"):
        if not hasattr(net, method):
            raise NetError(f"net {name}: {spec.timm} has no {method}; choose a timm model that has")
    if not isinstance(net.get_classifier(), nn.Module):
        raise NetError(f"net {name}: {spec.timm} has more than one classifier; choose a timm model with one")
    return net.to(memory_format=torch.channels_last) if spec.memory_format == "channels_last" else net


def _family(net: nn.Module, name: str) -> str:
    for cls in type(net).__mro__:
        family = _FAMILY_OF_MODULE.get(cls.__module__.rsplit(".", 1)[-1])
        if family and cls.__module__.startswith("timm."):
            return family
    raise NetError(
        f"net {name}: the family of {type(net).__name__} is not known; write family: cnn, vit or mlp in the suite"
    )


def _resolve_taps(net: nn.Module, taps: tuple[Tap, ...] | None, name: str) -> tuple[Tap, ...]:
    count = len(net.feature_info)  # type: ignore[arg-type]
    if taps is not None:
        numbers = [tap for tap in taps if tap != "final"]
        if any(not 0 <= tap < count for tap in numbers):
            raise NetError(
                f"net {name}: tap {next(t for t in numbers if not 0 <= t < count)} is unknown; {name} has stages 0 to {count - 1}"
            )
        if numbers != sorted(set(numbers)) or "final" in taps[:-1]:
            raise NetError(f"net {name}: taps {list(taps)} must increase")
        return taps
    if count < NUM_STAGES:
        raise NetError(f"net {name}: only {count} stages, four are needed; set its taps")
    if len({info["reduction"] for info in net.feature_info}) > 1:  # type: ignore[union-attr]
        return tuple(range(count - NUM_STAGES, count))
    return plain_taps(count)


def plain_taps(depth: int) -> tuple[int, int, int, int]:
    """Blocks (from 0) at 2/12, 4/12, 10/12 and 12/12 of the depth of a plain net, kept distinct: 1, 3, 9, 11 of 12."""
    wanted = [round(depth * share / 12) for share in (2, 4, 10, 12)]
    for position in range(NUM_STAGES):  # shallow nets: move apart, first up from 1, then down from the depth
        wanted[position] = max(wanted[position], 1 if position == 0 else wanted[position - 1] + 1)
    for back in range(NUM_STAGES):
        wanted[-1 - back] = min(wanted[-1 - back], depth - back)
    first, second, third, fourth = (block - 1 for block in wanted)
    return first, second, third, fourth
