"""Results of older configurations: which cells of a store no plan of today would make, and what differs."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdbench.opening import RefusedFileError
from kdbench.store.files import DamagedFileError, read_json
from kdbench.store.folders import Store
from kdbench.store.layout import cell_name, cell_paths

if TYPE_CHECKING:
    from kdbench.matrix.cells import Cell

#: What a request chooses, or what another teacher has: a cell that differs in these alone is another one, not an older one.
CHOSEN = ("split", "dataset.limit", "method.hyperparameters.", "hooks", "teacher.hash")
#: Differences that are named.
MOST_NAMED = 3


@dataclass(frozen=True)
class Stale:
    """A cell of an older configuration: its folder below the run directory, and how that differs from today's."""

    path: str
    why: str


def stale_cells(store: Store, cells: Iterable[Cell], seeds: Collection[int] = ()) -> list[Stale]:
    """Cells on disk whose method and pair are planned under another configuration now.

    Args:
        cells: as planned now, of any seed: it is no part of their configuration.
        seeds: look at these alone; all where there are none.
    """
    planned: dict[tuple[str, str], list[Cell]] = {}
    for cell in cells:
        planned.setdefault((cell.pair, cell.method), []).append(cell)
    found = []
    suites = {(cell.suite, cell.protocol) for of_row in planned.values() for cell in of_row}
    for suite, protocol in sorted(suites):
        for path in cell_paths(store.root, suite, protocol):
            name = cell_name(path)
            of_row = planned.get((name["pair"], name["method"]), [])
            if not of_row or name["config_hash"] in {cell.hash for cell in of_row}:
                continue
            if seeds and name["seed"] not in seeds:
                continue
            try:
                stored = read_json(store.folder(path).config)["config"]
                changes = differences(stored, json.loads(json.dumps(of_row[0].config, default=list)))
            except (OSError, KeyError, TypeError, AttributeError, DamagedFileError, RefusedFileError):
                continue  # what cannot be read is among what is damaged
            older = {key: change for key, change in changes.items() if not key.startswith(CHOSEN)}
            if older:
                found.append(Stale(path, phrase(older)))
    return found


def differences(stored: Mapping[str, Any], planned: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Fields of two configurations that differ, as ``a.b``, with both values; None for one that is absent."""
    one, other = _flat(stored), _flat(planned)
    return {key: (one.get(key), other.get(key)) for key in (*one, *other) if one.get(key) != other.get(key)}


def _flat(content: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) and value else {f"{prefix}{key}": value}
    return flat


def phrase(changes: Mapping[str, tuple[Any, Any]]) -> str:
    """The first of ``differences``, in words."""
    named = [f"{key} was {old!s:.40}, is {new!s:.40}" for key, (old, new) in list(changes.items())[:MOST_NAMED]]
    rest = len(changes) - len(named)
    return "; ".join(named) + (f"; and {rest} more" if rest > 0 else "")


def taught_with(
    store: Store, suite: str, protocol: str, pairs: Collection[str], untaught: Collection[str]
) -> dict[tuple[str, str], dict[str, int]]:
    """Checksums of the teachers behind the done cells of pairs, with the number of cells of each.

    Args:
        untaught: methods without a teacher, whose cells do not count.

    Returns:
        by pair and hash of the teacher.
    """
    found: dict[tuple[str, str], dict[str, int]] = {}
    for path in cell_paths(store.root, suite, protocol):
        name = cell_name(path)
        if name["pair"] not in pairs or name["method"] in untaught:
            continue
        try:
            result = store.folder(path).look().result
        except RefusedFileError:
            continue
        if result is not None:
            counts = found.setdefault((name["pair"], result.teacher.hash), {})
            counts[result.teacher.checksum] = counts.get(result.teacher.checksum, 0) + 1
    return found


def unused_teachers(store: Store, kept: Collection[str], gone: Collection[str]) -> list[str]:
    """Folders of teachers that no cell names.

    Args:
        kept: folders of teachers that a plan needs.
        gone: folders of cells that do not count.
    """
    used = set(kept)
    for path in cell_paths(store.root):
        if path in gone:
            continue
        try:
            teacher = read_json(store.folder(path).config)["config"]["teacher"]
            used.add(f"teachers/{teacher['name']}-{teacher['hash']}")
        except (OSError, KeyError, TypeError, DamagedFileError, RefusedFileError):
            return []  # it may be taught by any of them
    folder = store.root / "teachers"
    if folder.is_symlink() or not folder.is_dir():
        return []
    names = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    return [f"teachers/{name}" for name in names if f"teachers/{name}" not in used]


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder; links are not followed."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir() or path.is_symlink())
