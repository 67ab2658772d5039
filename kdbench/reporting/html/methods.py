"""A method's page of the site: every pair with its seeds, classes, cost, paper, fidelity, published figures."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from kdbench.plugins.entry import MethodEntry
from kdbench.reporting.classes import ClassScores
from kdbench.reporting.costs import count_text
from kdbench.reporting.frame import matched
from kdbench.reporting.html.tables import Heading, Item, PageTable, Strip, number
from kdbench.reporting.leaderboard import Leaderboard
from kdbench.reporting.published import normalise_method
from kdbench.reporting.standing import Standing
from kdbench.reporting.text.leaderboard import p_text, signed_text

#: Classes shown of those with the lowest, and of those with the highest gains.
MOST_CLASSES = 10


@dataclass(frozen=True)
class Shown:
    """A board of the site: its section ``id``, its title, and accuracy by class."""

    id: str
    title: str
    board: Leaderboard
    classes: tuple[ClassScores, ...]


def method_facts(name: str, row: Mapping[str, Any], entry: MethodEntry | None) -> list[tuple[str, str]]:
    """What a method is, in pairs of a term and its value; ``row``: as of ``Results.method_info``."""
    facts = [("name", name), ("family", row["family"]), ("fidelity", row["fidelity"])]
    if entry is None:
        return [*facts, ("source", "a plugin that is not here")]
    cited = entry.citation
    paper = f"{_names(cited['authors'])}: {cited['title']}. {cited['venue']}, {cited['year']}" if cited else entry.paper
    facts += [("paper", paper), ("arXiv", cited.get("arxiv", "")), ("variant of", entry.variant_of)]
    return [(term, text) for term, text in facts if text]


def _names(authors: str) -> str:
    """ "Surname, Given and Surname, Given" as people write it."""
    names = [" ".join(reversed(name.strip("{}").split(", "))) for name in authors.split(" and ")]
    return ", ".join(names).replace(", others", " and others")


def method_part(name: str, shown: Shown) -> dict[str, Any]:
    """The section of one suite and protocol."""
    board = shown.board
    standing = next(one for one in board.standings if one.method == name)
    tables = [pairs_table(board, name, f"{shown.id}-pairs")]
    tables += [
        table
        for scores in shown.classes
        if (table := class_gains_table(scores, name, board, f"{shown.id}-{scores.by}")) is not None
    ]
    return {
        "id": f"{shown.id}-method", "there": shown.id, "title": shown.title, "tables": tables,
        "facts": standing_facts(board, standing),
    }  # fmt: skip


def standing_facts(board: Leaderboard, standing: Standing) -> list[tuple[str, str]]:
    """Place, gain, tests and cost, as far as they are known."""
    signed = functools.partial(signed_text, decimals=board.decimals)
    over = f"gain over {board.reference_display}"
    facts = [("mean", f"{standing.mean:.{board.decimals}f}" if np.isfinite(standing.mean) else "")]
    facts += [("rank", str(standing.rank or ""))]
    if board.reference and standing.method != board.reference and np.isfinite(standing.gain):
        facts += [(over, signed(standing.gain))]
        if np.isfinite(standing.low):
            facts += [("95 % interval", f"[{signed(standing.low)}, {signed(standing.high)}]")]
        facts += [("win/tie/loss", f"{standing.wins}/{standing.ties}/{standing.losses}")]
        if standing.p_holm is not None and standing.attainable:
            facts += [("p (Holm)", p_text(standing.p_holm))]
    if standing.harmed:
        facts += [("pairs harmed", f"{standing.harmed[0]}/{standing.harmed[1]}")]
    costs: tuple[tuple[str, float, Callable[[float], str]], ...] = (
        ("step time", standing.step_ratio, "{:.2f} × scratch".format),
        ("training hours", standing.hours, "{:.3g}".format),
        ("peak memory (MiB)", standing.peak_memory / 2**20, "{:,.0f}".format),
        ("extra parameters", standing.extra_parameters, count_text),
        ("kept at inference", standing.inference_parameters, count_text),
    )
    facts += [(term, text(value)) for term, value, text in costs if np.isfinite(value)]
    facts += [("cells", f"{standing.cells[0]} of {standing.cells[1]}")]
    return [(term, text) for term, text in facts if text]


def pairs_table(board: Leaderboard, name: str, id: str) -> PageTable:
    """Each pair of a method: mean, gains, and a point for each seed."""
    results = board.results
    against = board.reference if board.reference and board.reference != name else ""
    done = results.cells[results.cells["value"].notna()]
    points = done.loc[done["method"] == name, ["pair", "seed", "value"]]
    if against:
        points = matched(done, against, ["value"])
        points = points.loc[points["method"] == name, ["pair", "seed", "value"]]
        points = points.assign(value=results.metric.sign * points["value"])
    gains = {base: results.gains(base) for base in (against, "scratch") if base and base != name}
    titles = {against: f"gain over {board.reference_display}", "scratch": "over scratch"}
    headings = [
        Heading("pair", True, "ascending"), Heading(results.metric.with_unit("mean")), Heading("sd", first="ascending"),
        *(Heading(titles[base]) for base in gains), Heading("by seed" if not against else "gain by seed", True), Heading("seeds"),
    ]  # fmt: skip
    signed = functools.partial(signed_text, decimals=board.decimals)
    values = points["value"].to_numpy(float)
    span = _span([*values, 0.0] if against else values)
    rows = []
    for pair, info in results.pair_info.items():
        score = results.score_info.get((pair, name))
        if score is None:
            continue
        own = points[points["pair"] == pair].sort_values("seed")
        rows.append(
            (
                Item(str(info["title"])),
                number(score["mean"], f"{{:.{board.decimals}f}}".format) if score["n"] else Item(str(score["state"])),
                number(score["sd"], f"{{:.{board.decimals}f}}".format),
                *(
                    number(float(found[name].get(pair, np.nan)) if name in found else np.nan, signed)
                    for found in gains.values()
                ),
                Item("", sort="", strip=_strip(own, span, bool(against), signed)),
                Item(str(score["n"]), sort=float(score["n"])),
            )
        )
    return PageTable(id, "pairs", "Pairs", tuple(headings), tuple(rows))


def _span(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    low, high = (float(min(values)), float(max(values))) if len(values) else (0.0, 1.0)
    return low, high if high > low else low + 1.0


def _strip(points: pd.DataFrame, span: tuple[float, float], zero: bool, signed: Any) -> Strip | None:
    if points.empty:
        return None
    low, high = span

    def place(value: float) -> float:
        return round((value - low) / (high - low), 4)

    words = ", ".join(
        f"seed {seed}: {signed(value) if zero else f'{value:.2f}'}"
        for seed, value in zip(points["seed"], points["value"], strict=True)
    )
    return Strip(tuple(map(place, points["value"])), place(0.0) if zero else None, words)


def class_gains_table(scores: ClassScores, name: str, board: Leaderboard, id: str) -> PageTable | None:
    """The classes on which a method loses and gains most; None where there is nothing to compare."""
    if scores.message or not scores.reference or name == scores.reference or name not in scores.methods:
        return None
    gains = scores.gains()[:, scores.methods.index(name)]
    order = [int(i) for i in np.argsort(gains, kind="stable") if np.isfinite(gains[i])]
    if len(order) < 2:
        return None
    left_out = max(0, len(order) - 2 * MOST_CLASSES)
    if left_out:
        order = order[:MOST_CLASSES] + order[-MOST_CLASSES:]
    base = scores.methods.index(scores.reference)
    rows = tuple(
        (
            Item(scores.names[i], aside=scores.above[i]),
            number(float(scores.images[i]), "{:.0f}".format),
            number(float(scores.accuracy[i, base]), "{:.1f}".format),
            number(float(gains[i]), functools.partial(signed_text, decimals=1)),
        )
        for i in order
    )
    headings = (
        Heading(scores.by, True, "ascending"), Heading("images"), Heading(f"{board.reference_display} (%)"), Heading("gain"),
    )  # fmt: skip
    intro = f"Lowest and highest gains; {left_out} between them are not shown." if left_out else ""
    return PageTable(id, f"by {scores.by}", f"By {scores.by}", headings, rows, intro=intro)


def published_table(name: str, display: str, published: pd.DataFrame) -> PageTable | None:
    """Published figures of a method; None where there are none."""
    keys = {name, normalise_method(name), normalise_method(display)}
    rows = published[published["method_key"].isin(keys)]
    if rows.empty:
        return None
    headings = (
        Heading("data set", True, "ascending"), Heading("teacher", True, "ascending"), Heading("student", True, "ascending"),
        Heading("top-1 (%)"), Heading("paper", True, "ascending"), Heading("evidence", True, "ascending"),
    )  # fmt: skip
    columns = ("dataset", "teacher", "student", "top1", "paper", "evidence")
    items = tuple(
        tuple(
            number(value, "{:.2f}".format) if column == "top1" else Item(str(value))
            for column, value in zip(columns, row, strict=True)
        )
        for row in rows[[*columns]].itertuples(index=False)
    )
    return PageTable(
        "published", "published figures", "Published figures", headings, items,
        notes=("As papers give them, under their own recipes: never ranked or tested with what was measured here.",),
    )  # fmt: skip
