"""One net in training, a cell's student or a teacher: with its method, optimiser, schedule, random stream, meters and history."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from kdbench.data.transforms import EvaluationView
from kdbench.engine import parallel
from kdbench.engine.checkpoint import Position, checkpoint_position, save_checkpoint
from kdbench.engine.compiled import Forward
from kdbench.engine.meters import PATIENCE, Meters, Stopwatch
from kdbench.engine.micro_batches import split_batch
from kdbench.engine.optim import QuietOptimWrapper, Schedule, build_optim_wrapper
from kdbench.engine.precision import Precision
from kdbench.errors import KdbenchError
from kdbench.method import NEEDS, Batch, Feature, Method, NetInfo, Outputs, Task
from kdbench.nets.tapped import TappedNet
from kdbench.seeding import RandomStream, may_draw_on_host, seed_for
from kdbench.store.folders import CellFolder
from kdbench.suite.net import NetSpec
from kdbench.suite.recipe import Recipe
from kdbench.teachers.foreign import load_body

_OPTIONAL_OUTPUTS = NEEDS.intersection(field.name for field in fields(Outputs)) - {"logits"}


@dataclass(frozen=True)
class TrainingSpec:
    """What is trained: a net by a method under a recipe, with the seeds of its random numbers and the folder it is kept in.

    ``net_seed`` fixes the initial weights, ``method_seed`` those of the method and everything drawn during training.
    """

    key: str
    name: str
    net: NetSpec
    recipe: Recipe
    method: type[Method]
    hyperparameters: Mapping[str, Any]
    net_seed: int
    method_seed: int
    folder: CellFolder
    view: EvaluationView = field(default_factory=EvaluationView)
    config: Mapping[str, Any] = field(default_factory=dict)
    #: Weights from which a teacher is fine-tuned; its classifier is new.
    start: Path | None = None


class Distiller(nn.Module):
    """A student and its method as one module, whose ``forward`` gives the losses of a batch: what DDP wraps."""

    def __init__(self, student: TappedNet, method: Method, run: Forward | None = None) -> None:
        super().__init__()
        self.student = student
        self.method = method
        self._run: Callable[[Tensor, frozenset[str]], Outputs] = run or student.run

    def forward(
        self, batch: Batch, images: Tensor, strong: Tensor | None, teacher: Outputs | None
    ) -> dict[str, Tensor]:
        """Named loss terms; ``images`` are already preprocessed for the student."""
        needs = frozenset(self.method.needs)
        student = self._run(images, needs)
        if strong is not None and "strong" in needs:
            student.strong = self._run(strong, needs)
        terms = self.method(batch, student, _only(teacher, needs))
        _check(terms)
        return terms


class CellTrainer:
    """One training in memory. No module itself: what is trained is ``distiller``.

    Args:
        spec: what to train.
        task: the classification task.
        teacher: of the pair; None when a teacher itself is trained.
        steps_per_epoch: length of an epoch.
        device: where it is trained.
        compile: run nets through ``torch.compile``; one that does not compile runs as it is, and its log says so.
    """

    def __init__(
        self,
        spec: TrainingSpec,
        task: Task,
        teacher: NetInfo | None,
        steps_per_epoch: int,
        device: torch.device,
        compile: bool = False,
    ) -> None:
        self.spec = spec
        self.task = task
        self.steps_per_epoch = steps_per_epoch
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(spec.net_seed)
            student = TappedNet(spec.net, task.num_classes, spec.name)
            if spec.start is not None:
                load_body(student, spec.start)
            student.to(device)
            info = student.describe()
            torch.manual_seed(seed_for(spec.method_seed, "init"))
            method = spec.method(info, teacher or info, task, **spec.hyperparameters).to(device)
        if parallel.world_size() > 1:
            parallel.join_batch_norms(method)
            parallel.join_drop_paths(student.net)
            if spec.recipe.sync_bn:
                student.net = parallel.sync_student(student.net, device)
        self.forward_pass = Forward(student, compile, spec.folder.say)
        self.precision = Precision(spec.recipe.precision, device)
        self.optim_wrapper: QuietOptimWrapper = build_optim_wrapper(student.net, method, spec.recipe, self.precision)
        self.distiller = Distiller(student, method, self.forward_pass)
        self._wrapped = parallel.wrap(self.distiller, device)
        self.average = ModelEmaV3(self.distiller, decay=spec.recipe.ema) if spec.recipe.ema is not None else None
        self.micro_batches = 1
        #: Whether its steps are CUDA graphs: True, the reason why not, False where they are turned off, or None on a CPU.
        self.captured: bool | str | None = None
        #: Other choices of the run on which last bits depend.
        self.tuning: dict[str, int] = {}
        self.schedule = Schedule(self.optim_wrapper.optimizer, spec.recipe, steps_per_epoch, method.phases)
        self.stream = RandomStream(seed_for(spec.method_seed, "stream"), device, may_draw_on_host(spec.method))
        self.meters = Meters(device, PATIENCE if self.precision.scaler is not None else 1)
        self.losses: dict[str, float] = {}
        self.watch = Stopwatch(device)
        self.history: list[dict[str, float]] = []
        self.last_logits: Tensor | None = None
        self.last_raw_logits: Tensor | None = None
        self.step_seconds = 0.0
        self.steps_timed = 0
        self.train_seconds = 0.0

    @property
    def key(self) -> str:
        """Its name within a plan."""
        return self.spec.key

    @property
    def student(self) -> TappedNet:
        return self.distiller.student

    @property
    def method(self) -> Method:
        return self.distiller.method

    @property
    def needs(self) -> frozenset[str]:
        """What the method taps, of either net."""
        return frozenset(self.method.needs)

    def step(self, batch: Batch, images: Tensor, strong: Tensor | None, teacher: Outputs | None) -> None:
        """One step on a batch; ``images`` are already preprocessed for the student.

        Raises:
            Exception: whatever the method raises.
        """
        with self.stream.active(), torch.enable_grad():
            self.compute(batch, images, strong, teacher)
        self.meters.steps += 1

    def compute(self, batch: Batch, images: Tensor, strong: Tensor | None, teacher: Outputs | None) -> None:
        """What a step does on the device: all but the count of steps."""
        if self.micro_batches > 1:
            terms = self._step_in_parts(batch, images, strong, teacher)
        else:
            with self.precision.autocast():
                terms = self._wrapped(batch, images, strong, teacher)
            self.optim_wrapper.update_params(_total(terms))
        self.meters.add(terms)  # and no other reference: a replay may use the memory of a recorded step's tensors again
        if self.average is not None:
            self.average.update(self.distiller)

    def _step_in_parts(
        self, batch: Batch, images: Tensor, strong: Tensor | None, teacher: Outputs | None
    ) -> dict[str, Tensor]:
        """Gradients of the parts of a batch, added up, before one update: less memory, the same number of images."""
        sums: dict[str, Tensor] = {}
        parts = split_batch(batch, images, strong, teacher, self.micro_batches)
        for position, (share, *part) in enumerate(parts):
            module: Any = self._wrapped
            waits = position + 1 < len(parts) and hasattr(module, "no_sync")
            with module.no_sync() if waits else contextlib.nullcontext():
                with self.precision.autocast():
                    terms = module(*part)
                self.optim_wrapper.backward(self.optim_wrapper.scale_loss(_total(terms) * share))
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.detach().reshape(()) * share
        self.optim_wrapper.step()
        self.optim_wrapper.zero_grad()
        return sums

    def end_epoch(self, epoch: int) -> None:
        """Read the meters of ``epoch`` (from 0) into ``losses``: the mean of each term over its steps.

        Raises:
            NonFiniteLossError: naming term, epoch and step of the first value that was NaN or infinite.
        """
        parallel.average_statistics(self.distiller)
        if self.average is not None:
            parallel.average_statistics(self.average)
        self.losses = self.meters.read(epoch)

    def read_watch(self) -> None:
        """Add what the steps took since the last reading."""
        seconds, steps = self.watch.read()
        self.step_seconds += seconds
        self.steps_timed += steps

    @property
    def measured(self) -> Distiller:
        """What is measured and kept: the average of the weights where the recipe keeps one, else the weights."""
        return self.distiller if self.average is None else self.average.module

    @torch.no_grad()
    def predict(self, images: Tensor, raw: bool = False) -> Tensor:
        """Logits (B, C) of raw images in [0, 1], in the method's way of inference; ``raw`` without averaged weights."""
        chosen = self.distiller if raw else self.measured
        with self.stream.active(), self.precision.autocast():
            logits = chosen.method.predict(chosen.student(images, chosen.method.predict_needs))
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def state(self, position: Position) -> dict[str, Any]:
        """What a checkpoint holds: tensors and plain values."""
        state = {
            **position._asdict(),
            "meters": self.meters.state_dict(),
            "student": self.student.net.state_dict(),
            "method": self.method.state_dict(),
            "optimizer": self.optim_wrapper.optimizer.state_dict(),
            "stream": self.stream.state_dict(),
            "history": self.history,
            "clock": [self.step_seconds, self.steps_timed, self.train_seconds],
            "scaler": self.precision.state_dict(),
        }
        if self.average is not None:
            state["average"] = self.average.module.state_dict()
        return state

    def save(self, position: Position, state: dict[str, Any]) -> None:
        """Write a checkpoint; older ones are kept until ``drop_old_checkpoints``.

        Raises:
            ClaimLostError: if another process has taken the cell over.
        """
        if parallel.is_first():
            self.spec.folder.confirm()
            save_checkpoint(self.spec.folder.checkpoint(*position), state)

    def drop_old_checkpoints(self, position: Position) -> None:
        """Remove the checkpoints before a position."""
        if not parallel.is_first():
            return
        for path in self.spec.folder.checkpoints():
            if checkpoint_position(path) < position:
                path.unlink(missing_ok=True)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a ``state``."""
        self.student.net.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.optim_wrapper.optimizer.load_state_dict(state["optimizer"])
        self.stream.load_state_dict(state["stream"])
        self.precision.load_state_dict(state.get("scaler", {}))
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.history = list(state["history"])
        self.meters.load_state_dict(state.get("meters", {}))
        self.step_seconds, self.steps_timed, self.train_seconds = state["clock"]

    def extra_parameters(self) -> int:
        """Number of trainable parameters of the method."""
        return sum(parameter.numel() for parameter in self.method.parameters() if parameter.requires_grad)


def _check(terms: Any) -> None:
    if not isinstance(terms, dict) or not terms:
        raise KdbenchError(f"forward must return a dict of named loss terms, got {type(terms).__name__}")
    for name, term in terms.items():
        if not isinstance(term, Tensor) or term.numel() != 1:
            shape = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
            raise KdbenchError(f"loss term {name!r} must be a scalar tensor, got {shape}")


def _total(terms: Mapping[str, Tensor]) -> Tensor:
    return torch.stack([term.reshape(()) for term in terms.values()]).sum()


def _only(outputs: Outputs | None, needs: frozenset[str]) -> Any:
    """Hide what a method did not ask for: a cell must not depend on what its company asked for."""
    if outputs is None:
        return None
    hidden: dict[str, Any] = {name: None for name in _OPTIONAL_OUTPUTS if name not in needs}
    if "stagewise" not in needs:
        hidden["images"] = None
    shown = replace(outputs, **hidden)
    if shown.stages is not None and "preactivation" not in needs:
        shown.stages = [
            stage if stage.preactivation is None else Feature(stage.map, stage.class_tokens, stage.layout)
            for stage in shown.stages
        ]
    if shown.strong is not None:
        shown.strong = _only(shown.strong, needs - {"strong"})
    return shown
