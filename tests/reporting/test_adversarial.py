"""Random, gappy, tied stores: table and leaderboard against a transcription of their definitions in plain Python."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdbench.reporting.frame import collect
from kdbench.reporting.leaderboard import Leaderboard, Standing, build_leaderboard
from kdbench.reporting.ranks import rank_diagram
from kdbench.reporting.table import build_table
from tests.few import few
from tests.reporting import factory

METHODS = ("scratch", "kd", "dkd", "ofa", "crd", "fitnet")


def store(seed: int, pairs: int, seeds: int, methods: tuple[str, ...] = METHODS) -> pd.DataFrame:
    """Accuracies with one decimal, so that ties occur, a sixth of the cells missing, failed, skipped or without a figure."""
    draw = np.random.default_rng(seed)
    rows = []
    for i, method, s in itertools.product(range(pairs), methods, range(seeds)):
        pair = f"t{i % 2}--s{i // 2}"
        top1 = round(float(70 + draw.integers(-8, 9) / 10), 1)
        what = draw.random()
        if method in ("scratch", "kd") and s == 0:
            what = 1.0  # something to count from
        if what < 0.04:
            continue
        if what < 0.12:
            rows.append(factory.cell(pair, method, seed=s, state="failed" if what < 0.08 else "skipped", reason="why"))
        elif what < 0.16:
            rows.append(factory.cell(pair, method, math.nan, seed=s))
        else:
            rows.append(factory.cell(pair, method, top1, s))
    return pd.DataFrame(rows)


def gains_of(frame: pd.DataFrame, method: str, reference: str) -> dict[str, float]:
    """pair -> mean over the seeds that both have of the difference per seed."""
    figures = {
        (row["pair"], row["method"], row["seed"]): row.get("top1", math.nan)
        for row in frame.to_dict("records")
        if row["state"] == "done"
    }
    apart: dict[str, list[float]] = {}
    for (pair, name, seed), top1 in figures.items():
        difference = top1 - figures.get((pair, reference, seed), math.nan)
        if name == method and difference == difference:
            apart.setdefault(pair, []).append(difference)
    return {pair: sum(values) / len(values) for pair, values in apart.items()}


def means_of(frame: pd.DataFrame) -> dict[str, dict[str, float]]:
    """method -> pair -> mean over the seeds that have a figure."""
    found: dict[str, dict[str, list[float]]] = {}
    for row in frame.to_dict("records"):
        top1 = row.get("top1", math.nan)
        if row["state"] == "done" and top1 == top1:
            found.setdefault(row["method"], {}).setdefault(row["pair"], []).append(top1)
    return {m: {p: sum(values) / len(values) for p, values in own.items()} for m, own in found.items()}


def enumerated_p(gains: list[float]) -> float:
    """Wilcoxon's two-sided p from all 2^n signs, mean ranks for ties in size, zeros ranked and dropped."""
    kept = [round(gain, 9) for gain in gains if round(gain, 9) != 0]
    if not kept:
        return 1.0
    ranks = stats.rankdata(np.abs(np.round(gains, 9)))[np.round(gains, 9) != 0]
    middle = ranks.sum() / 2
    observed = abs(sum(r for r, gain in zip(ranks, kept, strict=True) if gain > 0) - middle)
    sums = [
        sum(r for r, up in zip(ranks, signs, strict=True) if up)
        for signs in itertools.product((0, 1), repeat=len(kept))
    ]
    return float(np.mean([abs(total - middle) >= observed - 1e-9 for total in sums]))


def by_name(board: Leaderboard) -> dict[str, Standing]:
    return {standing.method: standing for standing in board.standings}


@pytest.mark.parametrize(("pairs", "seeds"), [(1, 1), (2, 1), (2, 3), (5, 2), (8, 3)])
@pytest.mark.parametrize("seed", few(range(4), 2))
def test_a_leaderboard_is_what_its_definitions_say(seed: int, pairs: int, seeds: int) -> None:
    frame = store(seed, pairs, seeds)
    board = by_name(build_leaderboard(frame))
    p_values = {}
    for method in METHODS:
        standing = board[method]
        gains = [*gains_of(frame, method, "kd").values()]
        assert standing.pairs == len(gains)
        if not gains:
            continue
        assert standing.gain == pytest.approx(np.mean(gains), abs=1e-9)
        if method == "kd":
            continue
        assert math.isnan(standing.low)  # of two teachers
        counts = [sum(g > 0.2 + 1e-9 for g in gains), sum(g < -0.2 - 1e-9 for g in gains)]
        assert (standing.wins, standing.losses) == tuple(counts)
        assert standing.ties == len(gains) - sum(counts)
        if method == "scratch":
            assert standing.p is None
            continue
        both = gains_of(frame, method, "scratch")
        harmed = sum(gain < -1e-9 for gain in both.values())
        assert standing.harmed == ((harmed, len(both)) if both else None)
        p_values[method] = enumerated_p(gains)
        assert standing.p == pytest.approx(p_values[method])
    ordered = sorted(p_values, key=lambda name: p_values[name])
    running = 0.0
    for place, name in enumerate(ordered):
        running = max(running, min(1.0, p_values[name] * (len(ordered) - place)))
        assert board[name].p_holm == pytest.approx(running)


@pytest.mark.parametrize("seed", few(range(6), 3))
def test_a_table_shows_means_of_what_is_there_and_imputes_nothing(seed: int) -> None:
    frame = store(seed, 6, 2)
    table, means = build_table(frame), means_of(frame)
    tidy = table.records.set_index(["pair", "method"])
    for (pair, method), row in tidy.iterrows():
        wanted = means.get(method, {}).get(pair)
        assert (wanted is None and math.isnan(row["mean"])) or row["mean"] == pytest.approx(wanted)
    names = [m for m in METHODS if m in set(frame["method"])]
    shown = [header.title for header in table.columns]
    for method in names:
        title = factory.METHODS[method][0]
        column = [row[shown.index(title)] for row in table.cells]
        figures = [c for c, h in zip(column, table.rows, strict=True) if h.kind == "pair"]
        assert sum(cell.kind == "value" for cell in figures) == len(means.get(method, {}))
        average = next(c for c, h in zip(column, table.rows, strict=True) if h.title.startswith("average"))
        if average.kind == "value":  # over pairs that the method has, all of them its own figures
            own = list(means[method].values())
            assert min(own) - 1e-9 <= average.value <= max(own) + 1e-9


@pytest.mark.parametrize("seed", few(range(4), 2))
def test_other_names_and_another_order_change_no_figure(seed: int) -> None:
    frame = store(seed, 6, 2)
    names = dict(zip(("dkd", "ofa", "crd", "fitnet"), ("z9", "a0", "m5", "b1"), strict=True))
    renamed = frame.assign(method=frame["method"].replace(names)).sample(frac=1, random_state=seed)
    first, second = by_name(build_leaderboard(frame)), by_name(build_leaderboard(renamed))
    for old, standing in first.items():
        other = second[names.get(old, old)]
        for field in ("rank", "wins", "losses", "harmed", "p", "p_holm", "average_rank", "pairs"):
            assert getattr(standing, field) == pytest.approx(getattr(other, field), nan_ok=True), (old, field)
        for field in ("gain", "low", "high", "left_out_low", "left_out_high", "gain_over_scratch"):
            assert getattr(standing, field) == pytest.approx(getattr(other, field), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize("seed", few(range(4), 2))
def test_an_irrelevant_method_leaves_pairwise_figures_exactly_as_they_were(seed: int) -> None:
    frame = store(seed, 7, 2)
    more = pd.concat([frame, store(seed + 100, 7, 2, methods=("tas",))], ignore_index=True)
    first, second = by_name(build_leaderboard(frame)), by_name(build_leaderboard(more))
    for name, standing in first.items():
        for field in ("gain", "low", "high", "p", "wins", "ties", "losses", "harmed", "gains"):
            one, other = getattr(standing, field), getattr(second[name], field)
            assert one == other or (one != one and other != other), (name, field)


def test_a_rank_diagrams_pairwise_p_values_do_not_depend_on_company() -> None:
    frame = store(3, 8, 3)
    whole = frame[frame["state"] == "done"].groupby("method").filter(lambda own: own["pair"].nunique() == 8)
    small = rank_diagram(collect(whole[whole["method"].isin(["kd", "ofa", "dkd"])]))
    assert small is not None
    raw = [enumerated_p([*gains_of(whole, a, b).values()]) for a, b in itertools.combinations(small.methods, 2)]
    k = len(raw)
    order = np.argsort(raw)
    stepped = np.minimum(1, np.maximum.accumulate([(k - i) * raw[j] for i, j in enumerate(order)]))
    expected = np.empty(k)
    expected[order] = stepped
    upper = np.triu_indices(len(small.methods), 1)
    assert small.p_holm[upper] == pytest.approx(expected)
