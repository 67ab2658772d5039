"""The verbs for who writes methods: ``test`` and ``new-method``."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from tabulate import tabulate

from kdbench.cli import console
from kdbench.cli.options import verb
from kdbench.cli.values import PATH
from kdbench.errors import KdbenchError, UnknownNameError
from kdbench.matrix.cells import choose_methods
from kdbench.matrix.request import Request
from kdbench.plugins.entry import MethodEntry
from kdbench.plugins.registry import catalog
from kdbench.plugins.template import check_name, next_steps, write_template
from kdbench.suite.net import name_files
from kdbench.suite.suite import Suite, load_suite, split_pair

if TYPE_CHECKING:
    from kdbench.conformance.bench import Pair
    from kdbench.conformance.findings import Examination, Skip


@verb("test", "plugins", "pairs")
@click.argument("methods", nargs=-1, metavar="[METHOD]...")
@click.option(
    "--suite",
    "suite",
    metavar="NAME",
    help="Check on the nets of this suite's pairs (--pairs, or its protocol's) instead of tiny ones.",
)
def test(request: Request, methods: tuple[str, ...], suite: str | None) -> int:
    """Check methods against the contract.

    METHOD is a name or a glob (default: those of --plugin, or else all methods).
    """
    if request.pairs and suite is None:
        raise KdbenchError("--pairs needs --suite, whose pairs it names")
    loaded = load_suite(suite) if suite is not None else None
    pairs = (
        []
        if loaded is None
        else loaded.choose_pairs(request.pairs)
        if request.pairs
        else loaded.under(loaded.default_protocol).pairs
    )
    name_files(request.plugins)
    known = catalog(request.plugins, loaded.net_files if loaded else ())
    files = {Path(plugin) for plugin in request.plugins}
    own = [name for name, entry in known.items() if entry.path in files]
    try:
        names = choose_methods(known, methods or own or ([] if files else ["*"]))
    except UnknownNameError:
        console.plugin_errors(known.errors)
        raise
    failed = _check([known[name] for name in names], loaded, pairs) if names else 0
    return 1 if console.plugin_errors(known.errors) or failed else 0


@verb("new-method", "plugins")
@click.argument("name")
@click.option("--to", type=PATH, metavar="FILE", help="Where to write it (default: NAME.py).")
def new_method(request: Request, name: str, to: str | None) -> int:
    """Write a working method to start from."""
    check_name(name, catalog(request.plugins))
    path = Path(to or f"{name}.py")
    write_template(name, path)
    console.say(next_steps(name, path))
    return 0


def _check(entries: Sequence[MethodEntry], suite: Suite | None, names: Sequence[str]) -> int:
    """Check methods one after the other, on a suite's pairs where there is one, and print what was found.

    Returns:
        the number of methods that failed.
    """
    import torch

    from kdbench.conformance.bench import PAIRS, Pair, other_nets

    torch.set_num_threads(1)
    if suite is None:
        return _examine(entries, PAIRS)
    pairs = [Pair(*split_pair(name)) for name in names]
    with other_nets(pairs, {name: suite.net(name) for pair in pairs for name in (pair.teacher, pair.student)}):
        return _examine(entries, pairs)


def _examine(entries: Sequence[MethodEntry], pairs: Sequence[Pair]) -> int:
    from kdbench.conformance.inspector import examine

    start = time.monotonic()
    width = max(len(entry.name) for entry in entries)
    found = []
    for entry in entries:
        with Console(file=sys.stdout).status(entry.name) as status:  # shown on a terminal only
            examination = examine(entry, lambda check: status.update(f"{entry.name}  {check}"), pairs)  # noqa: B023
        found.append(examination)
        console.say(_examination_text(examination, width))
    failed = sum(bool(examination.failures) for examination in found)
    skips = [skip for examination in found for skip in examination.skips]
    if skips:
        console.say(f"\npairs left out, each by the method's own reason:\n{_skips_table(skips)}")
    console.say(f"\n{len(found) - failed} of {len(found)} methods pass all checks, in {time.monotonic() - start:.0f} s")
    return failed


def _examination_text(examination: Examination, width: int) -> str:
    count = len(examination.failures)
    verdict = "ok" if not count else f"FAILED ({count})"
    left_out = f"  {len(examination.skips)} pairs left out" if examination.skips else ""
    lines = [f"{examination.method:<{width}}  {verdict:<10}  {examination.seconds:5.1f} s{left_out}"]
    for failure in examination.failures:
        lines.append(f"  {failure}")
        if failure.details and os.environ.get("KDBENCH_DEBUG"):
            lines.append(failure.details)
    return "\n".join(lines)


def _skips_table(skips: Sequence[Skip]) -> str:
    rows: dict[tuple[str, str], list[str]] = {}
    for skip in skips:
        rows.setdefault((skip.method, skip.reason), []).append(skip.pair)
    content = [(method, ", ".join(pairs), reason) for (method, reason), pairs in rows.items()]
    headers = ("method", "teacher -> student", "reason")
    return tabulate(content, headers=headers, tablefmt="simple", maxcolwidths=[None, 40, 60])
