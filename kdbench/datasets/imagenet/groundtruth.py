"""Which class each image of a flat validation folder is of: the lists that ImageNet-1K is handed around with."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from kdbench.datasets.imagenet.wnids import WNID, numbers, wnids
from kdbench.errors import KdbenchError

KAGGLE, CLASSES = "LOC_val_solution.csv", "LOC_synset_mapping.txt"
NUMBERS = "ILSVRC2012_validation_ground_truth.txt"
LINES = ("imagenet_2012_validation_synset_labels.txt", "ILSVRC2012_validation_synset_labels.txt")
META, MAPPING = "meta.mat", "map_clsloc.txt"
NAMED_IN = f"{KAGGLE} (Kaggle), {NUMBERS} with {META} (devkit) or {LINES[0]}"
#: Folders of the devkit, seen from one that holds it.
_DEVKITS = ("", "ILSVRC2012_devkit_t12/data", "devkit/data", "ILSVRC2012_devkit_t12", "devkit", "data")
_OFFICIAL = re.compile(r"ILSVRC2012_val_(\d{8})")
_APPENDED = re.compile(r"_(n\d{8})$")


@dataclass(frozen=True)
class Truth:
    """The WNID of each validation image; ``path`` is the list that says so."""

    path: Path
    wnid_of: Callable[[str], str]

    def classes(self, images: Sequence[str]) -> list[str]:
        """WNIDs of images by their names.

        Raises:
            KdbenchError: for an image that the list does not have.
        """
        return [self.wnid_of(Path(image).stem) for image in images]


def find_truth(folder: Path, data: Path, title: str, images: Sequence[str]) -> Truth:
    """The list of labels for the images of ``folder``, in it, beside it or above it up to the data folder.

    Raises:
        KdbenchError: if there is none, or it cannot be understood.
    """
    if images and all(_APPENDED.search(Path(image).stem) for image in images):
        return Truth(folder, lambda name: _known(_APPENDED.search(name)[1], folder, title))  # type: ignore[index]
    for place in _places(folder, data):
        if (place / KAGGLE).is_file():
            return _from_table(place / KAGGLE, _kaggle(place / KAGGLE, title), title)
        for name in LINES:
            if (place / name).is_file():
                return _from_lines(place / name, _wnid_lines(place / name, title), title)
        if (place / NUMBERS).is_file():
            listed = place / NUMBERS
            names = _names_of_numbers(listed, [place, *_places(folder, data)], title)
            return _from_lines(listed, _number_lines(listed, names, title), title)
    raise KdbenchError(
        f"{title}: {folder} holds images, not class folders, and no list of their classes is there; expected {NAMED_IN} beside it"
    )


def refuse_other_order(folder: Path, data: Path, title: str) -> None:
    """See that Kaggle's list of classes, where it lies in a copy, has them in the usual order.

    Raises:
        KdbenchError: with the first line that is another.
    """
    for place in _places(folder, data):
        path = place / CLASSES
        if path.is_file():
            lines = _text(path, title)
            for number, wnid in enumerate(wnids()):
                line = lines[number] if number < len(lines) else ""
                if line.split(maxsplit=1)[:1] != [wnid]:
                    raise KdbenchError(f"{title}: {path}: line {number + 1} is {line!r}; expected {wnid} and its name")


def _places(folder: Path, data: Path) -> Iterator[Path]:
    """The folder, and those above it up to the data folder (one, where it is the data folder), with the devkits in them."""
    above = [folder, folder.parent]
    while above[-1] != data and data in above[-1].parents:
        above.append(above[-1].parent)
    for place in above:
        for devkit in _DEVKITS:
            if (place / devkit).is_dir():
                yield place / devkit


def _from_table(path: Path, table: dict[str, str], title: str) -> Truth:
    def wnid_of(name: str) -> str:
        if name not in table:
            raise KdbenchError(f"{title}: {path} has no line for {name}, one of the validation images")
        return table[name]

    return Truth(path, wnid_of)


def _from_lines(path: Path, lines: Sequence[str], title: str) -> Truth:
    def wnid_of(name: str) -> str:
        match = _OFFICIAL.match(name)
        if match is None:
            raise KdbenchError(
                f"{title}: validation image {name}; expected a name like ILSVRC2012_val_00000001, whose number is its line in {path}"
            )
        number = int(match[1])
        if not 1 <= number <= len(lines):
            raise KdbenchError(f"{title}: {path} has {len(lines):,} lines, none for {name}: was it copied whole?")
        return lines[number - 1]

    return Truth(path, wnid_of)


def _kaggle(path: Path, title: str) -> dict[str, str]:
    """``ImageId,PredictionString``: the latter is WNID x y x y, for every object in the image, all of one class."""
    table = {}
    for number, row in enumerate(csv.reader(_text(path, title)), 1):
        if number == 1 and row[:1] == ["ImageId"]:
            continue
        words = row[1].split() if len(row) > 1 else []
        if not words:
            raise KdbenchError(f"{title}: {path}: line {number} is {','.join(row)!r}; expected ImageId,WNID x y x y")
        table[row[0]] = _known(words[0], path, title, number)
    return table


def _wnid_lines(path: Path, title: str) -> list[str]:
    return [_known(line.strip(), path, title, number) for number, line in enumerate(_text(path, title), 1)]


def _number_lines(path: Path, names: dict[int, str], title: str) -> list[str]:
    lines = []
    for number, line in enumerate(_text(path, title), 1):
        word = line.strip()
        if not word.isdecimal() or int(word) not in names:
            raise KdbenchError(
                f"{title}: {path}: line {number} is {word!r}; expected a number from 1 to {len(names):,}"
            )
        lines.append(names[int(word)])
    return lines


def _names_of_numbers(listed: Path, places: Sequence[Path], title: str) -> dict[int, str]:
    """The WNID of every ``ILSVRC2012_ID``: the devkit's numbers, whose order is not the sorted one."""
    for place in places:
        for name, read in ((META, _read_meta), (MAPPING, _read_mapping)):
            if (place / name).is_file():
                found = read(place / name, title)
                known = set(wnids())
                names = {number: wnid for number, wnid in found.items() if wnid in known}
                if sorted(names) != list(range(1, len(known) + 1)):
                    raise KdbenchError(
                        f"{title}: {place / name} numbers {len(names):,} classes of ILSVRC 2012; expected 1 to {len(known):,}"
                    )
                return names
    raise KdbenchError(
        f"{title}: {listed} holds numbers in the devkit's own order; expected {META} or {MAPPING} beside it, which tell "
        "the class of each (in ILSVRC2012_devkit_t12.tar.gz, from https://www.image-net.org)"
    )


def _read_meta(path: Path, title: str) -> dict[int, str]:
    """The devkit's table of synsets; a MATLAB file holds arrays, and reading it runs no code."""
    from scipy.io import loadmat

    try:
        synsets = loadmat(path, squeeze_me=True, variable_names=["synsets"])["synsets"]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in synsets.ravel()}
    except Exception as error:  # whatever a wrong file makes the reader raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise KdbenchError(f"{title}: {path} is no meta.mat of the devkit ({reason})") from None


def _read_mapping(path: Path, title: str) -> dict[int, str]:
    """Lines of WNID, number, name."""
    names = {}
    for number, line in enumerate(_text(path, title), 1):
        words = line.split()
        if len(words) < 2 or not WNID.fullmatch(words[0]) or not words[1].isdecimal():
            raise KdbenchError(f"{title}: {path}: line {number} is {line.strip()!r}; expected WNID, number, name")
        names[int(words[1])] = words[0]
    return names


def _known(wnid: str, path: Path, title: str, line: int | None = None) -> str:
    if wnid not in numbers():
        where = f"{path}: line {line}" if line else str(path)
        raise KdbenchError(
            f"{title}: {where} names the class {wnid!r}; expected a WNID of ILSVRC 2012, such as {wnids()[0]}"
        )
    return wnid


def _text(path: Path, title: str) -> list[str]:
    try:
        return path.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise KdbenchError(f"{title}: {path} cannot be read ({reason})") from None
