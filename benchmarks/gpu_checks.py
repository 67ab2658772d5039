"""The checks of ``benchmarks.gpu``: each takes the options and returns what it found."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from benchmarks.common import wall_clock
from benchmarks.setting import CLASSES, Stepper, make_cohort, make_pipeline, make_setting, make_teacher
from kdbench.engine.cohort import CohortModel
from kdbench.engine.faults import TooLargeError, free_memory, release
from kdbench.engine.graphs import graphs_of
from kdbench.engine.numerics import set_numerics
from kdbench.launch.mps import start_service
from kdbench.matrix.check import lacking
from kdbench.matrix.request import Request
from kdbench.method import Method
from kdbench.nets.tapped import describe
from kdbench.plugins.registry import catalog
from kdbench.seeding import RandomStream

SIX = ("scratch", "kd", "fitnet", "dist", "ofa", "lfcc")
#: A pair of each kind of student.
PAIRS = ("resnet-l--vit-s", "vit-l--resnet-s", "mixer-l--convnext-s", "vit-l--resmlp-s")
PRECISIONS = ("float32", "bfloat16", "float16")
IMAGES = 2048
#: Of each process of ``matrix``.
MATRIX_STEPS = 100
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


def cohort_of(options: Options, pair: str, methods: Sequence[str], batch: int = 128, **changes: Any) -> CohortModel:
    """Untrained cells of a pair; methods that it does not suit are left out."""
    setting = make_setting(pair, options.device, batch, **{"images": IMAGES, **changes})
    teacher, pipeline = make_teacher(setting), make_pipeline(setting)
    nets = describe(setting.student, CLASSES, "student"), teacher.describe()
    loaded: dict[str, type[Method]] = {name: catalog()[name].load() for name in methods}
    fitting = [name for name, cls in loaded.items() if (lacking(cls, *nets) or cls.supports(*nets)) is None]
    return make_cohort(setting, fitting, pipeline, teacher, settings={"crd": {"num_negatives": 512}})


def record(model: CohortModel, options: Options, streams: int = 1) -> None:
    """Let the steps of a cohort be recorded as CUDA graphs, as a run does."""
    model.graphs = graphs_of(model.cells, options.device, lambda cell, text: None, streams=streams)


def refused(model: CohortModel) -> dict[str, Any]:
    """The cells that are not recorded, with the reasons, if there are any."""
    found = {cell.key: cell.captured for cell in model.cells if isinstance(cell.captured, str)}
    return {"not recorded": found} if found else {}


def timed(options: Options, step: Stepper, warm: int = WARM) -> dict[str, float]:
    """Milliseconds per step, and how many of them the host needs to launch it."""
    clock = wall_clock(options.device)
    step(warm)
    begun = clock()
    step(options.steps)
    host, wall = time.perf_counter() - begun, clock() - begun
    return {"wall_ms": round(1e3 * wall / options.steps, 3), "host_ms": round(1e3 * host / options.steps, 3)}


def side_by_side(work: Callable[[Options, Any], Any], options: Options, tasks: Sequence[Any]) -> list[Any]:
    """What ``work`` finds for each task, one process per core: nothing is timed there."""
    processes = min(len(tasks), os.cpu_count() or 1)
    if processes == 1:
        return [work(options, task) for task in tasks]
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(work, [options] * len(tasks), tasks))


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
    pairs, precisions = (PAIRS, PRECISIONS) if options.cuda else (PAIRS[:1], PRECISIONS[:1])
    tasks = [(pair, precision) for pair in pairs for precision in precisions]
    found = side_by_side(_wrong, options, tasks)
    return {", ".join(task): wrong or "all" for task, wrong in zip(tasks, found, strict=True)}


def _wrong(options: Options, task: tuple[str, str]) -> dict[str, str]:
    pair, precision = task
    wrong = {}
    for name in catalog():
        print(".", end="", file=sys.stderr, flush=True)
        model = cohort_of(options, pair, [name], 32, precision=precision, clip_norm=5.0)
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
    return wrong


def busy(options: Options) -> dict[str, Any]:
    """Cohorts of six, as they are and recorded: wall and host time of a step, its kernels, and wall time / time of the kernels."""
    found: dict[str, Any] = {}
    for pair, precision, batch in itertools.product(PAIRS[:2], PRECISIONS[:2], (128, 512) if options.cuda else (8,)):
        for recorded in (False, True) if options.cuda else (False,):
            model = cohort_of(options, pair, SIX, batch, precision=precision)
            if recorded:
                record(model, options)
            step = Stepper(model)
            entry: dict[str, Any] = timed(options, step, 2 * WARM)
            if options.cuda:
                entry |= kernels(step, options)
                entry["over_kernels"] = round(entry["wall_ms"] / entry["kernels_ms"], 3)
                entry |= refused(model)
            found[f"{pair}, {precision}, batch {batch}, {'recorded' if recorded else 'as they are'}"] = entry
    return found


def kernels(step: Stepper, options: Options, steps: int = 3) -> dict[str, float]:
    """How many kernels a step has, and the milliseconds that they take together."""
    from torch.profiler import ProfilerActivity, profile

    clock = wall_clock(options.device)
    with profile(activities=[ProfilerActivity.CUDA]) as trace:
        step(steps)
        clock()
    found = [event for event in trace.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    total = sum(event.self_device_time_total for event in found)
    return {"kernels": len(found) // steps, "kernels_ms": round(total / 1e3 / steps, 3)}


def streams(options: Options) -> dict[str, Any]:
    """A recorded cohort of six on 1, 2, 3 and 6 streams: times, memory, and by what losses differ from one stream's."""
    found: dict[str, Any] = {}
    for batch in (128, 512):
        alone: dict[str, float] = {}
        for count in (1, 2, 3, 6):
            model = cohort_of(options, PAIRS[0], SIX, batch)
            record(model, options, count)
            torch.cuda.reset_peak_memory_stats(options.device)
            entry: dict[str, Any] = timed(options, Stepper(model), 2 * WARM)
            entry["peak_bytes"] = torch.cuda.max_memory_allocated(options.device)
            entry |= refused(model)
            losses = {cell.key: sum(float(term) for term in cell.meters.last.values()) for cell in model.cells}
            alone = alone or losses
            entry["losses differ by"] = max(abs(losses[key] / alone[key] - 1) for key in alone)
            found[f"batch {batch}, streams {count}"] = entry
    return found


def matrix(options: Options) -> dict[str, Any]:
    """All methods on one pair: cohorts in eight processes that share the GPU, against one eager cell after the other."""
    alone = {}
    all_of_them = cohort_of(options, PAIRS[0], tuple(catalog()))
    for cell in all_of_them.cells:
        one = CohortModel([cell], all_of_them.teacher, all_of_them.pipeline, options.device, all_of_them.on_failure)
        alone[cell.key] = timed(replace(options, steps=3), Stepper(one))["wall_ms"]
    del all_of_them, one
    free_memory(options.device)
    fitting, workers = tuple(alone), 8
    tasks = [fitting[first::workers] for first in range(workers)]
    os.environ.update(start_service())
    context = multiprocessing.get_context("spawn")
    barrier, ends = context.Barrier(workers + 1), context.Queue()
    processes = [context.Process(target=_share, args=(options, task, barrier, ends)) for task in tasks]
    for process in processes:
        process.start()
    barrier.wait(300)
    begun = time.perf_counter()
    with busy_percent() as percent:
        finished = [ends.get(timeout=300) - begun for _ in processes]
        wall = time.perf_counter() - begun
    for process in processes:
        process.join()
    eager, shared = sum(alone.values()), 1e3 * wall / MATRIX_STEPS
    return {
        "methods": len(fitting),
        "eager_ms": round(eager, 1),
        "shared_ms": round(shared, 1),
        "ratio": round(eager / shared, 2),
        "first_and_last_end_s": [round(min(finished), 2), round(max(finished), 2)],
        "gpu_busy_percent": percent,
        "mps": "CUDA_MPS_PIPE_DIRECTORY" in os.environ,
        "eager_ms_of": alone,
    }


def _share(options: Options, names: Sequence[str], barrier: Any, ends: Any) -> None:
    """Steps of a recorded cohort, begun together with other processes."""
    model = cohort_of(options, PAIRS[0], names)
    record(model, options)
    step, clock = Stepper(model), wall_clock(options.device)
    step(2 * WARM)
    clock()
    barrier.wait(300)
    step(MATRIX_STEPS)
    clock()
    ends.put(time.perf_counter())  # the same clock in all processes of a machine


@contextlib.contextmanager
def busy_percent() -> Iterator[list[int]]:
    """What the driver says of how busy the GPU is in the block, five times a second."""
    found: list[int] = []
    words = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "200"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield found
        finally:
            process.terminate()
            found += [int(line) for line in process.communicate()[0].split()]


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


def large(options: Options) -> dict[str, Any]:
    """A cohort of six at 224 px (ResNet-50 to DeiT-Tiny, batches of 64 and 256): float32 without and with TF32, and bfloat16."""
    found: dict[str, Any] = {}
    same: dict[str, Any] = {"augment": {"flip": True}, "pipeline": "device", "suite": "imagenet1k", "images": 256}
    recipes: dict[str, dict[str, Any]] = {
        "float32": {"tf32": "none"},
        "float32 with TF32": {"tf32": "all"},
        "bfloat16": {"precision": "bfloat16"},
    }
    for batch in (64, 256):
        for name, recipe in recipes.items():
            model = cohort_of(options, "resnet50--deit_tiny", SIX, batch, **same, **recipe)
            set_numerics(model.cells[0].spec.recipe, Request())
            record(model, options)
            found[f"{name}, batch {batch}"] = timed(replace(options, steps=10), Stepper(model), 2 * WARM)
        ratio = found[f"float32, batch {batch}"]["wall_ms"] / found[f"bfloat16, batch {batch}"]["wall_ms"]
        found[f"bfloat16 is faster, batch {batch}"] = round(ratio, 2)
    set_numerics(model.cells[0].spec.recipe, Request())
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
    names = tuple(catalog())
    parts = min(8, os.cpu_count() or 1) if options.cuda else 1
    found = side_by_side(_differing, options, [names[first::parts] for first in range(parts)])
    return {
        "refused": {name: why for refused, _ in found for name, why in refused.items()},
        "differ": sorted(name for _, differ in found for name in differ),
    }


def _differing(options: Options, names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS starts
    refused, differ = {}, []
    for name in names:
        print(".", end="", file=sys.stderr, flush=True)
        ends = []
        try:
            for _ in range(2):
                model = cohort_of(options, PAIRS[1], [name], 32)
                if not model.cells:
                    break
                set_numerics(model.cells[0].spec.recipe, Request(deterministic=True))
                Stepper(model)(4)
                ends.append(torch.cat([value.detach().flatten() for value in model.cells[0].student.net.parameters()]))
        except Exception as error:
            refused[name] = f"{type(error).__name__}: {error}".splitlines()[0]
            continue
        finally:
            if model.cells:
                set_numerics(model.cells[0].spec.recipe, Request())
        if ends and not torch.equal(*ends):
            differ.append(name)
    return refused, differ


def runs(options: Options) -> dict[str, list[str]]:
    """The smoke protocol of digits runs by each name of the device, and stops in one line for one that is not there."""
    with tempfile.TemporaryDirectory() as out:
        started = {
            device: subprocess.Popen(
                [sys.executable, "-m", "kdbench", "run", "digits", "--protocol", "smoke", "--methods", "scratch,kd",
                 "--device", device, "--out", f"{out}/{device}"],
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for device in ("cuda", "cuda:0", "cuda:99")
        }  # fmt: skip
        said = {device: process.communicate(timeout=300)[0].strip() for device, process in started.items()}
    return {device: [f"status {started[device].returncode}", *text.splitlines()[-3:]] for device, text in said.items()}
