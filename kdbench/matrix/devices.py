"""What ``--device`` names, and the GPUs of this machine. Nothing here makes a CUDA context, which would take memory on each GPU
and, where a GPU is set to one process (EXCLUSIVE_PROCESS), keep workers away from it."""

from __future__ import annotations

import os
import re
from pathlib import Path

from kdbench.errors import KdbenchError, counted

_EXPECTED = "expected cpu, cuda (all GPUs that $CUDA_VISIBLE_DEVICES shows) or cuda:N (the N-th of them, from 0)"
#: Where the driver lists the GPUs of a machine, whether torch can use them or not.
_DRIVER = Path("/proc/driver/nvidia/gpus")


def index_of(device: str | None) -> int | None:
    """The GPU that a device names; None where it names none.

    Raises:
        KdbenchError: for what is no device.
    """
    if device is None or device in ("cpu", "cuda"):
        return None
    match = re.fullmatch(r"cuda:([0-9]{1,4})", device)
    if match is None:
        raise KdbenchError(f"--device {device}: {_EXPECTED}")
    return int(match[1])


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that CUDA shows to this process, in its order, each as ``$CUDA_VISIBLE_DEVICES`` names it (number, UUID, MIG)."""
    import torch

    count = torch.cuda.device_count()  # what stands behind an invalid name in the variable is not shown
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return tuple(name.strip() for name in named.split(","))[:count] if named else tuple(map(str, range(count)))


def gpus_of(device: str | None) -> tuple[str, ...]:
    """The GPUs of ``visible_gpus`` that the workers of this machine share."""
    if device == "cpu":
        return ()
    index = index_of(device)
    return visible_gpus() if index is None else visible_gpus()[index : index + 1]


def check_device(device: str | None) -> None:
    """Refuse a device that this machine does not have, and the CPU where there are GPUs and it was not asked for.

    Raises:
        KdbenchError: in one line.
    """
    index = index_of(device)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1", "NoDevFiles")
    if device == "cpu" or (device is None and (hidden or not (_DRIVER.is_dir() and any(_DRIVER.iterdir())))):
        return
    import torch

    reason = None
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
    count = torch.cuda.device_count()
    if device is None:
        if reason or not count:
            why = reason or "CUDA shows none"
            raise KdbenchError(f"this machine has a GPU that cannot be used ({why}); --device cpu trains without it")
        return
    if reason or not count:
        raise KdbenchError(f"--device {device}: {reason or 'CUDA shows no GPU'}")
    if index is not None and index >= count:
        raise KdbenchError(
            f"--device {device}: there {'is' if count == 1 else 'are'} {counted(count, 'GPU')}, from cuda:0"
        )
