"""Which published figures a figure of ours is set beside: those of the same epoch, origins before copies, together as a range."""

from __future__ import annotations

from typing import Any

import pandas as pd

EVIDENCE = ("primary", "quoted", "secondary")
#: How a figure came into its source, the nearest to its origin first: measured by those who print it, read from a training log
#: of theirs, or taken from elsewhere. Files that do not say so hold origins.
_DISTANCE = {"own": 0, "baseline": 0, "rerun": 0, "": 0, "log": 1, "unclear": 2, "copied": 2}


def epoch_of(selection: str) -> str:
    """``"last"`` or ``"best"`` where a source says which epoch it reports, else empty."""
    return next((name for name in ("last", "best") if selection.startswith(f"{name} epoch")), "")


def claims(published: pd.DataFrame, select: str) -> list[dict[str, Any]]:
    """One claim for each net or pair and method.

    Of its figures only those nearest to their origin are kept, and of these the ones whose source says that they are of the
    epoch ``select``, or, where none says so, those of sources that do not tell. A figure of the other epoch is never one.

    Args:
        published: from ``load_published``.
        select: ``"last"`` or ``"best"``.

    Returns:
        ``kind``, keys of nets and method, ``published_low`` and ``published_high``, ``published_top1`` (the one with the best
        evidence), ``epoch``, and the sources of all of them.
    """
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    rows: Any = published.to_dict("records")
    for row in rows:
        row["epoch"] = epoch_of(row["selection"])
        if row["epoch"] in ("", select):
            groups.setdefault(_key(row), []).append(row)
    return [_claim(key, rows) for key, rows in groups.items()]


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    method = row["method_key"]
    kind = method if method in ("teacher", "scratch") else "distilled"
    # A teacher's own figure stands in either column: it is a net without a teacher. A student alone has none.
    teacher = {"teacher": row["teacher_key"] or row["student_key"], "scratch": ""}.get(kind, row["teacher_key"])
    return kind, teacher, "" if kind == "teacher" else row["student_key"], method


def _claim(key: tuple[str, ...], rows: list[dict[str, Any]]) -> dict[str, Any]:
    def rank(row: dict[str, Any]) -> tuple[int, bool]:
        return _DISTANCE[row["provenance"]], not row["epoch"]

    nearest = min(map(rank, rows))
    kept = [row for row in rows if rank(row) == nearest]
    kept.sort(key=lambda row: (_evidence_rank(row["evidence"]), row["paper"], row["source"]))
    values = [row["top1"] for row in kept]
    return {
        **dict(zip(("kind", "teacher_key", "student_key", "method_key"), key, strict=True)),
        "published_top1": values[0],
        "published_low": min(values),
        "published_high": max(values),
        "epoch": kept[0]["epoch"],
        "evidence": _joined(", ".join(filter(None, (row["evidence"], row["provenance"]))) for row in kept),
        "paper": _joined(f"{row['paper']}, {row['table']}" for row in kept),
        "papers": tuple(dict.fromkeys(row["arxiv_id"] for row in kept)),
        "source": _joined(row["source"] for row in kept),
    }


def _evidence_rank(evidence: str) -> int:
    return EVIDENCE.index(evidence) if evidence in EVIDENCE else len(EVIDENCE)


def _joined(texts: Any) -> str:
    return "; ".join(dict.fromkeys(str(text) for text in texts))
