"""Memory of a cohort, from a step on torch's ``meta`` device, where tensors have no content.

What a cell holds between steps adds up over the cells of a cohort; what a step keeps for its backward pass does not, since each
cell's graph is freed before the next cell's step.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from kdbench.data.views import EVALUATION_BATCH
from kdbench.matrix.cells import Cell, Cohort, Plan
from kdbench.method import Batch, Method, NetInfo, Outputs, Task
from kdbench.nets.meta import without_data
from kdbench.nets.models import preprocessing_of
from kdbench.nets.tapped import TappedNet
from kdbench.suite.net import NetSpec
from kdbench.suite.recipe import Recipe

#: States that an optimiser keeps per parameter; two, as of Adam, where it is not named here.
_STATES = {"sgd": 1, "momentum": 1, "nesterov": 1, "lion": 1, "rmsprop": 1, "rmsproptf": 1}
#: Share of what is kept for the backward pass under autocast, which halves only inputs of products and convolutions.
_AUTOCAST = 0.6
#: Memory of a process before it trains, with torch built for CUDA, as seen on a CPU.
PROCESS_BYTES = 1_000_000_000


@dataclass(frozen=True)
class CellNeed:
    """Bytes of one cell.

    Attributes:
        held: weights, buffers, optimiser states and averages of the student and its method.
        gradients: of everything that is trained.
        graph: what a step keeps for its backward pass.
        evaluation: the largest tensors of an evaluation.
    """

    held: int
    gradients: int
    graph: int
    evaluation: int

    @property
    def step(self) -> int:
        """Transient memory of a step or an evaluation, whichever is more."""
        return max(self.gradients + self.graph, self.evaluation)


def cohort_need(plan: Plan, cohort: Cohort, train_images: int, on_gpu: bool) -> int:
    """Bytes of a cohort on its device; on a GPU without the driver's."""
    cells = [cell_need(plan, cell, train_images) for cell in cohort.cells]
    recipe = cohort.cells[0].recipe
    needs: frozenset[str] = frozenset[str]().union(*(plan.catalog[cell.method].needs for cell in cohort.cells))
    teacher = _teacher_need(cohort.teacher.net.model_dump_json(), plan.num_classes, needs, recipe.batch_size)
    side = plan.suite.dataset.image_size or max(preprocessing_of(cohort.cells[0].student_net)["input_size"])
    image = 3 * side**2
    # raw, for the student, for the teacher, and one more while they are made
    data = 4 * 4 * recipe.batch_size * image + (train_images * image if recipe.pipeline == "device" else 0)
    process = 0 if on_gpu else PROCESS_BYTES
    steps = sorted((cell.step for cell in cells), reverse=True)
    at_once = plan.request.cuda_streams if on_gpu and plan.request.graphs else 1
    return sum(cell.held for cell in cells) + sum(steps[:at_once]) + teacher + data + process


def cell_need(plan: Plan, cell: Cell, train_images: int) -> CellNeed:
    """Memory of one cell. Cached for cells that differ in their seed alone."""
    return _cell_need(
        plan.catalog[cell.method].load(),
        json.dumps(cell.hyperparameters),
        cell.student_net.model_dump_json(),
        cell.teacher.net.model_dump_json(),
        cell.recipe.model_dump_json(),
        plan.num_classes,
        train_images,
        cell.config["dataset"]["name"],
    )


@functools.lru_cache(maxsize=2048)
def _cell_need(
    method: type[Method],
    hyperparameters: str,
    student: str,
    teacher: str,
    recipe_text: str,
    classes: int,
    train_images: int,
    dataset: str,
) -> CellNeed:
    recipe = Recipe.model_validate_json(recipe_text)
    size = recipe.batch_size
    (ours, our_info), (_, their_info) = _net(student, classes), _net(teacher, classes)
    with _without_data():
        task = Task(classes, train_images, torch.zeros(train_images, dtype=torch.int64), dataset, recipe.epochs)
        module = method(our_info, their_info, task, **json.loads(hyperparameters))
        needs = frozenset(module.needs)
        strong = "strong" in needs
        batch = Batch(
            labels=torch.zeros(size, dtype=torch.int64),
            index=torch.zeros(size, dtype=torch.int64),
            targets=torch.zeros(size, classes) if recipe.augment.mixes else None,
        )
        seen = _teacher_outputs(teacher, classes, size, needs, strong)
        try:
            outputs, shared = _student_step(student, classes, size, needs, strong)
            with saved_storages() as own:
                sum(term.sum() for term in module(batch, outputs, seen).values())
            graph = shared | own
        except Exception:  # a method that reads values: its student alone counts
            _, graph = _student_step(student, classes, size, needs, False)
        kept = _apart_from(graph, (*_state_of(ours, module), *_tensors(seen)))
        evaluation = _largest(student, classes, EVALUATION_BATCH)
        trained = [p for part in (ours.net, module) for p in part.parameters() if p.requires_grad]
        states = _STATES.get(recipe.optimizer.name.lower(), 2) + (recipe.ema is not None)
        held = _bytes(_state_of(ours, module)) + states * _bytes(trained)
        factor = 1.0 if recipe.precision == "float32" else _AUTOCAST
        return CellNeed(held, _bytes(trained), int(factor * kept), evaluation)


def _teacher_need(net: str, classes: int, needs: frozenset[str], size: int) -> int:
    """Weights of a teacher, its outputs for a batch, and the largest tensors on the way there."""
    teacher, _ = _net(net, classes)
    outputs = _teacher_outputs(net, classes, size, needs, "strong" in needs)
    return _bytes(teacher.state_dict().values()) + _bytes(_tensors(outputs)) + _largest(net, classes, size)


@functools.lru_cache(maxsize=64)
def _net(spec: str, classes: int) -> tuple[TappedNet, NetInfo]:
    with _without_data():
        net = TappedNet(NetSpec.model_validate_json(spec), classes)
        return net, net.describe()


@contextmanager
def _without_data() -> Iterator[None]:
    """New tensors have no content. Autocast does not know the device of such tensors, and is not needed for sizes."""
    autocast = torch.autocast
    torch.autocast = lambda *arguments, **options: nullcontext()  # type: ignore[misc, assignment]
    try:
        with torch.random.fork_rng(devices=[]), without_data():
            yield
    finally:
        torch.autocast = autocast  # type: ignore[misc]


def _images(net: TappedNet, size: int) -> Tensor:
    return torch.zeros(size, 3, *net.input_size)


def _run(net: TappedNet, size: int, needs: frozenset[str], strong: bool) -> Outputs:
    outputs = net.run(_images(net, size), needs)
    if strong:
        outputs.strong = net.run(_images(net, size), needs)
    return outputs


@functools.lru_cache(maxsize=64)
def _teacher_outputs(spec: str, classes: int, size: int, needs: frozenset[str], strong: bool) -> Outputs:
    net, _ = _net(spec, classes)
    with _without_data(), torch.no_grad():
        return _run(net.eval(), size, needs, strong)


@functools.lru_cache(maxsize=64)
def _student_step(
    spec: str, classes: int, size: int, needs: frozenset[str], strong: bool
) -> tuple[Outputs, dict[int, Any]]:
    """A student's outputs, cached for all methods, and the storages that it keeps for its backward pass."""
    net, _ = _net(spec, classes)
    with _without_data(), saved_storages() as kept:
        outputs = _run(net.train(), size, needs, strong)
    return outputs, kept


def _apart_from(kept: Mapping[int, Any], known: Iterable[Tensor]) -> int:
    """Bytes of storages that are not among the known tensors'."""
    there = {_storage(value) for value in known}
    return sum(storage.nbytes() for key, storage in kept.items() if key not in there)


@contextmanager
def saved_storages() -> Iterator[dict[int, Any]]:
    """Storages kept for a backward pass within the block, referenced so that no identity is used twice."""
    kept: dict[int, Any] = {}

    def keep(value: Tensor) -> Tensor:
        kept[_storage(value)] = value.untyped_storage()
        return value

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        yield kept


def _storage(value: Tensor) -> int:
    return value.untyped_storage()._cdata


def _state_of(*modules: nn.Module) -> list[Tensor]:
    return [value for module in modules for value in (*module.parameters(), *module.buffers())]


def _bytes(values: Iterable[Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in values)


def _tensors(outputs: Outputs | None) -> list[Tensor]:
    if outputs is None:
        return []
    features = [value for feature in outputs.features for value in feature.tensors]
    found = [outputs.logits, *(outputs.heads or ()), outputs.embedding, outputs.images, *features]
    return [value for value in found if value is not None] + _tensors(outputs.strong)


class _Largest(TorchDispatchMode):
    """Records the size of the largest tensor that an operation returns."""

    bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.bytes = max(self.bytes, made.numel() * made.element_size())
        return made


@functools.lru_cache(maxsize=256)
def _largest(spec: str, classes: int, size: int) -> int:
    """Three times the largest tensor of a forward pass without gradients: an input, an output, and temporaries."""
    net, _ = _net(spec, classes)
    with _without_data(), torch.no_grad(), _Largest() as largest:
        net.eval().run(_images(net, size), frozenset({"logits"}))
    return 3 * largest.bytes
