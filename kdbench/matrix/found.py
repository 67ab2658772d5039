"""What a search of hyper-parameters found: the file that ``kdbench tune`` writes and ``--settings`` reads."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from kdbench.errors import KdbenchError, counted
from kdbench.matrix.identity import config_hash
from kdbench.suite.typedyaml import read_typed
from kdbench.suite.types import Count, Name, Seed, Strict


class Found(Strict):
    """Values of methods on a suite, and how they were chosen.

    Attributes:
        pairs, seeds: over which a trial's accuracy is the mean.
        split: whose images it was measured on.
        trials: of each method, its own values included.
        space: method to hyper-parameter to ``{search: [low, high], scale: ...}`` or ``{choices: [...]}``; empty where a method
            has nothing to search.
        kdbench: the version that searched.
        top1: method to the accuracies of its own values and of the best trial, in percent; null where there is none.
        settings: method to hyper-parameter to value; none where the method's own values won.
    """

    suite: Name
    protocol: Name
    split: Literal["validation"]
    pairs: tuple[str, ...]
    seeds: tuple[Seed, ...]
    trials: Count
    sampler: Name
    search_seed: Seed
    kdbench: str
    space: dict[str, dict[str, Any]]
    top1: dict[str, dict[Literal["own", "best"], float | None]]
    settings: dict[str, dict[str, Any]]
    checksum: str

    def origin(self, protocol: str) -> str:
        """What captions of ``protocol`` say of these values."""
        where = "" if protocol == self.protocol else f", protocol {self.protocol}"
        return f"tuned: {counted(self.trials, 'trial')} each on held-out images{where}"

    def record(self, method: str) -> dict[str, Any]:
        """What the provenance of a result of ``method`` says; nothing where it was not searched."""
        if not self.space.get(method):
            return {}
        budget = self.model_dump(mode="json", exclude={"space", "top1", "settings", "checksum"})
        return {**budget, "space": self.space[method]}

    @classmethod
    def sealed(cls, content: Mapping[str, Any]) -> Found:
        """From all fields but the checksum."""
        found = cls.model_validate({**content, "checksum": ""})
        return found.model_copy(update={"checksum": found.digest()})

    def digest(self) -> str:
        """Of all fields but the checksum: what was cut, or changed by hand, is no search's any more."""
        return config_hash(self.model_dump(mode="json", exclude={"checksum"}))


def read_found(path: str, suite: str) -> Found:
    """The file of a search on a suite.

    Raises:
        KdbenchError: if it cannot be read, is damaged, or is of another suite.
    """
    try:
        stamp = Path(path).stat().st_mtime_ns
    except OSError as error:
        raise KdbenchError(f"--settings {path}: cannot be read ({error.strerror})") from None
    found = _cached(Path(path), stamp)
    if found.suite != suite:
        raise KdbenchError(f"--settings {path} is of suite {found.suite}, not of {suite}")
    return found


@functools.lru_cache(maxsize=4)
def _cached(path: Path, stamp: int) -> Found:
    return read_any(path)


def read_any(path: Path) -> Found:
    """The file of a search on any suite.

    Raises:
        KdbenchError: if it cannot be read, or is damaged.
    """
    found = read_typed(path, Found, "a file of kdbench tune")
    if found.checksum != found.digest():
        raise KdbenchError(
            f"{path} is damaged, or was changed by hand: its checksum does not match; --set gives values of your own"
        )
    return found
