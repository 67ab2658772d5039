"""The suites of the published tables: their pairs, teachers and protocols, and that they can be planned without data."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.matrix.cells import Plan, make_plan
from kdbench.matrix.check import check_cells
from kdbench.matrix.request import Request
from kdbench.matrix.teachers import plan_teacher
from kdbench.plugins.registry import catalog
from kdbench.reporting.figures import find_published, normalise_net
from kdbench.suite.net import WeightsFile
from kdbench.suite.suite import Suite, load_suite, read_suite, split_pair, suite_files
from tests.conftest import tiny_suite

from .test_suite import TEXT, refusal

PAIRS = {
    "cifar100": {
        **dict.fromkeys(("resnet18", "mobilenetv2"), ("swin_tiny", "vit_small", "mixer_b16")),
        **dict.fromkeys(("deit_tiny", "swin_pico"), ("convnext_tiny", "mixer_b16")),
        "resmlp_s12": ("convnext_tiny", "swin_tiny"),
    },
    "imagenet1k": {
        **dict.fromkeys(("resnet18", "mobilenetv2"), ("deit_tiny", "swin_tiny", "mixer_b16")),
        **dict.fromkeys(("deit_tiny", "swin_nano"), ("resnet50", "convnext_tiny", "mixer_b16")),
        "resmlp_s12": ("resnet50", "convnext_tiny", "swin_tiny"),
    },
}
LARGE = ("cifar100", "imagenet1k", "imagenet1k-resnet18", "imagenet1k-resnet50")


def planned(suite: str, protocol: str, methods: tuple[str, ...] = (), seeds: tuple[int, ...] = (0,)) -> Plan:
    return make_plan(load_suite(suite), Request(protocol=protocol, methods=methods, seeds=seeds), catalog())


@pytest.mark.parametrize(("suite", "count"), [("cifar100", 12), ("imagenet1k", 15)])
def test_pairs_are_those_of_ofa_kd(suite: str, count: int) -> None:
    pairs = load_suite(suite).pairs
    assert set(pairs) == {f"{teacher}--{student}" for student, own in PAIRS[suite].items() for teacher in own}
    assert len(pairs) == count


@pytest.mark.parametrize(("dataset", "suite"), [("CIFAR-100", "cifar100"), ("ImageNet-1K", "imagenet1k")])
def test_every_published_heterogeneous_pair_is_in_its_suite(dataset: str, suite: str) -> None:
    folder = find_published()
    assert folder is not None
    with (folder / "heterogeneous.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["dataset"] == dataset]
    published = {(row["teacher"], row["student"]) for row in rows if row["teacher"] and row["student"]}
    assert len(published) > 3
    chosen = load_suite(suite)
    displays = [[chosen.net(name).display or name for name in split_pair(pair)] for pair in chosen.pairs]
    ours = {(normalise_net(teacher), normalise_net(student)) for teacher, student in displays}
    assert {(normalise_net(teacher), normalise_net(student)) for teacher, student in published} <= ours
    alone = {normalise_net(row["student"]) for row in rows if row["student"] and not row["teacher"]}
    assert alone <= {student for _, student in ours}


@pytest.mark.parametrize("suite", LARGE)
def test_published_accuracy_of_a_teacher_is_that_of_the_project_s_table(suite: str) -> None:
    folder = find_published()
    assert folder is not None
    with (folder / "pretrained_checkpoints.csv").open(newline="") as file:
        dataset = "CIFAR-100" if suite == "cifar100" else "ImageNet-1K"
        known = {
            normalise_net(row["student"]): float(row["top1"])
            for row in csv.DictReader(file)
            if row["dataset"] == dataset
        }
    chosen = load_suite(suite)
    checked = 0
    for name in {split_pair(pair)[0] for pair in chosen.pairs}:
        net = chosen.net(name)
        assert net.weights != "train", name
        if net.published_top1 is not None:
            assert net.published_top1 == known[normalise_net(net.display or "")], name
            assert net.published_source
            checked += 1
    assert checked >= (0 if suite == "imagenet1k-resnet18" else 2)


def test_teachers_of_cifar100_are_files_and_see_its_normalisation_like_the_students() -> None:
    suite = load_suite("cifar100")
    for name, net in suite.nets.items():
        assert (net.mean, net.std) == ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)), name
        assert net.interpolation == "bilinear"
    teachers = {split_pair(pair)[0] for pair in suite.pairs}
    for name in teachers:
        weights = suite.net(name).weights
        assert isinstance(weights, WeightsFile)
        assert weights.file.startswith("cifar100/")
        assert weights.source


@pytest.mark.parametrize("suite", LARGE)
def test_paper_and_as_released_differ_in_what_the_protocols_page_lists(suite: str) -> None:
    chosen = load_suite(suite)
    paper, released = chosen.protocols["paper"], chosen.protocols["as-released"]
    assert (paper.select, paper.teacher_preprocessing, paper.teacher_weights) == ("last", "own", "own")
    assert (released.select, released.teacher_preprocessing, released.teacher_weights) == ("best", "student", "own")
    assert paper.seeds == (0, 1, 2)
    assert released.seeds == (
        (0, 1, 2) if suite == "imagenet1k-resnet18" else (42,)
    )  # OFA-KD's seed; mdistiller sets none
    for name, ours in chosen.under("paper").recipes.items():
        theirs = chosen.under("as-released").recipes[name]
        assert ours.optimizer.honour_no_weight_decay
        assert not theirs.optimizer.honour_no_weight_decay
        assert ours.model_dump(exclude={"optimizer"}) == theirs.model_dump(exclude={"optimizer"})
        narrow = chosen.under("paper-bf16").recipes[name]
        assert narrow == ours.model_copy(update={"precision": "bfloat16"}) != ours
    for protocol in (paper, released, chosen.protocols["paper-bf16"]):
        assert protocol.pairs == ("*",)
        assert (protocol.images_per_class, protocol.measured_images_per_class) == (None, None)


def test_as_released_a_teacher_sees_through_its_student_and_is_another_teacher_for_it() -> None:
    own = {cell.pair: cell.teacher for cell in planned("imagenet1k", "paper", ("kd",)).cells}
    seen = {cell.pair: cell.teacher for cell in planned("imagenet1k", "as-released", ("kd",)).cells}
    mixer = seen["mixer_b16--deit_tiny"].net
    assert (mixer.mean, mixer.crop_pct) == ((0.485, 0.456, 0.406), 0.9)  # DeiT-T's; its own are 0.5 and 0.875
    assert own["mixer_b16--deit_tiny"].hash == own["mixer_b16--resnet18"].hash
    assert seen["mixer_b16--deit_tiny"].hash != seen["mixer_b16--resnet18"].hash


def test_best_epoch_and_last_epoch_are_results_of_one_name_but_not_of_one_identity() -> None:
    ours, theirs = planned("cifar100", "paper", ("kd",)), planned("cifar100", "as-released", ("kd",), (0,))
    assert {cell.hash for cell in ours.cells}.isdisjoint(cell.hash for cell in theirs.cells)


@pytest.mark.parametrize("suite", LARGE)
def test_smoke_needs_no_pretrained_weights(suite: str) -> None:
    plan = planned(suite, "smoke")
    assert all(teacher.trained_here for teacher in plan.teachers)
    assert plan.teachers[0].config["recipe"] is not None
    assert not any(teacher.trained_here for teacher in planned(suite, "paper").teachers)


def test_teachers_trained_here_have_another_identity_than_those_with_weights() -> None:
    suite = load_suite("cifar100")
    changed = suite.protocols["paper"].model_copy(update={"teacher_weights": "train"})
    trained = suite.model_copy(update={"protocols": {**suite.protocols, "paper": changed}})
    own, here = (plan_teacher(chosen, chosen.under("paper"), "swin_tiny") for chosen in (suite, trained))
    assert own.hash != here.hash
    assert here.config["recipe"] is not None
    assert own.config["recipe"] is None


@pytest.mark.parametrize("suite", [LARGE[0], *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE[1:])])
def test_every_method_can_be_wired_on_every_published_pair(suite: str) -> None:
    plan = check_cells(planned(suite, "paper", ("*",)))
    pairs, methods = load_suite(suite).pairs, catalog()
    assert plan.broken == ()
    assert {(cell.pair, cell.method) for cell in (*plan.cells, *plan.skipped)} == {
        (pair, method) for pair in pairs for method in methods
    }
    anywhere = {name for name, entry in methods.items() if "attention" not in entry.needs}
    assert [(cell.pair, cell.method, cell.reason) for cell in plan.skipped if cell.method in anywhere] == []


@pytest.mark.parametrize("suite", LARGE)
def test_a_plan_needs_neither_data_nor_weights(kdbench: Callable[..., Any], suite: str, tmp_path: Path) -> None:
    pairs = load_suite(suite).pairs[-1:]
    words = ("--protocol", "paper", "--methods", "kd,ofa", "--pairs", ",".join(pairs), "--out", tmp_path / "runs")
    said = kdbench("plan", suite, "--no-probe", *words)
    assert said.status == 2, said.err  # it says what is missing
    assert "6 cells" in said.out


def test_the_three_pairs_of_a_short_protocol_use_every_family_once_on_each_side() -> None:
    for name in ("cifar100", "imagenet1k", "imagenet-mini"):
        suite = load_suite(name)
        pairs = [split_pair(pair) for pair in suite.under("short").pairs]
        for side in (0, 1):
            assert sorted(suite.net(pair[side]).family or "" for pair in pairs) == ["cnn", "mlp", "vit"]


def test_a_small_suite_of_imagenet_classes_trains_its_own_teachers() -> None:
    suite = load_suite("imagenet-mini")
    assert suite.dataset.width == 10
    assert {suite.net(name).input_size for name in suite.nets} == {(64, 64)}
    plan = check_cells(planned("imagenet-mini", "short"))
    assert (plan.skipped, plan.broken) == ((), ())
    assert all(teacher.trained_here for teacher in plan.teachers)


def test_a_protocol_can_change_a_single_recipe_of_students_and_teachers(write_suite: Callable[..., Path]) -> None:
    changes = {"cnn": {"optimizer": {"weight_decay": 0.1}}}
    suite: Suite = tiny_suite(protocols={"short": {"recipes": changes, "recipe": {"epochs": 3}}})
    short = suite.under("short")
    for recipes in (short.recipes, short.teacher_recipes):
        assert recipes["cnn"].optimizer.weight_decay == 0.1
        assert recipes["token"].optimizer.weight_decay == 0.0
    assert short.recipes["cnn"].epochs == 3
    assert suite.under("seeds").recipes["cnn"].optimizer.weight_decay == 0.0
    base = "    recipe: {epochs: 2, schedule: {warmup_epochs: 0}}"
    message = refusal(write_suite(TEXT.replace(base, f"{base}\n    recipes: {{plian: {{epochs: 2}}}}")))
    assert "protocols.short.recipes.plian: unknown recipe 'plian'; did you mean 'plain'?" in message
    message = refusal(write_suite(TEXT.replace(base, f"{base}\n    recipes: {{plain: {{epoch: 2}}}}")))
    assert "line 29: protocols.short.recipes.plain.epoch: unknown key; did you mean 'epochs'?" in message
    message = refusal(
        write_suite(TEXT.replace(base, base.replace("epochs: 2", "epoch: 2") + "\n    recipes: {plain: {}}"))
    )
    assert "protocols.short.recipe.epoch: unknown key" in message


def test_an_unknown_net_of_the_zoo_is_refused_with_its_line(write_suite: Callable[..., Path]) -> None:
    message = refusal(write_suite(TEXT.replace("small: {timm: resnet_32px_small,", "small: {zoo: resnet_32px_smal,")))
    assert "line 7: nets.small.zoo: unknown net 'resnet_32px_smal'; did you mean 'resnet_32px_small'?" in message
    suite = read_suite(write_suite(TEXT.replace("small: {timm: resnet_32px_small,", "small: {zoo: resnet_32px_small,")))
    assert suite.net("small").display == "ResNet32px-S"


def test_names_of_nets_in_tables_are_unique_within_a_suite() -> None:
    for name in suite_files():
        suite = load_suite(name)
        nets = {net for pair in suite.pairs for net in split_pair(pair)}
        displays = [suite.net(net).display for net in nets]
        assert None not in displays
        assert len(set(displays)) == len(displays), name


def test_dkd_has_ofa_kds_settings_in_the_suites_of_ofa_kd_and_mdistillers_in_its_own() -> None:
    wanted = {
        "cifar100": (1.0, 2.0, 1.0, 0),
        "imagenet1k": (1.0, 2.0, 1.0, 0),
        "imagenet1k-resnet50": (1.0, 2.0, 1.0, 0),
    }
    wanted["imagenet1k-resnet18"] = (1.0, 0.5, 1.0, 1)
    for suite, (alpha, beta, temperature, warmup) in wanted.items():
        own = planned(suite, "paper", ("dkd",)).cells[0].hyperparameters
        assert own == own | {"alpha": alpha, "beta": beta, "temperature": temperature, "warmup_epochs": warmup}, suite


def test_the_protocols_page_names_every_suite_and_protocol() -> None:
    page = (Path(__file__).parents[2] / "docs" / "protocols.md").read_text()
    for name in suite_files():
        assert f"`{name}`" in page
        for protocol in load_suite(name).protocols:
            assert f"`{protocol}`" in page, (name, protocol)
