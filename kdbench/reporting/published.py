"""Published top-1 figures, each with its source, and the ledger that sets them beside ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdbench.errors import KdbenchError
from kdbench.reporting.aliases import AVERAGED_WEIGHTS, METHOD_ALIASES, NET_ALIASES, PUBLISHED_EPOCHS
from kdbench.reporting.caption import build_caption, data_notes, label_of, nothing_text, results_hash
from kdbench.reporting.claims import claims
from kdbench.reporting.frame import Results, collect
from kdbench.reporting.table import RECONSTRUCTION_NOTE, Cell, Header, Note, Table, letter

COLUMNS = [
    *("paper", "arxiv_id", "table", "dataset", "teacher", "teacher_top1"),
    *("student", "student_top1", "method", "top1", "source", "evidence"),
]
_RECORD_COLUMNS = [
    *(
        "dataset",
        "kind",
        "teacher",
        "student",
        "method",
        "fidelity",
        "published_top1",
        "published_low",
        "published_high",
    ),
    *("epoch", "ours_top1", "sd", "n", "difference", "state", "evidence", "paper", "source", "note"),
]
#: Columns that not every file has: empty there, and images of 224 px.
_OPTIONAL = ["selection", "provenance", "note", "image_size"]

_GROUPS = {"teacher": "teachers", "scratch": "students from scratch", "distilled": "distilled students"}


def find_published() -> Path | None:
    """``results/published`` of the project that this file belongs to; None where kdbench is installed without it."""
    root = Path(__file__).resolve().parents[2]
    folder = root / "results" / "published"
    return folder if (root / "pyproject.toml").is_file() and folder.is_dir() else None


def load_published(folder: Path | str | None = None) -> pd.DataFrame:
    """Read all published figures.

    Args:
        folder: holds the CSV files; by default that of the project. Where the project is not there, no row is returned.

    Returns:
        The columns of the files, numbers as numbers, and the normalised names by which they are joined:
        ``dataset_key``, ``teacher_key``, ``student_key``, ``method_key``.

    Raises:
        KdbenchError: for a folder that does not exist, or a file without the columns.
    """
    chosen = find_published() if folder is None else Path(folder)
    if chosen is not None and not chosen.is_dir():
        raise KdbenchError(f"no folder {chosen} with published figures")
    tables = [_read(path) for path in sorted(chosen.glob("*.csv"))] if chosen else []
    rows = (
        pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*COLUMNS, *_OPTIONAL], dtype=object)
    )
    for name in ("teacher_top1", "student_top1", "top1"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce").astype(float)
    rows["image_size"] = pd.to_numeric(rows["image_size"]).fillna(224)
    rows["dataset_key"] = rows["dataset"].map(_plain)
    rows["teacher_key"] = rows["teacher"].map(normalise_net)
    rows["student_key"] = rows["student"].map(normalise_net)
    rows["method_key"] = rows["method"].map(normalise_method)
    # Tables that say where their figures come from are those of CNNs, in which FitNet is the hint without KD.
    rows.loc[rows["provenance"].ne("") & rows["method_key"].eq("fitnet-kd"), "method_key"] = "fitnet"
    return rows[rows["top1"].notna()].reset_index(drop=True)


def normalise_net(name: str) -> str:
    """One key per net: ``Swin-T`` and ``swin_tiny_patch4_window7_224.ms_in1k`` are the same."""
    # Without remarks in brackets and timm's tag of the weights. Brackets without a space before them belong to the name:
    # MobileNetV2(HSAKD) is another net.
    bare = _plain(re.sub(r"\s\(.*?\)", "", name).strip().split(".")[0])
    return _NET_KEYS.get(bare, bare)


def normalise_method(name: str) -> str:
    """One key per method: ``PAT`` and ``fofa`` are the same. Brackets belong to the name: they mark a variant."""
    if name.startswith("released checkpoint"):
        return "teacher"
    return _METHOD_KEYS.get(_plain(name), _plain(name))


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
        source = "results/published of the project's source is not part of this installation"
        message = f"No published figures to compare with: {source if folder is None else f'{folder} holds none'}."
    elif not records:
        message = f"No published figure is known for these pairs and methods on {results.identity()['dataset']}."
    if message:
        return Table(message=message, **shared)
    marks = {source: letter(i) for i, source in enumerate(dict.fromkeys(record["source"] for record in records))}
    titles = ("method", "published", "ours", "difference", "evidence", "published in", "note")
    return Table(
        corner="net or pair",
        rows=tuple(Header(record["title"], "text", _GROUPS[record["kind"]]) for record in records),
        columns=tuple(Header(title, "text") for title in titles),
        cells=tuple(_cells(record, marks[record["source"]]) for record in records),
        caption=f"Published beside ours. Ours: {build_caption(results)}",
        notes=(*(Note(mark, source) for source, mark in marks.items()), *(Note("", text) for text in _notes(results))),
        **shared,
    )


def _records(results: Results, published: pd.DataFrame) -> list[dict[str, Any]]:
    """A row per figure of ours for which something was published."""
    dataset = results.identity()["dataset"]
    size = results.cells["image_size"].max()
    # The same images at another size are another task.
    same = published["dataset_key"].eq(_plain(dataset)) & published["image_size"].eq(224 if pd.isna(size) else size)
    figures = claims(published[same], results.select)
    records = []
    for our in _ours(results):
        for method in our.pop("method_keys"):
            figure = figures.get((our["kind"], our["teacher_key"], our["student_key"], method))
            if figure is None:
                continue
            record = {**our, **figure, "dataset": dataset}
            nearest = np.clip(our["ours_top1"], figure["published_low"], figure["published_high"])
            record["difference"] = our["ours_top1"] - nearest
            record["note"] = "; ".join([*_remarks(our), *_recipe_remarks(our, figure, results)])
            records.append(record)
    return sorted(records, key=lambda r: ([*_GROUPS].index(r["kind"]), *r["order"], -r["published_top1"]))


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
    family = own["student_family"].iloc[0]
    epochs = own.loc[own["value"].notna(), "epochs"].dropna()
    dataset = _plain(results.identity()["dataset"])
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


def _cells(record: dict[str, Any], mark: str) -> tuple[Cell, ...]:
    ours = np.isfinite(record["ours_top1"])
    low, high = record["published_low"], record["published_high"]
    claimed = Cell("value", low, decimals=2) if low == high else Cell("text", text=f"{low:.2f} to {high:.2f}")
    reconstruction = " (rec.)" if record["fidelity"] == "reconstruction" else ""
    return (
        Cell("text", text=record["display"] + reconstruction),
        claimed,
        Cell("value", record["ours_top1"], record["sd"], decimals=2) if ours else Cell("absent"),
        Cell("gain", record["difference"], decimals=2) if ours else Cell("empty"),
        Cell("text", text=record["evidence"]),
        Cell("text", text=record["paper"], marks=(mark,)),
        Cell("text", text=record["note"]),
    )


def _notes(results: Results) -> list[str]:
    protocol = results.identity()["protocol"]
    ours = "last epoch" if results.select == "last" else "best test epoch"
    notes = [
        "Difference: ours minus published, in points; where claims conflict, from the nearest of them, and 0 between them.",
        f"Ours are those of the {ours}. Figures whose source names the other epoch are left out (--select); where it names none, "
        "nearly all are those of the best epoch on the test set.",
        "Evidence: primary = the authors' own files; quoted = quoted by a later paper or an issue; secondary = a third "
        "party's summary. A figure that is not listed could not be read.",
    ]
    if protocol != "paper":
        notes.append(f"Ours were trained under the protocol {protocol!r}, not as published: no test of reproduction.")
    if any(row["fidelity"] == "reconstruction" for row in results.method_info.values()):
        notes.append(RECONSTRUCTION_NOTE)
    return notes + data_notes(results)


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise KdbenchError(f"{path} cannot be read: {error}") from None
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise KdbenchError(f"{path} lacks the columns {', '.join(missing)}")
    return table.reindex(columns=[*COLUMNS, *_OPTIONAL], fill_value="")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9+]", "", name.lower())


_NET_KEYS = {_plain(alias): key for key, aliases in NET_ALIASES.items() for alias in (key, *aliases)}
_METHOD_KEYS = {_plain(alias): key for key, aliases in METHOD_ALIASES.items() for alias in (key, *aliases)}
