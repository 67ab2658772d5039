"""Nets from torchvision, transformers and files of the user's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from kdbench.nets.models import NetError, preprocessing_of
from kdbench.nets.tapped import TappedNet, describe
from kdbench.nets.taps import as_map
from kdbench.suite.net import NetSpec, name_files
from kdbench.suite.suite import load_suite
from tests.conftest import tiny

#: A net of one's own; with ``reads`` it reads values where it is made and where it runs, which the device "meta" cannot.
MINE = """
import functools

import torch
from torch import nn


ONE = torch.ones(1)


class Mine(nn.Module):
    def __init__(self, num_classes, width=8, reads=False):
        super().__init__()
        self.read = float if reads else (lambda value: None)
        self.read(ONE)
        widths = (3, width, width, 2 * width, 2 * width)
        self.blocks = nn.Sequential(*(
            nn.Sequential(nn.Conv2d(a, b, 3, 2 if n else 1, 1), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
            for n, (a, b) in enumerate(zip(widths, widths[1:]))
        ))
        self.unused = nn.Linear(2, 2)
        self.head = nn.Linear(2 * width, num_classes)

    def forward(self, images):
        self.read(images.max())
        return self.head(self.blocks(images).mean((2, 3)))


def make(num_classes, **kwargs):
    return Mine(num_classes, **kwargs)


def raises(num_classes):
    raise ValueError("no such width")


def exits(num_classes):
    raise SystemExit(2)


def nothing(num_classes):
    return None


kept = functools.cache(Mine)


class Odd(Mine):
    # Its classifier gets its input by name; ``lnc`` is sequence first, ``act`` runs twice and is ``same`` too.

    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.act = self.same = nn.GELU()
        self.lnc = nn.Identity()

    def forward(self, images):
        stages = self.act(self.act(self.blocks(images)))
        self.lnc(stages.flatten(2).permute(2, 0, 1))
        return self.head(input=stages.mean((2, 3)))


def pairs(num_classes):
    class Pairs(Mine):
        def forward(self, images):
            return super().forward(images), images

    return Pairs(num_classes)
"""

HF = {
    "image_size": 32, "patch_size": 8, "hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip
HF_TAPS = [f"vit.layers.{number}" for number in range(4)]
BLOCKS = [f"blocks.{number}" for number in range(4)]
LAYERS = ["layer1", "layer2", "layer3", "layer4"]


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    path = tmp_path / "my_nets.py"
    path.write_text(MINE)
    return path


@pytest.fixture
def own(mine: Path) -> Callable[..., NetSpec]:
    """A net of the file, which is named."""
    name_files([str(mine)])

    def spec(function: str = "make", **fields: Any) -> NetSpec:
        return NetSpec.model_validate({"python": f"{mine}:{function}", "input_size": [32, 32], **fields})

    return spec


def test_a_net_is_written_by_the_key_of_its_source_or_as_text() -> None:
    for content in ({"torchvision": "resnet18"}, {"timm": "torchvision:resnet18"}, "torchvision:resnet18"):
        assert NetSpec.model_validate(content).torchvision == "resnet18"
    assert NetSpec.model_validate({"hf-hub": "timm/resnet18.a1_in1k"}).timm == "hf-hub:timm/resnet18.a1_in1k"
    assert NetSpec.model_validate("hf:facebook/deit-tiny-patch16-224").model == "hf:facebook/deit-tiny-patch16-224"
    assert NetSpec.model_validate({"python": "a.py:make"}).python_file == Path("a.py")
    for content, problem in (
        ({"timm": "resnet18", "hf": "vit"}, "name two models"),
        ({}, "timm is missing"),
        ("torchvison:resnet18", "did you mean 'torchvision'"),
        ({"python": "my_nets.py"}, "not of the form FILE:FUNCTION"),
        ({"timm": "resnet18", "embedding": "fc"}, "know their own embedding"),
    ):
        with pytest.raises(ValueError, match=problem):
            NetSpec.model_validate(content)


@pytest.mark.parametrize(
    "args",
    [{"checkpoint_path": "x.pth"}, {"pretrained": True}, {"pretrained_cfg": {}}, {"pretrained_cfg_overlay": {"file": "x"}},
     {"cache_dir": "x"}, {"scriptable": True}, {"exportable": True}, {"no_jit": True}, {"num_classes": 3}, {"in_chans": 1},
     {"features_only": True}, {"global_pool": ""}, {"weights": "DEFAULT"}, {"trust_remote_code": True}, {"num_labels": 3}],
)  # fmt: skip
def test_arguments_that_bring_weights_or_code_or_change_the_task_are_refused_by_name(args: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(args))} cannot be set: "):
        NetSpec.model_validate({"timm": "resnet18", "args": args})


def test_torchvision_nets_give_their_modules_outputs() -> None:
    spec = NetSpec.model_validate(
        {
            "torchvision": "resnet18",
            "input_size": [32, 32],
            "taps": LAYERS,
            "embedding": "avgpool",
            "mean": [0, 0, 0],
            "std": [1, 1, 1],
        }
    )
    torch.manual_seed(0)
    net = TappedNet(spec, 7).eval()
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        outputs = net(images, ("logits", "stages", "embedding", "classifier"))
        assert torch.equal(outputs.logits, net.net(images))
        assert torch.equal(outputs.classifier(outputs.embedding), outputs.logits)
        value = net.net.maxpool(net.net.relu(net.net.bn1(net.net.conv1(images))))
        for stage, layer in zip(outputs.stages, LAYERS, strict=True):
            value = getattr(net.net, layer)(value)
            assert torch.equal(stage.map, value)
    info = describe(spec, 7)
    assert (info.family, info.layouts, info.embedding_dim, info.linear_classifier) == ("cnn", ("NCHW",) * 4, 512, True)
    assert info.lacks.keys() == {"attention"}


@pytest.mark.parametrize(
    ("name", "args", "taps", "layout", "family", "tokens"),
    [("swin_t", {}, [f"features.{n}" for n in (1, 3, 5, 7)], "NHWC", "vit", 0),
     ("vit_b_16", {"image_size": 32}, [f"encoder.layers.encoder_layer_{n}" for n in (1, 3, 9, 11)], "NLC", "vit", 1),
     ("mobilenet_v3_small", {}, ["features.1", "features.3", "features.8", "features.11"], "NCHW", "cnn", 0)],
)  # fmt: skip
def test_layouts_are_told_from_shapes(
    name: str, args: dict[str, Any], taps: list[str], layout: str, family: str, tokens: int
) -> None:
    spec = NetSpec.model_validate(
        {"torchvision": name, "args": args, "input_size": [32, 32], "taps": taps, "class_tokens": tokens}
    )
    info = describe(spec, 5)
    assert (info.layouts, info.family, info.class_tokens) == ((layout,) * 4, family, tokens)
    assert all(stage.height == stage.width for stage in info.stages)
    assert layout in info.words


def test_a_net_of_transformers_is_built_from_its_configuration_alone(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    transformers.ViTConfig(**HF).save_pretrained(tmp_path / "vit")
    for hf, args in ((str(tmp_path / "vit"), {}), ("vit", HF)):
        spec = NetSpec.model_validate({"hf": hf, "args": args, "taps": HF_TAPS, "class_tokens": 1})
        net = TappedNet(spec, 7).eval()
        images = torch.rand(2, 3, 32, 32)
        assert net.input_size == (32, 32)
        with torch.no_grad():
            outputs = net(images, ("logits", "stages", "embedding", "classifier"))
            own = net.net(net.preprocess(images), output_hidden_states=True)
        assert torch.equal(outputs.logits, own.logits)
        assert [tuple(stage.map.shape) for stage in outputs.stages] == [(2, 16, 4, 4)] * 4
        assert torch.equal(outputs.stages[1].all_tokens, own.hidden_states[2])
        torch.testing.assert_close(outputs.classifier(outputs.embedding), outputs.logits)
        assert describe(spec, 7).family == "vit"
    tokens = {**HF, "num_hidden_layers": 1}
    assert describe(NetSpec(hf="deit", args=tokens), 7).embedding_dim == 16  # a type of two classes
    assert "config" in NetSpec(hf=str(tmp_path / "vit")).identity()["hf"]
    with pytest.raises(NetError, match="has no hidden_sise; did you mean 'hidden_size'"):
        describe(NetSpec(hf="vit", args={"hidden_sise": 3}), 7, "mine")


def test_a_repository_that_needs_its_own_code_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    (tmp_path / "config.json").write_text('{"model_type": "odd", "auto_map": {"AutoConfig": "odd.Config"}}')
    (tmp_path / "odd.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()")
    with pytest.raises(NetError, match="cannot build"):
        describe(NetSpec(hf=str(tmp_path)), 7, "mine")
    assert not (tmp_path / "ran").exists()


def test_a_file_runs_only_where_the_command_line_names_it(mine: Path) -> None:
    name_files([])
    mine.write_text(f"open({str(mine.parent / 'ran')!r}, 'w').close()")
    with pytest.raises(NetError, match=f"a suite's Python runs only when you name it too: --plugin {mine}$"):
        TappedNet(NetSpec(python=f"{mine}:make"), 10, "mine")
    assert not (mine.parent / "ran").exists()


def test_a_net_of_ones_own_needs_no_taps_and_says_what_it_lacks(own: Callable[..., NetSpec]) -> None:
    spec = own()
    info = describe(spec, 10, "mine")
    assert (info.family, info.stages, info.embedding_dim) == ("cnn", (), 16)
    assert info.lacks.keys() == {"stages", "preactivation", "stagewise", "attention"}
    tapped = describe(own(taps=BLOCKS), 10, "mine")
    assert [stage.height for stage in tapped.stages] == [32, 16, 8, 4]
    assert tapped.lacks.keys() == {"attention"}
    reading = own(args={"reads": True}, taps=BLOCKS)
    assert describe(reading, 10, "mine").stages == tapped.stages
    assert (
        describe(own("Odd", taps=BLOCKS), 10, "mine").embedding_dim == 16
    )  # of a classifier that is called by keyword


def test_the_identity_of_a_file_is_its_content_and_not_its_place(own: Callable[..., NetSpec], mine: Path) -> None:
    before = own().identity()
    assert before["python"] == "my_nets.py:make"
    mine.write_text(MINE + "\n# changed\n")
    assert own().identity() != before
    assert (
        NetSpec(timm="resnet18")
        .identity()
        .keys()
        .isdisjoint({"torchvision", "hf", "python", "embedding", "class_tokens"})
    )


@pytest.mark.parametrize(
    ("function", "fields", "problem"),
    [("maker", {}, "has no function 'maker'; did you mean 'make'"),
     ("make", {"args": {"depth": 3}}, r"raised TypeError: .*'depth'"),
     ("raises", {}, "raised ValueError: no such width"),
     ("exits", {}, "raised SystemExit: 2"),
     ("nothing", {}, "returned NoneType, not a torch.nn.Module"),
     ("kept", {}, r"returned weights of an earlier call once more \(blocks.0.0, .*; make all modules anew"),
     ("Odd", {"taps": [*BLOCKS[:3], "lnc"]}, r"lnc puts out a tensor of shape \(16, 1, 16\), whose first dimension is not the batch"),
     ("Odd", {"taps": [*BLOCKS[:3], "act"]}, "module act runs 2 times in the net's forward"),
     ("Odd", {"taps": [*BLOCKS[:3], "same"]}, "module same runs 2 times in the net's forward"),
     ("make", {"taps": BLOCKS[::-1]}, "in the order of the net's forward: blocks.0, blocks.1, blocks.2, blocks.3$"),
     ("make", {"taps": [*BLOCKS[:3], "blocks.2"]}, "each stage is another module"),
     ("pairs", {}, r"returns a tuple of 2 \(a tensor of shape \(1, 10\), .*not logits"),
     ("make", {"taps": ["blocks.0", "blocks.1", "blocks.2", "blocks.7"]}, "no module 'blocks.7'; did you mean 'blocks.[0-3]'"),
     ("make", {"taps": ["blocks.0", "blocks.1", "blocks.2", "unused"]}, "module unused is not used by the net's forward"),
     ("make", {"taps": ["blocks.0", "blocks.1", "blocks.2", "head"]}, r"head puts out a tensor of shape \(1, 10\), not a tensor of 3"),
     ("make", {"taps": ["blocks.0.1", "blocks.1", "blocks.2", "blocks.3"]}, "blocks.0.1 puts out what is then changed in place"),
     ("make", {"embedding": "hed"}, "embedding: there is no module 'hed'; did you mean 'head'"),
     ("make", {"embedding": "blocks.1"}, "blocks.1 puts out a tensor of shape .*, not a vector")],
)  # fmt: skip
def test_what_is_wrong_with_a_net_of_ones_own_is_said(
    own: Callable[..., NetSpec], function: str, fields: dict[str, Any], problem: str
) -> None:
    with pytest.raises(NetError, match=problem) as caught:
        describe(own(function, **fields), 10, "mine")
    assert str(caught.value).startswith("net mine: ")
    assert ("Traceback" in caught.value.details) == ("raised" in problem)


def test_positions_that_make_no_grid_are_counted_and_the_line_to_write_named() -> None:
    with pytest.raises(
        NetError, match=r"17 positions make no grid of the shape of the image, 32 x 32; write class_tokens: 1"
    ):
        as_map(torch.zeros(2, 17, 8), (32, 32), (0,), "module x")
    value, tokens, layout = as_map(torch.arange(2 * 18 * 4.0).view(2, 18, 4), (32, 64), (0,), "module x")[0:3]
    assert (tuple(value.shape), tokens, layout) == ((2, 4, 3, 6), None, "NLC")
    with pytest.raises(NetError, match=r"a tuple of 2 \(a tensor of shape \(1,\), None\), not a tensor of 3 or 4"):
        as_map((torch.zeros(1), None), (32, 32), (0,), "module x")


def test_preprocessing_of_torchvision_is_that_of_its_weights() -> None:
    assert preprocessing_of(NetSpec(torchvision="inception_v3"))["input_size"] == (299, 299)
    with pytest.raises(NetError, match="torchvision has no classifier 'resnet81'; did you mean 'resnet18"):
        describe(NetSpec(torchvision="resnet81"), 10)


@pytest.fixture
def suite(write_suite: Callable[..., Path], mine: Path) -> Path:
    """A suite of three foreign nets under the tiny recipes."""
    nets = {
        "tv": {"torchvision": "resnet18", "input_size": [32, 32], "taps": LAYERS},
        "hf": {"hf": "vit", "args": HF, "taps": HF_TAPS, "class_tokens": 1},
        "mine": {"python": "my_nets.py:make", "args": {"reads": True}, "taps": BLOCKS},
        "plain": {"python": "my_nets.py:make"},
        "raises": {"python": "my_nets.py:raises"},
        "broken": {"python": "broken.py:make"},
    }
    pairs = ["tv--mine", "tv--hf", "hf--mine", "mine--hf", "tv--plain", "tv--raises", "tv--broken"]
    once = {"epochs": 1, "schedule": {"warmup_epochs": 0}}
    short = {"pairs": ["*"], "recipe": once, "teacher": once}
    content = {**tiny(nets=nets), "pairs": pairs, "protocols": {"short": {"description": "all pairs", **short}}}
    return write_suite(content)


def test_a_net_that_cannot_be_used_takes_only_its_own_pairs_out(kdbench: Callable[..., Any], suite: Path) -> None:
    pytest.importorskip("transformers")
    words = (
        "plan",
        suite,
        "--protocol",
        "short",
        "--methods",
        "kd,fitnet",
        "--no-probe",
        "--out",
        suite.parent / "out",
    )
    said = kdbench(*words)
    assert said.status == 0, said.err
    assert "kd on tv--mine: net mine: it is made by" in said.out
    assert "2 pending" in said.out
    (suite.parent / "broken.py").write_text("def make(num_classes:")
    said = kdbench(*words, "--plugin", suite.parent / "my_nets.py", "--plugin", suite.parent / "broken.py")
    assert "kd on tv--broken: net broken: " in said.out
    assert "broken.py, line 1: '(' was never closed" in said.err
    assert "mine: cnn, stages 8 x 32 x 32 (NCHW)" in said.out
    assert "fitnet on tv--plain: it needs stages; net plain has no taps: write taps:" in said.out
    assert "kd on tv--raises: net raises: raises of" in said.out
    assert said.out.count('raise ValueError("no such width")') == 1
    assert "9 pending, 5 skipped" in said.out


def test_input_size_of_a_file_net_is_that_of_the_suites_images(suite: Path) -> None:
    assert load_suite(str(suite)).net("mine").input_size == (32, 32)


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["tv--mine", "hf--mine", "mine--hf"])
def test_kd_fitnet_and_ofa_train_on_nets_from_anywhere(kdbench: Callable[..., Any], suite: Path, pair: str) -> None:
    pytest.importorskip("transformers")
    out = suite.parent / "out"
    said = kdbench(
        *(
            "run",
            suite,
            "--protocol",
            "short",
            "--methods",
            "kd,fitnet,ofa",
            "--pairs",
            pair,
            "--plugin",
            suite.parent / "my_nets.py",
        ),
        *("--out", out, "--workers", 1, "--yes", "--limit", 200),
    )
    assert said.status == 0, said.out + said.err
    assert len(list(out.glob(f"tiny/short/{pair}/*/*/result.json"))) == 3


def test_a_checkpoint_for_another_net_is_refused_with_its_keys(own: Callable[..., NetSpec], tmp_path: Path) -> None:
    from kdbench.teachers.foreign import WeightsError, load_state

    net = TappedNet(own(args={"reads": True}), 10, "mine")
    state = net.net.state_dict()
    torch.save(state, tmp_path / "right.pth")
    assert load_state(net, tmp_path / "right.pth")["classes"] == 10
    state["heads.weight"] = state.pop("unused.weight")
    torch.save(state, tmp_path / "wrong.pth")
    with pytest.raises(WeightsError, match=r"1 key missing \(unused.weight\); 1 key unknown \(heads.weight\)"):
        load_state(net, tmp_path / "wrong.pth")
