"""Suites: what a good file becomes, and how a bad one is refused, with its line and the nearest valid name."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from kdbench.errors import KdbenchError, UnknownNameError, is_near, nearest
from kdbench.suite.suite import load_suite, merge, read_suite, split_pair, suite_files
from kdbench.suite.typedyaml import MAX_BYTES, SuiteError
from tests.conftest import tiny, tiny_suite

TEXT = """\
name: tiny
title: Tiny
dataset:
  name: digits
  images_per_class: 10
nets:
  small: {timm: resnet_32px_small, family: cnn, args: {stem_stride: 2}}
pairs:
  - small--vit_32px_small
  - vit_32px_small--small
recipes:
  plain:
    epochs: 4
    batch_size: 20
    optimizer: {name: sgd, lr: 0.05}
    schedule:
      name: cosine
      warmup_epochs: 1
student_recipe: {cnn: plain, vit: plain, mlp: plain}
teacher_recipe: {cnn: plain, vit: plain, mlp: plain}
methods:
  default: [scratch, kd]
protocols:
  short:
    description: short
    seeds: [0, 1]
    pairs: ["small--*"]
    recipe: {epochs: 2, schedule: {warmup_epochs: 0}}
  full:
    description: full
default_protocol: short
"""


def refusal(path: Path) -> str:
    with pytest.raises(KdbenchError) as caught:
        read_suite(path)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_every_packaged_suite_parses_and_is_named_as_its_file() -> None:
    assert "digits" in suite_files()
    for name in suite_files():
        assert load_suite(name).name == name


def test_every_recipe_of_every_packaged_suite_holds_under_every_protocol() -> None:
    for suite in map(load_suite, suite_files()):
        for protocol in suite.protocols:
            under = suite.under(protocol)
            assert all(recipe.epochs >= 1 for recipe in (*under.recipes.values(), *under.teacher_recipes.values()))


def test_suite_reads_as_typed_objects(write_suite: Callable[..., Path]) -> None:
    suite = read_suite(write_suite(TEXT))
    assert suite.pairs == ("small--vit_32px_small", "vit_32px_small--small")
    assert suite.recipes["plain"].optimizer.lr == 0.05
    assert suite.recipes["plain"].schedule.per == "epoch"
    assert suite.net("small").args == {"stem_stride": 2}
    assert suite.net("vit_32px_small").family == "vit"
    assert suite.protocols["short"].seeds == (0, 1)


def test_protocol_changes_only_what_it_names(write_suite: Callable[..., Path]) -> None:
    suite = read_suite(write_suite(TEXT))
    short, full = suite.under("short").recipes["plain"], suite.under("full").recipes["plain"]
    assert (short.epochs, short.schedule.warmup_epochs) == (2, 0)
    assert (full.epochs, full.schedule.warmup_epochs) == (4, 1)
    assert short.optimizer == full.optimizer
    assert suite.under("short").teacher_recipes["plain"] == full


def test_merge_goes_into_nested_mappings_and_changes_neither_argument() -> None:
    base, changes = {"a": {"x": 1, "y": 2}, "b": 1}, {"a": {"y": 3}, "c": {"z": 4}}
    assert merge(base, changes) == {"a": {"x": 1, "y": 3}, "b": 1, "c": {"z": 4}}
    assert base == {"a": {"x": 1, "y": 2}, "b": 1}


def test_pairs_are_chosen_by_protocol_or_by_globs_over_the_whole_suite(write_suite: Callable[..., Path]) -> None:
    suite = read_suite(write_suite(TEXT))
    assert suite.under("short").pairs == ("small--vit_32px_small",)
    assert suite.under("full").pairs == suite.pairs
    assert suite.choose_pairs(["*--small"]) == ["vit_32px_small--small"]
    with pytest.raises(
        UnknownNameError, match=r"unknown pair 'smal--vit_32px_small' .*did you mean 'small--vit_32px_small'"
    ):
        suite.choose_pairs(["smal--vit_32px_small"])


@pytest.mark.parametrize("pair", ["a", "a-b", "a--", "--b", "a--b--c", ""])
def test_pair_of_another_form_is_refused(pair: str) -> None:
    with pytest.raises(KdbenchError, match="teacher--student"):
        split_pair(pair)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("title: Tiny", "title: Tiny\ntitel: x", "titel: unknown key; did you mean 'title'?"),
        ("  images_per_class: 10", "  images_per_clas: 10", "unknown key; did you mean 'images_per_class'?"),
        ("    epochs: 4", "    epochs: four", "recipes.plain.epochs: .*integer.*'four'"),
        ("    epochs: 4", "    epochs: 0", "recipes.plain.epochs: .*greater than or equal to 1"),
        ("    epochs: 4", "    epochs: 1.5", "recipes.plain.epochs: .*1.5"),
        (
            "optimizer: {name: sgd, lr: 0.05}",
            "optimizer: {name: sgd, lr: .inf}",
            "recipes.plain.optimizer.lr: .*finite",
        ),
        (
            "optimizer: {name: sgd, lr: 0.05}",
            "optimizer: {name: sgd, lr: .nan}",
            "recipes.plain.optimizer.lr: .*finite",
        ),
        ("optimizer: {name: sgd, lr: 0.05}", "optimizer: {name: sgd, lr: -1}", "recipes.plain.optimizer.lr: .*greater"),
        ("lr: 0.05}", "lr: 0.05, betas: [0.9, 1.0]}", "recipes.plain.optimizer.betas.1: .*less than 1"),
        ("lr: 0.05}", "lr: 0.05, wd: 0.1}", "recipes.plain.optimizer.wd: unknown key; valid: .*weight_decay"),
        ("      name: cosine", "      name: cosin", "schedule.name: .*'cosine'.*'cosin'"),
        ("      warmup_epochs: 1", "      warmup_epochs: 4", "warmup_epochs: 4 leaves no epoch of epochs = 4"),
        (
            "recipe: {epochs: 2, ",
            "recipe: {epoch: 2, ",
            "protocols.short.recipe.epoch: unknown key; did you mean 'epochs'?",
        ),
        ("recipe: {epochs: 2, ", "recipe: {epochs: two, ", "protocols.short.recipe.epochs: .*'two'"),
        ("    seeds: [0, 1]", "    seeds: [0, 0]", "protocols.short.seeds: a seed is listed twice"),
        ("    seeds: [0, 1]", "    seeds: []", "protocols.short.seeds: "),
        ("    seeds: [0, 1]", "    seeds: [-1]", "protocols.short.seeds.0: "),
        ("    seeds: [0, 1]", "    seeds: [4294967296]", "protocols.short.seeds.0: "),
        (
            'pairs: ["small--*"]',
            'pairs: ["smal--vit*"]',
            "protocols.short.pairs.0: unknown pair 'smal--vit.*'small--vit_32px_small'",
        ),
        ("  name: digits", "  name: digit", "unknown data set 'digit'; did you mean 'digits'?"),
        (
            "student_recipe: {cnn: plain",
            "student_recipe: {cnn: plian",
            "student_recipe.cnn: unknown recipe 'plian'; did you mean 'plain'?",
        ),
        ("student_recipe: {cnn: plain, ", "student_recipe: {", "student_recipe: no recipe for cnn"),
        ("default_protocol: short", "default_protocol: shrt", "unknown protocol 'shrt'; did you mean 'short'?"),
        (
            "- vit_32px_small--small",
            "- 'small--vit_32px_small'",
            "pairs.1: pair 'small--vit_32px_small' is listed twice",
        ),
        ("- vit_32px_small--small", "- vit_32px_small-small", "pairs.1: .*teacher--student"),
        ("name: tiny", "name: ../tiny", "name: .*pattern"),
        ("  default: [scratch, kd]", "  default: []", "methods.default: "),
    ],
)
def test_wrong_entry_is_named_with_its_line(write_suite: Callable[..., Path], old: str, new: str, problem: str) -> None:
    assert old in TEXT
    text = TEXT.replace(old, new, 1)
    message = refusal(write_suite(text))
    line = text[: text.index(new) + len(new)].count("\n") + 1
    assert f", line {line}: " in message, message
    assert re.search(problem, message), message


def test_unknown_net_is_refused_with_the_nearest_of_the_suite_or_of_timm(write_suite: Callable[..., Path]) -> None:
    message = refusal(write_suite(TEXT.replace("- vit_32px_small--small", "- vit_32px_smal--small")))
    assert "line 10: pairs.1: unknown net 'vit_32px_smal'; did you mean 'vit_32px_small'?" in message
    message = refusal(write_suite(TEXT.replace("- vit_32px_small--small", "- resnetv2_50x1_bitt--small")))
    assert "did you mean 'resnetv2_50x1_bit" in message


def test_net_of_timm_needs_no_entry_but_must_be_fit_for_a_folder_name(write_suite: Callable[..., Path]) -> None:
    suite = read_suite(write_suite(TEXT.replace("- vit_32px_small--small", "- resnet26--small")))
    assert suite.net("resnet26").timm == "resnet26"
    assert "unknown net" in refusal(write_suite(TEXT.replace("- vit_32px_small--small", "- resnet18./../x--small")))


def test_missing_key_is_named(write_suite: Callable[..., Path]) -> None:
    assert "line 1: title is missing" in refusal(write_suite(TEXT.replace("title: Tiny\n", "")))
    assert "line 12: recipes.plain: epochs is missing" in refusal(write_suite(TEXT.replace("    epochs: 4\n", "")))


def test_key_given_twice_is_refused(write_suite: Callable[..., Path]) -> None:
    assert "line 14: key 'epochs' is given twice" in refusal(
        write_suite(TEXT.replace("    epochs: 4", "    epochs: 4\n    epochs: 5"))
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("name: [1,\ntitle: x", "line 2: "),
        ("name: x\n\ttitle: y", "line 2: found character"),
        ("- a\n- b", "line 1: a suite is a mapping"),
        ("", "line 1: a suite is a mapping"),
        ("name: 2021-99-99", "a value cannot be read .*quote it"),
        ("name: x\x07", "character 8 cannot be"),
        ("name: x\n? [a, b]\n: 1", "line 2: found unhashable key"),
        ("name: x\n---\nname: y", "another document"),
    ],
)
def test_file_that_does_not_parse_is_refused_with_line_and_reason(
    write_suite: Callable[..., Path], text: str, problem: str
) -> None:
    message = refusal(write_suite(text))
    assert re.search(problem, message), message


def _bomb(levels: int) -> str:
    lines = ["x0: &x0 [a, a, a, a, a, a, a, a, a, a]"]
    lines += [f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines)


HOSTILE = {
    "deep sequence": "[" * 20_000,
    "deep mapping": "name: " + "{a: " * 200 + "1" + "}" * 200,
    "exploding aliases": _bomb(9),
    "exploding merge keys": "a: &a {k: 1}\nb: &b {<<: ["
    + ", ".join(["*a"] * 400)
    + "]}\nc: {<<: ["
    + ", ".join(["*b"] * 400)
    + "]}",
    "alias to itself": "name: &a {x: *a}",
    "code": '!!python/object/apply:os.system ["touch pwned"]',
    "python name": "name: !!python/name:os.system",
    "unknown tag": "name: !secret x",
    "huge file": "#" * (MAX_BYTES + 1),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_content_is_refused_in_one_line(
    write_suite: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    refusal(write_suite(HOSTILE[kind]))
    assert not (tmp_path / "pwned").exists()


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    assert "cannot be read" in refusal(path)


def test_anchors_and_merge_keys_work_also_where_a_merged_key_is_replaced(write_suite: Callable[..., Path]) -> None:
    content = TEXT.replace("  plain:\n", "  plain: &plain\n").replace(
        "student_recipe:",
        "  other: &other {<<: *plain, epochs: 8}\n  third: {<<: *other, epochs: 9}\nstudent_recipe:",
        1,
    )
    suite = read_suite(write_suite(content))
    assert [suite.recipes[name].epochs for name in ("plain", "other", "third")] == [4, 8, 9]
    assert suite.recipes["third"].optimizer == suite.recipes["plain"].optimizer


def test_suite_is_found_by_name_and_by_path(write_suite: Callable[..., Path]) -> None:
    assert load_suite("digits").name == "digits"
    assert load_suite(str(write_suite())).name == "tiny"
    with pytest.raises(UnknownNameError, match="did you mean 'digits'"):
        load_suite("digit")
    with pytest.raises(KdbenchError, match="no such file"):
        load_suite("nowhere/x.yaml")


def test_suite_objects_cannot_be_changed() -> None:
    suite = tiny_suite()
    with pytest.raises(ValidationError):
        suite.name = "other"  # type: ignore[misc]


def test_suite_survives_a_round_trip_through_yaml(write_suite: Callable[..., Path]) -> None:
    suite = tiny_suite()
    again = read_suite(write_suite(yaml.safe_load(yaml.safe_dump(suite.model_dump(mode="json")))))
    assert again == suite


@pytest.mark.parametrize(
    "changes", [{"protocols": {"short": {"pairs": ["mlp--*"]}}}, {"nets": {"cnn": {"taps": [1, 2]}}}]
)
def test_contradiction_is_found_without_a_file_too(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"pair|taps"):
        tiny_suite(**changes)
    assert tiny()["nets"]["cnn"].get("taps") is None


def test_nearest_names_one_name_or_lists_what_is_valid() -> None:
    assert nearest("fitnets", ["kd", "fitnet"]) == "did you mean 'fitnet'?"
    assert nearest("KD", ["kd", "fitnet"]) == "did you mean 'kd'?"
    assert nearest("zzz", ["kd", "fitnet"]) == "valid: kd, fitnet"
    assert nearest("zzz", []) == "there is none"
    assert nearest("zzz", [f"a{n}" for n in range(20)]).endswith("a11, ...")
    assert is_near("fitnets", ["fitnet"])
    assert not is_near("zzz", ["fitnet"])


def test_suite_error_is_an_error_of_the_user() -> None:
    assert issubclass(SuiteError, KdbenchError)


FOLDER = {"name": "imagefolder", "folder": "p", "num_classes": 2, "image_size": 32}


@pytest.mark.parametrize(
    ("changes", "where", "problem"),
    [
        ({"dataset": {**FOLDER, "classes": [0, 1]}}, "dataset.classes.0", "reads a number .* write quotes: '0'"),
        ({"dataset": {**FOLDER, "classes": ["a", 2.5]}}, "dataset.classes.1", "reads a number .* write quotes: '2.5'"),
        ({"dataset": {**FOLDER, "classes": ["a", False]}}, "dataset.classes.1", "reads a truth value .* write it in quotes"),
        ({"dataset": {**FOLDER, "folder": 2024}}, "dataset.folder", "write quotes: '2024'"),
        ({"dataset": FOLDER}, "recipes.cnn.pipeline", "the images of imagefolder are files, .* set pipeline: exact"),
        (
            {"dataset": FOLDER, "protocols": {"short": {"recipe": {"pipeline": "exact"}}}},
            "recipes.cnn.pipeline", "set pipeline: exact",
        ),
        ({"nets": {"cnn": {"weights": {"file": "x", "sha256": "bad"}}}}, "nets.cnn.weights.sha256", "found 'bad'"),
        ({"nets": {"cnn": {"weights": {"file": "../x"}}}}, "nets.cnn.weights.file", "'../x' leaves the folder"),
        ({"nets": {"cnn": {"weights": {"file": "x", "sha": "1"}}}}, "nets.cnn.weights.sha", "did you mean 'sha256'"),
        ({"nets": {"cnn": {"weights": {"fil": "x"}}}}, "nets.cnn.weights", "file is missing"),
        ({"nets": {"cnn": {"weights": {"file": "a\nb"}}}}, "nets.cnn.weights.file", "cannot be printed"),
        ({"nets": {"cnn": {"weights": "timmm"}}}, "nets.cnn.weights", "'train', 'finetune' or 'timm'"),
    ],
)  # fmt: skip
def test_fields_of_several_forms_and_files_are_refused_with_their_own_reason_and_line(
    write_suite: Callable[..., Path], changes: dict[str, Any], where: str, problem: str
) -> None:
    path = write_suite(**changes)
    with pytest.raises(SuiteError, match=rf"line \d+: {re.escape(where)}: .*{problem}") as caught:
        load_suite(str(path))
    assert "\n" not in str(caught.value)


def test_a_protocol_may_give_recipes_of_files_their_pipeline(write_suite: Callable[..., Path]) -> None:
    exact = {"recipe": {"pipeline": "exact"}, "teacher": {"pipeline": "exact"}}
    load_suite(str(write_suite(dataset=FOLDER, protocols=dict.fromkeys(("short", "seeds", "long"), exact))))
