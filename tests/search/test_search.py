"""A search without training: what is searched, which values are drawn, which trial is best."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from kdbench.errors import KdbenchError
from kdbench.plugins.registry import catalog
from kdbench.search.sampling import ROUND, check_sampler, make_sampler, rounds
from kdbench.search.space import Choices, Interval, declared, read_space
from kdbench.search.trials import Trial, best_of

METHODS = catalog()
SPACE = {"t": Interval(1, 8, "log"), "n": Interval(1, 4, "linear", True), "c": Choices(("a", "b"))}


# Spaces


def test_declared_ranges_are_searched_on_the_scale_that_they_declare() -> None:
    assert declared(METHODS["kd"]) == {"temperature": Interval(1, 8, "log"), "kd_weight": Interval(0.1, 10, "log")}
    assert declared(METHODS["ofa"])["eps"] == Interval(1, 2, "linear")
    assert set(declared(METHODS["kd"], {"temperature": 4.0})) == {"kd_weight"}
    assert declared(METHODS["scratch"]) == {}


@pytest.mark.parametrize("name", METHODS)
def test_every_value_of_a_declared_range_is_one_that_the_method_takes(name: str) -> None:
    entry = METHODS[name]
    for parameter, interval in declared(entry).items():
        for share in (0.0, 0.3, 0.999999):
            value = interval.at(share)
            assert entry.hyperparameters[parameter].check(value, name) == value


def test_file_gives_intervals_with_the_declared_scale_or_its_own_and_choices(tmp_path: Path) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(
        "kd:\n  temperature: [1, 4]\n  kd_weight: {search: [1e-1, 2], scale: linear}\nofa:\n  eps: {choices: [1, 1.5]}\n"
    )
    found = read_space(file, METHODS)
    assert found == {
        "kd": {"temperature": Interval(1.0, 4.0, "log"), "kd_weight": Interval(0.1, 2.0, "linear")},
        "ofa": {"eps": Choices((1.0, 1.5))},
    }
    written = {method: {name: part.plain() for name, part in space.items()} for method, space in found.items()}
    assert read_space(written, METHODS) == found


def test_whole_numbers_stay_whole() -> None:
    found = read_space({"lfcc": {"dim": {"search": [16, 512], "scale": "log"}}}, METHODS)["lfcc"]["dim"]
    values = [found.at(share / 100) for share in range(100)]
    assert {type(value) for value in values} == {int}
    assert (min(values), max(values)) == (16, 495)


@pytest.mark.parametrize(
    ("space", "problem"),
    [
        ("kdd: {temperature: [1, 2]}", "unknown method 'kdd' in FILE; did you mean 'kd'?"),
        ("kd: {temprature: [1, 2]}", "FILE: unknown hyper-parameter kd.temprature; did you mean 'temperature'?"),
        ("scratch: {lr: [1, 2]}", "FILE: unknown hyper-parameter scratch.lr; there is none"),
        ("kd: {temperature: [2, 2]}", "FILE: kd.temperature: the interval from 2 to 2 is empty"),
        ("kd: {temperature: [3, 2]}", "FILE: kd.temperature: the interval from 3 to 2 is empty"),
        ("kd: {temperature: []}", "FILE: kd.temperature: [] holds nothing to draw from"),
        ("kd: {temperature: {choices: []}}", "FILE: kd.temperature: [] holds nothing to draw from"),
        ("kd: {temperature: [1]}", "FILE: kd.temperature: [1] is no interval of two numbers"),
        ("kd: {temperature: [1, .nan]}", "is no interval of two numbers"),
        ("kd: {temperature: [1, .inf]}", "is no interval of two numbers"),
        ("kd: {temperature: [a, b]}", "is no interval of two numbers"),
        ("kd: {temperature: [[1], 2]}", "is no interval of two numbers"),
        ("kd: {temperature: [true, 2]}", "is no interval of two numbers"),
        ("kd: {temperature: 4}", "FILE: kd.temperature: 4 is none of [low, high], {search: [low, high], scale: log}"),
        ("kd: {temperature: {from: 1}}", "is none of [low, high]"),
        ("kd: {temperature: [0, 8]}", "FILE: kd.temperature = 0.0: must be above 0"),
        ("kd: {kd_weight: [0, 8]}", "FILE: kd.kd_weight: an interval with scale log begins above 0, not at 0"),
        ("kd: {temperature: {search: [1, 2], scale: lin}}", "unknown scale 'lin' in FILE: kd.temperature; did you mean 'linear'?"),
        ("kd: {temperature: {choices: [1, hot]}}", "FILE: kd.temperature = 'hot': expected float, got str"),
        ("lfcc: {dim: [16.5, 32]}", "FILE: lfcc.dim = 16.5: expected int, got float"),
        ("kd: [temperature]", "FILE, line 1: kd: "),
        ("- kd", "FILE, line 1: a search space is a mapping"),
        ("kd: {", "FILE, line 1: "),
    ],
)  # fmt: skip
def test_wrong_space_is_refused_in_one_line(tmp_path: Path, space: str, problem: str) -> None:
    file = tmp_path / "space.yaml"
    file.write_text(space)
    with pytest.raises(KdbenchError) as caught:
        read_space(file, METHODS)
    assert problem.replace("FILE", str(file)) in str(caught.value)
    assert "\n" not in str(caught.value)


# Draws


def drawn(sampler: str, trials: int, key: str = "s/p/m/0", space: Any = SPACE) -> list[dict[str, Any]]:
    found = make_sampler(sampler, key, space)
    values: list[dict[str, Any]] = []
    for numbers in rounds(sampler, trials):
        asked = found.ask(numbers)
        values += asked
        found.tell([None if each["n"] == 3 else each["t"] for each in asked])
    return values


@pytest.mark.parametrize("sampler", ["random", "optuna"])
def test_draws_depend_on_the_key_alone_and_lie_in_the_space(sampler: str) -> None:
    if sampler == "optuna":
        pytest.importorskip("optuna")
    values = drawn(sampler, 12)
    assert values == drawn(sampler, 12) != drawn(sampler, 12, "s/p/m/1")
    assert len(values) == 11
    for each in values:
        assert 1 <= each["t"] <= 8
        assert each["n"] in (1, 2, 3, 4)
        assert each["c"] in ("a", "b")


def test_more_trials_and_more_hyperparameters_leave_random_draws_as_they_are() -> None:
    assert drawn("random", 20)[:7] == drawn("random", 8)
    alone = make_sampler("random", "s/p/m/0", {"t": SPACE["t"]}).ask([3])
    assert alone == [{"t": drawn("random", 4)[2]["t"]}]


def test_scales_are_drawn_log_uniformly_and_others_uniformly() -> None:
    space = {"log": Interval(0.01, 100, "log"), "linear": Interval(0.01, 100)}
    values = make_sampler("random", "key", space).ask(range(2000))
    decades = Counter(math.floor(math.log10(each["log"])) for each in values)
    assert all(400 < decades[decade] < 600 for decade in (-2, -1, 0, 1))
    assert 900 < sum(each["linear"] < 50 for each in values) < 1100


def test_optuna_looks_at_the_scores_after_every_round() -> None:
    pytest.importorskip("optuna")
    assert [len(numbers) for numbers in rounds("optuna", 11)] == [ROUND, ROUND, 2]
    assert rounds("random", 11) == [range(1, 11)]
    assert rounds("random", 1) == rounds("optuna", 1) == [range(1, 1)]
    space, means = {"x": Interval(0, 1)}, []
    for sign in (1, -1):
        found = make_sampler("optuna", "key", space)
        values: list[float] = []
        for numbers in rounds("optuna", 41):
            asked = [each["x"] for each in found.ask(numbers)]
            found.tell([sign * x for x in asked])
            values += asked
        means.append(sum(values[-20:]) / 20)
    assert means[0] > 0.7 > 0.3 > means[1]


def test_sampler_that_is_unknown_or_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KdbenchError, match="unknown sampler 'rand'; did you mean 'random'"):
        check_sampler("rand")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_sampler("random")
    with pytest.raises(KdbenchError, match=r"pip install 'kdbench\[optuna\]'"):
        check_sampler("optuna")


# The best


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ([80.0, 81.0, 82.0], 2),
        ([82.0, 82.0, 82.0], 0),
        ([80.0, 82.0, 82.0], 1),
        ([None, 70.0, None], 1),
        ([80.0, None, 70.0], 0),
        ([None, None, None], 0),
    ],
)
def test_best_is_the_highest_and_of_equal_ones_the_methods_own_then_the_first(
    scores: list[float | None], best: int
) -> None:
    trials = [Trial("kd", number, score=score) for number, score in enumerate(scores)]
    assert best_of(trials).number == best
