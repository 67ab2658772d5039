"""Which values a trial has: at random, or by Optuna's tree-structured Parzen estimator.

Both depend on nothing but the key of the search (suite, protocol, method, seed), the space, and, for Optuna, the scores of earlier
trials. So a search that was killed draws the same again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import random
from collections.abc import Sequence
from typing import Any, Protocol

from kdbench.errors import KdbenchError, UnknownNameError
from kdbench.search.space import Choices, Space

SAMPLERS = ("random", "optuna")
#: Trials of each method between two looks of Optuna at the scores: they are trained together.
ROUND = 4


class Sampler(Protocol):
    """Draws the trials of one method."""

    def ask(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        """The values of the trials of these numbers, from 1, in order."""

    def tell(self, scores: Sequence[float | None]) -> None:
        """The scores of the trials that were last asked for; None for one that failed."""


class RandomSampler:
    """Each value of each trial by itself: more trials, or more hyper-parameters, leave the others as they are."""

    def __init__(self, key: str, space: Space) -> None:
        self.key, self.space = key, space

    def ask(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        return [
            {
                name: found.at(random.Random(f"{self.key}/{number}/{name}").random())  # noqa: S311 - no secret
                for name, found in self.space.items()
            }
            for number in numbers
        ]

    def tell(self, scores: Sequence[float | None]) -> None:
        """It does not learn."""


class OptunaSampler:
    """Optuna's TPE (Bergstra et al. 2011), asked for a round of trials at a time."""

    def __init__(self, key: str, space: Space) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        seed = int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big")
        self.space = space
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=ROUND)
        self.study = optuna.create_study(direction="maximize", sampler=sampler)
        self.asked: list[Any] = []

    def ask(self, numbers: Sequence[int]) -> list[dict[str, Any]]:
        self.asked = [self.study.ask() for _ in numbers]
        return [{name: self._suggest(trial, name) for name in self.space} for trial in self.asked]

    def _suggest(self, trial: Any, name: str) -> Any:
        # A share of the way: the scale is the interval's, and the values are rounded as those drawn at random.
        found = self.space[name]
        if isinstance(found, Choices):
            return found.values[trial.suggest_categorical(name, range(len(found.values)))]
        return found.at(trial.suggest_float(name, 0.0, 1.0))

    def tell(self, scores: Sequence[float | None]) -> None:
        import optuna

        for trial, score in zip(self.asked, scores, strict=True):
            failed = optuna.trial.TrialState.FAIL
            self.study.tell(trial, score, state=failed if score is None else None)


def check_sampler(name: str) -> None:
    """Refuse a sampler that is unknown, or not installed.

    Raises:
        KdbenchError: in one line.
    """
    if name not in SAMPLERS:
        raise UnknownNameError("sampler", name, SAMPLERS)
    if name == "optuna" and importlib.util.find_spec("optuna") is None:
        raise KdbenchError("--sampler optuna: the package optuna is not installed; pip install 'kdbench[optuna]'")


def make_sampler(name: str, key: str, space: Space) -> Sampler:
    """The sampler of one method."""
    return OptunaSampler(key, space) if name == "optuna" else RandomSampler(key, space)


def rounds(name: str, trials: int) -> list[range]:
    """Numbers of the trials that are trained together, beside the method's own values, which are trial 0."""
    step = ROUND if name == "optuna" else max(1, trials - 1)
    return [range(first, min(first + step, trials)) for first in range(1, trials, step)] or [range(1, 1)]
