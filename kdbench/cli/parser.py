"""The command line: verbs, each in a module that is imported when it is used, and what errors look like.

Nothing here imports torch; a verb that needs it does so itself.
"""

from __future__ import annotations

import errno
import importlib
import os
import sys
import traceback
from collections.abc import Sequence

import click

from kdbench.cli import console
from kdbench.errors import KdbenchError, NothingError, UnknownNameError, nearest

EPILOG = """Exit status: 0 done; 1 something failed; 2 the request is wrong; 130 interrupted.

Shell completion: eval "$(_KDBENCH_COMPLETE=bash_source kdbench)" (or zsh_source, fish_source)."""

#: Verb to module and function below ``kdbench.cli``.
VERBS = {
    "list": "listing:list_all",
    "show": "listing:show",
    "plan": "plan:plan",
    "run": "run:run",
    "tune": "tune:tune",
    "status": "status:status",
    "teachers": "teachers:teachers",
    "table": "table:table",
    "leaderboard": "board:leaderboard",
    "diff": "differences:diff",
    "classes": "tables:classes",
    "plots": "tables:plots",
    "report": "tables:report",
    "site": "site:site",
    "submit": "submissions:submit",
    "check": "submissions:check",
    "export": "export:export",
    "merge": "stores:merge",
    "prune": "stores:prune",
    "test": "methods:test",
    "new-method": "methods:new_method",
}

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class _Verbs(click.Group):
    """Verbs by name, in the order of ``VERBS``."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*VERBS]

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in VERBS:
            return None
        module, function = VERBS[name].split(":")
        return getattr(importlib.import_module(f"kdbench.cli.{module}"), function)


@click.group(
    cls=_Verbs,
    invoke_without_command=True,
    epilog=EPILOG,
    context_settings={"max_content_width": 100},
)
@click.version_option(package_name="kdbench", message="kdbench %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Benchmark suite for knowledge distillation between different architectures.

    Start with "kdbench run": it trains the suite "digits" on this machine, in minutes, and prints a leaderboard.
    """
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit status."""
    # For every Python that is started from here on, by a library too: a file of the current folder hides no module.
    os.environ["PYTHONSAFEPATH"] = "1"
    console.replace_unknown()
    try:
        return cli.main(arguments, prog_name="kdbench", standalone_mode=False) or 0
    except click.exceptions.NoSuchCommand as problem:
        console.error(UnknownNameError("verb", problem.command_name, VERBS))
    except click.NoSuchOption as problem:
        known = problem.ctx.command.get_params(problem.ctx) if problem.ctx else []
        options = [option for parameter in known for option in parameter.opts if option.startswith("--")]
        console.error(f"unknown option {problem.option_name!r}; {nearest(problem.option_name, options)}")
    except click.UsageError as problem:
        console.error(problem.format_message())
    except KdbenchError as problem:
        console.error(problem)
        return 1 if isinstance(problem, NothingError) else 2
    except click.Abort:
        console.error("interrupted")
        return 130
    except OSError as problem:
        if problem.filename is None and problem.errno not in _NO_SPACE:
            raise
        if os.environ.get("KDBENCH_DEBUG"):
            traceback.print_exc()
        where = f": {problem.filename}" if problem.filename else ""
        console.error(f"{problem.strerror}{where}; what was written before is kept")
        return 1
    return 2


if __name__ == "__main__":
    sys.exit(main())
