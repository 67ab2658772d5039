"""The names of the checks, and their findings."""

from __future__ import annotations

import traceback
from collections.abc import Iterable
from dataclasses import dataclass, field

from kdbench.errors import KdbenchError

#: Name of each check -> what a method that passes it does. In the order in which they run.
CHECKS: dict[str, str] = {
    "import": "its file can be imported and registers a subclass of Method",
    "declaration": "its class attributes and hyper-parameters have names, types and values that the contract allows",
    "build": "it can be built for all nine kinds of pair, or supports() gives a reason; nothing is created after __init__",
    "terms": "forward returns a dict of finite scalar tensors under the same names in every step, also after mixup",
    "student": "the gradient reaches the student's backbone and is finite",
    "teacher": "the teacher gets no gradient, stays in eval mode and keeps every parameter and buffer",
    "parameters": "each of its trainable parameters gets a finite gradient and is in a parameter group of the optimiser",
    "in place": "it changes none of its inputs in place: batch, images, the teacher's outputs",
    "batch of one": "it runs on a single image, with finite terms and gradients and the same names of terms",
    "batch size": "its terms keep their order of magnitude in a batch of 128 instead of 8, or follows_batch names them",
    "learning": "the loss falls when one batch is repeated",
    "logits": "terms and gradients are finite for logits 1000 apart, in single precision and in bfloat16",
    "sure student": "terms and gradients are finite in single precision for a student logit 120 above the rest",
    "precision": "terms and gradients are finite under autocast to bfloat16",
    "state": "a fresh instance that loads its state_dict gives the same loss",
    "seed": "the same seed gives the same parameters and the same loss, and no random generator is seeded in a step",
    "prediction": "predict returns finite logits (B, C) without the teacher",
    "waiting": "forward reads no value back from the device and moves nothing between devices",
    "global state": "modes, defaults, warning filters, other random generators and the nets' hooks are as before",
    "ranges": "a temperature of 0, a weight below 0 and an unknown stage are refused when it is built",
    "settings": "every hyper-parameter is used: another value changes losses, gradients, parameters or buffers",
}


@dataclass(frozen=True)
class Failure:
    """A check that a method does not pass.

    Attributes:
        method: its name.
        check: a key of ``CHECKS``.
        advice: one sentence: what was seen, and what the author should do.
        where: the pairs (``teacher -> student``) or hyper-parameters it was seen with; may be empty.
        details: a traceback, where there is one.
    """

    method: str
    check: str
    advice: str
    where: tuple[str, ...] = ()
    details: str = field(default="", compare=False)

    def __str__(self) -> str:
        place = ""
        if self.where:
            place = f" ({', '.join(self.where[:3])}{f' and {len(self.where) - 3} more' if len(self.where) > 3 else ''})"
        return f"{self.check}{place}: {self.advice}"


@dataclass(frozen=True)
class Skip:
    """A pair that a method cannot run on, with its own reason."""

    method: str
    pair: str
    reason: str


@dataclass
class Examination:
    """All that was found about one method, in ``seconds``."""

    method: str
    failures: list[Failure] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    seconds: float = 0.0


class Wrong(Exception):
    """Raised or yielded by a check: the sentence for the author; ``cause`` is the exception behind it."""

    def __init__(self, check: str, advice: str, cause: BaseException | None = None) -> None:
        super().__init__(advice)
        self.check = check
        self.advice = advice
        self.details = trace(cause) if cause else ""


def one_line(error: BaseException) -> str:
    """An exception as one line: ``ValueError: text``."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 200 else f"{text[:197]}..."
    return text if isinstance(error, KdbenchError) else f"{type(error).__name__}: {text}".rstrip(": ")


def trace(error: BaseException) -> str:
    """The traceback of an exception."""
    return "".join(traceback.format_exception(error))


def merged(failures: Iterable[Failure]) -> list[Failure]:
    """Failures with the same check and advice as one, with all their places, in the order of the checks."""
    found: dict[tuple[str, str, str], Failure] = {}
    for failure in failures:
        key = (failure.method, failure.check, failure.advice)
        known = found.get(key)
        where = tuple(dict.fromkeys((*(known.where if known else ()), *failure.where)))
        found[key] = Failure(*key, where, known.details if known else failure.details)
    order = list(CHECKS)
    return sorted(found.values(), key=lambda failure: order.index(failure.check))
