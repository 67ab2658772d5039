"""Take the tensors out of a file that needs code to be loaded. That code runs: in a process of its own, and only with ``--trust``."""

from __future__ import annotations

import contextlib
import pickle
import subprocess
import sys
import types
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from kdbench.errors import KdbenchError, counted
from kdbench.teachers.statedict import as_tensor, read_tensors


def convert(source: Path, target: Path) -> str:
    """Write the tensors of ``source`` as a file that loads without code.

    Returns:
        what was written, as a sentence.

    Raises:
        KdbenchError: if ``target`` exists, or ``source`` cannot be read or holds no tensors.
    """
    if not source.is_file():
        raise KdbenchError(f"--convert {source}: no such file")
    if target.exists() or target.is_symlink():
        raise KdbenchError(f"--convert: {target} exists already")
    command = [sys.executable, "-P", "-m", "kdbench.teachers.convert", str(source.absolute()), str(target.absolute())]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace")
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"]
        raise KdbenchError(f"--convert {source}: {said[-1]}")
    groups = read_tensors(target)
    parts = ", ".join(f"{counted(len(tensors), 'tensor')} in {name or 'it'}" for name, tensors in groups.items())
    return f"{target}: {parts}"


class _Unknown(dict[Any, Any]):
    """An object of a class that cannot be imported here: it keeps its attributes and its items."""

    def __new__(cls, *values: Any, **named: Any) -> _Unknown:
        return super().__new__(cls)

    def __init__(self, *values: Any, **named: Any) -> None:
        super().__init__()

    def __call__(self, *values: Any, **named: Any) -> _Unknown:
        return self

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update(state)

    def append(self, value: Any) -> None:
        self[len(self)] = value

    def extend(self, values: Any) -> None:
        for value in values:
            self.append(value)


class _Unpickler(pickle.Unpickler):
    """Loads what it can import; a whole net can so be taken apart without the code of its class."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return super().find_class(module, name)
        except Exception:  # the import of a module may end in anything
            return type(name, (_Unknown,), {})


def _load(path: Path) -> Any:
    """What a file holds: of torch (both of its formats, and TorchScript), else a plain pickle."""
    reader: Any = types.ModuleType("reader")
    reader.Unpickler = _Unpickler
    reader.load = lambda file, **options: _Unpickler(file, **options).load()
    with path.open("rb") as file:
        try:
            return torch.load(file, map_location="cpu", weights_only=False, pickle_module=reader)
        except Exception:
            file.seek(0)
            with contextlib.suppress(Exception):
                return _Unpickler(file).load()
            raise


def tensors_of(path: Path) -> dict[str, Any]:
    """The tensors of a file, in the mappings in which they lie. Runs the code inside the file.

    Raises:
        KdbenchError: if it holds none by name.
    """
    found = _tensors(_load(path), set())
    if not isinstance(found, dict):
        raise KdbenchError("it holds no tensors by name")
    return found


def _tensors(value: Any, seen: set[int]) -> Any:
    """Tensors alone: of nets their state dicts, of mappings what holds any; None for the rest."""
    if (tensor := as_tensor(value)) is not None:
        return tensor.detach().clone()
    if id(value) in seen:
        return None
    seen.add(id(value))
    if isinstance(value, torch.jit.ScriptModule):
        return _tensors(value.state_dict(), seen)
    if isinstance(value, nn.Module) or "_parameters" in getattr(value, "__dict__", {}):
        return _state_of(value, "")
    if not isinstance(value, Mapping):
        return None
    found = {str(key): _tensors(inner, seen) for key, inner in value.items()}
    return {key: inner for key, inner in found.items() if inner is not None} or None


def _state_of(module: Any, prefix: str) -> dict[str, Tensor]:
    """The state dict of a net, of which some classes may not be known."""
    inside = vars(module)
    temporary = inside.get("_non_persistent_buffers_set") or ()
    own = {**inside["_parameters"], **{k: v for k, v in inside["_buffers"].items() if k not in temporary}}
    state = {f"{prefix}{name}": value.detach().clone() for name, value in own.items() if value is not None}
    for name, child in inside["_modules"].items():
        if child is not None:
            state |= _state_of(child, f"{prefix}{name}.")
    return state


def main() -> None:
    """``python -m kdbench.teachers.convert IN OUT``"""
    source, target = map(Path, sys.argv[1:3])
    try:
        found = tensors_of(source)
        with target.open("xb") as file:
            torch.save(found, file)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}")


if __name__ == "__main__":
    main()
