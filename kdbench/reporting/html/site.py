"""The site: a first page with all suites, and a page for each method; plain files that any host serves, or a browser opens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from kdbench.errors import KdbenchError
from kdbench.opening import RefusedFileError, inside
from kdbench.plugins.entry import MethodEntry
from kdbench.reporting.classes import class_scores
from kdbench.reporting.html.methods import Shown, method_facts, method_part, published_table
from kdbench.reporting.html.page import part_of_page
from kdbench.reporting.html.render import render
from kdbench.reporting.html.tables import Heading, Item, Links, PageTable
from kdbench.reporting.html.views import board_data, boards_json
from kdbench.reporting.leaderboard import build_leaderboard
from kdbench.reporting.published import load_published
from kdbench.store.files import write_output
from kdbench.store.reading import Outcomes

_TITLE = "kdbench: results"


@dataclass(frozen=True)
class Source:
    """Rows of one suite, protocol and split; the run directory, or the file, that they come from; the figure that is shown."""

    frame: pd.DataFrame
    root: Path
    select: str


class _SiteLinks(Links):
    """Numbers lead to the page of their method."""

    def __init__(self, id: str, titles: Mapping[str, str]) -> None:
        super().__init__({}, titles)
        self.id = id

    def cell(self, pair: str, method: str) -> str:
        return f"{page_of(method)}#{self.id}-method"

    def method(self, method: str) -> str:
        return self.cell("", method)

    def pair(self, title: str) -> str:
        return ""


def page_of(method: str) -> str:
    """Where a method's page is: under its name, which is safe wherever results are read from."""
    return f"methods/{method}.html"


def write_site(
    sources: Sequence[Source], target: Path, entries: Mapping[str, MethodEntry], command: str, damaged: list[str]
) -> list[Path]:
    """Write the site.

    Args:
        sources: what is shown, one suite, protocol and split each.
        target: a new or empty folder, or one that holds an earlier site, which is replaced.
        entries: methods that are known here, for their papers.
        command: the command line that makes it.
        damaged: receives ``FILE: reason`` of what cannot be read.

    Returns:
        The files written, the first page first.

    Raises:
        KdbenchError: if the folder holds something else, or cannot be written.
    """
    _check(target)
    parts: list[dict[str, Any]] = []
    boards: list[Shown] = []
    for source in sources:
        board = build_leaderboard(source.frame, select=source.select, command=command)
        if board.message:
            continue
        id = f"part-{len(boards)}"
        outcomes = Outcomes(source.root, damaged)
        titles = {name: row["title"] for name, row in board.results.method_info.items()}
        classes = tuple(class_scores(board.results, outcomes, by) for by in ("superclass", "class"))
        parts.append(part_of_page(id, source.frame, board, classes, outcomes, _SiteLinks(id, titles)))
        boards.append(Shown(id, parts[-1]["title"], board, classes))
    pages = {"index.html": _first_page(parts, boards, command)}
    published = load_published()
    for name in dict.fromkeys(name for shown in boards for name in shown.board.results.method_info):
        pages[page_of(name)] = _method_page(name, boards, entries.get(name), published, command)
    return [_write(target, path, text) for path, text in pages.items()]


def _first_page(parts: Sequence[dict[str, Any]], boards: Sequence[Shown], command: str) -> str:
    return render(
        "page.html.j2",
        ("views.js",),
        title=_TITLE,
        command=command,
        hashes=[shown.board.results_hash for shown in boards],
        parts=parts,
        methods=_methods_table(boards),
        boards=boards_json([board_data(shown.board, shown.id, page_of) for shown in boards]),
        cells="",
        blocks=[],
    )


def _methods_table(boards: Sequence[Shown]) -> PageTable:
    rows: dict[str, tuple[Item, ...]] = {}
    for shown in boards:
        for name, row in shown.board.results.method_info.items():
            where = sum(name in other.board.results.method_info for other in boards)
            rows[name] = (
                Item(row["display"], page_of(name)), Item(row["family"]), Item(row["fidelity"]), Item(str(where), sort=float(where)),
            )  # fmt: skip
    headings = (
        Heading("method", True, "ascending"), Heading("family", True, "ascending"), Heading("fidelity", True, "ascending"),
        Heading("suites and protocols"),
    )  # fmt: skip
    return PageTable("methods-table", "methods", "Methods", headings, tuple(rows.values()))


def _method_page(
    name: str, boards: Sequence[Shown], entry: MethodEntry | None, published: pd.DataFrame, command: str
) -> str:
    own = [shown for shown in boards if name in shown.board.results.method_info]
    row = own[0].board.results.method_info[name]
    return render(
        "method.html.j2",
        title=row["display"],
        command=command,
        facts=method_facts(name, row, entry),
        parts=[method_part(name, shown) for shown in own],
        published=published_table(name, row["display"], published),
    )


def _check(target: Path) -> None:
    """Refuse a folder that holds anything but an earlier site, whose pages are removed."""
    if not target.exists():
        return
    if not target.is_dir():
        raise KdbenchError(f"--to {target} is no folder")
    first = target / "index.html"
    if any(target.iterdir()) and not (
        first.is_file() and f"<title>{_TITLE}</title>" in first.read_text(encoding="utf-8", errors="replace")
    ):
        raise KdbenchError(f"--to {target} holds something that is no site of kdbench's; give a new or empty folder")
    try:
        for page in inside(target, "methods").glob("*.html"):
            page.unlink()
    except OSError as error:
        raise KdbenchError(f"--to {target} cannot be written ({error.strerror or error})") from None


def _write(target: Path, path: str, text: str) -> Path:
    try:
        file = inside(target, path)
    except RefusedFileError as error:
        raise KdbenchError(f"{target / path} cannot be written ({error})") from None
    write_output(file, text.encode())
    return file
