"""What is measured of a trained net. ``METRICS`` is the one table of metrics; a plugin adds to it with ``register_metric``.

Works without torch, which the functions get with their arguments: tables need the names alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from kdbench.errors import KdbenchError

if TYPE_CHECKING:
    from torch import Tensor

CALIBRATION_BINS = 15

#: (logits (N, C) in double precision, labels (N,), the teacher's logits (N, C) or None) -> a number, NaN where it has no value.
Score = Callable[["Tensor", "Tensor", "Tensor | None"], Any]


@dataclass(frozen=True)
class Metric:
    """A measured quantity.

    Attributes:
        unit: ``"%"``, ``"nats"``, ..., or empty.
        decimals: printed in tables; leaderboards print one more.
        tie_band: differences of at most this size count as equal, in the unit.
        score: computes it; None where it is known from stored results alone.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool
    decimals: int
    tie_band: float
    score: Score | None = field(default=None, compare=False, repr=False)

    @property
    def sign(self) -> int:
        """+1 or -1: a difference times this is positive when it is an improvement."""
        return 1 if self.higher_is_better else -1

    @property
    def difference_unit(self) -> str:
        """The unit of a difference: percentages differ by points."""
        return "points" if self.unit == "%" else self.unit

    def with_unit(self, text: str, *notes: str, difference: bool = False) -> str:
        """``text (unit)``; ``notes`` stand in the brackets too."""
        unit = self.difference_unit if difference else self.unit
        inside = ", ".join(part for part in (unit, *notes) if part)
        return f"{text} ({inside})" if inside else text


#: Every metric by name, in the order of tables. ``BUILT_IN`` are those that do not come from plugins.
METRICS: dict[str, Metric] = {}

#: Names that histories and frames of results use for something else.
_RESERVED = {
    *("suite", "protocol", "split", "dataset", "dataset_title", "pair", "teacher", "student", "teacher_display"),
    *("student_display", "teacher_family", "student_family", "method", "method_display", "method_family", "fidelity"),
    *("carries_kd", "variant_of", "settings", "declared", "image_size", "seed", "state", "reason", "damaged"),
    *("epoch", "epochs", "lr", "raw_top1"),
    *("teacher_top1", "teacher_top5", "teacher_checksum", "teacher_expected", "shown", "conclusive", "value"),
    *("student_parameters", "extra_parameters", "step_seconds", "train_seconds", "peak_memory_bytes", "student_gmacs"),
    *("inference_images_per_second", "inference_extra_parameters", "device", "commit", "dirty", "finished"),
    *("hyperparameters", "config_hash", "path", "plugin_metrics"),
}


def is_metric_name(name: str) -> bool:
    """Whether a name can be a column of results."""
    return (
        bool(re.fullmatch(r"[a-z][a-z0-9_]*", name))
        and name not in _RESERVED
        and not name.startswith(("best_", "loss"))
    )


def register_metric(
    name: str,
    *,
    title: str = "",
    unit: str = "",
    higher_is_better: bool = True,
    decimals: int = 3,
    tie_band: float = 0.0,
) -> Callable[[Score], Score]:
    """Decorator that makes a function of (logits, labels, teacher logits or None) a metric; see ``Score`` and ``Metric``.

    The function is called after every epoch and must not change its arguments. Where it raises, the cell's log says so and
    the metric has no value; training goes on.

    Raises:
        KdbenchError: for a name that is taken or cannot be a column.
    """
    if not is_metric_name(name):
        raise KdbenchError(
            f"metric {name!r}: expected lower-case letters, digits and '_', not a column of results, not best_* or loss*"
        )

    def register(function: Score) -> Score:
        known = METRICS.get(name)
        if known is not None and known.score is not None and known.score.__module__ != function.__module__:
            raise KdbenchError(
                f"metric {name!r} is registered twice, by {known.score.__module__} and by {function.__module__}"
            )
        METRICS[name] = Metric(name, title or name, unit, higher_is_better, decimals, tie_band, function)
        return function

    return register


def measure(
    logits: Tensor,
    labels: Tensor,
    teacher_logits: Tensor | None = None,
    warn: Callable[[str], None] = lambda text: None,
) -> dict[str, float]:
    """All metrics of one net on one split; NaN where one has no value.

    Args:
        logits: (N, C).
        labels: (N,).
        teacher_logits: (N, C), or None for a teacher itself.
        warn: told of metrics of plugins that raised.
    """
    import torch

    given = (logits.double(), labels, None if teacher_logits is None else teacher_logits.double())
    values = {}
    with torch.no_grad():
        for name, metric in METRICS.items():
            assert metric.score is not None
            if name in BUILT_IN:
                values[name] = float(metric.score(*given))
                continue
            try:
                own = (logits.double().clone(), labels.clone(), None if given[2] is None else given[2].clone())
                number = float(metric.score(*own))
                values[name] = number if math.isfinite(number) else math.nan
            except Exception as error:
                warn(f"metric {name} has no value: {type(error).__name__}: {error}")
                values[name] = math.nan
    return values


@register_metric("top1", title="Top-1 accuracy", unit="%", decimals=1, tie_band=0.2)
def top1(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
    """Share of images whose label has the largest logit."""
    return (logits.argmax(dim=1) == labels).double().mean() * 100


@register_metric("top5", title="Top-5 accuracy", unit="%", decimals=1, tie_band=0.2)
def top5(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
    """Share of images whose label is among the five largest logits."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    return (best == labels[:, None]).any(dim=1).double().mean() * 100


@register_metric("nll", title="Negative log-likelihood", unit="nats", higher_is_better=False, decimals=3, tie_band=0.01)
def nll(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
    """Cross-entropy with the labels."""
    from torch.nn.functional import nll_loss

    return nll_loss(logits.log_softmax(dim=1), labels)


@register_metric("ece", title="Expected calibration error", unit="%", higher_is_better=False, decimals=1, tie_band=0.2)
def ece(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor:
    """``expected_calibration_error`` of the softmax."""
    return expected_calibration_error(logits.log_softmax(dim=1).exp(), labels) * 100


@register_metric("agreement", title="Agreement with the teacher", unit="%", decimals=1, tie_band=0.2)
def agreement(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor | float:
    """Share of images on which student and teacher predict the same class."""
    if teacher_logits is None:
        return math.nan
    return (logits.argmax(dim=1) == teacher_logits.argmax(dim=1)).double().mean() * 100


@register_metric(
    "teacher_kl", title="KL divergence from the teacher", unit="nats", higher_is_better=False, decimals=3, tie_band=0.01
)
def teacher_kl(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None) -> Tensor | float:
    """KL of the teacher's to the student's distribution."""
    if teacher_logits is None:
        return math.nan
    from torch.nn.functional import kl_div

    teacher = teacher_logits.log_softmax(dim=1)
    return kl_div(logits.log_softmax(dim=1), teacher, reduction="batchmean", log_target=True)


BUILT_IN = tuple(METRICS)


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = CALIBRATION_BINS) -> Tensor:
    """Expected calibration error (Guo et al., arXiv:1706.04599, eq. 3): equal-width bins of the top-1 confidence, in [0, 1].

    Args:
        probabilities: (N, C).
        labels: (N,).
        bins: number of bins over (0, 1].
    """
    import torch

    confidence, predicted = probabilities.max(dim=1)
    correct = (predicted == labels).to(confidence.dtype)
    edges = torch.linspace(0, 1, bins + 1, device=confidence.device, dtype=confidence.dtype)
    which = torch.bucketize(confidence, edges[1:-1])  # bin b holds (edge b, edge b + 1]
    zeros = torch.zeros(bins, dtype=confidence.dtype, device=confidence.device)
    gaps = zeros.scatter_add(0, which, confidence - correct)
    return gaps.abs().sum() / len(labels)
