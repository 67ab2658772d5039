"""The class of each image of a flat validation folder, from the lists that come with copies of ImageNet-1K."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from kdbench.datasets.imagenet.wnids import TITLE, WNID, numbers, wnids
from kdbench.datasets.sources import reason_of
from kdbench.errors import KdbenchError
from kdbench.opening import RefusedFileError, followed, read_file

KAGGLE, CLASSES = "LOC_val_solution.csv", "LOC_synset_mapping.txt"
NUMBERS = "ILSVRC2012_validation_ground_truth.txt"
LINES = ("imagenet_2012_validation_synset_labels.txt", "ILSVRC2012_validation_synset_labels.txt")
META, MAPPING = "meta.mat", "map_clsloc.txt"
NAMED_IN = f"{KAGGLE} (Kaggle), {NUMBERS} with {META} (devkit) or {LINES[0]}"
#: Folders of the devkit, seen from one that holds it.
_DEVKITS = ("", "ILSVRC2012_devkit_t12/data", "devkit/data", "ILSVRC2012_devkit_t12", "devkit", "data")
_OFFICIAL = re.compile(r"ILSVRC2012_val_(\d{8})")
#: Python refuses to read numbers of thousands of digits.
_NUMBER = re.compile(r"[0-9]{1,9}")
_APPENDED = re.compile(r"_(n\d{8})$")


def classes_of(folder: Path, data: Path, images: Sequence[str]) -> list[str]:
    """WNIDs of the images of ``folder`` by their names, from a list in it, beside it or above it up to the data folder.

    Raises:
        KdbenchError: if there is no list, it is damaged, or it lacks an image.
    """
    stems = [Path(image).stem for image in images]
    appended = [match[1] for match in map(_APPENDED.search, stems) if match]
    if images and len(appended) == len(images):
        return [_known(wnid, folder) for wnid in appended]
    for place in _places(folder, data):
        if (place / KAGGLE).is_file():
            return _from_table(place / KAGGLE, data, stems)
        for name in LINES:
            if (place / name).is_file():
                lines = enumerate(_text(place / name, data), 1)
                return _from_lines(place / name, [_known(line.strip(), place / name, at) for at, line in lines], stems)
        if (place / NUMBERS).is_file():
            names = _names_of_numbers(place / NUMBERS, data, [place, *_places(folder, data)])
            return _from_lines(place / NUMBERS, _number_lines(place / NUMBERS, data, names), stems)
    raise KdbenchError(
        f"{TITLE}: {folder} holds images, not class folders, and no list of their classes is there; expected {NAMED_IN} beside it"
    )


def refuse_other_order(folder: Path, data: Path) -> None:
    """Raise ``KdbenchError`` if Kaggle's list of classes, where a copy has it, is not in the usual order."""
    for place in _places(folder, data):
        path = place / CLASSES
        if path.is_file():
            lines = _text(path, data)
            for number, wnid in enumerate(wnids()):
                line = lines[number] if number < len(lines) else ""
                if line.split(maxsplit=1)[:1] != [wnid]:
                    raise KdbenchError(f"{TITLE}: {path}: line {number + 1} is {line!r}; expected {wnid} and its name")


def _places(folder: Path, data: Path) -> Iterator[Path]:
    """The folder, and those above it up to the data folder (one, where it is the data folder), with the devkits in them."""
    above = [folder, folder.parent]
    while above[-1] != data and data in above[-1].parents:
        above.append(above[-1].parent)
    for place in above:
        for devkit in _DEVKITS:
            if (place / devkit).is_dir():
                yield place / devkit


def _from_table(path: Path, data: Path, stems: Sequence[str]) -> list[str]:
    """From ``ImageId,PredictionString``: the latter is WNID x y x y, for every object in the image, all of one class."""
    table = {}
    try:
        rows = list(csv.reader(_text(path, data)))
    except csv.Error as error:
        raise KdbenchError(f"{TITLE}: {path} cannot be read ({error})") from None
    for number, row in enumerate(rows, 1):
        if number == 1 and row[:1] == ["ImageId"]:
            continue
        words = row[1].split() if len(row) > 1 else []
        if not words:
            raise KdbenchError(f"{TITLE}: {path}: line {number} is {','.join(row)!r}; expected ImageId,WNID x y x y")
        table[row[0]] = _known(words[0], path, number)
    for stem in stems:
        if stem not in table:
            raise KdbenchError(f"{TITLE}: {path} has no line for {stem}, one of the validation images")
    return [table[stem] for stem in stems]


def _from_lines(path: Path, lines: Sequence[str], stems: Sequence[str]) -> list[str]:
    found = []
    for stem in stems:
        match = _OFFICIAL.match(stem)
        if match is None:
            raise KdbenchError(
                f"{TITLE}: validation image {stem}; expected a name like ILSVRC2012_val_00000001, whose number is its line in {path}"
            )
        if not 1 <= int(match[1]) <= len(lines):
            raise KdbenchError(f"{TITLE}: {path} has {len(lines):,} lines, none for {stem}: was it copied whole?")
        found.append(lines[int(match[1]) - 1])
    return found


def _number_lines(path: Path, data: Path, names: dict[int, str]) -> list[str]:
    lines = []
    for number, line in enumerate(_text(path, data), 1):
        word = line.strip()
        if not _NUMBER.fullmatch(word) or int(word) not in names:
            raise KdbenchError(
                f"{TITLE}: {path}: line {number} is {word!r}; expected a number from 1 to {len(names):,}"
            )
        lines.append(names[int(word)])
    return lines


def _names_of_numbers(listed: Path, data: Path, places: Sequence[Path]) -> dict[int, str]:
    """The WNID of every ``ILSVRC2012_ID``: the devkit's numbers, whose order is not the sorted one."""
    for place in places:
        for name, read in ((META, _read_meta), (MAPPING, _read_mapping)):
            if (place / name).is_file():
                found = read(place / name, data)
                known = set(wnids())
                names = {number: wnid for number, wnid in found.items() if wnid in known}
                if sorted(names) != list(range(1, len(known) + 1)):
                    raise KdbenchError(
                        f"{TITLE}: {place / name} numbers {len(names):,} classes of ILSVRC 2012; expected 1 to {len(known):,}"
                    )
                return names
    raise KdbenchError(
        f"{TITLE}: {listed} holds numbers in the devkit's own order; expected {META} or {MAPPING} beside it, which tell "
        "the class of each (in ILSVRC2012_devkit_t12.tar.gz, from https://www.image-net.org)"
    )


def _read_meta(path: Path, data: Path) -> dict[int, str]:
    """The devkit's table of synsets. Reading a MATLAB file runs no code."""
    from scipy.io import loadmat

    content = _bytes(path, data)
    try:
        synsets = loadmat(io.BytesIO(content), squeeze_me=True, variable_names=["synsets"])["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets.ravel()}
    except Exception as error:  # whatever a wrong file makes the reader raise
        raise KdbenchError(f"{TITLE}: {path} is no meta.mat of the devkit ({reason_of(error)})") from None


def _read_mapping(path: Path, data: Path) -> dict[int, str]:
    """Lines of WNID, number, name."""
    names = {}
    for number, line in enumerate(_text(path, data), 1):
        words = line.split()
        if len(words) < 2 or not WNID.fullmatch(words[0]) or not _NUMBER.fullmatch(words[1]):
            raise KdbenchError(f"{TITLE}: {path}: line {number} is {line.strip()!r}; expected WNID, number, name")
        names[int(words[1])] = words[0]
    return names


def _known(wnid: str, path: Path, line: int | None = None) -> str:
    if wnid not in numbers():
        where = f"{path}: line {line}" if line else str(path)
        raise KdbenchError(
            f"{TITLE}: {where} names the class {wnid!r}; expected a WNID of ILSVRC 2012, such as {wnids()[0]}"
        )
    return wnid


def _text(path: Path, data: Path) -> list[str]:
    try:
        return _bytes(path, data).decode("utf-8").splitlines()
    except UnicodeDecodeError:
        raise KdbenchError(f"{TITLE}: {path} cannot be read (it is no text)") from None


def _bytes(path: Path, data: Path) -> bytes:
    try:
        return read_file(followed(data, path))
    except RefusedFileError:
        raise
    except OSError as error:
        raise KdbenchError(f"{TITLE}: {path} cannot be read ({error.strerror})") from None
