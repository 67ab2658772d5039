"""Plans: which cells there are, what their identity depends on, which train together, what cannot run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import HyperparameterError, KdbenchError, UnknownNameError
from kdbench.matrix.cells import Cell, Plan, make_plan
from kdbench.matrix.check import check_cells
from kdbench.matrix.identity import config_hash
from kdbench.matrix.request import Request
from kdbench.plugins.entry import METHODS
from kdbench.plugins.registry import catalog
from kdbench.suite.datasets import DATASETS, DatasetEntry
from kdbench.suite.suite import load_suite
from tests.conftest import tiny_suite


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    yield
    for name in [name for name, cls in METHODS.items() if cls.__module__.startswith("kdbench_plugin_")]:
        sys.modules.pop(METHODS.pop(name).__module__, None)


def plan(changes: dict[str, Any] | None = None, plugins: tuple[str, ...] = (), **choice: Any) -> Plan:
    return make_plan(tiny_suite(**(changes or {})), Request(plugins=plugins, **choice), catalog(plugins))


def cell(changes: dict[str, Any] | None = None, **choice: Any) -> Cell:
    """The cell of KD on cnn--vit."""
    made = plan(changes, **{"methods": ("kd",), **choice})
    return next(cell for cell in made.cells if cell.pair == "cnn--vit" and cell.seed == 0)


# Cells


def test_cells_are_pairs_by_seeds_by_methods_in_this_order() -> None:
    keys = [cell.key for cell in plan(protocol="seeds", pairs=("cnn--*",)).cells]
    assert keys == [
        f"{pair}/{method}/seed{seed}"
        for pair in ("cnn--vit", "cnn--mlp")
        for seed in (0, 1)
        for method in ("scratch", "kd")
    ]


def test_choice_replaces_what_the_protocol_says() -> None:
    made = plan(methods=("ki*", "kd", "scr*", "kd")[1:], pairs=("vit--*",), seeds=(7,))
    assert [cell.key for cell in made.cells] == ["vit--cnn/kd/seed7", "vit--cnn/scratch/seed7"]


def test_methods_of_plugins_join_the_default_ones(write_plugin: Callable[..., Path]) -> None:
    path = str(write_plugin())
    assert [cell.method for cell in plan(plugins=(path,)).cells] == ["scratch", "kd", "mine"]
    assert [cell.method for cell in plan(plugins=(path,), methods=("kd",)).cells] == ["kd"]


def test_folders_of_cells_are_unique_and_say_what_they_hold() -> None:
    made = plan(protocol="seeds")
    folders = [cell.folder for cell in made.cells]
    assert len(set(folders)) == len(folders) == 12
    first = made.cells[0]
    assert first.folder == f"tiny/seeds/cnn--vit/scratch/seed0-{first.hash}"
    assert first.teacher.folder == f"teachers/cnn-{first.teacher.hash}"


@pytest.mark.parametrize(
    ("choice", "problem"),
    [
        ({"protocol": "shrt"}, "unknown protocol 'shrt' in suite tiny; did you mean 'short'?"),
        ({"methods": ("kdd",)}, "unknown method 'kdd'; did you mean 'kd'?"),
        ({"methods": ("zz*",)}, "unknown method 'zz*'; valid: "),
        ({"pairs": ("cnn--vti",)}, "unknown pair 'cnn--vti' in suite tiny; did you mean 'cnn--vit'?"),
        ({"split": "train"}, "unknown split 'train'"),
        ({"set": {"kdd": {"temperature": 1}}}, "unknown method 'kdd'"),
        ({"set": {"kd": {"temprature": 1}}}, "did you mean 'temperature'?"),
        ({"set": {"ofa": {"epz": 1}}}, "unknown hyper-parameter ofa.epz"),
        ({"set": {"kd": {"temperature": "hot"}}}, "kd.temperature = 'hot': expected float, got str"),
    ],
)
def test_unknown_name_in_the_choice_is_refused_with_the_nearest(choice: dict[str, Any], problem: str) -> None:
    with pytest.raises(KdbenchError) as caught:
        plan(**choice)
    assert problem in str(caught.value)


def test_unknown_names_in_the_methods_of_a_suite_are_refused() -> None:
    with pytest.raises(UnknownNameError, match="'kdd'"):
        plan({"methods": {"default": ["kdd"]}})
    with pytest.raises(UnknownNameError, match="'kdd'"):
        plan({"methods": {"set": {"kdd": {}}}})
    with pytest.raises(HyperparameterError, match="temprature"):
        plan({"methods": {"set": {"kd": {"temprature": 4}}}})


# Sizes


def test_batch_that_is_larger_than_the_training_split_is_refused_before_anything_is_built() -> None:
    with pytest.raises(
        KdbenchError, match=r"batch_size = 101 of recipe token is larger than the 100 images that a student"
    ):
        plan({"recipes": {"token": {"batch_size": 101}}})
    plan({"recipes": {"token": {"batch_size": 100}}})
    with pytest.raises(
        KdbenchError, match=r"batch_size = 998 of recipe cnn is larger than the 997 images that a teacher"
    ):
        plan({"protocols": {"short": {"teacher": {"batch_size": 998}}}})
    plan({"recipes": {"cnn": {"batch_size": 997}}})  # no student of this protocol trains under it


def test_more_images_per_class_than_the_smallest_class_has_are_refused() -> None:
    with pytest.raises(KdbenchError, match="images_per_class = 95, but the smallest class of digits has 94"):
        plan({"dataset": {"images_per_class": 95}})
    plan({"dataset": {"images_per_class": 94}})


def test_data_set_of_unknown_size_is_left_to_its_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(DATASETS, "digits", DatasetEntry("digits", "Digits", 10, "", "", "kdbench.datasets.digits"))
    plan({"dataset": {"images_per_class": None}, "recipes": {"token": {"batch_size": 5000}}})


# Identity

CHANGES_THAT_MATTER: dict[str, dict[str, Any]] = {
    "suite": {"name": "other"},
    "protocol version": {"protocols": {"short": {"version": 2}}},
    "recipe": {"recipes": {"token": {"optimizer": {"lr": 0.002}}}},
    "recipe in the protocol": {"protocols": {"short": {"recipe": {"epochs": 3}}}},
    "hyper-parameter": {"methods": {"set": {"kd": {"temperature": 2.0}}}},
    "images": {"dataset": {"images_per_class": 11}},
    "student's arguments": {"nets": {"vit": {"args": {"depth": 5}}}},
    "student's preprocessing": {"nets": {"vit": {"mean": [0.5, 0.5, 0.4]}}},
    "student's taps": {"nets": {"vit": {"taps": [0, 1, 2, 3]}}},
    "teacher's arguments": {"nets": {"cnn": {"args": {"stem_width": 16}}}},
    "teacher's recipe": {"recipes": {"cnn": {"epochs": 3}}},
    "teacher's recipe in the protocol": {"protocols": {"short": {"teacher": {"epochs": 3}}}},
    "teacher's seed": {"teacher_seed": 1},
    "threads": {"cpu_threads": 2},
    "student's memory format": {"nets": {"vit": {"memory_format": "channels_last"}}},
    "teacher's memory format": {"nets": {"cnn": {"memory_format": "channels_last"}}},
    "student's family": {"nets": {"vit": {"family": "mlp"}}},
}
CHANGES_THAT_DO_NOT: dict[str, dict[str, Any]] = {
    "title": {"title": "Another"},
    "description": {"protocols": {"short": {"description": "another"}}},
    "display name of the teacher": {"nets": {"cnn": {"display": "Another"}}},
    "display name of the student": {"nets": {"vit": {"display": "Another"}}},
    "methods": {"methods": {"default": ["kd", "fitnet", "scratch"]}},
    "another method's hyper-parameter": {"methods": {"set": {"fitnet": {"ce_weight": 0.5}}}},
    "another protocol": {"protocols": {"seeds": {"seeds": [3]}}},
    "a field of a net at its default": {"nets": {"vit": {"memory_format": "contiguous"}}},
    "another net": {"nets": {"mlp": {"args": {"num_blocks": 5}}}},
    "order of pairs": {"pairs": ["vit--cnn", "cnn--vit"]},
    "what a teacher should reach": {"teacher_at_least": 20},
    "a hyper-parameter at its default": {"methods": {"set": {"kd": {"temperature": 1}}}},
}


@pytest.mark.parametrize("what", CHANGES_THAT_MATTER)
def test_identity_of_a_cell_follows_everything_that_changes_its_numbers(what: str) -> None:
    assert cell(CHANGES_THAT_MATTER[what]).hash != cell().hash


@pytest.mark.parametrize("what", CHANGES_THAT_DO_NOT)
def test_identity_of_a_cell_ignores_what_changes_no_number(what: str) -> None:
    assert cell(CHANGES_THAT_DO_NOT[what]).hash == cell().hash


def test_identity_follows_the_choice() -> None:
    assert cell(split="validation").hash != cell().hash
    assert cell(set={"kd": {"temperature": 4}}).hash != cell().hash
    assert cell(set={"kd": {"temperature": 4}}).hash == cell({"methods": {"set": {"kd": {"temperature": 4.0}}}}).hash
    assert cell(methods=("kd", "fitnet"), seeds=(1, 0), pairs=("*",)).hash == cell().hash


def test_seeds_of_a_cell_share_its_hash_and_have_folders_of_their_own() -> None:
    cells = plan(protocol="seeds").cells
    assert {cell.hash for cell in cells if cell.seed == 0} == {cell.hash for cell in cells if cell.seed == 1}
    assert len({cell.hash for cell in cells}) == 6
    assert len({cell.folder for cell in cells}) == 12


#: Of the tiny suite. Where one changes, every stored result of every user becomes stale.
KNOWN = {"cnn--vit/scratch/seed0": "a46a61e3da", "cnn--vit/kd/seed0": "d4ad21ab90"}
KNOWN_TEACHER = "06d8efb66e"


def test_the_hashes_of_known_cells_are_unchanged() -> None:
    cells = plan(methods=("scratch", "kd")).cells
    assert {cell.key: cell.hash for cell in cells} == KNOWN
    assert cells[0].teacher.hash == KNOWN_TEACHER


def test_identity_of_a_plugins_cells_follows_its_source(write_plugin: Callable[..., Path]) -> None:
    path = write_plugin()

    def of_plugin() -> str:
        return next(cell.hash for cell in plan(plugins=(str(path),)).cells if cell.method == "mine")

    before = of_plugin()
    assert of_plugin() == before
    path.write_text(path.read_text() + "# changed\n")
    assert of_plugin() != before


def test_identity_of_a_teacher_is_that_of_its_own_training() -> None:
    teacher = cell().teacher
    assert cell(protocol="seeds").teacher.hash != teacher.hash  # another batch size
    same = {"protocols": {"seeds": {"teacher": {"batch_size": 100}}}}
    assert cell(same, protocol="seeds").teacher.hash == teacher.hash
    assert cell({"nets": {"vit": {"args": {"depth": 5}}}}).teacher.hash == teacher.hash
    assert cell({"dataset": {"images_per_class": 11}}).teacher.hash == teacher.hash
    assert cell({"nets": {"cnn": {"args": {"stem_width": 16}}}}).teacher.hash != teacher.hash
    assert cell({"teacher_seed": 1}).teacher.hash != teacher.hash


def test_teachers_of_two_names_are_two_teachers() -> None:
    nets = tiny_suite().nets
    twin = {"nets": {"twin": nets["cnn"].model_dump()}, "pairs": ["cnn--vit", "twin--vit"]}
    first, second = plan(twin, protocol="seeds").teachers
    assert first.hash != second.hash


def test_an_inferred_family_is_that_which_is_declared() -> None:
    assert cell({"nets": {"vit": {"family": None}}}).hash == cell().hash


def test_identity_is_the_same_in_every_process(write_suite: Callable[..., Path]) -> None:
    script = (
        "import sys; from kdbench.matrix.cells import *; from kdbench.suite.suite import load_suite\n"
        "from kdbench.plugins.registry import catalog\n"
        "print([c.hash + c.teacher.hash for c in make_plan(load_suite(sys.argv[1]), Request(), catalog()).cells])\n"
        "assert 'torch' not in sys.modules"
    )
    said = {
        subprocess.run(
            [sys.executable, "-c", script, str(write_suite())],
            env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert said == {f"{[cell.hash + cell.teacher.hash for cell in plan().cells]}\n"}


def test_configuration_of_a_cell_is_plain_json() -> None:
    for made in plan(protocol="seeds", methods=("*",)).cells:
        config = json.loads(json.dumps(made.config, allow_nan=False))
        assert "seed" not in config
        assert config_hash(config) == made.hash


# Cohorts


def test_cells_share_a_cohort_when_teacher_recipe_and_seed_agree() -> None:
    cohorts = plan(protocol="seeds").cohorts()
    described = [(cohort.teacher.name, cohort.recipe_name, cohort.seed, len(cohort.cells)) for cohort in cohorts]
    assert described == [("cnn", "token", 0, 4), ("cnn", "token", 1, 4), ("vit", "cnn", 0, 2), ("vit", "cnn", 1, 2)]
    assert cohorts[0].name == "cnn--mlp+vit, token, seed 0"


def test_solo_gives_every_cell_a_cohort_of_its_own() -> None:
    made = plan(protocol="seeds")
    cohorts = made.cohorts(solo=True)
    assert [cohort.cells for cohort in cohorts] == [(cell,) for cell in made.cells]


def test_cohorts_hold_only_what_is_left_to_train() -> None:
    made = plan()
    (cohort,) = made.cohorts(cells=made.cells[1:])
    assert [cell.method for cell in cohort.cells] == ["kd"]
    assert made.cohorts(cells=[]) == []


def test_every_teacher_is_planned_once() -> None:
    assert [teacher.name for teacher in plan(protocol="seeds").teachers] == ["cnn", "vit"]


# What cannot run


REFUSES = """
    @classmethod
    def supports(cls, student, teacher):
        return "students with tokens are too much for it" if student.has_tokens else None
"""


def test_impossible_cell_is_skipped_with_its_reason_and_the_others_stay(write_plugin: Callable[..., Path]) -> None:
    path = write_plugin("picky")
    path.write_text(path.read_text() + REFUSES)
    checked = check_cells(plan(plugins=(str(path),), pairs=("cnn--vit", "vit--cnn")))
    assert [(cell.key, cell.reason) for cell in checked.skipped] == [
        ("cnn--vit/picky/seed0", "students with tokens are too much for it")
    ]
    assert [cell.method for cell in checked.cells] == ["scratch", "kd", "scratch", "kd", "picky"]


@pytest.mark.parametrize(
    ("before", "inside", "problem"),
    [
        ("raise RuntimeError('boom')", "", "RuntimeError: boom"),
        ("import sys; sys.exit(3)", "", "SystemExit: 3"),
        ("", "self.layer = undefined_name", "NameError"),
    ],
)
def test_plugin_that_cannot_be_built_takes_only_its_own_cells_out(
    write_plugin: Callable[..., Path], before: str, inside: str, problem: str
) -> None:
    path = write_plugin("broken", before=before)
    path.write_text(path.read_text().replace("        self.steps = 0", f"        self.steps = 0\n        {inside}"))
    checked = check_cells(plan(plugins=(str(path),)))
    assert [cell.method for cell in checked.cells] == ["scratch", "kd"]
    (cell,) = checked.broken
    assert problem in (cell.reason or "").splitlines()[0]
    assert "Traceback" in (cell.reason or "")
    (error,) = checked.catalog.errors
    assert "Traceback" in error.details  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "choice", "problem"),
    [
        ({}, {"set": {"kd": {"temperature": 0}}}, r"kd.temperature = 0: must be above 0"),
        (
            {"nets": {"vit": {"timm": "vit_32px_smal"}}},
            {},
            "timm has no model 'vit_32px_smal'; did you mean 'vit_32px_small'",
        ),
        ({"nets": {"vit": {"args": {"dept": 4}}}}, {}, "net vit: timm cannot build"),
        ({"nets": {"cnn": {"taps": [0, 1, 2, 9]}}}, {}, "net cnn: tap 9 is unknown"),
        (
            {"recipes": {"token": {"optimizer": {"name": "adamww"}}}},
            {},
            "unknown optimizer 'adamww' in timm; did you mean 'adamw'",
        ),
        ({"recipes": {"cnn": {"optimizer": {"name": "sdg"}}}}, {}, "unknown optimizer 'sdg'"),
    ],
)
def test_wrong_wiring_is_refused_before_anything_runs(
    changes: dict[str, Any], choice: dict[str, Any], problem: str
) -> None:
    with pytest.raises(KdbenchError, match=problem):
        check_cells(plan(changes, **choice))


def test_method_that_needs_an_unknown_tap_is_refused(write_plugin: Callable[..., Path]) -> None:
    path = write_plugin("thirsty")
    path.write_text(path.read_text().replace('    """A', '    needs = {"stage"}\n    """A'))
    with pytest.raises(UnknownNameError, match="did you mean 'stages'"):
        check_cells(plan(plugins=(str(path),)))


def test_checking_leaves_the_random_state_alone() -> None:
    import torch

    torch.manual_seed(5)
    check_cells(plan(methods=("kd", "fitnet", "crd")))
    drawn = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(3))


def test_a_plan_shows_memory_and_splits_what_does_not_fit(kdbench, tmp_path) -> None:  # type: ignore[no-untyped-def]
    words = ("plan", "digits", "--protocol", "smoke", "--no-probe", "--out", tmp_path, "--pairs", "resnet-l--vit-s")
    whole = kdbench(*words, "--device", "cpu", "--workers", "1", "--memory", "8").out
    split = kdbench(*words, "--device", "cpu", "--workers", "1", "--memory", "0.01").out
    assert " GB  " in whole
    assert "of memory for the largest cohort" in whole
    assert "part aaa" in split
    assert kdbench(*words, "--memory", "none").err.strip().endswith("'none' is not a number of gibibytes above 0")


def test_a_hyperparameter_that_was_added_later_is_in_no_identity_at_its_default() -> None:
    suite = load_suite("digits")

    def cell(**values: Any) -> Cell:
        request = Request(methods=("reviewkd",), set={"reviewkd": values} if values else {})
        return make_plan(suite, request, catalog()).cells[0]

    plain, given, other = cell(), cell(stages=[1, 2, 3, 4]), cell(stages=[2, 3, 4])
    assert "stages" not in plain.hyperparameters
    assert plain.settings["stages"].value == (1, 2, 3, 4)
    assert plain.hash == given.hash != other.hash
    assert other.hyperparameters["stages"] == (2, 3, 4)
