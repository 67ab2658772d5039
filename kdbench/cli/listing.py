"""``kdbench list``: methods, pairs, suites, nets and data sets, as tables or JSON. Works without torch."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
from tabulate import tabulate

import kdbench.plugins
from kdbench.cli import console
from kdbench.cli.options import completed, note_untuned, plan_of, verb
from kdbench.cli.values import OneOf
from kdbench.errors import KdbenchError
from kdbench.matrix.request import Request
from kdbench.plugins.citations import bibtex
from kdbench.plugins.entry import FAMILIES, Setting
from kdbench.plugins.registry import MethodCatalog, catalog
from kdbench.suite.datasets import DATASETS
from kdbench.suite.schema import suite_schema
from kdbench.suite.suite import Suite, load_suite, suite_files
from kdbench.suite.zoo import ZOO

#: Extra parameters of the methods, as docs/methods.py counts them.
COSTS = Path(kdbench.plugins.__path__[0], "method_costs.json")

KINDS = ("methods", "pairs", "suites", "protocols", "nets", "datasets", "published")
#: What ``--suite`` lists of one suite.
_OF_A_SUITE = ("methods", "pairs", "protocols")
#: Width of a column of prose, in characters.
PROSE = 32


@verb("list", "plugins")
@click.argument("what", metavar="[KIND]", required=False, type=OneOf((*KINDS, "schema")))
@click.option(
    "--suite", metavar="SUITE", help="List pairs, protocols, or methods as set, of this suite (default: of all suites)."
)
@click.option("--pair", metavar="T--S", help="With --suite: list methods as set for this pair (default: its first).")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--bibtex", "as_bibtex", is_flag=True, help="Print the papers of the methods as BibTeX.")
def list_all(
    request: Request, what: str | None, suite: str | None, pair: str | None, as_json: bool, as_bibtex: bool
) -> int:
    """List methods, pairs, suites, nets and more.

    published lists the papers whose figures are shipped; schema prints the JSON Schema of a suite's file.
    """
    if what == "schema":
        console.say(json.dumps(suite_schema(), indent=1))
        return 0
    if suite and what not in _OF_A_SUITE:
        raise KdbenchError(f"--suite is for one of {', '.join(_OF_A_SUITE)}: kdbench list pairs --suite {suite}")
    methods = catalog(request.plugins)
    if as_bibtex:
        if what != "methods" or as_json:
            raise KdbenchError("--bibtex lists the papers of methods: kdbench list methods --bibtex")
        console.say(bibtex(entry.citation for entry in methods.values()))
        return console.plugin_errors(methods.errors)
    content = {kind: _rows(kind, methods, suite) for kind in ([what] if what else KINDS)}
    if what == "methods" and suite:
        choice = replace(request, suite=suite, methods=("*",), pairs=(pair or load_suite(suite).pairs[0],), seeds=(0,))
        plan = plan_of(choice)
        methods = plan.catalog
        chosen = {cell.method: cell.hyperparameters for cell in plan.cells}
        content = {what: [{**row, "hyperparameters": chosen[row["name"]]} for row in _rows(what, methods, suite)]}
    elif pair:
        raise KdbenchError("--pair needs a suite and methods: kdbench list methods --suite digits --pair T--S")
    if as_json:
        console.say(json.dumps(content[what] if what else content, indent=1))
    elif what is None:
        for kind, rows in content.items():
            console.say(f"{kind}: {', '.join(dict.fromkeys(row.get('name') or row['pair'] for row in rows))}")
        console.say(f"\nkdbench list {'|'.join(KINDS)} tells more about each.")
    else:
        console.say(_table(what, content[what], with_settings=suite is not None))
    return console.plugin_errors(methods.errors)


@verb("show", "protocol", "set", "variants", "settings", "as_tuned", "plugins")
@click.argument("method", shell_complete=completed(lambda: catalog()))
@click.option(
    "--suite", metavar="SUITE", default="digits", help="A suite, or the path of its YAML file (default: digits)."
)
@click.option("--pair", metavar="T--S", help="A pair or a glob (default: the protocol's).")
def show(request: Request, method: str, suite: str, pair: str | None) -> int:
    """Show a method and its hyper-parameters on a suite.

    METHOD is the name of a method or a variant, or a glob. Pairs on which hyper-parameters differ are shown apart.

    Later ones win: the method's default; KD's, where it carries KD; its preset for the data; its preset for the data and the
    student's family; the suite's; the protocol's; with --as-tuned what was published for the pair; with --settings what a search
    found; --set METHOD. A variant begins where its method ends: its own settings; the protocol's for it; --set VARIANT.
    """
    plan = plan_of(replace(request, suite=suite, methods=(method,), pairs=(pair,) if pair else (), seeds=(0,)))
    note_untuned(plan)
    for name in dict.fromkeys(cell.method for cell in plan.cells):
        entry = plan.catalog[name]
        carries = f"; carries KD's loss ({', '.join(entry.carries_kd.values())})" if entry.carries_kd else ""
        lines = [
            f"{name}: {entry.display}{f', a variant of {entry.variant_of}' if entry.variant_of else ''}",
            entry.paper,
            "",
            f"family:   {entry.family}",
            f"fidelity: {entry.fidelity}",
            f"needs:    {', '.join(sorted(entry.needs)) if entry.uses_teacher else 'no teacher'}{carries}",
            f"source:   {entry.path}, version {entry.version}",
            *(["", bibtex([entry.citation])] if entry.citation else []),
        ]
        groups: dict[tuple[Setting, ...], list[str]] = {}
        for cell in plan.cells:
            if cell.method == name:
                groups.setdefault(tuple(cell.settings.values()), []).append(cell.pair)
        for settings, pairs in groups.items():
            rows = [
                (parameter.name, str(setting.value), setting.origin, parameter.annotation, parameter.range or "")
                for parameter, setting in zip(entry.hyperparameters.values(), settings, strict=True)
            ]
            headers = ("hyper-parameter", "value", "from", "type", "range")
            lines += ["", f"suite {suite}, protocol {plan.under.name}: {', '.join(pairs)}", ""]
            lines.append(tabulate(rows, headers, "simple", disable_numparse=True) if rows else "no hyper-parameters")
        console.say("\n".join(lines))
    return console.plugin_errors(plan.catalog.errors)


def _table(what: str, rows: Sequence[dict[str, Any]], with_settings: bool) -> str:
    if not rows:
        return f"no {what}"
    if what == "methods":
        return _settings_table(rows) if with_settings else _methods_table(rows)
    if what == "suites":
        starred = [[f"{name}*" if name == row["default"] else name for name in row["protocols"]] for row in rows]
        rows = [
            {**{key: row[key] for key in row if key != "default"}, "protocols": " ".join(names)}
            for row, names in zip(rows, starred, strict=True)
        ]
    missing = "any" if what == "datasets" else ""
    widths = [PROSE if key in ("images", "source", "title", "description") else None for key in rows[0]]
    table = tabulate(rows, headers="keys", tablefmt="simple", maxcolwidths=widths, missingval=missing)
    return f"{table}\n\n*: the default; kdbench list protocols says what each is" if what == "suites" else table


def _rows(kind: str, methods: MethodCatalog, suite: str | None) -> list[dict[str, Any]]:
    if kind == "methods":
        return [
            {
                "name": entry.name,
                "display": entry.display,
                "family": entry.family,
                "fidelity": entry.fidelity,
                "needs": sorted(entry.needs),
                "extra_parameters": extra_parameters().get(entry.name) if entry.builtin else None,
                "paper": entry.paper,
                "citation": dict(entry.citation),
                "version": entry.version,
                "hyperparameters": {name: parameter.default for name, parameter in entry.hyperparameters.items()},
                "presets": {key: dict(value) for key, value in entry.presets.items()},
            }
            for entry in sorted(methods.values(), key=lambda entry: (list(FAMILIES).index(entry.family), entry.name))
        ]
    if kind in ("suites", "pairs", "protocols"):
        rows_of = {"suites": _suite_rows, "pairs": _pair_rows, "protocols": _protocol_rows}[kind]
        return [row for name in ([suite] if suite else suite_files()) for row in rows_of(load_suite(name))]
    if kind == "published":
        return _published_rows()
    if kind == "nets":
        return [{"name": name, **{key: net[key] for key in ("timm", "family", "display")}} for name, net in ZOO.items()]
    return [
        {"name": entry.name, "classes": entry.num_classes, "images": entry.images, "source": entry.source}
        for entry in DATASETS.values()
    ]


def _published_rows() -> list[dict[str, Any]]:
    """Papers, or code, by data set, with the number of figures that ``kdbench table --against-published`` may show."""
    from kdbench.reporting.figures import load_published
    from kdbench.reporting.references import citation_of

    counts: dict[tuple[str, str, str], int] = {}
    for row in load_published().itertuples():
        citation = citation_of(str(row.paper), str(row.arxiv_id), str(row.source))
        key = str(row.paper), str(row.dataset), str(citation.get("key", ""))
        counts[key] = counts.get(key, 0) + 1
    return [
        {"name": paper, "dataset": dataset, "figures": count, "cited as": cited}
        for (paper, dataset, cited), count in sorted(counts.items())
    ]


def _suite_rows(suite: Suite) -> Sequence[dict[str, Any]]:
    return [
        {
            "name": suite.name,
            "title": suite.title,
            "dataset": suite.dataset.name,
            "pairs": len(suite.pairs),
            "protocols": list(suite.protocols),
            "default": suite.default_protocol,
        }
    ]


def _protocol_rows(suite: Suite) -> Sequence[dict[str, Any]]:
    return [
        {"name": name, "suite": suite.name, "description": protocol.description}
        for name, protocol in suite.protocols.items()
    ]


def _pair_rows(suite: Suite) -> Sequence[dict[str, Any]]:
    rows = []
    for pair in suite.pairs:
        teacher, _, student = pair.partition("--")
        rows.append(
            {
                "pair": pair,
                "suite": suite.name,
                "teacher": f"{suite.net(teacher).model} ({suite.net(teacher).family or '?'})",
                "student": f"{suite.net(student).model} ({suite.net(student).family or '?'})",
            }
        )
    return rows


def _methods_table(rows: Sequence[dict[str, Any]]) -> str:
    """Methods, a line each."""
    short = [
        {
            "name": row["name"],
            "family": row["family"],
            "fidelity": row["fidelity"],
            "taps": " ".join(tap for tap in row["needs"] if tap != "logits") or "-",
            "extra": short_count(row["extra_parameters"]["usual"] if row["extra_parameters"] else None),
            "paper": _cited(row["citation"]) or "-",
        }
        for row in rows
    ]
    aligned = ["right" if key == "extra" else "left" for key in short[0]]
    table = tabulate(short, headers="keys", tablefmt="simple", disable_numparse=True, colalign=aligned)
    return (
        f"{table}\n\nextra: trainable parameters that a method adds for Swin-T to ResNet18 with 100 classes\n"
        "hyper-parameters: kdbench show METHOD, or kdbench list methods --suite SUITE"
    )


def _settings_table(rows: Sequence[dict[str, Any]]) -> str:
    """Methods with their hyper-parameters."""
    short = [
        {
            "name": row["name"],
            "fidelity": row["fidelity"],
            "hyper-parameters": ", ".join(f"{key}={value}" for key, value in row["hyperparameters"].items()) or "-",
        }
        for row in rows
    ]
    return tabulate(short, headers="keys", tablefmt="simple", disable_numparse=True, maxcolwidths=[None, None, 84])


def _cited(citation: Mapping[str, Any]) -> str:
    """A paper in a few words: ``Hao et al., NeurIPS 2023``."""
    if not citation:
        return ""
    first, *others = (author.partition(",")[0].strip("{}") for author in citation["authors"].split(" and "))
    authors = " and ".join((first, *others)) if len(others) < 2 and others != ["others"] else f"{first} et al."
    return f"{authors}, {citation['venue'].partition(',')[0]} {citation['year']}"


@functools.lru_cache(maxsize=1)
def extra_parameters() -> Mapping[str, Mapping[str, int]]:
    """Method -> reference pair -> number of extra trainable parameters, as packaged. Plugins are not in it."""
    return json.loads(COSTS.read_text(encoding="utf-8"))["extra_parameters"]


def short_count(number: int | None) -> str:
    """A number of parameters in a few characters: ``0``, ``640``, ``12.3 k``, ``1.63 M``; ``?`` for None."""
    if number is None:
        return "?"
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if number >= size:
            value = number / size
            return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f} {unit}"
    return str(number)
