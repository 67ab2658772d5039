"""Plots: what goes into them by hand, that they are drawn for every kind of store, and their size on paper."""

from __future__ import annotations

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from kdbench.errors import KdbenchError
from kdbench.reporting.frame import collect
from kdbench.reporting.leaderboard import build_leaderboard
from kdbench.reporting.plots import draw, stored
from kdbench.reporting.plots.draw import PLOTS, draw_plots, write_plots
from kdbench.reporting.plots.scatter import agreement_plot, agreement_points, cost_plot, pareto_front
from kdbench.reporting.plots.style import WIDTH, drawn_in, figure_bytes
from kdbench.reporting.plots.teacher import teacher_points
from kdbench.reporting.ranks import cliques, rank_diagram
from kdbench.reporting.statistics import holm, signed_rank
from kdbench.store.reading import Outcomes
from tests.few import few
from tests.reporting import factory
from tests.reporting.stored import write_store

P1, P2 = "swin_tiny--resnet18", "convnext_tiny--deit_tiny"


def test_the_pareto_front_is_what_nobody_beats_in_both() -> None:
    #        cheap    dominated  better    as dear, worse  dearest, no better
    costs = [1.0, 1.2, 1.5, 1.5, 3.0]
    gains = [0.0, -0.1, 2.0, 1.0, 2.0]
    assert pareto_front(costs, gains) == [0, 2]
    assert pareto_front([1.0, 1.0], [2.0, 2.0]) == [0, 1]
    assert pareto_front([], []) == []


@pytest.mark.parametrize(
    ("apart", "expected"),
    [
        ([], ((0, 3),)),
        ([(0, 3)], ((0, 2), (1, 3))),
        ([(0, 1), (0, 2), (0, 3)], ((1, 3),)),
        ([(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)], ()),
        ([(0, 2), (0, 3), (1, 3)], ((0, 1), (1, 2), (2, 3))),
        ([(1, 2)], ((0, 1), (2, 3))),
    ],
)
def test_cliques_are_the_largest_runs_in_which_no_two_differ(apart, expected) -> None:
    alike = np.ones((4, 4), bool)
    for i, j in apart:
        alike[i, j] = alike[j, i] = False
    assert cliques(alike) == expected


def many(pairs: int = 12) -> pd.DataFrame:
    """KD and DKD win against each other by turns, and so do CRD and OFA, which beat both on every pair."""
    figures = {}
    for i in range(pairs):
        turn = (-1) ** i * (1 + i // 2) / 10
        figures[f"t--s{i}"] = {"scratch": 60.0, "kd": 70.0, "dkd": 70 + turn, "crd": 75.0, "ofa": 75 + turn}
    return factory.frame(figures)


def test_ranks_cliques_and_p_values_agree_with_their_definition() -> None:
    results = collect(many())
    diagram = rank_diagram(results)
    means = results.means()[list(diagram.methods)]
    assert diagram.ranks == pytest.approx(means.rank(axis=1, ascending=False).mean().tolist())
    assert list(diagram.ranks) == sorted(diagram.ranks)
    assert diagram.methods == ("crd", "ofa", "dkd", "kd")
    assert diagram.cliques == ((0, 1), (2, 3))
    first, second = np.triu_indices(4, 1)
    p = [signed_rank(means.iloc[:, i] - means.iloc[:, j])[0] for i, j in zip(first, second, strict=True)]
    assert diagram.p_holm[first, second] == pytest.approx(holm(p))
    assert diagram.smallest_p == pytest.approx(6 * 2.0**-11)


def test_with_few_pairs_no_bar_is_drawn_and_the_caption_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draw, "PLOTS", {"ranks": PLOTS["ranks"]})
    diagram = rank_diagram(collect(many(4)))
    assert not diagram.attainable
    caption = draw_plots(many(4), "nowhere")[0].caption
    assert "No bars are drawn: with 4 pairs and 4 methods" in caption
    assert "no evidence of equality" in caption


def test_reliability_bins_agree_with_the_measured_calibration_error() -> None:
    torch = pytest.importorskip("torch")
    from kdbench.plugins.metrics import expected_calibration_error

    rng = np.random.default_rng(3)
    probability = np.append(rng.uniform(0.5, 1, 500), [1.0, 2 / 3])  # two classes: the larger one is the predicted
    correct = rng.random(502) < 0.8
    both = torch.tensor(np.stack([probability, 1 - probability], axis=1))
    labels = torch.tensor(np.where(correct, 0, 1))
    found = stored.reliability(probability, correct)
    assert found.error == pytest.approx(100 * float(expected_calibration_error(both, labels)))
    assert found.share.sum() == pytest.approx(1)


def test_learning_curves_are_mean_and_range_over_seeds(tmp_path: Path) -> None:
    frame = write_store(tmp_path, factory.frame({P1: {"kd": [80.0, 82.0, 84.0]}}))
    for path, values in zip(frame["path"], ([1, 2, 3], [3, 4, 8], [5, 6]), strict=True):
        lines = [f"{epoch},{top1}" for epoch, top1 in enumerate(values, 1)]
        (tmp_path / path / "history.csv").write_text("\n".join(["epoch,top1", *lines]) + "\n")
    results = collect(frame)
    curve = stored.learning_curves(results, build_leaderboard(frame), Outcomes(tmp_path))[P1]["kd"]
    assert (curve.mean.tolist(), curve.low.tolist(), curve.high.tolist()) == ([3, 4], [1, 2], [5, 6])
    assert (curve.epochs.tolist(), curve.seeds) == ([1, 2], 3)


def test_calibration_compares_methods_on_the_same_cells(tmp_path: Path) -> None:
    frame = write_store(tmp_path, factory.frame({P1: {"kd": [80.0, 82.0], "ofa": 84.0}, P2: {"kd": 70.0}}))
    found = stored.calibrations(collect(frame), build_leaderboard(frame), Outcomes(tmp_path))
    assert {name: one.images for name, one in found.items()} == {"kd": 200, "ofa": 200}


def test_agreement_is_counted_from_the_reference_on_the_same_pair() -> None:
    frame = factory.small()
    points = agreement_points(collect(frame), build_leaderboard(frame))
    ofa = points[(points["method"] == "ofa") & (points["pair"] == P1)]
    assert ofa[["agreement", "value"]].to_numpy().tolist() == [[3.0, 3.0]]
    assert "kd" not in set(points["method"])


def _with_costs(gains: dict[str, float]) -> pd.DataFrame:
    """Methods with these gains over KD, each a tenth of a step dearer than the one before."""
    methods = {"scratch": -2.0, "kd": 0.0, **gains}
    parts = [
        factory.frame({pair: {name: 80.0 + gain}}, step_seconds=0.01 + 0.001 * i)
        for pair in (P1, P2)
        for i, (name, gain) in enumerate(methods.items())
    ]
    return pd.concat(parts, ignore_index=True)


def test_many_methods_are_named_by_number_and_what_lies_beyond_stands_on_the_frame() -> None:
    gains = {f"m{i}": 0.1 * i for i in range(20)} | {"low": -60.0}
    frame = _with_costs(gains)
    with drawn_in():
        figures = [cost_plot(build_leaderboard(frame)), agreement_plot(collect(frame), build_leaderboard(frame))]
    for figure, least in zip(figures, (23, 22), strict=True):
        axes = figure.axes[0]
        named = [text.get_text() for text in figure.legends[-1].get_texts()]
        assert {name.split("  ")[1].split(" ")[0] for name in named} >= {name.upper() for name in gains}
        assert len(named) == len(axes.texts) == least
        assert [text.get_text() for text in axes.texts] == [name.split("  ")[0] for name in named]
        assert named[-1].endswith("LOW (−60.0 ↓)")
        lowest = min(float(line.get_ydata()[0]) for line in axes.lines if line.get_marker() != "None")
        assert lowest == pytest.approx(axes.get_ylim()[0])


def test_few_methods_are_named_beside_their_points_off_the_pareto_front() -> None:
    with drawn_in():
        figure = cost_plot(build_leaderboard(_with_costs({"fitnet": 1.0, "crd": -0.5, "ofa": 2.0})))
    axes = figure.axes[0]
    assert {text.get_text() for text in axes.texts} == {"From scratch", "KD", "FitNet", "CRD", "OFA"}
    front = next(line for line in axes.lines if line.get_drawstyle() == "steps-post")
    x, y = front.get_data()
    corners = [(x[0], y[0])] + [corner for k in range(1, len(x)) for corner in ((x[k], y[k - 1]), (x[k], y[k]))]
    places = axes.transData.transform(corners)
    along = np.concatenate([np.linspace(a, b, 200) for a, b in itertools.pairwise(places)])
    for text in axes.texts:
        box = text.get_window_extent()
        assert not any(box.x0 < u < box.x1 and box.y0 < v < box.y1 for u, v in along), text.get_text()


def test_gains_stand_against_the_teachers_own_figure_with_spearmans_correlation() -> None:
    frame = many().assign(teacher_top1=lambda f: 80 + f["pair"].str.split("--s").str[1].astype(float) % 5)
    points = teacher_points(collect(frame), build_leaderboard(frame))
    assert list(points) == ["kd", "crd", "ofa", "dkd"]
    means = frame.pivot(index="pair", columns="method", values="top1")
    for name, found in points.items():
        assert found.gain.tolist() == pytest.approx((means[name] - means["scratch"])[list(found.pairs)].tolist())
        assert found.teacher.tolist() == [80 + int(pair.split("--s")[1]) % 5 for pair in found.pairs]
        if name in ("ofa", "dkd"):
            assert found.correlation == pytest.approx(stats.spearmanr(found.teacher, found.gain).statistic)
    assert np.isnan(points["kd"].correlation)  # its gain is the same on every pair
    without = frame[frame["method"] != "scratch"]
    found = teacher_points(collect(without), build_leaderboard(without))
    assert "kd" not in found
    assert found["crd"].gain.tolist() == [5.0] * 12
    nothing = frame.assign(teacher_top1=np.nan)
    assert teacher_points(collect(nothing), build_leaderboard(nothing)) == {}


def test_every_plot_is_drawn_at_its_width(tmp_path: Path) -> None:
    frame = write_store(tmp_path, many())
    drawn = draw_plots(frame, tmp_path)
    assert [plot.name for plot in drawn] == list(PLOTS)
    for plot in drawn:
        assert plot.figure is not None, plot.caption
        assert plot.figure.get_figwidth() == WIDTH
        assert plot.figure.get_figheight() < 9.5
        sizes = [
            text.get_fontsize() for text in plot.figure.findobj(lambda a: hasattr(a, "get_fontsize")) if text.get_text()
        ]
        assert min(sizes) >= 5


def test_files_and_captions_are_written_and_the_same_each_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("heatmap", "cost")
    monkeypatch.setattr(draw, "PLOTS", {name: PLOTS[name] for name in names})
    frame = write_store(tmp_path / "runs", factory.small())
    written = write_plots(frame, tmp_path / "runs", tmp_path / "a", ("svg", "pdf"), command="kdbench plots toy")
    assert {path.name for path in written} == {"captions.md", *(f"{n}.{end}" for n in names for end in ("svg", "pdf"))}
    captions = written[0].read_text()
    assert captions.startswith("<!-- kdbench plots toy -->")
    assert all(PLOTS[name][0] in captions for name in names)
    write_plots(frame, tmp_path / "runs", tmp_path / "b", ("svg",))
    for name in names:
        assert (tmp_path / "a" / f"{name}.svg").read_bytes() == (tmp_path / "b" / f"{name}.svg").read_bytes()


LITTLE = {
    "nothing": pd.DataFrame(),
    "planned": factory.frame({P1: {"kd": None}}),
    "one cell": factory.frame({P1: {"kd": 80.0}}),
    "no baseline": factory.frame({P1: {"ofa": 80.0, "dkd": 81.0}}),
    "all equal": factory.frame({P1: {"scratch": 80.0, "kd": 80.0, "ofa": 80.0}}),
    "missing cells": factory.frame({P1: {"scratch": 70.0, "kd": 80.0, "ofa": 81.0}, P2: {"kd": 71.0, "dkd": None}}),
    "collapsed": factory.frame({P1: {"kd": 80.0, "ofa": 1.0}, P2: {"kd": 80.0, "ofa": 81.0}}),
    "odd names": factory.frame({P1: {"kd": 80.0, "ofa": 81.0}}).assign(method_display=["$a_b$ %", "<i>&" + "x" * 60]),
    "other metric missing": factory.frame({P1: {"kd": 80.0, "ofa": 81.0}}, agreement=np.nan, step_seconds=np.nan),
    "many methods": factory.frame({P1: {"kd": 80.0, **{f"m{i}": 80.0 + i for i in range(30)}}}),
    "many pairs": factory.frame({f"t--s{i}": {"kd": 80.0, "ofa": 81.0} for i in range(80)}),
}


@pytest.mark.parametrize("name", few(LITTLE, 3))
def test_every_store_gives_a_drawing_or_a_reason(tmp_path: Path, name: str) -> None:
    for plot in draw_plots(LITTLE[name], tmp_path):
        assert plot.caption
        if plot.figure is not None:
            assert figure_bytes(plot.figure, "svg", text_as_paths=True).startswith(b"<?xml")


def test_unknown_formats_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KdbenchError, match="unknown format 'gif'"):
        write_plots(factory.small(), tmp_path, tmp_path, ("gif",))


@pytest.mark.slow
def test_drawing_leaves_no_figure_open_and_no_setting_changed(tmp_path: Path) -> None:
    code = (
        "import sys, matplotlib; before = dict(matplotlib.rcParams)\n"
        "from tests.reporting import factory\n"
        "from kdbench.reporting.plots import draw\n"
        "draw.PLOTS = {name: draw.PLOTS[name] for name in ('heatmap', 'cost')}\n"
        "draw.draw_plots(factory.small(), sys.argv[1])\n"
        "assert dict(matplotlib.rcParams) == before\n"
        "import matplotlib.pyplot; assert not matplotlib.pyplot.get_fignums()\n"
    )
    root = __file__.split("/tests/reporting/")[0]
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
