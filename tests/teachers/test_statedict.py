"""Files of weights from others: what is read, which of their tensors are taken, what is refused, and how it is converted."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from kdbench.nets.tapped import TappedNet
from kdbench.suite.net import NetSpec
from kdbench.teachers.convert import tensors_of
from kdbench.teachers.foreign import load_state
from kdbench.teachers.statedict import Chosen, WeightsError, choose_state, read_tensors
from tests.conftest import Said
from tests.few import few

State = dict[str, Tensor]


def small() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))


STATE: State = dict(small().state_dict())
SHAPES = {key: tuple(value.shape) for key, value in STATE.items()}


def under(prefix: str, shift: float = 0.0) -> State:
    return {f"{prefix}{key}": value + shift for key, value in STATE.items()}


def chosen(path: Path, content: Any, part: str | None = None, **options: Any) -> Chosen:
    torch.save(content, path / "some.pth", **options)
    return choose_state(read_tensors(path / "some.pth"), SHAPES, path / "some.pth", part)


class Attack:
    """Runs a command when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("archive", [True, False])
def test_a_file_that_needs_code_is_refused_and_nothing_runs(tmp_path: Path, archive: bool) -> None:
    content = {"state_dict": STATE, "extra": Attack(tmp_path / "ran")}
    torch.save(content, tmp_path / "evil.pth", _use_new_zipfile_serialization=archive)
    with pytest.raises(
        WeightsError, match=r"evil\.pth needs posix\.system to be loaded.*refused.*keep only its tensors"
    ):
        read_tensors(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


#: Content of a file, and the part that is taken.
LAYOUTS: dict[str, tuple[Any, str]] = {
    "plain": (STATE, ""),
    "timm": (
        {"arch": "x", "state_dict": STATE, "args": argparse.Namespace(lr=0.1), "metric": np.float64(80)},
        "state_dict",
    ),
    "averaged": ({"state_dict": {"a": torch.zeros(1)}, "state_dict_ema": STATE}, "state_dict_ema"),
    "parallel": ({"model": under("module.")}, "model.module"),
    "compiled": (under("_orig_mod.module."), "_orig_mod.module"),
    "swa": ({"n_averaged": torch.tensor(3), **under("module.")}, "module"),
    "Lightning": (
        {"state_dict": {**under("model."), "criterion.weight": torch.zeros(3)}, "epoch": 3},
        "state_dict.model",
    ),
    "two nets": ({"model": {**under("net.student."), "net.teacher.0.weight": torch.zeros(2)}}, "model.net.student"),
    "own names": ({"my_weights": STATE, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}}, "my_weights"),
    "deep": ({"ema": {"module": STATE}, "model": under("", 1.0)}, "ema.module"),
    "values beside": ({**STATE, "epoch": 3, "best_epoch": np.int64(7)}, ""),
    "arrays": ({key: value.numpy() for key, value in STATE.items()}, ""),
}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("archive", [True, False])
def test_checkpoints_of_training_scripts_are_read(tmp_path: Path, name: str, archive: bool) -> None:
    content, part = LAYOUTS[name]
    found = chosen(tmp_path, content, _use_new_zipfile_serialization=archive)
    assert found.part == part
    assert found.state.keys() == STATE.keys()
    assert all(torch.equal(found.state[key], STATE[key]) for key in STATE)


def test_what_else_is_in_a_file_is_named(tmp_path: Path) -> None:
    inside = {**under("model."), "criterion.weight": torch.zeros(3)}
    content = {"state_dict": inside, "extra": {"a": torch.zeros(1)}, "best": torch.zeros(1)}
    (note,) = chosen(tmp_path, content).notes
    assert note.endswith("some.pth: left out beside state_dict.model: criterion.weight, best, extra")


def test_averaged_weights_go_first_and_the_others_are_taken_by_their_part(tmp_path: Path) -> None:
    for raw, averaged in (("state_dict", "state_dict_ema"), ("model", "model_ema"), ("net", "ema.net")):
        content: Any = {"x": {f"{raw}.{key}": value for key, value in under("", 1.0).items()} | under(f"{averaged}.")}
        found = chosen(tmp_path, content)
        assert found.part == f"x.{averaged}"
        assert f"x.{averaged} was taken (averaged weights); part: x.{raw} takes the others" in found.notes[0]
        other = chosen(tmp_path, content, part=f"x.{raw}")
        assert torch.equal(other.state["0.weight"], STATE["0.weight"] + 1)
    with pytest.raises(WeightsError, match=r"holds nothing at part: y; it has x, x\.net, x\.ema"):
        chosen(tmp_path, content, part="y")


def test_a_larger_net_of_the_same_names_is_not_taken_for_a_smaller_one(tmp_path: Path) -> None:
    larger = {**STATE, "3.weight": torch.zeros(2)}
    assert "3.weight" in chosen(tmp_path, larger).state  # which then does not fit
    assert chosen(tmp_path, {"teacher": larger, "student": under("", 1.0)}).part == "student"
    net = TappedNet(NetSpec(timm="resnet_32px_small"), 3, "net")
    torch.save({**net.net.state_dict(), "layer5.weight": torch.zeros(2)}, tmp_path / "larger.pth")
    with pytest.raises(WeightsError, match=r"1 key unknown \(layer5\.weight\); likely another variant"):
        load_state(net, tmp_path / "larger.pth")


def test_the_part_of_a_suite_is_used_and_is_in_the_identity(tmp_path: Path) -> None:
    spec = {"timm": "resnet_32px_small", "weights": {"file": "x", "part": "raw"}}
    net = TappedNet(NetSpec.model_validate(spec), 3, "net")
    state = dict(net.net.state_dict())
    torch.save({"raw": state, "ema": {key: value * 0 for key, value in state.items()}}, tmp_path / "x")
    said: list[str] = []
    assert load_state(net, tmp_path / "x", say=said.append)["part"] == "raw"
    assert torch.equal(net.net.state_dict()["conv1.weight"], state["conv1.weight"])
    assert net.spec.identity()["weights"] == {"file": "x", "part": "raw"}
    assert NetSpec.model_validate({**spec, "weights": {"file": "x"}}).identity()["weights"] == {"file": "x"}


def test_numpy_values_of_every_plain_type_are_harmless(tmp_path: Path) -> None:
    plain = [np.dtype(kind).type(1) for kind in "?bhilqBHILQefdgFDG"]
    plain += [np.str_("a"), np.bytes_(b"a"), np.datetime64("2020-01-01"), np.timedelta64(3, "s")]
    for value in plain:
        for archive in (True, False):
            content = {"state_dict": STATE, "value": value, "many": np.array([value, value])}
            assert chosen(tmp_path, content, _use_new_zipfile_serialization=archive).part == "state_dict", repr(value)
    with pytest.raises(WeightsError, match="to be loaded, which could run anything"):
        chosen(tmp_path, {"state_dict": STATE, "objects": np.array([{}, None], dtype=object)})


def test_the_first_bytes_tell_the_format_and_not_the_name(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "w.pth")
    assert read_tensors(tmp_path / "w.pth")[""].keys() == STATE.keys()
    torch.save(STATE, tmp_path / "w.safetensors")
    assert read_tensors(tmp_path / "w.safetensors")[""].keys() == STATE.keys()
    header = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).ljust(60).encode()
    (tmp_path / "tag.bin").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))  # begins with "<"
    assert read_tensors(tmp_path / "tag.bin")[""]["a"].tolist() == [0]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("cut.pth", "pth", "is cut or damaged"),
        ("cut.safetensors", "safetensors", "is cut or damaged"),
        ("cut.pth", "safetensors", "is cut or damaged"),
        ("empty.pth", b"", "is empty"),
        ("page.pth", b"<!DOCTYPE html><html>", "is a web page"),
        ("text.pth", b"hello, world", "expected what torch.save wrote|no file of weights"),
        ("pointer.pth", b"version https://git-lfs.github.com/spec/v1\n", "pointer of Git LFS"),
        ("array.npz", b"PK\x03\x04", "archive of NumPy"),
        ("model.h5", b"\x89HDF\r\n\x1a\n", "HDF5"),
    ],
)
def test_a_file_that_is_no_weights_is_named_with_what_it_is(
    tmp_path: Path, name: str, content: str | bytes, problem: str
) -> None:
    path = tmp_path / name
    state = {"a": torch.zeros(4000)}
    if content == "pth":
        torch.save(state, path)
    elif content == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        assert isinstance(content, bytes)
        path.write_bytes(content)
    if isinstance(content, str):
        path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(WeightsError, match=problem) as caught:
        read_tensors(path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ([1, 2], "holds no tensors .found list."),
        ({"state_dict": {}}, "holds no tensors .found dict with state_dict."),
        ({"epoch": 3, "lr": 0.1}, "holds no tensors .found dict with epoch, lr."),
    ],
)
def test_a_torch_file_without_tensors_says_what_it_holds(tmp_path: Path, content: Any, problem: str) -> None:
    torch.save(content, tmp_path / "some.pth")
    with pytest.raises(WeightsError, match=problem):
        read_tensors(tmp_path / "some.pth")


def test_a_mapping_that_holds_itself_ends(tmp_path: Path) -> None:
    content: dict[str, Any] = {"state_dict": STATE}
    content["again"] = content
    assert chosen(tmp_path, content).part == "state_dict"


# Conversion

SCRIPT = """
import argparse, pathlib, sys
import numpy as np, torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)
        self.register_buffer("temporary", torch.zeros(1), persistent=False)

class Options(dict):
    pass

class Numbers(list):
    pass

net = Net()
options = argparse.Namespace(out=pathlib.PosixPath("runs"))
for name, content in {
    "path": {"model": net.state_dict(), "args": options},
    "whole": net,
    "whole_inside": {"epoch": 3, "model": net},
    "own_classes": {"state_dict": net.state_dict(), "options": Options(lr=Numbers([1, 2])), "numbers": Numbers([1])},
    "own_mapping": {"state_dict": Options(net.state_dict())},
    "objects": {"state_dict": net.state_dict(), "log": np.array([{}], dtype=object)},
}.items():
    torch.save(content, f"{name}.pth")
    torch.save(content, f"old_{name}.pth", _use_new_zipfile_serialization=False)
torch.save(net, "it's $(touch ran).pth")
torch.save(dict(net.state_dict()), "state.pt")
"""


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with files that another script wrote, whose classes are not here."""
    folder = tmp_path_factory.mktemp("foreign")
    subprocess.run([sys.executable, "-c", SCRIPT], cwd=folder, check=True)
    return folder


def test_every_layout_that_is_refused_can_be_converted(foreign: Path, tmp_path: Path) -> None:
    state = torch.load(foreign / "state.pt", weights_only=True)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    files = sorted(foreign.glob("*.pth"))
    assert len(files) == 13
    for path in files:
        with pytest.raises(WeightsError, match=r"needs .* to be loaded, which could run anything: refused"):
            read_tensors(path)
        torch.save(tensors_of(path), tmp_path / "converted.pth")
        found = choose_state(read_tensors(tmp_path / "converted.pth"), shapes, path).state
        assert found.keys() == state.keys(), path
        assert all(torch.equal(found[key], state[key]) for key in state), path


@pytest.mark.slow
def test_the_command_that_a_refusal_names_works_as_it_stands(
    foreign: Path, kdbench: Callable[..., Said], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = foreign / "it's $(touch ran).pth"
    with pytest.raises(WeightsError, match="refused") as caught:
        read_tensors(path)
    monkeypatch.chdir(foreign)
    command = str(caught.value).partition("its tensors: ")[2]
    told = subprocess.run(["sh", "-c", f'printf "%s\\n" {command}'], capture_output=True, text=True, check=True)
    words = told.stdout.splitlines()
    assert words[:4] == ["kdbench", "teachers", "--convert", str(path)]
    said = kdbench(*words[1:])
    assert said.status == 0, said.err
    assert said.out == f"{words[4]}: 9 tensors in it\n"
    assert not (foreign / "ran").exists()


def test_torchscript_and_plain_pickles_are_refused_with_the_same_command_and_converted(tmp_path: Path) -> None:
    net = small().eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        torch.jit.trace(net[0], torch.zeros(1, 3, 4, 4)).save(tmp_path / "script.pt")
    with (tmp_path / "plain.pkl").open("wb") as file:
        pickle.dump({"model": {key: value.numpy() for key, value in STATE.items()}}, file)
    for name in ("script.pt", "plain.pkl"):
        with pytest.raises(WeightsError, match=r"refused.*kdbench teachers --convert"):
            read_tensors(tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.save(tensors_of(tmp_path / name), tmp_path / f"{name}.pth")
    assert {*read_tensors(tmp_path / "script.pt.pth")[""]} == {"weight", "bias"}
    assert read_tensors(tmp_path / "plain.pkl.pth")["model"].keys() == STATE.keys()


def test_conversion_runs_code_only_with_trust_and_in_another_process(
    kdbench: Callable[..., Said], tmp_path: Path
) -> None:
    torch.save({"state_dict": STATE, "extra": Attack(tmp_path / "ran")}, tmp_path / "evil.pth")
    source, target = tmp_path / "evil.pth", tmp_path / "out.pth"
    said = kdbench("teachers", "--convert", source, target)
    assert (said.status, said.out) == (2, "")
    assert "--convert runs the code that is inside" in said.err
    assert not target.exists()
    assert not (tmp_path / "ran").exists()
    assert kdbench("teachers", "--convert", source, target, "--trust").status == 0
    assert (tmp_path / "ran").exists()  # the user's word for it
    said = kdbench("teachers", "--convert", source, target, "--trust")
    assert (said.status, said.err) == (2, f"kdbench: --convert: {target} exists already\n")


@pytest.mark.parametrize("content", few(["no tensors", b"nothing"]))
def test_what_cannot_be_converted_is_one_line(kdbench: Callable[..., Said], tmp_path: Path, content: Any) -> None:
    source, target = tmp_path / "in.pth", tmp_path / "out.pth"
    torch.save({"epoch": 3}, source) if isinstance(content, str) else source.write_bytes(content)
    said = kdbench("teachers", "--convert", source, target, "--trust")
    assert said.status == 2
    assert said.err.startswith(f"kdbench: --convert {source}: ")
    assert said.err.count("\n") == 1
    assert not target.exists()
