"""What benchmarks share, with a clock that is set by hand; and that the benchmarks run at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import pipeline
from benchmarks.common import Candidate, Spread, compare, core_clock, wall_clock


class Hand:
    """A clock that moves only when work is done."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.done: list[str] = []

    def work(self, name: str, seconds: float, units: float = 1.0) -> Candidate:
        def run() -> None:
            self.done.append(name)
            self.seconds += seconds * (1 + len(self.done) // 4)  # the machine slows down for both

        return Candidate(name, run, lambda: self.seconds, units, "images")


def test_candidates_take_turns_and_the_ratio_says_how_many_times_faster_the_first_is() -> None:
    hand = Hand()
    compared = compare(hand.work("ours", 2.0, units=10), hand.work("theirs", 3.0), repeats=3, warm_up=1)
    assert hand.done == ["ours", "theirs", "ours", "theirs", "theirs", "ours", "ours", "theirs"]
    assert compared.names == ("ours", "theirs")
    assert compared.ratio.values[0] == pytest.approx(15 * 2 / 1)  # slower by the time of the second
    assert compared.first.values[0] == pytest.approx(10 / 2.0)
    assert len(compared.ratio.values) == len(compared.first.values) == 3


def test_spread_is_median_quartiles_and_range() -> None:
    spread = Spread.of([5.0, 1.0, 2.0, 4.0, 3.0])
    assert (spread.least, spread.low_quartile, spread.median, spread.high_quartile, spread.most) == (1, 2, 3, 4, 5)
    assert str(spread) == "3 (quartiles 2 to 4, n = 5)"
    with pytest.raises(ValueError, match="repeats = 0"):
        compare(Hand().work("a", 1), Hand().work("b", 1), repeats=0)


def test_clocks_run_forward() -> None:
    for clock in (wall_clock(torch.device("cpu")), core_clock()):
        before = clock()
        sum(range(200_000))
        assert clock() > before


def test_the_benchmark_of_the_pipeline_writes_what_it_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to = tmp_path / "deep" / "pipeline.json"
    threads = torch.get_num_threads()
    try:
        status = pipeline.main(
            [
                "--images",
                "256",
                "--batch-size",
                "64",
                "--workers",
                "0",
                "--repeats",
                "2",
                "--to",
                str(to),
                "--device",
                "cpu",
            ]
        )
    finally:
        torch.set_num_threads(threads)
    result: dict[str, Any] = json.loads(to.read_text())
    assert status == (0 if result["met"] else 1)
    assert result["target"] == 5
    assert len(result["ratio"]["values"]) == 2
    assert result["ratio"]["median"] > 1
    assert set(result["machine"]["versions"]) >= {"torch", "torchvision", "pillow"}
    assert result["settings"]["images"] == 256
    assert "images/s" in capsys.readouterr().out
