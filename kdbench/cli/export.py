"""``kdbench export``: a trained student, to be used elsewhere."""

from __future__ import annotations

from pathlib import Path

import click

from kdbench.cli import console
from kdbench.cli.options import verb
from kdbench.cli.values import PATH
from kdbench.matrix.request import Request
from kdbench.store.folders import Store
from kdbench.store.layout import find_cell


@verb("export", "plugins", "out")
@click.argument("cell", type=PATH)
@click.option("--to", type=PATH, required=True, metavar="DIR", help="Where to write it: a new folder.")
@click.option("--onnx", is_flag=True, help="Also write an ONNX graph, compared with torch (extra: kdbench[onnx]).")
def export(request: Request, cell: str, to: str, onnx: bool) -> int:
    """Export the student of a finished cell.

    kdbench.load_student(DIR) loads it.

    CELL is a cell's folder, or TEACHER--STUDENT/METHOD/seedN; where that is ambiguous, with SUITE/PROTOCOL/ before it and -HASH
    after it.
    """
    Store(request.out).check()
    folder = find_cell(Path(request.out), cell)
    from kdbench.students.export import export_student  # torch

    files = export_student(folder, Path(to), onnx, request.plugins)
    for path in files.values():
        console.say(f"{path}  {path.stat().st_size:,} bytes")
    return 0
