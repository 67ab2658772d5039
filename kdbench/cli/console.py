"""How kdbench talks to the user: results and notes on standard output, progress and errors on standard error."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator


def say(text: str = "") -> None:
    """A line, or several."""
    print(text, flush=True)


def note(text: str) -> None:
    """What is worth knowing and stops nothing."""
    say(f"note: {text}")


def progress(text: str) -> None:
    """What takes a while from now on."""
    print(f"{text} ...", file=sys.stderr, flush=True)


def error(problem: Exception | str) -> None:
    """What went wrong, in one line, below it the lines of a ``ListedError``; with ``$KDBENCH_DEBUG`` its traceback."""
    print(f"kdbench: {' '.join(str(problem).splitlines())}", file=sys.stderr)
    for line in getattr(problem, "lines", ()):
        print(f"  {line}", file=sys.stderr)
    details = getattr(problem, "details", "")
    if details and os.environ.get("KDBENCH_DEBUG"):
        print(details, file=sys.stderr)


def plugin_errors(errors: Iterable[Exception]) -> int:
    """Plugins that could not be read, each with its traceback. Returns an exit status: 1 if there are any."""
    status = 0
    for problem in errors:
        print(f"kdbench: {problem}\n{getattr(problem, 'details', '')}", file=sys.stderr)
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
