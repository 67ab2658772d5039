"""Cut, random and hostile files through every loader: refused in one line or passed over, never an error of Python's, never run."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kdbench.engine.checkpoint import Position, load_checkpoint, load_checkpoints, save_checkpoint
from kdbench.errors import KdbenchError
from kdbench.reporting.figures import COLUMNS, load_published
from kdbench.store.claims import read_holder
from kdbench.store.files import DamagedFileError, read_json, write_bytes, write_json
from kdbench.store.folders import CellFolder
from kdbench.store.layout import CLAIM_FILE, Folder
from kdbench.store.reading import read_history, read_predictions
from kdbench.store.rows import load_results
from kdbench.suite.suite import Suite, load_suite
from tests.conftest import tiny

quick = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
STATE = {"epoch": 3, "student": {"w": torch.arange(50.0)}, "history": [{"loss": 1.5}], "stream": ["x", 2, None]}


class Runs:
    """Leaves a trace when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("tenth", range(10))
def test_checkpoint_cut_at_any_tenth_is_told_removed_and_the_one_before_is_used(tmp_path: Path, tenth: int) -> None:
    folder = CellFolder(tmp_path)
    for position in (Position(3, 0), Position(3, 7)):
        save_checkpoint(folder.checkpoint(*position), STATE)
    path = folder.checkpoint(3, 7)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * tenth // 10])
    with pytest.raises(DamagedFileError, match="is damaged"):
        load_checkpoint(path)
    assert list(load_checkpoints(folder)) == [(3, 0)]
    assert not path.exists()
    assert "checkpoint ignored" in folder.log.read_text()


@quick
@given(raw=st.binary(max_size=400), place=st.integers(0, 10_000), flip=st.integers(1, 255))
def test_random_bytes_are_no_checkpoint_and_a_changed_byte_is_noticed(
    tmp_path: Path, raw: bytes, place: int, flip: int
) -> None:
    path = tmp_path / "checkpoint-00001.ckpt"
    path.write_bytes(raw)
    with pytest.raises(DamagedFileError):
        load_checkpoint(path)
    save_checkpoint(path, STATE)
    body = bytearray(path.read_bytes())
    body[place % len(body)] ^= flip
    path.write_bytes(body)
    with contextlib.suppress(DamagedFileError):  # a blank that becomes another one within the header changes nothing
        assert load_checkpoint(path)["epoch"] == 3


def test_checkpoint_with_an_object_that_runs_code_is_refused_before_it_runs(tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "checkpoint-00001.ckpt"
    save_checkpoint(path, {"epoch": Runs(trace)})
    with pytest.raises(DamagedFileError):
        load_checkpoint(path)
    assert not trace.exists()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@settings(quick, max_examples=20)  # it writes many files
@given(raw=st.binary(max_size=200), value=json_values)
def test_results_of_any_content_are_sound_or_damaged(tmp_path: Path, raw: bytes, value: Any) -> None:
    folder = tmp_path / "runs" / "s" / "p" / "a--b" / "kd" / "seed0-0123456789"
    for content in (raw, json.dumps(value).encode(), json.dumps({"file_checksum": value}).encode()):
        for name in ("result.json", "config.json", "failed.json", "skipped.json", CLAIM_FILE):
            write_bytes(folder / name, content)
        with pytest.raises(DamagedFileError):
            read_json(folder / "result.json")
        assert len(load_results(tmp_path / "runs")) == 1
        assert read_holder(folder) is not None
    # also where the checksum is right, and only the content is another's
    write_json(folder / "config.json", {"config": value, "facts": value, "hash": value})
    write_json(folder / "result.json", {"metrics": value, "cost": value, "provenance": value, "teacher": value})
    write_json(folder / "failed.json", {"reason": value})
    assert len(load_results(tmp_path / "runs")) == 1


@quick
@given(raw=st.binary(max_size=300), rows=st.lists(st.lists(st.text(max_size=6), max_size=4), max_size=5))
def test_history_and_predictions_of_any_content_are_read_or_passed_over(
    tmp_path: Path, raw: bytes, rows: list[list[str]]
) -> None:
    (tmp_path / "history.csv").write_bytes(raw)
    (tmp_path / "predictions.npz").write_bytes(raw)
    read_history(Folder(tmp_path))
    assert read_predictions(Folder(tmp_path)) is None
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    (tmp_path / "history.csv").write_bytes(text.getvalue().encode("utf-8", "replace"))
    read_history(Folder(tmp_path))


def test_predictions_with_an_object_that_runs_code_are_passed_over_before_it_runs(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    names = ("correct", "probability", "predicted")
    np.savez(tmp_path / "predictions.npz", **{name: np.array([Runs(trace)], dtype=object) for name in names})
    assert read_predictions(Folder(tmp_path)) is None
    with zipfile.ZipFile(tmp_path / "predictions.npz", "w") as archive:
        for name in names:
            archive.writestr(f"{name}.npy", pickle.dumps(Runs(trace)))
    assert read_predictions(Folder(tmp_path)) is None
    assert not trace.exists()


@quick
@given(raw=st.binary(max_size=300), value=st.text(max_size=30))
def test_published_figures_of_any_content_are_read_or_refused_in_one_line(
    tmp_path: Path, raw: bytes, value: str
) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([list(COLUMNS), [value] * len(COLUMNS)])
    for content in (raw, text.getvalue().encode("utf-8", "replace")):
        (tmp_path / "x.csv").write_bytes(content)
        try:
            load_published(tmp_path)
        except KdbenchError as error:
            if "x.csv" not in str(error):
                raise


def paths_into(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [at, *(path for key, child in children for path in paths_into(child, (*at, key)))]


PATHS = paths_into(tiny())[1:]
HOSTILE = st.sampled_from(
    [
        "../../etc",
        "/etc/passwd",
        "..",
        ".",
        "",
        "a/b",
        "a\0b",
        "$(reboot)",
        "`reboot`",
        "<script>",
        "x" * 5000,
        "a--b--c",
        "\n",
    ]
)


def loaded(path: Path) -> Suite | None:
    try:
        return load_suite(str(path))
    except KdbenchError as error:
        if str(path) not in str(error):
            raise
        return None


@settings(quick, max_examples=150)
@given(place=st.sampled_from(PATHS), value=json_values | HOSTILE)
def test_suite_with_any_value_changed_is_valid_or_refused_and_its_names_stay_in_their_folder(
    tmp_path: Path, place: tuple[Any, ...], value: Any
) -> None:
    suite = tiny()
    inner: Any = suite
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    path = tmp_path / "suite.yaml"
    path.write_text(yaml.safe_dump(suite), encoding="utf-8", errors="replace")
    found = loaded(path)
    if found is not None:
        for name in (found.name, *found.protocols, *found.recipes, *found.nets, *found.pairs):
            assert (tmp_path / name).resolve().parent == tmp_path.resolve()


@quick
@given(raw=st.binary(max_size=200), text=st.text(alphabet="!&*{}[]:-?|> \n'\"%@#a1.,<", max_size=60))
def test_random_text_is_no_suite(tmp_path: Path, raw: bytes, text: str) -> None:
    path = tmp_path / "suite.yaml"
    for content in (raw, text.encode()):
        path.write_bytes(content)
        assert loaded(path) is None


@pytest.mark.parametrize(
    "text",
    [
        "!!python/object/apply:os.system ['touch TRACE']",
        "name: !!python/object/new:pathlib.Path ['TRACE']",
        "name: !!python/name:os.system",
        "a: &a [x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c]\n"
        "e: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e]",
        "a: &a [*a]",
        "[" * 5000,
    ],
)
def test_hostile_suites_are_refused_and_nothing_of_them_runs(tmp_path: Path, text: str) -> None:
    path = tmp_path / "suite.yaml"
    path.write_text(text.replace("TRACE", str(tmp_path / "trace")))
    assert loaded(path) is None
    assert not (tmp_path / "trace").exists()
