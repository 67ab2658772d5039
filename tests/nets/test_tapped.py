"""Nets from timm seen through their taps."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F

from kdbench.nets.families import _FAMILY_OF_MODULE, family_of
from kdbench.nets.models import NetError, preprocessing_of
from kdbench.nets.tapped import TappedNet, count_parameters, describe, state_hash
from kdbench.nets.taps import plain_taps
from kdbench.suite.net import NetSpec, zoo_net
from kdbench.suite.zoo import SMALL_NETS
from tests.few import few

NEEDS = ("logits", "stages", "embedding", "classifier", "stagewise")


def net(name: str, **changes: Any) -> TappedNet:
    torch.manual_seed(0)
    return TappedNet(zoo_net(name).model_copy(update=changes), 10, name).eval()


def images(count: int = 2, size: int = 32) -> torch.Tensor:
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(0))


#: (channels, height, width) of stages 1 to 4, and the number of class tokens
SHAPES = {
    "resnet_32px_large": ([(32, 32, 32), (64, 16, 16), (128, 8, 8), (256, 4, 4)], 0),
    "resnet_32px_small": ([(16, 32, 32), (32, 16, 16), (64, 8, 8), (128, 4, 4)], 0),
    "convnext_32px_large": ([(48, 16, 16), (96, 8, 8), (192, 4, 4), (384, 2, 2)], 0),
    "convnext_32px_small": ([(24, 16, 16), (48, 8, 8), (96, 4, 4), (192, 2, 2)], 0),
    "vit_32px_large": ([(192, 8, 8)] * 4, 1),
    "vit_32px_small": ([(96, 8, 8)] * 4, 1),
    "swin_32px_large": ([(48, 16, 16), (96, 8, 8), (192, 4, 4), (384, 2, 2)], 0),
    "swin_32px_small": ([(24, 16, 16), (48, 8, 8), (96, 4, 4), (192, 2, 2)], 0),
    "mixer_32px_large": ([(192, 8, 8)] * 4, 0),
    "mixer_32px_small": ([(96, 8, 8)] * 4, 0),
    "resmlp_32px_large": ([(192, 8, 8)] * 4, 0),
    "resmlp_32px_small": ([(96, 8, 8)] * 4, 0),
}


def test_zoo_holds_the_nets_of_this_table() -> None:
    assert set(SHAPES) == set(SMALL_NETS)


@pytest.mark.parametrize("name", SHAPES)
def test_outputs_agree_with_the_nets_own_forward_and_with_each_other(name: str) -> None:
    tapped = net(name)
    inputs = tapped.preprocess(images())
    with torch.no_grad():
        own = tapped.net(inputs)
        outputs = tapped(images(), NEEDS)
        assert torch.equal(outputs.logits, own)
        assert outputs.embedding is not None
        assert outputs.classifier is not None
        assert torch.equal(outputs.classifier(outputs.embedding), own)
        assert torch.allclose(tapped(images()).logits, own, atol=1e-6)  # without taps
    assert outputs.images is not None
    assert torch.equal(outputs.images, inputs)


@pytest.mark.parametrize("name", SHAPES)
def test_stages_have_their_shapes_and_the_description_says_so(name: str) -> None:
    shapes, class_tokens = SHAPES[name]
    tapped = net(name)
    with torch.no_grad():
        outputs = tapped(images(), NEEDS)
    info = describe(zoo_net(name), 10, name)
    assert outputs.stages is not None
    assert outputs.embedding is not None
    for stage, told, shape in zip(outputs.stages, info.stages, shapes, strict=True):
        assert stage.map.shape == (2, *shape)
        assert (told.channels, told.height, told.width, told.class_tokens) == (*shape, class_tokens)
        assert stage.layout == told.layout == ("map" if info.family == "cnn" else "tokens")
        assert torch.equal(stage.tokens, stage.map.flatten(2).transpose(1, 2))
        assert stage.all_tokens.shape[1] == shape[1] * shape[2] + class_tokens
        assert (stage.class_tokens is None) == (class_tokens == 0)
    assert info == tapped.describe()
    assert (info.name, info.family, info.embedding_dim) == (name, zoo_net(name).family, outputs.embedding.shape[1])
    assert (info.num_classes, info.input_size, info.linear_classifier) == (10, (32, 32), True)
    assert count_parameters(zoo_net(name), 10, name) == sum(parameter.numel() for parameter in tapped.parameters())


def test_class_token_is_the_one_that_the_block_puts_out() -> None:
    tapped = net("vit_32px_small")
    seen: list[torch.Tensor] = []
    number = tapped.taps[1]
    assert isinstance(number, int)
    tapped.net.blocks[number].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        outputs = tapped(images(), ("stages",))
    assert outputs.stages is not None
    assert torch.equal(outputs.stages[1].all_tokens, seen[0])


def test_stages_of_a_cnn_are_what_its_stages_put_out() -> None:
    tapped = net("resnet_32px_small")
    seen: dict[int, torch.Tensor] = {}
    for number in range(1, 5):
        layer = getattr(tapped.net, f"layer{number}")
        layer.register_forward_hook(lambda module, inputs, output, number=number: seen.__setitem__(number, output))
    with torch.no_grad():
        outputs = tapped(images(), ("stages",))
    assert outputs.stages is not None
    assert all(torch.equal(outputs.stages[number - 1].map, seen[number]) for number in range(1, 5))


def test_only_what_is_needed_is_handed_out() -> None:
    outputs = net("vit_32px_small")(images())
    assert (outputs.stages, outputs.embedding, outputs.classifier, outputs.images, outputs.stagewise) == (None,) * 5
    outputs = net("vit_32px_small")(images(), ("embedding",))
    assert outputs.embedding is not None
    assert outputs.stages is None


@pytest.mark.parametrize("name", few(["resnet_32px_small", "resnet18", "resnet50"], 2))
def test_stages_of_a_resnet_are_also_handed_out_before_their_last_activation(name: str) -> None:
    net = TappedNet(NetSpec(timm=name), 10).train()
    for module in net.modules():
        if isinstance(
            module, torch.nn.BatchNorm2d
        ):  # of blocks that timm starts at 0, before a ReLU that has nothing to do
            torch.nn.init.ones_(module.weight)
    hooks = [len(module._forward_pre_hooks) for module in net.modules()]
    images = torch.rand(2, 3, *net.input_size)
    outputs = net(images, {"logits", "stages", "preactivation"})
    for stage in outputs.stages:
        assert (stage.preactivation < 0).any()
        torch.testing.assert_close(stage.preactivation.relu(), stage.map)
        assert stage.detach().preactivation.grad_fn is None
    sum(stage.preactivation.square().mean() for stage in outputs.stages).backward()
    assert net.net.conv1.weight.grad.any()
    assert [len(module._forward_pre_hooks) for module in net.modules()] == hooks
    assert all(stage.preactivation is None for stage in net(images, {"logits", "stages"}).stages)


@pytest.mark.parametrize("name", ["convnext_32px_small", "vit_32px_small", "swin_32px_small", "mixer_32px_small"])
def test_nets_that_end_their_stages_without_an_activation_have_none(name: str) -> None:
    net = TappedNet(zoo_net(name), 10)
    outputs = net(torch.rand(2, 3, *net.input_size), {"logits", "stages", "preactivation"})
    assert all(stage.preactivation is None for stage in outputs.stages)


def test_tap_of_the_stem_has_its_own_activation() -> None:
    net = TappedNet(NetSpec(timm="resnet_32px_small", taps=(0, 1, 2, 3)), 10)
    outputs = net(torch.rand(2, 3, 32, 32), {"logits", "stages", "preactivation"})
    for stage in outputs.stages:
        torch.testing.assert_close(stage.preactivation.relu(), stage.map)


def test_describing_keeps_the_mode_and_the_random_state() -> None:
    torch.manual_seed(7)
    expected = torch.rand(2)
    torch.manual_seed(7)
    describe(NetSpec(timm="vit_32px_small", args={"depth": 5}), 11)
    assert torch.equal(torch.rand(2), expected)
    tapped = net("resnet_32px_small").train()
    before = state_hash(tapped)
    tapped.describe()
    assert tapped.training
    assert state_hash(tapped) == before


# Taps


def test_plain_nets_are_tapped_at_2_4_10_and_12_twelfths() -> None:
    assert plain_taps(12) == (1, 3, 9, 11)
    assert plain_taps(24) == (3, 7, 19, 23)
    assert plain_taps(4) == (0, 1, 2, 3)
    for depth in range(4, 25):
        taps = plain_taps(depth)
        assert taps[0] >= 0
        assert list(taps) == sorted(set(taps))
        assert taps[3] == depth - 1
        if depth >= 6:
            wanted = [depth * share / 12 - 1 for share in (2, 4, 10, 12)]
            assert all(abs(tap - want) <= 0.5 for tap, want in zip(taps, wanted, strict=True))


def test_taps_of_a_suite_go_first_and_may_end_in_what_enters_the_pooling() -> None:
    tapped = TappedNet(NetSpec(timm="mobilenetv2_100", taps=(1, 2, 3, "final"), input_size=(64, 64)), 10).eval()
    with torch.no_grad():
        outputs = tapped(images(size=64), ("stages",))
        final = tapped.net.forward_features(tapped.preprocess(images(size=64)))
    assert outputs.stages is not None
    assert [stage.channels for stage in outputs.stages] == [24, 32, 96, 1280]
    assert torch.equal(outputs.stages[3].map, final)


def test_tap_that_is_no_map_is_refused() -> None:
    with pytest.raises(NetError, match=r"stage 4 has shape \(1, 65, 96\).*set its taps"):
        describe(zoo_net("vit_32px_small").model_copy(update={"taps": (0, 1, 2, "final")}), 10)


@pytest.mark.parametrize(
    ("taps", "problem"),
    [((0, 1, 2, 9), "tap 9 is unknown; .* has stages 0 to 5"), ((-1, 1, 2, 3), "tap -1"), ((0, 2, 1, 3), "must increase"),
     ((0, 1, 1, 3), "must increase"), ((0, 1, "final", 3), "must increase")],
)  # fmt: skip
def test_wrong_taps_are_refused(taps: tuple[Any, ...], problem: str) -> None:
    with pytest.raises(NetError, match=problem):
        net("vit_32px_small", taps=taps)


def test_net_with_fewer_than_four_stages_needs_taps() -> None:
    with pytest.raises(NetError, match=r"only 3 stages, four are needed; write taps: \[patch_embed, 0, 1, 2\]"):
        TappedNet(NetSpec(timm="vit_32px_small", args={"depth": 3}), 10)
    tapped = TappedNet(NetSpec(timm="vit_32px_small", args={"depth": 3}, taps=("patch_embed", 0, 1, 2)), 10).eval()
    outputs = tapped(images(), NEEDS[:3])
    assert [stage.map.shape for stage in outputs.stages] == [(2, 96, 8, 8)] * 4
    expected = tapped.net.patch_embed(tapped.preprocess(images())).transpose(1, 2).unflatten(2, (8, 8))
    assert torch.equal(outputs.stages[0].map, expected)


# Preprocessing


def test_each_net_normalises_by_its_own_mean_and_std() -> None:
    tapped = net("resnet_32px_small")
    assert torch.allclose(tapped.preprocess(images()), (images() - 0.5) / 0.25)
    other = net("resnet_32px_small", mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 4.0))
    expected = (images() - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([1.0, 2.0, 4.0]).view(3, 1, 1)
    assert torch.allclose(other.preprocess(images()), expected)
    assert tapped.preprocessing != other.preprocessing
    assert tapped.preprocessing == net("vit_32px_small").preprocessing


def test_images_are_resized_to_the_nets_own_input_size() -> None:
    tapped = net("resnet_32px_small", input_size=(48, 40))
    inputs = tapped.preprocess(images())
    assert inputs.shape == (2, 3, 48, 40)
    resized = F.interpolate(images(), (48, 40), mode="bilinear", align_corners=False, antialias=True)
    assert torch.allclose(inputs, (resized - 0.5) / 0.25)
    assert tapped.preprocessing != net("resnet_32px_small").preprocessing
    assert describe(zoo_net("resnet_32px_small").model_copy(update={"input_size": (48, 40)}), 10).stages[0].height == 48


def test_preprocessing_is_no_part_of_the_weights() -> None:
    assert not [name for name in net("resnet_32px_small").state_dict() if name in ("mean", "std")]


# Errors


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        (NetSpec(timm="resnet81"), r"timm has no model 'resnet81'; did you mean 'resnet18|resnet[0-9]"),
        (NetSpec(timm="vit_32px_smal"), "did you mean 'vit_32px_small'"),
        (NetSpec(timm="vit_32px_small", args={"dept": 3}), "timm cannot build vit_32px_small with {'dept': 3}"),
        (NetSpec(timm="vit_32px_small", args={"embed_dim": 10}), "timm cannot build"),
    ],
)
def test_net_that_timm_cannot_build_is_refused_with_its_name(spec: NetSpec, problem: str) -> None:
    with pytest.raises(NetError, match=problem) as caught:
        TappedNet(spec, 10, "mine")
    assert str(caught.value).startswith("net mine: ")


# Nets of timm itself, at a size that suits a test

TIMM = {
    "resnet18": (None, "cnn", 0),
    "mobilenetv2_100": (None, "cnn", 0),
    "convnext_atto": (None, "cnn", 0),
    "regnety_002": (None, "cnn", 0),
    "vit_tiny_patch16_224": ({"img_size": 64}, "vit", 1),
    "deit_tiny_patch16_224": ({"img_size": 64}, "vit", 1),
    "swin_tiny_patch4_window7_224": (
        {"img_size": 64, "window_size": 2, "embed_dim": 24, "depths": (1, 1, 2, 1)},
        "vit",
        0,
    ),
    "mixer_s16_224": ({"img_size": 64}, "mlp", 0),
    "resmlp_12_224": ({"img_size": 64}, "mlp", 0),
}


@pytest.mark.parametrize("name", few(TIMM, 5))
def test_nets_of_timm_are_tapped_alike(name: str) -> None:
    args, family, class_tokens = TIMM[name]
    spec = NetSpec(timm=name, args=args or {}, input_size=(64, 64))
    torch.manual_seed(0)
    tapped = TappedNet(spec, 7).eval()
    with torch.no_grad():
        outputs = tapped(images(2, 64), NEEDS)
        assert torch.equal(outputs.logits, tapped.net(tapped.preprocess(images(2, 64))))
        assert outputs.embedding is not None
        assert outputs.classifier is not None
        assert torch.equal(outputs.classifier(outputs.embedding), outputs.logits)
    info = describe(spec, 7)
    assert (info.family, info.class_tokens, len(info.stages), info.num_classes) == (family, class_tokens, 4, 7)
    assert outputs.stages is not None
    for stage, told in zip(outputs.stages, info.stages, strict=True):
        assert stage.map.shape == (2, told.channels, told.height, told.width)
    assert [stage.height for stage in info.stages] == sorted((stage.height for stage in info.stages), reverse=True)
    assert tapped.mean.flatten().tolist() == pytest.approx(list(timm.get_pretrained_cfg(name).mean))


#: Nets whose head is more than one linear layer after the pooling -> arguments, input size, number of classifiers, taps.
HEADS = {
    "deit_tiny_distilled_patch16_224": ({"img_size": 64, "depth": 4}, 64, 2, None),
    "levit_128s": ({"img_size": 64, "depth": (1, 1, 1)}, 64, 2, ("stem", 0, 1, 2)),
    "pit_ti_distilled_224": ({"img_size": 64}, 64, 2, ("patch_embed", 0, 1, 2)),
    "efficientformer_l1": ({}, 224, 2, None),
    "swiftformer_xs": ({"layers": (1, 1, 1, 1)}, 64, 2, None),
    "crossvit_tiny_240": ({}, 240, 2, None),
    "resnetv2_50x1_bit": ({}, 64, 1, None),
    "dla34": ({}, 64, 1, None),
    "dpn48b": ({"k_sec": (1, 1, 1, 1)}, 64, 1, None),
    "sequencer2d_s": ({"layers": (1, 1, 1, 1)}, 224, 1, None),
    "vit_relpos_small_patch16_224": ({"img_size": 64, "depth": 4}, 64, 1, None),
    "samvit_base_patch16_224": (
        {"img_size": 64, "depth": 4, "embed_dim": 48, "num_heads": 3, "global_attn_indexes": ()},
        64,
        1,
        None,
    ),
    "volo_d1_224": ({}, 224, 1, None),
}


SIZES = {name: size for name, (_, size, *_) in HEADS.items()}


@pytest.mark.parametrize(
    "name", few(sorted(SIZES, key=lambda name: SIZES[name]), sum(size < 224 for size in SIZES.values()))
)
def test_logits_and_embedding_are_the_nets_own_whatever_its_head(name: str) -> None:
    args, size, classifiers, taps = HEADS[name]
    torch.manual_seed(0)
    tapped = TappedNet(NetSpec(timm=name, args=args, input_size=(size, size), taps=taps), 7)
    for layer in tapped.classifiers:  # some start at zero
        for parameter in layer.parameters():
            torch.nn.init.normal_(parameter)
    inputs = torch.randn(2, 3, size, size)
    info = describe(tapped.spec, 7)
    tapped.eval()
    with torch.no_grad():
        outputs, own = tapped.run(inputs, NEEDS[:3]), tapped.net(inputs)
        embedding = tapped.net.forward_head(tapped.net.forward_features(inputs), pre_logits=True).flatten(1)
    torch.testing.assert_close(outputs.logits, own)
    torch.testing.assert_close(outputs.embedding, embedding)
    assert info.embedding_dim == embedding.shape[1]
    assert len(tapped.classifiers) == classifiers
    assert ("classifier" in info.lacks) == (tapped.classifier is None)
    if classifiers == 1:
        assert outputs.heads is None
    else:
        assert [head.shape for head in outputs.heads] == [(2, 7)] * classifiers
        torch.testing.assert_close(sum(outputs.heads) / classifiers, own)
        assert info.lacks["classifier"].endswith("has 2 classifiers: no single layer gives its logits")
    if info.linear_classifier:
        found = outputs.embedding @ tapped.classifier.weight.T + tapped.classifier.bias
        torch.testing.assert_close(found, own, rtol=1e-4, atol=1e-4)


def test_a_head_that_drops_out_between_embedding_and_classifier_does_so_in_training() -> None:
    tapped = TappedNet(NetSpec(timm="vit_32px_small", args={"drop_rate": 0.5}), 10).train()
    torch.nn.init.normal_(tapped.net.head.weight)
    torch.manual_seed(0)
    ours = tapped.run(torch.ones(2, 3, 32, 32)).logits
    torch.manual_seed(0)
    torch.testing.assert_close(ours, tapped.net(torch.ones(2, 3, 32, 32)))


def test_net_whose_forward_does_more_than_features_and_head_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    own = type(timm.create_model("resnet_32px_small")).forward
    monkeypatch.setattr("kdbench.nets.small.ResNet32px.forward", lambda self, x: own(self, x) * 1.01)
    with pytest.raises(NetError, match="differ from those of its own forward by 0"):
        TappedNet(NetSpec(timm="resnet_32px_small", args={"stem_width": 8}), 10, "mine")


def test_comparing_leaves_weights_mode_and_random_state_as_they_were() -> None:
    torch.manual_seed(5)
    plain, after = timm.create_model("vit_32px_small", num_classes=9), torch.rand(1)
    torch.manual_seed(5)
    tapped = TappedNet(NetSpec(timm="vit_32px_small"), 9)
    assert torch.equal(torch.rand(1), after)
    assert tapped.net.training
    assert state_hash(tapped.net) == state_hash(plain)


def test_net_that_fails_when_it_is_described_is_refused_in_one_sentence() -> None:
    with pytest.raises(NetError, match="net mine: vit_tiny_patch16_224 cannot be run"):
        describe(NetSpec(timm="vit_tiny_patch16_224", input_size=(64, 64)), 10, "mine")


@pytest.mark.parametrize(
    ("name", "family"),
    [("repvgg_a0", "cnn"), ("mobileone_s0", "cnn"), ("xception41", "cnn"), ("inception_v4", "cnn"), ("hgnet_tiny", "cnn"),
     ("legacy_senet154", "cnn"), ("mambaout_femto", "cnn"), ("hiera_tiny_224", "vit"), ("tiny_vit_5m_224", "vit"),
     ("davit_tiny", "vit"), ("swinv2_cr_tiny_ns_224", "vit"), ("focalnet_tiny_srf", "vit"), ("gcvit_xxtiny", "vit"),
     ("nest_tiny", "vit"), ("volo_d1_224", "vit"), ("coatnet_0_rw_224", "vit"), ("mobilevit_xxs", "vit"), ("caformer_s18", "vit"),
     ("convformer_s18", "cnn"), ("poolformer_s12", "cnn"), ("fastvit_t8", "cnn"), ("fastvit_sa12", "vit"),
     ("sequencer2d_s", "mlp"), ("gmlp_ti16_224", "mlp")],
)  # fmt: skip
def test_families_are_known_and_those_of_hybrids_follow_what_mixes_positions(name: str, family: str) -> None:
    with torch.device("meta"):
        assert family_of(timm.create_model(name, num_classes=10)) == family


def test_every_module_of_the_table_of_families_exists() -> None:
    for module in _FAMILY_OF_MODULE:
        assert find_spec(f"timm.models.{module}") or find_spec(f"torchvision.models.{module}"), module


def test_image_size_in_args_is_the_input_size() -> None:
    spec = NetSpec(timm="vit_tiny_patch16_224", args={"img_size": 64, "depth": 4})
    assert TappedNet(spec, 10).input_size == preprocessing_of(spec)["input_size"] == (64, 64)
    assert describe(spec, 10).stages[0].height == 4


# Memory format


def is_channels_last(tapped: TappedNet) -> bool:
    weights = [weight for weight in tapped.net.parameters() if weight.ndim == 4 and min(weight.shape[1:3]) > 1]
    assert weights
    return all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


@pytest.mark.parametrize("name", ["resnet_32px_small", "convnext_32px_small", "vit_32px_small"])
def test_a_memory_format_stays_when_weights_are_loaded_and_changes_only_the_last_bits(name: str) -> None:
    plain, other = (net(name, memory_format=memory_format) for memory_format in ("contiguous", "channels_last"))
    assert (is_channels_last(plain), is_channels_last(other)) == (False, True)
    assert state_hash(plain.net) == state_hash(other.net)
    other.net.load_state_dict(plain.net.state_dict())
    assert is_channels_last(other)
    expected, found = (tapped(images(4), {"logits", "stages"}) for tapped in (plain, other))
    torch.testing.assert_close(found.logits, expected.logits, atol=1e-4, rtol=1e-4)
    for ours, theirs in zip(found.stages or (), expected.stages or (), strict=True):
        torch.testing.assert_close(ours.map, theirs.map, atol=1e-4, rtol=1e-4)
