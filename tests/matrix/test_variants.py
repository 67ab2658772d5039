"""Variants of methods, published values of pairs, and where every hyper-parameter comes from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import KdbenchError
from kdbench.matrix.cells import Cell, Plan, make_plan
from kdbench.matrix.request import Request
from kdbench.plugins import tuned
from kdbench.plugins.registry import catalog
from kdbench.suite.suite import load_suite, suite_files
from tests.conftest import tiny_suite

METHODS = catalog()
W1 = {"method": "ofa", "set": {"ofa_weight": 0.5}, "display": "OFA-KD, half"}


def plan(changes: dict[str, Any] | None = None, plugins: tuple[str, ...] = (), **choice: Any) -> Plan:
    return make_plan(
        tiny_suite(**(changes or {})), Request(plugins=plugins, **choice), catalog(plugins) if plugins else METHODS
    )


def cells(changes: dict[str, Any] | None = None, **choice: Any) -> dict[str, Cell]:
    """By method, of one pair and seed."""
    return {cell.method: cell for cell in plan(changes, pairs=("cnn--vit",), seeds=(0,), **choice).cells}


def test_variant_is_a_row_of_its_own_in_the_cohort_of_its_method() -> None:
    made = plan({"variants": {"ofa-w1": W1}}, methods=("ofa*",))
    method, variant = made.cells
    assert (method.method, variant.method) == ("ofa", "ofa-w1")
    assert variant.folder.split("/")[3] == "ofa-w1"
    assert variant.facts["method_display"] == "OFA-KD, half"
    assert (variant.facts["variant_of"], variant.facts["settings"]) == ("ofa", "ofa_weight = 0.5")
    assert variant.hyperparameters == {**method.hyperparameters, "ofa_weight": 0.5}
    assert len(made.cohorts()) == 1
    assert made.catalog["ofa-w1"].load() is made.catalog["ofa"].load()


def test_variant_with_the_settings_of_its_method_has_its_identity_and_another_folder() -> None:
    same = cells({"variants": {"twin": {"method": "kd"}}}, methods=("kd", "twin"), set={"kd": {"temperature": 3.0}})
    assert same["kd"].hash == same["twin"].hash
    assert same["kd"].config == same["twin"].config
    assert same["kd"].folder != same["twin"].folder
    set_so = cells(methods=("kd",), set={"kd": {"temperature": 2.0}})["kd"]
    variant = cells(variants={"hot": {"method": "kd", "set": {"temperature": 2.0}}}, methods=("hot",))["hot"]
    assert variant.hash == set_so.hash != cells()["kd"].hash


def test_variant_without_kd_does_not_count_as_carrying_it() -> None:
    made = cells(variants={"alone": {"method": "lfcc", "set": {"kd_weight": 0.0}}}, methods=("lfcc", "alone", "kd"))
    assert [cell.facts["carries_kd"] for cell in made.values()] == [True, False, False]


def test_variants_of_a_suite_and_of_the_command_line_run_unless_methods_are_chosen() -> None:
    listed = {"variants": {"a": {"method": "kd"}, "b": {"method": "kd"}}, "methods": {"default": ["kd"]}}
    assert list(cells(listed)) == ["kd", "a", "b"]
    assert list(cells(listed, variants={"c": {"method": "ofa"}})) == ["kd", "a", "b", "c"]
    assert list(cells(listed, variants={"c": {"method": "ofa"}}, methods=("a",))) == ["a"]


def test_variants_work_for_a_method_of_a_plugin(write_plugin: Callable[..., Path]) -> None:
    path = str(write_plugin())
    made = plan(plugins=(path,), variants={"light": {"method": "mine", "set": {"weight": 0.5}}})
    assert [cell.method for cell in made.cells] == ["scratch", "kd", "mine", "light"]
    light = made.cells[-1]
    assert (light.facts["plugin"], light.hyperparameters) == (Path(path).name, {"weight": 0.5})
    assert light.config["method"]["source"]


def test_later_settings_win_and_say_where_they_come_from(monkeypatch: pytest.MonkeyPatch) -> None:
    known = tuned.Tuned("nkd", "imagenet1k", ("cnn--vit",), {"gamma": 5.0}, "a table")
    monkeypatch.setattr(tuned, "tuned_values", lambda: (known,))
    changes: dict[str, Any] = {"dataset": {"presets": "imagenet1k"}}
    choice: dict[str, Any] = {"methods": ("nkd*",)}

    def gamma(name: str = "nkd") -> tuple[float, str]:
        return tuple(cells(changes, **choice)[name].settings["gamma"])  # type: ignore[return-value]

    assert gamma() == (1.0, "preset imagenet1k:vit")
    changes |= {"methods": {"set": {"nkd": {"gamma": 2.0}}}}
    assert gamma() == (2.0, "suite tiny")
    changes |= {"protocols": {"short": {"set": {"nkd": {"gamma": 3.0}}}}}
    assert gamma() == (3.0, "protocol short")
    choice |= {"as_tuned": True}
    assert gamma() == (5.0, "published for the pair: a table")
    changes |= {"variants": {"nkd-v": {"method": "nkd", "set": {}}}}
    assert gamma("nkd-v") == gamma()
    choice |= {"set": {"nkd": {"gamma": 6.0}}}
    assert gamma() == gamma("nkd-v") == (6.0, "--set nkd")
    changes |= {"variants": {"nkd-v": {"method": "nkd", "set": {"gamma": 7.0}}}}
    assert (gamma()[0], gamma("nkd-v")) == (6.0, (7.0, "variant nkd-v"))
    changes |= {"protocols": {"short": {"set": {"nkd": {"gamma": 3.0}, "nkd-v": {"gamma": 8.0}}}}}
    assert (gamma()[0], gamma("nkd-v")) == (6.0, (8.0, "protocol short, nkd-v"))
    choice |= {"set": {"nkd": {"gamma": 6.0}, "nkd-v": {"gamma": 9.0}}}
    assert (gamma()[0], gamma("nkd-v")) == (6.0, (9.0, "--set nkd-v"))


def test_settings_that_change_nothing_are_the_methods_defaults_and_those_of_kd() -> None:
    settings = cells({"dataset": {"presets": "cifar100-32"}}, methods=("lfcc",))["lfcc"].settings
    assert settings["dim"] == (128, "default")
    assert settings["temperature"] == (4.0, "KD")


@pytest.mark.parametrize(
    ("variant", "problem"),
    [
        ({"w": {"method": "offa"}}, "unknown method 'offa' in variant w; did you mean 'ofa'?"),
        ({"w": {"method": "kd"}, "v": {"method": "w"}}, "unknown method 'w' in variant v"),
        ({"ofa": {"method": "kd"}}, "variant 'ofa': there is a method of this name"),
        ({"a.b": {"method": "kd"}}, "variant 'a.b': a name has letters"),
        ({"w": {"method": "kd", "set": {"temprature": 1}}}, "unknown hyper-parameter w.temprature; did you mean 'temperature'?"),
        ({"w": {"method": "kd", "set": {"temperature": 0}}}, "w.temperature = 0: must be above 0"),
    ],
)  # fmt: skip
def test_bad_variant_is_refused_in_one_line_wherever_it_stands(variant: dict[str, Any], problem: str) -> None:
    for changes, choice in (({"variants": variant}, {}), ({}, {"variants": variant})):
        with pytest.raises(KdbenchError) as caught:
            plan(changes, **choice)
        assert problem in str(caught.value)
        assert "\n" not in str(caught.value)


def test_variant_of_the_command_line_does_not_replace_one_of_the_suite() -> None:
    with pytest.raises(KdbenchError, match="variant 'w': there is a variant of this name"):
        plan({"variants": {"w": {"method": "kd"}}}, variants={"w": {"method": "ofa"}})
    with pytest.raises(ValueError, match=r"w is a variant; write this in variants\.w\.set"):
        tiny_suite(variants={"w": {"method": "kd"}}, methods={"set": {"w": {"temperature": 2}}})


# Published values


def test_every_published_value_is_of_a_pair_of_a_suite_and_valid_and_has_a_source() -> None:
    suites = [load_suite(name) for name in suite_files()]
    entries = tuned.tuned_values()
    told = [(e.method, e.dataset, pair, key) for e in entries for pair in e.pairs for key in e.values]
    assert len(set(told)) == len(told) > 5
    for entry in entries:
        assert entry.source
        METHODS[entry.method].resolve("", entry.values)
        pairs = [suite.pairs for suite in suites if entry.dataset in (suite.dataset.presets, suite.dataset.name)]
        for pair in entry.pairs:
            assert any(pair in own for own in pairs), (entry, pair)


def test_a_suite_can_take_published_values_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuned, "tuned_values", lambda: (
        tuned.Tuned("kd", "digits", ("cnn--vit",), {"temperature": 2.0}, "a table"),
        tuned.Tuned("kd", "digits", ("cnn--vit", "cnn--mlp"), {"ce_weight": 0.3}, "another"),
        tuned.Tuned("kd", "cifar100", ("cnn--vit",), {"kd_weight": 7.0}, "other data"),
    ))  # fmt: skip
    plain, by_itself, asked = (
        tiny_suite(methods={"as_tuned": as_tuned, "set": {"kd": {"temperature": 8.0}}})
        for as_tuned in (False, True, False)
    )
    found = {
        name: {
            (c.pair, key): c.hyperparameters[key] for c in made.cells for key in c.hyperparameters if c.method == "kd"
        }
        for name, made in {
            "plain": make_plan(plain, Request(pairs=("cnn--*",), methods=("kd",)), METHODS),
            "suite": make_plan(by_itself, Request(pairs=("cnn--*",), methods=("kd",)), METHODS),
            "asked": make_plan(asked, Request(pairs=("cnn--*",), methods=("kd",), as_tuned=True), METHODS),
        }.items()
    }
    assert found["suite"] == found["asked"]
    changed = {key: value for key, value in found["suite"].items() if found["plain"][key] != value}
    pairs = ("cnn--vit", "cnn--mlp")
    assert changed == {(pairs[0], "temperature"): 2.0, (pairs[0], "ce_weight"): 0.3, (pairs[1], "ce_weight"): 0.3}


def test_published_values_are_used_only_when_asked_for_and_only_for_their_pair() -> None:
    suite = load_suite("cifar100")

    def chosen(pair: str, **choice: Any) -> Cell:
        request = Request(methods=("ufd",), pairs=(pair,), seeds=(0,), **choice)
        return make_plan(suite, request, METHODS).cells[0]

    pair = "mixer_b16--mobilenetv2"
    plain, as_tuned = chosen(pair), chosen(pair, as_tuned=True)
    assert (plain.hyperparameters["ac_weight"], as_tuned.hyperparameters["ac_weight"]) == (0.065, 0.035)
    assert plain.hash != as_tuned.hash
    assert "ac_weight = 0.035 (published for the pair: " in as_tuned.facts["settings"]
    elsewhere = "mixer_b16--resnet18"
    assert chosen(elsewhere).hash == chosen(elsewhere, as_tuned=True).hash
