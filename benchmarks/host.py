"""What the host does for a step of a cohort of six, in this tree and in another revision of it: the CPU seconds of steps on two images.

    python -m benchmarks.host --against REVISION [--to FILE]

Two images of 32 px leave little to compute; what is left are Python and the dispatch of operations, which a GPU without CUDA graphs
waits for. Both trees run in processes of their own and take turns. The other one needs what is imported
here from ``benchmarks``, which has been there since the first ones.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from benchmarks.common import machine, parser
from benchmarks.setting import Stepper, make_cohort, make_pipeline, make_setting, make_teacher
from benchmarks.sides import Finding, Timing, finish, ratio

SIX = ("scratch", "kd", "fitnet", "dist", "ofa", "lfcc")
PAIRS = ("resnet-l--vit-s", "vit-l--resnet-s")
BATCH, STEPS, WARM = 2, 10, 3
#: The most that a step may need of the other revision's seconds.
TARGET = 0.8
#: What asks this file for ``answer``.
ANSWER = "answer"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if the target is missed."""
    arguing = parser(__doc__.splitlines()[0] if __doc__ else "", repeats=15, device=False)
    arguing.add_argument("--against", metavar="REVISION", required=True, help="a commit of this repository")
    options = arguing.parse_args(arguments)
    options.quick = False
    here = Path(__file__).resolve().parents[1]
    known = subprocess.run(
        ["git", "cat-file", "-e", f"{options.against}:benchmarks/setting.py"], cwd=here, capture_output=True
    )
    if known.returncode:
        arguing.error(f"{options.against} is no revision of this repository that has benchmarks")
    torch.set_num_threads(1)
    head = machine(torch.device("cpu"))
    timings = {f"{pair}, {tree}": Timing([], []) for pair in PAIRS for tree in ("this", "other")}
    with other_tree(here, options.against) as there, stepping(here) as this, stepping(there) as other:
        for number in range(options.repeats):
            for pair in PAIRS:
                turns = [("this", this), ("other", other)]
                for tree, ask in turns if number % 2 == 0 else turns[::-1]:
                    core, wall = ask(pair)
                    timings[f"{pair}, {tree}"].core.append(core)
                    timings[f"{pair}, {tree}"].wall.append(wall)
            print(f"round {number + 1} of {options.repeats}", flush=True)
    findings = [
        Finding(
            f"{pair}: this / {options.against}",
            ratio(timings[f"{pair}, this"].core, timings[f"{pair}, other"].core),
            TARGET,
        )
        for pair in PAIRS
    ]
    return finish("host", findings, timings, head, options, "core", methods=SIX, batch_size=BATCH, steps=1)


@contextmanager
def other_tree(here: Path, revision: str) -> Iterator[Path]:
    """A copy of a revision, laid out so that its own methods, suites and figures are what its package finds."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(["git", "archive", revision], cwd=here, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "x"], cwd=folder, input=archive, check=True)
        for name in ("methods", "pairs", "results/published"):
            (Path(folder) / "kdbench" / Path(name).name).symlink_to(Path("..") / name)
        yield Path(folder)


@contextmanager
def stepping(tree: Path) -> Iterator[Callable[[str], tuple[float, float]]]:
    """A process of a tree, as a function from a pair to the seconds of one step: of the CPU's cores, and that passed."""
    command = [sys.executable, "-P", "-W", "ignore", str(Path(__file__).resolve()), ANSWER]
    environment = os.environ | {"PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        asked, answers = process.stdin, process.stdout
        assert asked is not None
        assert answers is not None

        def ask(pair: str) -> tuple[float, float]:
            print(pair, file=asked, flush=True)
            core, wall = json.loads(answers.readline())
            return core, wall

        yield ask


def answer() -> None:
    """Take steps of the cohort of each pair that is asked for, and say how many seconds one took."""
    steppers: dict[str, Stepper] = {}
    for line in sys.stdin:
        pair = line.strip()
        if pair not in steppers:
            setting = make_setting(pair, torch.device("cpu"), BATCH, 64)
            steppers[pair] = Stepper(make_cohort(setting, SIX, make_pipeline(setting), make_teacher(setting)))
            steppers[pair](WARM)
        begun = time.process_time(), time.perf_counter()
        steppers[pair](STEPS)
        print(
            json.dumps([(time.process_time() - begun[0]) / STEPS, (time.perf_counter() - begun[1]) / STEPS]), flush=True
        )


if __name__ == "__main__":
    answer() if sys.argv[1:] == [ANSWER] else sys.exit(main())
