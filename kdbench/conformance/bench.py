"""The bench that methods are tried on: tiny nets of every family, noise as data, steps as the engine takes them."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from kdbench.conformance.findings import Wrong, one_line
from kdbench.engine.optim import build_optim_wrapper
from kdbench.engine.teacher import freeze
from kdbench.method import NEEDS, Batch, Method, NetInfo, Outputs, Task
from kdbench.nets.tapped import TappedNet, state_hash
from kdbench.seeding import RandomStream
from kdbench.suite.net import FAMILIES, NetSpec
from kdbench.suite.recipe import OptimizerSpec, Recipe, ScheduleSpec

CLASSES = 7
SAMPLES = 128
BATCH = 8
EPOCHS = 50

#: Every family with another width, grid and input size on each side: stage 4 of the CNNs has 2 x 2 positions (on 1 x 1
#: some methods have no gradient, by their theory), of the ViTs 5 x 5 and 4 x 4, of the MLPs 8 x 8 and 4 x 4.
TEACHERS = {
    "cnn": NetSpec(
        timm="resnet_32px_large", family="cnn",
        args={"layers": (1, 1, 1, 1), "channels": (8, 16, 24, 36), "stem_width": 8, "stem_stride": 2},
    ),
    "vit": NetSpec(
        timm="vit_32px_large", family="vit", input_size=(40, 40),
        args={"img_size": 40, "patch_size": 8, "embed_dim": 48, "depth": 4, "num_heads": 3},
    ),
    "mlp": NetSpec(timm="mixer_32px_large", family="mlp", args={"patch_size": 4, "embed_dim": 40, "num_blocks": 4}),
}  # fmt: skip
STUDENTS = {
    "cnn": NetSpec(
        timm="resnet_32px_small", family="cnn",
        args={"channels": (8, 12, 16, 24), "stem_width": 8, "stem_stride": 2},
    ),
    "vit": NetSpec(
        timm="vit_32px_small", family="vit", args={"patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2}
    ),
    "mlp": NetSpec(timm="mixer_32px_small", family="mlp", args={"patch_size": 8, "embed_dim": 24, "num_blocks": 4}),
}  # fmt: skip

_RECIPE = Recipe(
    epochs=EPOCHS,
    batch_size=BATCH,
    optimizer=OptimizerSpec(name="adamw", lr=2e-3),
    schedule=ScheduleSpec(name="constant"),
)


@dataclass(frozen=True)
class Pair:
    """A teacher and a student: families, or names of a suite's nets."""

    teacher: str
    student: str

    def __str__(self) -> str:
        return f"{self.teacher} -> {self.student}"


#: Every family beside every family.
PAIRS = tuple(Pair(teacher, student) for teacher in FAMILIES for student in FAMILIES)


@functools.cache
def _net(name: str, teacher: bool, /) -> tuple[TappedNet, NetInfo]:
    """A net with its own weights. Students are copied for each ``Trial``, teachers shared: see ``teacher_hashes``."""
    spec = (TEACHERS if teacher else STUDENTS)[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(11 if teacher else 12)
        net = TappedNet(spec, CLASSES, f"{name} {'teacher' if teacher else 'student'}")
        # timm's MLPs start with a classifier of zeros, which lets no gradient through; nets in training have another.
        for classifier in net.classifiers:
            weight: Any = classifier.weight
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5)
        if teacher:
            freeze(net)
    return net, net.describe()


def teacher_hashes() -> dict[str, str]:
    """Checksums of the teachers, shared by all trials."""
    return {name: state_hash(_net(name, True)[0]) for name in TEACHERS}


def teachers_are_frozen() -> bool:
    """Whether no teacher was unfrozen, got a gradient, or left eval mode."""
    nets = torch.nn.ModuleList(_net(name, True)[0] for name in TEACHERS)
    frozen = all(parameter.grad is None and not parameter.requires_grad for parameter in nets.parameters())
    return frozen and not any(module.training for net in nets for module in net.modules())


def renew_nets() -> None:
    """Build the nets anew, after a method has changed a teacher."""
    _net.cache_clear()


def net_info(name: str, teacher: bool) -> NetInfo:
    """Shapes of a net."""
    return _net(name, teacher)[1]


@contextlib.contextmanager
def other_nets(pairs: Sequence[Pair], nets: Mapping[str, NetSpec]) -> Iterator[None]:
    """Try methods on these nets in place of the tiny ones.

    Raises:
        NetError: for one that cannot be built or tapped.
    """
    before = dict(TEACHERS), dict(STUDENTS)
    try:
        for known, names in (
            (TEACHERS, {pair.teacher for pair in pairs}),
            (STUDENTS, {pair.student for pair in pairs}),
        ):
            known.clear()
            known.update({name: nets[name] for name in sorted(names)})
        renew_nets()
        for pair in pairs:
            net_info(pair.teacher, True)
            net_info(pair.student, False)
        yield
    finally:
        for known, tiny in zip((TEACHERS, STUDENTS), before, strict=True):
            known.clear()
            known.update(tiny)
        renew_nets()


@functools.lru_cache(maxsize=1)
def _samples() -> tuple[Tensor, Tensor, Tensor]:
    """Images, their strongly augmented view (SAMPLES, 3, 32, 32) in [0, 1], and labels."""
    generator = torch.Generator().manual_seed(13)
    images = torch.rand(SAMPLES, 3, 32, 32, generator=generator)
    strong = (images.flip(3) + 0.3 * torch.rand(SAMPLES, 3, 32, 32, generator=generator)).clamp(0, 1)
    return images, strong, torch.randint(CLASSES, (SAMPLES,), generator=generator)


def task() -> Task:
    """The task: random labels of a made-up data set."""
    return Task(CLASSES, SAMPLES, _samples()[2].clone(), "conformance", EPOCHS)


@dataclass(frozen=True)
class Sample:
    """A batch with its images: what the engine hands to a step."""

    batch: Batch
    images: Tensor
    strong: Tensor


def sample(size: int = BATCH, start: int = 0, *, mixed: bool = False, epoch: int = 0) -> Sample:
    """Samples [start, start + size); with ``mixed`` labels as after mixup."""
    images, strong, labels = (value[start : start + size].clone() for value in _samples())
    targets = None
    if mixed:
        hard = torch.nn.functional.one_hot(labels, CLASSES).float()
        targets = 0.7 * hard + 0.3 * hard.flip(0)
    batch = Batch(labels, torch.arange(start, start + size), targets, epoch / EPOCHS, epoch, label_smoothing=0.1)
    return Sample(batch, images, strong)


class Trial:
    """A method with its own nets on one pair, stepped as the engine steps a cell. Raises whatever the method raises.

    Args:
        hyperparameters: those that differ from the defaults.
        seed: of the method's initial parameters and of all random numbers in a step.
    """

    def __init__(
        self, cls: type[Method], pair: Pair, hyperparameters: Mapping[str, Any] | None = None, seed: int = 0
    ) -> None:
        self.pair = pair
        self.student = copy.deepcopy(_net(pair.student, False)[0]).train()
        self.teacher = _net(pair.teacher, True)[0]
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.method = cls(
                net_info(pair.student, False), net_info(pair.teacher, True), task(), **(hyperparameters or {})
            )
        self.method.train()
        self.needs = frozenset(self.method.needs)
        self.stream = RandomStream(seed)
        self._wrapper: Any = None

    def student_outputs(self, data: Sample) -> Outputs:
        return self._outputs(self.student, data)

    def teacher_outputs(self, data: Sample) -> Outputs | None:
        """None for a method without a teacher."""
        if not self.method.uses_teacher:
            return None
        with torch.no_grad():
            return self._outputs(self.teacher, data)

    def _outputs(self, net: TappedNet, data: Sample) -> Outputs:
        outputs = net.run(net.preprocess(data.images), self.needs)
        if "strong" in self.needs:
            outputs.strong = net.run(net.preprocess(data.strong), self.needs)
        return outputs

    def terms(self, data: Sample, student: Outputs | None = None, teacher: Outputs | None = None) -> dict[str, Tensor]:
        """The loss terms of a batch, checked for their form; outputs are the nets' own unless given.

        Raises:
            Wrong: for an exception in forward, or anything but a dict of finite scalar tensors.
        """
        student = student or self.student_outputs(data)
        teacher = teacher or self.teacher_outputs(data)
        try:
            terms = self.method(data.batch, student, teacher)
        except Exception as error:
            raise Wrong("terms", f"forward raised {one_line(error)}; {self._hint(error)}", error) from error
        return checked_terms(terms)

    def _hint(self, error: Exception) -> str:
        """What to do about an exception in forward."""
        missing = ", ".join(sorted(NEEDS - self.needs - {"logits", "index"}))
        if missing and ("NoneType" in str(error) or isinstance(error, AssertionError)):
            return f"a field of Outputs that needs does not name is None: add what you use to needs ({missing})"
        return "correct it (KDBENCH_DEBUG=1 shows the traceback)"

    def step(self, data: Sample) -> dict[str, Tensor]:
        """Forward, backward and a step of the optimiser; returns the detached terms."""
        with self.stream.active():
            terms = self.terms(data)
            self.optimizer.update_params(torch.stack([term.reshape(()) for term in terms.values()]).sum())
        return {name: term.detach() for name, term in terms.items()}

    def backward(self, terms: Mapping[str, Tensor]) -> None:
        """Backward of the sum of the terms, with gradients left in place.

        Raises:
            Wrong: if it raises.
        """
        try:
            torch.stack([term.reshape(()) for term in terms.values()]).sum().backward()
        except RuntimeError as error:
            raise Wrong(
                "student",
                f"the backward pass raised {one_line(error)}; the terms must depend on the student's outputs by "
                "differentiable operations, and buffers must be cloned before they change",
                error,
            ) from error

    @property
    def optimizer(self) -> Any:
        """The engine's optimiser over student and method."""
        if self._wrapper is None:
            self._wrapper = build_optim_wrapper(self.student.net, self.method, _RECIPE)
        return self._wrapper

    def backbone(self) -> Iterator[tuple[str, Tensor]]:
        """The student's parameters without its classifier's."""
        head = {id(parameter) for layer in self.student.classifiers for parameter in layer.parameters()}
        return ((name, p) for name, p in self.student.net.named_parameters() if id(p) not in head)


def checked_terms(terms: Any) -> dict[str, Tensor]:
    """``terms`` if they are a dict of finite scalar tensors.

    Raises:
        Wrong: if they are not.
    """
    if not isinstance(terms, dict) or not terms:
        raise Wrong(
            "terms", f"forward returned {type(terms).__name__}; return a dict of named loss terms, at least one"
        )
    for name, term in terms.items():
        if not isinstance(name, str):
            raise Wrong("terms", f"the name {name!r} of a loss term is no string; name each term by a string")
        if not isinstance(term, Tensor):
            raise Wrong("terms", f"loss term {name!r} is a {type(term).__name__}; return a scalar tensor")
        if term.numel() != 1:
            advice = "reduce it to a scalar, for example by mean()"
            raise Wrong("terms", f"loss term {name!r} has the shape {tuple(term.shape)}; {advice}")
        if not bool(term.isfinite().all()):
            advice = "make it finite (log_softmax, a lower bound for divisors)"
            raise Wrong("terms", f"loss term {name!r} is {float(term.detach()):g}; {advice}")
    return terms


def with_logits(outputs: Outputs, added: Tensor | int, dtype: torch.dtype) -> Outputs:
    """Outputs whose logits, those of the strong view too, have ``added`` on top and another dtype."""
    strong = None if outputs.strong is None else with_logits(outputs.strong, added, dtype)
    return replace(outputs, logits=(outputs.logits + added).to(dtype), strong=strong)
