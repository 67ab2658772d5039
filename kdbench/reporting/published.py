"""Published top-1 figures, each with its source, and the ledger that sets them beside ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from kdbench.errors import KdbenchError
from kdbench.reporting.aliases import AVERAGED_WEIGHTS, METHOD_ALIASES, NET_ALIASES, PUBLISHED_EPOCHS
from kdbench.reporting.caption import build_caption, data_notes, nothing_text, results_hash
from kdbench.reporting.claims import claims
from kdbench.reporting.frame import Results, collect
from kdbench.reporting.table import RECONSTRUCTION_NOTE, Cell, Header, Note, Table, letter

COLUMNS = (
    *("paper", "arxiv_id", "table", "dataset", "teacher", "teacher_top1"),
    *("student", "student_top1", "method", "top1", "source", "evidence"),
)

#: Columns that not every file has: empty there, and images of 224 px.
OPTIONAL = ("std", "n_runs", "selection", "provenance", "image_size")

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
    rows = pd.concat(tables, ignore_index=True) if tables else pd.DataFrame(columns=[*COLUMNS, *OPTIONAL], dtype=object)
    for name in ("teacher_top1", "student_top1", "top1"):
        rows[name] = pd.to_numeric(rows[name], errors="coerce").astype(float)
    rows["dataset_key"] = [_dataset_key(*row) for row in zip(rows["dataset"], rows["image_size"], strict=True)]
    rows["teacher_key"] = rows["teacher"].map(normalise_net)
    rows["student_key"] = rows["student"].map(normalise_net)
    rows["method_key"] = rows["method"].map(normalise_method)
    # Tables that say where their figures come from are those of CNNs, in which FitNet is the hint without KD.
    rows.loc[rows["provenance"].ne("") & rows["method_key"].eq("fitnet-kd"), "method_key"] = "fitnet"
    return rows[rows["top1"].notna()].reset_index(drop=True)


def normalise_net(name: str) -> str:
    """One key per net: ``Swin-T`` and ``swin_tiny_patch4_window7_224.ms_in1k`` are the same."""
    return _NET_KEYS.get(_plain(_bare(name)), _plain(_bare(name)))


def normalise_method(name: str) -> str:
    """One key per method: ``PAT`` and ``fofa`` are the same. Brackets belong to the name: they mark a variant."""
    text = str(name)
    if text.startswith("released checkpoint"):
        return "teacher"
    return _METHOD_KEYS.get(_plain(text), _plain(text))


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
    identity = results.identity()
    shared: dict[str, Any] = {
        "command": command or f"kdbench table {identity['suite']} --against-published",
        "results_hash": results_hash(results),
        "label": "kdbench-published",
        "ranked": False,
    }
    records = _records(results, published)
    message = _nothing(results, published, records, folder)
    if message:
        empty = pd.DataFrame(columns=list(_RECORD_COLUMNS))
        return Table(message=message, records=empty, **shared)
    notes: dict[str, str] = {}
    rows, cells = [], []
    for record in records:
        mark = notes.setdefault(record["source"], letter(len(notes)))
        rows.append(Header(record["title"], "text", _GROUPS[record["kind"]]))
        cells.append(_cells(record, mark))
    titles = ("method", "published", "ours", "difference", "evidence", "published in", "note")
    return Table(
        corner="net or pair",
        rows=tuple(rows),
        columns=tuple(Header(title, "text") for title in titles),
        cells=tuple(cells),
        caption=f"Published beside ours. Ours: {build_caption(results)}",
        notes=(*(Note(mark, source) for source, mark in notes.items()), *(Note("", text) for text in _notes(results))),
        records=pd.DataFrame(records)[list(_RECORD_COLUMNS)],
        **shared,
    )


_RECORD_COLUMNS = (
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
        "epoch",
        "ours_top1",
        "sd",
        "n",
        "difference",
    ),
    *("state", "evidence", "paper", "source", "note"),
)


def _records(results: Results, published: pd.DataFrame) -> list[dict[str, Any]]:
    ours = _ours(results)
    size = results.cells["image_size"].iloc[0] if len(results.cells) else ""
    same = published[published["dataset_key"] == _dataset_key(results.identity()["dataset"], size)]
    records = []
    for figure in claims(same, results.select):
        for our in ours:
            if our["kind"] != figure["kind"] or not _matches(our, figure):
                continue
            record = {**our, **figure, "dataset": results.identity()["dataset"], "method": our["method"]}
            record["difference"] = our["ours_top1"] - np.clip(
                our["ours_top1"], figure["published_low"], figure["published_high"]
            )
            record["note"] = "; ".join([*_remarks(our, results), *_recipe_remarks(our, figure, results)])
            records.append(record)
    order = {id(our["order"]): i for i, our in enumerate(ours)}
    return sorted(records, key=lambda r: (list(_GROUPS).index(r["kind"]), order[id(r["order"])], -r["published_top1"]))


def _matches(our: dict[str, Any], figure: dict[str, Any]) -> bool:
    if figure["kind"] == "distilled" and figure["method_key"] not in our["method_keys"]:
        return False
    teacher = figure["kind"] == "scratch" or figure["teacher_key"] in our["teacher_keys"]
    student = figure["kind"] == "teacher" or figure["student_key"] in our["student_keys"]
    return teacher and student


def _ours(results: Results) -> list[dict[str, Any]]:
    """Our figures with the keys by which they are found: teachers, students from scratch, distilled students."""
    ours: list[dict[str, Any]] = []
    blank = {"sd": np.nan, "n": 0, "fidelity": "", "teacher": "", "student": "", "method_keys": set()}
    teachers: dict[str, list[dict[str, Any]]] = {}
    students: dict[str, list[str]] = {}
    for pair, row in results.pair_info.items():
        teachers.setdefault(row["teacher"], []).append(row)
        students.setdefault(row["student"], []).append(pair)
    for teacher, rows in teachers.items():
        values = [row["teacher_value"] for row in rows if np.isfinite(row["teacher_value"])]
        mean = float(np.mean(values)) if values else np.nan
        ours.append(
            {**blank, "kind": "teacher", "title": rows[0]["teacher_display"], "teacher": teacher, "method": "teacher"}
            | {"display": "teacher", "ours_top1": mean, "n": len(values[:1]), "state": "done" if values else "planned"}
            | {"teacher_keys": _net_keys(teacher, rows[0]["teacher_display"]), "student_keys": set()}
        )
    for student, pairs in students.items():
        if "scratch" in results.method_info:
            ours.append(blank | _scratch(results, student, pairs))
    for (pair, method), score in results.score_info.items():
        if method == "scratch":
            continue
        row, info = results.pair_info[pair], results.method_info[method]
        ours.append(
            {"kind": "distilled", "title": row["title"], "teacher": row["teacher"], "student": row["student"]}
            | {"method": method, "display": info["title"], "fidelity": info["fidelity"], "state": score["state"]}
            | {"ours_top1": score["mean"], "sd": score["sd"], "n": int(score["n"])}
            | {"method_keys": _method_keys(method, info["display"])}
            | {"teacher_keys": _net_keys(row["teacher"], row["teacher_display"])}
            | {"student_keys": _net_keys(row["student"], row["student_display"])}
        )
    places = {name: i for i, name in enumerate((*results.pair_info, *results.method_info))}
    for our in ours:
        pair = f"{our['teacher']}--{our['student']}"
        our["order"] = (places.get(pair, 0), places.get(our["method"], -1), our["title"])
    return sorted(ours, key=lambda our: our["order"])


def _method_keys(method: str, display: str) -> set[str]:
    """Keys of a method of ours: a name that papers use for another of ours (FitNet) is not its own."""
    return {method, normalise_method(method), normalise_method(display)} - (METHOD_ALIASES.keys() - {method})


def _scratch(results: Results, student: str, pairs: list[str]) -> dict[str, Any]:
    """A student from scratch: the same for all its teachers, so first the mean over pairs, then over seeds."""
    cells = results.cells[(results.cells["method"] == "scratch") & results.cells["pair"].isin(pairs)]
    seeds = cells.groupby("seed")["value"].mean().dropna()
    display = results.pair_info[pairs[0]]["student_display"]
    return {
        "kind": "scratch",
        "title": display,
        "student": student,
        "method": "scratch",
        "display": "from scratch",
        "ours_top1": float(seeds.mean()) if len(seeds) else np.nan,
        "sd": float(seeds.std()) if len(seeds) > 1 else np.nan,
        "n": len(seeds),
        "state": "done" if len(seeds) else "planned",
        "teacher_keys": set(),
        "student_keys": _net_keys(student, display),
    }


def _remarks(our: dict[str, Any], results: Results) -> list[str]:
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
    pairs = [pair for pair, row in results.pair_info.items() if row["student"] == our["student"]]
    family = results.pair_info[pairs[0]]["student_family"]
    own = results.cells[results.cells["pair"].isin(pairs) & (results.cells["method"] == our["method"])]
    epochs = own.loc[own["value"].notna(), "epochs"].dropna()
    dataset = _plain(results.identity()["dataset"])
    of_papers = [PUBLISHED_EPOCHS.get((paper, dataset)) for paper in figure["papers"]]
    known = {epochs.get(family) for epochs in of_papers if epochs}
    remarks = []
    if len(known) == 1 and epochs.nunique() == 1 and (published := known.pop()) and epochs.iloc[0] != published:
        remarks.append(f"{epochs.iloc[0]:g} epochs, published {published}")
    if figure["papers"] and all(paper in AVERAGED_WEIGHTS for paper in figure["papers"]) and our["kind"] == "distilled":
        remarks.append("published with averaged weights")
    return remarks


def _cells(record: dict[str, Any], mark: str) -> tuple[Cell, ...]:
    ours = np.isfinite(record["ours_top1"])
    low, high = record["published_low"], record["published_high"]
    claimed = Cell("value", low, decimals=2) if low == high else Cell("text", text=f"{low:.2f} to {high:.2f}")
    reconstruction = " (rec.)" if record["fidelity"] == "reconstruction" else ""
    return (
        Cell("text", text=record["display"] + reconstruction),
        claimed,
        Cell("value", record["ours_top1"], record["sd"], record["n"], decimals=2) if ours else Cell("absent"),
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


def _nothing(
    results: Results, published: pd.DataFrame, records: list[dict[str, Any]], folder: Path | str | None
) -> str:
    if results.empty:
        return nothing_text(results)
    if not len(published):
        source = "results/published of the project's source is not part of this installation"
        return f"No published figures to compare with: {source if folder is None else f'{folder} holds none'}."
    if not records:
        return f"No published figure is known for these pairs and methods on {results.identity()['dataset']}."
    return ""


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except (ValueError, OSError) as error:
        raise KdbenchError(f"{path} cannot be read: {error}") from None
    missing = [name for name in COLUMNS if name not in table]
    if missing:
        raise KdbenchError(f"{path} lacks the columns {', '.join(missing)}")
    return table.reindex(columns=[*COLUMNS, *OPTIONAL], fill_value="")


def _dataset_key(name: object, image_size: object) -> str:
    """The same images of another size are another task."""
    return f"{_plain(name)}@{image_size or '224'}"


def _plain(name: object) -> str:
    return re.sub(r"[^a-z0-9+]", "", str(name).lower())


def _bare(name: object) -> str:
    """Without a remark in brackets, and without timm's tag of the weights (``.ms_in1k``). Brackets without a space before them
    belong to the name: ``MobileNetV2(HSAKD)`` is another net."""
    return re.sub(r"\s\(.*?\)", "", str(name)).strip().split(".")[0]


def _net_keys(name: str, display: str) -> set[str]:
    """The net that tables print, not a suite's short name for it: ``vit-s`` is another net in every suite."""
    return {normalise_net(display or name)}


_NET_KEYS = {_plain(alias): key for key, aliases in NET_ALIASES.items() for alias in (key, *aliases)}
_METHOD_KEYS = {_plain(alias): key for key, aliases in METHOD_ALIASES.items() for alias in (key, *aliases)}
