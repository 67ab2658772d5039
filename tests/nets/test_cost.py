"""Cost at inference: multiply-adds against counts by hand, and which numbers of a method a prediction needs."""

from __future__ import annotations

import math

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench.nets.cost import count_macs, inference_cost, throughput, used_by
from kdbench.nets.tapped import TappedNet, macs_of
from kdbench.suite.net import zoo_net

CPU = torch.device("cpu")


def on_meta(name: str) -> int:
    with torch.device("meta"):
        return count_macs(timm.create_model(name).eval(), torch.zeros(1, 3, 224, 224))


def test_resnet18_has_its_published_multiply_adds() -> None:
    # He et al. 2016, table 1: 1.8 × 10⁹. By hand: stem, four stages of two basic blocks, three 1 x 1 shortcuts, classifier.
    stem = 112**2 * 64 * 3 * 49
    stages = 4 * 56**2 * 64**2 * 9
    for width, size in ((128, 28), (256, 14), (512, 7)):
        stages += size**2 * (width * width // 2 * 9 + 3 * width**2 * 9 + width * width // 2)
    assert on_meta("resnet18") == stem + stages + 512 * 1000


def test_attention_is_counted() -> None:
    # DeiT-T: 12 blocks of 197 tokens 192 wide; Touvron et al. 2021, table 5, say 1.3 × 10⁹ (timm's list 1.26, with the rest).
    n, d = 197, 192
    block = n * d * 3 * d + 2 * n * n * d + n * d * d + 2 * n * d * 4 * d
    assert on_meta("deit_tiny_patch16_224") == 196 * 768 * d + 12 * block + d * 1000


def test_a_32_px_net_is_counted_as_by_hand_on_the_device_too() -> None:
    net = TappedNet(zoo_net("mixer_32px_small"), 10).eval()
    n, d = 64, 96
    tokens, channels = 2 * d * n * (d // 2), 2 * n * d * 4 * d
    expected = n * 48 * d + 6 * (tokens + channels) + d * 10
    assert count_macs(lambda images: net(images).logits, torch.rand(1, 3, 32, 32)) == expected


class OwnHead(nn.Module):
    """Like a method that predicts with a projector and a copy of the teacher's classifier."""

    classifier_weight: Tensor
    flag: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.projector = nn.Sequential(nn.Conv2d(3, 5, 1, bias=False), nn.BatchNorm2d(5))
        self.only_for_training = nn.Linear(7, 7)
        self.register_buffer("classifier_weight", torch.zeros(10, 5))
        self.register_buffer("bank", torch.zeros(100, 5))
        self.register_buffer("flag", torch.zeros((), dtype=torch.bool))

    def predict(self, images: Tensor) -> Tensor:
        value = torch.where(self.flag.clone(), self.projector(images), 0)
        return F.linear(value.mean(dim=(2, 3)), self.classifier_weight)


def test_only_what_a_prediction_uses_counts_as_extra() -> None:
    method = OwnHead().eval()
    assert used_by(method.predict, torch.rand(1, 3, 8, 8), method) == 15 + 10 + 50
    assert used_by(lambda images: images, torch.rand(1, 3, 8, 8), method) == 0
    cost = inference_cost(method.predict, (8, 8), CPU, method)
    assert (cost.gmacs, cost.extra_parameters, cost.batch) == ((64 * 15 + 50) / 1e9, 75, 64)
    assert cost.images_per_second > 0


def test_simkds_projector_and_classifier_are_counted_and_kds_nothing() -> None:
    from kdbench.method import Task
    from kdbench.plugins.registry import catalog

    student, teacher = (
        TappedNet(zoo_net("vit_32px_small"), 10).eval(),
        TappedNet(zoo_net("resnet_32px_small"), 10).eval(),
    )
    task = Task(10, 20, torch.arange(20) % 10)
    found = {}
    for name in ("simkd", "kd", "ofa"):
        method = catalog()[name].load()(student.describe(), teacher.describe(), task).eval()
        found[name] = used_by(
            lambda images, m=method: m.predict(student(images, m.predict_needs)), torch.rand(1, 3, 32, 32), method
        )
    wide, mid = 128, 64
    convolutions = 96 * mid + mid * mid * 9 + mid * wide
    norms = 2 * (mid + mid + wide)
    assert found == {"simkd": convolutions + norms + 10 * wide + 10, "kd": 0, "ofa": 0}


def test_throughput_is_images_over_the_median_time(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 0.01, 1.0, 1.02, 2.0, 2.03])
    monkeypatch.setattr("kdbench.nets.cost.time.perf_counter", lambda: next(clock))
    calls: list[int] = []
    found = throughput(lambda images: calls.append(len(images)) or images, torch.zeros(8, 3, 4, 4))
    assert found == pytest.approx(8 / 0.02)
    assert calls == [8, 8, 8, 8]  # one to warm up, then until 0.05 seconds are used


def test_a_net_that_cannot_be_measured_gives_nan() -> None:
    def broken(images: Tensor) -> Tensor:
        raise RuntimeError("a plugin's own mistake")

    cost = inference_cost(broken, (8, 8), CPU)
    assert math.isnan(cost.gmacs)
    assert math.isnan(cost.images_per_second)


@pytest.mark.parametrize("name", ["vit_32px_small", "resnet_32px_small", "mixer_32px_small", "swin_32px_small"])
def test_operations_without_weights_are_those_of_a_prediction(name: str) -> None:
    net = TappedNet(zoo_net(name), 10, name).eval()
    images = torch.zeros(1, 3, *net.input_size)
    assert macs_of(zoo_net(name), 10, name) == count_macs(lambda images: net(images).logits, images) > 0
