"""Where a number comes from: code, versions, device. No environment variables, no user names."""

from __future__ import annotations

import contextlib
import functools
import importlib.metadata
import platform
import subprocess
import warnings
from pathlib import Path
from typing import Any

import torch

from kdbench.store.result import timestamp

_PACKAGES = ("torch", "torchvision", "timm", "mmengine", "numpy", "pillow")


#: Changes of these are no changes of what runs.
NOT_CODE = (":(exclude)results", ":(exclude)docs")


def provenance(device: torch.device) -> dict[str, Any]:
    """Versions, git state, device and time of a result."""
    return {
        "kdbench": importlib.metadata.version("kdbench"),
        **git_state(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in _PACKAGES},
        "device": device_name(device),
        "device_type": device.type,
        "gpu": gpu_settings() if device.type == "cuda" else {},
        "threads": torch.get_num_threads(),
        "finished": timestamp(),
    }


def gpu_settings() -> dict[str, Any]:
    """Versions of CUDA, cuDNN and the driver, and the settings of theirs on which last bits depend."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch have another name for these, older ones only this
        may = {"products": matmul.allow_tf32, "convolutions": cudnn.allow_tf32}
    driver = ""
    with contextlib.suppress(OSError):
        driver = Path("/sys/module/nvidia/version").read_text().strip()
    return {
        "cuda": torch.version.cuda or "",
        "cudnn": cudnn.version() or 0,
        "driver": driver,
        "tf32": [name for name, allowed in may.items() if allowed],
        "cudnn_benchmark": cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }


@functools.lru_cache(maxsize=1)
def git_state() -> dict[str, Any]:
    """Commit of kdbench's source and whether it was changed since; None when it was not run from a clone."""
    root = Path(__file__).resolve().parents[2]
    unknown: dict[str, Any] = {"commit": None, "dirty": None}
    if not (root / ".git").exists():
        return unknown
    try:
        commit = subprocess.run(
            ["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        )
        changes = subprocess.run(
            ["git", "-C", str(root), "status", "--porcelain", "--untracked-files=no", "--", ".", *NOT_CODE],
            capture_output=True, text=True, timeout=10, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return unknown
    return {"commit": commit.stdout.strip(), "dirty": bool(changes.stdout.strip())}


@functools.lru_cache(maxsize=4)
def device_name(device: torch.device) -> str:
    """Name of the GPU, or of the processor with its number of cores."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    except OSError:
        pass
    return name
