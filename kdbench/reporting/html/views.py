"""What a page needs to compute ranks anew over a part of the pairs or methods: the finished cells of a board, small."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pandas as pd

from kdbench.reporting.frame import matched
from kdbench.reporting.html.data import safe_json
from kdbench.reporting.leaderboard import Leaderboard
from kdbench.suite.net import FAMILIES as NET_FAMILIES


def boards_json(boards: list[dict[str, Any]]) -> Any:
    """For the inside of the element that ``views.js`` reads."""
    from markupsafe import Markup

    return Markup(safe_json(boards))  # noqa: S704 - JSON that cannot end the element


def board_data(board: Leaderboard, id: str, page_of: Callable[[str], str] = lambda method: "") -> dict[str, Any]:
    """Pairs, methods and cells of a board.

    Args:
        id: of its section in the page.
        page_of: the address of a method's own page.
    """
    results = board.results
    identity = results.identity()
    places = [{name: i for i, name in enumerate(info)} for info in (results.pair_info, results.method_info)]
    done = results.cells[results.cells["value"].notna()]
    key = ["pair", "method", "seed"]
    rows = done[[*key, "value"]].rename(columns={"value": "own"})
    for name, reference in (("gain", board.reference), ("scratch", "scratch")):
        apart = matched(done, reference, ["value"]) if reference else pd.DataFrame(columns=[*key, "value"])
        apart = apart.assign(value=results.metric.sign * apart["value"].astype(float))
        rows = rows.merge(apart.rename(columns={"value": name}), on=key, how="left")
    cells = [
        [places[0][pair], places[1][method], int(seed), *(_short(value) for value in values)]
        for pair, method, seed, *values in rows[[*key, "own", "gain", "scratch"]].itertuples(index=False)
    ]
    return {
        "id": id,
        **{name: identity[name] for name in ("suite", "protocol", "split")},
        "unit": results.metric.difference_unit,
        "decimals": board.decimals,
        "band": results.metric.tie_band,
        "sign": results.metric.sign,
        "reference": board.reference,
        "referenceTitle": board.reference_display,
        "pairs": [
            {"name": name, "title": row["title"]}
            | {part: NET_FAMILIES.get(row[f"{part}_family"], row[f"{part}_family"]) for part in ("teacher", "student")}
            for name, row in results.pair_info.items()
        ],
        "methods": [
            {"name": name, "competes": name in results.competing, "page": page_of(name)}
            | {part: row[part] for part in ("title", "family", "fidelity")}
            for name, row in results.method_info.items()
        ],
        "cells": sorted(cells, key=lambda cell: cell[:3]),
    }


def _short(value: float) -> float | None:
    return None if math.isnan(value) else round(value, 9)
