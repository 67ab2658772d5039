"""Time of a cohort's step against the number of students, the batch size and the size of the data set; memory against students.

    python -m benchmarks.scaling [--to FILE]

Memory is counted as what a cell adds to what is held between steps (its student, gradients, optimiser state, method) and what a
step holds for its backward pass, which every cell gives back before the next one begins.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain
from typing import Any

import torch

from benchmarks.common import Spread, machine, parser
from benchmarks.memory import peak_of
from benchmarks.setting import Stepper, make_cohort, make_images, make_pipeline, make_setting, make_teacher
from benchmarks.sides import Finding, add_arguments, finish, measure
from kdbench.engine.cell import CellTrainer

COPIES = ("kd", "fitnet", "dist", "dkd", "nkd", "rkd", "pkt", "sp")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; there is no target."""
    arguing = parser(__doc__.splitlines()[0] if __doc__ else "", repeats=3)
    add_arguments(arguing)
    arguing.add_argument("--pair", default="resnet-l--resnet-s", help="of cifar100-32, or with resnet18")
    options = arguing.parse_args(arguments)
    device = torch.device(options.device)
    clock = options.clock or ("wall" if device.type == "cuda" else "core")
    rounds = 1 if options.quick else options.repeats
    students = (1, 2) if options.quick else (1, 2, 4, 6, 8)
    batches = (2, 4) if options.quick else (32, 64, 128, 256)
    sizes = (500, 1000) if options.quick else (5_000, 50_000, 200_000)
    head = machine(device)
    works: dict[str, Any] = {}
    states, kept = {}, {}

    def add(name: str, methods: Sequence[str], batch_size: int, images: int) -> None:
        setting = make_setting(
            options.pair, device, batch_size, images, options.threads, augment={"crop_padding": 4, "flip": True}
        )
        pipeline = make_pipeline(setting, make_images(images))
        stepper = Stepper(make_cohort(setting, methods, pipeline, make_teacher(setting)))
        works[name] = lambda: stepper(1)
        if name.startswith("students"):
            stepper(1)  # gradients are given back after a step, optimiser states stay
            states[name] = sum(_state(cell) for cell in stepper.model.alive)
            model = stepper.model
            known = chain(model.parameters(), model.buffers(), model.teacher.net.parameters())
            kept[name] = max(
                peak_of(lambda cell=cell: _one(stepper, cell), known, device) for cell in stepper.model.alive
            )

    base = 2 if options.quick else 64
    for count in students:
        add(f"students {count}", COPIES[:count], base, sizes[0])
    for batch_size in batches:
        add(f"batch {batch_size}", ["kd"], batch_size, sizes[0])
    for images in sizes:
        add(f"images {images}", ["kd"], base, images)
        add(f"images {images}, crd", ["crd"], base, images)
    timings = measure(works, rounds, device)
    one = Spread.of(timings["students 1"].on(clock)).median
    findings = [
        Finding(f"{name} / students 1", Spread.of([value / one for value in timings[name].on(clock)]))
        for name in works
        if name.startswith("students")
    ]
    status = finish(
        "scaling", findings, timings, head, options, clock,
        pair=options.pair, state_bytes=states, graph_bytes=kept, batch_size=base, images=sizes[0],
    )  # fmt: skip
    for name in states:
        print(f"  {name}: {states[name] / 1e6:.1f} MB between steps, {kept[name] / 1e6:.1f} MB in a step at most")
    return status


def _state(cell: CellTrainer) -> int:
    """Bytes of weights, buffers, gradients and optimiser states."""
    values = [*cell.distiller.parameters(), *cell.distiller.buffers()]
    values += [p for p in cell.distiller.parameters() if p.requires_grad]  # as large as their gradients
    for state in cell.optim_wrapper.optimizer.state.values():
        values += [value for value in state.values() if isinstance(value, torch.Tensor)]
    return sum(value.numel() * value.element_size() for value in values)


def _one(stepper: Stepper, cell: CellTrainer) -> None:
    """A cohort's step of which only one cell's part counts: the others' graphs are gone when it begins."""
    data = stepper.model.pipeline.make(0, 0)
    shared = stepper.model.share(data)
    images = shared.input_for(cell.student, data.images)
    cell.step(data.batch, images, None, shared.teacher)


if __name__ == "__main__":
    sys.exit(main())
