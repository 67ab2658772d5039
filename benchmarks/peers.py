"""kdbench against torchdistill on the same pair, batch size and losses: KD alone, and six methods with one teacher.

    python -m benchmarks.peers [--peer-python PYTHON] [--to FILE]

torchdistill comes from the package registry, into an environment of its own in the user's cache folder, which is made at the
first call and sees this environment's torch, torchvision and timm, so that both sides run on the same versions. PYTHON is the
interpreter of another environment that has them all.

torchdistill runs in a process of that interpreter (``torchdistill_side.py`` says how it is used) and is asked for its steps in
turn with ours. On both sides a step is everything from the images in memory to the updated student: batch, augmentation,
teacher, student, losses, update; neither reads the loss.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.common import machine, parser
from benchmarks.setting import (
    Setting,
    Stepper,
    as_teacher,
    make_cohort,
    make_images,
    make_pipeline,
    make_setting,
    make_teacher,
    with_blocks,
)
from benchmarks.sides import Finding, Timing, add_arguments, added, finish, measure, ratio

#: The version that figures were measured with.
TORCHDISTILL = "1.1.5"
METHODS = ("kd", "dist", "lskd", "rkd", "pkt", "sp")
#: Modules whose outputs are the embedding and stage 4, for torchdistill's hooks.
PLACES = {"resnet": ("global_pool", "layer4"), "vit": ("head_drop", "blocks")}


def peer_environment() -> str:
    """The interpreter of an environment with torchdistill, which is made where there is none yet.

    Raises:
        SystemExit: if torchdistill cannot be installed.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kdbench"
    folder = cache / f"torchdistill-{TORCHDISTILL}-python{sys.version_info[0]}.{sys.version_info[1]}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        print(f"installing torchdistill {TORCHDISTILL} in {folder} ...", file=sys.stderr, flush=True)
        venv.create(folder, clear=True, with_pip=True)
    # written each time: another environment may call
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    (packages / "beside.pth").write_text(sysconfig.get_path("purelib") + "\n")
    if not ready.exists():
        command = [str(python), "-m", "pip", "install", "-q", f"torchdistill=={TORCHDISTILL}"]
        if subprocess.run(command, check=False).returncode:
            raise SystemExit("benchmarks.peers: torchdistill could not be installed; give --peer-python")
        ready.touch()
    return str(python)


class Peer:
    """The process of torchdistill."""

    def __init__(self, python: str, setting: Setting, methods: Sequence[str], workers: int) -> None:
        self._process = subprocess.Popen(
            [python, "-m", "benchmarks.torchdistill_side"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            cwd=Path(__file__).resolve().parent.parent,
        )  # fmt: skip
        nets = [setting.teacher, setting.student]
        request: dict[str, Any] = {
            "nets": [{"timm": net.timm, "args": net.args} for net in nets],
            "methods": methods,
            "batch_size": setting.recipe.batch_size,
            "images": setting.images,
            "device": str(setting.device),
            "threads": setting.threads,
            "workers": workers,
            "mean": setting.student.mean,
            "std": setting.student.std,
        }
        for side, net in zip(("teacher", "student"), nets, strict=True):
            request[f"{side}_embedding"], request[f"{side}_stage"] = PLACES[net.timm.partition("_")[0]]
        self.versions = self._ask(request)

    def run(self, method: str, steps: int) -> dict[str, float]:
        """Seconds, ``wall`` and ``core``, of so many steps."""
        return self._ask({"method": method, "steps": steps})

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._process.stdout.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("benchmarks.peers: torchdistill's process ended; its message is above")
        answer: dict[str, Any] = json.loads(line)
        return answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if a target is missed."""
    arguing = parser(__doc__.splitlines()[0] if __doc__ else "", repeats=4)
    add_arguments(arguing)
    arguing.add_argument(
        "--peer-python", metavar="PYTHON", help="of an environment with torchdistill; else one is made"
    )
    arguing.add_argument("--pair", default="vit-l--resnet-s", help="of cifar100-32; teachers resnet-l and vit-l")
    arguing.add_argument(
        "--blocks", type=int, default=6, help="of a ViT as the teacher: 6 cost three forwards of resnet-s"
    )
    arguing.add_argument("--batch-size", type=int, default=128)
    arguing.add_argument("--steps", type=int, default=2, help="taken at a time")
    arguing.add_argument("--loader-workers", type=int, default=0, help="of torchdistill; their cores are counted")
    options: argparse.Namespace = arguing.parse_args(arguments)
    device = torch.device(options.device)
    clock = options.clock or ("wall" if device.type == "cuda" else "core")
    size, methods = (4, METHODS[:2]) if options.quick else (options.batch_size, METHODS)
    rounds = 1 if options.quick else options.repeats
    setting = make_setting(
        options.pair, device, size, 400 if options.quick else 10_000, options.threads,
        augment={"crop_padding": 4, "flip": True},
    )  # fmt: skip
    if "vit" in setting.teacher.timm and not options.quick:
        setting = as_teacher(setting, with_blocks(setting.teacher, options.blocks))
    head = machine(device)
    peer = Peer(options.peer_python or peer_environment(), setting, methods, options.loader_workers)
    pipeline, teacher = make_pipeline(setting, make_images(setting.images)), make_teacher(setting)
    alone = Stepper(make_cohort(setting, ["kd"], pipeline, teacher))
    together = Stepper(make_cohort(setting, methods, pipeline, teacher))
    for method in methods:
        peer.run(method, 1)  # a first step, not counted, as ours have one
    timings: dict[str, Timing] = {f"torchdistill: {method}": Timing([], []) for method in methods}
    ours: dict[str, Timing] = {name: Timing([], []) for name in ("kdbench: kd", "kdbench: cohort")}
    alone(1)
    together(1)
    steps = 1 if options.quick else options.steps
    for number in range(rounds):
        turns: list[Callable[[], None]] = [
            lambda: _ask_peer(peer, ["kd"], timings, steps),
            lambda: _take(alone, ours["kdbench: kd"], steps, device),
            lambda: _ask_peer(peer, methods[1:], timings, steps),
            lambda: _take(together, ours["kdbench: cohort"], steps, device),
        ]
        for turn in turns if number % 2 == 0 else turns[::-1]:
            turn()
    peer.close()
    seconds = {name: timing.on(clock) for name, timing in {**timings, **ours}.items()}
    one_by_one = added(*(seconds[f"torchdistill: {method}"] for method in methods))
    findings = [
        Finding("KD, one cell: kdbench / torchdistill", ratio(seconds["kdbench: kd"], seconds["torchdistill: kd"]), 1.0),
        Finding(
            f"{len(methods)} methods: kdbench in a cohort / torchdistill one after the other",
            ratio(seconds["kdbench: cohort"], one_by_one), 0.6,
        ),
    ]  # fmt: skip
    return finish(
        "peers", findings, {**timings, **ours}, {**head, "peer": peer.versions}, options, clock,
        methods=methods, loader_workers=options.loader_workers, **setting.describe(),
    )  # fmt: skip


def _ask_peer(peer: Peer, methods: Sequence[str], timings: dict[str, Timing], steps: int) -> None:
    for method in methods:
        found = peer.run(method, steps)
        timings[f"torchdistill: {method}"].core.append(found["core"] / steps)
        timings[f"torchdistill: {method}"].wall.append(found["wall"] / steps)


def _take(stepper: Stepper, timing: Timing, steps: int, device: torch.device) -> None:
    found = measure({"ours": lambda: stepper(steps)}, 1, device, warm_up=False)["ours"]
    timing.core.extend(value / steps for value in found.core)
    timing.wall.extend(value / steps for value in found.wall)


if __name__ == "__main__":
    sys.exit(main())
