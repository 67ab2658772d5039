"""NVIDIA's Multi-Process Service (MPS): workers that share a GPU run their kernels side by side instead of in turns."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

_CONTROL = "nvidia-cuda-mps-control"
_PIPES = "CUDA_MPS_PIPE_DIRECTORY"
#: Where a service is found that was started without this variable.
_USUAL = "/tmp/nvidia-mps"  # noqa: S108 - NVIDIA's choice
#: No service is found here: a process has its GPU to itself as far as faults go, and shares it in turns.
WITHOUT = {_PIPES: os.devnull}


def can_share(gpus: Sequence[str]) -> bool:
    """Whether workers of one GPU can share it through MPS; parts of a GPU (MIG) would need a service each."""
    return shutil.which(_CONTROL) is not None and not any(gpu.startswith("MIG") for gpu in gpus)


@functools.cache
def start_service() -> dict[str, str]:
    """Start MPS until this process ends; one that runs already is used.

    Returns:
        environment variables by which workers find it; none where it does not start: they take turns.
    """
    if Path(os.environ.get(_PIPES, _USUAL), "control").exists():
        return {}
    folder = tempfile.mkdtemp(prefix="kdbench-mps-")
    found = {_PIPES: folder, "CUDA_MPS_LOG_DIRECTORY": folder}
    # The service numbers GPUs anew when only some are shown to it: it sees all, and workers one each.
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | found
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    try:
        subprocess.run([_CONTROL, "-d"], env=environment, check=True, capture_output=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return {}
    atexit.register(subprocess.run, [_CONTROL], input=b"quit\n", env=environment, check=False, capture_output=True)
    return found
