"""What is measured of a trained net: accuracy, likelihood, calibration, agreement with the teacher."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

CALIBRATION_BINS = 15


def measure(logits: Tensor, labels: Tensor, teacher_logits: Tensor | None = None) -> dict[str, float]:
    """Metrics of one net on one split.

    Args:
        logits: (N, C).
        labels: (N,).
        teacher_logits: (N, C), or None for a teacher itself.

    Returns:
        ``top1``, ``top5``, ``ece`` (see ``expected_calibration_error``) and ``agreement`` (share of images on which student and
        teacher predict the same class) in percent; ``nll`` and ``teacher_kl`` (KL of the teacher's to the student's
        distribution) in nats. NaN without a teacher.
    """
    logits = logits.double()
    log_probabilities = F.log_softmax(logits, dim=1)
    predicted = logits.argmax(dim=1)
    top5 = logits.topk(min(5, logits.shape[1]), dim=1).indices
    metrics = {
        "top1": (predicted == labels).double().mean() * 100,
        "top5": (top5 == labels[:, None]).any(dim=1).double().mean() * 100,
        "nll": F.nll_loss(log_probabilities, labels),
        "ece": expected_calibration_error(log_probabilities.exp(), labels) * 100,
    }
    if teacher_logits is not None:
        teacher_log = F.log_softmax(teacher_logits.double(), dim=1)
        metrics["agreement"] = (predicted == teacher_logits.argmax(dim=1)).double().mean() * 100
        metrics["teacher_kl"] = F.kl_div(log_probabilities, teacher_log, reduction="batchmean", log_target=True)
    values = {name: float(value) for name, value in metrics.items()}
    return {"agreement": float("nan"), "teacher_kl": float("nan"), **values}


def expected_calibration_error(probabilities: Tensor, labels: Tensor, bins: int = CALIBRATION_BINS) -> Tensor:
    """Expected calibration error (Guo et al., arXiv:1706.04599, eq. 3): equal-width bins of the top-1 confidence, in [0, 1].

    Args:
        probabilities: (N, C).
        labels: (N,).
        bins: number of bins over (0, 1].
    """
    confidence, predicted = probabilities.max(dim=1)
    correct = (predicted == labels).to(confidence.dtype)
    edges = torch.linspace(0, 1, bins + 1, device=confidence.device, dtype=confidence.dtype)
    which = torch.bucketize(confidence, edges[1:-1])  # bin b holds (edge b, edge b + 1]
    zeros = torch.zeros(bins, dtype=confidence.dtype, device=confidence.device)
    gaps = zeros.scatter_add(0, which, confidence - correct)
    return gaps.abs().sum() / len(labels)
