"""``kdbench site``: all results of a folder as a static site. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from kdbench.cli import console
from kdbench.cli.options import verb
from kdbench.cli.replay import command_published
from kdbench.cli.tables import results
from kdbench.cli.values import PATH
from kdbench.errors import KdbenchError, NothingError, counted
from kdbench.matrix.request import Request
from kdbench.opening import RefusedFileError, open_file
from kdbench.plugins.registry import catalog
from kdbench.store.layout import FORMAT_FILE
from kdbench.store.rows import load_results
from kdbench.suite.suite import suite_files

if TYPE_CHECKING:
    import pandas as pd

#: Bytes of a file by which it is told whether it holds cells.
_BEGINNING = 4096


@verb("site", "plugins")
@click.argument("folder", type=PATH)
@click.option("--to", type=PATH, required=True, metavar="FOLDER", help="A new folder, or an earlier site to replace.")
def site(request: Request, folder: str, to: str) -> int:
    """Write a static site of all results in FOLDER.

    FOLDER holds run directories, CSV files of cells, and files of kdbench submit, at any depth; other files are passed over.
    """
    import pandas as pd

    from kdbench.reporting.frame import IDENTITY, split_frame
    from kdbench.reporting.html.site import Source, write_site

    damaged: list[str] = []
    found: list[Source] = []
    for path in sources_in(Path(folder)):
        try:
            rows = load_results(path)
        except KdbenchError as error:
            console.note(f"left out: {error}")
            continue
        damaged += rows.attrs["damaged"]
        for frame in split_frame(rows) if len(rows) else []:
            suite, protocol, split = (str(frame[name].iloc[0]) for name in ("suite", "protocol", "split"))
            asked = Request(suite=suite, protocol=protocol, split=split, out=str(path), plugins=request.plugins)
            found += [Source(part, path, select) for part, select in _as_planned(asked, frame, rows)]
        console.say(f"{counted(len(rows), 'cell')} of {path}")
    if not found:
        raise NothingError(f"{folder} holds no run directory, no CSV file of cells and no submission")
    groups: dict[tuple[str, ...], list[Source]] = {}
    for source in found:
        groups.setdefault(tuple(str(source.frame[name].iloc[0]) for name in IDENTITY), []).append(source)
    joined = [
        # Predictions are found below one run directory alone.
        group[0]
        if len(group) == 1
        else Source(pd.concat([one.frame for one in group], ignore_index=True), Path(to), group[0].select)
        for _, group in sorted(groups.items())
    ]
    entries = catalog(request.plugins)
    files = write_site(joined, Path(to), entries, command_published(), damaged)
    console.say(f"{counted(len(files), 'page')}, the first is {files[0]}")
    console.damaged(damaged)
    return 0


def _as_planned(asked: Request, frame: pd.DataFrame, rows: pd.DataFrame) -> list[tuple[pd.DataFrame, str]]:
    """The rows of a suite and protocol with what is planned and not run; as they are where the suite is not known here.

    Args:
        asked: suite, protocol and split.
        frame: their rows, filled.
        rows: all that were read.
    """
    if asked.suite in suite_files():  # a name alone: what is in a stranger's file chooses no path
        try:
            own = rows[(rows["suite"] == asked.suite) & (rows["protocol"] == asked.protocol)]
            frames, select, _ = results(asked, rows=own)
            return [(part, select) for part in frames]
        except KdbenchError:
            pass
    console.note(
        f"suite {asked.suite} or its protocol {asked.protocol} is not known here: what was planned is not known"
    )
    return [(frame, "last")]


def sources_in(folder: Path) -> list[Path]:
    """Run directories, CSV files of cells and submissions in a folder, or itself; links are not followed."""
    if folder.is_file() or (folder / FORMAT_FILE).is_file():
        return [folder]
    if not folder.is_dir():
        raise KdbenchError(f"{folder} does not exist")
    found = []
    for at, folders, files in os.walk(folder):
        here = Path(at)
        if FORMAT_FILE in files:
            found.append(here)
            folders.clear()
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [here / name for name in sorted(files) if _holds_cells(here / name)]
    return found


def _holds_cells(path: Path) -> bool:
    if path.suffix not in (".csv", ".json"):
        return False
    try:
        with open_file(path) as file:
            beginning = file.read(_BEGINNING)
    except (RefusedFileError, OSError):
        return False
    if path.suffix == ".json":
        return b'"kind": "submission"' in beginning
    columns = beginning.partition(b"\n")[0].decode("utf-8", "replace").strip().split(",")
    return {"suite", "protocol", "pair", "method", "seed", "state"} <= {*columns}
