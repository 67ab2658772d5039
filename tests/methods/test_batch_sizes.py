"""Weighted terms in batches of 64, at which many weights were tuned, and in the batches of the published recipes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.conformance import bench
from kdbench.conformance.bench import Pair
from kdbench.conformance.checks import terms_by_batch
from kdbench.matrix.cells import make_plan
from kdbench.matrix.request import Request
from kdbench.methods.mlld import batch_loss, class_loss
from kdbench.methods.pkt import pkt_loss
from kdbench.methods.sp import sp_loss
from kdbench.plugins.registry import catalog
from kdbench.suite.suite import load_suite

METHODS = catalog()
TUNED_AT = 64


def by_batch(loss: Any, student: Tensor, teacher: Tensor, size: int) -> float:
    """Mean of a loss over all batches of a size."""
    batches = zip(student.split(size), teacher.split(size), strict=True)
    values = [loss(*batch).item() for batch in batches]
    return sum(values) / len(values)


def embeddings(width: int) -> tuple[Tensor, Tensor]:
    """Of 2,048 samples, positive as after a ReLU; the student's resemble the teacher's."""
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(2048, width, generator=generator).relu()
    return (teacher + torch.randn(2048, width, generator=generator)).relu(), teacher


@pytest.mark.parametrize("suite", ["cifar100", "imagenet1k", "imagenet1k-resnet18", "imagenet1k-resnet50"])
@pytest.mark.parametrize(("method", "key", "loss"), [("sp", "sp_weight", sp_loss), ("pkt", "pkt_weight", pkt_loss)])
def test_weights_of_large_batches_keep_the_terms_within_a_factor_of_two(
    suite: str, method: str, key: str, loss: Any
) -> None:
    loaded = load_suite(suite)
    published = METHODS[method].hyperparameters[key].default * by_batch(loss, *embeddings(64), TUNED_AT)
    for protocol in sorted({"short", "paper", "as-released"} & set(loaded.protocols)):
        cells = make_plan(loaded, Request(protocol=protocol, methods=(method,)), METHODS).cells
        for size, weight in {(cell.recipe.batch_size, cell.hyperparameters[key]) for cell in cells}:
            assert 0.5 < weight * by_batch(loss, *embeddings(64), size) / published < 2, (protocol, size)


@pytest.mark.parametrize("loss", [class_loss, batch_loss])
def test_correlations_of_mlld_do_not_depend_on_the_batch(loss: Any) -> None:
    student, teacher = embeddings(100)
    teacher = 3 * teacher + torch.linspace(0, 3, 100)  # some classes are likelier to one of the nets
    small, large = (by_batch(lambda s, t: loss(s, t, 4.0), student, teacher, size) for size in (TUNED_AT, 1024))
    assert 0.5 < large / small < 2


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_terms_keep_their_order_of_magnitude_from_64_to_1024_or_are_declared_not_to(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "SAMPLES", 1024)
    bench._samples.cache_clear()
    cls: Any = METHODS[name].load()
    try:
        found = terms_by_batch(cls, Pair("vit", "vit" if "attention" in cls.needs else "cnn"), TUNED_AT, 1024)
    finally:
        bench._samples.cache_clear()
    changed = {term for term, (small, large) in found.items() if not 0.25 < large / small < 4}
    assert changed == set(cls.follows_batch)
