"""What changed between two sets of results, against the noise of seeds."""

from __future__ import annotations

import hashlib
import math

import numpy as np
import pandas as pd

from kdbench.errors import KdbenchError, UnknownNameError, counted
from kdbench.reporting.frame import IDENTITY, fill_frame, metrics_of
from kdbench.reporting.grid import Cell, Header, Note, Table
from kdbench.reporting.statistics import ALPHA, holm

_KEY = [*IDENTITY, "pair", "method"]
_COLUMNS = [*_KEY, "n_a", "mean_a", "n_b", "mean_b", "difference", "p_holm", "verdict"]


def difference_table(
    first: pd.DataFrame,
    second: pd.DataFrame,
    names: tuple[str, str],
    metric: str,
    select: str,
    everything: bool,
    command: str = "",
) -> Table:
    """A row for each pair and method that two sets of results show differently, or for all of them.

    A difference of means is tested against the spread between seeds, pooled over all pairs and methods of both sets (Student's t with
    the pooled degrees of freedom), with Holm's correction over all differences. Cells of equal figures are equal.

    Args:
        first, second: rows as of ``load_results``.
        names: how the two are called.
        metric, select: which figure.
        everything: equal ones too.

    Raises:
        KdbenchError: for a metric that neither has, or without a finished cell in either.
    """
    a, b = (_figures(frame, metric, select) for frame in (first, second))
    if a.empty and b.empty:
        raise KdbenchError(f"neither {names[0]} nor {names[1]} holds a finished cell with {metric}")
    counted_a, counted_b = (
        frame.groupby(_KEY)["value"].agg(n="count", mean="mean").add_suffix(f"_{name}")
        for name, frame in (("a", a), ("b", b))
    )
    both = counted_a.join(counted_b, how="outer").reset_index()
    groups = [group["value"] for frame in (a, b) for _, group in frame.groupby(_KEY)]
    freedom = sum(len(group) - 1 for group in groups)
    spread = math.sqrt(sum(((group - group.mean()) ** 2).sum() for group in groups) / freedom) if freedom else np.nan
    both["difference"] = both["mean_b"] - both["mean_a"]
    same = _same(a, b).reindex(pd.MultiIndex.from_frame(both[_KEY])).to_numpy()
    both["verdict"] = np.select(
        [both["n_b"].isna(), both["n_a"].isna(), same == True], ["only in A", "only in B", "equal"], ""  # noqa: E712
    )  # fmt: skip
    tested = (both["verdict"] == "").to_numpy()
    both["p_holm"] = np.nan
    if tested.any() and spread > 0:
        from scipy.special import stdtr

        rows = both[tested]
        t = rows["difference"].abs() / (spread * np.sqrt(1 / rows["n_a"] + 1 / rows["n_b"]))
        both.loc[tested, "p_holm"] = holm(list(2 * stdtr(freedom, -t)))
    both.loc[tested, "verdict"] = np.where(both.loc[tested, "p_holm"] < ALPHA, "changed", "within noise")
    if not spread > 0:
        both.loc[tested, "verdict"] = "differs"
    shown = both if everything else both[both["verdict"] != "equal"]
    decimals = metrics_of(first)[metric].decimals
    noise = f"Standard deviation between seeds, pooled: {spread:.{decimals + 1}f} ({freedom} degrees of freedom)." if freedom else (
        "No cell has two seeds: their noise is not known, and differences are only told."
    )  # fmt: skip
    counts = both["verdict"].value_counts()
    summary = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    return Table(
        command=command,
        results_hash=hashlib.sha256(shown[_COLUMNS].to_csv(index=False).encode()).hexdigest()[:12],
        label="kdbench-diff",
        corner="pair and method",
        rows=tuple(
            Header(f"{row.pair} {row.method}", "text", f"{row.suite}, {row.protocol}, {row.split}")
            for row in shown.itertuples()
        ),
        columns=tuple(Header(title, "text") for title in ("seeds A", "A", "seeds B", "B", "difference", "p (Holm)", "verdict")),
        cells=tuple(_cells(row, decimals) for row in shown.to_dict("records")),
        caption=f"{metric}: A is {names[0]}, B is {names[1]}. {len(both):,} pairs and methods: {summary}.",
        short=f"{metric}: {summary}",
        notes=(
            Note("", noise),
            Note("", f"p: of the difference against that noise, two-sided, corrected over {counted(int(tested.sum()), 'difference')} "
                     f"(Holm); changed: below {ALPHA:g}. Within noise is no evidence of equality."),
        ),
        ranked=False,
        records=shown[_COLUMNS],
    )  # fmt: skip


def _figures(frame: pd.DataFrame, metric: str, select: str) -> pd.DataFrame:
    """Finished cells with a column ``value``; of several results of one cell that which finished last."""
    filled = fill_frame(frame)
    if metric not in metrics_of(filled):
        raise UnknownNameError("metric", metric, metrics_of(filled))
    done = filled[filled["state"] == "done"]
    value = done[metric if select == "last" else f"best_{metric}"]
    done = done.assign(value=value)[value.notna()].sort_values("finished")
    return done.drop_duplicates([*_KEY, "seed"], keep="last")


def _same(a: pd.DataFrame, b: pd.DataFrame) -> pd.Series:
    """By pair and method: whether both hold the same seeds with the same figures."""
    both = a.merge(b, on=[*_KEY, "seed"], how="outer", suffixes=("_a", "_b"))
    return both["value_a"].eq(both["value_b"]).groupby([both[name] for name in _KEY]).all()


def _cells(row: dict, decimals: int) -> tuple[Cell, ...]:
    def number(value: float, kind: str = "value", places: int = decimals) -> Cell:
        return Cell("absent") if math.isnan(value) else Cell(kind, value, decimals=places)

    return (
        number(row["n_a"], places=0), number(row["mean_a"]), number(row["n_b"], places=0), number(row["mean_b"]),
        number(row["difference"], "gain", decimals + 1), _p(row["p_holm"]), Cell("text", text=row["verdict"]),
    )  # fmt: skip


def _p(p: float) -> Cell:
    return (
        Cell("range", text="<0.001") if p < 0.001 else Cell("absent") if math.isnan(p) else Cell("value", p, decimals=3)
    )
