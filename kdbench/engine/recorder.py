"""All that CUDA graphs ask of CUDA: streams, memory, recordings, and what makes the host wait."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from kdbench.seeding import RandomStream

#: Recordings that CUDA declared invalid: the allocators of some versions of torch keep their address.
_invalid: list[Any] = []


class Recorder:
    """Records on a stream of a CUDA device.

    Everything of a cell runs on one stream, not the default one: nodes of autograd remember the stream that they were made on,
    and a recording must not touch another. All graphs of a stream share their memory: they run one after the other, and what
    outlives one (the teacher's outputs) is held while the others are recorded.

    Args:
        device: the device.
        number: of the stream.
    """

    def __init__(self, device: torch.device, number: int = 0) -> None:
        self.device = torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)
        self.number = number
        self.stream = _stream(self.device, number)
        self.pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def active(self, lanes: Sequence[Recorder] = ()) -> Iterator[None]:
        """What happens inside follows what came before, and what comes after follows it and what ``lanes`` were given."""
        outside = torch.cuda.current_stream(self.device)

        def end() -> None:
            for lane in lanes:
                self.join(lane)
            outside.wait_stream(self.stream)

        self.stream.wait_stream(outside)
        try:
            with torch.cuda.stream(self.stream):
                yield
        except BaseException:
            with contextlib.suppress(Exception):  # a lost device refuses this too
                end()
            raise
        end()

    @contextlib.contextmanager
    def after(self, other: Recorder) -> Iterator[None]:
        """What happens inside follows what the other's stream has been given so far, and runs beside what it is given next."""
        self.join(other)
        with torch.cuda.stream(self.stream):
            yield

    def join(self, other: Recorder) -> None:
        """What follows on this stream waits for what the other has been given; the host does not."""
        self.stream.wait_stream(other.stream)

    @contextlib.contextmanager
    def waits(self) -> Iterator[list[str]]:
        """Places in the block that wait for the device, listed when it ends."""
        found, before = list[str](), torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode(before)
        for warning in caught:
            if "synchronizing CUDA operation" in str(warning.message):
                found.append(f"{Path(warning.filename).name}:{warning.lineno}")
            elif "Synchronization debug mode" not in str(warning.message):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    def record(self, work: Callable[[], object], stream: RandomStream) -> Callable[[], None]:
        """Record what ``work`` would do, drawing from ``stream``; what is returned does it."""
        graph = torch.cuda.CUDAGraph()
        failure: Exception | None = None
        # Threads that load data may use CUDA meanwhile.
        capture = torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local")
        try:
            with stream.active(), capture:
                try:
                    work()
                except Exception as error:
                    failure = error
        except Exception as error:  # CUDA has declared the recording invalid, and torch has not put away its part of it
            failure = failure or error
            _invalid.append(graph)
            with contextlib.suppress(Exception):
                graph.reset()
            with contextlib.suppress(Exception):
                torch._C._cuda_endAllocateToPool(self.device.index, self.pool)
            stream.renew()
        if failure is not None:
            if self.number:  # torch refuses a pool with tensors and no graph; the teacher's is in the first stream's
                self.pool = torch.cuda.graph_pool_handle()
            try:
                raise failure
            finally:
                del failure  # its traceback holds this frame, and the step's tensors
        return graph.replay


@functools.cache
def _stream(device: torch.device, number: int) -> torch.cuda.Stream:
    """The same for all cohorts of a process: cuBLAS keeps memory for each stream that it has seen."""
    return torch.cuda.Stream(device)
