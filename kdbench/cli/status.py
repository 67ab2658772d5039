"""The state of a plan's cells as the run directory tells it, once or again and again; from any machine that sees it."""

from __future__ import annotations

import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tabulate import tabulate

from kdbench.cli.planview import STATE_WORDS
from kdbench.cli.progress import format_seconds
from kdbench.launch.remote import parse_event
from kdbench.matrix.cells import Cell, Plan
from kdbench.store.claims import Holder
from kdbench.store.folders import Store
from kdbench.teachers.readiness import verdict_of

COLUMNS = ("done", "running", "interrupted", "failed", "skipped", "planned")
#: Of a file of events, how much of its end is read.
TAIL_BYTES = 65536


@dataclass
class Status:
    """What there is to say of a plan's cells."""

    rows: dict[str, Counter[str]] = field(default_factory=dict)
    running: list[tuple[Cell, Holder]] = field(default_factory=list)
    failed: list[tuple[Cell, dict[str, Any], Path]] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)
    stale: list[Path] = field(default_factory=list)

    @property
    def counts(self) -> Counter[str]:
        return sum(self.rows.values(), Counter())


def read_status(plan: Plan, store: Store) -> Status:
    """Look at every cell of a plan."""
    status = Status()
    for cell in (*plan.cells, *plan.skipped, *plan.broken):
        folder = store.cell(cell)
        holder = folder.holder()
        state = folder.state()
        if state == "planned" and cell.reason is not None:
            state = "skipped" if cell in plan.skipped else "failed"
        status.rows.setdefault(cell.pair, Counter())[state] += 1
        if state == "running" and holder is not None:
            status.running.append((cell, holder))
        elif state == "failed" and folder.failed.exists():
            status.failed.append((cell, folder.failure(), folder.log))
        status.damaged += [folder.result] if folder.is_damaged() else []
        status.stale += [
            other for other in folder.path.parent.glob(f"seed{cell.seed}-*") if other.name != folder.path.name
        ]
    return status


def status_text(plan: Plan, store: Store, status: Status) -> str:
    """Done, running (where, since when, how far), failed (why), to do, and results of older configurations."""
    lines = [f"suite {plan.suite.name}, protocol {plan.protocol}, in {store.root}"]
    columns = [state for state in COLUMNS if state != "running" or status.running]
    table = [[pair, *(count[state] or "" for state in columns)] for pair, count in status.rows.items()]
    headers = ["pair", *(STATE_WORDS.get(state, state) for state in columns)]
    lines += [tabulate(table, headers=headers, tablefmt="simple")]
    lines += _running_lines(store, status.running)
    for teacher in plan.teachers:
        verdict = verdict_of(teacher, store)
        if verdict is not None:
            lines.append(f"teacher {teacher.name}: {verdict}")
    for cell, failure, log in status.failed:
        lines += [f"failed ({failure['kind']}): {cell.key}: {failure['reason']}", f"  log: {failure.get('log') or log}"]
    lines += [f"damaged: {path}; kdbench run trains the cell again" for path in status.damaged]
    if status.stale:
        lines.append(f"stale: {len(status.stale)} results of older configurations are kept and not shown")
    if not status.counts["done"]:
        lines.append("nothing is done yet; kdbench run trains it")
    return "\n".join(lines)


def print_status(plan: Plan, store: Store) -> None:
    """Print ``status_text`` once."""
    print(status_text(plan, store, read_status(plan, store)))


def watch_status(plan: Plan, store: Store, seconds: float) -> None:
    """Print the state again and again until every cell is done, failed or skipped."""
    while True:
        status = read_status(plan, store)
        text = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {status_text(plan, store, status)}"
        if sys.stdout.isatty():
            text = f"\033[H\033[J{text}"  # from the top of an empty screen
        print(text, flush=True)
        counts = status.counts
        if not counts["running"] + counts["interrupted"] + counts["planned"]:
            return
        time.sleep(seconds)


def _running_lines(store: Store, running: list[tuple[Cell, Holder]]) -> list[str]:
    """For every process that trains: where, since when, last heartbeat, and how far its cells are."""
    lines, now = [], time.time()
    groups: dict[tuple[str, str], list[tuple[Cell, Holder]]] = {}
    for cell, holder in running:
        groups.setdefault((holder.where, holder.events), []).append((cell, holder))
    for (where, events), members in groups.items():
        since = min(holder.since for _, holder in members)
        beat = max(holder.heartbeat for _, holder in members)
        far = _how_far(store, events)
        lines.append(
            f"running on {where}, for {format_seconds(max(0.0, now - since))}, last heartbeat "
            f"{format_seconds(max(0.0, now - beat))} ago{far.get('', '')}"
        )
        lines += [f"  {cell.key}{far.get(cell.key, '')}" for cell, _ in members]
    return lines


def _how_far(store: Store, events: str) -> dict[str, str]:
    """Last words of a job: of it as a whole under ``""``, of its cells under their keys."""
    path = (store.root / events).resolve()
    if not events or store.root.resolve() not in path.parents:  # what a claim names must lie in the run directory
        return {}
    far: dict[str, str] = {}
    try:
        with open(path, "rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read(TAIL_BYTES).splitlines()
    except OSError:
        return {}
    for line in lines:
        event = parse_event(line) or {"event": ""}
        try:
            if event["event"] == "epoch":
                far[str(event["cell"])] = f"  epoch {event['epoch']:d}/{event['epochs']:d}, top-1 {event['top1']:.1f}"
            elif event["event"] == "step":
                far[""] = (
                    f", in epoch {event['epoch'] + 1:d}/{event['epochs']:d}, step {event['step']:d}/{event['steps']:d}"
                )
        except (KeyError, TypeError, ValueError):
            continue
    return far
