"""A net run stage by stage is the net; what lies between its stages can be changed; its shapes are known beforehand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch

from kdbench.method import StageInfo
from kdbench.nets.stagewise import StagewiseError, can_run_stagewise
from kdbench.nets.tapped import TappedNet, describe
from kdbench.suite.net import NetSpec, zoo_net
from kdbench.suite.zoo import SMALL_NETS
from tests.few import few

SMALL = {name: zoo_net(name) for name in SMALL_NETS}

# The nets of the paper tables at a size that is quick: fewer blocks and pixels, the same code paths.
LARGE: dict[str, NetSpec] = {
    "resnet18": NetSpec(timm="resnet18", input_size=(64, 64)),
    "resnet50": NetSpec(timm="resnet50", args={"layers": (1, 1, 1, 1)}, input_size=(64, 64)),
    "mobilenetv2_100": NetSpec(timm="mobilenetv2_100", taps=(1, 2, 3, "final"), input_size=(64, 64)),
    "convnext_tiny": NetSpec(timm="convnext_tiny", args={"depths": (1, 1, 1, 1)}, input_size=(64, 64)),
    "deit_tiny": NetSpec(timm="deit_tiny_patch16_224", args={"img_size": 64}, taps=(1, 3, 9, 11), input_size=(64, 64)),
    "swin_tiny": NetSpec(
        timm="swin_tiny_patch4_window7_224",
        args={"img_size": 64, "window_size": 4, "depths": (1, 1, 2, 1), "embed_dim": 24},
        input_size=(64, 64),
    ),
    "mixer_s16": NetSpec(timm="mixer_s16_224", args={"img_size": 64}, input_size=(64, 64)),
    "resmlp_12": NetSpec(timm="resmlp_12_224", args={"img_size": 64}, taps=(1, 3, 9, 11), input_size=(64, 64)),
}

# Cuts that are easy to get wrong: taps at the stem, blocks after the last tap, no class token or many.
ODD: dict[str, NetSpec] = {
    "resnet tapped before its pooling": NetSpec(timm="resnet18", taps=(0, 1, 2, 3), input_size=(32, 32)),
    "mobilenet tapped at its stem": NetSpec(timm="mobilenetv2_100", taps=(0, 1, 2, 4), input_size=(32, 32)),
    "vit with blocks after the last tap": NetSpec(timm="vit_32px_small", taps=(0, 1, 2, 3)),
    "vit without class token": NetSpec(
        timm="vit_32px_small", args={"class_token": False, "global_pool": "avg"}, input_size=(32, 32)
    ),
    "vit with registers": NetSpec(timm="vit_32px_small", args={"reg_tokens": 3, "no_embed_class": True}),
    "vit of any image size": NetSpec(timm="vit_32px_small", args={"dynamic_img_size": True}, input_size=(32, 48)),
}

ALL = {**SMALL, **LARGE, **ODD}


def build(spec: NetSpec, name: str = "net", classes: int = 7) -> TappedNet:
    torch.manual_seed(0)
    net = TappedNet(spec, classes, name)
    with torch.no_grad():
        for parameter in net.parameters():  # nothing at zero, where a lost step would not show
            parameter.add_(0.02 * torch.randn_like(parameter))
    return net.eval().requires_grad_(False)


def images_of(net: TappedNet, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, 3, *net.input_size, generator=torch.Generator().manual_seed(1))


def run(net: TappedNet, inputs: torch.Tensor) -> tuple[list[Any], torch.Tensor, torch.Tensor]:
    states = [net.stagewise.stem(inputs)]
    for number in (1, 2, 3, 4):
        states.append(net.stagewise.stage(number, states[-1]))
    return states, *net.stagewise.head(states[-1])


@pytest.mark.parametrize("name", few(ALL, 5))
@torch.no_grad()
def test_stages_one_after_the_other_equal_the_nets_own_forward(name: str) -> None:
    net = build(ALL[name], name)
    images = images_of(net)
    outputs = net(images, {"logits", "stages", "embedding", "stagewise"})
    assert outputs.stagewise is not None
    states, embedding, logits = run(net, outputs.images)

    torch.testing.assert_close(logits, net.net(net.preprocess(images)), rtol=0, atol=1e-6)
    torch.testing.assert_close(embedding, outputs.embedding, rtol=0, atol=1e-6)
    features = net.net.forward_features(net.preprocess(images))
    torch.testing.assert_close(net.stagewise.final(states[-1]).value, features, rtol=0, atol=1e-5)
    for state, stage in zip(states[1:], outputs.stages, strict=True):
        assert torch.equal(state.map, stage.map)
        assert torch.equal(state.feature(stage.layout).all_tokens, stage.all_tokens)
        assert (state.class_tokens is None) == (stage.class_tokens is None)


@pytest.mark.parametrize("name", few(ALL, 5))
@torch.no_grad()
def test_a_state_survives_the_way_to_a_map_and_back(name: str) -> None:
    net = build(ALL[name], name)
    for state in run(net, net.preprocess(images_of(net)))[0]:
        again = state.with_map(state.map)
        assert torch.equal(again.value, state.value)
        assert again.grid == state.grid
        rebuilt = net.stagewise.state_from_map(state.map, state.class_tokens)
        assert torch.equal(rebuilt.value, state.value)
        assert (rebuilt.grid, rebuilt.layout) == (state.grid, state.layout)


@pytest.mark.parametrize("name", few(ALL, 5))
@torch.no_grad()
def test_input_shapes_are_known_on_the_meta_device(name: str) -> None:
    info = describe(ALL[name], 7, name)
    net = build(ALL[name], name)
    states, embedding, _ = run(net, net.preprocess(images_of(net)))
    assert info.stagewise
    assert info.embedding_dim == embedding.shape[1]
    shapes = [(s.map.shape[1], *s.grid, 0 if s.class_tokens is None else s.class_tokens.shape[1]) for s in states]
    assert [(i.channels, i.height, i.width, i.class_tokens) for i in info.stage_inputs] == shapes[:4]
    assert info.stage_inputs[1:] == info.stages[:3]
    assert all(isinstance(stage, StageInfo) and stage.layout == net.layout for stage in info.stage_inputs)


@pytest.mark.parametrize("name", few([name for name in SMALL if name.endswith("small")] + list(LARGE), 6))
def test_gradients_pass_through_a_frozen_net_to_what_was_put_into_it(name: str) -> None:
    net = build(ALL[name], name)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    inputs = net.preprocess(images_of(net))
    runner = net.stagewise
    state = runner.stem(inputs)
    prompts = []
    for number in (1, 2, 3, 4):
        prompt = torch.zeros_like(state.map[:1]).requires_grad_()
        prompts.append(prompt)
        state = runner.stage(number, state.with_map(state.map + prompt))
    _, logits = runner.head(state)
    torch.testing.assert_close(logits, net.net(inputs), rtol=0, atol=1e-6)
    (logits * torch.linspace(-1, 1, 7)).sum().backward()
    assert all(prompt.grad is not None and prompt.grad.abs().sum() > 0 for prompt in prompts)
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@pytest.mark.parametrize("name", [name for name in SMALL if name.endswith("small")])
@torch.no_grad()
def test_a_foreign_map_continues_in_stage_four(name: str) -> None:
    net = build(ALL[name], name)
    info = describe(ALL[name], 7, name).stage_inputs[3]
    value = torch.randn(3, info.channels, info.height, info.width)
    runner = net.stagewise
    _, first = runner.head(runner.stage(4, runner.state_from_map(value)))
    assert first.shape == (3, 7)
    _, second = runner.head(runner.stage(4, runner.state_from_map(value.flip(0))))
    torch.testing.assert_close(first.flip(0), second)
    assert not torch.allclose(first[0], first[1])


@pytest.mark.parametrize("name", ["vit_32px_small", "vit with registers", "vit of any image size"])
@torch.no_grad()
def test_class_tokens_default_to_those_that_enter_the_first_block(name: str) -> None:
    net = build(ALL[name], name)
    state = net.stagewise.stem(net.preprocess(images_of(net)))
    assert state.class_tokens.shape[1] == (4 if "registers" in name else 1)
    torch.testing.assert_close(net.stagewise.state_from_map(state.map).value, state.value, rtol=0, atol=1e-6)


@torch.no_grad()
def test_with_map_keeps_class_tokens_and_changes_nothing_in_place() -> None:
    net = build(SMALL["vit_32px_small"])
    state = net.stagewise.stem(net.preprocess(images_of(net)))
    before = state.value.clone()
    changed = state.with_map(state.map * 2)
    assert torch.equal(state.value, before)
    assert torch.equal(changed.class_tokens, state.class_tokens)
    assert torch.equal(changed.map, state.map * 2)


def test_a_net_in_train_mode_is_trained_by_its_stages() -> None:
    net = build(SMALL["resnet_32px_small"]).train().requires_grad_(True)
    states, _, logits = run(net, net.preprocess(images_of(net)))
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert int(net.net.bn1.num_batches_tracked) == 1
    assert states[4].map.requires_grad


@torch.no_grad()
def test_a_copied_net_runs_its_own_modules() -> None:
    net = build(SMALL["convnext_32px_small"])
    inputs = net.preprocess(images_of(net))
    logits = run(net, inputs)[2]
    other = copy.deepcopy(net)
    for parameter in other.parameters():
        parameter.mul_(0.5)
    torch.testing.assert_close(run(other, inputs)[2], other.net(inputs))
    assert torch.equal(run(net, inputs)[2], logits)


def test_unknown_architectures_are_refused_when_they_are_run_and_have_no_inputs() -> None:
    spec = NetSpec(timm="densenet121", args={"block_config": (1, 1, 1, 1)}, input_size=(64, 64))
    net = build(spec, "densenet")
    assert not can_run_stagewise(net.net, net.taps)
    info = describe(spec, 7, "densenet")
    assert not info.stagewise
    assert info.stage_inputs == ()
    with pytest.raises(StagewiseError, match=r"net densenet: DenseNet cannot be run stage by stage"):
        net.stagewise.stem(images_of(net))


def test_a_net_that_drops_patches_cannot_run_stagewise() -> None:
    net = build(NetSpec(timm="vit_32px_small", args={"patch_drop_rate": 0.5}))
    assert not can_run_stagewise(net.net, net.taps)


def test_a_changed_forward_is_not_taken_for_the_known_one() -> None:
    net = build(SMALL["resnet_32px_small"])

    class Other(type(net.net)):  # type: ignore[misc]
        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward_features(x) * 2

    net.net.__class__ = Other
    assert not can_run_stagewise(net.net, net.taps)


def test_wrong_states_are_refused_with_the_expected_shape() -> None:
    vit, cnn = build(SMALL["vit_32px_small"], "vit"), build(SMALL["resnet_32px_small"], "cnn")
    value = torch.zeros(2, 96, 8, 8)
    with pytest.raises(StagewiseError, match=r"net vit: class tokens of shape \(2, 2, 96\), expected \(2, 1, 96\)"):
        vit.stagewise.state_from_map(value, torch.zeros(2, 2, 96))
    with pytest.raises(StagewiseError, match=r"net cnn: class tokens of shape \(2, 1, 96\), expected None"):
        cnn.stagewise.state_from_map(value, torch.zeros(2, 1, 96))
    with pytest.raises(StagewiseError, match=r"\(B, c, h, w\), not \(2, 96\)"):
        cnn.stagewise.state_from_map(torch.zeros(2, 96))
    with pytest.raises(StagewiseError, match="stage 5 is unknown"):
        cnn.stagewise.stage(5, cnn.stagewise.state_from_map(value))
