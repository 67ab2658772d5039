"""What an author chooses of a table, published figures within it, ablations, differences, and the paragraph of prose."""

from __future__ import annotations

import io
import json
import re
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from kdbench.errors import KdbenchError, UnknownNameError
from kdbench.plugins.citations import bibtex
from kdbench.plugins.registry import catalog
from kdbench.reporting.ablation import ablation_table
from kdbench.reporting.choices import Choices
from kdbench.reporting.differences import difference_table
from kdbench.reporting.figures import load_published
from kdbench.reporting.grid import Table
from kdbench.reporting.joined import join_tables
from kdbench.reporting.leaderboard import build_leaderboard
from kdbench.reporting.prose import paragraph
from kdbench.reporting.published import published_ledger
from kdbench.reporting.references import citation_of
from kdbench.reporting.table import build_table
from kdbench.reporting.text.leaderboard import render_leaderboard
from kdbench.reporting.text.render import render
from tests.reporting import factory

P1 = "swin_tiny--resnet18"
P2 = "mixer_b16--resnet18"


def on_cifar(**changes: object) -> pd.DataFrame:
    """Two pairs of the published tables, four methods, two seeds; KD of the papers is 78.74 and 77.79."""
    figures = {"scratch": [74.0, 74.2], "kd": [78.6, 78.9], "dkd": [80.0, 80.2], "ofa": [80.4, 80.8]}
    frame = factory.frame({P1: figures, P2: {name: [v - 1 for v in values] for name, values in figures.items()}})
    teachers = frame["teacher"].map({"swin_tiny": 89.26, "mixer_b16": 87.29})  # those of the papers
    cifar100 = {"suite": "cifar100", "dataset": "cifar100", "dataset_title": "CIFAR-100", "protocol": "paper"}
    return frame.assign(**cifar100 | {"teacher_top1": teachers} | changes)


def titles(table: Table) -> list[str]:
    return [header.title for header in table.columns]


def cell(table: Table, row: str, column: str):
    """Of ours: a published column may have the same title."""
    own = [header.title if header.kind != "published" else "" for header in table.columns]
    return table.cells[[header.title for header in table.rows].index(row)][own.index(column)]


def test_ours_stands_last_and_is_compared_with_the_best_other_of_each_row_and_of_the_average():
    frame = factory.frame({P1: {"kd": 70.0, "dkd": 72.0, "ofa": 71.0}, P2: {"kd": 70.0, "dkd": 66.0, "ofa": 71.0}})
    table = build_table(frame, choices=Choices(ours="dkd"))
    assert titles(table) == ["Teacher", "KD", "OFA", "DKD", "over best other"]
    assert table.columns[-2].kind == "ours"
    column = {header.title: row[-1].value for header, row in zip(table.rows, table.cells, strict=True)}
    assert column["Swin-T → ResNet18"] == 1  # OFA is best of the others
    assert column["Mixer-B/16 → ResNet18"] == -5
    assert column["average"] == -2  # OFA has the best average: 71 on both
    gained = build_table(frame, choices=Choices(baseline="ofa"))
    assert cell(gained, "average gain over OFA", "KD").value == -1


def test_order_names_decimals_and_spreads_are_the_authors_and_change_no_figure():
    frame = on_cifar()
    chosen = Choices(order=("ofa", "k*"), names={"ofa": "Ours & co", "resnet18": "R18"}, decimals=2, sd=False)
    table = build_table(frame, choices=chosen)
    assert titles(table) == ["Teacher", "Ours & co", "KD", "From scratch", "DKD"]
    assert [header.title for header in table.rows][:2] == ["Mixer-B/16 → R18", "Swin-T → R18"]
    shown = cell(table, "Swin-T → R18", "Ours & co")
    assert (shown.value, shown.decimals, np.isnan(shown.sd)) == (pytest.approx(80.6), 2, True)
    assert render(table, "csv") == render(build_table(frame, choices=Choices(order=("ofa", "k*"))), "csv")
    for wrong in (Choices(ours="nobody"), Choices(baseline="oaf"), Choices(order=("x*",)), Choices(names={"a": "b"})):
        with pytest.raises(UnknownNameError):
            build_table(frame, choices=wrong)


def test_published_figures_stand_in_the_same_table_marked_and_never_ranked():
    plain = build_table(on_cifar())
    table = build_table(on_cifar(), choices=Choices(published=True, ours="ofa"))
    published = [i for i, header in enumerate(table.columns) if header.kind == "published"]
    assert [table.columns[i].title for i in published] == ["From scratch", "KD", "DKD", "OFA"]
    assert published[-1] < titles(table).index("over best other") - 1  # ours is behind them
    assert all(table.columns[i].marks[0] == "†" for i in published)
    assert not any(row[i].best for row in table.cells for i in published)
    kd = table.cells[[h.title for h in table.rows].index("Swin-T → ResNet18")][published[1]]
    assert (kd.value, kd.kind) == (78.74, "value")
    for name in ("KD", "DKD", "OFA"):
        for row in (header.title for header in plain.rows):
            assert cell(table, row, name) == cell(plain, row, name)
    tidy = table.records[table.records["state"] == "published"].set_index(["pair", "method"])
    assert tidy.loc[(P1, "kd"), "mean"] == 78.74
    text = render(table, "markdown")
    assert "† published: other runs" in re.sub(r"</?sup>", "", text)
    latex = render(table, "latex")
    assert re.search(r"KD\\textsuperscript\{\$\\dagger\$\}\}?~?.*\\cite\{", latex)
    assert "github" not in latex.lower()
    alone = build_table(
        on_cifar(state="planned").assign(top1=np.nan, teacher_top1=np.nan), choices=Choices(published=True)
    )
    assert {header.kind for header in alone.columns} == {"published"}
    assert "No result of ours" in alone.caption
    with pytest.raises(KdbenchError, match="none is known of nll"):
        build_table(on_cifar(), metric="nll", choices=Choices(published=True))


def test_published_figures_stand_below_the_ranking_without_rank_and_test():
    board, plain = (build_leaderboard(on_cifar(), choices=Choices(published=shown)) for shown in (True, False))
    assert board.standings == plain.standings
    found = {standing.method: standing for standing, _ in board.published}
    assert found["kd"].gain == 0
    assert (found["ofa"].rank, found["ofa"].p) == (None, None)
    assert found["ofa"].gain == pytest.approx(np.mean([80.54 - 78.74, 79.39 - 77.79]), abs=0.3)
    for form in ("text", "markdown", "csv", "latex"):
        assert (
            render_leaderboard(board, form).count("OFA") > render_leaderboard(plain, form).count("OFA") or form == "csv"
        )
    over = build_leaderboard(on_cifar(), choices=Choices(baseline="dkd"))
    assert over.reference == "dkd"
    assert "kd has no results" not in " ".join(over.notes)


def test_every_method_and_every_published_figure_can_be_cited():
    entries = [entry.citation for name, entry in catalog().items() if name != "scratch"]
    assert all(entries)
    rows = load_published()
    cited = [citation_of(*row) for row in zip(rows["paper"], rows["arxiv_id"], rows["source"], strict=True)]
    assert {paper for paper, citation in zip(rows["paper"], cited, strict=True) if not citation} == {
        "PLD"
    }  # only a text
    text = bibtex([*entries, *cited])
    assert len(re.findall(r"^@", text, flags=re.M)) == len(set(re.findall(r"^@\w+\{(.+),$", text, flags=re.M)))
    assert r"Transformers \& Distillation" in text


def test_the_ledger_tells_inside_outside_and_where_recipes_differ():
    rows = published_ledger(on_cifar(epochs=300)).records
    kd = rows[(rows["method"] == "kd")].set_index("teacher")["verdict"]
    assert kd["swin_tiny"] == "inside"  # 78.75 ± 0.21 of two seeds, published 78.74
    tight = on_cifar(epochs=300)
    tight.loc[tight["method"] == "kd", "top1"] = 70.0 + tight["seed"] * 0.1
    rows = published_ledger(tight).records
    assert set(rows.loc[rows["method"] == "kd", "verdict"]) == {"outside"}
    for changes in ({"epochs": 40}, {"epochs": 300, "protocol": "short"}):
        rows = published_ledger(on_cifar().assign(**changes)).records
        assert set(rows.loc[rows["method"] == "ofa", "verdict"]) == {"recipe differs"}
    table = published_ledger(on_cifar(epochs=300))
    latex = render(table, "latex")
    assert r"\begin{longtable}" in latex
    assert r"\cite{" in latex
    assert "github" not in latex.lower()
    keys = {key for keys in re.findall(r"\\cite\{([^}]+)\}", latex) for key in keys.split(",")}
    assert keys == {citation["key"] for citation in table.citations}
    alone = published_ledger(on_cifar(state="planned", teacher_top1=np.nan).assign(top1=np.nan))
    assert "ours" not in titles(alone)


def test_suites_stand_side_by_side_and_are_never_pooled():
    second = factory.small().assign(suite="digits", dataset_title="digits")
    first = build_table(on_cifar(), choices=Choices(ours="ofa"))
    both = join_tables([first, build_table(second, choices=Choices(ours="ofa"))], ["CIFAR-100", "digits"], "methods")
    assert list(dict.fromkeys(header.group for header in both.columns)) == ["CIFAR-100", "digits"]
    assert [header.title for header in both.rows][-2:] == ["OFA", "over best other"]
    averages = [i for i, header in enumerate(both.columns) if header.title == "average"]
    row = both.cells[[header.title for header in both.rows].index("OFA")]
    assert row[averages[0]].value == pytest.approx(80.1)
    assert row[averages[1]].value == pytest.approx(75.1667, abs=1e-3)
    tas = both.cells[[header.title for header in both.rows].index("FBT")]
    assert [cell.kind for cell in tas[:2]] == ["absent", "absent"]
    assert both.caption.startswith("CIFAR-100: ")
    assert len(both.records) == 8 + 15


def test_an_ablation_has_a_row_for_each_setting_and_the_gain_over_the_method():
    base = factory.frame({P1: {"kd": [60.0, 61.0], "ofa": [70.0, 71.0]}, P2: {"kd": 50.0, "ofa": 65.0}})
    base["hyperparameters"] = '{"weight": 1.0, "eps": 1.5}'
    other = base[base["method"] == "ofa"].assign(method="w2", method_display="w2", variant_of="ofa")
    other = other.assign(hyperparameters='{"weight": 2.0, "eps": 1.5}', top1=other["top1"] + [1.0, 1.0, -2.0])
    table = ablation_table(pd.concat([base, other]), "ofa", "top1", "last", Choices())
    assert [header.title for header in table.rows] == ["OFA", "w2"]
    assert titles(table)[0] == "weight"
    assert [row[0].text for row in table.cells] == ["1.0", "2.0"]
    assert table.cells[1][-1].value == pytest.approx(-0.5)
    with pytest.raises(KdbenchError, match="kd has no variant here"):
        ablation_table(base, "kd", "top1", "last", Choices())
    with pytest.raises(UnknownNameError):
        ablation_table(base, "ofo", "top1", "last", Choices())


def test_differences_are_held_against_the_noise_of_seeds():
    first = factory.small()
    second = first[first["method"] != "tas"].copy()
    second.loc[(second["method"] == "kd") & (second["pair"] == P1), "top1"] += 10
    second.loc[(second["method"] == "dkd") & (second["pair"] == P1), "top1"] += 0.1
    table = difference_table(first, second, ("a", "b"), "top1", "last", True)
    said = table.records[table.records["pair"] == P1].set_index("method")["verdict"].to_dict()
    assert said == {"scratch": "equal", "kd": "changed", "dkd": "within noise", "ofa": "equal", "tas": "only in A"}
    values = first.groupby(["pair", "method"])["top1"]
    squares, freedom = (values.var() * (values.count() - 1)).sum(), (values.count() - 1).sum()
    pooled = np.sqrt(
        (2 * squares - (first[first["method"] == "tas"].groupby("pair")["top1"].var().sum())) / (2 * freedom - 3)
    )
    assert f"pooled: {pooled:.2f}" in table.notes[0].text
    short = difference_table(first, second, ("a", "b"), "top1", "last", False)
    assert set(short.records["verdict"]) == {"changed", "within noise", "only in A"}
    single = first[first["seed"] == 0]
    alone = difference_table(single, single.assign(top1=single["top1"] + 1), ("a", "b"), "top1", "last", False)
    assert set(alone.records["verdict"]) == {"differs"}
    assert "not known" in alone.notes[0].text


def test_the_paragraph_says_test_n_level_effect_and_what_cannot_be_said():
    board = build_leaderboard(factory.small())
    text = paragraph(board, "ofa")
    for said in (
        "4 methods on 3 teacher-student pairs", "2 seeds (0, 1)", "Wilcoxon's exact signed-rank test", "level of 0.05",
        "OFA gains +1.50", "n = 3 pairs", "no difference could have been significant", "no evidence that the methods are equal",
        "nothing is said of other nets", "poorly known",
    ):  # fmt: skip
        assert said in text
    assert paragraph(board).count("OFA gains") == 1  # the leader
    declared = json.dumps([{"method": "ofa", "against": "kd", "split": "test", "declared": "2020-01-01T00:00:00Z"}])
    text = paragraph(build_leaderboard(factory.small().assign(declared=declared)), "ofa")
    assert "With 3 pairs and 1 method no difference could have been significant" in text
    with pytest.raises(UnknownNameError):
        paragraph(board, "ofo")


def test_wide_tables_become_panels_in_markdown_and_only_the_mean_is_underlined():
    methods = {f"m{i}": [80.0 + i / 3, 81.0] for i in range(22)}
    table = build_table(factory.frame({f"t{i}--s{i}": {"kd": [80.0, 80.5], **methods} for i in range(3)}))
    text = render(table, "markdown")
    lines = [line for line in text.splitlines() if line.startswith("|")]
    assert max(len(re.sub(r"</?\w+>|\*\*|(?<= ) +|-+", "", line)) for line in lines) <= 135  # as they are shown
    assert 2 <= sum(line.startswith("| teacher") for line in lines) <= 4
    small = build_table(factory.small())
    assert "<ins>85.0</ins> ± 1.4" in render(small, "markdown")
    assert r"\underline{85.0} \ensuremath{\pm} 1.4" in render(small, "latex")
    assert "average ↑" in render(small, "markdown")
    assert "average rank ↓" in render(small, "text")
    worse = render(build_table(factory.small(), metric="nll"), "markdown")
    assert "average ↓" in worse


def test_the_verbs_take_the_choices_and_refuse_contradictions(kdbench, tmp_path):
    cells = tmp_path / "cells.csv"
    factory.small().assign(suite="digits", protocol="short").to_csv(cells, index=False)
    bib, tex = tmp_path / "refs.bib", tmp_path / "x.tex"
    out = ("--out", cells)
    said = kdbench(
        "table",
        *out,
        "--ours",
        "ofa",
        "--rename",
        "ofa=Ours",
        "--bib",
        bib,
        "--to",
        tex,
        "--caption",
        "short",
        "--label",
        "main",
    )
    assert said.status == 0, said.err
    latex = tex.read_text()
    assert r"\label{tab:main}" in latex
    assert r"Ours~\cite{hao2023ofa}" in latex
    assert "@inproceedings{hao2023ofa" in bib.read_text()
    bare = kdbench("table", *out, "--bare", "--format", "latex", "--no-sd", "--decimals", "2")
    assert not re.search(r"\\begin\{table|caption|minipage|pm", bare.out)
    for wrong in (
        ("table", "--to", tex, "--format", "csv"), ("leaderboard", "--to", tex, "--format", "csv"),
        ("diff", cells, cells, "--to", tex, "--format", "csv"), ("table", "--rename", "ofa"), ("table", "--ours", "ofo"),
        ("leaderboard", "--prose", "--format", "csv"), ("table", "--decimals", "9"),
    ):  # fmt: skip
        refused = kdbench(*wrong, *(() if wrong[0] == "diff" else out))
        assert refused.status == 2, wrong
        assert refused.err.startswith("kdbench: ")
    assert "equal" in kdbench("diff", cells, cells, "--all").out
    assert "OFA gains" in kdbench("leaderboard", *out, "--prose").out
    both = kdbench("table", "digits", "digits", *out, "--format", "csv")
    assert len(pd.read_csv(io.StringIO(both.out))) == 30


def test_published_figures_are_listed_and_shown_alone(kdbench, tmp_path):
    assert "OFA-KD" in kdbench("list", "published").out
    shown = kdbench(
        *("table", "cifar100", "--published", "--methods", "kd,ofa", "--decimals", 2),
        *("--out", tmp_path / "none", "--format", "markdown"),
    )
    assert shown.status == 0, shown.err
    assert "80.54" in shown.out


def document(tmp_path, bodies: list[str], citations, columns: str, names: bool) -> tuple[str, str]:
    """Compile bodies in an article of 10 pt that is as wide as a conference's, citing by authors' names or by numbers; the
    log, and what pdffonts says."""
    (tmp_path / "refs.bib").write_text(bibtex(citations) + "\n", encoding="utf-8")
    width = {"": "5.5in", "twocolumn": "6.875in"}[columns]
    text = "\n\nText.\n\n".join(bodies)
    (tmp_path / "t.tex").write_text(
        f"\\documentclass[10pt,{columns}]{{article}}\n\\usepackage[textwidth={width},textheight=9in]{{geometry}}\n"
        f"\\usepackage{{{'natbib,' * names}booktabs,longtable,graphicx}}\n"
        # what is scaled would be smaller than 8 pt
        "\\let\\scaled\\resizebox\\renewcommand{\\resizebox}[3]{\\typeout{SCALED}\\scaled{#1}{#2}{#3}}\n"
        f"\\begin{{document}}\n{text}\n\\bibliographystyle{{plain{'nat' * names}}}\\bibliography{{refs}}\n\\end{{document}}\n",
        encoding="utf-8",
    )
    tex = ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    for command in (tex, ["bibtex", "t"], tex, tex):
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
    fonts = subprocess.run(["pdffonts", "t.pdf"], cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    return (tmp_path / "t.log").read_text(errors="replace"), fonts


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("pdflatex") and shutil.which("pdffonts")), reason="needs pdflatex and pdffonts")
@pytest.mark.parametrize(("columns", "names"), [("", False), ("", True), ("twocolumn", False)])
def test_every_layout_compiles_unscaled_in_a_conferences_article(tmp_path, columns, names):
    from tests.reporting.test_published import CIFAR_PAIRS, field_frame

    methods = ["scratch", "kd", "fitnet", "crd", "dkd", "dist", "rsd", "ofa"]
    frames = [
        pd.concat([field_frame(data, pairs, methods, seed=seed, epochs=300) for seed in range(3)]).assign(dataset_title=title)
        for data, title, pairs in (
            ("cifar100", "CIFAR-100", CIFAR_PAIRS[:6]), ("imagenet1k", "ImageNet-1K", CIFAR_PAIRS[:6]),
        )
    ]  # fmt: skip
    for frame in frames:
        frame["top1"] = 75 + np.random.default_rng(0).normal(0, 1, len(frame))
    choices = Choices(ours="ofa", published=True, cite=True)
    parts = [build_table(frame, choices=choices) for frame in frames]
    variant = frames[0][frames[0]["method"] == "ofa"].assign(method="w2", variant_of="ofa", hyperparameters='{"w": 2}')
    board = build_leaderboard(frames[0], choices=choices)
    tables = [
        *(join_tables(parts, ["CIFAR-100", "ImageNet-1K"], layout) for layout in ("methods", "pairs")),
        parts[0],
        published_ledger(frames[0]),
        ablation_table(pd.concat([frames[0], variant]), "ofa", "top1", "last", Choices()),
        difference_table(frames[0], frames[0].assign(top1=frames[0]["top1"] + 1), ("A", "B"), "top1", "last", False),
    ]
    bodies = [*(render(table, "latex") for table in tables), render_leaderboard(board, "latex")]
    log, fonts = document(tmp_path, bodies, [c for table in tables for c in table.citations], columns, names)
    for fault in ("Overfull", "SCALED", "Citation", "Float too large", "undefined references"):
        assert fault not in log
    assert "Type 3" not in fonts
