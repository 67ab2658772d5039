"""Run directories are joined without a silent choice, and tidied without a surprise."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from kdbench.matrix.cells import Plan, make_plan
from kdbench.matrix.request import Request
from kdbench.nets.tapped import hash_of_state
from kdbench.plugins.registry import catalog
from kdbench.store.folders import Store
from kdbench.store.result import CellResult, write_record
from kdbench.store.rows import load_results
from kdbench.suite.suite import load_suite
from tests.conftest import Said
from tests.records import cell_result, teacher_result

Kdbench = Callable[..., Said]
Fill = Callable[..., Path]


@pytest.fixture
def suite(write_suite: Callable[..., Path]) -> Path:
    return write_suite()


@pytest.fixture
def fill(tmp_path: Path, suite: Path) -> Fill:
    """Make a store with finished cells of some seeds, and the teachers, with weights of a number."""

    def make(name: str, seeds: tuple[int, ...], weights: int = 0, top1: float = 90.0, **options: Any) -> Path:
        checksum = checksum_of(weights)
        plan = plan_of(suite, seeds=seeds, **options)
        store = Store(tmp_path / name)
        store.check(writable=True)
        for teacher in plan.teachers:
            folder = store.teacher_folder(teacher)
            folder.configure(teacher.hash, teacher.config, {})
            write_record(folder.result, teacher_result(teacher, checksum=checksum))
            folder.weights.write_bytes(save(state_of(weights)))
        for cell in plan.cells:
            folder = store.cell(cell)
            folder.prepare(cell)
            write_record(folder.result, taught(cell_result(cell, top1), checksum))
            folder.log.write_text(name)
        return store.root

    return make


def state_of(weights: int) -> dict[str, torch.Tensor]:
    return {"weight": torch.tensor([weights])}


def checksum_of(weights: int) -> str:
    return hash_of_state(state_of(weights))


def plan_of(suite: Path, **options: Any) -> Plan:
    return make_plan(load_suite(str(suite)), Request(str(suite), **options), catalog())


def taught(result: CellResult, checksum: str) -> CellResult:
    return result.model_copy(update={"teacher": result.teacher.model_copy(update={"checksum": checksum})})


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# Merge


def test_merged_cells_are_byte_for_byte_those_of_their_stores(kdbench: Kdbench, fill: Fill, tmp_path: Path) -> None:
    a, b = fill("a", (0,)), fill("b", (1,))
    said = kdbench("merge", a, b, "--to", tmp_path / "c")
    assert (said.status, said.err) == (0, "")
    assert said.out == f"4 cells and 1 teacher in {tmp_path / 'c'}\n"
    assert everything(tmp_path / "c") == everything(b) | everything(a)
    assert set(load_results(tmp_path / "c")["state"]) == {"done"}


def test_the_same_cell_twice_is_no_conflict(kdbench: Kdbench, fill: Fill, tmp_path: Path) -> None:
    said = kdbench("merge", fill("a", (0, 1)), fill("b", (1,)), "--to", tmp_path / "c")
    assert said.status == 0
    assert "(2 in several of them with the same numbers)" in said.out
    assert (tmp_path / "c" / "tiny").exists()


def test_other_numbers_of_one_cell_are_reported_and_nothing_is_written(
    kdbench: Kdbench, fill: Fill, tmp_path: Path
) -> None:
    a, b = fill("a", (0,), top1=90.0), fill("b", (0,), top1=91.0)
    said = kdbench("merge", a, b, "--to", tmp_path / "c")
    assert (said.status, said.out) == (2, "")
    lines = said.err.splitlines()
    assert lines[0].startswith(
        "kdbench: the run directories contradict each other in 2 places, and nothing was written;"
    )
    assert f"has other numbers in {a} (top-1 90.0) than in {b} (top-1 91.0)" in lines[1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "tiny.yaml"]


@pytest.mark.parametrize("with_folders", [True, False])
def test_different_teachers_of_one_name_are_a_conflict(
    kdbench: Kdbench, fill: Fill, tmp_path: Path, with_folders: bool
) -> None:
    a, b = fill("a", (0,), weights=1), fill("b", (1,), weights=2)
    if not with_folders:  # the cells alone tell
        (teacher,) = (b / "teachers").iterdir()
        for path in [*teacher.iterdir()]:
            path.unlink()
        teacher.rmdir()
    said = kdbench("merge", a, b, "--to", tmp_path / "c")
    assert said.status == 2
    assert f"has the weights {checksum_of(1)[:10]} in {a}, and {checksum_of(2)[:10]} in {b}" in said.err
    assert not (tmp_path / "c").exists()
    kept = kdbench("merge", a, b, "--to", tmp_path / "c", "--keep-first")
    assert kept.status == 0
    assert "note: conflict: teacher cnn-" in kept.out
    assert set(load_results(tmp_path / "c")["teacher_checksum"]) == {checksum_of(1), checksum_of(2)}
    shown = kdbench("status", tmp_path / "tiny.yaml", "--out", tmp_path / "c", "--seeds", "0,1")
    assert (
        f"different teachers of one name: cells of cnn--vit were taught 1 by weights {checksum_of(1)[:10]} "
        f"and 1 by weights {checksum_of(2)[:10]}"
    ) in shown.out
    table = kdbench("table", tmp_path / "tiny.yaml", "--out", tmp_path / "c")
    assert "Different teachers of one name" in table.out


def test_a_teacher_whose_weights_were_altered_is_left_out_and_a_sound_one_taken(
    kdbench: Kdbench, fill: Fill, tmp_path: Path
) -> None:
    a, b = fill("a", (0,)), fill("b", (1,))
    (good,), (altered,) = a.glob("teachers/*/weights.safetensors"), b.glob("teachers/*/weights.safetensors")
    altered.write_bytes(save(state_of(1)))
    said = kdbench("merge", b, a, "--to", tmp_path / "c")
    line = "its checksum is not the one that its result records"
    assert (said.status, said.err) == (0, "")
    assert said.out == f"note: left out: {altered}: {line}\n4 cells and 1 teacher in {tmp_path / 'c'}\n"
    assert (tmp_path / "c" / good.relative_to(a)).read_bytes() == good.read_bytes()
    good.write_bytes(good.read_bytes()[:-1])
    said = kdbench("merge", b, a, "--to", tmp_path / "d")
    assert said.out.count(line) == 2
    assert f"4 cells and 0 teachers in {tmp_path / 'd'}" in said.out


def test_a_store_with_one_teacher_has_no_such_line(kdbench: Kdbench, fill: Fill, suite: Path) -> None:
    assert "different teachers" not in kdbench("status", suite, "--out", fill("a", (0, 1)), "--seeds", "0,1").out


def test_what_is_done_comes_before_what_failed(kdbench: Kdbench, fill: Fill, suite: Path, tmp_path: Path) -> None:
    a, b = fill("a", (0,)), fill("b", (0,))
    for cell in plan_of(suite, seeds=(0,)).cells:
        folder = Store(a).cell(cell)
        folder.result.unlink()
        folder.fail("exception", "why")
    assert kdbench("merge", a, b, "--to", tmp_path / "c").status == 0
    assert set(load_results(tmp_path / "c")["state"]) == {"done"}


def test_stores_of_other_formats_and_what_is_none_are_refused(kdbench: Kdbench, fill: Fill, tmp_path: Path) -> None:
    a, b = fill("a", (0,)), fill("b", (1,))
    for content, message in (
        ('{"format": 0}', "only run directories of format 1 can be merged"),
        ('{"format": 99}', "written by a newer kdbench"),
        ("{", "is damaged"),
    ):
        (b / "format.json").write_text(content)
        said = kdbench("merge", a, b, "--to", tmp_path / "c")
        assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
        assert message in said.err
    (b / "format.json").unlink()
    for wrong in (b, tmp_path / "nowhere", a, a / "format.json"):
        said = kdbench("merge", a, wrong, "--to", tmp_path / "c")
        assert (said.status, said.out, said.err.count("\n")) == (2, "", 1), wrong
    assert not (tmp_path / "c").exists()


def test_a_target_that_is_there_is_left_alone(kdbench: Kdbench, fill: Fill, tmp_path: Path) -> None:
    a, b = fill("a", (0,)), fill("b", (1,))
    before = everything(a)
    said = kdbench("merge", a, b, "--to", a)
    assert (said.status, said.err) == (2, f"kdbench: --to {a}: there is something already; name a new folder\n")
    assert everything(a) == before


def test_links_are_not_followed(kdbench: Kdbench, fill: Fill, suite: Path, tmp_path: Path) -> None:
    a, b = fill("a", (0,)), fill("b", (1,))
    secret = tmp_path / "secret"
    secret.write_text("mine")
    cell = Store(b).cell(plan_of(suite, seeds=(1,)).cells[0])
    for number, plant in enumerate((lambda path: path.symlink_to(secret), lambda path: path.symlink_to(a), os.mkfifo)):
        plant(cell.path / "planted")
        said = kdbench("merge", a, b, "--to", tmp_path / f"c{number}")
        assert said.status == 0
        assert f"note: left out: {cell.path / 'planted'}: is " in said.out
        assert "3 cells and 1 teacher" in said.out
        assert not (tmp_path / f"c{number}" / cell.path.relative_to(b)).exists()
        (cell.path / "planted").unlink()
    (b / "tiny" / "short" / "cnn--mlp").symlink_to(a / "tiny" / "short" / "cnn--vit")
    said = kdbench("merge", a, b, "--to", tmp_path / "c")
    assert said.status == 0
    assert "left out: " in said.out
    assert not (tmp_path / "c" / "tiny" / "short" / "cnn--mlp").exists()


def test_unfinished_cells_stay_where_they_are(kdbench: Kdbench, fill: Fill, suite: Path, tmp_path: Path) -> None:
    a, b = fill("a", (0,)), fill("b", (1,))
    cell = Store(b).cell(plan_of(suite, seeds=(1,)).cells[0])
    cell.result.unlink()
    cell.checkpoint(1).write_bytes(b"x")
    said = kdbench("merge", a, b, "--to", tmp_path / "c")
    assert said.out == f"3 cells and 1 teacher in {tmp_path / 'c'} (1 unfinished left out)\n"


# Prune and stale results


def make_older(store: Path, suite: Path, change: Callable[[dict[str, Any]], None], seed: int = 0) -> Path:
    """Store a cell as it would be if its configuration had been another one."""
    cell = plan_of(suite, seeds=(seed,)).cells[-1]
    config = json.loads(json.dumps(cell.config, default=list))
    change(config)
    path = Store(store).cell(cell).path.with_name(f"seed{seed}-{'0' * 10}")
    folder = Store(store).folder(path.relative_to(store).as_posix())
    folder.configure("0" * 10, config, {})
    write_record(folder.result, cell_result(cell).model_copy(update={"hash": "0" * 10}))
    return path


def of_version_zero(config: dict[str, Any]) -> None:
    config["method"]["version"] = 0


def test_stale_results_are_listed_with_what_differs(kdbench: Kdbench, fill: Fill, suite: Path) -> None:
    store = fill("a", (0,))
    path = make_older(store, suite, of_version_zero)
    said = kdbench("status", suite, "--out", store, "--stale")
    assert said.status == 0
    first, last = said.out.splitlines()
    assert first.startswith(f"{path.relative_to(store)}: method.version was 0, is ")
    assert last == "1 cell of older configurations; kdbench prune removes them"


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config.update(split="validation"),
        lambda config: config["dataset"].update(limit=20),
        lambda config: config["method"]["hyperparameters"].update(temperature=2.0),
        lambda config: config["teacher"].update(hash="1" * 10),
    ],
)
def test_what_was_asked_for_in_another_way_is_not_stale(
    kdbench: Kdbench, fill: Fill, suite: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    store = fill("a", (0,))
    path = make_older(store, suite, change)
    assert kdbench("status", suite, "--out", store, "--stale").out == "0 cells of older configurations\n"
    assert kdbench("prune", suite, "--out", store, "--yes").out == "nothing to delete\n"
    assert path.exists()


def test_prune_shows_first_and_deletes_only_with_yes(kdbench: Kdbench, fill: Fill, suite: Path) -> None:
    store = fill("a", (0, 1))
    stale = make_older(store, suite, of_version_zero)
    failed = Store(store).cell(plan_of(suite, seeds=(0,)).cells[0])
    failed.result.unlink()
    failed.fail("exception", "it broke")
    unused = store / "teachers" / f"cnn-{'f' * 10}"
    unused.mkdir()
    (unused / "weights.safetensors").write_bytes(b"1" * 1000)
    before = everything(store)
    said = kdbench("prune", suite, "--out", store)
    assert (said.status, everything(store)) == (0, before)
    lines = said.out.splitlines()
    assert [line.split()[0] for line in lines[:-1]] == [
        str(path.relative_to(store)) for path in (stale, failed.path, unused)
    ]
    assert "1,000 bytes  unused teacher" in lines[2]
    assert "failed: it broke" in lines[1]
    size = sum(
        len(content)
        for name, content in before.items()
        if str(store / name).startswith(tuple(map(str, (stale, failed.path, unused))))
    )
    assert lines[-1] == f"3 folders, {size:,} bytes would be deleted; --yes deletes them"
    assert kdbench("prune", suite, "--out", store, "--yes").status == 0
    gone = {name for name in before if name not in everything(store)}
    assert gone == {
        name for name in before if str(store / name).startswith(tuple(map(str, (stale, failed.path, unused))))
    }
    assert kdbench("prune", suite, "--out", store).out == "nothing to delete\n"


def test_prune_of_a_folder_that_is_not_there_says_so(kdbench: Kdbench, tmp_path: Path) -> None:
    said = kdbench("prune", "--out", tmp_path / "nowhere")
    assert said.status == 2
    assert said.err == f"kdbench: run directory {tmp_path / 'nowhere'} does not exist; kdbench run makes it\n"


def test_prune_finds_failed_cells_of_methods_that_are_not_here(
    kdbench: Kdbench, suite: Path, write_plugin: Callable[..., Path], tmp_path: Path
) -> None:
    plugin = str(write_plugin("frob_test"))
    request = Request(methods=("frob_test",), plugins=(plugin,))
    (cell, *_) = make_plan(load_suite(str(suite)), request, catalog([plugin])).cells
    store = Store(tmp_path / "runs")
    store.check(writable=True)
    store.cell(cell).prepare(cell)
    store.cell(cell).fail("exception", "it broke")
    for others in (("--methods", "kd"), ("--pairs", "cnn--mlp"), ("--seeds", "1")):
        assert kdbench("prune", suite, "--out", store.root, *others).out == "nothing to delete\n"
    assert kdbench("prune", suite, "--out", store.root, "--yes").out.splitlines()[0].endswith("failed: it broke")
    assert not store.cell(cell).path.exists()


def test_prune_removes_nothing_through_a_link(kdbench: Kdbench, fill: Fill, suite: Path, tmp_path: Path) -> None:
    store = fill("a", (0,))
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("mine")
    os.symlink(outside, store / "teachers" / f"cnn-{'f' * 10}")
    assert kdbench("prune", suite, "--out", store, "--yes").out == "nothing to delete\n"
    assert (outside / "file").exists()


def test_prune_keeps_what_others_use_and_teachers_that_the_suite_needs(
    kdbench: Kdbench, fill: Fill, suite: Path
) -> None:
    store = fill("a", (0,), protocol="seeds")  # another protocol, with all pairs
    before = everything(store)
    assert kdbench("prune", suite, "--out", store, "--yes").out == "nothing to delete\n"
    assert everything(store) == before


@pytest.mark.parametrize("verb", ["prune", "merge", "status"])
def test_a_file_in_the_place_of_a_store_is_refused(kdbench: Kdbench, suite: Path, tmp_path: Path, verb: str) -> None:
    words = {"merge": ["merge", suite, tmp_path, "--to", tmp_path / "c"]}.get(verb, [verb, suite, "--out", suite])
    said = kdbench(*words)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)


# The teacher of a pair


def test_a_run_behind_another_teacher_is_refused_or_accepted(
    kdbench: Kdbench, fill: Fill, suite: Path, tmp_path: Path
) -> None:
    store = fill("a", (0,))  # whose teacher has no weights that any training gives
    (teacher,) = (store / "teachers").iterdir()
    (teacher / "result.json").unlink()
    words = ("run", suite, "--out", store, "--methods", "kd,dist", "--on", "inprocess", "--workers", 1)
    said = kdbench(*words)
    assert said.status == 2
    assert said.err.count("\n") == 1
    assert (
        f"but behind 1 result of cnn--vit stand weights {checksum_of(0)[:10]} of that name; --accept-teacher"
        in said.err
    )
    states = load_results(store).set_index("method")["state"]
    assert states["dist"] == "planned"
    assert kdbench(*words).status == 2  # the teacher is there now, and still another one
    said = kdbench(*words, "--accept-teacher")
    assert said.status == 0
    assert "accepted by --accept-teacher" in said.out
    assert "accepted by --accept-teacher" in (teacher / "log.txt").read_text()
    assert load_results(store).set_index("method")["state"]["dist"] == "done"


def test_results_without_a_teacher_refuse_none(kdbench: Kdbench, fill: Fill, suite: Path) -> None:
    store = fill("a", (0,), methods=("scratch",))
    (teacher,) = (store / "teachers").iterdir()
    (teacher / "result.json").unlink()
    said = kdbench("run", suite, "--out", store, "--methods", "scratch,kd", "--on", "inprocess", "--workers", 1)
    assert (said.status, said.err) == (0, "")


# Tables without the plugin


def test_a_table_of_a_plugins_method_needs_no_plugin(
    kdbench: Kdbench, suite: Path, write_plugin: Callable[..., Path], tmp_path: Path
) -> None:
    plugin = write_plugin("specq_test")
    plan = make_plan(
        load_suite(str(suite)),
        Request(methods=("scratch", "kd", "specq_test"), plugins=(str(plugin),)),
        catalog([str(plugin)]),
    )
    store = Store(tmp_path / "runs")
    store.check(writable=True)
    for number, cell in enumerate(plan.cells):
        store.cell(cell).prepare(cell)
        write_record(store.cell(cell).result, cell_result(cell, 71.0 + number))
    for methods in ("specq_test", "specq*", "kd,specq_test"):
        said = kdbench("table", suite, "--out", store.root, "--methods", methods, "--format", "csv")
        assert (said.status, said.err) == (0, "")
        assert "73.0" in said.out
        assert ("72.0" in said.out) == ("kd" in methods)
        assert "71.0" not in said.out
    said = kdbench("table", suite, "--out", store.root, "--methods", "specq_tset")
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
