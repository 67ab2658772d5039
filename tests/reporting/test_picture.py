"""The picture of a leaderboard."""

from __future__ import annotations

import subprocess
import sys

import pandas as pd
import pytest

from kdbench.errors import KdbenchError
from kdbench.reporting.leaderboard import build_leaderboard
from kdbench.reporting.plots.picture import _limits, draw_leaderboard
from tests.reporting import factory

P1, P2 = "swin_tiny--resnet18", "convnext_tiny--deit_tiny"
SIGNATURES = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}


@pytest.mark.parametrize("suffix", SIGNATURES)
def test_every_kind_of_file_is_written(tmp_path, suffix):
    path = draw_leaderboard(build_leaderboard(factory.small()), tmp_path / "new" / f"board{suffix}")
    assert path.read_bytes().startswith(SIGNATURES[suffix])


def test_another_ending_is_refused(tmp_path):
    with pytest.raises(KdbenchError, match=r"board\.txt: expected a name that ends with \.png"):
        draw_leaderboard(build_leaderboard(factory.small()), tmp_path / "board.txt")


def test_the_picture_says_suite_protocol_seeds_pairs_and_figures(tmp_path):
    text = draw_leaderboard(build_leaderboard(factory.small()), tmp_path / "board.svg").read_text()
    for part in ("toy, protocol short: gain over KD", "3 pairs, 2 seeds.", "+1.50", "2/0/1", "n.a."):
        assert part in text
    for name in ("1.  OFA", "From scratch", "white: reconstruction"):
        assert name in text


def test_the_same_results_give_the_same_file(tmp_path):
    board = build_leaderboard(factory.small())
    first, second = (draw_leaderboard(board, tmp_path / f"{i}.svg").read_bytes() for i in range(2))
    assert first == second


FRAMES = {
    "nothing": pd.DataFrame(),
    "planned": factory.frame({P1: {"kd": None}}),
    "one pair, one seed": factory.frame({P1: {"scratch": 80.0, "kd": 81.0, "ofa": 82.0}}),
    "only kd": factory.frame({P1: {"kd": 81.0}}),
    "all equal": factory.frame({P1: {"kd": 80.0, "ofa": 80.0}, P2: {"kd": 80.0, "ofa": 80.0}}),
    "by mean": factory.frame({P1: {"ofa": 80.0, "dkd": 81.0}}),
    "odd names": factory.frame({P1: {"kd": 80.0, "ofa": 81.0}}).assign(method_display=["$a_b$ %", "<i>" + "x" * 60]),
}


@pytest.mark.parametrize("name", FRAMES)
def test_edge_cases_are_drawn(tmp_path, name):
    assert draw_leaderboard(build_leaderboard(FRAMES[name]), tmp_path / "board.png").stat().st_size > 1000


def test_a_method_that_collapsed_does_not_squeeze_the_others():
    pairs = [f"t--s{i}" for i in range(8)]
    figures = {p: {"kd": 80.0, "ofa": 80.5 + i / 10, "dkd": 79.5 + i / 10} for i, p in enumerate(pairs)}
    figures[pairs[0]]["fitnet"] = 10.0
    board = build_leaderboard(factory.frame(figures))
    low, high = _limits(board, board.standings)
    assert -10 < low < 0 < high < 5


def test_drawing_leaves_no_figure_open_and_no_setting_changed(tmp_path):
    code = (
        "import sys, matplotlib; before = dict(matplotlib.rcParams)\n"
        "from tests.reporting import factory\n"
        "from kdbench.reporting.leaderboard import build_leaderboard\n"
        "from kdbench.reporting.plots.picture import draw_leaderboard\n"
        "draw_leaderboard(build_leaderboard(factory.small()), sys.argv[1])\n"
        "assert dict(matplotlib.rcParams) == before\n"
        "import matplotlib.pyplot; assert not matplotlib.pyplot.get_fignums()\n"
    )
    root = __file__.split("/tests/reporting/")[0]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "b.png")], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
