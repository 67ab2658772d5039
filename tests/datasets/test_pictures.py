"""Encoded pictures of every mode and format: the right values, and what is refused."""

from __future__ import annotations

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kdbench.datasets.sources import FORMATS, decode, to_rgb


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixel(content: bytes) -> tuple[int, ...]:
    image = decode(io.BytesIO(content), "a.jpg")
    assert image.mode == "RGB"
    value = image.getpixel((0, 0))
    assert isinstance(value, tuple)
    return value


def grey16(*levels: int) -> Image.Image:
    return Image.fromarray(np.array([levels], dtype=np.uint16))


def with_palette(mode: str, value: Any) -> Image.Image:
    image = Image.new(mode, (2, 2), value)
    image.putpalette([part for index in range(256) for part in (index, 2 * index % 256, 255 - index)])
    return image


#: Mode -> a picture, and its colour.
MODES: dict[str, tuple[Image.Image, tuple[int, int, int]]] = {
    "1": (Image.new("1", (2, 2), 1), (255, 255, 255)),
    "L": (Image.new("L", (2, 2), 77), (77, 77, 77)),
    "LA": (Image.new("LA", (2, 2), (77, 3)), (77, 77, 77)),
    "P": (with_palette("P", 3), (3, 6, 252)),
    "PA": (with_palette("PA", (3, 9)), (3, 6, 252)),
    "RGB": (Image.new("RGB", (2, 2), (1, 2, 3)), (1, 2, 3)),
    "RGBA": (Image.new("RGBA", (2, 2), (200, 100, 50, 0)), (200, 100, 50)),
    "CMYK": (Image.new("CMYK", (2, 2), (0, 255, 255, 0)), (255, 0, 0)),
    "YCbCr": (Image.new("YCbCr", (2, 2), (76, 85, 255)), (254, 0, 0)),
    "LAB": (Image.new("LAB", (2, 2), (128, 128, 128)), (119, 119, 119)),
    "HSV": (Image.new("HSV", (2, 2), (0, 255, 255)), (255, 0, 0)),
    "I;16": (Image.new("I;16", (2, 2), 32767), (127, 127, 127)),
    "I;16B": (Image.new("I;16B", (2, 2), 65535), (255, 255, 255)),
    "I;16L": (Image.new("I;16L", (2, 2), 2000), (8, 8, 8)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_has_its_colour_in_8_bits(mode: str) -> None:
    image, colour = MODES[mode]
    assert to_rgb(image).getpixel((0, 0)) == colour


@pytest.mark.parametrize("mode", ["I", "F"])
def test_modes_without_a_white_are_refused_by_name(mode: str) -> None:
    with pytest.raises(OSError, match=rf"a\.jpg does not decode: mode {mode}, .* without a stated white"):
        pixel(encoded(Image.new(mode, (2, 2), 3), "TIFF"))


def test_grey_of_16_bits_is_scaled_from_white_to_white() -> None:
    levels = (0, 2000, 4000, 6000, 32767, 32768, 65535)
    right = [(8 * 0, 8, 16, 23, 127, 128, 255)] * 3
    pgm = b"P5 7 1 65535\n" + struct.pack(">7H", *levels)
    for content in (encoded(grey16(*levels), "PNG"), encoded(grey16(*levels), "TIFF"), pgm):
        channels = np.asarray(decode(io.BytesIO(content), "x"))[0].T
        assert channels.tolist() == [list(each) for each in right]


def test_tiff_of_12_bits_with_a_white_of_0_or_with_a_sign_is_what_it_says() -> None:
    """The file is written by hand: Pillow writes none of them."""

    def tiff(bits: int, white_is: int, data: bytes, sample_format: int = 1) -> bytes:
        tags = [
            (256, 2),
            (257, 1),
            (258, bits),
            (259, 1),
            (262, white_is),
            (273, 8),
            (277, 1),
            (278, 1),
            (279, len(data)),
            (339, sample_format),
        ]
        entries = b"".join(struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 1, value) for tag, value in tags)
        data += b"\0" * (len(data) % 2)
        return struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + bytes(4)

    assert np.asarray(decode(io.BytesIO(tiff(12, 1, b"\xff\xf8\x00")), "x"))[0, :, 0].tolist() == [255, 128]
    assert np.asarray(decode(io.BytesIO(tiff(16, 0, struct.pack("<2H", 0, 65535))), "x"))[0, :, 0].tolist() == [255, 0]
    for bits, data in ((8, b"\xff\x01"), (16, struct.pack("<2h", -1, 1))):
        with pytest.raises(OSError, match="integers with a sign and without a stated white"):
            decode(io.BytesIO(tiff(bits, 1, data, sample_format=2)), "x")


@pytest.mark.parametrize("kind", FORMATS)
def test_formats_are_read_by_content_whatever_the_ending(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    value = pixel(encoded(Image.new("RGB", (8, 8), (255, 0, 0)), kind, **options))
    assert np.abs(np.subtract(value, (255, 0, 0))).max() <= (2 if kind == "JPEG" else 0)


def test_of_several_pictures_in_a_file_the_first_is_read() -> None:
    first, second = (Image.new("RGB", (8, 8), colour) for colour in ((255, 0, 0), (0, 0, 255)))
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        options = {"lossless": True} if kind == "WEBP" else {}
        assert pixel(encoded(first, kind, save_all=True, append_images=[second], **options)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["EPS", "ICO", "TGA", "PCX", "SGI", "JPEG2000", "DDS"])
def test_no_other_reader_of_pillow_sees_a_file(kind: str) -> None:
    with pytest.raises(OSError, match=r"a\.jpg does not decode: it is no JPEG, PNG, WEBP, BMP, TIFF, PPM or GIF"):
        pixel(encoded(Image.new("RGB", (16, 16)), kind))
