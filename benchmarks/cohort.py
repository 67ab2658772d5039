"""A cohort of six against its floor, and against its cells one by one.

    python -m benchmarks.cohort [--to FILE]

The floor is measured apart, in the same run: six student steps as a bare PyTorch loop takes them (forward, losses, backward,
update), one forward pass of the teacher, one batch. The teacher is a ViT whose number of blocks is chosen so that its forward
costs three times the student's, as measured here; the students are trained by six methods that all use the teacher.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from benchmarks.bare import BareStudent, teacher_forward
from benchmarks.common import Spread, machine, parser
from benchmarks.setting import (
    Stepper,
    as_teacher,
    make_cohort,
    make_images,
    make_pipeline,
    make_setting,
    make_teacher,
    with_blocks,
)
from benchmarks.sides import Finding, add_arguments, added, finish, measure, ratio
from kdbench.engine.teacher import freeze
from kdbench.nets.tapped import TappedNet, state_hash

METHODS = ("kd", "fitnet", "dist", "dkd", "nkd", "rkd")
#: How much more than the student's the teacher's forward costs.
TIMES = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a target is missed."""
    arguing = parser(__doc__.splitlines()[0] if __doc__ else "", repeats=5)
    add_arguments(arguing)
    arguing.add_argument("--pair", default="vit-l--resnet-s", help="of cifar100-32; the teacher a ViT or a mixer")
    arguing.add_argument("--batch-size", type=int, default=128)
    options = arguing.parse_args(arguments)
    device = torch.device(options.device)
    clock = options.clock or ("wall" if device.type == "cuda" else "core")
    size = 4 if options.quick else options.batch_size
    methods = METHODS[:2] if options.quick else METHODS
    rounds = 1 if options.quick else options.repeats
    setting = make_setting(
        options.pair, device, size, 400 if options.quick else 10_000, options.threads,
        augment={"crop_padding": 4, "flip": True},
    )  # fmt: skip
    head = machine(device)
    blocks = 4 if options.quick else _blocks(setting, clock, rounds)
    setting = as_teacher(setting, with_blocks(setting.teacher, blocks))

    pipeline, teacher = make_pipeline(setting, make_images(setting.images)), make_teacher(setting)
    together = Stepper(make_cohort(setting, methods, pipeline, teacher))
    alone = [Stepper(make_cohort(setting, [method], pipeline, teacher)) for method in methods]
    spare = make_cohort(setting, methods, pipeline, teacher)
    spare.train()
    bare = {cell.key: BareStudent(cell) for cell in spare.alive}
    needs = frozenset[str]().union(*(cell.needs for cell in spare.alive))
    data = pipeline.make(0, 0)
    outputs = teacher_forward(teacher, data, needs, spare.alive[0])
    inputs = spare.alive[0].student.preprocess(data.images)

    def students() -> None:
        for student in bare.values():
            student.step(data.batch, inputs, outputs)

    def batch() -> None:
        made = pipeline.make(0, 1)
        spare.alive[0].student.preprocess(made.images)

    works = {
        "cohort": lambda: together(1),
        "cells one by one": lambda: [stepper(1) for stepper in alone],
        "student steps": students,
        "teacher forward": lambda: teacher_forward(teacher, data, needs, spare.alive[0]),
        "batch": batch,
        "student forward": lambda: spare.alive[0].student(inputs),
    }
    timings = measure(works, rounds, device)
    seconds = {name: timing.on(clock) for name, timing in timings.items()}
    floor = added(seconds["student steps"], seconds["teacher forward"], seconds["batch"])
    same = [state_hash(a.student.net) for a in together.model.alive] == [
        state_hash(stepper.model.alive[0].student.net) for stepper in alone
    ]
    one = added(seconds["teacher forward"], seconds["batch"])
    share = Spread.of(
        [f / (s + len(methods) * t) for f, s, t in zip(floor, seconds["student steps"], one, strict=True)]
    )
    findings = [
        Finding("cohort / floor", ratio(seconds["cohort"], floor), 1.10),
        Finding("cohort / cells one by one", ratio(seconds["cohort"], seconds["cells one by one"]), 0.65,
                "students bit-identical" if same else "STUDENTS DIFFER"),
        Finding("teacher forward / student forward", ratio(seconds["teacher forward"], seconds["student forward"]), None,
                f"chosen to be {TIMES:g}"),
        Finding("floor / floors of the cells", share, None, "what a cohort without any cost of its own would reach"),
    ]  # fmt: skip
    status = finish(
        "cohort", findings, timings, head, options, clock,
        methods=methods, same_numbers=same, **setting.describe(),
    )  # fmt: skip
    return status if same or device.type == "cuda" else 1


def _blocks(setting, clock: str, rounds: int) -> int:  # type: ignore[no-untyped-def]
    """Blocks with which the teacher's forward costs ``TIMES`` the student's: from two depths, since a block's cost is even."""
    images = torch.rand(setting.recipe.batch_size, 3, 32, 32, device=setting.device)
    nets = {
        "student": freeze(TappedNet(setting.student, 100).to(setting.device)).train(),
        **{f"{n}": freeze(TappedNet(with_blocks(setting.teacher, n), 100).to(setting.device)) for n in (4, 12)},
    }

    def forward(net: TappedNet) -> None:
        with torch.set_grad_enabled(net.training):  # as it runs in a step: the student for gradients
            net(images)

    found = measure({name: lambda net=net: forward(net) for name, net in nets.items()}, max(rounds, 2), setting.device)
    student, few, many = (Spread.of(found[name].on(clock)).median for name in ("student", "4", "12"))
    return max(4, round(4 + (TIMES * student - few) / max((many - few) / 8, 1e-9)))


if __name__ == "__main__":
    sys.exit(main())
