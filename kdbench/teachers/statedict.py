"""Tensors out of files of others, read without running any of their code, and the ones among them that are a net's."""

from __future__ import annotations

import argparse
import pickle
import re
import shlex
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from kdbench.errors import KdbenchError

#: Where training scripts keep a state dict, in the order of preference where no keys tell: timm takes averaged weights first.
WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "net", "module")
#: What wrappers of a model put before all its keys.
PREFIXES = ("_orig_mod.", "module.", "model.")
#: What a name of averaged weights has in it.
_AVERAGED = re.compile(r"(?:^|[._])(?:ema|swa|averaged)(?:[._]|$)")
#: Mappings inside each other are searched for tensors so deep.
_DEPTH = 6
#: How a file of torch before 1.6 begins; other pickles begin with the first byte alone.
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"
#: Of NumPy, what holds other things than numbers and text.
_NOT_PLAIN = {"ObjectDType", "VoidDType", "StringDType"}

#: Tensors by name, for each mapping of a file that holds any: by the keys that lead to it, with dots, ``""`` for the outermost.
Groups = dict[str, dict[str, Tensor]]


class WeightsError(KdbenchError):
    """A file of weights that cannot be used."""


class Chosen(NamedTuple):
    """Weights chosen from a file: ``part`` says where they lay, ``notes`` what else is there, a line each."""

    state: dict[str, Tensor]
    part: str
    notes: tuple[str, ...]


def read_tensors(path: Path) -> Groups:
    """Read the tensors of a safetensors file or a torch file. Its first bytes tell which it is, not its name.

    Raises:
        WeightsError: for a file that is cut, holds no tensors, or needs code to be loaded.
    """
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except OSError as error:
        raise WeightsError(f"{path} cannot be read ({error.strerror})") from None
    if not head:
        raise WeightsError(f"{path} is empty")
    if head[8:9] == b"{" and not head.startswith(b"PK"):  # safetensors: eight bytes of length, then JSON
        return {"": _read_safetensors(path)}
    if head.startswith(b"version https://git-lfs"):
        raise WeightsError(f"{path} is a pointer of Git LFS, not the weights; git lfs pull fetches them")
    if head.lstrip()[:1] == b"<":
        raise WeightsError(f"{path} is a web page, not weights; fetch the file that the page links to")
    if head.startswith(b"\x89HDF"):
        raise WeightsError(f"{path} is an HDF5 file (Keras); convert it to a state dict of the net first")
    if path.suffix == ".npz" or _holds_arrays(path):
        raise WeightsError(f"{path} is an archive of NumPy; convert it to a state dict of the net first")
    content = _read_torch(path, head)
    groups = dict(_groups(content))
    if not groups:
        raise WeightsError(
            f"{path} holds no tensors (found {type(content).__name__}{_keys(content)}); expected a state dict, or mappings that hold one"
        )
    return groups


def choose_state(groups: Groups, wanted: Mapping[str, tuple[int, ...]], path: Path, part: str | None = None) -> Chosen:
    """The tensors of a net: those below the prefix under which all its keys lie, or the most of them.

    Averaged weights go before others that fit as well.

    Args:
        groups: of the file.
        wanted: shape of each tensor of the net.
        part: where in the file to look, as a suite says it.

    Raises:
        WeightsError: if there is nothing at ``part``.
    """
    inside = groups if part is None else _below(groups, part)
    if not inside:
        known = dict.fromkeys(name for name in (*groups, *_first_parts(groups)) if name)
        raise WeightsError(f"{path} holds nothing at part: {part}; it has {', '.join([*known][:12])}")
    needed = {key for key in wanted if not key.endswith(".num_batches_tracked")}
    ranked = []
    for group, tensors in inside.items():
        for prefix, (present, extra, equal) in _prefixes(tensors, wanted, needed).items():
            where = _joined(group, prefix.rstrip("."))
            averaged = bool(_AVERAGED.search(where.lower()))
            ranked.append(((present, -extra, equal), averaged, group, prefix, where))
    best = max(ranked, key=lambda each: each[:2], default=None)
    if best is None or 2 * best[0][0] < len(needed):  # the layout of another version, which timm may know
        return _by_custom(inside)
    fit, averaged, group, prefix, where = best
    others = [each[-1] for each in ranked if each[0] == fit and each[-1] != where]
    notes = []
    if others:
        kind = " (averaged weights)" if averaged else ""
        notes.append(f"{path}: {where or 'the outermost mapping'} was taken{kind}; part: {others[0]} takes the others")
    left = [key for key in inside[group] if not key.startswith(prefix)]
    for name in inside:
        if name not in (group, *others):
            left += [name] if name else [*inside[name]]  # the outermost mapping has no name
    if left:
        more = ", ..." if len(left) > 4 else ""
        notes.append(f"{path}: left out beside {where or 'the net'}: {', '.join(left[:4])}{more}")
    state = {key.removeprefix(prefix): value for key, value in inside[group].items() if key.startswith(prefix)}
    return Chosen(state, where, tuple(notes))


def as_tensor(value: Any) -> Tensor | None:
    """A tensor, also of an array of NumPy's; None for the rest."""
    if isinstance(value, Tensor):
        return value
    numbers = isinstance(value, np.ndarray) and value.dtype.kind in "fiu" and value.dtype.itemsize <= 8
    return torch.from_numpy(np.array(value)) if numbers else None


def convert_command(path: Path) -> str:
    """The command that takes the tensors out of a file that needs code, for a shell."""
    target = path.with_name(f"{path.stem}-tensors.pth")
    return f"kdbench teachers --convert {shlex.quote(str(path))} {shlex.quote(str(target))} --trust"


def _prefixes(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, tuple[int, ...]], needed: set[str]
) -> dict[str, tuple[int, int, int]]:
    """For each prefix below which keys of the net lie: how many, how many others, and how many have the net's shape."""
    present: Counter[str] = Counter()
    equal: Counter[str] = Counter()
    for key, value in tensors.items():
        for at in (0, *(match.end() for match in re.finditer(r"\.", key))):
            if key[at:] in needed:
                present[key[:at]] += 1
                equal[key[:at]] += tuple(value.shape) == wanted[key[at:]]
    return {
        prefix: (
            count,
            sum(key.startswith(prefix) and key.removeprefix(prefix) not in wanted for key in tensors),
            equal[prefix],
        )
        for prefix, count in present.items()
    }


def _by_custom(groups: Groups) -> Chosen:
    """The group that training scripts usually call so, or the largest, without the prefixes that all its keys share."""
    named = [name for wrapper in WRAPPERS for name in groups if name.split(".")[0] == wrapper]
    group = named[0] if named else max(groups, key=lambda name: len(groups[name]))
    state = {key: value for key, value in groups[group].items() if key != "n_averaged"}  # of torch's AveragedModel
    while prefix := next((prefix for prefix in PREFIXES if all(key.startswith(prefix) for key in state)), None):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return Chosen(state, group, ())


def _below(groups: Groups, part: str) -> Groups:
    """What lies at ``part``: a mapping of the file, what is inside of it, or the keys of one that begin so."""
    inside: Groups = {}
    for group, tensors in groups.items():
        if group == part or group.startswith(f"{part}."):
            inside[group] = tensors
            continue
        chosen = {key: value for key, value in tensors.items() if _joined(group, key).startswith(f"{part}.")}
        if chosen:
            inside[group] = chosen
    return inside


def _first_parts(groups: Groups) -> list[str]:
    return [_joined(group, key.split(".")[0]) for group, tensors in groups.items() for key in tensors]


def _joined(*names: str) -> str:
    return ".".join(filter(None, names))


def _groups(content: Any, path: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The tensors directly in a mapping, then those in the mappings inside of it. NumPy's arrays count as tensors."""
    if not isinstance(content, Mapping) or depth > _DEPTH:
        return
    tensors = {}
    for key, value in content.items():
        if (tensor := as_tensor(value)) is not None:
            tensors[str(key)] = tensor
    if tensors:
        yield path, tensors
    for key, value in content.items():
        yield from _groups(value, _joined(path, str(key)), depth + 1)


def _keys(content: Any) -> str:
    return f" with {', '.join(map(str, [*content][:4]))}" if isinstance(content, Mapping) and content else ""


def _holds_arrays(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
    return bool(names) and all(name.endswith(".npy") for name in names)


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{path} is cut or damaged ({path.stat().st_size:,} bytes; safetensors says: {first_line(error)})"
        ) from None


def _harmless() -> list[Any]:
    """Types that training scripts save beside the weights and that only hold values: the options of timm's checkpoints, and
    NumPy's numbers, text and arrays of these."""
    kinds = [getattr(np.dtypes, name) for name in np.dtypes.__all__ if name not in _NOT_PLAIN]
    functions = {"scalar": np.float64(0).__reduce__()[0], "_reconstruct": np.zeros(1).__reduce__()[0]}
    named = [
        (function, f"numpy.{core}.multiarray.{name}")
        for name, function in functions.items()
        for core in ("core", "_core")
    ]
    return [argparse.Namespace, np.dtype, np.ndarray, *kinds, *named]


def _read_torch(path: Path, head: bytes) -> Any:
    try:
        with (
            path.open("rb") as file,  # torch would go by the ending of a path
            torch.serialization.safe_globals(_harmless()),
            warnings.catch_warnings(),
        ):
            warnings.simplefilter("ignore")  # of TorchScript and of pickles, which are refused below
            return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # cut archives end in errors of many types
        needed = _needed_code(error, head)
        size = f"{path.stat().st_size:,} bytes"
        if needed:
            raise WeightsError(
                f"{path} needs {needed} to be loaded, which could run anything: refused. If you trust it, keep only its "
                f"tensors: {convert_command(path)}"
            ) from None
        if isinstance(error, pickle.UnpicklingError):
            raise WeightsError(
                f"{path} is cut, damaged, or no file of weights ({size}; expected a safetensors file or what torch.save wrote)"
            ) from None
        raise WeightsError(
            f"{path} is cut or damaged ({size}; expected what torch.save wrote; torch says: {first_line(error)})"
        ) from None


def _needed_code(error: Exception, head: bytes) -> str | None:
    """The first function or class that torch refused to use, or a kind of file that needs code; None if that was not the reason."""
    pattern = (
        r"GLOBAL ([\w.]+)|([\w.]+) was not an allowed|blocked (?:global|module) ?`?([\w.]+)|but got <class '([\w.]+)'"
    )
    if isinstance(error, pickle.UnpicklingError) and (match := re.search(pattern, str(error))):
        return next(group for group in match.groups() if group)
    if "TorchScript" in str(error):
        return "TorchScript"
    if head.startswith(b"\x80") and not head.startswith(_LEGACY) and not isinstance(error, EOFError):
        return "pickle"
    return None


def first_line(error: BaseException) -> str:
    """The first sentence of an error, or its type if it has none."""
    text = str(error).strip()
    return text.splitlines()[0].partition(". ")[0] if text else type(error).__name__
