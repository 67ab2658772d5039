"""Files of somebody else's: one bad cell is one bad cell, nothing outside is touched, nothing steers the terminal."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from kdbench.errors import KdbenchError
from kdbench.launch.execute import classify_cells
from kdbench.opening import RefusedFileError, inside, open_file, open_log, open_own, read_file
from kdbench.reporting.table import build_table
from kdbench.reporting.text.markup import escape_latex, html_comment
from kdbench.reporting.text.render import render
from kdbench.shown import NAME_LENGTH, printable, without_homes
from kdbench.store.claims import Claims
from kdbench.store.classnames import read_classes, write_classes
from kdbench.store.files import write_bytes, write_output
from kdbench.store.folders import CellFolder, Store
from kdbench.store.layout import Folder
from kdbench.store.log import logger_of
from kdbench.store.reading import Outcomes, read_history, read_log_end, read_predictions
from kdbench.store.rows import load_results
from kdbench.suite.suite import Suite
from kdbench.suite.typedyaml import read_typed
from tests.conftest import Said, tiny
from tests.hostile import CELLS, NAMES, ODD, PREDICTIONS, change, sound_columns, write_predictions, write_run
from tests.reporting import factory
from tests.reporting.large import large_plan, write_large

Kdbench = Callable[..., Said]
READING = ("table", "leaderboard", "status", "report")
#: What may never reach a terminal or a page.
UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(kdbench: Kdbench, verb: str, root: Path, *words: object) -> str:
    """What a reading verb prints and writes."""
    page = root.with_suffix(".html")
    said = kdbench(verb, "digits", "--out", root, *(("--to", page) if verb == "report" else ()), *words)
    assert said.status == 0, said.err
    assert "Traceback" not in said.out + said.err
    return said.out + said.err + (page.read_text() if verb == "report" else "")


# Cells


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("received") / "runs"
    for damage, folder in zip(CELLS.values(), write_run(root, 20, len(CELLS)), strict=True):
        damage(folder)
    return root


@pytest.mark.xdist_group("hostile")  # one process writes the run
@pytest.mark.parametrize("verb", READING)
def test_sound_cells_are_shown_and_damaged_ones_are_named(kdbench: Kdbench, hostile: Path, verb: str) -> None:
    text = shown(kdbench, verb, hostile, "--methods", "*")
    if verb == "status":
        assert re.search(r"^resnet-l--vit-s +20 ", text, re.MULTILINE)
    else:
        assert "Coverage: 20 of" in text
    named = {line.split(": ")[1] for line in text.splitlines() if line.startswith("damaged: ")}
    assert len(named) == len(CELLS)


def test_links_and_odd_names_among_the_folders_are_named_and_not_read(kdbench: Kdbench, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    first, second = write_run(root, 2, 2)
    shutil.move(first, tmp_path / "elsewhere")
    first.symlink_to(tmp_path / "elsewhere")
    second.parent.rename(second.parent.with_name("=HYPERLINK(x)"))
    text = shown(kdbench, "table", root)
    assert f"damaged: {first.relative_to(root)}: is a link, which is not followed\n" in text
    assert "=HYPERLINK(x): is no name that kdbench gives\n" in text
    assert len(load_results(root)) == 2


def paths_into(tree: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    children = tree.items() if isinstance(tree, dict) else ()
    return [at, *(path for key, child in children for path in paths_into(child, (*at, key)))]


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run directory of three cells, and the folder of the last."""
    root = tmp_path_factory.mktemp("odd") / "runs"
    (folder,) = write_run(root, 2, 1)
    return root, folder


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_any_field_may_be_odd_and_the_other_cells_are_read(few: tuple[Path, Path], name: str) -> None:
    root, folder = few
    sound = (folder / name).read_bytes()
    fields = [path for path in paths_into(json.loads(sound)) if path and path != ("file_checksum",)]

    @settings(max_examples=40, deadline=None, derandomize=True)
    @given(
        st.sampled_from(fields),
        st.sampled_from(ODD) | st.text(max_size=9) | st.floats(allow_nan=False, allow_infinity=False),
    )
    def check(field: tuple[Any, ...], value: Any) -> None:
        (folder / name).write_bytes(sound)
        change(folder / name, field, value)
        frame = load_results(root)
        row = frame.set_index("path").loc[str(folder.relative_to(root))]
        assert len(frame) == 3
        assert (frame["state"] == "done").sum() >= 2
        assert row["state"] == "done" or frame.attrs["damaged"]
        texts = [str(cell) for column, cell in row.items() if column not in ("hyperparameters", "plugin_metrics")]
        assert not any(UNSEEN.search(text) for text in texts)

    try:
        check()
    finally:
        (folder / name).write_bytes(sound)


def test_rows_of_a_csv_file_that_are_damaged_are_named_and_the_others_read(few: tuple[Path, Path]) -> None:
    file = few[0].parent / "cells.csv"
    load_results(few[0]).to_csv(file, index=False)
    sound = pd.read_csv(file, dtype=object, keep_default_na=False)
    odd = {
        "seed": (str(10**30), "first"),
        "top1": ("high", "1e308", "-1", "nan", str(10**400)),
        "best_nll": ("inf",),
        "epochs": ("1e30",),
        "state": ("over",),
        "pair": ("none", "a--../../b"),
        "method": ("=HYPERLINK(x)", "x" * 5000),
        "hyperparameters": ("[" * 5000, "1"),
        "plugin_metrics": ("[" * 5000, '{"a": {}}', '{"method": {}}', '{"top1": {}}'),
    }
    whole = pd.concat([sound] * sum(map(len, odd.values())), ignore_index=True)
    for row, (column, value) in enumerate((column, value) for column, values in odd.items() for value in values):
        whole.loc[3 * row, column] = value
    whole.to_csv(file, index=False)
    frame = load_results(file)
    lines = [int(line.split(", line ")[1].split(":")[0]) for line in frame.attrs["damaged"]]
    assert lines == [2 + 3 * row for row in range(len(whole) // 3)]
    assert len(frame) == len(whole) - len(lines)
    assert max(map(len, frame.attrs["damaged"])) <= 1000


def test_csv_file_that_is_packed_is_not_unpacked(few: tuple[Path, Path]) -> None:
    file = few[0].parent / "cells.csv.gz"
    load_results(few[0]).to_csv(file, index=False)
    with pytest.raises(KdbenchError, match=r"cells\.csv\.gz cannot be read as CSV"):
        load_results(file)


def test_run_finds_every_damaged_cell_to_train_and_writes_around_folders(tmp_path: Path) -> None:
    plan = large_plan(cells=20)
    store = Store(tmp_path / "runs")
    write_large(store.root, plan, 20)
    names = (
        "config.json",
        "result.json",
        "failed.json",
        "skipped.json",
        "log.txt",
        "claim.json",
        "checkpoint-00001.ckpt",
    )
    for name, cell in zip(names, plan.cells, strict=False):
        shutil.rmtree(store.root / cell.folder)
        (store.root / cell.folder / name / "inside").mkdir(parents=True)
    todo = classify_cells(replace(plan, cells=plan.cells[:20], skipped=(), broken=()), store)
    assert {cell.folder for cell in plan.cells[: len(names)]} <= {cell.folder for cell in todo.train}
    for name, cell in zip(names, plan.cells, strict=False):
        folder = store.cell(cell)
        assert folder.config.is_file()
        assert not (folder.path / name).is_dir()
        assert len([*folder.path.glob("*/inside")]) == 1


# Other files


@pytest.mark.parametrize("kind", PREDICTIONS)
def test_damaged_predictions_are_named_and_nothing_of_them_is_read(tmp_path: Path, kind: str) -> None:
    PREDICTIONS[kind](tmp_path / "predictions.npz")
    told: list[str] = []
    assert read_predictions(Folder(tmp_path), lambda path, reason: told.append(f"{path.name}: {reason}")) is None
    assert len(told) == 1
    assert told[0].startswith("predictions.npz: ")


def test_sound_predictions_are_read(tmp_path: Path) -> None:
    write_predictions(tmp_path / "predictions.npz")
    found = read_predictions(Folder(tmp_path))
    assert found is not None
    assert found.label.tolist() == sound_columns()["label"].tolist()


@pytest.mark.parametrize("text", ["epoch,top1\n1e400,5\n", "epoch,top1\n-1,5\n", "epoch,top1\nnan,5\n"])
def test_history_with_an_impossible_epoch_is_damaged(tmp_path: Path, text: str) -> None:
    (tmp_path / "history.csv").write_text(text)
    told: list[str] = []
    assert read_history(Folder(tmp_path), lambda path, reason: told.append(reason)) == {}
    assert len(told) == 1


def test_report_names_the_files_beside_a_result_that_are_damaged(kdbench: Kdbench, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    folders = write_run(root, 20, 2)
    PREDICTIONS["labels of 3e9"](folders[0] / "predictions.npz")
    (folders[1] / "history.csv").symlink_to("/etc/hostname")
    os.mkfifo(folders[1] / "log.txt")
    text = shown(kdbench, "report", root)
    for folder, name in zip([*folders, folders[1]], ("predictions.npz", "history.csv", "log.txt"), strict=True):
        assert f"damaged: {(folder / name).relative_to(root)}: " in text


def test_path_of_a_frame_that_leaves_the_run_directory_is_not_opened(tmp_path: Path) -> None:
    outcomes = Outcomes(tmp_path / "runs")
    (tmp_path / "history.csv").write_text("epoch,top1\n1,2\n")
    assert outcomes.history("..") == {}
    assert outcomes.history(str(tmp_path)) == {}
    assert len(outcomes.damaged) == 2


def test_class_whose_folder_is_not_utf8_has_a_name_that_can_be_written(tmp_path: Path) -> None:
    write_classes(tmp_path, "cats", ["caf\udce9", "\x1b[1mred"], [0, 0], ["\udc80"])
    found = read_classes(tmp_path, "cats")
    assert found is not None
    assert (found.class_names, found.coarse_names) == (("caf\ufffd", "[1mred"), ("\ufffd",))
    assert read_classes(tmp_path, "../cats") is None


# Links and pipes


def tree_of(folder: Path) -> dict[str, tuple[int, float, bytes]]:
    """Mode, time and content of everything below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        about = path.lstat()
        found[str(path)] = (about.st_mode, about.st_mtime_ns, path.read_bytes() if path.is_file() else b"")
    return found


@pytest.fixture
def canaries(tmp_path: Path) -> Path:
    """A folder outside, with files of every name that is written or removed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    for name in (
        "log.txt",
        "failed.json",
        "skipped.json",
        "checkpoint-00001.ckpt",
        ".x.tmp",
        "config.json",
        "claim.json",
    ):
        (outside / name).write_text("SECRET")
    return outside


def test_cell_folder_that_is_a_link_is_refused_for_writing_and_removing(tmp_path: Path, canaries: Path) -> None:
    before = tree_of(canaries)
    store = Store(tmp_path / "runs")
    (store.root / "s" / "p").mkdir(parents=True)
    (store.root / "s" / "p" / "a--b").symlink_to(canaries)
    for path in ("s/p/a--b", "s/p/a--b/kd/seed0-0123456789", "../outside", str(canaries)):
        with pytest.raises(RefusedFileError):
            store.folder(path)
    assert tree_of(canaries) == before


def test_files_of_a_cell_that_are_links_are_neither_read_nor_written_through(tmp_path: Path, canaries: Path) -> None:
    before = tree_of(canaries)
    folder = CellFolder(tmp_path / "cell", Claims())
    folder.path.mkdir()
    for path in canaries.iterdir():
        (folder.path / path.name).symlink_to(path)
    folder.say("a line of the log")
    assert read_log_end(folder) == ""
    assert folder.failure().kind == "unknown"
    assert folder.look().state == "failed"
    folder.sweep()
    folder.forget_failure()
    folder.configure("h", {"a": 1}, {})
    folder.fail("exception", "why")
    with Claims() as claims:
        assert not claims.take(folder.path)  # a claim that cannot be read is somebody's until it goes stale
    assert tree_of(canaries) == before
    assert not (folder.path / "config.json").is_symlink()


@pytest.mark.parametrize(
    ("verb", "level"),
    [
        *(("run", level) for level in (1, 3, 5)),
        *((verb, 5) for verb in ("teachers --train", "plan --no-probe", "status", "table", "report")),
    ],
)
def test_no_verb_goes_through_a_linked_folder(
    kdbench: Kdbench, tmp_path: Path, canaries: Path, verb: str, level: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (folder,) = write_run(tmp_path / "runs", 0, 1)
    at = Path(*folder.parts[: len(folder.parts) - 5 + level])
    shutil.rmtree(at)
    at.symlink_to(canaries)
    (tmp_path / "runs" / "teachers").symlink_to(canaries)
    before = tree_of(canaries)
    said = kdbench(verb.split()[0], "digits", *verb.split()[1:], "--out", "runs")
    assert tree_of(canaries) == before
    assert "SECRET" not in said.out + said.err
    if verb in ("run", "teachers --train"):
        assert said.status == 2
        assert len(said.err.splitlines()) == 1
        assert "is a link, which is not followed" in said.err


@pytest.mark.parametrize("plant", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to("/etc/hostname")])
def test_only_regular_files_are_opened_and_nothing_waits(tmp_path: Path, plant: Callable[[Path], object]) -> None:
    plant(tmp_path / "x")
    for act in (open_file, open_log, open_own, read_file):
        with pytest.raises(RefusedFileError, match=r"x (is|cannot be)"):
            act(tmp_path / "x")


def test_a_file_of_more_bytes_than_it_may_have_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_file(tmp_path / "x", 5) == b"12345"
    with pytest.raises(RefusedFileError, match="5 bytes, more than 4"):
        read_file(tmp_path / "x", 4)


@pytest.mark.parametrize("path", ["..", "a/../../b", "/etc", "a\0b", "\ud800", "x" * 5000])
def test_paths_that_leave_the_root_or_cannot_be_are_refused_in_one_line(tmp_path: Path, path: str) -> None:
    with pytest.raises(RefusedFileError) as refused:
        inside(tmp_path, path)
    assert len(str(refused.value)) < 1200
    assert not UNSEEN.search(str(refused.value))


def test_written_file_never_uses_what_lies_under_its_name(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("SECRET")
    (tmp_path / "x.json").symlink_to(outside)
    write_bytes(tmp_path / "x.json", b"new")
    assert (outside.read_text(), (tmp_path / "x.json").is_symlink()) == ("SECRET", False)
    (tmp_path / "folder").mkdir()
    with pytest.raises(KdbenchError, match="folder is no regular file"):
        write_bytes(tmp_path / "folder", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "outside", "x.json"]


@pytest.mark.parametrize("plant", [os.mkfifo, Path.mkdir, lambda path: path.symlink_to(path.with_name("outside"))])
def test_what_the_user_names_for_writing_is_never_written_through(
    tmp_path: Path, plant: Callable[[Path], object]
) -> None:
    (tmp_path / "outside").write_text("SECRET")
    plant(tmp_path / "table.md")
    with pytest.raises(KdbenchError, match="cannot be written: it is"):
        write_output(tmp_path / "table.md", b"new")
    assert (tmp_path / "outside").read_text() == "SECRET"
    write_output(tmp_path / "outside", b"new")
    assert (tmp_path / "outside").read_text() == "new"


@pytest.mark.parametrize("verb", ["table --to x.md", "leaderboard --to x.csv", "report --to x.html", "plots --to x"])
def test_verbs_write_nothing_through_a_link_that_waits(
    kdbench: Kdbench, few: tuple[Path, Path], tmp_path: Path, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "outside").write_text("SECRET")
    (tmp_path / "x").mkdir()
    for name in ("x.md", "x.csv", "x.html", "x/captions.md"):
        (tmp_path / name).symlink_to(tmp_path / "outside")
    said = kdbench(*verb.split(), "--out", few[0])
    assert (said.status, said.err.count("\n")) == (2, 1)
    assert "cannot be written: it is a link" in said.err
    assert (tmp_path / "outside").read_text() == "SECRET"


@pytest.mark.parametrize("plant", [os.mkfifo, lambda path: path.symlink_to("/dev/zero")])
def test_yaml_that_has_no_end_is_refused_in_one_line(tmp_path: Path, plant: Callable[[Path], object]) -> None:
    plant(tmp_path / "x.yaml")
    with pytest.raises(KdbenchError, match="is no regular file"):
        read_typed(tmp_path / "x.yaml", Suite, "a suite")


def test_folder_of_slurm_that_is_a_link_is_refused(tmp_path: Path) -> None:
    from kdbench.launch.slurm import _own_folder

    (tmp_path / "outside").mkdir(mode=0o755)
    (tmp_path / "runs" / ".jobs").mkdir(parents=True)
    (tmp_path / "runs" / ".jobs" / "slurm").symlink_to(tmp_path / "outside")
    with pytest.raises(KdbenchError, match="is a link"):
        _own_folder(tmp_path / "runs")
    assert (tmp_path / "outside").stat().st_mode & 0o777 == 0o755
    assert _own_folder(tmp_path / "other").stat().st_mode & 0o777 == 0o700


# Names


@pytest.mark.parametrize("name", NAMES)
def test_printable_text_steers_nothing_and_has_an_end(name: str) -> None:
    text = printable(name, NAME_LENGTH)
    assert not UNSEEN.search(text)
    assert len(text) <= NAME_LENGTH
    text.encode("utf-8")


def test_printable_keeps_every_script_tabs_and_lines() -> None:
    text = "Café 中文 עברית 👩‍🔬 → ±\n\tnext"
    assert printable(text) == text


def test_names_of_strangers_are_printable_in_every_format() -> None:
    frame = pd.DataFrame([factory.cell("a--b", name, 80.0) for name in ("scratch", "kd", "dkd")])
    for name in NAMES:
        titles = {"method_display": [f"{name}{method}" for method in frame["method"]], "student_display": [name] * 3}
        part = frame.assign(**{column: pd.Series(texts, dtype=object) for column, texts in titles.items()})
        table = build_table(part, command="kdbench table")
        for form in ("text", "markdown", "latex", "csv", "html"):
            text = render(table, form)
            assert not UNSEEN.search(text), form
            assert "x" * (NAME_LENGTH + 1) not in text, form
        values = pd.read_csv(io.StringIO(render(table, "csv")), dtype=str, keep_default_na=False).to_numpy().ravel()
        assert not any(re.match(r"[=@]|[+-](?![\d.])", value) for value in values)


@pytest.mark.parametrize("end", ["-->", "--!>", "---->"])
def test_command_does_not_end_the_comment_that_it_stands_in(end: str) -> None:
    comment = html_comment(f"kdbench table 'a{end}<script>.yaml'", "abc")
    assert not re.search("--!?>", comment.removesuffix("-->"))


def test_latex_has_letters_of_every_script_as_its_own_or_as_their_number() -> None:
    known = {"é": r"\'e", "Ł": r"\L{}", "ß": r"\ss{}", "Ω": r"\ensuremath{\Omega}", "≤": r"\ensuremath{\leq}"}
    assert {character: escape_latex(character) for character in known} == known
    for character in "жЯ«ąþđŋəɛ♭⟿ℝ𝒜⇉≨中\u0301\u0338":
        assert f"U+{ord(character):04X}" in escape_latex(character)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("pdflatex"), reason="LaTeX is not installed")
def test_latex_compiles_every_character_without_a_package(tmp_path: Path) -> None:
    characters = (chr(code) for code in (*range(0x20, 0xD800), *range(0xF900, 0x10000), *range(0x1D400, 0x1D800)))
    lines = [line for character in characters if "U+" not in (line := escape_latex(f"a{character}b"))]
    document = ["\\documentclass{article}\\begin{document}", *(f"{line}\\par" for line in lines), "\\end{document}"]
    (tmp_path / "x.tex").write_text("\n".join(document))
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "x.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-2000:].decode("utf-8", "replace")
    assert b"Missing character" not in (tmp_path / "x.log").read_bytes()


def test_paths_of_users_and_libraries_are_shortened_in_logs(tmp_path: Path) -> None:
    trace = '  File "/home/alice/.venv/lib/python3.11/site-packages/torch/nn.py", line 1\n  File "/Users/bob/mine.py", line 2'
    assert without_homes(trace) == '  File "site-packages/torch/nn.py", line 1\n  File "~/mine.py", line 2'
    logger_of(tmp_path / "log.txt").info("%s", trace)
    assert "alice" not in (tmp_path / "log.txt").read_text()
    (tmp_path / "log.txt").write_text(trace)
    assert "alice" not in read_log_end(Folder(tmp_path))


def test_published_command_names_no_way_to_a_folder(kdbench: Kdbench, tmp_path: Path) -> None:
    root = tmp_path / "runs"
    write_run(root, 2)
    text = shown(kdbench, "report", root, "--select", "last")
    assert str(tmp_path) not in text.partition("<html")[2]


def test_what_the_terminal_cannot_show_is_replaced(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", 2)
    done = subprocess.run(
        [sys.executable, "-m", "kdbench", "table", "--out", str(tmp_path / "runs")],
        env={**os.environ, "PYTHONIOENCODING": "ascii"}, capture_output=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    assert b" ? " in done.stdout  # the arrow of a pair


# The current folder

MODULES = ("torch", "yaml", "random", "numpy", "kdbench", "json", "timm", "submitit", "tempfile")


@pytest.fixture
def trapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in whose modules leave a trace when something imports them."""
    folder = tmp_path / "received"
    folder.mkdir()
    for name in MODULES:
        (folder / f"{name}.py").write_text(f"open({str(tmp_path / 'trace')!r}, 'a').write({name!r})\n")
    monkeypatch.chdir(folder)
    return tmp_path / "trace"


def kdbench_command(*words: str) -> subprocess.CompletedProcess[str]:
    """As the installed command: a script in another folder."""
    script = "import sys; from kdbench.cli.parser import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-P", "-c", script, *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_no_process_that_we_start_imports_from_the_current_folder(trapped: Path, tmp_path: Path) -> None:
    """Neither a worker nor a loader, a fork server or a resource tracker of multiprocessing."""
    suite = tmp_path / "tiny.yaml"
    exact = {"epochs": 1, "schedule": {"warmup_epochs": 0}, "pipeline": "exact", "batch_size": 20}
    suite.write_text(yaml.safe_dump(tiny(recipes={"cnn": exact, "token": exact})))
    out = str(tmp_path / "runs")
    done = kdbench_command("run", str(suite), "--out", out, "--device", "cpu", "--workers", "1", "--methods", "scratch")
    assert done.returncode == 0, done.stderr
    for verb in ("plan", "table", "status", "teachers"):
        assert kdbench_command(verb, str(suite), "--out", out).returncode == 0
    assert not trapped.exists()


def test_every_python_that_is_started_gets_a_safe_path(kdbench: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's and torch's own processes inherit it; those of submitit have the option too."""
    monkeypatch.delenv("PYTHONSAFEPATH", raising=False)
    kdbench("--version")
    assert os.environ["PYTHONSAFEPATH"] == "1"


def test_own_cluster_of_ray_is_told_to_stay_on_the_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from kdbench.launch.ray import RayLauncher

    told: dict[str, Any] = {}

    def init(**options: Any) -> None:
        told.update(options, environment={**os.environ})

    fake = SimpleNamespace(
        init=init, cluster_resources=lambda: {"CPU": 2}, remote=lambda **options: lambda function: function
    )
    for name in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "RAY_AUTH_MODE", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"):
        monkeypatch.setenv(name, "")
    monkeypatch.setitem(sys.modules, "ray", fake)
    RayLauncher(1, True, 1)
    assert told["_node_ip_address"] == "127.0.0.1"
    assert told["environment"]["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
