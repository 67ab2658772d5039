"""One cell in training: a student with its method, optimiser, schedule, random stream, meters and history."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from kdbench.data.transforms import EvaluationView
from kdbench.engine import parallel
from kdbench.engine.checkpoint import checkpoint_path, checkpoint_position, save_checkpoint
from kdbench.engine.compiled import Forward
from kdbench.engine.micro_batches import split_batch
from kdbench.engine.optim import QuietOptimWrapper, Schedule, build_optim_wrapper
from kdbench.engine.precision import Precision
from kdbench.engine.tuning import PLAIN, Tuning
from kdbench.errors import KdbenchError
from kdbench.method import Batch, Feature, Method, NetInfo, Outputs, Task
from kdbench.nets.tapped import TappedNet
from kdbench.seeding import RandomStream, may_draw_on_host, seed_for
from kdbench.store.folders import CellFolder
from kdbench.suite.net import NetSpec
from kdbench.suite.recipe import Recipe
from kdbench.teachers.foreign import load_body

_OPTIONAL_OUTPUTS = ("stages", "embedding", "classifier", "stagewise", "strong")


class NonFiniteLossError(KdbenchError):
    """A loss term that became NaN or infinite."""


@dataclass(frozen=True)
class Trainee:
    """What is trained: a net by a method under a recipe, with the names that its random numbers depend on.

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
    #: Weights from which a teacher is fine-tuned; its classifier is new.
    start: Path | None = None


class Trained(nn.Module):
    """A student and its method as one module, whose ``forward`` is a step's computation (what DDP wants to wrap)."""

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


class CellTrainer(nn.Module):
    """A trainee in memory.

    Args:
        trainee: what to train.
        task: the classification task.
        teacher: of the pair; None when a teacher itself is trained.
        steps_per_epoch: length of an epoch.
        device: where it is trained.
        tuning: of the run.
    """

    def __init__(
        self,
        trainee: Trainee,
        task: Task,
        teacher: NetInfo | None,
        steps_per_epoch: int,
        device: torch.device,
        tuning: Tuning = PLAIN,
    ) -> None:
        super().__init__()
        self.trainee = trainee
        self.task = task
        self.steps_per_epoch = steps_per_epoch
        with torch.random.fork_rng():
            torch.manual_seed(trainee.net_seed)
            self.student = TappedNet(trainee.net, task.num_classes, trainee.name)
            if trainee.start is not None:
                load_body(self.student, trainee.start)
            self.student.to(device)
            info = self.student.describe()
            torch.manual_seed(seed_for(trainee.method_seed, "init"))
            self.method = trainee.method(info, teacher or info, task, **trainee.hyperparameters).to(device)
        if parallel.world_size() > 1:
            parallel.join_batch_norms(self.method)
            parallel.join_drop_paths(self.student.net)
            if trainee.recipe.sync_bn:
                self.student.net = parallel.sync_student(self.student.net, device)
        self.tuning = tuning
        self.forward_pass = Forward(self.student, tuning, trainee.folder.say)
        self.precision = Precision(trainee.recipe.precision, device)
        self.optim_wrapper: QuietOptimWrapper = build_optim_wrapper(
            self.student.net, self.method, trainee.recipe, self.precision
        )
        trained = Trained(self.student, self.method, self.forward_pass)
        # In tuples, since their parameters are registered above.
        self._trained = (trained,)
        self._step = (parallel.wrap(trained, device),)
        self.average = ModelEmaV3(trained, decay=trainee.recipe.ema) if trainee.recipe.ema is not None else None
        self.micro_batches = 1
        #: Whether its steps are CUDA graphs: True, the reason why not, or None where there are none.
        self.captured: bool | str | None = None
        self.schedule = Schedule(self.optim_wrapper.optimizer, trainee.recipe, steps_per_epoch)
        self.stream = RandomStream(seed_for(trainee.method_seed, "stream"), device, may_draw_on_host(trainee.method))
        self.meters = Meters(device)
        self.history: list[dict[str, float]] = []
        self.last_logits: Tensor | None = None
        self.last_raw_logits: Tensor | None = None
        self.epoch = 0
        self.step_seconds = 0.0
        self.steps_timed = 0
        self.train_seconds = 0.0

    @property
    def needs(self) -> frozenset[str]:
        """What the method taps, of either net."""
        return frozenset(self.method.needs)

    def step(
        self, batch: Batch, images: Tensor, strong: Tensor | None, teacher: Outputs | None, wrapper: QuietOptimWrapper
    ) -> None:
        """One step on a batch; ``images`` are already preprocessed for the student.

        Raises:
            Exception: whatever the method raises.
        """
        self.compute(batch, images, strong, teacher, wrapper)
        self.meters.steps += 1

    def compute(
        self, batch: Batch, images: Tensor, strong: Tensor | None, teacher: Outputs | None, wrapper: QuietOptimWrapper
    ) -> None:
        """What a step does on the device: all of it but the count of steps, which the host keeps."""
        if self.micro_batches > 1:
            terms = self._step_in_parts(batch, images, strong, teacher, wrapper)
        else:
            with self.precision.autocast():
                terms = self._step[0](batch, images, strong, teacher)
            wrapper.update_params(_total(terms))
        self.meters.add(terms)
        if self.average is not None:
            self.average.update(self._trained[0])

    def _step_in_parts(
        self, batch: Batch, images: Tensor, strong: Tensor | None, teacher: Outputs | None, wrapper: QuietOptimWrapper
    ) -> dict[str, Tensor]:
        """Gradients of the parts of a batch, added up, before one update: less memory, the same number of images."""
        sums: dict[str, Tensor] = {}
        parts = split_batch(batch, images, strong, teacher, self.micro_batches)
        for position, (share, *part) in enumerate(parts):
            module: Any = self._step[0]
            waits = position + 1 < len(parts) and hasattr(module, "no_sync")
            with module.no_sync() if waits else contextlib.nullcontext():
                with self.precision.autocast():
                    terms = module(*part)
                wrapper.backward(wrapper.scale_loss(_total(terms) * share))
            for name, term in terms.items():
                sums[name] = sums.get(name, 0) + term.detach().reshape(()) * share
        wrapper.step()
        wrapper.zero_grad()
        return sums

    def end_epoch(self) -> dict[str, float]:
        """Read the meters of the epoch: mean of each term over its steps.

        Raises:
            NonFiniteLossError: naming term, epoch and step of the first value that was NaN or infinite.
        """
        parallel.average_statistics(self)
        means = self.meters.read(self.epoch)
        self.epoch += 1
        return means

    @property
    def measured(self) -> Trained:
        """What is measured and kept: the average of the weights where the recipe keeps one, else the weights."""
        if self.average is not None:
            averaged: Trained = self.average.module
            return averaged
        return self._trained[0]

    @torch.no_grad()
    def predict(self, images: Tensor, raw: bool = False) -> Tensor:
        """Logits (B, C) of raw images in [0, 1], in the method's way of inference; ``raw`` without averaged weights."""
        trained = self._trained[0] if raw else self.measured
        with self.stream.active(), self.precision.autocast():
            logits = trained.method.predict(trained.student(images, trained.method.predict_needs))
        return logits.float() if logits.dtype in (torch.bfloat16, torch.float16) else logits

    def save(self, step: int = 0) -> None:
        """Write a checkpoint after ``step`` steps of the current epoch; older ones are kept until ``drop_old_checkpoints``.

        Raises:
            ClaimLostError: if another process has taken the cell over.
        """
        meters = self.meters.state_dict()
        if not parallel.is_first():
            return
        self.trainee.folder.confirm()
        state = {
            "epoch": self.epoch,
            "step": step,
            "meters": meters,
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
        save_checkpoint(checkpoint_path(self.trainee.folder, (self.epoch, step)), state)

    def drop_old_checkpoints(self, step: int = 0) -> None:
        """Remove the checkpoints before ``step`` of the current epoch."""
        if not parallel.is_first():
            return
        for path in self.trainee.folder.checkpoints():
            if checkpoint_position(path) < (self.epoch, step):
                path.unlink(missing_ok=True)

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what ``save`` wrote."""
        self.student.net.load_state_dict(state["student"])
        self.method.load_state_dict(state["method"])
        self.optim_wrapper.optimizer.load_state_dict(state["optimizer"])
        self.stream.load_state_dict(state["stream"])
        self.precision.load_state_dict(state.get("scaler", {}))
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
        self.history = list(state["history"])
        self.epoch = state["epoch"]
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


class Meters:
    """Sums of loss terms on the device, read once an epoch: a step never waits for the device.

    ``add`` works on the device alone, on tensors that stay the same while the terms do; who calls it counts ``steps``.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.names: tuple[str, ...] = ()
        self.steps = 0
        self._allot(())

    def _allot(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._sums = torch.zeros(len(names), device=self.device)
        self._first_bad = torch.full((len(names),), -1, device=self.device)
        self._step = torch.full((), self.steps, device=self.device)

    def _clear(self) -> None:
        self.steps = 0
        self._sums.zero_()
        self._first_bad.fill_(-1)
        self._step.zero_()

    def add(self, terms: Mapping[str, Tensor]) -> None:
        """Add the terms of one step."""
        names = tuple(terms)
        if names != self.names:
            if self.steps:
                raise KdbenchError(
                    f"loss terms changed within an epoch: {', '.join(self.names)}, then {', '.join(names)}"
                )
            self._allot(names)
        values = torch.stack([term.detach().float().reshape(()) for term in terms.values()])
        self._sums += values
        self._first_bad.copy_(torch.where((self._first_bad < 0) & ~values.isfinite(), self._step, self._first_bad))
        self._step += 1

    def state_dict(self) -> dict[str, Any]:
        """What was added since the last reading; empty when there was nothing."""
        if not self.steps:
            return {}
        return {"names": list(self.names), "steps": self.steps, "sums": self._sums, "first_bad": self._first_bad}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._clear()
        if state:
            self.steps = state["steps"]
            self._allot(tuple(state["names"]))
            self._sums.copy_(state["sums"])
            self._first_bad.copy_(state["first_bad"])

    def read(self, epoch: int) -> dict[str, float]:
        """Means since the last reading; see ``CellTrainer.end_epoch``."""
        steps, names = self.steps, self.names
        if not steps:
            return {}
        parallel.average(self._sums)
        sums, first_bad = self._sums.tolist(), parallel.first_step(self._first_bad).tolist()
        self._clear()
        for name, step in sorted(zip(names, first_bad, strict=True), key=lambda item: item[1]):
            if step >= 0:
                raise NonFiniteLossError(f"loss term {name!r} is not finite at epoch {epoch + 1}, step {step + 1}")
        return {name: total / steps for name, total in zip(names, sums, strict=True)}


class Stopwatch:
    """Seconds that a cell's step takes: the clock on a CPU, events in the stream (read once an epoch) on CUDA."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self._events: list[tuple[Any, Any]] = []
        self._seconds = 0.0
        self._count = 0

    def __enter__(self) -> Stopwatch:
        if self.cuda:
            self._start = torch.cuda.Event(enable_timing=True)
            self._start.record()
        else:
            self._begun = time.perf_counter()
        return self

    def __exit__(self, *error: object) -> None:
        if self.cuda:
            end = torch.cuda.Event(enable_timing=True)
            end.record()
            self._events.append((self._start, end))
        else:
            self._seconds += time.perf_counter() - self._begun
        self._count += 1

    def read(self) -> tuple[float, int]:
        """Seconds and steps since the last reading."""
        if self._events:
            self._events[-1][1].synchronize()
            self._seconds = sum(start.elapsed_time(end) for start, end in self._events) / 1000
        seconds, count = self._seconds, self._count
        self._events, self._seconds, self._count = [], 0.0, 0
        return seconds, count


def _without_preactivation(stage: Feature) -> Feature:
    return stage if stage.preactivation is None else Feature(stage.map, stage.class_tokens, stage.layout)


def _only(outputs: Outputs | None, needs: frozenset[str]) -> Any:
    """Hide what a method did not ask for: a cell must not depend on what its company asked for."""
    if outputs is None:
        return None
    hidden: dict[str, Any] = {name: None for name in _OPTIONAL_OUTPUTS if name not in needs}
    if "stagewise" not in needs:
        hidden["images"] = None
    shown = replace(outputs, **hidden)
    if shown.stages is not None and "preactivation" not in needs:
        shown.stages = [_without_preactivation(stage) for stage in shown.stages]
    if shown.strong is not None:
        shown.strong = _only(shown.strong, needs - {"strong"})
    return shown
