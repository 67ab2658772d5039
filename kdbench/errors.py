"""Errors that users cause, each one line long, and the words that messages share."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence


class KdbenchError(Exception):
    """A request that cannot be met. The command line prints its text and exits with status 2, without a traceback."""


class ListedError(KdbenchError):
    """Several things of one kind that are wrong: a sentence, then a line for each."""

    def __init__(self, sentence: str, lines: Sequence[str]) -> None:
        super().__init__(sentence)
        self.lines = tuple(lines)


class NothingError(KdbenchError):
    """There is nothing to show. The exit status is 1: the request is right."""


class UnknownNameError(KdbenchError):
    """A name that is in no registry; the message ends with the nearest valid one."""

    def __init__(self, kind: str, name: str, valid: Iterable[str], where: str = "") -> None:
        choices = sorted(map(str, valid))
        super().__init__(f"unknown {kind} {name!r}{f' in {where}' if where else ''}; {nearest(name, choices)}")


class HyperparameterError(KdbenchError, ValueError):
    """A hyper-parameter with a wrong name, type or range."""


class UnsupportedPairError(KdbenchError):
    """A method cannot run on this pair; the text is the reason, and the cell is skipped."""


class DeviceLostError(Exception):
    """A GPU's state is lost to this process, which has to end; which cell did it is not known."""


class StopRequested(Exception):
    """Work was asked to end (SIGTERM); what there was of it is saved."""


def nearest(name: str, choices: Iterable[str]) -> str:
    """Return ``did you mean 'x'?``, or the list of what is valid when nothing is near."""
    choices = list(choices)
    match = _match(name, choices)
    if match:
        return f"did you mean {match!r}?"
    if not choices:
        return "there is none"
    shown = ", ".join(choices[:12])
    return f"valid: {shown}{', ...' if len(choices) > 12 else ''}"


def is_near(name: str, choices: Iterable[str]) -> bool:
    """Whether ``nearest`` would name one of ``choices``."""
    return _match(name, choices) is not None


def _match(name: str, choices: Iterable[str]) -> str | None:
    by_lower = {choice.lower(): choice for choice in choices}
    match = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[match[0]] if match else None


def counted(number: int, noun: str) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def masked(text: str) -> str:
    """A text without the names and passwords that addresses in it have before their host."""
    return re.sub(r"(\w+://)[^/?#\s]*@", r"\1***@", text)
