"""Published top-1 figures as they are shipped, each with its source, and the names by which they are joined."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd

from kdbench.errors import KdbenchError
from kdbench.opening import open_file
from kdbench.reporting.aliases import METHOD_ALIASES, NET_ALIASES
from kdbench.reporting.references import find_published
from kdbench.shown import NAME_LENGTH, printable

COLUMNS = [
    *("paper", "arxiv_id", "table", "dataset", "teacher", "teacher_top1"),
    *("student", "student_top1", "method", "top1", "source", "evidence"),
]
#: Columns that not every file has: empty there, and images of 224 px.
_OPTIONAL = ["selection", "provenance", "note", "image_size"]
_LARGEST = {"teacher_top1": 100, "student_top1": 100, "top1": 100, "image_size": 65_536}


def load_published(folder: Path | str | None = None) -> pd.DataFrame:
    """Read all published figures.

    Args:
        folder: holds the CSV files; by default that of the project. Where the project is not there, no row is returned.

    Returns:
        The columns of the files, numbers as numbers, and the normalised names by which they are joined:
        ``dataset_key``, ``teacher_key``, ``student_key``, ``method_key``.

    Raises:
        KdbenchError: for a folder that does not exist, or a file without the columns.
    """
    chosen = find_published() if folder is None else Path(folder)
    if chosen is not None and not chosen.is_dir():
        raise KdbenchError(f"no folder {chosen} with published figures")
    tables = [_read(path) for path in sorted(chosen.glob("*.csv"))] if chosen else []
    rows = (
        pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*COLUMNS, *_OPTIONAL], dtype=object)
    )
    for name in ("teacher_top1", "student_top1", "top1"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce").astype(float)
    rows["image_size"] = pd.to_numeric(rows["image_size"]).fillna(224)
    rows["dataset_key"] = rows["dataset"].map(plain_name)
    rows["teacher_key"] = rows["teacher"].map(normalise_net)
    rows["student_key"] = rows["student"].map(normalise_net)
    rows["method_key"] = rows["method"].map(normalise_method)
    # Tables that say where their figures come from are those of CNNs, in which FitNet is the hint without KD.
    rows.loc[rows["provenance"].ne("") & rows["method_key"].eq("fitnet-kd"), "method_key"] = "fitnet"
    return rows[rows["top1"].notna()].reset_index(drop=True)


def normalise_net(name: str) -> str:
    """One key per net: ``Swin-T`` and ``swin_tiny_patch4_window7_224.ms_in1k`` are the same."""
    # Without remarks in brackets and timm's tag of the weights. Brackets without a space before them belong to the name:
    # MobileNetV2(HSAKD) is another net.
    bare = plain_name(re.sub(r"\s\(.*?\)", "", name).strip().split(".")[0])
    return _NET_KEYS.get(bare, bare)


def normalise_method(name: str) -> str:
    """One key per method: ``PAT`` and ``fofa`` are the same. Brackets belong to the name: they mark a variant."""
    if name.startswith("released checkpoint"):
        return "teacher"
    return _METHOD_KEYS.get(plain_name(name), plain_name(name))


def _read(path: Path) -> pd.DataFrame:
    try:
        with open_file(path.resolve()) as file:
            table = pd.read_csv(file, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise KdbenchError(f"{path} cannot be read: {error}") from None
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise KdbenchError(f"{path} lacks the columns {', '.join(missing)}")
    table = table.reindex(columns=[*COLUMNS, *_OPTIONAL], fill_value="")
    for name, largest in _LARGEST.items():
        numbers = pd.to_numeric(table[name], errors="coerce")
        wrong = table[name].ne("") & ~numbers.between(0, largest)
        if wrong.any():
            place = int(wrong.argmax())
            shown = printable(table[name].iloc[place], NAME_LENGTH)
            raise KdbenchError(f"{path}, line {place + 2}: {name} is {shown!r}, expected a number from 0 to {largest}")
    return table


def plain_name(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower())


_NET_KEYS = {plain_name(alias): key for key, aliases in NET_ALIASES.items() for alias in (key, *aliases)}
_METHOD_KEYS = {plain_name(alias): key for key, aliases in METHOD_ALIASES.items() for alias in (key, *aliases)}
