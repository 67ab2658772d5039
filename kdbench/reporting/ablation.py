"""One method under several settings: itself and its variants, with the hyper-parameters in which they differ."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd

from kdbench.errors import KdbenchError, UnknownNameError
from kdbench.reporting.caption import build_caption, data_notes, label_of, nothing_text, results_hash, short_caption
from kdbench.reporting.choices import Choices, arranged, renamed
from kdbench.reporting.frame import Results, collect, fill_frame
from kdbench.reporting.grid import Cell, Header, Note, Table, mark_best
from kdbench.reporting.references import citations_of


def ablation_table(
    frame: pd.DataFrame, method: str, metric: str, select: str, choices: Choices, *, command: str = ""
) -> Table:
    """A row for each setting; columns: the hyper-parameters that differ, the pairs, their average, the gain over the method itself.

    Args:
        frame, metric, select, command: as for ``build_table``.
        method: whose settings; its variants are those of the frame.
        choices: of an author; ``ours`` and ``published`` have no meaning here.

    Raises:
        UnknownNameError: if there is no such method.
        KdbenchError: if it has no variant, or a choice has no meaning here.
    """
    if choices.ours or choices.published or choices.baseline:
        raise KdbenchError("--ablation compares settings of one method with it: no --ours, --baseline or --published")
    filled = renamed(fill_frame(frame), choices.names)
    settings = filled[(filled["method"] == method) | (filled["variant_of"] == method)]
    if not (settings["method"] == method).any():
        raise UnknownNameError("method", method, sorted(filled["method"].unique()))
    if settings["method"].nunique() < 2:
        raise KdbenchError(
            f"{method} has no variant here, and so nothing to compare; kdbench run --variant NAME={method},KEY=VALUE"
        )
    results = arranged(collect(settings, metric, select), choices)
    shared: dict[str, Any] = {
        "command": command,
        "results_hash": results_hash(results),
        "label": label_of(results, metric, "ablation"),
        "records": results.scores.reset_index(),
    }
    if results.empty:
        return Table(message=nothing_text(results), **shared)
    names = sorted(results.method_info, key=lambda name: name != method)
    decimals = results.metric.decimals if choices.decimals is None else choices.decimals
    means = results.means()[names]
    common = means.dropna()
    gains = results.gains(method).loc[common.index, names]
    arrow = "↑" if results.metric.higher_is_better else "↓"
    suffix = "" if len(common) == len(means) else f" ({len(common)} of {len(means)} pairs)"
    differing = _differing(results, names)
    columns = [
        *(Header(key, "text", "setting") for key in differing),
        *(Header(row["title"], "pair", "pairs") for row in results.pair_info.values()),
        Header(f"average{suffix}", "summary", "summary", better=arrow),
        Header(f"gain over {results.method_info[method]['display']}{suffix}", "summary", "summary", better="↑"),
    ]
    figures = []
    for pair in means.index:
        column = []
        for name in names:
            score = results.score_info.get((str(pair), name), {})
            known = score.get("state") == "done"
            sd = score["sd"] if known and choices.sd else np.nan
            column.append(Cell("value", score["mean"], sd, decimals) if known else Cell("absent"))
        figures.append(mark_best(column, [cell.kind == "value" for cell in column], results.metric.higher_is_better))
    average = [Cell("value", float(common[name].mean()), decimals=decimals) for name in names]
    gained = [Cell("gain", float(gains[name].mean()), decimals=decimals + 1) for name in names]
    below = [mark_best(average, [True] * len(names), results.metric.higher_is_better), gained]
    known_columns = [[Cell("text", text=text) for text in texts] for texts in differing.values()]
    filler = [[Cell("empty")] * len(names)] * 2
    whole = [*known_columns, *figures, *(below if len(common) else filler)]
    info = results.method_info
    return Table(
        corner="setting",
        rows=tuple(
            Header(info[name]["title"], "method", "", info[name]["fidelity"] == "reconstruction") for name in names
        ),
        columns=tuple(columns),
        cells=tuple(zip(*whole, strict=True)),
        caption=build_caption(results),
        short=short_caption(results),
        notes=(
            Note("", f"Gain: over {info[method]['display']} with the same seed, mean over seeds, then over pairs."),
            *(Note("", text) for text in data_notes(results)),
        ),
        citations=citations_of(names, results),
        **shared,
    )


def _differing(results: Results, names: list[str]) -> dict[str, list[str]]:
    """Hyper-parameter -> its value in each setting, of those in which settings differ."""
    values: list[dict[str, str]] = []
    for name in names:
        texts = results.cells.loc[results.cells["method"] == name, "hyperparameters"].unique()
        found: dict[str, set[str]] = {}
        for text in texts:
            for key, value in (json.loads(text) if text else {}).items():
                found.setdefault(key, set()).add(str(value))
        values.append({key: options.pop() if len(options) == 1 else "by pair" for key, options in found.items()})
    keys = dict.fromkeys(key for own in values for key in own)
    return {key: [own.get(key, "") for own in values] for key in keys if len({own.get(key, "") for own in values}) > 1}
