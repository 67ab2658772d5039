"""What a GPU has to show in some minutes: that every method runs on it without waiting for it, how busy it is, what lasts bit for bit.

    python -m benchmarks.gpu [--device cuda] [--only NAME ...] [--steps N] [--to FILE]

Each check stands for itself: one that raises is written down with its error, and the next one begins. With ``--device cpu``
those run that need no GPU. The images are made up.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.common import machine, parser, wall_clock
from benchmarks.setting import CLASSES, Stepper, make_cohort, make_pipeline, make_setting, make_teacher
from kdbench.engine.cohort import CohortModel
from kdbench.engine.faults import TooLargeError, free_memory, release
from kdbench.engine.graphs import CohortGraphs, Recorder
from kdbench.engine.numerics import set_numerics
from kdbench.errors import KdbenchError
from kdbench.matrix.request import Request
from kdbench.nets.tapped import describe
from kdbench.plugins.registry import catalog
from kdbench.seeding import RandomStream

SIX = ("scratch", "kd", "fitnet", "dist", "ofa", "lfcc")
#: A pair of each kind of student.
PAIRS = ("resnet-l--vit-s", "vit-l--resnet-s", "mixer-l--convnext-s", "vit-l--resmlp-s")
IMAGES = 2048
#: Steps until libraries have set themselves up and optimisers have their states.
WARM = 3


@dataclass(frozen=True)
class Options:
    """Where and how long."""

    device: torch.device
    steps: int

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"


def cohort_of(options: Options, pair: str, methods: Sequence[str], batch: int = 128, **recipe: Any) -> CohortModel:
    """Untrained cells of a pair; methods that it does not suit are left out."""
    setting = make_setting(pair, options.device, batch, IMAGES, **recipe)
    teacher, pipeline, known = make_teacher(setting), make_pipeline(setting), catalog()
    student = describe(setting.student, CLASSES, "student")
    fitting = [name for name in methods if known[name].load().supports(student, teacher.describe()) is None]
    return make_cohort(setting, fitting, pipeline, teacher, settings={"crd": {"num_negatives": 512}})


def timed(options: Options, step: Stepper) -> dict[str, float]:
    """Milliseconds per step, and how many of them the host needs to launch it."""
    clock = wall_clock(options.device)
    step(WARM)
    begun = clock()
    step(options.steps)
    host, wall = time.perf_counter() - begun, clock() - begun
    return {"wall_ms": round(1e3 * wall / options.steps, 3), "host_ms": round(1e3 * host / options.steps, 3)}


@contextlib.contextmanager
def no_waiting(options: Options) -> Iterator[None]:
    """Whatever waits for the GPU inside the block raises."""
    if not options.cuda:
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def methods(options: Options) -> dict[str, Any]:
    """Every method takes steps on each kind of pair in each precision, none waits for the GPU, and all terms are finite."""
    found = {}
    for pair in PAIRS if options.cuda else PAIRS[:1]:
        for precision in ("float32", "bfloat16", "float16") if options.cuda else ("float32",):
            wrong = {}
            for name in catalog():
                model = cohort_of(options, pair, [name], 32, precision=precision)
                if not model.cells:
                    continue
                step = Stepper(model)
                try:
                    step(2)
                    with no_waiting(options):
                        step(2)
                    model.cells[0].end_epoch(0)
                except Exception as error:
                    wrong[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            found[f"{pair}, {precision}"] = wrong or "all"
    return found


def busy(options: Options) -> dict[str, Any]:
    """Cohorts of six in batches of 128 and 512: wall and host time of a step, and the share of it in which a kernel runs."""
    found: dict[str, Any] = {}
    for pair in PAIRS[:2]:
        for batch in (128, 512):
            step = Stepper(cohort_of(options, pair, SIX, batch))
            entry: dict[str, Any] = timed(options, step)
            if options.cuda:
                from torch.profiler import ProfilerActivity, profile

                clock = wall_clock(options.device)
                with profile(activities=[ProfilerActivity.CUDA]) as trace:
                    begun = clock()
                    step(3)
                    wall = clock() - begun
                kernels = [event for event in trace.events() if event.device_type == torch.autograd.DeviceType.CUDA]
                entry["kernels_per_step"] = len(kernels) / 3
                entry["busy"] = round(sum(event.self_device_time_total for event in kernels) / 1e6 / wall, 3)
            found[f"{pair}, batch {batch}"] = entry
    return found


def random_streams(options: Options) -> dict[str, float]:
    """Microseconds to swap a cell's random stream in and out: without NumPy's, and with."""
    found = {}
    for name, host in (("torch alone", False), ("with NumPy and random", True)):
        stream = RandomStream(1, options.device, host)
        begun = time.perf_counter()
        for _ in range(300):
            with stream.active():
                pass
        found[name] = round((time.perf_counter() - begun) / 300 * 1e6, 1)
    return found


def settings(options: Options) -> dict[str, Any]:
    """The same cohort as it is, with TF32 everywhere, and with cuDNN's fastest algorithms."""
    found = {}
    for name, tf32, searched in (("default", "convolutions", False), ("tf32", "all", False), ("searched", "all", True)):
        model = cohort_of(options, PAIRS[1], SIX, 512, tf32=tf32)
        set_numerics(model.cells[0].spec.recipe, Request(cudnn_benchmark=searched))
        found[name] = timed(options, Stepper(model))
    set_numerics(model.cells[0].spec.recipe.model_copy(update={"tf32": "convolutions"}), Request())
    return found


def graphs(options: Options) -> dict[str, Any]:
    """Recorded steps against steps as they are, in bfloat16: times, and what was not recorded."""
    found: dict[str, Any] = {}
    for batch in (128, 512):
        for recorded in (False, True):
            model = cohort_of(options, PAIRS[0], SIX, batch, precision="bfloat16")
            if recorded:
                model.graphs = CohortGraphs(model.cells, Recorder(options.device), lambda cell, text: None)
            entry: dict[str, Any] = timed(options, Stepper(model))
            entry["not recorded"] = {
                cell.key: cell.captured for cell in model.cells if cell.captured not in (True, None)
            }
            found[f"batch {batch}, {'recorded' if recorded else 'as they are'}"] = entry
    return found


def memory(options: Options) -> dict[str, Any]:
    """A cohort that does not fit raises TooLargeError, after which its memory is free again."""
    free_memory(options.device)
    before = torch.cuda.memory_allocated()
    total = torch.cuda.get_device_properties(options.device).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, (before + 2**29) / total))
    raised = "it fitted"
    try:
        Stepper(cohort_of(options, PAIRS[0], SIX, IMAGES))(1)
    except TooLargeError as error:
        raised = str(error)
        release(error)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    free_memory(options.device)
    return {"too large": raised, "left_bytes": torch.cuda.memory_allocated() - before}


def determinism(options: Options) -> dict[str, Any]:
    """With --deterministic two runs of every method end with the same bits; those without such kernels are named."""
    refused, differ = {}, []
    for name in catalog():
        ends = []
        try:
            for _ in range(2):
                model = cohort_of(options, PAIRS[1], [name], 32)
                set_numerics(model.cells[0].spec.recipe, Request(deterministic=True))
                Stepper(model)(4)
                ends.append(torch.cat([value.detach().flatten() for value in model.cells[0].student.net.parameters()]))
        except Exception as error:
            refused[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        finally:
            if model.cells:
                set_numerics(model.cells[0].spec.recipe, Request())
        if not torch.equal(*ends):
            differ.append(name)
    return {"refused": refused, "differ": differ}


def runs(options: Options) -> dict[str, str]:
    """The smoke protocol of digits runs by each name of the device, and stops in one line for one that is not there."""
    found = {}
    for device in ("cuda", "cuda:0", "cuda:99"):
        with tempfile.TemporaryDirectory() as out:
            words = [sys.executable, "-m", "kdbench", "run", "digits", "--protocol", "smoke", "--methods", "scratch,kd"]
            ended = subprocess.run(
                [*words, "--device", device, "--out", out], capture_output=True, text=True, check=False, timeout=300
            )
        last = (ended.stderr or ended.stdout).strip().splitlines()[-1:]
        found[device] = f"status {ended.returncode}: {''.join(last)}"
    return found


#: What runs, in this order, and whether it needs a GPU.
CHECKS: dict[str, tuple[Callable[[Options], Any], bool]] = {
    "methods": (methods, False),
    "runs": (runs, True),
    "busy": (busy, False),
    "graphs": (graphs, True),
    "random_streams": (random_streams, False),
    "settings": (settings, True),
    "memory": (memory, True),
    "determinism": (determinism, False),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; the exit status is 1 where one raised."""
    arguing = parser(__doc__.splitlines()[0] if __doc__ else "")
    arguing.add_argument("--only", nargs="+", choices=CHECKS, default=list(CHECKS), metavar="NAME")
    arguing.add_argument("--steps", type=int, default=30, help="timed steps")
    given = arguing.parse_args(arguments)
    options = Options(torch.device(given.device), given.steps)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS starts, for determinism
    head = machine(options.device)
    found = []
    for name in given.only:
        check, needs_gpu = CHECKS[name]
        if needs_gpu and not options.cuda:
            continue
        print(f"{name}: {(check.__doc__ or '').strip()}", flush=True)
        begun = time.perf_counter()
        entry: dict[str, Any] = {"check": name, "expected": (check.__doc__ or "").strip()}
        try:
            entry["found"] = check(options)
        except Exception as error:
            traceback.print_exc()
            entry["error"] = f"{type(error).__name__}: {error}".splitlines()[0]
        entry["seconds"] = round(time.perf_counter() - begun, 1)
        print(f"  {json.dumps(entry.get('found', entry.get('error')))}  ({entry['seconds']} s)", flush=True)
        found.append(entry)
        free_memory(options.device)
    if given.to is not None:
        given.to.parent.mkdir(parents=True, exist_ok=True)
        given.to.write_text(json.dumps({"benchmark": "gpu", "machine": head, "checks": found}, indent=2) + "\n")
    return int(any("error" in entry for entry in found))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KdbenchError as problem:
        sys.exit(f"benchmarks.gpu: {problem}")
