"""Checkpoint files: a header with length and SHA-256, then tensors and plain values that load without running code."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from kdbench.opening import read_file
from kdbench.store.files import DamagedFileError, write_bytes
from kdbench.store.folders import CellFolder

_MAGIC = "kdbench-checkpoint"


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, lists, dicts), whole or not at all."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    body = buffer.getvalue()
    header = {"kind": _MAGIC, "version": 1, "length": len(body), "sha256": hashlib.sha256(body).hexdigest()}
    write_bytes(path, json.dumps(header).encode() + b"\n" + body)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read what ``save_checkpoint`` wrote, with ``weights_only=True``.

    Raises:
        DamagedFileError: if the file is cut, altered or no checkpoint.
    """
    try:
        head, _, body = read_file(path, None).partition(b"\n")
        header = json.loads(head)
        if (
            header["kind"] != _MAGIC
            or header["length"] != len(body)
            or header["sha256"] != hashlib.sha256(body).hexdigest()
        ):
            raise DamagedFileError(path, "length or checksum does not match")
        return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except DamagedFileError:
        raise
    except Exception as error:
        raise DamagedFileError(path, type(error).__name__) from None


class Position(NamedTuple):
    """A moment of a training: epochs that are complete, and steps of the epoch after them."""

    epoch: int = 0
    step: int = 0


def checkpoint_position(path: Path) -> Position:
    """What a checkpoint file holds, by its name."""
    epoch, _, step = path.stem.partition("-")[2].partition("_")
    return Position(int(epoch), int(step or 0))


def load_checkpoints(folder: CellFolder) -> dict[Position, dict[str, Any]]:
    """All sound checkpoints of a cell by position; damaged ones are removed and reported in the cell's log."""
    sound = {}
    for path in folder.checkpoints():
        try:
            sound[checkpoint_position(path)] = load_checkpoint(path)
        except (DamagedFileError, ValueError) as error:
            folder.say(f"checkpoint ignored: {error}")
            path.unlink(missing_ok=True)
    return sound


def common_start(available: dict[str, set[Position]]) -> dict[Position, list[str]]:
    """Group cells by the position from which they go on together.

    All cells of an interrupted cohort share the last position that every one of them has saved. A cell without a
    checkpoint (it was damaged, or is new) starts from the beginning on its own and does not hold the others back.

    Args:
        available: name of a cell -> positions of its sound checkpoints.

    Returns:
        start -> names, latest start first.
    """
    saved = {name: positions for name, positions in available.items() if positions}
    groups: dict[Position, list[str]] = {}
    common = set.intersection(*saved.values()) if saved else set()
    for name, positions in available.items():
        start = Position() if not positions else max(common) if common else max(positions)
        groups.setdefault(start, []).append(name)
    return dict(sorted(groups.items(), reverse=True))
