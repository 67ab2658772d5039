"""Trials of a search: what each is as a row of a run, what it reached, and which is best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tabulate import tabulate

from kdbench.matrix.cells import Cell
from kdbench.matrix.found import Found
from kdbench.store.folders import CellState

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Trial:
    """Values of a method's hyper-parameters; trial 0 has the method's own.

    Attributes:
        values: of the hyper-parameters that are searched; empty for trial 0.
        score: mean of the last epoch's top-1 over pairs and seeds, in percent; None where it failed or is not trained.
        reason: why there is no score.
    """

    method: str
    number: int
    values: Mapping[str, Any] = field(default_factory=dict)
    score: float | None = None
    reason: str = ""

    @property
    def row(self) -> str:
        """Its name in a run: the method, or a variant of it."""
        return f"{self.method}-trial{self.number}" if self.number else self.method

    def variant(self, display: str) -> dict[str, Any]:
        """Itself as a variant of the method that is called ``display``."""
        return {"method": self.method, "set": dict(self.values), "display": f"{display}, trial {self.number}"}

    def text(self) -> str:
        """Its values, for a table."""
        return ", ".join(f"{name} = {value}" for name, value in self.values.items()) or "the method's own"


def score_of(
    trial: Trial, trials: Sequence[Trial], cells: Sequence[Cell], states: Mapping[str, CellState]
) -> tuple[float | None, str]:
    """The score of a trial, or None and the reason.

    Trials of one method are compared on the same pairs and seeds: one that lacks any on which another of them can run has no score.

    Args:
        trial: one of ``trials``.
        trials: of its method.
        cells: that can run.
        states: of them, by folder.
    """
    rows = {other.row for other in trials}
    wanted = {(cell.pair, cell.seed) for cell in cells if cell.method in rows}
    own = [cell for cell in cells if cell.method == trial.row]
    if not wanted:
        return None, "the method can run on none of the pairs"
    if {(cell.pair, cell.seed) for cell in own} != wanted:
        return None, "it cannot run on all pairs"
    top1 = []
    for cell in own:
        result = states[cell.folder].result
        value = None if result is None else result.metrics.last.get("top1")
        if value is None:
            return None, f"{cell.key}: {'failed' if states[cell.folder].state == 'failed' else 'not trained'}"
        top1.append(value)
    return sum(top1) / len(top1), ""


def best_of(trials: Sequence[Trial]) -> Trial:
    """The trial with the highest score; of equal ones the method's own values, then the lower number.

    Where none has a score it is the method's own.
    """
    scored = [trial for trial in trials if trial.score is not None]
    return max(scored, key=lambda trial: (trial.score, -trial.number), default=trials[0])


@dataclass(frozen=True)
class Search:
    """What a search found.

    Attributes:
        trials: by method, in the order of their numbers.
        found: the budget, the space and the best values, as the file holds them.
        path: of the file.
        failed: cells that failed.
    """

    trials: Mapping[str, Sequence[Trial]]
    found: Found
    path: str
    failed: int = 0

    @property
    def best(self) -> dict[str, dict[str, Any]]:
        """Method to the values that were best; none where that are the method's own."""
        return {method: dict(values) for method, values in self.found.settings.items()}

    def to_dataframe(self) -> pd.DataFrame:
        """A row for each trial: method, trial, values, top1 (percent), best, reason."""
        import pandas as pd

        rows = [
            (trial.method, trial.number, dict(trial.values), trial.score, trial is best_of(trials), trial.reason)
            for trials in self.trials.values()
            for trial in trials
        ]
        return pd.DataFrame(rows, columns=["method", "trial", "values", "top1", "best", "reason"])

    @property
    def text(self) -> str:
        """All trials as a table, the best marked, and what they were measured on."""
        return f"{self._table('simple')}\n\n{self._caption()}"

    def _table(self, form: str) -> str:
        rows = [
            (
                trial.method,
                trial.number,
                trial.text(),
                trial.reason if trial.score is None else f"{trial.score:.2f}",
                "best" if trial is best_of(trials) else "",
            )
            for trials in self.trials.values()
            for trial in trials
        ]
        return tabulate(rows, ["method", "trial", "values", "top-1 (%)", ""], form, disable_numparse=True)

    def _caption(self) -> str:
        found = self.found
        return (
            f"Suite {found.suite}, protocol {found.protocol}: top-1 of the last epoch on held-out images, mean over "
            f"pairs ({len(found.pairs)}) and seeds ({len(found.seeds)}). {found.sampler.capitalize()} search, "
            f"seed {found.search_seed}, the method's own values among the trials; "
            "of equal trials the method's own, then the first, is best."
        )

    def __str__(self) -> str:
        return self.text

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return f"{self._table('html')}<p>{self._caption()}</p>"
