"""A net that returns logits, and its four stages and its embedding where they are asked for."""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import traceback
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import KdbenchError
from kdbench.method import NEEDS, Feature, NetInfo, Outputs, StageInfo
from kdbench.nets.attention import attention_inside, attention_paths
from kdbench.nets.cost import MacCounter
from kdbench.nets.families import family_of
from kdbench.nets.heads import LinearConvolution, check_own_forward, classifier_paths, head_has_more, same_memory
from kdbench.nets.meta import without_data
from kdbench.nets.models import NetError, build_model, configuration_of
from kdbench.nets.stagewise import StagewiseNet, can_run_stagewise
from kdbench.nets.taps import Call, as_map, calls_of, check_paths, check_taps, described, preactivations, timm_taps
from kdbench.suite.net import NetSpec, Tap


class TappedNet(nn.Module):
    """A net with its preprocessing, run as ``net(images, needs) -> Outputs``.

    A timm net runs as its ``forward_features`` and its head, any other net as it is, with its modules watched. When a timm net is
    built its logits are compared once with those of its own forward.

    Args:
        spec: the net.
        num_classes: width of its logits.
        name: its name in the suite.

    Raises:
        NetError: for a name or an argument that its source does not know, stages that cannot be tapped, or logits that are not those
            of its own forward.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, spec: NetSpec, num_classes: int, name: str = "") -> None:
        super().__init__()
        self.spec = spec
        self.name = name or spec.model
        self.net: Any = build_model(spec, num_classes, self.name, TappedNet)
        config = configuration_of(self.net, spec)
        self.family = spec.family or family_of(self.net)
        self.layout = "map" if self.family == "cnn" else "tokens"
        self.input_size: tuple[int, int] = config["input_size"]
        for key in ("mean", "std"):
            value = torch.tensor(config[key], dtype=torch.float32).view(1, 3, 1, 1)
            self.register_buffer(key, value, persistent=False)
        #: Nets with equal preprocessing share their input. Kept on the host, since every step compares it.
        self.preprocessing: tuple[object, ...] = (bool(spec.ensemble), self.input_size, *config["mean"], *config["std"])
        self.num_classes = num_classes
        self.classifier_paths = classifier_paths(self.net, spec, num_classes, self.name)
        self.taps: tuple[Tap, ...] = ()
        #: Whether the net's own head runs; None on the device "meta" until something has been run.
        self._own_head: bool | None = False
        self.attention_paths: list[str] = []
        if spec.timm:
            self.taps = timm_taps(self.net, spec.taps, self.input_size, self.name)
            self.attention_paths = attention_paths(self.net, self.taps)
            forward: Any = self.net.forward_intermediates
            self._returns_class_tokens = (
                "return_prefix_tokens" in inspect.signature(forward).parameters
                and getattr(self.net, "num_prefix_tokens", 1) > 0
            )
            if len(self.classifiers) > 1:
                self._own_head = True
            elif self.mean.device.type == "meta":
                self._own_head = None
            else:
                self._own_head = _described(spec, num_classes, self.name).own_head
            check_own_forward(self.net, self.run, spec, num_classes, self.input_size, self.name)
        else:
            check_paths(self.net, map(str, spec.taps or ()), "taps", self.name)
            check_paths(self.net, [spec.embedding] if spec.embedding else [], "embedding", self.name)
            self.taps = tuple(map(str, spec.taps or ()))

    @property
    def classifiers(self) -> list[nn.Module]:
        """The layers that give logits: one, or two of a distilled net; none where that is not known."""
        return [self.net.get_submodule(path) for path in self.classifier_paths]

    @property
    def classifier(self) -> Any:
        """The layer from the embedding to the logits, with ``weight`` (C, d) and ``bias``; None where no single layer is that."""
        if len(self.classifiers) != 1:
            return None
        if isinstance(layer := self.classifiers[0], nn.Conv2d) and layer.kernel_size == (1, 1) and layer.groups == 1:
            return LinearConvolution(layer)
        return None if self._own_head else layer

    def preprocess(self, images: Tensor) -> Tensor:
        """Normalise raw images (B, 3, h, w) in [0, 1] for this net, resized (bilinear) to its input size where they differ."""
        if tuple(images.shape[-2:]) != self.input_size and not self.spec.ensemble:  # whose nets do
            images = F.interpolate(images, self.input_size, mode="bilinear", align_corners=False, antialias=True)
        return (images - self.mean) / self.std

    def forward(self, images: Tensor, needs: Collection[str] = ("logits",)) -> Outputs:
        """Run the net on raw images (B, 3, h, w) in [0, 1]; compute what ``needs`` names (see ``kdbench.method.NEEDS``)."""
        return self.run(self.preprocess(images), needs)

    def run(self, inputs: Tensor, needs: Collection[str] = ("logits",)) -> Outputs:
        """Run the net on what ``preprocess`` returned."""
        if not self.spec.timm:
            return self._run_watched(inputs, needs)
        wanted = self.taps if {"stages", "preactivation"} <= {*needs} else ()
        paths = self.attention_paths if "attention" in needs else []
        with preactivations(self.net, wanted) as before, attention_inside(self.net, paths) as attention:
            final, stages = self._tap(inputs) if "stages" in needs else (self.net.forward_features(inputs), None)
        for stage, value in zip(stages or (), before, strict=False):
            stage.preactivation = value
        logits, embedding, heads = self._head(final)
        return Outputs(
            logits=_full(logits),
            stages=stages,
            embedding=_full(embedding) if "embedding" in needs else None,
            classifier=self.classifier if "classifier" in needs else None,
            images=inputs if "stagewise" in needs else None,
            stagewise=self.stagewise if "stagewise" in needs else None,
            heads=None if heads is None else tuple(map(_full, heads)),
            attention=attention or None,
        )

    def _head(self, final: Any) -> tuple[Tensor, Tensor, list[Tensor] | None]:
        """From what enters the pooling: logits, embedding, and the logits of each classifier where there are several.

        Most heads are a pooling and one layer. Others run as the net has them, and the embedding is what enters its classifiers.
        """
        if self._own_head is None:
            self._own_head = head_has_more(self.net, self.classifiers[0], final)
        if not self._own_head:
            embedding = self.net.forward_head(final, pre_logits=True)
            return self.classifiers[0](embedding), embedding, None
        with calls_of(self.net, self.classifier_paths) as calls:
            logits = self.net.forward_head(final)
        made = [calls[path] for path in self.classifier_paths]
        vectors = [call.given.flatten(1) for call in made]
        if len({vector.shape[1] for vector in vectors}) == 1:
            embedding = sum(vectors[1:], vectors[0]) / len(vectors) if len(vectors) > 1 else vectors[0]
        else:
            embedding = torch.cat(vectors, dim=1)
        return logits, embedding, [call.returned.flatten(1) for call in made] if len(made) > 1 else None

    def _run_watched(self, inputs: Tensor, needs: Collection[str]) -> Outputs:
        """Run a net that is not timm's, and take what its modules put out on the way."""
        taps = self._paths if "stages" in needs else []
        vector = (
            [path for path in (self.spec.embedding, *self.classifier_paths) if path] if "embedding" in needs else []
        )
        with calls_of(self.net, (*taps, *vector)) as calls:
            logits = self._logits_of(self.net(inputs))
        stages = []
        for path in taps:
            value, class_tokens, _ = self._as_map(path, calls)
            stages.append(Feature(value, class_tokens, self.layout))
        return Outputs(
            logits=_full(logits),
            stages=stages or None,
            embedding=_full(self._embedding(calls)) if "embedding" in needs else None,
            classifier=self.classifier if "classifier" in needs else None,
        )

    def _logits_of(self, value: Any) -> Tensor:
        logits = getattr(value, "logits", value)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] != self.num_classes:
            when = " in training" if self.training else ""
            raise NetError(
                f"net {self.name}: {self.spec.model} returns {described(logits)}{when}, not logits of shape (B, {self.num_classes})"
            )
        return logits

    def _as_map(self, path: str, calls: Mapping[str, Call]) -> tuple[Tensor, Tensor | None, str]:
        where = f"net {self.name}: taps: module {path}"
        if path not in calls:
            raise NetError(f"{where} is not used by the net's forward; tap another module")
        call = calls[path]
        known = self.spec.class_tokens, *({getattr(self.net, "num_prefix_tokens", 0)} if self.spec.timm else ())
        return as_map(call.returned, self.input_size, known, where)

    def _embedding(self, calls: Mapping[str, Call]) -> Tensor:
        """What ``embedding`` names put out, else what entered the classifier."""
        path = self.spec.embedding or self.classifier_paths[0]
        if path not in calls:
            raise NetError(f"net {self.name}: embedding: module {path} is not used by the net's forward")
        value = calls[path].returned if self.spec.embedding else calls[path].given
        if not isinstance(value, Tensor) or value.flatten(1).shape[1:] != value.shape[1:2]:
            raise NetError(
                f"net {self.name}: embedding: module {path} puts out {described(value)}, not a vector for each image"
            )
        return value.flatten(1)

    @property
    def _paths(self) -> list[str]:
        """The taps that are modules."""
        return [tap for tap in self.taps if isinstance(tap, str) and not (self.spec.timm and tap == "final")]

    @property
    def stagewise(self) -> StagewiseNet:
        """The net as a sequence of stages."""
        return StagewiseNet(self.net, self.taps, self.input_size, self.name)

    def _tap(self, inputs: Tensor) -> tuple[Any, list[Feature]]:
        indices = [tap for tap in self.taps if isinstance(tap, int)]
        paths = self._paths
        kwargs: dict[str, Any] = {"return_prefix_tokens": True} if self._returns_class_tokens else {}
        with calls_of(self.net, paths) as calls:
            if indices:
                final, values = self.net.forward_intermediates(inputs, indices=indices, **kwargs)
            else:
                final, values = self.net.forward_features(inputs), []
        by_index = dict(zip(indices, values, strict=True))
        stages = []
        for tap in self.taps:
            if tap in paths:
                value, class_tokens, _ = self._as_map(str(tap), calls)
                stages.append(Feature(value, class_tokens, self.layout))
                continue
            value = final if isinstance(tap, str) else by_index[tap]
            class_tokens = None
            if isinstance(value, (tuple, list)) and not isinstance(tap, str):
                value, class_tokens = value
                class_tokens = class_tokens if class_tokens is not None and class_tokens.shape[1] else None
            stages.append(Feature(value, class_tokens, self.layout))
        return final, stages

    def describe(self, watching: AbstractContextManager[Any] | None = None) -> NetInfo:
        """Shapes of the stages and of the embedding, by running the net once without data (on its own device).

        Args:
            watching: entered while it runs.

        Raises:
            NetError: for a tap that is no map, an embedding that is no vector, and logits of another shape.
        """
        training = self.training
        self.eval()
        inputs = self.preprocess(torch.zeros(1, 3, *self.input_size, device=self.mean.device))
        lacks, layouts = self._lacks(inputs)
        needs = {"logits", "stages", "embedding"} - lacks.keys()
        with torch.no_grad():
            with watching or nullcontext():
                outputs = self.run(inputs, needs)
            if self.spec.timm and self.classifier is None:
                several = f"{len(self.classifiers)} classifiers" if len(self.classifiers) > 1 else "a head of its own"
                lacks["classifier"] = f"net {self.name} has {several}: no single layer gives its logits"
            can_step = bool(self.spec.timm) and not self._own_head and can_run_stagewise(self.net, self.taps)
            entry = self.stagewise.stem(inputs) if can_step else None
        self.train(training)
        for number, stage in enumerate(outputs.stages or (), 1):
            if not isinstance(stage.map, Tensor) or stage.map.ndim != 4:
                found = tuple(stage.map.shape) if isinstance(stage.map, Tensor) else described(stage.map)
                raise NetError(f"net {self.name}: stage {number} has shape {found}, not (B, c, h, w); set its taps")
        tokens = [0 if stage.class_tokens is None else stage.class_tokens.shape[1] for stage in outputs.stages or ()]
        stages = tuple(
            StageInfo(stage.channels, *stage.size, self.layout, count)
            for stage, count in zip(outputs.stages or (), tokens, strict=True)
        )
        stage_inputs: tuple[StageInfo, ...] = ()
        if entry is not None:  # the other stages take what the one before them puts out
            first = StageInfo(entry.map.shape[1], *entry.grid, self.layout, entry.num_class_tokens)
            stage_inputs = (first, *stages[:-1])
        return NetInfo(
            name=self.name,
            family=self.family,
            stages=stages,
            embedding_dim=0 if outputs.embedding is None else outputs.embedding.shape[-1],
            num_classes=outputs.logits.shape[-1],
            input_size=self.input_size,
            stagewise=can_step,
            linear_classifier="classifier" not in lacks and isinstance(self.classifier, (nn.Linear, LinearConvolution)),
            stage_inputs=stage_inputs,
            lacks=lacks,
            layouts=layouts,
        )

    @torch.no_grad()
    def _lacks(self, inputs: Tensor) -> tuple[dict[str, str], tuple[str, ...]]:
        """What of ``NEEDS`` the net cannot give, each with the reason; and the layouts of taps that are modules."""
        lacks: dict[str, str] = {}
        if self.spec.ensemble:
            reason = f"net {self.name} is an ensemble: it has logits alone"
            return dict.fromkeys(NEEDS - {"logits", "index", "strong"}, reason), ()
        if not self.attention_paths:
            lacks["attention"] = f"the stages of net {self.name} do not end in the blocks of a ViT of timm"
        paths = self._paths
        if self.spec.timm and not paths:
            return lacks, ()
        last = [] if self.spec.timm else self.classifier_paths
        with calls_of(self.net, (*paths, *last, *([self.spec.embedding] if self.spec.embedding else []))) as calls:
            returned = self.net(inputs)
        layouts = tuple(self._as_map(path, calls)[2] for path in paths)
        check_taps(paths, calls, len(inputs), self.name)
        if self.spec.timm:
            return lacks, layouts
        if not self.taps:
            lacks.update(
                dict.fromkeys(
                    ("stages", "preactivation", "stagewise"),
                    f"net {self.name} has no taps: write taps: with the paths of four modules",
                )
            )
        logits = self._logits_of(returned)
        ends = bool(last) and last[0] in calls and calls[last[0]].returned is logits
        if not ends and not self.spec.embedding:
            lacks["embedding"] = f"net {self.name} has no embedding: write embedding: with the path of a module"
        given = calls[last[0]].given if ends else None
        if given is None or given.ndim != 2 or not same_memory(given, self._embedding(calls)):
            lacks["classifier"] = f"net {self.name} has no single layer that gives its logits from its embedding"
        return lacks, layouts


def _full(value: Tensor) -> Tensor:
    """Logits and embeddings leave autocast in 32 bits: what methods compute from them is cheap and sensitive to rounding."""
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value


class _Description(NamedTuple):
    info: NetInfo
    parameters: int
    own_head: bool
    macs: int


def describe(spec: NetSpec, num_classes: int, name: str = "") -> NetInfo:
    """``NetInfo`` of a net, without memory for its weights. Cached.

    Raises:
        NetError: for a net that cannot be built or tapped.
    """
    return _described(spec, num_classes, name or spec.model).info


def count_parameters(spec: NetSpec, num_classes: int, name: str = "") -> int:
    """Number of parameters of a net. Cached with ``describe``."""
    return _described(spec, num_classes, name or spec.model).parameters


def _described(spec: NetSpec, num_classes: int, name: str) -> _Description:
    if spec.unnamed_file:  # before the cache, since a later command may name it
        raise NetError(f"net {name}: {spec.unnamed_file}")
    return _describe(spec.model_dump_json(), num_classes, name)


def macs_of(spec: NetSpec, num_classes: int, name: str = "") -> int:
    """Multiply-adds of one image of a net's own input size. Cached with ``describe``."""
    return _described(spec, num_classes, name or spec.model).macs


@functools.lru_cache(maxsize=256)
def _describe(content: str, num_classes: int, name: str) -> _Description:
    spec = NetSpec.model_validate(json.loads(content))
    try:
        # the forward of a net of the user's may read values
        with torch.random.fork_rng(devices=[]), torch.device("cpu") if spec.python else without_data():
            return _describe_now(spec, num_classes, name)
    except KdbenchError:
        raise
    except (Exception, SystemExit) as error:  # architectures differ in many ways
        details = "".join(traceback.format_exception(error, chain=False)) if spec.python else ""
        raise NetError(f"net {name}: {spec.model} cannot be run ({type(error).__name__}: {error})", details) from error


def _describe_now(spec: NetSpec, num_classes: int, name: str) -> _Description:
    # torch's counter of operations stumbles over a parameter that a module returns, unless it needs no gradient
    net, counter = TappedNet(spec, num_classes, name).requires_grad_(False), MacCounter()
    info = net.describe(counter)
    if spec.python:
        build_model(spec, num_classes, name, TappedNet)  # refuses a function that returns the same net once more
    return _Description(info, sum(value.numel() for value in net.parameters()), bool(net._own_head), counter.macs)


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
