"""The suite of docs/adding-a-suite.md works as it stands there, on any folder of its form."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

PAGE = Path(__file__).parents[2] / "docs" / "adding-a-suite.md"


@pytest.mark.slow
def test_the_suite_of_the_guide_is_planned_on_a_folder_with_two_images_a_class(
    kdbench: Callable[..., Any], tmp_path: Path
) -> None:
    (text,) = re.findall(r"```yaml\n(# yaml-language-server.*?)```", PAGE.read_text(), re.DOTALL)
    suite = tmp_path / "my_suite.yaml"
    suite.write_text(text)
    for split in ("train", "test"):
        for number in range(102):
            folder = tmp_path / "data" / "flowers" / split / f"class{number:03d}"
            folder.mkdir(parents=True)
            for image in range(2):
                Image.new("RGB", (8, 8), (number, image, 0)).save(folder / f"{image}.png")
    said = kdbench("plan", suite, "--data", tmp_path / "data", "--out", tmp_path / "out", "--no-probe")
    assert said.status == 0, said.out + said.err
    assert "protocol smoke" in said.out
    assert "6 cells: 6 pending" in said.out
