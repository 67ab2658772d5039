"""``kdbench status``: the state of every cell as the run directory shows it, from any machine that sees it."""

from __future__ import annotations

import contextlib
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live
from rich.text import Text
from tabulate import tabulate

from kdbench.cli import console
from kdbench.cli.options import CELLS, plan_of, plan_on_disk, verb
from kdbench.cli.plan import STATE_WORDS
from kdbench.cli.progress import format_seconds
from kdbench.cli.stores import stale_in
from kdbench.cli.values import SECONDS
from kdbench.errors import counted
from kdbench.launch.remote import parse_event
from kdbench.matrix.cells import Cell, Plan
from kdbench.matrix.request import Request
from kdbench.opening import RefusedFileError, inside, open_file
from kdbench.shown import printable
from kdbench.store.claims import Holder
from kdbench.store.folders import Store
from kdbench.store.result import Failure
from kdbench.store.rows import damaged_in
from kdbench.teachers.readiness import verdict_of

COLUMNS = ("done", "running", "interrupted", "failed", "skipped", "planned")
#: How much of the end of a file of events is read.
TAIL_BYTES = 65536


@verb("status", *CELLS, "out")
@click.option(
    "--watch",
    is_flag=False,
    flag_value=5.0,
    type=SECONDS,
    metavar="[SECONDS]",
    help="Keep showing until nothing is pending (default: every 5 seconds).",
)
@click.option(
    "--stale", "list_stale", is_flag=True, help="List stale results, of older configurations, and what differs."
)
def status(request: Request, watch: float | None, list_stale: bool) -> int:
    """Count done, running, failed and pending cells."""
    store = Store(request.out)
    store.check()
    plan = plan_of(request)
    plan = plan_on_disk(plan, store)
    if list_stale:
        stale = stale_in(request, store)
        for each in stale:
            console.say(f"{each.path}: {each.why}")
        console.say(
            f"{counted(len(stale), 'cell')} of older configurations" + ("; kdbench prune removes them" if stale else "")
        )
    elif watch is None:
        console.say(status_text(plan, store, read_status(plan, store)))
    else:
        watch_status(plan, store, watch)
    return console.plugin_errors(plan.catalog.errors)


@dataclass
class Status:
    """The states of a plan's cells, and what is known of those that are not done."""

    rows: dict[str, Counter[str]] = field(default_factory=dict)
    running: list[tuple[Cell, Holder]] = field(default_factory=list)
    failed: list[tuple[Cell, Failure, Path]] = field(default_factory=list)
    damaged: list[str] = field(default_factory=list)  # "FILE: reason"
    stale: list[Path] = field(default_factory=list)
    taught: dict[str, Counter[str]] = field(
        default_factory=dict
    )  # pair -> checksums of its teachers, with numbers of cells

    @property
    def counts(self) -> Counter[str]:
        return sum(self.rows.values(), Counter())


def read_status(plan: Plan, store: Store) -> Status:
    """Read the state of every cell of a plan, and what of its protocol is damaged."""
    status = Status(damaged=damaged_in(store.root, plan.suite.name, plan.under.name))
    cells = (*plan.cells, *plan.skipped, *plan.broken)
    found = store.scan(cells)
    damaged = {"/".join(line.split("/")[:5]) for line in status.damaged}  # folders of cells
    for cell in cells:
        state = found[cell.folder].state
        if state == "done" and cell.folder in damaged:  # no table shows it before run mends its configuration
            state = "planned"
        if state == "planned" and cell.reason is not None:
            state = "skipped" if cell in plan.skipped else "failed"
        status.rows.setdefault(cell.pair, Counter())[state] += 1
        result = found[cell.folder].result
        if result is not None and plan.catalog[cell.method].uses_teacher:
            status.taught.setdefault(cell.pair, Counter())[result.teacher.checksum] += 1
        with contextlib.suppress(RefusedFileError):  # a link, which is among what is damaged
            folder = store.cell(cell)
            holder = folder.holder() if state == "running" else None
            if holder is not None:
                status.running.append((cell, holder))
            elif state == "failed" and folder.failed.exists():
                status.failed.append((cell, folder.failure(), folder.log))
            alike = folder.path.parent.glob(f"seed{cell.seed}-*")
            status.stale += [other for other in alike if other.name != folder.path.name]
    return status


def status_text(plan: Plan, store: Store, status: Status) -> str:
    """Done, running (where, since when, how far), failed (why), pending, and results of older configurations."""
    lines = [f"suite {plan.suite.name}, protocol {plan.under.name}, in {store.root}"]
    columns = [state for state in COLUMNS if state != "running" or status.running]
    table = [[pair, *(count[state] or "" for state in columns)] for pair, count in status.rows.items()]
    headers = ["pair", *(STATE_WORDS.get(state, state) for state in columns)]
    lines += [tabulate(table, headers=headers, tablefmt="simple")]
    lines += _running_lines(store, status.running)
    for teacher in plan.teachers:
        verdict = None
        with contextlib.suppress(RefusedFileError):
            verdict = verdict_of(teacher, store)
        if verdict is not None:
            lines.append(f"teacher {teacher.name}: {verdict}")
    for pair, weights in status.taught.items():
        if len(weights) > 1:
            several = " and ".join(f"{count} by weights {checksum[:10]}" for checksum, count in weights.items())
            lines.append(f"different teachers of one name: cells of {pair} were taught {several}")
    for cell, failure, log in status.failed:
        lines += [
            f"failed ({failure.kind}): {cell.key}: {failure.reason}",
            f"  log: {store.root / failure.log if failure.log else log}",
        ]
    if status.stale:
        lines.append(
            f"stale: {counted(len(status.stale), 'result')} of other configurations, kept and not shown; --stale lists the older ones"
        )
    if status.failed:
        lines.append("kdbench run --retry-failed trains what failed again")
    elif not status.counts["done"]:
        lines.append("nothing is done yet; kdbench run trains it")
    lines += [f"damaged: {line}" for line in status.damaged]
    if status.damaged:
        lines.append("kdbench run trains damaged cells again")
    return "\n".join(lines)


def watch_status(plan: Plan, store: Store, seconds: float, sleep: Callable[[float], None] = time.sleep) -> None:
    """Show the state every few seconds until every cell is done, failed or skipped."""
    terminal = Console()
    with Live(console=terminal, auto_refresh=False) if terminal.is_terminal else contextlib.nullcontext() as live:
        while True:
            status = read_status(plan, store)
            text = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {status_text(plan, store, status)}"
            if live is None:
                console.say(text)
            else:
                live.update(Text(printable(text)), refresh=True)
            counts = status.counts
            if not counts["running"] + counts["interrupted"] + counts["planned"]:
                return
            sleep(seconds)


def _running_lines(store: Store, running: list[tuple[Cell, Holder]]) -> list[str]:
    """For every process that trains: where, since when, last heartbeat, and how far its cells are."""
    lines, now = [], time.time()
    groups: dict[tuple[str, str], list[tuple[Cell, Holder]]] = {}
    for cell, holder in running:
        groups.setdefault((holder.where, holder.events), []).append((cell, holder))
    for (where, events), members in groups.items():
        since = min(holder.since for _, holder in members)
        beat = max(holder.heartbeat for _, holder in members)
        progress = _progress_of(store, events)
        lines.append(
            f"running on {where}, for {format_seconds(max(0.0, now - since))}, last heartbeat "
            f"{format_seconds(max(0.0, now - beat))} ago{progress.get('', '')}"
        )
        lines += [f"  {cell.key}{progress.get(cell.key, '')}" for cell, _ in members]
    return lines


def _progress_of(store: Store, events: str) -> dict[str, str]:
    """The last event of a job under ``""``, of each of its cells under their keys, as text."""
    found: dict[str, str] = {}
    if not events:
        return found
    try:
        with open_file(inside(store.root, events)) as file:  # what a claim names must lie in the run directory
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).splitlines()
    except OSError:
        return {}
    for line in lines:
        event = parse_event(line) or {"event": ""}
        try:
            if event["event"] == "epoch":
                found[str(event["cell"])] = f"  epoch {event['epoch']:d}/{event['epochs']:d}, top-1 {event['top1']:.1f}"
            elif event["event"] == "step":
                found[""] = (
                    f", in epoch {event['epoch'] + 1:d}/{event['epochs']:d}, step {event['step']:d}/{event['steps']:d}"
                )
        except (KeyError, TypeError, ValueError, OverflowError):
            continue  # of another version, or no event of ours
    return found
