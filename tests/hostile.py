"""A run directory of somebody else's: sound cells beside cells of which one file, or one field of a file, is odd."""

from __future__ import annotations

import functools
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdbench.matrix.cells import Plan
from kdbench.store.files import encode_json
from tests.reporting.large import large_plan, write_large

#: Names and texts that steer terminals, read otherwise than they are, are formulas, or have no end.
NAMES = (
    "\x1b]0;pwned\x07\x1b[2Jx",
    "a\u202eb\u2066c",
    "=cmd|' /C calc'!A0",
    "x" * 5000,
    "\udc80\r\n\u2028",
    "$\\frac{&%#_^~",
)
#: What no field of a number or a text should hold.
ODD: tuple[Any, ...] = (None, True, [], {}, [[]], "", "abc", -1, 1e308, -1e308, 10**400, 10**30, "\0", *NAMES)


@functools.cache
def _plan(cells: int) -> Plan:
    return large_plan(cells=cells)


def write_run(root: Path, sound: int, more: int = 0) -> list[Path]:
    """A run directory of digits with that many finished cells; the folders of ``more`` further ones, to be damaged."""
    plan = _plan(sound + more)
    write_large(root, plan, sound + more)
    return [root / cell.folder for cell in plan.cells[sound : sound + more]]


def change(path: Path, at: tuple[Any, ...], value: Any) -> None:
    """Change one field of a file of JSON, and its checksum with it: who writes a file by hand can do that."""
    content = json.loads(path.read_bytes())
    content.pop("file_checksum")
    inner = content
    for key in at[:-1]:
        inner = inner[key]
    inner[at[-1]] = value
    path.write_bytes(encode_json(content))


def _replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        make(folder / name)

    return damage


def _field(name: str, at: tuple[Any, ...], value: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / name, at, value)


def _deep(levels: int) -> Any:
    """A mapping in a mapping in a mapping: as deep as a parser reads, and deeper than what walks through it can go."""
    value: Any = 1
    for _ in range(levels):
        value = {"a": value}
    return value


TOP1 = ("metrics", "last", "top1")
#: What can be wrong with a cell so that tables cannot show it.
CELLS: dict[str, Callable[[Path], object]] = {
    "facts are a list": _field("config.json", ("facts",), []),
    "a seed of thirty digits": lambda folder: folder.rename(folder.with_name(f"seed{10**30}-{folder.name[-10:]}")),
    "a seed that is none": lambda folder: folder.rename(folder.with_name(f"seedx-{folder.name[-10:]}")),
    "an accuracy that is text": _field("result.json", TOP1, "abc"),
    "an accuracy of 1e308": _field("result.json", TOP1, 1e308),
    "an accuracy of 10**400": _field("result.json", TOP1, 10**400),
    "a cost beyond all bounds": _field("result.json", ("cost", "steps"), 10**30),
    "a setting in settings in settings": _field(
        "config.json", ("config", "method", "hyperparameters"), {"a": _deep(600)}
    ),
    "epochs without end": _field("config.json", ("config", "recipe", "epochs"), 10**30),
    "the suite of another": _field("config.json", ("config", "suite"), "other"),
    "the hash of another": _field("result.json", ("hash",), "0" * 10),
    "a pipe": _replaced("result.json", os.mkfifo),
    "a folder": _replaced("config.json", Path.mkdir),
    "a link": _replaced("result.json", lambda path: path.symlink_to("/etc/hostname")),
    "a link to itself": _replaced("config.json", lambda path: path.symlink_to(path)),
    "no configuration": _replaced("config.json", lambda path: None),
    "lists in lists": _replaced("result.json", lambda path: path.write_text("[" * 100_000)),
    "a hole of a terabyte": _replaced("result.json", lambda path: (path.touch(), os.truncate(path, 1 << 40))),
    "a cut file": _replaced("config.json", lambda path: path.write_text("{")),
    "a metric named as one of ours": _field(
        "result.json",
        ("plugin_metrics",),
        {"top1": {"title": "x", "unit": "", "higher_is_better": True, "decimals": 1, "tie_band": 0}},
    ),
    "a metric named as a column": _field("result.json", ("plugin_metrics",), {"method": {}}),
}


def sound_columns(count: int = 30) -> dict[str, np.ndarray]:
    return {
        "correct": np.arange(count) % 3 > 0,
        "probability": np.full(count, 0.5, np.float32),
        "label": np.arange(count, dtype=np.int32) % 10,
    }


def write_predictions(path: Path, **columns: Any) -> None:
    """A file of 30 predictions, with some of its columns changed."""
    np.savez_compressed(path, **{**sound_columns(), **columns})


def _header_of(shape: str) -> Callable[[Path], None]:
    """Predictions one of whose columns claims another shape than it has."""

    def write(path: Path) -> None:
        write_predictions(path)
        with zipfile.ZipFile(path) as archive:
            members = {name: archive.read(name) for name in archive.namelist()}
        members["label.npy"] = members["label.npy"].replace(
            b"(30,), }" + b" " * (len(shape) - 5), f"{shape}, }}".encode()
        )
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)

    return write


def _compressed_as(method: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        write_predictions(path)
        body = bytearray(path.read_bytes())
        for sign, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
            at = -1
            while (at := body.find(sign, at + 1)) >= 0:
                body[at + place] = method
        path.write_bytes(body)

    return write


def _broken(path: Path) -> None:
    write_predictions(path)
    body = bytearray(path.read_bytes())
    body[60:90] = bytes(30)
    path.write_bytes(body)


def _changed(**columns: Any) -> Callable[[Path], None]:
    return lambda path: write_predictions(path, **columns)


#: What can be wrong with predictions.
PREDICTIONS: dict[str, Callable[[Path], object]] = {
    "a broken member": _broken,
    "an unknown compression": _compressed_as(77),
    "a shape of 10**12": _header_of("(1000000000000,)"),
    "labels of 3e9": _changed(label=np.full(30, 3_000_000_000, np.uint32)),
    "negative labels": _changed(label=np.full(30, -1)),
    "probabilities that are none": _changed(probability=np.full(30, np.nan)),
    "complex probabilities": _changed(probability=np.full(30, 1j)),
    "columns of two lengths": _changed(label=np.zeros(7, int)),
    "objects": lambda path: write_predictions(path, label=np.array([{}] * 30)),
    "a pipe": os.mkfifo,
    "a folder": Path.mkdir,
    "a link": lambda path: path.symlink_to("/etc/hostname"),
    "text": lambda path: path.write_text("no archive"),
}
