"""What ``kdbench plan`` reads and says."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from kdbench.cli.parser import main
from kdbench.cli.progress import format_range, format_time
from kdbench.forecast import time
from kdbench.forecast.profiles import PROFILES, Range, find_profile, foretell
from kdbench.forecast.time import TEST_IMAGES
from kdbench.launch.execute import summarize
from kdbench.matrix.cells import make_plan
from kdbench.matrix.request import Request
from kdbench.nets.tapped import macs_of
from kdbench.plugins.registry import catalog
from kdbench.store import folders
from kdbench.store.declared import read_declared
from kdbench.store.folders import Store
from kdbench.store.result import write_record
from kdbench.suite.net import zoo_net
from kdbench.suite.suite import load_suite
from tests.conftest import Said
from tests.records import cell_result

Kdbench = Callable[..., Said]


@pytest.mark.slow
def test_plan_reads_each_result_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan(load_suite("digits"), Request(protocol="full"), catalog())
    store = Store(tmp_path / "runs")
    store.check(writable=True)
    done = [cell for cell in plan.cells if cell.seed < 2]
    for cell in done:
        write_record(store.cell(cell).result, cell_result(cell))
    read: Counter[Path] = Counter()
    plain = folders.read_record

    def counting(path: Path, kind: Any) -> Any:
        found = plain(path, kind)
        read[path] += 1
        return found

    monkeypatch.setattr(folders, "read_record", counting)
    assert (
        main(["plan", "digits", "--protocol", "full", "--out", str(store.root), "--no-probe", "--memory", "1.0"]) == 0
    )
    assert read == {store.cell(cell).result: 1 for cell in done}


# On hardware that is not here, and without data


EXACT = {name: {"pipeline": "exact"} for name in ("cnn", "token")}


@pytest.fixture
def files_suite(write_suite: Callable[..., Path]) -> Path:
    """The tiny suite on ImageNet-1K, of which this machine has nothing."""
    return write_suite(dataset={"name": "imagenet1k", "images_per_class": None, "image_size": 32}, recipes=EXACT)


def test_a_plan_for_other_hardware_needs_no_data(kdbench: Kdbench, files_suite: Path, tmp_path: Path) -> None:
    said = kdbench("plan", files_suite, "--for", "h100x8", "--out", tmp_path / "runs")
    assert (said.status, said.err) == (2, "")
    (line,) = [line for line in said.out.splitlines() if line.startswith("estimate for")]
    assert re.match(
        r"estimate for 8 GPUs, H100 SXM: [\d.]+ to [\d.]+ (seconds|hours); .* of computing, \d+ MB of disk", line
    )
    assert "assumed shares of the peak: 8 to 30 % of 67 TFLOP/s (float32)" in said.out
    assert "missing: ImageNet-1K lies in files" in said.out
    assert not (tmp_path / "runs").exists()


def test_a_plan_without_data_is_shown_with_what_is_missing(kdbench: Kdbench, files_suite: Path, tmp_path: Path) -> None:
    said = kdbench("plan", files_suite, "--out", tmp_path / "runs")
    assert (said.status, said.err) == (2, "")
    assert "cnn--vit, token, seed 0" in said.out
    assert "(guessed)" in said.out  # no step was timed
    assert said.out.rstrip().splitlines()[-1].startswith("missing: ImageNet-1K")


def test_a_number_of_images_that_is_not_known_leaves_the_time_open(
    kdbench: Kdbench, write_suite: Callable[..., Path], tmp_path: Path
) -> None:
    suite = write_suite(
        dataset={"name": "imagefolder", "folder": "mine", "num_classes": 5, "images_per_class": None, "image_size": 32},
        recipes=EXACT,
    )
    for words in ((), ("--for", "a100")):
        said = kdbench("plan", suite, "--out", tmp_path / "runs", *words)
        assert (said.status, said.err) == (2, "")
        assert "note: no estimate: " in said.out
        assert "cnn--vit, token, seed 0" in said.out


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h100x0", "0 GPUs; expected 1 to 4096"),
        ("h100x99999", "expected 1 to 4096"),
        ("h10", "did you mean 'h100'?"),
        ("x8", "unknown profile 'x8' in --for"),
        ("h100x-1", "unknown profile"),
        ("", "unknown profile"),
        ("h100x٣", "unknown profile"),
    ],
)
def test_profiles_that_do_not_exist_are_refused(kdbench: Kdbench, tmp_path: Path, name: str, message: str) -> None:
    said = kdbench("plan", "digits", "--for", name, "--out", tmp_path / "runs")
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)
    assert message in said.err


@pytest.mark.parametrize("words", [("--device", "cpu"), ("--memory", 75), ("--on", "slurm"), ("--max-hours", 5)])
def test_options_of_this_machine_do_not_go_with_another(
    kdbench: Kdbench, tmp_path: Path, words: tuple[Any, ...]
) -> None:
    said = kdbench("plan", "digits", "--for", "h100", "--out", tmp_path / "runs", *words)
    assert (said.status, said.out, said.err.count("\n")) == (2, "", 1)


def test_hours_are_operations_by_the_peak_and_its_share(write_suite: Callable[..., Path], tmp_path: Path) -> None:
    suite = load_suite(str(write_suite()))
    plan = make_plan(suite, Request(methods=("scratch", "kd"), pairs=("cnn--vit",)), catalog())
    (cohort,) = plan.cohorts()
    found = foretell(plan, [cohort], Store(tmp_path), PROFILES["v100"], 1)
    teacher, student = (
        macs_of(net, 10, name) for net, name in ((cohort.teacher.net, "cnn"), (cohort.cells[0].student_net, "vit"))
    )
    seen = 2 * 100  # epochs of ten images of each of ten classes
    evaluated = 2 * TEST_IMAGES
    cells = 2 * (3 * seen * student + evaluated * student) * 2
    job = found.jobs[cohort.name]
    assert job.low == pytest.approx((cells + 2 * seen * teacher) / (0.3 * 15.7e12))
    assert job.high == pytest.approx(0.3 / 0.08 * job.low)
    own = found.jobs["teacher cnn"]  # nine whole batches of all 997 images
    assert own.low == pytest.approx(2 * (3 * 2 * 900 + evaluated) * teacher / (0.3 * 15.7e12))
    assert (found.wall, found.compute) == (Range(own.low + job.low, own.high + job.high),) * 2
    without = replace(cohort, cells=cohort.cells[:1])
    assert foretell(plan, [without], Store(tmp_path), PROFILES["v100"], 1).jobs[without.name].low == pytest.approx(
        cells / 2 / (0.3 * 15.7e12)
    )


def test_operations_are_those_of_the_net_and_counted_once() -> None:
    net = zoo_net("resnet18")
    assert macs_of(net, 1000, "resnet18") == pytest.approx(1.81e9, rel=0.01)
    assert macs_of(net, 1000, "resnet18") == macs_of(net, 1000, "resnet18")


def test_every_profile_knows_every_precision() -> None:
    for profile in PROFILES.values():
        assert {*profile.tera} == {"float32", "bfloat16", "float16"}
    assert find_profile("rtx4090") == (PROFILES["rtx4090"], 1)
    assert find_profile("rtx4090x2") == (PROFILES["rtx4090"], 2)


def test_a_busy_machine_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(time.os, "getloadavg", lambda: (8.14, 0, 0))
    assert time.busy() == "this machine is busy (load average 8.1 on 2 cores)"
    monkeypatch.setattr(time.os, "getloadavg", lambda: (2.0, 9, 9))
    assert time.busy() == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (75, "1:15"),
        (35_990, "9:59:50"),
        (36_000, "10 hours"),
        (47 * 3600, "47 hours"),
        (560_768_174, "160,000 hours (6,500 days)"),
    ],
)
def test_long_times_are_rounded_hours_and_days(seconds: float, text: str) -> None:
    assert format_time(seconds) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (10, 31, "10 to 31 seconds"),
        (1800, 5400, "0.5 to 1.5 hours"),
        (123 * 3600, 456 * 3600, "120 to 460 hours (5.1 to 19 days)"),
    ],
)
def test_ranges_are_rounded(low: float, high: float, text: str) -> None:
    assert format_range(low, high) == text


def test_what_is_declared_is_checked_by_plan_and_recorded_by_run(
    kdbench: Kdbench, write_suite: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, suite = tmp_path / "runs", write_suite()
    words = [suite, "--methods", "scratch,kd,dkd,dist", "--memory", 1, "--out", out]
    said = kdbench("plan", *words, "--confirm", "dkd", "--no-probe")
    assert "detectable gain over kd: none, however large: 1 pair, 1 seed and 1 tested method cannot" in said.out
    assert not (out / "tiny").exists()
    assert "2 tested methods" in kdbench("plan", *words, "--no-probe").out

    monkeypatch.setattr("kdbench.cli.run._train", lambda plan, todo, store, *rest: summarize(plan, todo, store))
    said = kdbench("run", *words, "--confirm", "dkd")
    assert "declared before the run: a gain of dkd over kd; everything else is exploratory" in said.out
    (hypothesis,) = read_declared(out, "tiny", "short")
    assert hypothesis.what == ("dkd", "kd", "test")
    assert kdbench("run", *words, "--confirm", "dkd").status == said.status  # the same command goes on
    assert read_declared(out, "tiny", "short") == (hypothesis,)
    said = kdbench("plan", *words, "--confirm", "dkdd", "--no-probe")
    assert (said.status, "'dkdd'" in said.err) == (2, True)
