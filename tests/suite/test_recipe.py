"""The recipes of the packaged suites against timm's own scheduler, against formulas, and parameter by parameter."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import yaml
from timm.scheduler import create_scheduler_v2

from kdbench.engine.optim import Schedule, build_optim_wrapper
from kdbench.nets.tapped import TappedNet
from kdbench.suite.recipe import Recipe
from kdbench.suite.suite import Suite, load_suite, suite_files

torch.set_num_threads(1)

#: Steps of an epoch, for schedules that move in every step.
STEPS = 3
RECIPES = [(name, recipe) for name in sorted(suite_files()) for recipe in load_suite(name).recipes]


def optimizer(rate: float) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))], lr=rate)


def rates(recipe: Recipe) -> list[float]:
    """The learning rate of every epoch's first step, as the engine sets it."""
    sgd = optimizer(recipe.optimizer.lr)
    schedule = Schedule(sgd, recipe, STEPS)
    seen = []
    for epoch in range(recipe.epochs):
        schedule.set(epoch, 0)
        seen.append(sgd.param_groups[0]["lr"])
    return seen


@pytest.mark.parametrize(("suite", "name"), RECIPES)
def test_learning_rate_of_every_epoch_is_that_of_timms_scheduler(suite: str, name: str) -> None:
    text = yaml.safe_load(suite_files()[suite].read_text())["recipes"][name]  # as written, not as we read it
    written, lr = text.get("schedule", {}), text["optimizer"]["lr"]
    sgd = optimizer(lr)
    per_step = written.get("per") == "step"
    schedule, epochs = create_scheduler_v2(
        sgd,
        sched=written.get("name", "cosine"),
        num_epochs=text["epochs"],
        decay_epochs=written.get("decay_epochs", 30),
        decay_milestones=written.get("milestones", ()),
        decay_rate=written.get("decay_rate", 0.1),
        min_lr=written.get("min_lr", 0.0),
        warmup_lr=written.get("warmup_lr", 0.0),
        warmup_epochs=written.get("warmup_epochs", 0),
        step_on_epochs=not per_step,
        updates_per_epoch=STEPS,
    )
    assert epochs == text["epochs"]
    expected = [sgd.param_groups[0]["lr"]]  # a trainer steps the schedule after each epoch
    for epoch in range(1, epochs):
        if per_step:
            schedule.step_update(epoch * STEPS)
        else:
            schedule.step(epoch)
        expected.append(sgd.param_groups[0]["lr"])
    assert rates(load_suite(suite).recipes[name]) == expected


def cosine(epochs: int, peak: float, least: float, warmup: int, start: float) -> Callable[[int], float]:
    def rate(epoch: int) -> float:
        if epoch < warmup:
            return start + epoch * (peak - start) / warmup
        return least + (peak - least) * (1 + math.cos(math.pi * epoch / epochs)) / 2

    return rate


def steps(peak: float, every: int, warmup: int = 0, start: float = 0.0) -> Callable[[int], float]:
    def rate(epoch: int) -> float:
        return start + epoch * (peak - start) / warmup if epoch < warmup else peak * 0.1 ** (epoch // every)

    return rate


#: Epochs and learning rates as published: OFA-KD's configs, PAT's pretrain_cnn.yaml, mdistiller's r34_r18.
PUBLISHED = {
    ("cifar100", "cnn"): (300, cosine(300, 0.05, 1e-3, 3, 1e-4)),
    ("cifar100", "token"): (300, cosine(300, 5e-4, 1e-5, 20, 5e-7)),
    ("cifar100", "finetune"): (300, cosine(300, 5e-5, 1e-6, 20, 5e-8)),
    ("imagenet1k", "cnn"): (100, steps(0.1, 30, 3, 1e-4)),
    ("imagenet1k", "token"): (300, cosine(300, 5e-4, 1e-6, 20, 5e-7)),
    ("imagenet1k-resnet50", "stronger"): (300, cosine(300, 5e-3, 1e-6, 5, 1e-6)),
    ("imagenet1k-resnet18", "cnn"): (100, steps(0.2, 30)),
}


@pytest.mark.parametrize(("suite", "name"), PUBLISHED)
def test_learning_rate_of_every_epoch_is_the_published_one(suite: str, name: str) -> None:
    epochs, rate = PUBLISHED[suite, name]
    assert rates(load_suite(suite).recipes[name]) == pytest.approx([rate(epoch) for epoch in range(epochs)], rel=1e-12)


@pytest.mark.parametrize(
    ("suite", "name", "by_hand"),
    [
        # 0.0001 + 1 x 0.0499 / 3; the cosine is counted from the start, warm-up included: 0.001 + 0.049 (1 + cos(3 pi / 300)) / 2
        ("cifar100", "cnn", {0: 1e-4, 1: 0.01673333, 3: 0.04998791, 150: 0.0255, 299: 0.00100134}),
        ("cifar100", "token", {0: 5e-7, 10: 2.5025e-4, 19: 4.75025e-4, 20: 4.94646e-4, 150: 2.55e-4, 299: 1.001343e-5}),
        ("imagenet1k", "cnn", {0: 1e-4, 2: 0.0667, 3: 0.1, 29: 0.1, 30: 0.01, 59: 0.01, 60: 1e-3, 90: 1e-4, 99: 1e-4}),
        ("imagenet1k", "token", {0: 5e-7, 20: 4.945484e-4, 299: 1.01368e-6}),
        ("imagenet1k-resnet50", "stronger", {0: 1e-6, 1: 1.0008e-3, 5: 4.996574e-3, 299: 1.137053e-6}),
        ("imagenet1k-resnet18", "cnn", {0: 0.2, 29: 0.2, 30: 0.02, 99: 0.0002}),
        ("cifar100-32", "cnn", {0: 0.05, 149: 0.05, 150: 0.005, 180: 5e-4, 210: 5e-5, 239: 5e-5}),
    ],
)
def test_learning_rates_worked_out_by_hand(suite: str, name: str, by_hand: dict[int, float]) -> None:
    found = rates(load_suite(suite).recipes[name])
    assert {epoch: found[epoch] for epoch in by_hand} == pytest.approx(by_hand, rel=1e-5)


def decayed(net: str, suite: str, recipe: str, protocol: str = "paper") -> tuple[set[str], set[str], float]:
    """Names of the parameters with weight decay, those without, and the decay."""
    chosen: Suite = load_suite(suite)
    wanted = chosen.under(protocol).recipes[recipe]
    student = TappedNet(chosen.net(net), 10, net).net
    wrapper = build_optim_wrapper(student, torch.nn.Module(), wanted)
    names = {id(parameter): name for name, parameter in student.named_parameters()}
    groups: dict[float, set[str]] = {}
    for group in wrapper.optimizer.param_groups:
        groups.setdefault(group["weight_decay"], set()).update(names[id(parameter)] for parameter in group["params"])
    decay = wanted.optimizer.weight_decay
    assert set(groups) <= {0.0, decay}
    with_decay, without = groups.get(decay, set()), groups.get(0.0, set())
    assert with_decay | without == set(names.values())
    return with_decay, without, decay


def one_dimensional(name: str) -> bool:
    return name.endswith("bias") or "norm" in name or ".bn" in name or name.startswith("bn") or "downsample.1" in name


def test_resnet18_decays_convolutions_and_the_classifiers_weight_alone() -> None:
    for protocol in ("paper", "as-released"):
        with_decay, without, decay = decayed("resnet18", "cifar100", "cnn", protocol)
        assert decay == 2e-3
        assert {name for name in without if not one_dimensional(name)} == set()
        assert {"conv1.weight", "layer1.0.conv1.weight", "fc.weight", "layer2.0.downsample.0.weight"} <= with_decay
        assert {"bn1.weight", "bn1.bias", "layer4.1.bn2.weight", "fc.bias"} <= without
        assert not any(one_dimensional(name) for name in with_decay)


def test_deit_spares_position_embedding_and_class_token_except_as_released() -> None:
    with_decay, without, decay = decayed("deit_tiny", "cifar100", "token")
    assert decay == 0.05
    assert {name for name in without if not one_dimensional(name)} == {"pos_embed", "cls_token"}
    assert {"patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "head.weight"} <= with_decay
    with_decay, without, _ = decayed("deit_tiny", "cifar100", "token", "as-released")
    assert {"pos_embed", "cls_token"} <= with_decay
    assert all(one_dimensional(name) for name in without)


def test_swin_spares_its_relative_position_biases_except_as_released() -> None:
    table = "relative_position_bias_table"
    with_decay, without, _ = decayed("swin_nano", "imagenet1k", "token")
    assert sum(table in name for name in without) == 8
    assert not any(table in name for name in with_decay)
    with_decay, without, _ = decayed("swin_nano", "imagenet1k", "token", "as-released")
    assert sum(table in name for name in with_decay) == 8
    assert all(one_dimensional(name) for name in without)


def test_resmlp_decays_its_affine_layers_which_are_not_one_dimensional_in_timm() -> None:
    for protocol in ("paper", "as-released"):
        with_decay, without, _ = decayed("resmlp_s12", "cifar100", "token", protocol)
        assert {"blocks.0.norm1.alpha", "blocks.0.norm1.beta", "norm.alpha", "head.weight"} <= with_decay
        assert {"blocks.0.ls1", "blocks.0.ls2", "blocks.0.mlp_channels.fc1.bias"} <= without


def test_mdistillers_cnns_decay_every_parameter_as_released_and_only_there() -> None:
    _, without, decay = decayed("resnet-s", "cifar100-32", "cnn", "as-released")
    assert (without, decay) == (set(), 5e-4)
    assert decayed("resnet-s", "cifar100-32", "cnn")[1]
    with_decay, without, _ = decayed("vit-s", "cifar100-32", "token", "as-released")
    assert "pos_embed" in with_decay
    assert {"norm.weight", "head.bias"} <= without
    _, without, _ = decayed("resnet18", "imagenet1k-resnet18", "cnn", "as-released")
    assert without == set()


#: What OFA-KD's and PAT's configs say, and train.py's defaults where they say nothing.
OFA_KD: dict[tuple[str, str], dict[str, Any]] = {
    ("cifar100", "cnn"): {
        "optimizer": ("sgd", 0.9, 2e-3), "batch": 8 * 128, "smoothing": 0.1, "clip": None, "mixup": 0.0, "cutmix": 0.0,
        "aa": None, "reprob": 0.0, "repeats": 1, "drop_path": None, "ema": None, "crop_pct": None, "loss": "cross-entropy",
    },
    ("cifar100", "token"): {
        "optimizer": ("adamw", 0.9, 0.05), "batch": 8 * 128, "smoothing": 0.1, "clip": 5.0, "mixup": 0.8, "cutmix": 1.0,
        "aa": "rand-m9-mstd0.5-inc1", "reprob": 0.25, "repeats": 1, "drop_path": None, "ema": None, "crop_pct": None,
        "loss": "cross-entropy",
    },
    ("cifar100", "finetune"): {
        "optimizer": ("adamw", 0.9, 0.05), "batch": 128, "smoothing": 0.1, "clip": 5.0, "mixup": 0.8, "cutmix": 1.0,
        "aa": "rand-m9-mstd0.5-inc1", "reprob": 0.25, "repeats": 1, "drop_path": None, "ema": None, "crop_pct": None,
        "loss": "cross-entropy",
    },
    ("imagenet1k", "cnn"): {
        "optimizer": ("sgd", 0.9, 1e-4), "batch": 8 * 64, "smoothing": 0.1, "clip": None, "mixup": 0.0, "cutmix": 0.0,
        "aa": None, "reprob": 0.0, "repeats": 1, "drop_path": None, "ema": None, "crop_pct": None, "loss": "cross-entropy",
    },
    ("imagenet1k", "token"): {
        "optimizer": ("adamw", 0.9, 0.05), "batch": 8 * 128, "smoothing": 0.1, "clip": 5.0, "mixup": 0.8, "cutmix": 1.0,
        "aa": "rand-m9-mstd0.5-inc1", "reprob": 0.25, "repeats": 1, "drop_path": 0.0, "ema": 0.99996, "crop_pct": None,
        "loss": "cross-entropy",
    },
    ("imagenet1k-resnet50", "stronger"): {
        "optimizer": ("lamb", 0.9, 0.02), "batch": 8 * 256, "smoothing": 0.0, "clip": None, "mixup": 0.1, "cutmix": 1.0,
        "aa": "rand-m7-mstd0.5", "reprob": 0.0, "repeats": 3, "drop_path": 0.05, "ema": 0.9998, "crop_pct": 0.95,
        "loss": "bce",
    },
}  # fmt: skip


@pytest.mark.parametrize(("suite", "name"), OFA_KD)
def test_recipe_is_the_released_configuration_value_by_value(suite: str, name: str) -> None:
    under = load_suite(suite).under("paper")
    recipe = {**under.teacher_recipes, **under.recipes}[name]
    augment, rule = recipe.augment, recipe.optimizer
    assert OFA_KD[suite, name] == {
        "optimizer": (rule.name, rule.momentum, rule.weight_decay), "batch": recipe.batch_size,
        "smoothing": recipe.label_smoothing, "clip": recipe.clip_norm, "mixup": augment.mixup, "cutmix": augment.cutmix,
        "aa": augment.randaugment, "reprob": augment.erasing, "repeats": augment.repeats, "drop_path": recipe.drop_path,
        "ema": recipe.ema, "crop_pct": recipe.eval_crop, "loss": recipe.loss,
    }  # fmt: skip
    crop = augment.resized_crop
    assert crop is not None
    assert (crop.scale, crop.ratio, crop.interpolation) == ((0.08, 1.0), (3 / 4, 4 / 3), "random")
    assert augment.flip
    if augment.mixes:
        assert (augment.mix_prob, augment.mix_switch_prob, augment.mix_mode) == (1.0, 0.5, "batch")


def test_recipes_need_the_exact_pipeline_where_images_are_files_or_augmented_one_by_one() -> None:
    for name in suite_files():
        suite = load_suite(name)
        for recipe in suite.recipes.values():
            if suite.dataset.name == "imagenet1k" or recipe.augment.randaugment:
                assert recipe.pipeline == "exact", name
