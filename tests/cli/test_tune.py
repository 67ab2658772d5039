"""``kdbench tune``: equal budgets, the choice, the file, what is refused; and a search that is killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from kdbench.cli import tune
from kdbench.cli.options import plan_of
from kdbench.cli.run import Run
from kdbench.matrix.cells import Cell
from kdbench.matrix.request import Request
from kdbench.store.files import read_json
from kdbench.store.folders import Store
from kdbench.store.result import write_record
from kdbench.store.rows import load_results
from tests.conftest import Said
from tests.records import cell_result

Kdbench = Callable[..., Said]
GUARD = 600.0


@pytest.fixture
def suite(write_suite: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_suite()


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Instead of training, cells get the top-1 that ``top1`` says; None for one that fails. ``requests`` are those of runs."""
    made: dict[str, Any] = {"top1": lambda cell: 50.0, "requests": []}

    def train(request: Request, together: bool = False) -> Run:
        made["requests"].append(request)
        plan, store = plan_of(request), Store(request.out)
        store.check(writable=True)
        done, failed = [], []
        for cell in plan.cells:
            store.cell(cell).prepare(cell)
            top1 = made["top1"](cell)
            if top1 is None:
                store.cell(cell).fail("diverged", "why")
                failed.append((cell, "why"))
            elif store.cell(cell).state() != "done":
                write_record(store.cell(cell).result, cell_result(cell, top1))
                done.append(cell)
        return Run(plan, tuple(done), tuple(failed), 1.0)

    monkeypatch.setattr(tune, "train", train)
    return made


def high(cell: Cell) -> float:
    """KD's accuracy rises with its temperature, and is higher on one pair than on the other."""
    return 50.0 + cell.hyperparameters.get("temperature", 0.0) + (5.0 if cell.pair == "cnn--mlp" else 0.0)


def best(path: str = "best.yaml") -> dict[str, Any]:
    return yaml.safe_load(Path(path).read_text())


def test_every_method_has_the_same_number_of_trials_in_one_run_with_one_teacher(
    suite: Path, trained: dict[str, Any], kdbench: Kdbench
) -> None:
    trained["top1"] = high
    said = kdbench("tune", suite, "--methods", "kd,ofa", "--trials", 4, "--pairs", "cnn--*", "--seeds", "0,1")
    assert said.status == 0, said.err
    (request,) = trained["requests"]
    plan = plan_of(request)
    rows = list(dict.fromkeys(cell.method for cell in plan.cells))
    assert rows == ["kd", "kd-trial1", "kd-trial2", "kd-trial3", "ofa", "ofa-trial1", "ofa-trial2", "ofa-trial3"]
    assert {cell.split for cell in plan.cells} == {"validation"}
    assert len(plan.cohorts()) == 2  # one for each seed: both pairs share recipe and teacher
    found = best()
    frame = load_results("runs", "tiny")
    means = frame[frame["method"].str.startswith("kd")].groupby("method")["top1"].mean()
    number = means.idxmax().removeprefix("kd-trial")
    assert found["top1"]["kd"] == {"own": means["kd"], "best": means.max()}
    variant = next(cell for cell in plan.cells if cell.method == f"kd-trial{number}")
    assert found["settings"]["kd"] == {name: variant.hyperparameters[name] for name in ("temperature", "kd_weight")}
    assert (found["trials"], found["split"], found["sampler"]) == (4, "validation", "random")
    assert found["space"]["kd"]["temperature"] == {"search": [1, 8], "scale": "log"}
    (line,) = [line for line in said.out.splitlines() if line.startswith("kd ") and line.endswith("best")]
    assert line.split()[1] == number


def test_own_values_win_a_tie_and_a_failed_trial_is_never_best(
    suite: Path, trained: dict[str, Any], kdbench: Kdbench
) -> None:
    assert kdbench("tune", suite, "--methods", "kd", "--trials", 3).status == 0
    assert best()["settings"] == {"kd": {}}
    trained["top1"] = lambda cell: {"kd": 10.0, "kd-trial1": None}.get(cell.method, 9.0)
    said = kdbench("tune", suite, "--methods", "kd", "--trials", 3, "--out", "other")
    assert said.status == 1
    assert best()["settings"] == {"kd": {}}
    assert best()["top1"]["kd"] == {"own": 10.0, "best": 10.0}
    assert "kd-trial1/seed0: failed" in said.out


def test_method_with_nothing_to_search_says_so_and_keeps_its_own_values(
    suite: Path, trained: dict[str, Any], kdbench: Kdbench
) -> None:
    said = kdbench("tune", suite, "--methods", "scratch,kd", "--trials", 2)
    assert said.status == 0
    assert "note: scratch has no hyper-parameters; its own values are kept" in said.out
    assert best()["settings"]["scratch"] == {}
    fixed = ("--set", "kd.temperature=4", "--set", "kd.kd_weight=1")
    said = kdbench("tune", suite, "--methods", "kd", "--trials", 2, *fixed, "--to", "fixed.yaml")
    assert "note: kd declares no range to search; its own values are kept" in said.out


def test_what_is_set_is_not_searched_and_a_space_file_says_which_methods(
    suite: Path, trained: dict[str, Any], kdbench: Kdbench
) -> None:
    assert kdbench("tune", suite, "--methods", "kd", "--trials", 3, "--set", "kd.temperature=4").status == 0
    (request,) = trained["requests"]
    assert {cell.hyperparameters["temperature"] for cell in plan_of(request).cells} == {4.0}
    Path("space.yaml").write_text("kd: {temperature: {choices: [3.0]}}")
    assert kdbench("tune", suite, "--trials", 2, "--space", "space.yaml", "--to", "own.yaml").status == 0
    cells = {cell.method: cell for cell in plan_of(trained["requests"][-1]).cells}
    assert list(cells) == ["kd", "kd-trial1"]
    assert cells["kd-trial1"].hyperparameters == {**cells["kd"].hyperparameters, "temperature": 3.0}


def test_optuna_trains_round_after_round_and_draws_the_same_again(
    suite: Path, trained: dict[str, Any], kdbench: Kdbench
) -> None:
    pytest.importorskip("optuna")
    trained["top1"] = high
    words = ("tune", suite, "--methods", "kd", "--trials", 10, "--sampler", "optuna", "--pairs", "cnn--vit")
    assert kdbench(*words).status == 0
    assert [len(request.variants) for request in trained["requests"]] == [4, 8, 9]
    first = Path("best.yaml").read_bytes()
    assert kdbench(*words).status == 0
    assert Path("best.yaml").read_bytes() == first
    assert len(load_results("runs")) == 10


WRONG = [
    ("--trials 0", "--trials: '0' is not a number of trials (1 or more)"),
    ("--trials -1", "--trials: '-1' is not a number of trials (1 or more)"),
    ("", "Missing option '--trials'"),
    ("--trials 2 --methods kdd", "unknown method 'kdd'; did you mean 'kd'?"),
    ("--trials 2 --space bad.yaml", "unknown method 'kdd' in bad.yaml; did you mean 'kd'?"),
    ("--trials 2 --space empty.yaml", "empty.yaml: kd.temperature: the interval from 2 to 1 is empty"),
    ("--trials 2 --space no.yaml", "no.yaml: cannot be read"),
    ("--trials 2 --split test", "unknown --split 'test'; valid: validation"),
    ("--trials 2 --sampler rando", "unknown --sampler 'rando'; did you mean 'random'?"),
    ("--trials 2 --to no/where.yaml", "--to no/where.yaml cannot be written"),
    ("--trials 2 --to .", "--to . cannot be written"),
    ("--trials 2 --search-seed x", "--search-seed: 'x' is not a whole number"),
    ("--trials 2 --device moon", "--device moon: expected cpu, cuda (all"),
]


@pytest.mark.parametrize(("words", "problem"), WRONG)
def test_wrong_search_is_refused_in_one_line_and_writes_nothing(
    suite: Path, kdbench: Kdbench, words: str, problem: str
) -> None:
    Path("bad.yaml").write_text("kdd: {temperature: [1, 2]}")
    Path("empty.yaml").write_text("kd: {temperature: [2, 1]}")
    before = {*Path().iterdir()}
    said = kdbench("tune", suite, *words.split())
    assert said.status == 2
    assert problem in said.err
    assert len(said.err.splitlines()) == 1
    assert {*Path().iterdir()} == before


def test_variant_is_not_tuned(write_suite: Callable[..., Path], kdbench: Kdbench) -> None:
    path = write_suite(variants={"hot": {"method": "kd", "set": {"temperature": 4}}})
    said = kdbench("tune", path, "--methods", "hot", "--trials", 2)
    assert (said.status, said.err) == (2, "kdbench: hot is a variant of kd; a search is of methods: --methods kd\n")


# The file


@pytest.fixture
def found(suite: Path, trained: dict[str, Any], kdbench: Kdbench) -> Path:
    """A suite of which KD and OFA were searched."""
    trained["top1"] = high
    assert kdbench("tune", suite, "--methods", "scratch,kd,ofa", "--trials", 3).status == 0
    return suite


def cells(suite: Path, **choice: Any) -> dict[str, Cell]:
    return {
        cell.method: cell for cell in plan_of(Request(str(suite), methods=("scratch", "kd", "ofa"), **choice)).cells
    }


@pytest.mark.parametrize(
    ("words", "differs"),
    [
        ("--trials 2", "(trials was 3, is 2)"),
        ("--trials 3 --seeds 1", "(seeds was [0], is [1])"),
        ("--trials 3 --pairs cnn--mlp", "(pairs was ['cnn--vit'], is ['cnn--mlp'])"),
        ("--trials 3 --protocol long", "(protocol was short, is long"),
        ("--trials 3 --search-seed 1", "(search_seed was 0, is 1)"),
        ("--trials 3 --methods kd", "(methods was ['kd', 'ofa', 'scratch'], is ['kd']; "),
        ("--trials 3 --space space.yaml", "(space.kd.temperature.search was [1, 8], is [2.0, 3.0]; "),
    ],
)
def test_another_search_or_one_of_more_trials_is_not_replaced(
    found: Path, trained: dict[str, Any], kdbench: Kdbench, words: str, differs: str
) -> None:
    Path("space.yaml").write_text("kd: {temperature: [2, 3]}")
    before, ran = Path("best.yaml").read_bytes(), len(trained["requests"])
    said = kdbench("tune", found, "--methods", "scratch,kd,ofa", *words.split())
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert f"--to best.yaml holds another search {differs}" in said.err
    assert said.err.endswith("; name another file with --to, or remove it\n")
    assert (Path("best.yaml").read_bytes(), len(trained["requests"])) == (before, ran)


def test_a_file_that_no_search_wrote_is_not_replaced(found: Path, trained: dict[str, Any], kdbench: Kdbench) -> None:
    for content in ("mine", Path("best.yaml").read_text().replace("trials: 3", "trials: 2")):
        Path("mine.yaml").write_text(content)
        said = kdbench("tune", found, "--methods", "kd", "--trials", 2, "--to", "mine.yaml")
        assert (said.status, said.err.count("\n"), len(trained["requests"])) == (2, 1, 1)
        assert said.err.startswith("kdbench: --to mine.yaml is there and is no file of this search (")
        assert Path("mine.yaml").read_text() == content


def test_the_same_search_with_more_trials_replaces_its_file(found: Path, kdbench: Kdbench) -> None:
    for trials in (3, 4):
        assert kdbench("tune", found, "--methods", "scratch,kd,ofa", "--trials", trials).status == 0
        assert best()["trials"] == trials


def test_settings_are_used_between_what_was_published_and_what_is_set(found: Path) -> None:
    values = best()["settings"]["kd"]
    own, tuned = cells(found), cells(found, settings="best.yaml")
    assert tuned["kd"].hyperparameters == {**own["kd"].hyperparameters, **values}
    origin = "tuned: 3 trials each on held-out images"
    assert tuned["kd"].settings["temperature"] == (values["temperature"], origin)
    assert tuned["kd"].facts["settings"].endswith(f"({origin})")
    assert (tuned["scratch"].hash, tuned["scratch"].facts["settings"]) == (own["scratch"].hash, "")
    both = cells(found, settings="best.yaml", set={"kd": {"temperature": 1.5}})["kd"]
    assert both.settings["temperature"] == (1.5, "--set kd")
    assert both.hyperparameters["kd_weight"] == values["kd_weight"]
    (elsewhere,) = {cell.facts["settings"] for cell in [cells(found, settings="best.yaml", protocol="long")["kd"]]}
    assert "held-out images, protocol short)" in elsewhere
    set_so = cells(found, set={"kd": values})["kd"]
    assert set_so.hash == tuned["kd"].hash, "the identity holds values, not where they come from"


def test_caption_says_the_budget_also_where_a_methods_own_values_won(
    found: Path, trained: dict[str, Any], kdbench: Kdbench
) -> None:
    trained["top1"] = lambda cell: 40.0 if "trial" in cell.method else 60.0
    assert kdbench("tune", found, "--methods", "kd", "--trials", 2, "--out", "again", "--to", "own.yaml").status == 0
    tune.train(Request(str(found), methods=("scratch", "kd"), out="final", settings="own.yaml"))
    said = kdbench("table", found, "--out", "final", "--settings", "own.yaml")
    assert "KD (its own values (tuned: 2 trials each on held-out images))" in " ".join(said.out.split())
    said = kdbench("show", "kd", "--suite", found, "--settings", "best.yaml")
    assert "tuned: 3 trials each on held-out images" in said.out


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda text: text[: text.index("checksum:")], "best.yaml, line 1: checksum is missing"),
        (
            lambda text: text.replace("temperature: ", "temperature: 1", 1),
            "best.yaml is damaged, or was changed by hand",
        ),
        (lambda text: text.replace("trials: 3", "trials: 300"), "best.yaml is damaged, or was changed by hand"),
        (lambda text: text.replace("suite: tiny", "suite: tidy"), "best.yaml is damaged, or was changed by hand"),
        (lambda text: text.replace("trials: 3", "trials: many"), "best.yaml, line "),
        (lambda text: "kd: {temperature: 2}", "best.yaml, line "),
        (lambda text: "[", "best.yaml, line "),
        (lambda text: "", "best.yaml, line 1: a file of kdbench tune is a mapping"),
    ],
)
def test_damaged_settings_are_refused_in_one_line_and_nothing_is_written(
    found: Path, kdbench: Kdbench, change: Callable[[str], str], problem: str
) -> None:
    text = Path("best.yaml").read_text()
    Path("best.yaml").write_text(change(text))
    said = kdbench("run", found, "--settings", "best.yaml", "--out", "fresh")
    assert said.status == 2
    assert problem in said.err
    assert len(said.err.splitlines()) == 1
    assert not Path("fresh").exists()


def test_settings_of_another_suite_are_refused(found: Path, kdbench: Kdbench) -> None:
    said = kdbench("run", "digits", "--settings", "best.yaml", "--out", "fresh")
    assert (said.status, said.err) == (2, "kdbench: --settings best.yaml is of suite tiny, not of digits\n")
    said = kdbench("run", found, "--settings", "none.yaml", "--out", "fresh")
    assert (said.status, said.err) == (2, "kdbench: --settings none.yaml: cannot be read (No such file or directory)\n")
    assert not Path("fresh").exists()


# In processes of their own


@pytest.mark.slow
def test_killed_search_goes_on_and_finds_the_same(suite: Path, kdbench: Kdbench) -> None:
    words = ["tune", str(suite), "--methods", "kd", "--trials", "2", "--device", "cpu", "--on", "inprocess", "--solo"]
    command = [sys.executable, "-m", "kdbench", *words, "--out", "killed", "--to", "killed.yaml"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    until = time.monotonic() + GUARD
    while not (done := [*Path("killed").glob("tiny/*/*/*/*/result.json")]):
        assert process.poll() is None, "it ended before it was killed"
        assert time.monotonic() < until
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not Path("killed.yaml").exists()
    kept = {path: path.read_bytes() for path in done}
    assert len(kept) == 1
    said = kdbench(*words, "--out", "killed", "--to", "killed.yaml")
    assert said.status == 0, said.err
    assert all(path.read_bytes() == content for path, content in kept.items())
    assert kdbench(*words, "--out", "whole", "--to", "whole.yaml").status == 0
    assert Path("killed.yaml").read_bytes() == Path("whole.yaml").read_bytes()
    final = kdbench(
        *("run", suite, "--methods", "kd", "--settings", "killed.yaml", "--out", "final"),
        *("--device", "cpu", "--on", "inprocess"),
    )
    assert final.status == 0
    (result,) = Path("final").glob("tiny/*/*/kd/*/result.json")
    search = read_json(result)["provenance"]["search"]
    assert (search["trials"], search["split"]) == (2, "validation")
    assert set(search["space"]) == {"temperature", "kd_weight"}
