"""Published top-1 figures beside ours: the ledger, and columns of a table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdbench.errors import KdbenchError
from kdbench.reporting.aliases import AVERAGED_WEIGHTS, METHOD_ALIASES, PUBLISHED_EPOCHS
from kdbench.reporting.caption import (
    RECONSTRUCTION_NOTE,
    build_caption,
    data_notes,
    join_names,
    label_of,
    nothing_text,
    results_hash,
)
from kdbench.reporting.claims import claims
from kdbench.reporting.figures import load_published, normalise_method, normalise_net, plain_name
from kdbench.reporting.frame import Results, collect
from kdbench.reporting.grid import Cell, Header, Note, Table, letter
from kdbench.reporting.references import citation_of, citations_of
from kdbench.reporting.statistics import t_interval_of

_RECORD_COLUMNS = [
    *("dataset", "kind", "teacher", "student", "method", "fidelity"),
    *("published_top1", "published_low", "published_high"),
    *("epoch", "ours_top1", "sd", "n", "difference", "verdict", "state", "evidence", "paper", "source", "note"),
]
_GROUPS = {"teacher": "teachers", "scratch": "students from scratch"}
#: Protocols that train as papers did, or as their code does.
_AS_PUBLISHED = ("paper", "as-released")
#: What the title of a method whose figures are those of papers is marked with.
PUBLISHED = "†"


def published_ledger(
    frame: pd.DataFrame, folder: Path | str | None = None, select: str = "last", *, command: str = ""
) -> Table:
    """Set our top-1 beside the published figures of the same data set, nets and method.

    A row per net or pair and method: what was published, ours with its spread, the difference, evidence, sources, a note.
    Figures that differ are a range (``claims``). ``render`` writes it; its CSV holds plain numbers.

    Args:
        frame: one row per cell, of one suite, protocol, data set and split.
        folder: as for ``load_published``.
        select: ``"last"`` or ``"best"`` epoch, ours and published.
        command: the command line that made it, for its comment.

    Raises:
        KdbenchError: as ``build_table`` and ``load_published``.
    """
    results = collect(frame, "top1", select)
    published = load_published(folder)
    records = _records(results, published)
    shared: dict[str, Any] = {
        "command": command,
        "results_hash": results_hash(results),
        "label": label_of(results, "published"),
        "ranked": False,
        "records": pd.DataFrame(records, columns=_RECORD_COLUMNS),
    }
    message = ""
    if not len(results.cells):
        message = nothing_text(results)
    elif not len(published):
        source = "this installation has no folder of them"
        message = f"No published figures to compare with: {source if folder is None else f'{folder} holds none'}."
    elif not records:
        message = f"No published figure is known for these pairs and methods on {results.identity()['dataset']}."
    if message:
        return Table(message=message, **shared)
    marks = {
        record["source"]: (letter(i), record) for i, record in enumerate({r["source"]: r for r in records}.values())
    }
    measured = any(np.isfinite(record["ours_top1"]) for record in records)
    titles = ("published", *(("ours", "difference", "verdict") if measured else ()), "published in", "evidence, notes")
    return Table(
        corner="net or method",
        rows=tuple(_header(record) for record in records),
        columns=tuple(Header(title, "text") for title in titles),
        cells=tuple(_cells(record, marks[record["source"]][0], measured) for record in records),
        caption=f"Published beside ours. Ours: {build_caption(results)}" if measured else published_caption(results),
        short="Published top-1 (%)" + (" beside ours" if measured else ""),
        notes=(
            *(Note(mark, source, _keys(record)) for source, (mark, record) in marks.items()),
            *(Note("", text) for text in _notes(results, measured)),
        ),
        long=True,
        citations=citations_of((), results, records),
        **shared,
    )


def published_caption(results: Results) -> str:
    """Of a table without a figure of ours."""
    identity = results.identity()
    epoch = "the last epoch" if results.select == "last" else "the best test epoch"
    return (
        f"Published top-1 (%, higher is better) on {identity['dataset']}, as papers and their code report it: of {epoch}, or where no "
        f"source names one. No result of ours: suite {identity['suite']}, protocol {identity['protocol']}."
    )


def published_scores(results: Results) -> dict[tuple[str, str], dict[str, Any]]:
    """(pair, method) -> its claim, of the pairs and methods of the results; of scratch that of the student alone.

    Raises:
        KdbenchError: for another metric than top-1, which alone is published.
    """
    if results.metric.name != "top1":
        raise KdbenchError(
            f"published figures are top-1, and none is known of {results.metric.name}; leave out --published"
        )
    found = {}
    figures = _figures(results, load_published())
    for our in _ours(results):
        for pair, row in results.pair_info.items():
            if (
                our["student"] != row["student"]
                or our["kind"] == "teacher"
                or our["teacher"] not in ("", row["teacher"])
            ):
                continue
            for key in sorted(our["method_keys"]):
                if claim := figures.get((our["kind"], our["teacher_key"], our["student_key"], key)):
                    found[pair, our["method"]] = claim
    return found


def published_columns(
    results: Results, pairs: list[str], common: list[str], scores: Mapping[tuple[str, str], Any], decimals: int
) -> tuple[list[tuple[Header, list[Cell]]], list[Note]]:
    """A title, cells and their average for each method with a published figure, and what must stand below: the sources."""
    columns = []
    sources: dict[str, list[tuple[str, str, str]]] = {}
    for method, info in results.method_info.items():
        claims = {pair: scores[pair, method] for pair in pairs if (pair, method) in scores}
        if not claims:
            continue
        cited = set()
        for reference in dict.fromkeys(reference for claim in claims.values() for reference in claim["references"]):
            key = str(citation_of(*reference).get("key", reference[0]))
            sources.setdefault(key, []).append(reference)
            cited.add([*sources].index(key) + 1)
        values = pd.Series({pair: claim["published_top1"] for pair, claim in claims.items()})
        used = values[values.index.isin(common)] if {*common} <= claims.keys() and common else values
        coverage = (len(used), len(pairs)) if used is values and len(values) < len(pairs) else None
        cells = [_claimed(claims[pair], decimals) if pair in claims else Cell("absent") for pair in pairs]
        average = Cell("value", float(used.mean()), decimals=decimals, coverage=coverage)
        header = Header(info["display"], "published", "published", marks=(PUBLISHED, *map(str, sorted(cited))))
        columns.append((header, [*cells, average]))
    notes = [
        Note(
            str(number),
            f"{references[0][0]}: {join_names(dict.fromkeys(source for _, _, source in references), 3)}",
            key if citation_of(*references[0]) else "",
        )
        for number, (key, references) in enumerate(sources.items(), start=1)
    ]
    if columns:
        text = "published: other runs, recipes and teachers than ours; not ranked and not tested with ours."
        notes.append(Note(PUBLISHED, text))
    return columns, notes


def _claimed(claim: Mapping[str, Any], decimals: int) -> Cell:
    """A published figure, or the range of those that differ."""
    low, high = (f"{claim[name]:.{decimals}f}" for name in ("published_low", "published_high"))
    return (
        Cell("value", claim["published_top1"], decimals=decimals)
        if low == high
        else Cell("range", text=f"{low} to {high}")
    )


def _figures(results: Results, published: pd.DataFrame) -> dict[tuple[str, ...], dict[str, Any]]:
    """The claims about the same images; at another size they are another task."""
    size = results.cells["image_size"].max()
    same = published["dataset_key"].eq(plain_name(results.identity()["dataset"]))
    return claims(published[same & published["image_size"].eq(224 if pd.isna(size) else size)], results.select)


def _header(record: dict[str, Any]) -> Header:
    """Nets under what they are; methods under their pair."""
    if record["kind"] in _GROUPS:
        return Header(record["title"], "text", _GROUPS[record["kind"]])
    return Header(record["display"], "text", record["title"], record["fidelity"] == "reconstruction")


def _keys(record: dict[str, Any]) -> str:
    """BibTeX keys of all sources of a record; empty where one has none."""
    cited = [citation_of(*reference).get("key", "") for reference in record["references"]]
    return ",".join(dict.fromkeys(cited)) if all(cited) else ""


def _records(results: Results, published: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per figure of ours for which something was published."""
    dataset = results.identity()["dataset"]
    figures = _figures(results, published)
    records = []
    for our in _ours(results):
        for method in our.pop("method_keys"):
            figure = figures.get((our["kind"], our["teacher_key"], our["student_key"], method))
            if figure is None:
                continue
            record = {**our, **figure, "dataset": dataset}
            nearest = np.clip(our["ours_top1"], figure["published_low"], figure["published_high"])
            record["difference"] = our["ours_top1"] - nearest
            recipe = _recipe_remarks(our, figure, results)
            record["note"] = "; ".join([*_remarks(our), *recipe])
            record["verdict"] = _verdict(record, bool(recipe) or results.identity()["protocol"] not in _AS_PUBLISHED)
            records.append(record)
    kinds = [*_GROUPS, "distilled"]
    return sorted(records, key=lambda r: (kinds.index(r["kind"]), *r["order"], -r["published_top1"]))


def _verdict(record: dict[str, Any], recipe_differs: bool) -> str:
    """Whether the published figure, or the nearest of several, lies in the 95 % t interval of the mean of our seeds."""
    if not np.isfinite(record["ours_top1"]):
        return ""
    if recipe_differs and record["kind"] != "teacher":
        return "recipe differs"
    if record["n"] < 2:
        return "one run"
    low, high = t_interval_of(record["ours_top1"], record["sd"], record["n"])
    return "inside" if low <= record["published_high"] and record["published_low"] <= high else "outside"


def _ours(results: Results) -> list[dict[str, Any]]:
    """Our figures with the keys by which they are found: teachers, students from scratch, distilled students."""
    ours: list[dict[str, Any]] = []
    blank = {"sd": np.nan, "fidelity": "", "teacher": "", "student": "", "teacher_key": "", "student_key": ""}
    places = {name: i for i, name in enumerate((*results.pair_info, *results.method_info))}
    for teacher, rows in results.pairs.groupby("teacher", sort=False):
        title, mean = rows["teacher_display"].iloc[0], rows["teacher_value"].mean()
        ours.append(
            {**blank, "kind": "teacher", "title": title, "teacher": teacher, "method": "teacher", "display": "teacher"}
            | {"ours_top1": mean, "n": int(np.isfinite(mean)), "state": "done" if np.isfinite(mean) else "planned"}
            | {"teacher_key": normalise_net(title), "method_keys": {"teacher"}, "order": (0, -1, title)}
        )
    scratch = results.cells[results.cells["method"] == "scratch"]
    for student, rows in results.pairs.groupby("student", sort=False) if len(scratch) else ():
        # The same for all its teachers, so first the mean over pairs, then over seeds.
        seeds = scratch[scratch["student"] == student].groupby("seed")["value"].mean().dropna()
        title = rows["student_display"].iloc[0]
        ours.append(
            {**blank, "kind": "scratch", "title": title, "student": student, "method": "scratch"}
            | {"display": "from scratch", "ours_top1": seeds.mean(), "sd": seeds.std(), "n": len(seeds)}
            | {"state": "done" if len(seeds) else "planned", "student_key": normalise_net(title)}
            | {"method_keys": {"scratch"}, "order": (0, places["scratch"], title)}
        )
    for (pair, method), score in results.score_info.items():
        if method == "scratch":
            continue
        row, info = results.pair_info[pair], results.method_info[method]
        # A name that papers use for another method of ours (FitNet) is not this one's.
        keys = {method, normalise_method(method), normalise_method(info["display"])} - (
            METHOD_ALIASES.keys() - {method}
        )
        ours.append(
            {"kind": "distilled", "title": row["title"], "teacher": row["teacher"], "student": row["student"]}
            | {"method": method, "display": info["title"], "fidelity": info["fidelity"], "state": score["state"]}
            | {"ours_top1": score["mean"], "sd": score["sd"], "n": int(score["n"]), "method_keys": keys}
            | {"teacher_key": normalise_net(row["teacher_display"])}
            | {"student_key": normalise_net(row["student_display"])}
            | {"order": (places[pair], places[method], row["title"])}
        )
    return ours


def _remarks(our: dict[str, Any]) -> list[str]:
    remarks = []
    if not np.isfinite(our["ours_top1"]):
        remarks.append({"planned": "not run yet", "unmeasured": "no top-1 recorded"}.get(our["state"], our["state"]))
    elif our["kind"] != "teacher" and our["n"] == 1:
        remarks.append("one seed")
    if our["fidelity"] == "reconstruction":
        remarks.append("ours is a reconstruction of the method: not a reproduction")
    return remarks


def _recipe_remarks(our: dict[str, Any], figure: dict[str, Any], results: Results) -> list[str]:
    """What differs between the recipes, as far as both are known."""
    if our["kind"] == "teacher" or not np.isfinite(our["ours_top1"]):
        return []
    own = results.cells[(results.cells["student"] == our["student"]) & (results.cells["method"] == our["method"])]
    if our["kind"] == "distilled":
        own = own[own["teacher"] == our["teacher"]]
    family = own["student_family"].iloc[0]
    epochs = own.loc[own["value"].notna(), "epochs"].dropna()
    dataset = plain_name(results.identity()["dataset"])
    of_papers = [PUBLISHED_EPOCHS.get((paper, dataset)) for paper in figure["papers"]]
    known = {epochs.get(family) for epochs in of_papers if epochs}
    remarks = []
    if len(known) == 1 and epochs.nunique() == 1 and (published := known.pop()) and epochs.iloc[0] != published:
        remarks.append(f"{epochs.iloc[0]:g} epochs, published {published}")
    if figure["papers"] and all(paper in AVERAGED_WEIGHTS for paper in figure["papers"]) and our["kind"] == "distilled":
        remarks.append("published with averaged weights")
    teachers = [top1 for top1 in figure["teachers"] if np.isfinite(top1)]
    own_teacher = own["teacher_top1"].mean()
    if our["kind"] == "distilled" and teachers and min(abs(top1 - own_teacher) for top1 in teachers) > 0.5:
        remarks.append(
            f"our teacher {own_teacher:.2f}, published {' and '.join(f'{top1:.2f}' for top1 in sorted(teachers))}"
        )
    return remarks


def _cells(record: dict[str, Any], mark: str, measured: bool) -> tuple[Cell, ...]:
    ours = np.isfinite(record["ours_top1"])
    beside = (
        Cell("value", record["ours_top1"], record["sd"], decimals=2) if ours else Cell("absent"),
        Cell("gain", record["difference"], decimals=2) if ours else Cell("empty"),
        Cell("text", text=record["verdict"]),
    )
    return (
        _claimed(record, 2),
        *(beside if measured else ()),
        Cell("source", text=record["paper"], marks=(mark,)),
        Cell("text", text="; ".join(filter(None, (record["evidence"], record["note"] if measured else "")))),
    )


def _notes(results: Results, measured: bool) -> list[str]:
    evidence = (
        "Evidence: primary = the authors' own files; quoted = quoted by a later paper or an issue; secondary = a third "
        "party's summary. A figure that is not listed could not be read."
    )
    if not measured:
        return [evidence]
    protocol = results.identity()["protocol"]
    ours = "last epoch" if results.select == "last" else "best test epoch"
    notes = [
        "Difference: ours minus published, in points; where claims conflict, from the nearest of them, and 0 between them.",
        f"Ours are those of the {ours}. Figures whose source names the other epoch are left out (--select); where it names none, "
        "nearly all are those of the best epoch on the test set.",
        "Verdict: whether the published figure lies inside or outside the 95 % interval of the mean of our seeds; where recipes are "
        "known to differ there is none.",
        evidence,
    ]
    if protocol not in _AS_PUBLISHED:
        notes.append(f"Ours were trained under the protocol {protocol!r}, not as published: no test of reproduction.")
    if any(row["fidelity"] == "reconstruction" for row in results.method_info.values()):
        notes.append(RECONSTRUCTION_NOTE)
    return notes + data_notes(results)
