"""``kdbench new-method``: what it writes conforms as it stands, and what it refuses."""

from __future__ import annotations

import ast
import io
import subprocess
import sys
import tokenize
from pathlib import Path

import pytest

from kdbench.cli import parser
from kdbench.errors import KdbenchError
from kdbench.plugins.entry import METHODS
from kdbench.plugins.registry import catalog
from kdbench.plugins.source import read_source
from kdbench.plugins.template import check_name, method_template, write_template


@pytest.fixture(autouse=True)
def forget_plugins():
    yield
    for name in [name for name, cls in METHODS.items() if cls.__module__.startswith("kdbench_plugin_")]:
        del METHODS[name]


def lines_of_code(text: str) -> int:
    """Lines that hold more than comments, docstrings and blank space."""
    ignored = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    lines = {token.start[0] for token in tokens if token.type not in ignored}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def test_a_new_method_passes_all_checks_as_it_stands(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert parser.main(["new-method", "my_first"]) == 0
    said = capsys.readouterr().out
    assert "kdbench test my_first --plugin my_first.py" in said
    assert "kdbench run digits" in said
    assert parser.main(["test", "my_first", "--plugin", "my_first.py"]) == 0


def test_the_template_is_short_and_explained() -> None:
    text = method_template("mine")
    assert lines_of_code(text) < 40
    assert text.count("#") >= 6
    assert all(len(line) <= 120 for line in text.splitlines())


@pytest.mark.parametrize(
    "name", ["mine", "a", "x2", "my_long_name", "method", "batch", "task", "true", "none", "tensor", "f"]
)
def test_any_name_that_is_taken_on_gives_a_file_that_registers_it(name: str, tmp_path) -> None:
    check_name(name, catalog())
    path = tmp_path / "plugin.py"
    write_template(name, path)
    (entry,) = read_source(path, "plugin")
    assert entry.name == name
    assert entry.needs == {"logits"}
    assert list(entry.hyperparameters) == ["temperature", "ce_weight", "kd_weight"]
    compile(path.read_text(), str(path), "exec")
    assert catalog([str(path)])[name].load().__mro__[1].__name__ == "Method"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("kd", "taken"),
        ("ofa", "taken"),
        ("class", "word of Python"),
        ("Mine", "lower-case"),
        ("my-method", "lower-case"),
        ("2fast", "beginning with a letter"),
        ("_x", "beginning with a letter"),
        ("", "lower-case"),
        ("a/b", "lower-case"),
        ("..", "lower-case"),
        ("ü", "lower-case"),
        ("x" * 41, "at most 40"),
    ],
)
def test_a_name_that_cannot_be_is_refused_in_one_line_before_anything_is_written(
    name, words, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parser.main(["new-method", name]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_exists_is_left_alone(tmp_path, capsys) -> None:
    path = tmp_path / "mine.py"
    path.write_text("precious")
    assert parser.main(["new-method", "mine", "--to", str(path)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert path.read_text() == "precious"


@pytest.mark.parametrize("target", ["missing/mine.py", "mine.txt", "."])
def test_a_place_that_cannot_be_written_is_one_line(target, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert parser.main(["new-method", "mine", "--to", target]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_a_plugin_has_is_taken(tmp_path, capsys) -> None:
    path = tmp_path / "mine.py"
    write_template("mine", path)
    assert parser.main(["new-method", "mine", "--to", str(tmp_path / "other.py"), "--plugin", str(path)]) == 2
    assert "taken" in capsys.readouterr().err
    with pytest.raises(KdbenchError, match="taken"):
        check_name("mine", catalog([str(path)]))


def test_writing_a_new_method_does_not_load_torch(tmp_path: Path) -> None:
    program = (
        "import sys; from kdbench.cli import parser; parser.main(['new-method', 'mine']); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("False")
