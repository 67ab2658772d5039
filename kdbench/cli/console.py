"""How kdbench talks to the user: results and notes on standard output, progress and errors on standard error."""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TextIO

from kdbench.shown import printable

#: Characters of an error that are shown: it may quote a file.
MOST_SAID = 4000


def replace_unknown() -> None:
    """From now on, what the terminal's encoding lacks is replaced by a question mark: no verb dies of a name."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _print(text: str, stream: TextIO | None = None) -> None:
    """The one place where text of kdbench's goes to a terminal."""
    print(printable(text), file=stream, flush=True)


def say(text: str = "") -> None:
    """A line, or several."""
    _print(text)


def damaged(lines: Sequence[str], aside: bool = False) -> None:
    """What could not be read, ``FILE: reason`` each, at the end of what a verb shows; ``aside``: not within a table's own text."""
    for line in lines:
        _print(f"damaged: {' '.join(line.split())}", sys.stderr if aside else None)


def note(text: str) -> None:
    """What is worth knowing and stops nothing."""
    say(f"note: {text}")


def progress(text: str) -> None:
    """What takes a while from now on."""
    _print(f"{text} ...", sys.stderr)


def checking(what: str) -> None:
    """Say on a terminal what is checked for some seconds; elsewhere a refusal is one line."""
    if sys.stderr.isatty():
        progress(f"checking {what}")


def error(problem: Exception | str) -> None:
    """What went wrong, in one line, below it the lines of a ``ListedError``; with ``$KDBENCH_DEBUG`` its traceback."""
    for start, said in (("kdbench: ", str(problem)), *(("  ", line) for line in getattr(problem, "lines", ()))):
        _print(start + printable(" ".join(said.splitlines()), MOST_SAID), sys.stderr)
    details = getattr(problem, "details", "")
    if details and os.environ.get("KDBENCH_DEBUG"):
        _print(details, sys.stderr)


def plugin_errors(errors: Iterable[Exception]) -> int:
    """Plugins that could not be read, each with its traceback. Returns an exit status: 1 if there are any."""
    status = 0
    for problem in errors:
        _print(f"kdbench: {problem}\n{getattr(problem, 'details', '')}", sys.stderr)
        status = 1
    return status


def confirm(question: str) -> bool | None:
    """The answer of the user; None where nobody can be asked."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return None
    import click

    return click.confirm(question)


@contextlib.contextmanager
def download_bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on a terminal, for bytes that were downloaded, and all."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = ("downloading", BarColumn(), DownloadColumn(), TransferSpeedColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())
    with bar:
        task = bar.add_task("", start=False, visible=False)

        def show(done: int, size: int) -> None:
            bar.start_task(task)
            bar.update(task, completed=done, total=size or None, visible=True)

        yield show
