"""Results that are handed in: made from a run directory, read back, and every kind of change named with its line."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import kdbench
from kdbench.cli.parser import main
from kdbench.matrix.identity import config_hash
from kdbench.plugins.metrics import BUILT_IN
from kdbench.store.files import write_json
from kdbench.store.problems import problems_of
from kdbench.store.result import CellMetrics, Failure, write_record
from kdbench.store.rows import load_results
from kdbench.store.submission import (
    line_of,
    make_submission,
    read_submission,
    result_hash,
    schema,
    write_submission,
)
from tests.records import cell_result

PAIR, IMAGES = "swin_tiny--resnet18", 200


def _config(method: str) -> dict[str, Any]:
    return {
        "suite": "toy",
        "protocol": {"name": "short", "version": 1},
        "split": "test",
        "dataset": {"name": "digits"},
        "recipe": {"name": "token", "epochs": 30, "lr": 1e-05},
        "method": {"name": method, "hyperparameters": {"temperature": 4.0}},
    }


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """KD and OFA with two seeds each, and a cell of DKD that failed."""
    root = tmp_path_factory.mktemp("runs")
    (root / "format.json").write_text('{"format": 1}')
    right = {("kd", 0): 160, ("kd", 1): 164, ("ofa", 0): 170, ("ofa", 1): 171, ("dkd", 0): 0}
    for (method, seed), count in right.items():
        config = _config(method)
        hash = config_hash(config)
        folder = root / f"toy/short/{PAIR}/{method}/seed{seed}-{hash}"
        folder.mkdir(parents=True)
        write_json(folder / "config.json", {"hash": hash, "config": config, "facts": {"plugin": "/home/me/x.py"}})
        if not count:
            write_record(
                folder / "failed.json", Failure(kind="exception", reason="in /home/me/x.py", log="/home/me/log")
            )
            continue
        correct = np.arange(IMAGES) < count
        label = np.arange(IMAGES, dtype=np.int32) % 10
        np.savez(folder / "predictions.npz", correct=correct, probability=np.full(IMAGES, 0.5, np.float32), label=label)
        scores: dict[str, float | None] = {**dict.fromkeys(BUILT_IN, 1.0), "top1": count / IMAGES * 100, "top5": 99.5}
        cell: Any = SimpleNamespace(hash=hash, teacher=SimpleNamespace(name="swin_tiny", hash="t"))
        metrics = CellMetrics(last=scores, best=scores, best_epoch=3)
        write_record(folder / "result.json", cell_result(cell).model_copy(update={"metrics": metrics}))
    return root


@pytest.fixture(scope="module")
def sound(store: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("submitted") / "toy.json"
    write_submission(path, make_submission(store, "toy", "short", "test")[0])
    return path


def test_the_committed_schema_is_current() -> None:
    """Made with ``python -m kdbench.store.submission --schema > docs/submission.schema.json``."""
    committed = Path(kdbench.__file__).parents[1] / "docs" / "submission.schema.json"
    assert committed.read_text() == schema()


def test_a_submission_holds_means_and_hashes_and_is_read_like_a_store(
    store: Path, sound: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submission, text = read_submission(sound)
    made, damaged = make_submission(store, "toy", "short", "test")
    assert (submission, damaged) == (made, [])
    assert {(mean.method, mean.seeds, mean.metrics["top1"]) for mean in made.means} == {
        ("kd", (0, 1), 81.0),
        ("ofa", (0, 1), 85.25),
    }
    assert "/home/me" not in text
    assert problems_of(submission, None, store) == []
    assert main(["check", str(sound), "--out", str(store)]) == 0
    said = capsys.readouterr().out
    assert "no problem in 5 cells of suite toy, protocol short" in said
    assert "note: 1 cell failed" in said
    columns = ["method", "seed", "state", "top1", "path"]
    own, theirs = (load_results(out, "toy")[columns].fillna(0).values.tolist() for out in (store, sound))
    assert sorted(own) == sorted(theirs)


Change = Callable[[dict[str, Any]], Any]


def _set(*place: Any, to: Any) -> Change:
    def change(content: dict[str, Any]) -> None:
        at: Any = content
        for step in place[:-1]:
            at = at[step]
        at[place[-1]] = to

    return change


def _renamed(content: dict[str, Any]) -> None:
    content["cells"][1]["path"] = content["cells"][1]["path"].replace("toy/short", "toy/long")


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [
        (_set("cells", 1, "result", "metrics", "last", "nll", to=0.5), '"result": {', "a value in it was changed"),
        (_set("cells", 1, "result", "metrics", "last", "nll", to=0.5), '"nll": 1.0', "the mean of the cells is 0.75"),
        (_set("cells", 1, "result", "metrics", "last", "top1", to=80.3), '"top1": 80.3', "no number of 200 images is 80.3"),
        (_set("means", 0, "metrics", "top1", to=82.0), '"top1": 82.0', "the mean of the cells is 81.0"),
        (_set("means", 0, "seeds", to=[0, 1, 2]), '"seeds": [', "the cells have the seeds 0, 1"),
        (_set("cells", 1, "predictions_sha256", to=None), '"predictions_sha256": null', "is missing"),
        (_set("cells", 1, "result_sha256", to=None), '"result_sha256": null', "is missing"),
        (_set("cells", 1, "result", "metrics", "last", "top5", to=1.0), '"top5": 1.0', "below top-1"),
        (_set("cells", 1, "result", "metrics", "best_epoch", to=31), '"best_epoch": 31', "epoch 31 of 30"),
        (_renamed, '/long/', "a cell of protocol long among those of short"),
        (_set("cells", 1, "config", "protocol", "name", to="long"), '"protocol": {', "of protocol long among"),
        (_set("cells", 1, "config", "recipe", "epochs", to=31), '"config": {', "the configuration has hash"),
        (_set("cells", 1, "path", to="../../etc/passwd"), "../../etc/passwd", "is no path of a cell"),
        (_set("cells", 1, "result", "metrics", "last", "top1", to=101.0), '"last": {', "top1 of 101 %"),
        (_set("cells", 1, "images", to="200"), '"images": "200"', "valid integer"),
        (_set("cells", 1, "reslt", to=1), '"reslt": 1', "Extra inputs are not permitted"),
        (_set("suite", to="../evil.yaml"), '"suite": "../evil.yaml"', "should match pattern"),
        (lambda content: content["cells"].append(content["cells"][1]), '/seed0-', "the cell stands twice"),
        (lambda content: content["means"].pop(), '"means": [', "is missing"),
    ],
)  # fmt: skip
def test_what_was_changed_is_named_with_its_line(
    sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], change: Change, line: str, said: str
) -> None:
    content = json.loads(sound.read_text())
    change(content)
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content, indent=1))
    assert main(["check", str(path)]) == 1
    problems = [one for one in capsys.readouterr().out.splitlines() if one.startswith(f"{path}:") and said in one]
    assert len(problems) == 1
    number = int(problems[0].removeprefix(f"{path}:").partition(":")[0])
    assert line in path.read_text().splitlines()[number - 1]


def test_identities_are_compared_with_the_suite_of_today(sound: Path) -> None:
    submission, text = read_submission(sound)
    today = _config("kd")
    tuned = {**today, "method": {"name": "kd", "hyperparameters": {"temperature": 1.0}}}
    longer = {**today, "recipe": {**today["recipe"], "epochs": 60}}
    assert problems_of(submission, {(PAIR, "kd"): [tuned]}) == []  # another choice, which tables disclose
    found = problems_of(submission, {(PAIR, "kd"): [longer]})
    assert [what for _, what in found] == ["not the suite's configuration of today: recipe.epochs was 30, is 60"] * 2
    assert text.splitlines()[line_of(text, found[0][0]) - 1] == '   "config": {'


def test_a_store_beside_it_shows_what_hashes_alone_cannot(
    store: Path, sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads(sound.read_text())
    content["cells"][1]["predictions_sha256"] = "0" * 64
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(content))
    assert main(["check", str(path)]) == 0
    assert main(["check", str(path), "--out", str(store)]) == 1
    assert f"{path}:1: the predictions in the run directory have another hash" in capsys.readouterr().out


DEEP = '{"version": 1, "cells": ' + "[" * 100_000
HOSTILE = [
    b"",
    b"{",
    b"[]",
    b"\xff\xfe",
    b"null",
    DEEP.encode(),
    b'{"means": NaN}',
    b'{"kdbench": "\\u001b[2J\\ud800"}',
]


@pytest.mark.parametrize("content", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_submission_is_refused_in_lines_without_a_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    assert main(["check", str(path)]) in (1, 2)
    said = "".join(capsys.readouterr())
    assert str(path) in said
    assert "\x1b" not in said


def test_links_and_pipes_are_not_opened(sound: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "link.json").symlink_to(sound)
    os.mkfifo(tmp_path / "pipe.json")
    for name in ("link.json", "pipe.json", "none.json"):
        assert main(["check", str(tmp_path / name)]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_submit_says_what_is_missing_and_refuses_another_ending(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "digits", "--to", str(tmp_path / "x.csv"), "--out", str(tmp_path)]) == 2
    assert "expected a name that ends with .json" in capsys.readouterr().err
    assert main(["submit", "digits", "--to", str(tmp_path / "x.json"), "--out", str(tmp_path)]) == 1
    assert "holds no finished cell of suite digits" in capsys.readouterr().err


def test_the_committed_submission_is_sound_whatever_fields_results_have_got_since() -> None:
    path = Path(__file__).parents[2] / "results" / "measured" / "cifar100-tiny-cpu" / "submission.json"
    for cell in read_submission(path)[0].cells:
        assert cell.result is not None
        assert cell.result_sha256 == result_hash(cell.result)
