"""The command line: quick where nothing is trained, one line and status 2 for a wrong request."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kdbench as package
from kdbench.cli import options, status
from kdbench.cli.parser import VERBS
from kdbench.errors import KdbenchError
from kdbench.matrix.cells import make_plan
from kdbench.matrix.request import Request
from kdbench.plugins.entry import METHODS
from kdbench.plugins.registry import catalog
from kdbench.store.files import write_bytes
from kdbench.store.folders import Store
from kdbench.store.layout import FORMAT
from kdbench.store.result import write_record
from kdbench.suite.suite import load_suite
from tests.conftest import Said, tiny
from tests.few import few
from tests.records import cell_result

Kdbench = Callable[..., Said]
#: What no verb that trains nothing may import: it takes seconds.
HEAVY = ("torch", "timm", "mmengine", "sklearn", "matplotlib", "torchvision")


@pytest.fixture(autouse=True)
def forget_plugins() -> Iterator[None]:
    yield
    for name in [name for name, cls in METHODS.items() if cls.__module__.startswith("kdbench_plugin_")]:
        sys.modules.pop(METHODS.pop(name).__module__, None)


@pytest.fixture
def filled(tmp_path: Path, write_suite: Callable[..., Path]) -> tuple[Path, Path]:
    """A suite file, and a run directory in which all its cells are done."""
    suite = write_suite()
    store = Store(tmp_path / "runs")
    store.check(writable=True)
    for number, cell in enumerate(make_plan(load_suite(str(suite)), Request(protocol="seeds"), catalog()).cells):
        store.cell(cell).prepare(cell)
        write_record(store.cell(cell).result, cell_result(cell, 90.0 + number % 5))
    return suite, store.root


# Imports


def test_verbs_that_train_nothing_import_nothing_heavy(filled: tuple[Path, Path], tmp_path: Path) -> None:
    """One command after the other, in a process of their own."""
    suite, runs = filled
    results = (str(suite), "--protocol", "seeds", "--out", str(runs))
    commands = [
        ("--help",), ("run", "--help"), ("list",), ("list", "methods"), ("list", "pairs", "--json"), ("status",),
        ("list", "methods", "--suite", "cifar100"), ("show", "ofa", "--suite", "cifar100", "--as-tuned"),
        ("status", *results), ("table", *results), ("table", *results, "--format", "latex"), ("leaderboard", *results),
        ("run", "--methods", "kdd"),
    ]  # fmt: skip
    script = (
        "import json, sys\nfrom kdbench.cli.parser import main\nfound = {}\n"
        "for words in json.loads(sys.argv[1]):\n    main(words)\n"
        f"    found[' '.join(words)] = [name for name in {HEAVY} if name in sys.modules]\n"
        "print('\\n' + json.dumps(found))"
    )
    command = [sys.executable, "-c", script, json.dumps(commands)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert len(found) == len(commands)
    assert not any(found.values()), found


def test_importing_kdbench_imports_next_to_nothing() -> None:
    script = "import sys, kdbench; print([name for name in ('torch', 'numpy', 'pandas', 'pydantic', 'yaml') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


# Requests that are wrong


WRONG = [
    ("run nosuch", "unknown suite 'nosuch'; valid: "),
    ("run digit", "unknown suite 'digit'; did you mean 'digits'?"),
    ("run nowhere.yaml", "suite file nowhere.yaml: no such file"),
    ("run --protocol smok", "unknown protocol 'smok' in suite digits; did you mean 'smoke'?"),
    ("run --methods kdd", "unknown method 'kdd'; did you mean 'kd'?"),
    ("run --methods scratch,fitnets", "unknown method 'fitnets'; did you mean 'fitnet'?"),
    ("run --pairs resnet-t--vit-z", "unknown pair 'resnet-t--vit-z' in suite digits; did you mean 'resnet-"),
    ("run --set kd.temprature=4", "unknown hyper-parameter kd.temprature; did you mean 'temperature'?"),
    ("run --set kd.temperature=hot", "kd.temperature = 'hot': expected float, got str"),
    ("run --set kd.temperature=[", "--set 'kd.temperature=[': the value does not parse as YAML"),
    ("run --set kd=4", "--set 'kd=4' is not of the form METHOD.NAME=VALUE"),
    ("run --set kdd.temperature=4", "unknown method 'kdd'; did you mean 'kd'?"),
    ("run --set scratch.temperature=4", "scratch has none"),
    ("run --variant w1=offa,eps=2", "unknown method 'offa' in variant w1; did you mean 'ofa'?"),
    ("run --variant w1=ofa,epz=2", "unknown hyper-parameter w1.epz; did you mean 'eps'?"),
    ("run --variant w1=ofa,eps=0", "w1.eps = 0: must be above 0"),
    ("run --variant ofa=kd", "variant 'ofa': there is a method of this name; choose another"),
    ("run --variant a/b=kd", "variant 'a/b': a name has letters"),
    ("run --variant w1=kd --variant w1=ofa", "--variant w1 is given twice"),
    ("run --variant w1", "--variant 'w1' is not of the form NAME=METHOD,KEY=VALUE,..."),
    ("run --variant w1=kd --set w2.temperature=1", "unknown method 'w2'; did you mean 'w1'?"),
    ("show offa", "unknown method 'offa'; did you mean 'ofa'?"),
    ("show ofa --pair a--b", "unknown pair 'a--b' in suite digits; "),
    ("list methods --pair a--b", "--pair needs a suite and methods"),
    ("list nets --suite digits", "--suite is for one of methods, pairs, protocols"),
    ("run --seeds a", "--seeds: 'a' is not a list of whole numbers from 0 to 4294967295"),
    ("run --seeds 0,-1", "--seeds: '0,-1' is not"),
    ("run --seeds 4294967296", "--seeds: '4294967296' is not"),
    ("run --seeds ²", "--seeds: '²' is not"),
    ("run --split train", "unknown --split 'train'; valid: test, validation"),
    ("run --workers 0", "--workers: '0' is not a number of processes"),
    ("run --workers ²", "--workers: '²' is not a number of processes"),
    ("run --loaders -1", "--loaders: '-1' is not a number of processes from 0"),
    ("run --deterministic --cudnn-benchmark", "--deterministic and --cudnn-benchmark exclude each other"),
    ("run --cuda-streams 0", "--cuda-streams: '0' is not a number of streams from 1 to 16"),
    ("run --cuda-streams 2 --no-graphs", "--cuda-streams 2 and --no-graphs exclude each other"),
    ("run --cuda-streams 2 --compile", "--cuda-streams 2 and --compile exclude each other"),
    ("run --cuda-streams 2 --solo", "--cuda-streams 2 and --solo exclude each other"),
    ("run --cuda-streams 2 --device cpu", "--cuda-streams 2 is for GPUs; this run would train on the CPU"),
    ("plan --cuda-streams 2 --device cpu", "--cuda-streams 2 is for GPUs; this run would train on the CPU"),
    ("plan --cuda-streams 2 --for h100x8", "--for has no use for --device, --memory, --cuda-streams and --on"),
    ("run --on moon", "unknown --on 'moon'; valid: "),
    *(
        (f"{verb} --device {device}", f"--device {device}: expected cpu, cuda (all")
        for verb in ("run", "plan", "teachers")
        for device in ("gpu", "mps")
    ),
    ("run --plugin nofile.py", "plugin nofile.py: no such file"),
    ("run --protcol short", "unknown option '--protcol'; did you mean '--protocol'?"),
    ("run digits short", "unexpected extra argument (short)"),
    ("rum", "unknown verb 'rum'; did you mean 'run'?"),
    ("list method", "unknown kind 'method'; did you mean 'methods'?"),
    ("list pairs --suite digit", "unknown suite 'digit'; did you mean 'digits'?"),
    ("table --format excel", "unknown --format 'excel'; valid: "),
    ("table --out nowhere", "run directory nowhere does not exist; kdbench run makes it"),
    ("leaderboard --out nowhere", "run directory nowhere does not exist"),
    ("run --teacher-tolerance x", "--teacher-tolerance: 'x' is not a number of points"),
    ("run --teacher-tolerance nan", "--teacher-tolerance: 'nan' is not a number of points"),
    ("table --train-teachers all", "unknown option '--train-teachers'"),
    ("table --to", "Option '--to' requires an argument"),
    ("test kdd", "unknown method 'kdd'; did you mean 'kd'?"),
]


@pytest.mark.parametrize(("words", "problem"), WRONG, ids=[words for words, _ in WRONG])
def test_wrong_request_is_told_in_one_line_and_nothing_is_written(
    kdbench: Kdbench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KDBENCH_OUT", "here")
    said = kdbench(*words.split())
    assert said.status == 2
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith("kdbench: ")
    assert problem in line
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("--set kd.temperature=0", "kd.temperature = 0: must be above 0"),
        ("--set kd.temperature=nan", "kd.temperature = nan: must be above 0"),
    ],
)
def test_request_that_only_building_refuses_writes_nothing_either(
    kdbench: Kdbench,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_suite: Callable[..., Path],
    words: str,
    problem: str,
) -> None:
    suite = write_suite()
    monkeypatch.chdir(tmp_path)
    said = kdbench("run", suite, "--out", "here", *words.split())
    assert (said.status, said.out) == (2, "")
    (line,) = said.err.splitlines()
    assert problem in line
    assert os.listdir(tmp_path) == [suite.name]


@pytest.mark.parametrize("out", ["", " "])
def test_empty_name_of_the_run_directory_is_refused(kdbench: Kdbench, out: str) -> None:
    said = kdbench("status", "--out", out)
    assert (said.status, len(said.err.splitlines())) == (2, 1)
    assert "is not a path" in said.err


def test_batch_larger_than_the_data_is_refused_before_anything_trains(
    kdbench: Kdbench, write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    suite = write_suite(recipes={"token": {"batch_size": 5000}})
    said = kdbench("run", suite, "--out", tmp_path / "runs")
    assert (said.status, said.out) == (2, "")
    assert (
        said.err
        == "kdbench: suite tiny: batch_size = 5000 of recipe token is larger than the 100 images that a student trains on\n"
    )
    assert not (tmp_path / "runs").exists()


def test_bad_suite_file_is_told_with_its_line(kdbench: Kdbench, write_suite: Callable[..., Path]) -> None:
    path = write_suite({**tiny(), "titel": "x"})
    said = kdbench("run", path)
    assert said.status == 2
    line = len(path.read_text().splitlines())
    assert said.err == f"kdbench: {path}, line {line}: titel: unknown key; did you mean 'title'?\n"


def test_message_of_many_lines_is_told_in_one(kdbench: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> None:
        raise KdbenchError("first\nsecond")

    monkeypatch.setattr(options, "load_suite", fail)
    assert kdbench("status") == Said(2, "", "kdbench: first second\n")


def test_ctrl_c_ends_any_verb_in_one_line(kdbench: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(status, "read_status", interrupt)
    said = kdbench("status")
    assert (said.status, said.out, said.err.strip()) == (130, "", "kdbench: interrupted")


def test_verbs_options_and_names_are_completed_in_the_shell(kdbench: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    def completions(*words: str) -> list[str]:
        monkeypatch.setenv("_KDBENCH_COMPLETE", "bash_complete")
        monkeypatch.setenv("COMP_WORDS", " ".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        return [line.split(",", 1)[1] for line in kdbench().out.splitlines()]

    assert completions("kdbench", "leader") == ["leaderboard"]
    assert completions("kdbench", "run", "--meth") == ["--methods"]
    assert completions("kdbench", "run", "digits-") == ["digits-chains"]
    assert completions("kdbench", "run", "--methods", "kd,scr") == ["kd,scratch"]


def test_reader_that_closes_the_pipe_early_sees_no_traceback() -> None:
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m kdbench.cli.parser list methods --json | head -n 1"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert done.stdout


# The run directory


@pytest.mark.parametrize("verb", ["run", "plan", "status", "table", "leaderboard"])
def test_run_directory_of_a_newer_format_is_refused_at_once(
    kdbench: Kdbench, write_suite: Callable[..., Path], tmp_path: Path, verb: str
) -> None:
    write_bytes(tmp_path / "runs" / "format.json", json.dumps({"format": FORMAT + 1}).encode())
    said = kdbench(verb, write_suite(), "--out", tmp_path / "runs")
    assert (said.status, said.out) == (2, "")
    assert f"has format {FORMAT + 1}, written by a newer kdbench" in said.err
    assert len(said.err.splitlines()) == 1


@pytest.mark.parametrize("where", ["runs", "runs/inner"])
def test_run_directory_that_cannot_be_written_is_refused_before_anything_trains(
    kdbench: Kdbench, write_suite: Callable[..., Path], tmp_path: Path, where: str
) -> None:
    (tmp_path / "runs").write_text("")
    said = kdbench("run", write_suite(), "--out", tmp_path / where)
    assert (said.status, said.out) == (2, "")
    assert said.err.startswith(f"kdbench: run directory {tmp_path / where} ")
    assert len(said.err.splitlines()) == 1


# Plugins


def test_plugin_with_a_syntax_error_is_told_with_its_traceback_and_the_listing_goes_on(
    kdbench: Kdbench, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("def f(:\n")
    said = kdbench("list", "methods", "--json", "--plugin", broken)
    assert said.status == 1
    assert {"kd", "scratch"} <= {row["name"] for row in json.loads(said.out)}
    assert said.err.startswith(f"kdbench: plugin {broken}, line 1: ")
    assert "SyntaxError" in said.err


def test_lists_have_a_line_for_each_suite_and_protocol_and_fit_120_columns(kdbench: Kdbench) -> None:
    for words in (("suites",), ("protocols",), ("methods",), ("methods", "--suite", "digits")):
        assert max(map(len, kdbench("list", *words).out.splitlines())) <= 120, words
    assert len([line for line in kdbench("list", "suites").out.splitlines() if line.startswith("digits ")]) == 1
    rows = json.loads(kdbench("list", "protocols", "--suite", "digits", "--json").out)
    assert [row["name"] for row in rows] == ["smoke", "short", "full"]
    assert rows[0]["description"].startswith("two epochs")


def test_plugin_that_raises_at_import_is_told_by_the_plan_with_its_traceback(
    kdbench: Kdbench, write_suite: Callable[..., Path], write_plugin: Callable[..., Path], tmp_path: Path
) -> None:
    path = write_plugin(before="raise RuntimeError('boom')")
    said = kdbench("plan", write_suite(), "--plugin", path, "--out", tmp_path / "runs", "--no-probe")
    assert said.status == 1
    assert f"kdbench: plugin {path} raised when it was imported: RuntimeError: boom" in said.err
    assert "Traceback" in said.err
    assert str(path) in said.err.split("Traceback")[1]
    assert "3 cells: 2 pending" in said.out
    assert not (tmp_path / "runs").exists()


# Listings, status, tables


def test_listing_tells_of_everything_there_is(kdbench: Kdbench) -> None:
    said = kdbench("list", "--json")
    content = json.loads(said.out)
    assert set(content) == {"methods", "pairs", "suites", "protocols", "nets", "datasets", "published"}
    assert {"name", "display", "family", "fidelity", "needs", "paper", "hyperparameters"} <= set(content["methods"][0])
    assert content["methods"][0]["name"] == "scratch"
    plain = kdbench("list")
    assert plain.status == 0
    assert all(kind in plain.out for kind in content)
    for kind in ("pairs", "published"):
        assert kdbench("list", kind).out.strip()
        assert json.loads(kdbench("list", kind, "--json").out) == content[kind]


def test_pairs_of_a_suite_file_are_listed(kdbench: Kdbench, write_suite: Callable[..., Path]) -> None:
    rows = json.loads(kdbench("list", "pairs", "--suite", write_suite(), "--json").out)
    assert [row["pair"] for row in rows] == ["cnn--vit", "cnn--mlp", "vit--cnn"]


def test_methods_are_listed_as_they_are_set_for_a_pair_of_a_suite(kdbench: Kdbench) -> None:
    words = ("list", "methods", "--suite", "imagenet1k", "--json", "--pair")
    gamma = {}
    for pair in ("resnet50--deit_tiny", "swin_tiny--resnet18"):
        rows = {row["name"]: row for row in json.loads(kdbench(*words, pair).out)}
        gamma[pair] = rows["nkd"]["hyperparameters"]["gamma"]
    assert gamma == {"resnet50--deit_tiny": 1.0, "swin_tiny--resnet18": 1.5}


def test_show_tells_every_hyper_parameter_with_its_value_origin_type_and_range(kdbench: Kdbench) -> None:
    said = kdbench("show", "nkd", "--suite", "imagenet1k", "--set", "nkd.ce_weight=2")
    assert (said.status, said.err) == (0, "")
    first, second = said.out.split("suite imagenet1k, protocol short: ")[1:]
    assert (first.splitlines()[0], second.splitlines()[0]) == (
        "swin_tiny--resnet18, convnext_tiny--resmlp_s12", "mixer_b16--deit_tiny",
    )  # fmt: skip
    rows = [re.split(r"\s{2,}", line) for line in second.splitlines()[4:] if line]
    assert rows == [
        ["temperature", "1.0", "preset imagenet1k", "float", "above 0"],
        ["gamma", "1.0", "preset imagenet1k:vit", "float", "0 or more"],
        ["ce_weight", "2.0", "--set nkd", "float", "0 or more"],
    ]
    for text in (
        "nkd: NKD",
        "ICCV 2023",
        "family:   logits",
        "fidelity: reference",
        "needs:    logits",
        "@inproceedings{",
    ):
        assert text in said.out


def test_show_tells_of_a_variant_whose_it_is(kdbench: Kdbench) -> None:
    said = kdbench("show", "w1", "--variant", "w1=lfcc,scales=[1, 2],kd_weight=0")
    assert "w1: w1, a variant of lfcc" in said.out
    assert "carries KD's loss (temperature, kd_weight, ce_weight)" in said.out
    assert re.search(r"scales +\(1, 2\) +variant w1", said.out)
    assert "no hyper-parameters" in kdbench("show", "scratch").out
    noted = kdbench("show", "kd", "--suite", "cifar100", "--pair", "swin_tiny--resnet18", "--as-tuned")
    assert "note: swin_tiny--resnet18: no published values of kd; the suite's own are used" in noted.out + noted.err
    assert re.search(r"label_temperature +None +default", kdbench("show", "rld").out)


def test_plan_names_the_pairs_for_which_nothing_was_published(
    kdbench: Kdbench, tmp_path: Path, write_suite: Callable[..., Path]
) -> None:
    said = kdbench(
        "plan", write_suite(), "--as-tuned", "--methods", "kd,scratch", "--no-probe", "--out", tmp_path / "o"
    )
    assert "note: cnn--vit: no published values of kd; the suite's own are used" in said.out


def test_help_names_every_verb_and_every_verb_has_help(kdbench: Kdbench) -> None:
    text = kdbench("--help").out
    assert kdbench() == Said(0, text, "")
    assert {"list", "plan", "run", "status", "table", "leaderboard"} <= set(VERBS)
    for verb in VERBS:
        assert f"\n  {verb} " in text
        said = kdbench(verb, "--help")
        assert (said.status, said.err) == (0, "")
        assert "Exit status" in said.out


def test_help_of_run_fits_a_screen_and_a_half(kdbench: Kdbench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = kdbench("run", "--help").out.splitlines()
    assert len(lines) <= 65
    assert max(map(len, lines)) <= 100


def test_version_is_told(kdbench: Kdbench) -> None:
    assert kdbench("--version").out == f"kdbench {package.__version__}\n"


def test_status_counts_the_cells_of_each_pair_and_names_what_is_damaged(
    kdbench: Kdbench, filled: tuple[Path, Path]
) -> None:
    suite, runs = filled
    said = kdbench("status", suite, "--protocol", "seeds", "--out", runs)
    assert (said.status, said.err) == (0, "")
    assert [line.split() for line in said.out.splitlines() if "--" in line and line[0] != "-"] == [
        ["cnn--vit", "4"], ["cnn--mlp", "4"], ["vit--cnn", "4"],
    ]  # fmt: skip
    broken = next(iter(sorted(runs.glob("*/*/*/*/*/result.json"))))
    broken.write_bytes(b"{")
    said = kdbench("status", suite, "--protocol", "seeds", "--out", runs)
    assert f"damaged: {broken.relative_to(runs)}: " in said.out


def test_status_before_anything_is_done_says_what_to_do(kdbench: Kdbench, tmp_path: Path) -> None:
    said = kdbench("status", "--out", tmp_path / "runs")
    assert said.status == 0
    assert "nothing is done yet; kdbench run trains it" in said.out
    assert not (tmp_path / "runs").exists()


def test_results_of_an_older_configuration_are_told_and_not_shown(
    kdbench: Kdbench, filled: tuple[Path, Path], write_suite: Callable[..., Path]
) -> None:
    _, runs = filled
    changed = write_suite(recipes={"cnn": {"batch_size": 25}})
    said = kdbench("status", changed, "--protocol", "seeds", "--out", runs)
    assert "stale: 12 results of other configurations" in said.out


@pytest.mark.parametrize("layout", few(["pairs", "methods"]))
@pytest.mark.parametrize("form", ["text", "markdown", "latex", "csv", "html"])
def test_table_is_written_in_every_form(
    kdbench: Kdbench, filled: tuple[Path, Path], tmp_path: Path, form: str, layout: str
) -> None:
    suite, runs = filled
    words = ("table", suite, "--protocol", "seeds", "--out", runs, "--format", form, "--layout", layout)
    said = kdbench(*words)
    assert (said.status, said.err) == (0, "")
    assert ("kd," if form == "csv" else "KD") in said.out
    assert kdbench(*words, "--to", tmp_path / "new" / "table").status == 0
    if form == "csv":  # the others hold the command that made them
        assert (tmp_path / "new" / "table").read_text() == said.out


def test_a_table_is_not_written_into_a_file_as_if_it_were_a_folder(
    kdbench: Kdbench, filled: tuple[Path, Path], tmp_path: Path
) -> None:
    suite, runs = filled
    (tmp_path / "file").touch()
    said = kdbench("table", suite, "--protocol", "seeds", "--out", runs, "--to", tmp_path / "file" / "table")
    assert said.status == 2
    assert "cannot be written" in said.err


def test_tables_show_the_epoch_that_the_protocol_selects_unless_told_otherwise(
    kdbench: Kdbench, filled: tuple[Path, Path], write_suite: Callable[..., Path]
) -> None:
    words = ("--protocol", "seeds", "--out", filled[1])
    for verb in ("table", "leaderboard"):
        assert "last epoch" in kdbench(verb, filled[0], *words).out
    best = write_suite(name="best.yaml", protocols={"seeds": {"select": "best"}})  # no part of a result's identity
    for verb in ("table", "leaderboard"):
        assert "best test epoch" in kdbench(verb, best, *words).out
        assert "best test epoch" not in kdbench(verb, best, *words, "--select", "last").out


def test_metric_that_no_result_has_is_refused_with_the_nearest_one(
    kdbench: Kdbench, filled: tuple[Path, Path], tmp_path: Path
) -> None:
    words = (filled[0], "--protocol", "seeds", "--out", filled[1], "--metric", "top")
    for verb in ("table", "leaderboard", ("plots", "--to", tmp_path / "plots")):
        said = kdbench(*(verb if isinstance(verb, tuple) else (verb,)), *words)
        assert (said.status, said.err) == (2, "kdbench: unknown metric 'top'; did you mean 'top5'?\n")


def test_table_of_an_unfinished_run_shows_what_there_is(kdbench: Kdbench, filled: tuple[Path, Path]) -> None:
    suite, runs = filled
    results = sorted(runs.glob("*/*/*/*/*/result.json"))
    write_bytes(results[0].with_name("checkpoint-00001.ckpt"), b"x")
    results[0].unlink()
    results[1].write_bytes(b"{")
    config = results[2].with_name("config.json")
    config.write_bytes(config.read_bytes()[:-9])
    for verb in ("table", "leaderboard"):
        said = kdbench(verb, suite, "--protocol", "seeds", "--out", runs)
        assert said.status == 0, said.err
        assert "KD" in said.out


def test_table_of_an_empty_run_directory_shows_no_traceback(
    kdbench: Kdbench, write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    Store(tmp_path / "runs").check(writable=True)
    for verb in ("table", "leaderboard"):
        said = kdbench(verb, write_suite(), "--out", tmp_path / "runs")
        assert said.status == 1
        assert len(said.err.splitlines()) <= 1
