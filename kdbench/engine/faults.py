"""What an exception during training means: too little memory, a device that is lost, or a failure of one cell."""

from __future__ import annotations

import errno
import gc
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from kdbench.engine.meters import NonFiniteLossError
from kdbench.errors import DeviceLostError, KdbenchError

#: How torch, CUDA and its libraries say that memory is short. cuDNN finds no algorithm, and cuBLAS and cuDNN do not start, when
#: their work space cannot be had.
_MEMORY = (
    "out of memory", "not enough memory", "can't allocate memory", "cannot allocate memory", "failed to allocate",
    "bad_alloc", "alloc_failed", "allocation_failed", "unable to find an engine",
    "cublas_status_not_initialized", "cudnn_status_not_initialized",
)  # fmt: skip
#: Errors of CUDA after which every call of the process fails (the CUDA driver API's list of errors that leave it inconsistent).
_LOST = (
    "device-side assert", "illegal memory access", "illegal address", "misaligned address", "illegal instruction",
    "invalid program counter", "invalid address space", "operation not supported on global/shared address space",
    "hardware stack error", "launch failure", "launch timed out", "uncorrectable ecc", "execution_failed",
)  # fmt: skip


class TooLargeError(KdbenchError):
    """Too little memory for these cells on a whole batch.

    Args:
        what: it was needed for.
        details: the traceback.
        smaller: whether a part of a batch needs less.
    """

    def __init__(self, what: str, details: str, smaller: bool) -> None:
        super().__init__(what)
        self.details = details
        self.smaller = smaller


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those that it was raised from, or while handling which."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory was too small, on a GPU or the host."""
    return any(_says_memory(each) for each in chain(error))


def _says_memory(error: BaseException) -> bool:
    if isinstance(error, (torch.OutOfMemoryError, MemoryError, TooLargeError)):
        return True
    if isinstance(error, OSError) and error.errno == errno.ENOMEM:
        return True
    return not isinstance(error, KdbenchError) and any(words in str(error).lower() for words in _MEMORY)


def is_device_lost(error: BaseException) -> bool:
    """Whether an exception says that a GPU's state is lost to this process (a device assert, an illegal address)."""
    return any(
        isinstance(each, DeviceLostError)
        or (isinstance(each, RuntimeError) and any(words in str(each).lower() for words in _LOST))
        for each in chain(error)
    )


def sentence(error: BaseException) -> str:
    """The first line of an exception, with its class where that says something."""
    text = str(error) if isinstance(error, (KdbenchError, DeviceLostError)) else f"{type(error).__name__}: {error}"
    return next(iter(text.strip().splitlines()), type(error).__name__)


def release(error: BaseException | None) -> None:
    """Clear the frames that an exception and its causes remember: their variables hold nets that have to be freed."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__


def free_memory(device: torch.device) -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


@dataclass(frozen=True)
class CellFailure:
    """Why a cell failed: the kind, a sentence, the number of epochs it had completed, and the traceback."""

    kind: str
    reason: str
    epoch: int
    details: str


def judge(error: Exception, what: str, epoch: int = 0) -> CellFailure:
    """The failure of a cell whose work raised ``error``.

    Args:
        what: that was done, as in "too little memory for a step of X".

    Raises:
        TooLargeError: if memory was short: smaller groups and batches may fit.
        DeviceLostError: if the device is lost, which may be another cell's doing.
    """
    if is_device_lost(error):
        raise DeviceLostError(f"{sentence(error)} (in {what})") from error
    if isinstance(error, TooLargeError):
        raise error
    details = "".join(traceback.format_exception(error))
    if is_out_of_memory(error):
        raise TooLargeError(what, details, what.startswith(("a step", "a forward pass"))) from error
    kind = "non-finite loss" if isinstance(error, NonFiniteLossError) else "exception"
    return CellFailure(kind, sentence(error), epoch, details)
