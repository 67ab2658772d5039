"""Tables as markdown, LaTeX, CSV, HTML and text."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
import unicodedata
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from kdbench.reporting.published import published_ledger
from kdbench.reporting.table import Cell, build_table
from kdbench.reporting.text.latex import panels
from kdbench.reporting.text.markup import escape_latex, escape_markdown, plain_cell
from kdbench.reporting.text.render import WRITERS, render
from tests.reporting import factory

PAIR = "swin_tiny--resnet18"
ODD = r"*[a] 50% x_y & <b>|$c$ #1 {z} \q ~^ `k` --> é 中"


def odd_frame() -> pd.DataFrame:
    rows = [
        factory.cell(PAIR, "odd", 85.0, method_display=ODD, dataset_title=ODD),
        factory.cell(PAIR, "crd", state="failed", reason=ODD),
        factory.cell(PAIR, "fitnet", state="skipped", reason=ODD),
        factory.cell("[odd--*net", "kd", 85.0),
    ]
    return pd.concat([factory.small(), pd.DataFrame(rows)], ignore_index=True)


@pytest.mark.parametrize(
    ("cell", "text"),
    [
        (Cell("value", 93.24, 0.41), "93.2 ± 0.4"),
        (Cell("value", 93.24), "93.2"),
        (Cell("value", 93.24, decimals=2, coverage=(3, 9)), "93.24 (3/9)"),
        (Cell("gain", 0.5, decimals=2), "+0.50"),
        (Cell("gain", -0.5, decimals=2), "-0.50"),
        (Cell("gain", -0.001, decimals=2), "0.00"),
        (Cell("gain", 0.001, decimals=2), "0.00"),
        (Cell("count", coverage=(1, 9)), "1/9"),
        (Cell("absent"), "--"),
        (Cell("unsupported"), "n/a"),
        (Cell("empty"), ""),
        (Cell("text", text="KD"), "KD"),
    ],
)
def test_a_cell_reads(cell, text):
    assert plain_cell(cell) == text


def test_markdown_is_one_table_with_best_bold_and_second_underlined():
    text = render(build_table(factory.small(), command="kdbench table toy"), "markdown")
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    assert "**87.0 ± 1.4**" in text
    assert "<ins>85.0</ins> ± 1.4" in text
    assert "FBT (rec.)" in text
    assert text.startswith("<!-- kdbench table toy (results ")


def test_odd_names_do_not_break_the_markdown_table():
    blocks = re.findall(r"(?:^\|.*\n)+", render(build_table(odd_frame()), "markdown"), flags=re.M)
    assert blocks
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert escape_markdown("a|b_c*<i>") == r"a\|b\_c\*\<i\>"


def test_comments_cannot_be_closed_from_within():
    table = build_table(factory.small(), command="kdbench table --> \n<script>")
    for format in ("markdown", "html"):
        assert render(table, format).splitlines()[0].count("-->") == 1
    assert render(table, "latex").splitlines()[0] == "% kdbench table --> <script>"


def test_latex_escapes_everything_special():
    assert escape_latex("50% a_b & $x #1 {y}") == r"50\% a\_\allowbreak{}b \& \$x \#1 \{y\}"
    assert escape_latex("é → ± e\u0301") == r"\'e $\rightarrow$ \ensuremath{\pm} \'e"
    assert escape_latex("中") == r"\ensuremath{\langle}\texttt{U+4E2D}\ensuremath{\rangle}"
    assert escape_latex("*[a]") == "{*}{[}a{]}"
    assert escape_latex("a--b ''c'' —") == "a-{}-b '{}'c'{}' ---"
    assert escape_latex("Straße β") == r"Stra\ss{}e \ensuremath{\beta}"


@pytest.mark.parametrize("layout", ["pairs", "methods"])
def test_every_latex_row_has_as_many_columns_as_the_table(layout):
    table = replace(build_table(odd_frame(), layout), bare=True)
    text = render(table, "latex")
    rows = re.findall(r"^(?!\\multicolumn| &)(.*&.*) \\\\$", text, flags=re.M)
    assert len(rows) == len(table.rows) + 1
    for row in rows[1:]:
        assert len(re.findall(r"(?<!\\)&", row)) == len(table.columns)


def wide_frame() -> pd.DataFrame:
    """Twenty-four methods on six pairs."""
    methods = {f"m{i}": [80.0 + i / 3, 81.0, 79.0] for i in range(22)}
    return factory.frame({f"t{i}--s{i}": {"scratch": [70.0] * 3, "kd": [80.0] * 3, **methods} for i in range(6)})


def test_a_wide_table_becomes_panels_and_spans_both_columns():
    table = build_table(wide_frame())
    parts = panels(table)
    assert max(len(part.columns) for part in parts) - min(len(part.columns) for part in parts) <= 2
    assert [c for part in parts for c in part.columns] == list(table.columns)
    text = render(table, "latex")
    assert text.count(r"\begin{tabular}{l") == text.count(r"t0 $\rightarrow$ s0 &") == len(parts) > 3
    assert text.count(r"\caption") == text.count(r"\begin{table*}") < len(parts)
    assert text.count(r"\label") == 1
    assert r"\begin{table}" in render(build_table(factory.frame({PAIR: {"kd": 80.0}})), "latex")


def test_a_long_table_becomes_several_floats_with_one_label_and_its_notes_at_the_end():
    frame = factory.frame({f"t{i % 9}--s{i}": {"scratch": 70.0, "kd": 80.0, "tas": 81.0} for i in range(120)})
    text = render(build_table(frame), "latex")
    floats = re.split(r"\\begin\{table\*?\}", text)[1:]
    assert len(floats) == 4
    assert [part.count(r"\label") for part in floats] == [1, 0, 0, 0]
    assert [part.count("Continued.") for part in floats] == [0, 1, 1, 1]
    assert [part.count(r"\begin{minipage}") for part in floats] == [0, 0, 0, 1]
    assert len(re.findall(r"^t\d \$", text, flags=re.M)) == 120
    assert max(part.count("\n") for part in floats) < 75


def latex(tmp_path, document: str) -> str:
    """Compile and return the log."""
    (tmp_path / "t.tex").write_text(document, encoding="utf-8")
    command = ["pdflatex", "-no-shell-escape", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    for _ in range(2):  # the second run knows the labels
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, errors="replace")
        assert done.returncode == 0, done.stdout[-2000:]
    return (tmp_path / "t.log").read_text(errors="replace")


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex with booktabs")
@pytest.mark.parametrize("options", ["", "[twocolumn]"])
@pytest.mark.parametrize("packages", ["booktabs,longtable", "booktabs,longtable,graphicx"])
def test_latex_compiles_in_an_article(tmp_path, options, packages):
    long = factory.frame({f"t{i % 9}--s{i}": {"kd": 80.0, "tas": 81.0} for i in range(100)})
    frames = [odd_frame(), wide_frame(), long, pd.DataFrame()]
    bodies = [render(build_table(frame, layout), "latex") for frame in frames for layout in ("pairs", "methods")]
    bodies.append(render(published_ledger(factory.small().assign(dataset="cifar100")), "latex"))
    page = "\\usepackage[textwidth=5.5in]{geometry}"  # tables are made for a line of 380 pt
    head = f"\\documentclass{options}{{article}}\n\\usepackage{{{packages}}}\n{page}\\begin{{document}}\nText.\n"
    log = latex(tmp_path, head + "\nMore text.\n".join(bodies) + "\\end{document}\n")
    assert "LaTeX Warning: Reference" not in log  # papers are cited, and no bibliography is here
    if "graphicx" in packages:  # then nothing sticks out of the page
        assert "Overfull" not in log
        assert "Float too large" not in log


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("pdflatex") and shutil.which("pdftotext")), reason="needs pdflatex and pdftotext")
def test_special_characters_read_the_same_in_print(tmp_path):
    names = [r"ab & 50% #1 $x$", r"{n} \q <m> |p|", "[x]*y --- ''z''", "Ä ö ü é ñ ß ø Œ", "β-KD λ"]
    frame = factory.frame({PAIR: {f"m{i}": 80.0 + i for i in range(len(names))}}).assign(method_display=names)
    head = "\\documentclass{article}\n\\usepackage{booktabs,graphicx}\n\\begin{document}\n"
    latex(tmp_path, head + render(build_table(frame, "methods"), "latex") + "\\end{document}\n")
    subprocess.run(["pdftotext", "-layout", "t.pdf"], cwd=tmp_path, check=True)
    text = unicodedata.normalize("NFC", "".join((tmp_path / "t.txt").read_text().split()))
    for name in names:
        assert name.replace("''", "’’").replace(" ", "") in text


def test_csv_is_tidy_and_reads_back_as_numbers():
    table = build_table(factory.small())
    back = pd.read_csv(io.StringIO(render(table, "csv")))
    assert len(back) == 15
    assert back["mean"].dtype.kind == "f"
    assert back.loc[(back["pair"] == PAIR) & (back["method"] == "ofa"), ["mean", "n"]].to_numpy().tolist() == [
        [87.0, 2]
    ]
    assert "±" not in render(table, "csv")


@pytest.mark.parametrize("layout", ["pairs", "methods"])
def test_html_is_well_formed_and_escaped(layout):
    text = render(build_table(odd_frame(), layout), "html")
    assert "<b>|$c$" not in text
    open_tags: list[str] = []

    class Checker(HTMLParser):
        def handle_starttag(self, tag, attrs):
            open_tags.append(tag)

        def handle_endtag(self, tag):
            assert open_tags.pop() == tag

    Checker().feed(text)
    assert open_tags == []


def test_text_marks_best_second_and_footnotes():
    text = render(build_table(odd_frame()), "text")
    assert "**87.0 ± 1.4**" in text
    assert "n/a[a]" in text
    assert "\n[a] not applicable: " in text
    assert "CNN students:" in text


@pytest.mark.parametrize("format", WRITERS)
@pytest.mark.parametrize("frame", [pd.DataFrame(), factory.frame({PAIR: {"kd": None}})], ids=["nothing", "planned"])
def test_an_empty_store_says_so_in_one_line(format, frame):
    text = render(build_table(frame), format)
    if format == "csv":
        assert text.startswith("suite,protocol,")
        assert len(text.splitlines()) == 1 + len(frame)
    else:
        assert sum("No results yet" in line for line in text.splitlines()) == 1


@pytest.mark.parametrize("format", WRITERS)
def test_every_format_renders_gaps_nans_and_odd_names(format):
    frame = odd_frame()
    frame.loc[3, "top1"] = np.nan
    for layout in ("pairs", "methods"):
        assert "nan" not in render(build_table(frame, layout), format).lower()


def test_a_table_needs_neither_torch_nor_scipy_nor_matplotlib():
    code = (
        "import sys, kdbench.reporting.table, kdbench.reporting.text.render, kdbench.reporting.published, kdbench.reporting.plots.picture;"
        "import kdbench.reporting.text.leaderboard;"
        "print([m for m in ('torch', 'scipy', 'matplotlib', 'seaborn', 'rich') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
