"""Metrics against independent transcriptions in NumPy, and at the values that theory fixes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from kdbench.plugins.metrics import BUILT_IN, expected_calibration_error, measure


def softmax(logits: np.ndarray) -> np.ndarray:
    raised = np.exp(logits - logits.max(axis=1, keepdims=True))
    return raised / raised.sum(axis=1, keepdims=True)


def calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """Guo et al. 2017, eq. 3, bin by bin: sum over bins of |B| / n * |accuracy - confidence|."""
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    error = 0.0
    for number in range(bins):
        inside = (confidence > number / bins) & (confidence <= (number + 1) / bins)
        if inside.any():
            accuracy = (predicted[inside] == labels[inside]).mean()
            error += inside.mean() * abs(accuracy - confidence[inside].mean())
    return float(error)


@pytest.mark.parametrize("classes", [2, 4, 10, 100])
def test_metrics_agree_with_their_formulas(classes: int) -> None:
    rng = np.random.default_rng(classes)
    logits, teacher = rng.normal(size=(2, 200, classes)) * 3
    labels = rng.integers(0, classes, 200)
    p, q = softmax(teacher), softmax(logits)
    ranks = (logits > logits[np.arange(200), labels][:, None]).sum(axis=1)
    expected = {
        "top1": 100 * (ranks == 0).mean(),
        "top5": 100 * (ranks < 5).mean(),
        "nll": -np.log(q[np.arange(200), labels]).mean(),
        "ece": 100 * calibration_error(q, labels),
        "agreement": 100 * (logits.argmax(axis=1) == teacher.argmax(axis=1)).mean(),
        "teacher_kl": (p * (np.log(p) - np.log(q))).sum(axis=1).mean(),
    }
    found = measure(torch.from_numpy(logits), torch.from_numpy(labels), torch.from_numpy(teacher))
    assert set(found) == set(BUILT_IN)
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-10), name
        assert isinstance(found[name], float)


def test_teacher_agrees_with_itself() -> None:
    logits = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))
    found = measure(logits, logits.argmax(dim=1), logits)
    assert (found["top1"], found["top5"], found["agreement"]) == (100.0, 100.0, 100.0)
    assert found["teacher_kl"] == pytest.approx(0.0, abs=1e-12)


def test_without_a_teacher_what_compares_with_it_is_nan() -> None:
    found = measure(torch.eye(3), torch.arange(3))
    assert math.isnan(found["agreement"])
    assert math.isnan(found["teacher_kl"])
    assert found["top5"] == 100.0


def test_uniform_predictions_have_the_entropy_of_the_classes() -> None:
    found = measure(torch.zeros(8, 4), torch.arange(8) % 4)
    assert found["nll"] == pytest.approx(math.log(4))
    assert found["ece"] == pytest.approx(0.0, abs=1e-12)  # right in a quarter of the cases, and a quarter sure


def test_sure_predictions_that_are_all_wrong_are_off_by_all_they_claim() -> None:
    found = measure(torch.eye(3) * 1e3, (torch.arange(3) + 1) % 3)
    assert found["ece"] == pytest.approx(100.0)
    assert found["top1"] == 0.0
    assert found["nll"] == pytest.approx(1e3)


def test_confidence_on_an_edge_falls_into_the_bin_below_and_one_into_the_last() -> None:
    probabilities = torch.tensor([[0.75, 0.25], [0.8, 0.2], [1.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([1, 0, 0])  # bins (0.5, 0.75] with the first, (0.75, 1] with the others
    expected = (0.75 + abs(0.8 + 1.0 - 2.0)) / 3
    assert expected_calibration_error(probabilities, labels, bins=4).item() == pytest.approx(expected)


def test_half_precision_logits_are_measured_in_double() -> None:
    logits = torch.randn(100, 10, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.randint(10, (100,), generator=torch.Generator().manual_seed(1))
    assert measure(logits, labels, logits) == measure(logits.double(), labels, logits.double())
