"""Which published figures a figure of ours is set beside: those of the same epoch, origins before copies, together as a range."""

from __future__ import annotations

from typing import Any

import pandas as pd

#: The best first.
_EVIDENCE = {"primary": 0, "quoted": 1, "secondary": 2}
#: Taken from elsewhere, or nobody can tell. All others were measured by those who print them; files that do not say so hold such.
_COPIES = ("copied", "unclear")


def claims(published: pd.DataFrame, select: str) -> dict[tuple[str, ...], dict[str, Any]]:
    """One claim for each net or pair and method.

    A figure of the other epoch is never one. Of the rest, those that were measured go before copies, those whose source says
    that they are of the epoch ``select`` before those of sources that do not tell, and printed ones before those of logs.

    Args:
        published: from ``load_published``.
        select: ``"last"`` or ``"best"``.

    Returns:
        By kind (teacher, scratch, distilled), keys of teacher and student, and method: ``published_low`` and
        ``published_high``, ``published_top1`` (the one with the best evidence), ``epoch`` (empty where no source tells), and
        the sources of all of them; ``references``: (paper, arXiv number, source) of each.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    rows: Any = published.to_dict("records")
    for row in rows:
        row["epoch"] = _epoch(row["selection"])
        if row["epoch"] in ("", select):
            groups.setdefault(_key(row), []).append(row)
    return {key: _claim(rows) for key, rows in groups.items()}


def _epoch(selection: str) -> str:
    """``"last"`` or ``"best"`` where a source says which epoch it reports, else empty."""
    return next((name for name in ("last", "best") if selection.startswith(f"{name} epoch")), "")


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    method, teacher, student = row["method_key"], row["teacher_key"], row["student_key"]
    if method == "teacher":  # its own figure stands in either column: it is a net without a teacher
        return method, teacher or student, "", method
    return (method, "", student, method) if method == "scratch" else ("distilled", teacher, student, method)


def _claim(rows: list[dict[str, Any]]) -> dict[str, Any]:
    def rank(row: dict[str, Any]) -> tuple[bool, bool, bool]:
        return row["provenance"] in _COPIES, not row["epoch"], row["provenance"] == "log"

    nearest = min(map(rank, rows))
    kept = [row for row in rows if rank(row) == nearest]
    kept.sort(key=lambda row: (_EVIDENCE.get(row["evidence"], 3), row["paper"], row["source"]))
    values = [row["top1"] for row in kept]
    return {
        "published_top1": values[0],
        "published_low": min(values),
        "published_high": max(values),
        "epoch": kept[0]["epoch"],
        "evidence": _joined(", ".join(filter(None, (row["evidence"], row["provenance"]))) for row in kept),
        "paper": _joined(f"{row['paper']}, {row['table']}" for row in kept),
        "teachers": {row["teacher_top1"] for row in kept},
        "papers": tuple(dict.fromkeys(row["arxiv_id"] for row in kept)),
        "references": tuple(dict.fromkeys((row["paper"], row["arxiv_id"], row["source"]) for row in kept)),
        "source": _joined(f"{row['source']} ({row['note']})" if row["note"] else row["source"] for row in kept),
    }


def _joined(texts: Any) -> str:
    return "; ".join(dict.fromkeys(texts))
