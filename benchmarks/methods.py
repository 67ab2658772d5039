"""Every method relative to ``scratch``: time of a student's step, memory that its graph keeps, extra parameters.

    python -m benchmarks.methods [--to FILE] [--pair resnet-l--vit-s] [--methods kd,crd]

A step is the student's forward, the method, backward and update; the teacher's forward, which a cohort pays once, is shown for
itself, with the taps that the methods of this run need. CRD, with the paper's 16,384 negatives and two banks of 50,000 rows,
has a target relative to a KD step *with* the teacher's forward and the batch: what a KD run takes.
"""

from __future__ import annotations

import fnmatch
import sys
from collections.abc import Sequence
from itertools import chain

import torch

from benchmarks.bare import BareStudent, teacher_forward
from benchmarks.common import machine, parser
from benchmarks.memory import peak_of
from benchmarks.setting import make_cohort, make_images, make_pipeline, make_setting, make_teacher
from benchmarks.sides import Finding, add_arguments, added, finish, measure, ratio
from kdbench.plugins.registry import catalog

#: A step of CRD may take so much more than one of KD.
CRD_TARGET = 1.5


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if the target is missed."""
    arguing = parser(__doc__.splitlines()[0] if __doc__ else "", repeats=3)
    add_arguments(arguing)
    arguing.add_argument("--pair", default="resnet-l--resnet-s", help="of cifar100-32, or with resnet18")
    arguing.add_argument("--methods", default="*", help="names or globs, separated by commas (default: all)")
    arguing.add_argument("--batch-size", type=int, default=128)
    arguing.add_argument("--images", type=int, default=50_000, help="of the training set, one row each in CRD's banks")
    options = arguing.parse_args(arguments)
    device = torch.device(options.device)
    clock = options.clock or ("wall" if device.type == "cuda" else "core")
    patterns = options.methods.split(",")
    chosen = [name for name in catalog() if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    methods = ["scratch", "kd", *(name for name in chosen if name not in ("scratch", "kd"))]
    size, images = (4, 500) if options.quick else (options.batch_size, options.images)
    setting = make_setting(
        options.pair, device, size, images, options.threads, augment={"crop_padding": 4, "flip": True}
    )
    head = machine(device)
    pipeline, teacher = make_pipeline(setting, make_images(images)), make_teacher(setting)
    model = make_cohort(setting, methods, pipeline, teacher)
    model.train()
    cells = {cell.key: cell for cell in model.alive}
    students = {name: BareStudent(cell) for name, cell in cells.items()}
    data = pipeline.make(0, 0)
    needs = frozenset[str]().union(*(cell.needs for cell in cells.values()))
    inputs = cells["kd"].student.preprocess(data.images)
    outputs = teacher_forward(teacher, data, needs, cells["kd"])
    if data.strong is not None:
        strong = cells["kd"].student.preprocess(data.strong)
        outputs.strong = teacher.run(teacher.preprocess(data.strong), needs)

    def step(name: str) -> None:
        # as the engine takes it, which also gives the second view to those that want it
        cell = cells[name]
        second = strong if data.strong is not None and "strong" in cell.needs else None
        cell.step(data.batch, inputs, second, outputs)

    def batch() -> None:
        cells["kd"].student.preprocess(pipeline.make(0, 1).images)

    works = {
        **{name: lambda name=name: step(name) for name in students},
        "teacher forward": lambda: teacher_forward(teacher, data, frozenset({"logits", "embedding"}), cells["kd"]),
        "batch": batch,
    }
    timings = measure(works, 1 if options.quick else options.repeats, device)
    seconds = {name: timing.on(clock) for name, timing in timings.items()}
    memory, extra, held = {}, {}, {}
    for name, cell in cells.items():
        states = chain(cell.distiller.parameters(), cell.distiller.buffers(), _tensors(outputs), [inputs, data.images])
        memory[name] = peak_of(lambda name=name: step(name), states, device)
        extra[name] = cell.extra_parameters()
        held[name] = sum(value.numel() * value.element_size() for value in cell.method.buffers())
    findings = [Finding(f"{name} / scratch", ratio(seconds[name], seconds["scratch"])) for name in methods[1:]]
    if "crd" in methods:
        rest = added(seconds["teacher forward"], seconds["batch"])
        found = ratio(added(seconds["crd"], rest), added(seconds["kd"], rest))
        findings.append(
            Finding(
                "step of CRD / step of KD", found, None if options.quick else CRD_TARGET, "teacher and batch included"
            )
        )
    status = finish(
        "methods", findings, timings, head, options, clock, methods=methods,
        saved_bytes=memory, extra_parameters=extra, buffer_bytes=held, **setting.describe(),
    )  # fmt: skip
    print(f"{'method':10} {'time':>6} {'graph MB':>9} {'extra parameters':>17} {'buffers MB':>11}")
    base = sorted(seconds["scratch"])[len(seconds["scratch"]) // 2]
    for name in methods:
        times = sorted(seconds[name])[len(seconds[name]) // 2] / base
        print(f"{name:10} {times:6.2f} {memory[name] / 1e6:9.1f} {extra[name]:17,} {held[name] / 1e6:11.1f}")
    return status


def _tensors(outputs):  # type: ignore[no-untyped-def]
    found = [outputs.logits, outputs.embedding, outputs.images, *(stage.map for stage in outputs.stages or ())]
    return [value for value in found if value is not None]


if __name__ == "__main__":
    sys.exit(main())
