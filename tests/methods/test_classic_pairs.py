"""The suite cifar100-classic: its pairs, its settings by pair, and a training step of every method on two of them."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

from kdbench.matrix.cells import Cell, make_plan
from kdbench.matrix.request import Request
from kdbench.method import Batch, Outputs, Task
from kdbench.nets.tapped import TappedNet, describe
from kdbench.plugins.registry import catalog
from kdbench.suite.net import WeightsFile
from kdbench.suite.suite import load_suite, split_pair
from tests.few import few
from tests.nets.test_classic import FACTS

SUITE = load_suite("cifar100-classic")
PAIRS = ("wrn_40_2--ShuffleV1", "resnet32x4--resnet8x4")
FAST = ("kd", "fitnet", "reviewkd")
IMAGES = 4
#: What the literature's regressor is given and has to reach, ``feats[2]`` of both nets.
HINTS = {pair: tuple(tuple(FACTS[net]["feats"][2]) for net in split_pair(pair)) for pair in SUITE.pairs}


@functools.cache
def cells(pair: str) -> dict[str, Cell]:
    request = Request(protocol="paper", methods=("*",), pairs=(pair,), seeds=(0,))
    return {cell.method: cell for cell in make_plan(SUITE, request, catalog()).cells}


def hyperparameters(pair: str, method: str) -> dict[str, Any]:
    return {name: setting.value for name, setting in cells(pair)[method].settings.items()}


@functools.cache
def teacher_of(pair: str) -> TappedNet:
    torch.manual_seed(0)
    name = split_pair(pair)[0]
    return TappedNet(SUITE.net(name), 100, name).eval().requires_grad_(False)


def step(pair: str, method: str) -> None:
    """One step of SGD, after which the student is another."""
    torch.manual_seed(1)
    teacher, name = teacher_of(pair), split_pair(pair)[1]
    student = TappedNet(SUITE.net(name), 100, name).train()
    task = Task(100, 50, torch.arange(50), "cifar100", 240)
    entry = catalog().find(method)
    chosen = hyperparameters(pair, method) | ({"num_negatives": 8} if method == "crd" else {})
    distiller: Any = entry.load()(info(name), info(teacher.name), task, **chosen)
    images, labels = torch.rand(IMAGES, 3, 32, 32), torch.arange(IMAGES)

    def outputs(net: TappedNet) -> Outputs:
        found = net(images, entry.needs)
        if "strong" in entry.needs:
            found.strong = net(images.flip(3), entry.needs)
        return found

    with torch.no_grad():
        target = outputs(teacher)
    terms = distiller(Batch(labels, labels), outputs(student), target)
    assert terms
    assert all(torch.isfinite(term).all() for term in terms.values())
    sum(terms.values()).backward()
    first = next(student.parameters())
    before = first.detach().clone()
    torch.optim.SGD(student.parameters(), lr=0.01).step()
    assert torch.isfinite(first).all()
    assert not torch.equal(first, before)


def info(name: str) -> Any:
    return describe(SUITE.net(name), 100, name)


@pytest.mark.parametrize("pair", few(PAIRS))
@pytest.mark.parametrize("method", FAST)
def test_a_step_of_three_methods_moves_the_student(pair: str, method: str) -> None:
    step(pair, method)


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize(
    "method", [name for name, entry in catalog().items() if name not in FAST and "attention" not in entry.needs]
)
def test_a_step_of_every_method_moves_the_student(pair: str, method: str) -> None:
    step(pair, method)


def test_the_pairs_are_those_of_repdistiller() -> None:
    same = {"wrn_40_2": ("wrn_16_2", "wrn_40_1"), "resnet56": ("resnet20",), "resnet110": ("resnet20", "resnet32")}
    same |= {"resnet32x4": ("resnet8x4", "ShuffleV1", "ShuffleV2"), "vgg13": ("vgg8", "MobileNetV2")}
    same |= {"ResNet50": ("MobileNetV2", "vgg8")}
    same["wrn_40_2"] += ("ShuffleV1",)
    assert set(SUITE.pairs) == {f"{teacher}--{student}" for teacher, own in same.items() for student in own}


@pytest.mark.parametrize("pair", SUITE.pairs)
def test_the_hint_is_feats_2_of_both_nets_and_no_method_of_the_literature_takes_the_stem(pair: str) -> None:
    (number,) = hyperparameters(pair, "fitnet")["stages"]
    teacher, student = (info(name).stages[number - 1] for name in split_pair(pair))
    found = tuple((stage.channels, stage.height, stage.width) for stage in (teacher, student))
    assert found == HINTS[pair]
    teacher_name = split_pair(pair)[0]
    feats = [tuple(shape) for shape in FACTS[teacher_name]["feats"][1:-1]]  # without stem and embedding
    for method in ("at", "vid", "reviewkd"):
        stages = [info(teacher_name).stages[n - 1] for n in hyperparameters(pair, method)["stages"]]
        assert [(stage.channels, stage.height, stage.width) for stage in stages] == feats


@pytest.mark.parametrize(
    ("pair", "method", "wanted"),
    [
        ("resnet56--resnet20", "dkd", {"beta": 2.0, "temperature": 4.0, "warmup_epochs": 20}),
        ("vgg13--MobileNetV2", "dkd", {"beta": 6.0}),
        ("resnet32x4--ShuffleV2", "dkd", {"beta": 8.0}),
        ("resnet56--resnet20", "reviewkd", {"review_weight": 0.6}),
        ("resnet32x4--ShuffleV2", "reviewkd", {"review_weight": 8.0, "student_preactivation": False}),
        ("resnet32x4--ShuffleV1", "catkd", {"cat_weight": 600.0, "normalize": True, "resolution": 4}),
        ("wrn_40_2--wrn_40_1", "catkd", {"cat_weight": 1.5, "normalize": False, "resolution": 2}),
        ("vgg13--vgg8", "sdd-kd", {"scales": (1, 2)}),
        ("wrn_40_2--wrn_16_2", "kd", {"temperature": 4.0, "ce_weight": 0.1, "kd_weight": 0.9}),
        ("wrn_40_2--wrn_16_2", "fitnet", {"fit_weight": 100.0}),
        ("wrn_40_2--wrn_16_2", "at", {"at_weight": 1000.0}),
        ("wrn_40_2--wrn_16_2", "sp", {"sp_weight": 3000.0}),
        ("wrn_40_2--wrn_16_2", "cc", {"cc_weight": 0.02}),
        ("wrn_40_2--wrn_16_2", "vid", {"vid_weight": 1.0}),
        ("wrn_40_2--wrn_16_2", "rkd", {"distance_weight": 25.0, "angle_weight": 50.0}),
        ("wrn_40_2--wrn_16_2", "pkt", {"pkt_weight": 30000.0}),
        ("wrn_40_2--wrn_16_2", "crd", {"crd_weight": 0.8, "num_negatives": 16384}),
        ("wrn_40_2--wrn_16_2", "dist", {"dist_weight": 2.0, "temperature": 4.0}),
    ],
)
def test_settings_are_those_that_were_published_for_the_pair(pair: str, method: str, wanted: dict[str, Any]) -> None:
    found = hyperparameters(pair, method)
    assert found == found | wanted


def test_the_recipe_is_repdistillers_with_a_lower_rate_for_mobile_students() -> None:
    for pair in SUITE.pairs:
        cell = cells(pair)["kd"]
        recipe, mobile = cell.recipe, cell.student in ("MobileNetV2", "ShuffleV1", "ShuffleV2")
        assert recipe.optimizer.lr == (0.01 if mobile else 0.05)
        assert (recipe.epochs, recipe.batch_size, recipe.optimizer.weight_decay) == (240, 64, 5e-4)
        assert recipe.optimizer.decay_biases_and_norms
        assert cell.teacher.recipe.optimizer.lr == 0.05
        assert isinstance(cell.teacher.net.weights, WeightsFile)
    assert SUITE.protocols["paper"].select == "last"
    assert SUITE.protocols["as-released"].select == "best"
    for name in ("smoke", "short"):
        assert SUITE.protocols[name].teacher_weights == "train"
