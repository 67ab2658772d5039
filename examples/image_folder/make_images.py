"""Draw a folder of images to try suite.yaml with: ``python examples/image_folder/make_images.py DIR``."""

from __future__ import annotations

import random
import sys
from pathlib import Path

from PIL import Image, ImageDraw

SIZE = 32
COUNTS = {"train": 32, "test": 16}


def draw(shape: str, chance: random.Random) -> Image.Image:
    """One shape somewhere on a noisy ground."""
    image = Image.effect_noise((SIZE, SIZE), 40).convert("RGB")
    side = chance.randint(10, 20)
    x, y = chance.randint(0, SIZE - side), chance.randint(0, SIZE - side)
    colour = tuple(chance.randint(120, 255) for _ in range(3))
    pen = ImageDraw.Draw(image)
    if shape == "disc":
        pen.ellipse((x, y, x + side, y + side), fill=colour)
    elif shape == "square":
        pen.rectangle((x, y, x + side, y + side), fill=colour)
    else:
        pen.polygon([(x, y + side), (x + side, y + side), (x + side // 2, y)], fill=colour)
    return image


def main(root: Path) -> None:
    """Write ROOT/shapes/SPLIT/CLASS/NUMBER.png."""
    chance = random.Random(0)  # noqa: S311
    for split, count in COUNTS.items():
        for shape in ("disc", "square", "triangle"):
            folder = root / "shapes" / split / shape
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                draw(shape, chance).save(folder / f"{number}.png")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
