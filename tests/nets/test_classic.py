"""The classic CIFAR nets against what RepDistiller's and mdistiller's hold: ``classic.json``, read from github.com/HobbitLong/RepDistiller
(b84f547c5db6) and github.com/megvii-research/mdistiller (a08d46f10d61), which agree in every key and shape."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.method import Outputs
from kdbench.nets.classic.models import CLASSIC_NETS
from kdbench.nets.tapped import TappedNet, describe
from kdbench.suite.net import NetSpec
from tests.few import few

FACTS: dict[str, dict[str, Any]] = json.loads(Path(__file__).with_name("classic.json").read_text())
NEEDS = {"logits", "stages", "preactivation", "embedding", "stagewise"}
#: One of each family, the cheapest.
FAMILIES = ("resnet8", "ResNet50", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2")


def spec(name: str) -> NetSpec:
    return NetSpec(timm=f"{name}_32px", family="cnn")


def build(name: str) -> TappedNet:
    torch.manual_seed(0)
    return TappedNet(spec(name), 100, name).train()


def run(net: TappedNet) -> tuple[Any, list[Tensor], Outputs]:
    """The net itself, its ``feats`` without the embedding, and what its taps give, of the same images."""
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    inner: Any = net.net
    maps = inner.forward_intermediates(images, range(len(inner.feature_info)))[1]
    return inner, maps, net.run(images, NEEDS)


def test_the_22_nets_are_registered() -> None:
    assert set(CLASSIC_NETS) == set(FACTS)
    assert len(FACTS) == 22


@pytest.mark.parametrize("name", FACTS)
def test_parameters_keys_and_shapes_are_those_of_both_codebases(name: str) -> None:
    with torch.device("meta"):
        net = TappedNet(spec(name), 100, name).net
    state = net.state_dict()
    lines = "\n".join(f"{key} {tuple(value.shape)}" for key, value in state.items())
    facts = FACTS[name]
    assert sum(parameter.numel() for parameter in net.parameters()) == facts["parameters"]
    assert (len(state), next(iter(state)), list(state)[-1]) == (facts["keys"], facts["first"], facts["last"])
    assert hashlib.sha256(lines.encode()).hexdigest()[:12] == facts["sha256"]


@pytest.mark.parametrize("name", few(sorted(FACTS, key=lambda name: name not in FAMILIES), len(FAMILIES)))
def test_stages_are_the_last_four_maps_and_the_embedding_is_pooled(name: str) -> None:
    info = describe(spec(name), 100, name)
    *maps, (embedding,) = FACTS[name]["feats"]
    assert [[stage.channels, stage.height, stage.width] for stage in info.stages] == maps[-4:]
    assert (info.embedding_dim, info.input_size, info.num_classes) == (embedding, (32, 32), 100)
    assert info.stagewise
    assert info.linear_classifier


@pytest.mark.parametrize("name", FAMILIES)
def test_every_map_has_the_shape_of_the_feats(name: str) -> None:
    net, maps, _ = run(build(name))
    assert [list(value.shape[1:]) for value in maps] == FACTS[name]["feats"][:-1]
    assert net.get_classifier() is dict(net.named_modules())[net.classifier_name]


@pytest.mark.parametrize("name", FAMILIES)
def test_maps_are_rectified_where_those_of_the_codebases_are(name: str) -> None:
    _, maps, _ = run(build(name))
    negative = [bool((value < 0).any()) for value in maps]
    raw = {"wrn_16_1": [True] * 4, "MobileNetV2": [False, True, True, True, True]}
    assert negative == raw.get(name, [False] * len(maps))


@pytest.mark.parametrize("name", ["resnet8", "ResNet50", "vgg8", "ShuffleV1"])
def test_a_map_before_its_activation_becomes_the_map_by_a_relu(name: str) -> None:
    _, _, outputs = run(build(name))
    assert outputs.stages is not None
    for stage in outputs.stages:
        assert stage.preactivation is not None
        assert (stage.preactivation < 0).any()
        torch.testing.assert_close(stage.preactivation.relu(), stage.map)


def test_a_wrn_has_its_maps_normalised_but_not_rectified_before_the_activation_and_no_norm_runs_twice() -> None:
    net, _, outputs = run(build("wrn_16_1"))
    assert outputs.stages is not None
    following = [*(stage.layer[0].bn1 for stage in (net.block1, net.block2, net.block3)), net.bn1]
    for stage, norm in zip(outputs.stages, following, strict=True):
        torch.testing.assert_close(stage.preactivation, norm(stage.map))
    fresh, images = build("wrn_16_1"), torch.randn(4, 3, 32, 32)
    fresh.run(images, NEEDS)
    counts = {int(module.num_batches_tracked) for module in fresh.modules() if isinstance(module, nn.BatchNorm2d)}
    assert counts == {1}


def test_shufflenet_v2_leaves_its_left_half_and_does_not_shuffle_before_the_activation() -> None:
    _, _, outputs = run(build("ShuffleV2"))
    assert outputs.stages is not None
    for stage in outputs.stages[1:]:
        assert stage.preactivation is not None
        left, right = stage.preactivation.chunk(2, dim=1)
        assert (left >= 0).all()
        assert (right < 0).any()
        torch.testing.assert_close(stage.map[:, 0::2], left)
        torch.testing.assert_close(stage.map[:, 1::2], right.relu())


def test_mobilenetv2_has_nothing_before_an_activation() -> None:
    _, _, outputs = run(build("MobileNetV2"))
    assert outputs.stages is not None
    assert all(stage.preactivation is None for stage in outputs.stages)


@pytest.mark.parametrize("name", FAMILIES)
@torch.no_grad()
def test_stages_one_after_the_other_equal_the_nets_own_forward(name: str) -> None:
    net = build(name).eval()
    inner, _, outputs = run(net)
    assert outputs.stages is not None
    assert outputs.images is not None
    state = net.stagewise.stem(outputs.images)
    for number, stage in enumerate(outputs.stages, 1):
        state = net.stagewise.stage(number, state)
        assert torch.equal(state.map, stage.map)
    torch.testing.assert_close(net.stagewise.head(state)[1], inner(outputs.images))


def test_convolutions_start_with_the_variance_of_their_outputs_and_biases_at_zero() -> None:
    net: Any = build("vgg8").net
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            assert float(module.weight.detach().std()) == pytest.approx((2 / (9 * module.out_channels)) ** 0.5, rel=0.1)
            assert not module.bias.any()
    assert float(net.classifier.weight.detach().std()) == pytest.approx(0.01, rel=0.05)
