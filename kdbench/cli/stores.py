"""The verbs that tidy run directories: ``merge`` and ``prune``. Torch is imported only to check teachers' weights."""

from __future__ import annotations

import fnmatch
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click

from kdbench.cli import console
from kdbench.cli.options import CELLS, EPILOG, Verb, plan_of, plan_on_disk, verb
from kdbench.cli.values import PATH
from kdbench.errors import counted
from kdbench.matrix.cells import Plan, make_plan
from kdbench.matrix.request import Request
from kdbench.store.folders import Store
from kdbench.store.layout import cell_name, cell_paths
from kdbench.store.merge import check_target, compare, conflict_error, write
from kdbench.store.older import Stale, size_of, stale_cells, unused_teachers
from kdbench.store.rows import damaged_in


@click.command("merge", cls=Verb, epilog=EPILOG, options_metavar="[OPTIONS]")
@click.argument("stores", nargs=-1, required=True, metavar="DIR DIR...", type=PATH)
@click.option("--to", type=PATH, required=True, metavar="DIR", help="A new run directory.")
@click.option("--keep-first", is_flag=True, help="Where run directories contradict each other, keep the first.")
def merge(stores: tuple[str, ...], to: str, keep_first: bool) -> int:
    """Join run directories of several machines into a new one.

    Cells that are done, failed or skipped, and trained teachers, are copied as they are. Conflicts are listed, and then nothing is written.
    """
    target = Path(to)
    check_target(target)
    console.checking("cells, and the weights of teachers")
    found = compare([Path(store) for store in stores])
    for line in found.left_out:
        console.note(f"left out: {line}")
    if found.conflicts and not keep_first:
        raise conflict_error(found.conflicts)
    for line in found.conflicts:
        console.note(f"conflict: {line}; kept is what {stores[0]} has, or the first that has it")
    if not found.folders:
        console.say(f"nothing is finished in {' and '.join(stores)}; {target} was not made")
        return 1
    for line in write(found, target):
        console.note(f"left out: {line}")
    teachers = sum(path.startswith("teachers/") for path in found.folders)
    cells = sum(path.count("/") == 4 for path in found.folders)
    remarks = [f"{found.twice} in several of them with the same numbers"] if found.twice else []
    remarks += [f"{found.unfinished} unfinished left out"] if found.unfinished else []
    console.say(
        f"{counted(cells, 'cell')} and {counted(teachers, 'teacher')} in {target}"
        + (f" ({'; '.join(remarks)})" if remarks else "")
    )
    return 0


@verb("prune", *CELLS, "out", "yes")
def prune(request: Request) -> int:
    """Show what is stale, failed or unused; delete it with --yes.

    A cell of the suite and protocol is stale when its method, recipe, nets or data have changed since. A teacher is unused when
    no cell of the run directory names it and the suite does not need it.
    """
    store = Store(request.out)
    store.check_exists()
    plan = plan_on_disk(plan_of(request), store)
    stale = stale_in(request, store)
    gone = {each.path: f"stale: {each.why}" for each in stale}
    gone |= {path: f"failed: {why}" for path, why in _failed(plan, store)}
    for path in [path for path in gone if _is_held(store, path)]:
        del gone[path]
    everything = make_plan(plan.suite, replace(plan.request, pairs=("*",)), plan.catalog)
    kept = {teacher.folder for made in (plan, everything) for teacher in made.teachers}
    gone |= {path: "unused teacher" for path in unused_teachers(store, kept, [*gone]) if not _is_held(store, path)}
    sizes = {path: size_of(store.folder(path).path) for path in gone}
    for path, why in gone.items():
        console.say(f"{path}  {sizes[path]:,} bytes  {' '.join(why.split())}")
    amount = f"{counted(len(gone), 'folder')}, {sum(sizes.values()):,} bytes"
    if not gone:
        console.say("nothing to delete")
    elif not request.yes:
        console.say(f"{amount} would be deleted; --yes deletes them")
    else:
        for path in gone:
            shutil.rmtree(store.folder(path).path)
        console.say(f"{amount} deleted")
    console.damaged(damaged_in(store.root, plan.suite.name, plan.under.name))
    return console.plugin_errors(plan.catalog.errors)


def stale_in(request: Request, store: Store) -> list[Stale]:
    """The stale cells of a request's suite and protocol, among the methods, pairs and seeds that it names."""
    everything = replace(request, methods=request.methods or ("*",), pairs=request.pairs or ("*",), seeds=(0,))
    plan = plan_on_disk(plan_of(everything), store)
    return stale_cells(store, plan.cells, request.seeds)


def _failed(plan: Plan, store: Store) -> Iterator[tuple[str, str]]:
    """Failed cells and why they failed: all of the suite and protocol, also of methods that are not known here, among the methods,
    pairs and seeds that the request names."""
    request = plan.request
    for path in cell_paths(store.root, plan.suite.name, plan.under.name):
        name = cell_name(path)
        chosen = _matches(name["method"], request.methods) and _matches(name["pair"], request.pairs)
        if chosen and (not request.seeds or name["seed"] in request.seeds):
            folder = store.folder(path)
            if folder.state() == "failed":
                yield path, folder.failure().reason


def _matches(name: str, patterns: Sequence[str]) -> bool:
    """Whether a name is among those that were asked for: any, where none were."""
    return not patterns or any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _is_held(store: Store, path: str) -> bool:
    """Whether a process works in a folder now."""
    holder = store.folder(path).holder()
    return holder is not None and holder.seems_alive()
