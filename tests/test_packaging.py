"""What an installation without the repository holds."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = SETTINGS["tool"]["setuptools"]
#: Where the packages lie that are not below ``kdbench/``.
ELSEWHERE = {name: ROOT / folder for name, folder in SETUPTOOLS["package-dir"].items()}


def folder_of(package: str) -> Path:
    return ELSEWHERE.get(package, ROOT / package.replace(".", "/"))


def test_every_package_is_declared() -> None:
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "kdbench").rglob("__init__.py")}
    assert found | ELSEWHERE.keys() == set(SETUPTOOLS["packages"])


@pytest.mark.parametrize("package", SETUPTOOLS["packages"])
def test_every_file_of_a_package_is_shipped(package: str) -> None:
    patterns = ["*.py", *SETUPTOOLS["package-data"].get(package, ())]
    files = [path.name for path in folder_of(package).iterdir() if path.is_file()]
    left_out = [name for name in files if not any(fnmatch(name, pattern) for pattern in patterns)]
    assert set(left_out) <= {"README.md"}


def test_the_version_is_written_once_for_the_code_and_once_for_the_package() -> None:
    import kdbench

    assert SETTINGS["project"]["version"] == kdbench.__version__
    assert f"version: {kdbench.__version__}\n" in (ROOT / "CITATION.cff").read_text()


@pytest.mark.slow
def test_the_wheel_alone_trains_and_shows_in_an_empty_folder(tmp_path: Path) -> None:
    pytest.importorskip("build", reason="build is not installed")
    # The wheel is built from the sdist, as `python -m build` does: what the sdist lacks is missing in both.
    built = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(built, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (_,) = (tmp_path / "dist").glob("*.tar.gz")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "installed")
    empty = tmp_path / "empty"
    empty.mkdir()

    def kdbench(*words: str) -> str:
        environment = os.environ | {"PYTHONPATH": str(tmp_path / "installed"), "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "kdbench", *words], cwd=empty, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert str(tmp_path / "installed") in kdbench("show", "ofa"), "another kdbench answered"
    assert "OFA-KD, Table 2" in kdbench("table", "cifar100", "--against-published")
    assert "OFA-KD" in kdbench("table", "cifar100", "--published")
    kdbench("run", "digits", "--protocol", "smoke", "--yes")
    kdbench("report", "digits", "--protocol", "smoke", "--to", "report.html")
    assert (empty / "report.html").stat().st_size > 100_000
    kdbench("site", "runs", "--to", "pages")
    assert "OFA-KD" in (empty / "pages" / "index.html").read_text()
