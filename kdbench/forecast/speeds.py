"""What was timed of some cells, and what it says of others: the same student and method behind another teacher, or its likes."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass
class Speeds:
    """Ratios of seconds that were timed to seconds that were reckoned from parameter counts.

    Attributes:
        cells: (student, method, ratio) of a step of a cell on its own.
        wholes: of all that a cohort takes (its batches, its teacher and its evaluations too) to its cells' steps.
        teachers: of the training of a teacher.
    """

    cells: list[tuple[str, str, float]] = field(default_factory=list)
    wholes: list[float] = field(default_factory=list)
    teachers: list[float] = field(default_factory=list)

    def learn(
        self, names: Sequence[tuple[str, str]], timed: Sequence[float], reckoned: Sequence[float], whole: float
    ) -> None:
        """Take up a cohort that was timed.

        Args:
            names: student and method of each cell.
            timed: seconds per step of each cell.
            reckoned: the same from parameter counts.
            whole: seconds of the cohort, divided by its number of steps.
        """
        for (student, method), seconds, raw in zip(names, timed, reckoned, strict=True):
            if seconds > 0 and raw > 0:
                self.cells.append((student, method, seconds / raw))
        if sum(timed) > 0:
            self.wholes.append(whole / sum(timed))

    def of_cohort(self, names: Sequence[tuple[str, str]], reckoned: Sequence[float]) -> float | None:
        """Seconds of a cohort that was not timed, divided by its steps; None where nothing was timed."""
        if not self.cells:
            return None
        steps = sum(raw * self._ratio(*name) for name, raw in zip(names, reckoned, strict=True))
        return statistics.median(self.wholes) * steps

    def of_teacher(self, reckoned: float) -> float | None:
        """Seconds of a teacher's training that was not timed; None where none was."""
        return statistics.median(self.teachers) * reckoned if self.teachers else None

    def _ratio(self, student: str, method: str) -> float:
        every = [ratio for _, _, ratio in self.cells]
        both = [ratio for s, m, ratio in self.cells if (s, m) == (student, method)]
        if both:
            return statistics.median(both)
        middle = statistics.median(every)
        of_student = statistics.median([ratio for s, _, ratio in self.cells if s == student] or [middle])
        of_method = statistics.median([ratio for _, m, ratio in self.cells if m == method] or [middle])
        return of_student * of_method / middle
