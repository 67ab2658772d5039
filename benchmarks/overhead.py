"""The runner against a bare PyTorch loop with the same arithmetic: one cell, one epoch, the evaluation after it.

    python -m benchmarks.overhead [--to FILE]

Both sides start from the same weights and must end with the same, bit for bit on a CPU: then the arithmetic was the same.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.bare import BareStudent, teacher_forward
from benchmarks.common import machine, parser
from benchmarks.setting import make_cohort, make_images, make_pipeline, make_setting, make_teacher
from benchmarks.sides import Finding, add_arguments, finish, measure, ratio
from kdbench.engine.evaluation import Evaluated
from kdbench.engine.runner import CohortRunner
from kdbench.nets.tapped import state_hash


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if the target is missed."""
    arguing = parser(__doc__.splitlines()[0] if __doc__ else "", repeats=5)
    add_arguments(arguing)
    arguing.add_argument("--pair", default="resnet-l--resnet-s", help="of cifar100-32")
    arguing.add_argument("--method", default="kd")
    arguing.add_argument("--batch-size", type=int, default=64)
    arguing.add_argument("--steps", type=int, default=10, help="of the epoch")
    options = arguing.parse_args(arguments)
    device = torch.device(options.device)
    clock = options.clock or ("wall" if device.type == "cuda" else "core")
    size, steps = (4, 3) if options.quick else (options.batch_size, options.steps)
    setting = make_setting(
        options.pair, device, size, size * steps, options.threads, epochs=1, schedule={"name": "constant"}
    )  # fmt: skip
    head = machine(device)
    data = make_images(setting.images)
    pipeline, teacher = make_pipeline(setting, data), make_teacher(setting)
    split = Evaluated(data.take(torch.arange(size)), None, device)
    ended: dict[str, list[str]] = {"runner": [], "bare loop": []}

    # What is made once in a run (nets, optimisers) is made before the clock starts, on both sides.
    rounds = 1 if options.quick else options.repeats
    models = [make_cohort(setting, [options.method], pipeline, teacher) for _ in range(rounds + 1)]
    spares = [make_cohort(setting, [options.method], pipeline, teacher).alive[0] for _ in range(rounds + 1)]

    def runner() -> None:
        model = models.pop()
        with tempfile.TemporaryDirectory() as folder:
            CohortRunner(model, split, Path(folder), lambda event: None).train()
        ended["runner"].append(state_hash(model.alive[0].student.net))

    def bare() -> None:
        cell = spares.pop()
        student = BareStudent(cell)
        student.student.train()
        for step in range(len(pipeline)):
            made = pipeline.make(0, step)
            outputs = teacher_forward(teacher, made, student.needs, cell)
            student.step(made.batch, student.student.preprocess(made.images), outputs)
        student.student.eval()
        with torch.no_grad():
            logits = student.student(split.dataset.images.to(device).float() / 255).logits
        (logits.argmax(dim=1) == split.labels).float().mean().item()
        ended["bare loop"].append(state_hash(student.student.net))

    timings = measure({"runner": runner, "bare loop": bare}, rounds, device)
    same = len({*ended["runner"], *ended["bare loop"]}) == 1
    finding = Finding(
        "runner / bare loop", ratio(timings["runner"].on(clock), timings["bare loop"].on(clock)), 1.05,
        "weights bit-identical" if same else "WEIGHTS DIFFER",
    )  # fmt: skip
    status = finish(
        "overhead", [finding], timings, head, options, clock,
        method=options.method, steps=steps, same_numbers=same, **setting.describe(),
    )  # fmt: skip
    return status if same or device.type == "cuda" else 1


if __name__ == "__main__":
    sys.exit(main())
