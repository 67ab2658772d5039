"""Whether a teacher that comes with weights reaches what was published of it. Works without torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kdbench.matrix.request import Request

if TYPE_CHECKING:
    from kdbench.matrix.teachers import TeacherPlan
    from kdbench.store.result import TeacherResult

#: Points that the accuracy on the whole test split may differ from the published one: resizing and libraries cost some tenths.
TOLERANCE = Request.teacher_tolerance
#: Points that may be lost where a teacher sees a student's mean, standard deviation and crop instead of its own.
FOREIGN_PREPROCESSING = 10.0
#: Standard errors by which a part of the images may differ: one sound teacher in 16,000 is outside of them.
STANDARD_ERRORS = 4.0
#: Standard errors by which a teacher has to be above guessing: one that guesses is, once in 740 times.
ABOVE_CHANCE = 3.0
#: Standard deviation (points) of a net's accuracies between the classes of ImageNet-1K, which limits what a choice of classes
#: can tell. Our choice, on the large side.
CLASS_SPREAD = 20.0


@dataclass(frozen=True)
class Verdict:
    """A re-measured accuracy beside the published one.

    Attributes:
        top1: measured, in percent, on ``images`` images of the test split.
        published: in percent, with its ``source``; None where the suite gives none.
        low, high: what is expected, in percent; None where there is no such bound.
        why: in what the measurement differs from the published one, if in anything.
        floor: what guessing does not reach, in percent; None where there are too few images to tell.
        guesses: whether the accuracy is not above that, or by more than the tolerance allows beyond the usual one.
    """

    top1: float
    images: int
    published: float | None = None
    source: str | None = None
    low: float | None = None
    high: float | None = None
    why: str = ""
    floor: float | None = None
    guesses: bool = False

    @property
    def compared(self) -> bool:
        """Whether there is a bound to be outside of."""
        return self.low is not None

    @property
    def agrees(self) -> bool:
        """False if the accuracy is outside of what is expected."""
        return (self.low is None or self.top1 >= self.low) and (self.high is None or self.top1 <= self.high)

    def __str__(self) -> str:
        text = f"top-1 {self.top1:.2f} % on {self.images:,} test images{f' ({self.why})' if self.why else ''}"
        if self.guesses:
            text += f", not above guessing ({self.floor:.2f} %)"
        if self.published is None:
            return f"{text}; no published figure to compare with"
        text += f", published {self.published:.2f} %{f' ({self.source})' if self.source else ''}"
        if self.low is None:
            return f"{text}; the bounds are too wide to compare them"
        return f"{text}, expected {expected_range(self.low, self.high)}{'' if self.agrees else ': deviates'}"


def expected_range(low: float, high: float | None) -> str:
    """The bounds in words."""
    return f"at least {low:.2f} %" if high is None else f"{low:.2f} to {high:.2f} %"


def judge(teacher: TeacherPlan, result: TeacherResult, tolerance: float = TOLERANCE) -> Verdict:
    """Compare the accuracy in a teacher's result with the published one of its net.

    On the whole test split the two may differ by ``tolerance``. On n of its N images the standard error of a share p,
    sqrt(p (1 - p) / n * (N - n) / (N - 1)), is added ``STANDARD_ERRORS`` times. On a choice of classes the accuracy may be far
    higher (fewer classes to confuse) and somewhat lower (harder ones): only a lower bound is left, with the spread between
    classes. A lower bound that guessing reaches tells nothing, and then there is none.
    """
    top1, images = result.top1, result.images
    published, source = teacher.net.published_top1, teacher.net.published_source
    every, chosen = result.split_images, result.chosen_classes
    reasons = []
    slack = tolerance
    if chosen is not None:
        reasons.append(f"{chosen} chosen classes")
        slack += STANDARD_ERRORS * CLASS_SPREAD / math.sqrt(chosen)
    elif images < every:
        reasons.append(f"of {every:,}")
    if teacher.seen_through:
        reasons.append("through the student's preprocessing")
        slack += FOREIGN_PREPROCESSING
    why = ", ".join(reasons)
    chance = chance_floor(result.classes, images)
    floor = chance if chance < 100 else None
    guesses = floor is not None and top1 <= floor - max(0.0, tolerance - TOLERANCE)
    if published is None:
        return Verdict(top1, images, why=why, floor=floor, guesses=guesses)
    share = published / 100
    missing = 1.0 if chosen is not None else (every - images) / max(1, every - 1)
    slack += 100 * STANDARD_ERRORS * math.sqrt(share * (1 - share) / max(1, images) * missing)
    low = published - slack
    if low <= max(100 / result.classes, 0):
        return Verdict(top1, images, published, source, why=why, floor=floor, guesses=guesses)
    high = None if chosen is not None or teacher.seen_through else min(100.0, published + slack)
    return Verdict(top1, images, published, source, low, high, why, floor, guesses)


def chance_floor(classes: int, images: int) -> float:
    """What guessing among ``classes`` does not reach on so many images, in percent."""
    share = 1 / classes
    return 100 * (share + ABOVE_CHANCE * math.sqrt(share * (1 - share) / max(1, images)))


def complaint(name: str, verdict: Verdict) -> str:
    """The error for a teacher that deviates from its published accuracy."""
    assert verdict.low is not None
    return (
        f"teacher {name} reaches {verdict.top1:.2f} % top-1 on {verdict.images:,} test images, published "
        f"{verdict.published:.2f} %{f' ({verdict.source})' if verdict.source else ''}, expected here "
        f"{expected_range(verdict.low, verdict.high)}: wrong weights, wrong preprocessing (mean, std, crop) or wrong labels; "
        "--teacher-tolerance POINTS continues anyway"
    )


def chance_complaint(name: str, verdict: Verdict, classes: Sequence[str] | None) -> str:
    """The error for a teacher that is not above guessing, with the order of the classes, in which the weights may differ."""
    assert verdict.floor is not None
    order = "Here they have the numbers of the data set, which gives them no names."
    if classes:
        shown = sorted({0, 1, 2, len(classes) - 1} & {*range(len(classes))})
        order = f"Here the classes are {', '.join(f'{number} {classes[number]}' for number in shown)}."
    tolerance = math.ceil(TOLERANCE + verdict.floor - verdict.top1 + 0.01)
    return (
        f"teacher {name} reaches {verdict.top1:.2f} % top-1 on {verdict.images:,} test images, which is not above guessing "
        f"({verdict.floor:.2f} %): another class order? {order} Or wrong weights or preprocessing; "
        f"--teacher-tolerance {tolerance} continues anyway"
    )
