"""The nets of the published tables: taps, widths, sizes and preprocessing, and what OFA-KD adds to them."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from kdbench.method import Task
from kdbench.nets.models import preprocessing_of
from kdbench.nets.tapped import TappedNet, count_parameters, describe
from kdbench.suite.net import NetSpec, zoo_net
from kdbench.suite.zoo import LARGE_NETS, SMALL_NETS, ZOO
from tests.few import few

RESNET_BASIC = [(64, 56), (128, 28), (256, 14), (512, 7)]
RESNET_DEEP = [(256, 56), (512, 28), (1024, 14), (2048, 7)]


def hierarchical(width: int) -> list[tuple[int, int]]:
    return [(width * 2**stage, 56 // 2**stage) for stage in range(4)]


#: Family; (channels, side) of stages 1 to 4 at 224 px; class tokens; width of the embedding: OFA-KD's ``stage_info``.
TABLE = {
    "resnet18": ("cnn", RESNET_BASIC, 0, 512),
    "resnet34": ("cnn", RESNET_BASIC, 0, 512),
    "resnet50": ("cnn", RESNET_DEEP, 0, 2048),
    "resnet101": ("cnn", RESNET_DEEP, 0, 2048),
    "resnet152": ("cnn", RESNET_DEEP, 0, 2048),
    "mobilenetv2": ("cnn", [(24, 56), (32, 28), (96, 14), (1280, 7)], 0, 1280),
    "convnext_tiny": ("cnn", hierarchical(96), 0, 768),
    "convnext_base": ("cnn", hierarchical(128), 0, 1024),
    "deit_tiny": ("vit", [(192, 14)] * 4, 1, 192),
    "vit_small": ("vit", [(384, 14)] * 4, 1, 384),
    "vit_base": ("vit", [(768, 14)] * 4, 1, 768),
    "swin_tiny": ("vit", hierarchical(96), 0, 768),
    "swin_base": ("vit", hierarchical(128), 0, 1024),
    "swin_nano": ("vit", hierarchical(64), 0, 512),
    "swin_pico": ("vit", hierarchical(48), 0, 384),
    "mixer_b16": ("mlp", [(768, 14)] * 4, 0, 768),
    "resmlp_s12": ("mlp", [(384, 14)] * 4, 0, 384),
    "beitv2_base": ("vit", [(768, 14)] * 4, 1, 768),
    "beitv2_large": ("vit", [(1024, 14)] * 4, 1, 1024),
}


def test_the_table_holds_every_large_net_and_the_zoo_no_other() -> None:
    assert set(TABLE) == set(LARGE_NETS)
    assert set(ZOO) == {*LARGE_NETS, *SMALL_NETS}


@pytest.mark.parametrize("name", few(TABLE, 2))
def test_stages_at_224_px_are_those_that_ofa_kd_taps(name: str) -> None:
    family, stages, class_tokens, width = TABLE[name]
    info = describe(zoo_net(name), 1000, name)
    assert [(stage.channels, stage.height) for stage in info.stages] == stages
    assert {stage.width == stage.height for stage in info.stages} == {True}
    assert {stage.class_tokens for stage in info.stages} == {class_tokens}
    assert {stage.layout for stage in info.stages} == {"map" if family == "cnn" else "tokens"}
    assert (info.family, info.embedding_dim, info.input_size) == (family, width, (224, 224))
    assert info.linear_classifier


def test_plain_nets_are_tapped_after_the_blocks_of_ofa_kd() -> None:
    for name in ("deit_tiny", "vit_small", "vit_base", "mixer_b16", "resmlp_s12", "beitv2_base"):
        assert zoo_net(name).taps == (1, 3, 9, 11)
    assert zoo_net("beitv2_large").taps == (1, 3, 21, 23)


def test_taps_of_mobilenetv2_are_the_outputs_of_its_flat_blocks_2_5_12_and_of_its_last_convolution() -> None:
    torch.manual_seed(0)
    net = TappedNet(zoo_net("mobilenetv2").model_copy(update={"input_size": (64, 64)}), 10).eval()
    flat = [block for stage in net.net.blocks for block in stage]
    seen: dict[int, Tensor] = {}
    for number, module in enumerate((flat[2], flat[5], flat[12], net.net.bn2)):
        module.register_forward_hook(lambda _, __, output, number=number: seen.update({number: output}))
    with torch.no_grad():
        stages = net(torch.rand(1, 3, 64, 64), {"stages"}).stages
    for number, stage in enumerate(stages):
        assert torch.equal(stage.map, seen[number])
    assert isinstance(net.net.conv_head, nn.Conv2d)


@pytest.mark.parametrize(
    ("name", "classes", "millions"),
    [
        ("swin_nano", 1000, 9.60),
        ("swin_pico", 100, 5.16),
        ("swin_pico", 1000, 5.51),
        ("resnet18", 1000, 11.69),
        ("mobilenetv2", 1000, 3.50),
        ("deit_tiny", 1000, 5.72),
        ("resmlp_s12", 1000, 15.35),
        ("swin_tiny", 1000, 28.29),
        ("convnext_tiny", 1000, 28.59),
        ("mixer_b16", 1000, 59.88),
    ],
)
def test_number_of_parameters_is_the_published_one(name: str, classes: int, millions: float) -> None:
    assert round(count_parameters(zoo_net(name), classes, name) / 1e6, 2) == millions


def test_swin_nano_and_pico_differ_in_nothing_but_their_width() -> None:
    nano, pico = (timm.create_model(zoo_net(name).timm, num_classes=10) for name in ("swin_nano", "swin_pico"))
    for net, width in ((nano, 64), (pico, 48)):
        assert net.embed_dim == width
        assert [len(layer.blocks) for layer in net.layers] == [2, 2, 2, 2]
        assert [layer.blocks[0].attn.num_heads for layer in net.layers] == [2, 4, 8, 16]
        assert {tuple(layer.blocks[0].attn.window_size) for layer in net.layers} == {(7, 7)}


#: Share of the side that evaluation keeps, its interpolation, and whether mean and deviation are 0.5 (else ImageNet's).
PREPROCESSING = {
    "resnet18": (0.875, "bilinear", False),
    "resnet34": (0.875, "bicubic", False),
    "resnet50": (0.95, "bicubic", False),
    "resnet152": (0.95, "bicubic", False),
    "mobilenetv2": (0.875, "bicubic", False),
    "convnext_tiny": (0.875, "bicubic", False),
    "deit_tiny": (0.9, "bicubic", False),
    "vit_small": (0.9, "bicubic", True),
    "vit_base": (0.9, "bicubic", True),
    "swin_tiny": (0.9, "bicubic", False),
    "swin_base": (0.9, "bicubic", False),
    "swin_nano": (0.9, "bicubic", False),
    "swin_pico": (0.9, "bicubic", False),
    "mixer_b16": (0.875, "bicubic", True),
    "resmlp_s12": (0.875, "bicubic", False),
}


@pytest.mark.parametrize("name", PREPROCESSING)
def test_nets_see_the_preprocessing_that_their_weights_were_trained_with(name: str) -> None:
    crop, interpolation, halves = PREPROCESSING[name]
    own = preprocessing_of(zoo_net(name))
    assert (own["crop_pct"], own["interpolation"]) == (crop, interpolation)
    assert own["mean"] == ((0.5, 0.5, 0.5) if halves else (0.485, 0.456, 0.406))
    assert own["std"] == ((0.5, 0.5, 0.5) if halves else (0.229, 0.224, 0.225))


def test_every_large_net_that_timm_has_names_the_weights_it_is_a_teacher_with() -> None:
    for name in {*LARGE_NETS} - {"swin_nano", "swin_pico"}:
        assert zoo_net(name).timm in timm.list_pretrained(zoo_net(name).timm), name


@pytest.mark.parametrize(
    ("student", "teacher", "classes", "expected"),
    few(
        [
            ("resnet18", "swin_tiny", 100, 1_626_256),
            ("resnet18", "mixer_b16", 100, 1_626_256),
            ("resnet18", "vit_small", 100, 1_194_384),
            ("mobilenetv2", "swin_tiny", 100, 2_529_296),
            ("mobilenetv2", "vit_small", 100, 2_529_296),
            ("mobilenetv2", "mixer_b16", 100, 2_529_296),
            ("deit_tiny", "convnext_tiny", 100, 3_783_184),
            ("deit_tiny", "mixer_b16", 100, 3_783_184),
            ("swin_pico", "convnext_tiny", 100, 14_864_656),
            ("swin_pico", "mixer_b16", 100, 14_864_656),
            ("resmlp_s12", "convnext_tiny", 100, 14_938_768),
            ("resmlp_s12", "swin_tiny", 100, 14_938_768),
            ("resnet18", "swin_tiny", 1000, 4_394_656),
            ("resnet18", "mixer_b16", 1000, 4_394_656),
            ("resnet18", "deit_tiny", 1000, 3_041_184),
            ("deit_tiny", "convnext_tiny", 1000, 4_477_984),
            ("deit_tiny", "resnet50", 1000, 4_477_984),
            ("swin_nano", "resnet50", 1000, 28_187_040),
            ("swin_nano", "mixer_b16", 1000, 28_187_040),
            ("resnet50", "vit_base", 1000, 23_703_456),
            ("resnet50", "swin_base", 1000, 23_703_456),
        ],
        2,
    ),
)
def test_ofa_adds_as_many_parameters_to_these_pairs_as_its_official_code(
    student: str, teacher: str, classes: int, expected: int
) -> None:
    from kdbench.methods.ofa import OFA

    with torch.device("meta"):
        task = Task(classes, 10, torch.empty(10, dtype=torch.int64))
        method = OFA(describe(zoo_net(student), classes, student), describe(zoo_net(teacher), classes, teacher), task)
    assert sum(parameter.numel() for parameter in method.parameters()) == expected


def test_a_suite_starts_from_a_net_of_the_zoo_and_replaces_what_it_names() -> None:
    spec = NetSpec.model_validate({"zoo": "vit_small", "mean": [0.1, 0.2, 0.3], "weights": {"file": "x.pth"}})
    assert (spec.timm, spec.taps, spec.display) == (zoo_net("vit_small").timm, (1, 3, 9, 11), "ViT-S")
    assert spec.mean == (0.1, 0.2, 0.3)
    assert NetSpec.model_validate({"zoo": "resnet34", "timm": "resnet34.tv_in1k"}).timm == "resnet34.tv_in1k"
    with pytest.raises(ValueError, match="did you mean 'vit_small'"):
        NetSpec.model_validate({"zoo": "vit_smal"})
