"""Accuracy by class: counted by hand, over the right pairs and seeds, in every format."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from kdbench.reporting.classes import build_class_table, class_scores
from kdbench.reporting.frame import collect
from kdbench.reporting.table import Cell, Table
from kdbench.reporting.text.render import WRITERS, render
from kdbench.store.classnames import ClassNames, read_classes, write_classes
from kdbench.store.reading import Outcomes
from tests.reporting import factory

P1, P2 = "swin_tiny--resnet18", "convnext_tiny--deit_tiny"
LABELS = np.array([0, 0, 1, 1, 1, 1, 2, 2])
NAMES = ("cat", "dog", "oak", "none of the images")


def write(root: Path, right: dict[tuple[str, str], list[list[int]]]) -> pd.DataFrame:
    """Predictions from 0 and 1 per image, for every pair and method one list per seed."""
    rows: list[dict[str, Any]] = []
    for (pair, method), seeds in right.items():
        for seed, correct in enumerate(seeds):
            path = f"toy/short/{pair}/{method}/seed{seed}-0"
            (root / path).mkdir(parents=True)
            np.savez(
                root / path / "predictions.npz",
                correct=np.array(correct, bool),
                probability=np.full(len(correct), 0.5, np.float32),
                predicted=np.zeros(len(correct), np.int32),
                label=LABELS[: len(correct)].astype(np.int32),
            )
            rows.append(factory.cell(pair, method, 100 * float(np.mean(correct)), seed, path=path))
    return pd.DataFrame(rows)


def small(root: Path) -> pd.DataFrame:
    write_classes(root, "digits", NAMES, [0, 0, 1, 1], ["animal", "plant"])
    return write(
        root,
        {
            (P1, "scratch"): [[0, 0, 0, 0, 0, 0, 1, 1]],
            (P1, "kd"): [[1, 0, 1, 1, 0, 0, 0, 0], [1, 1, 1, 1, 1, 1, 0, 0]],
            (P1, "ofa"): [[1, 1, 0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0, 1, 0]],
            (P2, "kd"): [[1, 1, 0, 0, 0, 1, 0, 0]],
            (P2, "ofa"): [[1, 1, 1, 1, 1, 1, 0, 0]],
        },
    )


def column(table: Table, title: str) -> dict[str, Cell]:
    place = [header.title for header in table.columns].index(title)
    return {header.title: row[place] for header, row in zip(table.rows, table.cells, strict=True)}


def test_means_are_over_seeds_then_over_pairs(tmp_path: Path) -> None:
    scores = class_scores(collect(small(tmp_path)), Outcomes(tmp_path))
    assert (scores.names, scores.images.tolist()) == (("cat", "dog", "oak"), [2, 4, 2])
    found = dict(zip(scores.methods, scores.accuracy.T.tolist(), strict=True))
    assert found["kd"] == [(75 + 100) / 2, (75 + 25) / 2, 0]
    assert found["ofa"] == [100, 50, (75 + 0) / 2]
    assert found["scratch"] == [0, 0, 100]  # over its own pair
    gains = dict(zip(scores.methods, scores.gains().T.tolist(), strict=True))
    assert gains["ofa"] == [(25 + 0) / 2, (-75 + 75) / 2, (75 + 0) / 2]
    assert gains["scratch"] == [0 - 50, 0 - 50, 100 - 0]  # of the seed that both have
    assert gains["kd"] == [0, 0, 0]


def test_classes_add_up_to_superclasses_and_to_the_measured_accuracy(tmp_path: Path) -> None:
    frame = small(tmp_path)
    results = collect(frame)
    above = class_scores(results, Outcomes(tmp_path), "superclass")
    assert (above.names, above.images.tolist()) == (("animal", "plant"), [6, 2])
    assert {seed: values.tolist() for seed, values in above.per_pair[P1, "kd"].items()} == {0: [50, 0], 1: [100, 0]}
    for by in ("class", "superclass"):
        scores = class_scores(results, Outcomes(tmp_path), by)
        for (pair, method), seeds in scores.per_pair.items():
            own = frame[(frame["pair"] == pair) & (frame["method"] == method)]
            assert np.stack([*seeds.values()]) @ scores.images / 8 == pytest.approx(own["top1"].to_numpy())


def test_the_table_groups_by_superclass_and_sums_up(tmp_path: Path) -> None:
    table = build_class_table(small(tmp_path), tmp_path)
    assert [(h.title, h.group) for h in table.rows[:3]] == [("cat", "animal"), ("dog", "animal"), ("oak", "plant")]
    ofa, kd = column(table, "OFA"), column(table, "KD")
    assert (ofa["average"].value, ofa["lowest"].value) == (pytest.approx(187.5 / 3), 37.5)
    assert [(ofa[name].best, kd[name].best) for name in ("cat", "dog", "oak")] == [(1, 2), (1, 1), (1, 2)]
    assert column(table, "From scratch")["oak"].best == 0
    assert any("From scratch (1 of 2)" in note.text for note in table.notes)
    assert any("standard error of 35.4 points" in note.text for note in table.notes)  # 50 / sqrt(2)


def test_gains_say_what_is_lost_and_the_worst_come_first(tmp_path: Path) -> None:
    table = build_class_table(small(tmp_path), tmp_path, show="gain", worst=2)
    ofa = column(table, "OFA")
    assert list(ofa)[:2] == ["dog (animal)", "cat (animal)"]
    assert (ofa["dog (animal)"].value, ofa["largest gain"].value) == (0.0, 37.5)
    assert ofa["worse by more than 0.2"].coverage == (0, 3)
    assert column(table, "From scratch")["worse by more than 0.2"].coverage == (2, 3)
    assert column(table, "KD (%)")["dog (animal)"].kind == "value"


def test_records_hold_every_pair_with_its_spread(tmp_path: Path) -> None:
    rows = pd.read_csv(io.StringIO(render(build_class_table(small(tmp_path), tmp_path), "csv")))
    assert len(rows) == 5 * 3
    row = rows[(rows["pair"] == P1) & (rows["method"] == "kd") & (rows["name"] == "dog")].iloc[0]
    assert (row["accuracy"], row["n"], row["images"], row["superclass"]) == (75.0, 2, 4, "animal")
    assert row["sd"] == pytest.approx(np.std([50, 100], ddof=1))


@pytest.mark.parametrize("format", WRITERS)
def test_without_any_predictions_it_is_said_in_one_line(tmp_path: Path, format: str) -> None:
    frame = small(tmp_path)
    for path in frame["path"]:
        (tmp_path / path / "predictions.npz").write_bytes(b"damaged")
    text = render(build_class_table(frame, tmp_path), format)
    assert format == "csv" or sum("predictions that can be read" in line for line in text.splitlines()) == 1


def test_cells_of_other_images_are_left_out_and_counted(tmp_path: Path) -> None:
    frame = pd.concat([small(tmp_path), write(tmp_path, {(P1, "dkd"): [[1, 1, 1, 1]]})], ignore_index=True)
    table = build_class_table(frame, tmp_path)
    assert "DKD" not in [header.title for header in table.columns]
    assert any(note.text.startswith("1 cells were measured on other images") for note in table.notes)


def test_classes_without_names_are_numbered_and_superclasses_refused_in_words(tmp_path: Path) -> None:
    frame = write(tmp_path, {(P1, "kd"): [[1, 0, 1, 1, 0, 0, 0, 0]]})
    assert [h.title for h in build_class_table(frame, tmp_path).rows[:3]] == ["0", "1", "2"]
    assert build_class_table(frame, tmp_path, "superclass").message.startswith("No superclasses are known")
    assert build_class_table(pd.DataFrame(), tmp_path).message.startswith("No results yet")


def test_files_are_read_once_and_labels_are_one_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = small(tmp_path)
    outcomes = Outcomes(tmp_path)
    class_scores(collect(frame), outcomes)
    monkeypatch.setattr("kdbench.store.reading.read_predictions", None)
    class_scores(collect(frame), outcomes, "superclass")
    labels = [outcomes.labels(path) for path in frame["path"]]
    assert all(one is labels[0] for one in labels)
    assert outcomes.correct(frame["path"][0]).tolist() == [False] * 6 + [True] * 2


@pytest.mark.parametrize("format", WRITERS)
def test_every_format_shows_odd_class_names(tmp_path: Path, format: str) -> None:
    write_classes(tmp_path, "digits", ["a|b_c", "50% <x>", "{ü} $"], None, None)
    frame = write(tmp_path, {(P1, "kd"): [[1] * 8], (P1, "ofa"): [[0] * 8]})
    assert "nan" not in render(build_class_table(frame, tmp_path, show="gain"), format).lower()


def test_names_are_written_once_and_damage_is_no_error(tmp_path: Path) -> None:
    write_classes(tmp_path, "cifar100", ["a", "b"], [1, 0], ["x", "y"])
    path = tmp_path / "datasets" / "cifar100.json"
    assert read_classes(tmp_path, "cifar100") == ClassNames(("a", "b"), (1, 0), ("x", "y"))
    before = path.stat().st_mtime_ns
    write_classes(tmp_path, "cifar100", ["a", "b"], [1, 0], ["x", "y"])
    assert path.stat().st_mtime_ns == before
    path.write_text(path.read_text().replace('"b"', '"c"'))
    assert read_classes(tmp_path, "cifar100") is None
    write_classes(tmp_path, "digits", None)
    assert read_classes(tmp_path, "digits") is None
