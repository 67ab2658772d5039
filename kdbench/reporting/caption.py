"""What stands under every table, leaderboard and picture, built from the results: data, rule, spread, coverage."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

import pandas as pd

from kdbench.errors import counted
from kdbench.reporting.frame import CHANGED, Results
from kdbench.store.rows import STALE

RECONSTRUCTION_NOTE = (
    "(rec.): our reconstruction from what is published about the method, without its authors' code; "
    "it is not a reproduction of it."
)


def build_caption(results: Results) -> str:
    """Metric, data set, protocol, epochs, selection rule, spread, coverage, commit and date."""
    identity = results.identity()
    metric = results.metric
    direction = "higher" if metric.higher_is_better else "lower"
    dataset = next((title for title in results.cells["dataset_title"] if title), identity["dataset"])
    where = f"{metric.with_unit(metric.title, f'{direction} is better')} on {dataset}, {identity['split']} split"
    how = f"Suite {identity['suite']}, protocol {identity['protocol']}, "
    epochs = sorted(results.cells["epochs"].dropna().unique())
    if len(epochs) == 1:
        how += f"{counted(int(epochs[0]), 'epoch')}, "
    elif epochs:
        how += f"{epochs[0]:g} to {epochs[-1]:g} epochs (by student), "
    split = identity["split"]
    best = f"best {split} epoch (chosen by top-1 on the {split} split itself: an optimistic figure)"
    how += "last epoch" if results.select == "last" else best
    if not results.cells["conclusive"].all():
        how += f". Protocol {identity['protocol']} is too brief for conclusions"
    texts = (
        spread_text(results),
        teachers_text(results),
        declared_text(results),
        coverage_text(results),
        provenance_text(results),
    )
    return " ".join([f"{where}. {how}.", *filter(None, texts)])


def short_caption(results: Results) -> str:
    """Metric, data set and spread: what a reader must know to read a figure."""
    metric = results.metric
    dataset = next((title for title in results.cells["dataset_title"] if title), results.identity()["dataset"])
    return f"{metric.with_unit(metric.title, '')} on {dataset}. {spread_text(results)}".strip()


def seeds_text(seeds: list[int]) -> str:
    """Name the seeds: ``3 seeds (0, 1, 2)``."""
    if not seeds:
        return "no seed"
    if len(seeds) > 6 and seeds[-1] - seeds[0] == len(seeds) - 1:
        names = f"{seeds[0]} to {seeds[-1]}"
    else:
        names = ", ".join(map(str, seeds))
    return f"{counted(len(seeds), 'seed')} ({names})"


def spread_text(results: Results) -> str:
    seeds = results.seeds
    if results.empty:
        return ""
    if results.scores["n"].max() < 2:
        return (
            f"{seeds_text(seeds).capitalize()}{', one per figure' if len(seeds) > 1 else ''}: no spread can be given."
        )
    single = "; a figure without ± is one seed's" if (results.scores["n"] == 1).any() else ""
    return f"Mean ± sample standard deviation over {seeds_text(seeds)}{single}."


def teachers_text(results: Results) -> str:
    """That the draw of a teacher is part of no spread, unless students of one pair had several; empty without a taught student."""
    taught = results.cells[results.cells["value"].notna() & (results.cells["method"] != "scratch")]
    if taught.empty or (taught.groupby("pair")["teacher_checksum"].nunique() > 1).any():
        return ""
    return "Each pair has one trained teacher, whose own chance no spread over seeds shows."


def declared_text(results: Results) -> str:
    """Which gains were declared before their results; empty where none was."""
    if not results.declared:
        return ""
    dates = sorted({each.declared[:10] for each in results.declared})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    by_base: dict[str, list[str]] = {}
    for each in results.declared:
        by_base.setdefault(title_of(results, each.against), []).append(title_of(results, each.method))
    said = "; ".join(f"{join_names(names, 20)} over {base}" for base, names in by_base.items())
    return f"Declared before the run ({when}): {said}. Everything else is exploratory."


def title_of(results: Results, method: str) -> str:
    """What a method is called, whether there are results of it or not."""
    return str(results.method_info.get(method, {}).get("display") or method)


def coverage_text(results: Results) -> str:
    """Cells done of those planned, what became of the others, and how much of the store was chosen.

    Skipped cells are not planned, they cannot run.
    """
    counts = results.cells["state"].value_counts()
    skipped = int(counts.get("skipped", 0))
    planned = len(results.cells) + len(results.not_run) - skipped
    details = [f"{counts[state]} {state}" for state in ("failed", "running") if counts.get(state, 0)]
    if not_run := int(counts.get("planned", 0)) + len(results.not_run):
        details.append(f"{not_run} not run")
    if skipped:
        details.append(f"{skipped} more skipped as impossible")
    done = f"{counts.get('done', 0)} of {planned} planned cells done"
    chosen = [
        f"{results.cells[name].nunique()} of {counted(held, name)}"
        for name, held in results.held.items()
        if results.cells[name].nunique() < held
    ]
    choice = f" Chosen: {', '.join(chosen)} of the store." if chosen else ""
    return f"Coverage: {done}{'; ' + ', '.join(details) if details else ''}.{choice}"


def provenance_text(results: Results) -> str:
    """Commit, dates and devices of the finished cells."""
    done = results.cells[results.cells["value"].notna()]
    if done.empty:
        return ""
    commits = sorted({commit[:10] for commit in done["commit"] if commit})
    if not commits:
        text = "Commit unknown"
    elif len(commits) <= 3:
        text = f"Commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}"
    else:
        text = f"{len(commits)} commits ({', '.join(commits[:3])}, ...)"
    if done["dirty"].any():
        text += " with uncommitted changes"
    dates = sorted({date[:10] for date in done["finished"] if date})
    if dates:
        text += f", {dates[0]}" + (f" to {dates[-1]}" if len(dates) > 1 else "")
    devices = sorted({device for device in done["device"] if device})
    return f"{text}{', on ' + ' and '.join(devices) if devices else ''}."


def results_hash(results: Results) -> str:
    """Hash of the figures used, whatever the order of the rows: twelve hexadecimal digits."""
    used = results.cells[results.cells["value"].notna()]
    identity = "/".join(results.identity().values())
    columns = [used[name] for name in ("pair", "method", "seed", "config_hash", "value")]
    lines = sorted(f"{p} {m} {s} {h} {v!r}" for p, m, s, h, v in zip(*columns, strict=True))
    return hashlib.sha256("\n".join([identity, results.metric.name, results.select, *lines]).encode()).hexdigest()[:12]


def nothing_text(results: Results) -> str:
    """The one line that replaces a table without figures."""
    if not len(results.cells):
        return "No results yet: the store holds no cell of this choice."
    identity = results.identity()
    where = f"suite {identity['suite']}, protocol {identity['protocol']}"
    done = int((results.cells["state"] == "done").sum())
    if done:
        return f"No figures: none of the {done} finished cells holds {results.metric.title.lower()} ({where})."
    return f"No results yet ({where}). {coverage_text(results)}"


def data_notes(results: Results) -> list[str]:
    """What a reader must know about the rows: results replaced, who carries KD, settings and teachers that differ, gaps."""
    notes = []
    if results.superseded:
        notes.append(
            f"{results.superseded} older results of the same cells, under another configuration, are left out."
        )
    carrying = results.cells.loc[results.cells["carries_kd"], "method_display"].unique()
    if len(carrying):
        notes.append(f"KD's loss is part of theirs: {join_names(sorted(carrying))}.")
    if settings := _settings_texts(results.cells):
        named = (results.cells["variant_of"] != "").any()
        marked = ((results.cells["variant_of"] == "") & (results.cells["settings"] != "")).any()
        how = "; ".join([*([CHANGED] if marked else []), *(["variants by their names"] if named else [])])
        notes.append(f"Settings of their own ({how}): {'; '.join(settings)}.")
    notes += _not_run_notes(results) + teacher_notes(results)
    if results.late:
        names = join_names(title_of(results, each.method) for each in results.late)
        notes.append(f"Declared only after a first result was there, and so exploratory: {names}.")
    done = results.cells[results.cells["value"].notna()]
    counts = done.groupby(["pair", "method"])["hyperparameters"].nunique()
    if mixed := [f"{method} on {pair}" for pair, method in counts.index[counts > 1]]:
        notes.append(f"Hyper-parameters differ between the seeds of one figure: {join_names(mixed)}.")
    apart = results.pairs.index[results.pairs["teacher_spread"] > 0.05]
    if len(apart):
        titles = results.pairs.loc[apart, "title"]
        notes.append(f"The teacher's own figure differs between cells (the mean is shown): {join_names(titles)}.")
    unmeasured = int((results.scores["done"] - results.scores["n"]).sum())
    if unmeasured:
        notes.append(f"{unmeasured} finished cells hold no {results.metric.title.lower()} and are left out.")
    return notes


def join_names(names: Iterable[object], limit: int = 8) -> str:
    """Names with commas; beyond ``limit`` only their number."""
    texts = [str(name) for name in names]
    return ", ".join(texts[:limit]) + (f" and {len(texts) - limit} more" if len(texts) > limit else "")


def label_of(results: Results, *parts: str) -> str:
    """A label for LaTeX: the suite, the protocol, ``parts``, and a hash of which rows and columns there are, not of their figures."""
    identity = results.identity()
    content = "\n".join([identity["split"], results.select, *results.pairs.index, *results.methods.index])
    digest = hashlib.sha256(content.encode()).hexdigest()[:6]
    text = "-".join(["kdbench", identity["suite"], identity["protocol"], *parts, digest])
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")


def first_line(reason: str) -> str:
    """A reason on one line of at most 160 characters."""
    line = next((part.strip() for part in str(reason).splitlines() if part.strip()), "")
    return line if len(line) <= 160 else f"{line[:157]}..."


def _not_run_notes(results: Results) -> list[str]:
    """Methods of which nothing is shown, and cells of which the store has older results alone."""
    notes = []
    gone = results.not_run[~results.not_run["method"].isin(results.methods.index)]
    if len(gone):
        notes.append(f"Planned, but without a cell here: {join_names(sorted(set(gone['method_display'])))}.")
    every = pd.concat([results.cells, results.not_run])
    stale = every[every["reason"].str.startswith(STALE)]
    if len(stale):
        notes.append(
            f"Of {counted(len(stale), 'planned cell')} the store has results of another configuration alone, which are not "
            f"shown: {join_names(sorted(set(stale['method_display'])))}."
        )
    return notes


def teacher_notes(results: Results) -> list[str]:
    """Teachers that are weaker than the suite expects, and pairs that were taught by several weights under one name."""
    notes = []
    done = results.cells[results.cells["value"].notna()]
    weak = done[done["teacher_top1"] < done["teacher_expected"]]
    if len(weak):
        found = {
            str(
                name
            ): f"{name} {rows['teacher_top1'].min():.1f} % (expected: at least {rows['teacher_expected'].max():g} %)"
            for name, rows in weak.groupby("teacher_display")
        }
        notes.append(f"Weak teachers, from which little can be learnt: {join_names(found.values())}.")
    taught = done[(done["method"] != "scratch") & (done["teacher_checksum"] != "")]
    weights = taught.groupby("pair")["teacher_checksum"].nunique()
    several = weights[weights > 1]
    if len(several):
        titles = [f"{results.pair_info[str(pair)]['title']} ({count})" for pair, count in several.items()]
        notes.append(
            f"Different teachers of one name (weights differ) taught the cells of {join_names(titles)}: means pool them, gains "
            "compare only cells of the same weights."
        )
    return notes


def _settings_texts(cells: pd.DataFrame) -> list[str]:
    """Which rows are variants, and which have values that their methods do not have by themselves."""
    done = cells[cells["value"].notna() & ((cells["variant_of"] != "") | (cells["settings"] != ""))]
    texts = []
    for (display, parent, settings), rows in done.groupby(["method_display", "variant_of", "settings"]):
        everywhere = set(rows["pair"]) == set(cells.loc[cells["method_display"] == display, "pair"])
        where = "" if everywhere else f" on {join_names(sorted(set(rows['pair'])))}"
        texts.append(f"{display}{where} ({', '.join(str(text) for text in (parent, settings) if text)})")
    return texts
