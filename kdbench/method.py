"""The contract between a distillation method and the engine: what a method gets, what it returns, what it declares.

Read from top to bottom: ``Feature`` and ``Outputs`` (what a net gives), ``Batch`` (what it was given), ``NetInfo`` and
``Task`` (what is known when a method is built), ``Method`` (what a plugin subclasses).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.errors import HyperparameterError, counted
from kdbench.hyperparameters import checked_init

#: Everything that ``Method.needs`` may name.
NEEDS = frozenset(
    {"logits", "stages", "preactivation", "embedding", "index", "classifier", "stagewise", "strong", "attention"}
)

NUM_STAGES = 4


class _Listed:
    """Something whose missing attributes are answered with those that it has."""

    __slots__ = ()

    if not TYPE_CHECKING:  # a type checker would take any name for one that exists

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(
                f"{type(self).__name__} has no attribute {name!r}; it has {', '.join(attributes_of(type(self)))}"
            )


def attributes_of(cls: type) -> list[str]:
    """The public attributes of one of the contract's classes."""
    fields = [*getattr(cls, "__dataclass_fields__", ()), *getattr(cls, "__slots__", ())]
    return list(dict.fromkeys(name for name in (*fields, *vars(cls)) if not name.startswith("_")))


@dataclass(frozen=True)
class StageInfo(_Listed):
    """Shape of one tapped stage, without the batch: ``channels`` x ``height`` x ``width`` and its native layout."""

    channels: int
    height: int
    width: int
    layout: str  # "map" for CNNs, "tokens" for ViTs and MLPs
    class_tokens: int = 0

    @property
    def num_tokens(self) -> int:
        """Number of positions, class tokens not counted."""
        return self.height * self.width


@dataclass(frozen=True)
class NetInfo(_Listed):
    """What is known about a net before it runs.

    Attributes:
        name: its name in the suite.
        family: ``"cnn"``, ``"vit"`` or ``"mlp"``.
        stages: the four tapped stages, shallow to deep; empty for a net that has none.
        embedding_dim: width of the pooled vector before the classifier; 0 for a net that has none.
        num_classes: width of the logits.
        input_size: (height, width) of its input in pixels.
        stagewise: whether it can be run stage by stage.
        linear_classifier: whether embedding -> logits is one linear layer.
        stage_inputs: the shapes that stages 1 to 4 expect as input; empty unless ``stagewise``.
        lacks: what of ``NEEDS`` the net cannot give, and why.
        layouts: of stages that are outputs of modules, as their shapes tell: ``"NCHW"``, ``"NHWC"`` or ``"NLC"``.
    """

    name: str
    family: str
    stages: tuple[StageInfo, ...]
    embedding_dim: int
    num_classes: int
    input_size: tuple[int, int] = (224, 224)
    stagewise: bool = False
    linear_classifier: bool = True
    stage_inputs: tuple[StageInfo, ...] = ()
    lacks: Mapping[str, str] = field(default_factory=dict, hash=False)
    layouts: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Family, stages with their layouts, and embedding, in a line."""
        layouts = self.layouts if len(self.layouts) == len(self.stages) else ("",) * len(self.stages)
        stages = [
            f"{stage.channels} x {stage.height} x {stage.width}"
            + (f" and {counted(stage.class_tokens, 'class token')}" if stage.class_tokens else "")
            + (f" ({layout})" if layout else "")
            for stage, layout in zip(self.stages, layouts, strict=True)
        ]
        return f"{self.family}, stages {', '.join(stages) or 'none'}, embedding {self.embedding_dim or 'none'}"

    @property
    def has_tokens(self) -> bool:
        """True for nets whose features are sequences of tokens (ViT, Swin, Mixer, ResMLP)."""
        return self.family != "cnn"

    @property
    def class_tokens(self) -> int:
        return self.stages[-1].class_tokens if self.stages else 0


@dataclass(frozen=True)
class Task(_Listed):
    """The classification task.

    Attributes:
        num_classes: number of classes C.
        num_train: number of training samples N; ``Batch.index`` lies in [0, N).
        train_labels: their labels, shape (N,), int64. On the "meta" device when a plan is only being checked.
        dataset: name of the data set.
        epochs: number of epochs that will be trained.
    """

    num_classes: int
    num_train: int
    train_labels: Tensor
    dataset: str = ""
    epochs: int = 1


class Feature(_Listed):
    """The output of one stage, in the layout of its net, with a view in the other.

    Args:
        value: (B, c, h, w) in every layout; timm gives tokens as maps too, class tokens apart.
        class_tokens: (B, P, d), or None.
        layout: the native layout, ``"map"`` or ``"tokens"``.
        preactivation: (B, c, h, w), what the activation that ends the stage was given (``needs`` "preactivation"); None where
            a net has none (ViT, MLP, ConvNeXt).
    """

    __slots__ = ("_tokens", "class_tokens", "layout", "map", "preactivation")

    def __init__(
        self,
        value: Tensor,
        class_tokens: Tensor | None = None,
        layout: str = "map",
        preactivation: Tensor | None = None,
    ) -> None:
        self.map = value
        self.class_tokens = class_tokens
        self.layout = layout
        self.preactivation = preactivation
        self._tokens: Tensor | None = None

    @property
    def tokens(self) -> Tensor:
        """(B, L, d) with L = h * w in row-major order; class tokens dropped."""
        if self._tokens is None:
            self._tokens = self.map.flatten(2).transpose(1, 2)
        return self._tokens

    @property
    def all_tokens(self) -> Tensor:
        """(B, P + L, d): class tokens first, as in timm; equal to ``tokens`` for nets without class tokens."""
        return self.tokens if self.class_tokens is None else torch.cat([self.class_tokens, self.tokens], dim=1)

    @property
    def channels(self) -> int:
        return self.map.shape[1]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the map."""
        return self.map.shape[2], self.map.shape[3]

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        return [value for value in (self.map, self.class_tokens, self.preactivation) if value is not None]

    def each(self, change: Callable[[Tensor], Tensor]) -> Feature:
        """The feature with ``change`` applied to all that it holds."""
        class_tokens = None if self.class_tokens is None else change(self.class_tokens)
        preactivation = None if self.preactivation is None else change(self.preactivation)
        return Feature(change(self.map), class_tokens, self.layout, preactivation)

    def detach(self) -> Feature:
        """The same feature without its graph."""
        return self.each(Tensor.detach)


@dataclass(frozen=True)
class Attention(_Listed):
    """The self-attention of one block over all its tokens, class tokens first.

    Attributes:
        queries, keys, values: (B, heads, P + L, d), d the width of a head; the first two as they meet, normalised where a net does.
    """

    queries: Tensor
    keys: Tensor
    values: Tensor

    @property
    def maps(self) -> Tensor:
        """(B, heads, P + L, P + L): softmax of q k^T / sqrt(d), each row the weights of one token's attention."""
        dtype = torch.promote_types(self.queries.dtype, torch.float32)
        queries, keys = self.queries.to(dtype), self.keys.to(dtype)
        return (queries @ keys.transpose(-2, -1) / queries.shape[-1] ** 0.5).softmax(dim=-1)

    @property
    def tensors(self) -> list[Tensor]:
        """All that it holds."""
        return [self.queries, self.keys, self.values]

    def each(self, change: Callable[[Tensor], Tensor]) -> Attention:
        """The attention with ``change`` applied to all that it holds."""
        return Attention(*map(change, self.tensors))


class Stagewise(Protocol):
    """A net as a sequence of stages, with states between them; see ``kdbench.nets.stagewise``."""

    def stem(self, images: Tensor) -> Any: ...

    def stage(self, number: int, state: Any) -> Any: ...

    def final(self, state: Any) -> Any: ...

    def head(self, state: Any) -> tuple[Tensor, Tensor]: ...

    def state_from_map(self, value: Tensor, class_tokens: Tensor | None = None) -> Any: ...


@dataclass
class Outputs(_Listed):
    """What a net computed for one batch. Fields that no method asked for are None.

    Attributes:
        logits: (B, C).
        stages: four ``Feature``s, shallow to deep (``needs`` "stages").
        embedding: (B, d), the pooled vector before the classifier ("embedding").
        classifier: the net's own classifier, a callable from (..., d) to (..., C) ("classifier"). The teacher's is frozen
            but lets gradients through.
        images: (B, 3, h, w), normalised for this net ("stagewise").
        stagewise: the net as a sequence of stages ("stagewise").
        strong: the outputs for the second, strongly augmented view ("strong").
        heads: logits (B, C) of each classifier, of a net that has several (a distilled DeiT: class token, distillation token);
            ``logits`` are then what the net makes of them. None for all others.
        attention: of the blocks that end the four stages, of a ViT ("attention").
    """

    logits: Tensor
    stages: Sequence[Feature] | None = None
    embedding: Tensor | None = None
    classifier: Callable[[Tensor], Tensor] | None = None
    images: Tensor | None = None
    stagewise: Stagewise | None = None
    strong: Outputs | None = None
    heads: tuple[Tensor, ...] | None = None
    attention: Sequence[Attention] | None = None

    @property
    def features(self) -> list[Feature | Attention]:
        """What it holds of the inside of the net: stages and attention."""
        return [*(self.stages or ()), *(self.attention or ())]

    def detach(self) -> Outputs:
        """The same outputs without their graph."""
        return replace(
            self,
            logits=self.logits.detach(),
            stages=None if self.stages is None else [stage.detach() for stage in self.stages],
            embedding=None if self.embedding is None else self.embedding.detach(),
            strong=None if self.strong is None else self.strong.detach(),
            heads=None if self.heads is None else tuple(head.detach() for head in self.heads),
            attention=None if self.attention is None else [each.each(Tensor.detach) for each in self.attention],
        )


@dataclass
class Batch(_Listed):
    """One batch as a method sees it.

    Attributes:
        labels: (B,) int64.
        index: (B,) position of each sample in the training set.
        targets: (B, C) soft labels after mixup or cutmix, or None.
        progress: share of the training done, in [0, 1].
        epoch: counted from 0.
        label_smoothing: of the recipe; part of ``task_loss``.
    """

    labels: Tensor
    index: Tensor
    targets: Tensor | None = None
    progress: float = 0.0
    epoch: int = 0
    label_smoothing: float = 0.0
    supervised: Callable[[Tensor, Batch], Tensor] | None = field(default=None, repr=False)

    def task_loss(self, logits: Tensor) -> Tensor:
        """The recipe's supervised loss: cross-entropy with its label smoothing, or with the soft labels after mixup."""
        if self.supervised is not None:
            return self.supervised(logits, self)
        if self.targets is not None:
            return F.cross_entropy(logits, self.targets)
        return F.cross_entropy(logits, self.labels, label_smoothing=self.label_smoothing)

    @property
    def hard_labels(self) -> Tensor:
        """(B,): the label, or the largest soft label after mixup or cutmix."""
        return self.labels if self.targets is None else self.targets.argmax(dim=1)


class Method(nn.Module):
    """One way to distil. Subclass it, register it with ``@register_method("name")``, and implement ``forward``.

    Keyword-only arguments of ``__init__`` are the hyper-parameters. Parameters and buffers of the module are trained
    with the student and saved in its checkpoint; part of the exported student only where ``predict`` is overridden.

    Class attributes:
        display: the name that tables print.
        family: ``"baseline"``, ``"logits"``, ``"hint"``, ``"relation"`` or ``"hybrid"``.
        fidelity: ``"reference"``, ``"paper"`` or ``"reconstruction"``: how far the code is backed.
        needs: what the method taps, a subset of ``NEEDS``.
        uses_teacher: False only for training from scratch.
        version: raised whenever a change of the code changes results; part of a cell's identity.
        presets: hyper-parameters that differ from the defaults on some data set, ``{"imagenet1k": {"temperature": 1.0}}``, or
            there for students of one family, ``{"imagenet1k:vit": {"temperature": 2.0}}``.
        carries_kd: of a method that adds its own loss to that of KD: KD's hyper-parameters -> its own. On every suite these
            are KD's there, unless the method, the suite or the user sets them.
        added_later: hyper-parameters that came after results had been stored: at their defaults they are in no identity.
        citation: the paper, ``{"key", "authors", "title", "venue", "year", "arxiv"}``, the last where there is one; authors as
            ``"Surname, Given and Surname, Given"``, at the end ``and others``; empty for none.
        follows_batch: names of loss terms whose size follows that of the batch, so that their weight belongs to one batch size.
    """

    display: ClassVar[str] = ""
    family: ClassVar[str] = "logits"
    fidelity: ClassVar[str] = "paper"
    needs: ClassVar[frozenset[str] | set[str]] = frozenset({"logits"})
    uses_teacher: ClassVar[bool] = True
    version: ClassVar[int] = 1
    presets: ClassVar[dict[str, dict[str, Any]]] = {}
    carries_kd: ClassVar[dict[str, str]] = {}
    added_later: ClassVar[frozenset[str] | set[str]] = frozenset()
    citation: ClassVar[dict[str, Any]] = {}
    follows_batch: ClassVar[frozenset[str] | set[str]] = frozenset()

    #: Epochs (from 0) at which a new phase begins, each with the whole schedule, shortened, and a fresh state of the optimiser: set
    #: in ``__init__``, and told apart in ``forward`` by ``batch.epoch``. A parameter that no term reaches stays as it is.
    phases: tuple[int, ...] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Have hyper-parameters checked against their annotations whenever the method is built, by whatever way."""
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = checked_init(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, student: NetInfo, teacher: NetInfo, task: Task) -> None:
        super().__init__()
        self.student_info = student
        self.teacher_info = teacher
        self.task = task

    @classmethod
    def supports(cls, student: NetInfo, teacher: NetInfo) -> str | None:
        """Return the reason why the pair is impossible, or None when it runs."""
        return None

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        """Return named, weighted, scalar loss terms; their sum is minimised and each is logged."""
        raise NotImplementedError(f"{type(self).__name__} must define forward(batch, student, teacher)")

    def predict(self, student: Outputs) -> Tensor:
        """Logits (B, C) at test time. Override it, and ``predict_needs``, only if inference uses the method's own parameters."""
        return student.logits

    #: What ``predict`` taps.
    predict_needs: ClassVar[frozenset[str] | set[str]] = frozenset({"logits"})


def stage_numbers(**values: Sequence[int]) -> None:
    """Refuse lists of stages that are empty, repeat a stage, or name one outside 1 to 4."""
    for name, value in values.items():
        numbers = list(value)
        if not numbers or len(set(numbers)) != len(numbers) or any(n not in range(1, NUM_STAGES + 1) for n in numbers):
            raise HyperparameterError(f"{name} = {value!r}: must be distinct stages out of 1, 2, 3, 4")
