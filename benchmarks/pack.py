"""Packs the finished cells of a suite and protocol for ``results/measured``.

    python -m benchmarks.pack RUNS SUITE PROTOCOL FOLDER

``FOLDER/cells.csv`` has a row for each cell, ``curves.csv`` one for each epoch that was evaluated, and ``cells.tar`` the run directory
without weights and logs: unpacked, every verb reads it. The same results give the same bytes.
"""

from __future__ import annotations

import argparse
import io
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pandas as pd

from kdbench.store.layout import FORMAT_FILE, Folder
from kdbench.store.reading import read_history
from kdbench.store.rows import load_results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("runs", type=Path)
    parser.add_argument("suite")
    parser.add_argument("protocol")
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    rows = load_results(options.runs, options.suite, options.protocol)
    rows = rows[rows["state"].isin(["done", "failed", "skipped"])]
    options.folder.mkdir(parents=True, exist_ok=True)
    rows.to_csv(options.folder / "cells.csv", index=False)
    curves_of(options.runs, rows).to_csv(options.folder / "curves.csv", index=False)
    with tarfile.open(options.folder / "cells.tar", "w") as archive:
        for path in _files(options.runs, rows):
            content = path.read_bytes()
            member = tarfile.TarInfo(str(path.relative_to(options.runs)))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    print(f"{len(rows)} cells in {options.folder}")
    return 0


def curves_of(root: Path, rows: pd.DataFrame) -> pd.DataFrame:
    """The histories of cells, one row per epoch that was evaluated."""
    parts = []
    for row in rows[rows["state"] == "done"].to_dict("records"):
        history = pd.DataFrame(read_history(Folder(root / row["path"])))
        parts.append(history.assign(**{name: row[name] for name in ("pair", "method", "seed")}))
    curves = pd.concat(parts, ignore_index=True)
    first = ["pair", "method", "seed", "epoch"]
    return curves[[*first, *(name for name in curves if name not in first)]]


def _files(root: Path, rows: pd.DataFrame) -> Iterator[Path]:
    """Everything but weights, logs and checkpoints, in the order of names."""
    folders = [root / path for path in rows["path"]] + sorted((root / "teachers").iterdir())
    names = ("config.json", "result.json", "history.csv", "predictions.npz", "failed.json", "skipped.json")
    found = [folder / name for folder in folders for name in names] + [
        root / FORMAT_FILE,
        *(root / "datasets").glob("*.json"),
    ]
    return (path for path in sorted(found) if path.is_file())


if __name__ == "__main__":
    sys.exit(main())
