"""The tables of the report's page: what each says, what it is sorted by, and which cell it leads to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlencode

import numpy as np
import pandas as pd

from kdbench.reporting.caption import join_names
from kdbench.reporting.costs import count_text, hours
from kdbench.reporting.frame import Results
from kdbench.reporting.grid import Cell
from kdbench.reporting.leaderboard import Leaderboard
from kdbench.reporting.paired import Comparison, comparable, compare_methods
from kdbench.reporting.table import build_table
from kdbench.reporting.text.leaderboard import (
    EXTENDED_NOTE,
    cost_columns,
    extended_columns,
    p_text,
    ranking_columns,
    signed_text,
)
from kdbench.reporting.text.markup import plain_cell
from kdbench.store.reading import Outcomes
from kdbench.suite.net import FAMILIES as NET_FAMILIES

#: Rows of the comparison within pairs: more make the page slow to open. Those of the first pairs are shown, and it is said.
MAX_COMPARISONS = 600


@dataclass(frozen=True)
class Strip:
    """Points on a line, places from 0 to 1; ``zero``: where no difference is, if it is in sight; ``text``: the same in words."""

    points: tuple[float, ...]
    zero: float | None
    text: str


@dataclass(frozen=True)
class Item:
    """One cell of a table. ``sort``: a number, "" where there is none, None to sort by the text; ``name``: of a row's method."""

    text: str
    href: str = ""
    sort: float | str | None = None
    classes: str = ""
    mark: str = ""
    aside: str = ""
    name: str = ""
    strip: Strip | None = None


@dataclass(frozen=True)
class Heading:
    """Title of a column, and the direction of its first sort; ``name``: of its method."""

    title: str
    text: bool = False
    first: str = "descending"
    name: str = ""


@dataclass(frozen=True)
class PageTable:
    """A table of the page; ``foot`` is never sorted."""

    id: str
    label: str
    title: str
    columns: tuple[Heading, ...]
    rows: tuple[tuple[Item, ...], ...]
    foot: tuple[tuple[Item, ...], ...] = ()
    notes: tuple[str, ...] = ()
    intro: str = ""

    @property
    def heading_id(self) -> str:
        return f"{self.id}-title"


@dataclass
class Links:
    """Where numbers lead: to the first cell of a pair and method, or to the list of cells, filtered."""

    cells: Mapping[tuple[str, str], int]
    titles: Mapping[str, str] = field(default_factory=dict)

    def cell(self, pair: str, method: str) -> str:
        number = self.cells.get((pair, method))
        return "" if number is None else f"#cell-{number}"

    def method(self, method: str) -> str:
        return filtered(method=self.titles[method])

    def pair(self, title: str) -> str:
        return filtered(pair=title)


def filtered(**choice: str) -> str:
    """The address of the list of cells with these filters set."""
    return f"#cells?{urlencode(choice)}"


def leaderboard_table(board: Leaderboard, links: Links, id: str) -> PageTable:
    extended = extended_columns(board)
    columns = [*ranking_columns(board), *cost_columns(board), *extended]
    up = {"#", "average rank", "p (Holm)", "pairs harmed", "step time", "method"}
    up |= {"training hours", "peak memory (MiB)", "extra parameters", "kept at inference"}
    columns.sort(key=lambda c: not c.left)  # the name first, so that it stays in sight when the table is moved sideways
    headings = tuple(Heading(c.title, c.left, "ascending" if c.title in up else "descending") for c in columns)
    rows = []
    for standing in board.standings:
        href = links.method(standing.method)
        row = [Item(columns[0].text(standing), href, aside=standing.family)]
        for column in columns[1:]:
            key = column.key(standing)
            row.append(Item(column.text(standing), href, "" if key is None else float(key)))
        rows.append(tuple(row))
    notes = (*board.notes, *([EXTENDED_NOTE] if extended else []))
    return PageTable(id, "leaderboard", "Leaderboard", headings, tuple(rows), notes=notes)


def matrix_table(frame: pd.DataFrame, results: Results, links: Links, id: str) -> PageTable:
    """Pairs by methods, every number with a link to its first cell."""
    table = build_table(frame, select=results.select)
    pairs, methods = list(results.pair_info), list(results.method_info)
    extra = len(table.columns) - len(methods)  # the teacher's column
    first = "descending" if results.metric.higher_is_better else "ascending"
    headings = [Heading(table.corner, True, "ascending")]
    headings += [
        Heading(c.title + (" (rec.)" if c.reconstruction else ""), first=first, name=name)
        for c, name in zip(table.columns, [""] * extra + methods, strict=True)
    ]
    rows, foot = [], []
    for r, (header, cells) in enumerate(zip(table.rows, table.cells, strict=True)):
        row = []
        for c, cell in enumerate(cells):
            method = methods[c - extra] if c >= extra else None
            if header.kind == "pair":
                href = links.cell(pairs[r], method) if method else ""
            else:
                href = links.method(method) if method else ""
            row.append(_matrix_item(cell, href))
        if header.kind == "pair":
            info = results.pair_info[pairs[r]]
            family = NET_FAMILIES.get(info["student_family"], info["student_family"])
            title = Item(header.title, links.pair(info["title"]), aside=f"{family} student" if family else "")
            rows.append((title, *row))
        else:
            foot.append((Item(header.title), *row))
    notes = [f"{note.mark} {note.text}".strip() for note in table.notes]
    notes.insert(0, "Best in bold, second underlined; teacher and baselines take no part. --: no result (yet).")
    return PageTable(
        id, "pairs by methods", "Pairs by methods", tuple(headings), tuple(rows), tuple(foot), tuple(notes),
        intro=table.caption,
    )  # fmt: skip


def _matrix_item(cell: Cell, href: str) -> Item:
    text = "failed" if cell.kind == "failed" else plain_cell(cell)
    classes = {1: "best", 2: "second"}.get(cell.best, "bad" if cell.kind == "failed" else "")
    sort = float(cell.value) if np.isfinite(cell.value) else ""
    return Item(text, href if text != "--" else "", sort, classes, ",".join(cell.marks))


def metrics_table(results: Results, links: Links, id: str) -> PageTable:
    """All metrics and the cost of each method, over the pairs that all methods with results have."""
    cells = results.cells[results.cells["value"].notna()]
    names = [name for name in results.method_info if (cells["method"] == name).any()]
    have = {name: set(cells.loc[cells["method"] == name, "pair"]) for name in names}
    largest = max(map(len, have.values()), default=0)
    whole = [name for name in names if 2 * len(have[name]) >= largest]
    shared = set.intersection(*(have[name] for name in whole)) if whole else set()
    metrics = [m for m in results.metrics.values() if cells[m.name].notna().any()]
    costs = ("hours in all", "step (ms)", "peak memory (MiB)", "student parameters", "extra parameters", "pairs")
    headings = [
        Heading("method", True, "ascending"),
        *(Heading(m.with_unit(m.name), first="descending" if m.higher_is_better else "ascending") for m in metrics),
        *(Heading(title, first="ascending") for title in costs),
    ]
    rows = []
    for name in names:
        own = cells[cells["method"] == name]
        used = own[own["pair"].isin(shared)] if name in whole else own
        href = links.method(name)
        row = [Item(links.titles[name], href, aside=results.method_info[name]["family"])]
        means = used.groupby("pair")[[m.name for m in metrics]].mean().mean()
        row += [number(float(means[m.name]), f"{{:.{m.decimals + 1}f}}".format, href) for m in metrics]
        row.append(number(hours(own), "{:.3g}".format, href))
        row.append(number(used["step_seconds"].median() * 1e3, "{:.2f}".format, href))
        row.append(number(own["peak_memory_bytes"].max() / 2**20, "{:,.0f}".format, href))
        row += [number(used[c].median(), count_text, href) for c in ("student_parameters", "extra_parameters")]
        row.append(Item(str(used["pair"].nunique()), href, float(used["pair"].nunique())))
        rows.append(tuple(row))
    return PageTable(
        id, "all metrics and cost", "Beyond top-1", tuple(headings), tuple(rows),
        intro="Means over seeds, then over the pairs that all methods have (a method with fewer than half of them: over its "
        "own; see the last column). Last epoch. Hours are of all its cells; a cohort trains several cells at a time.",
    )  # fmt: skip


def number(value: float, text: Callable[[float], str], href: str = "") -> Item:
    """A figure; nothing where it is not known."""
    return Item(text(value), href, float(value)) if np.isfinite(value) else Item("", "", "")


def paired_table(
    board: Leaderboard, outcomes: Outcomes, links: Links, id: str, limit: int = MAX_COMPARISONS
) -> PageTable | None:
    """Each method against the reference within each pair, from stored predictions; None where there is nothing.

    Args:
        limit: comparisons shown.
    """
    if not board.reference:
        return None
    results = board.results
    wanted = comparable(results, board.reference)
    shown = wanted[:limit]
    found = (compare_methods(results, outcomes, pair, name, board.reference) for pair, name in shown)
    comparisons = [one for one in found if one is not None]
    if not comparisons:
        return None
    headings = (
        Heading("pair", True, "ascending"), Heading("method", True, "ascending"), Heading("difference (points)"),
        Heading("95 %, other seeds and images"), Heading("95 %, other images"), Heading("95 %, other seeds"),
        Heading("p, these images", first="ascending"), Heading("only it right"), Heading(f"only {board.reference_display} right"),
        Heading("seeds"),
    )  # fmt: skip
    rows = tuple(_paired_row(one, results, links) for one in comparisons)
    notes = sorted({note for one in comparisons for note in one.notes})
    intro = ""
    if len(wanted) > len(shown):
        pairs = len({pair for pair, _ in shown})
        intro = (
            f"Only {len(shown)} of {len(wanted)} comparisons are shown, those of the first {pairs} of "
            f"{len({pair for pair, _ in wanted})} pairs, so that the page opens quickly. A report of fewer pairs or methods "
            "(kdbench report --pairs ... --methods ...) shows the others."
        )
    return PageTable(
        id, "within each pair", f"Within each pair: each method against {board.reference_display}", headings, rows,
        intro=intro,
        notes=(
            *notes,
            "Other seeds and images: the interval for a claim about this pair and its one trained teacher; images are drawn anew, seeds by "
            "Student's t. Other images: paired bootstrap over test images of these trained networks. Other seeds: Student's t over the "
            "differences of matched seeds. p: McNemar's exact test (over several seeds: sign test over images), without "
            "correction for the number of comparisons; it says nothing about another seed.",
        ),
    )  # fmt: skip


def _paired_row(one: Comparison, results: Results, links: Links) -> tuple[Item, ...]:
    href = links.cell(one.pair, one.first)
    return (
        Item(str(results.pair_info[one.pair]["title"]), href),
        Item(links.titles[one.first], href),
        Item(signed_text(one.difference, 2), href, one.difference),
        *(_limits(limits, href) for limits in (one.over_both, one.over_images, one.over_seeds)),
        Item(p_text(one.p), href, one.p),
        *(Item(f"{count:g}", href, count) for count in np.round([one.only_first, one.only_second], 1).tolist()),
        Item(str(len(one.seeds)), href, float(len(one.seeds))),
    )


def _limits(limits: tuple[float, float], href: str) -> Item:
    """An interval, sorted by its lower end; nothing where there is none."""
    return Item(_span(limits), href, limits[0]) if np.isfinite(limits[0]) else Item("", href, "")


def _span(limits: tuple[float, float]) -> str:
    return f"[{signed_text(limits[0], 2)}, {signed_text(limits[1], 2)}]"


def failures_table(cells: pd.DataFrame, numbers: Sequence[int]) -> PageTable | None:
    """Failed and skipped cells, those of one method and reason together."""
    bad = cells.assign(number=list(numbers))
    bad = bad[bad["state"].isin(["failed", "skipped"]) | ((bad["state"] != "done") & (bad["reason"] != ""))]
    if bad.empty:
        return None
    rows = []
    for (state, method, reason), group in bad.groupby(["state", "method_title", "reason"], sort=True):
        pairs = list(dict.fromkeys(group["pair_title"]))
        rows.append(
            (
                Item(str(method), f"#cell-{group['number'].iloc[0]}"),
                Item(
                    str(state),
                    filtered(method=str(method), state=str(state)),
                    classes="bad" if state == "failed" else "",
                ),
                Item(str(len(group)), filtered(method=str(method), state=str(state)), float(len(group))),
                Item(str(reason) or "no reason was recorded", classes="long"),
                Item(join_names(pairs, 6), classes="long"),
            )
        )
    headings = (
        Heading("method", True, "ascending"), Heading("state", True, "ascending"), Heading("cells"),
        Heading("reason", True, "ascending"), Heading("pairs", True, "ascending"),
    )  # fmt: skip
    return PageTable("failures-table", "failures and skips", "Failures and skips", headings, tuple(rows))


def environment_table(counts: Counter[tuple[str, str]]) -> PageTable | None:
    """What the finished cells ran on."""
    if not counts:
        return None
    rows = tuple(
        (Item(name), Item(value, classes="long"), Item(str(count), sort=float(count)))
        for (name, value), count in sorted(counts.items())
    )
    headings = (Heading("what", True, "ascending"), Heading("which", True, "ascending"), Heading("cells"))
    return PageTable("environment-table", "environment", "Environment", headings, rows)
