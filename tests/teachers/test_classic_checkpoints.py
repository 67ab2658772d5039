"""Checkpoints in the form of RepDistiller's and of mdistiller's: read without running what is in them, into the classic nets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from kdbench.nets.tapped import TappedNet
from kdbench.suite.net import NetSpec
from kdbench.suite.suite import load_suite
from kdbench.teachers.foreign import load_state
from kdbench.teachers.statedict import WeightsError, read_tensors

#: (net, first key, last key) as in the released teachers.
TEACHERS = [
    ("wrn_40_2", "conv1.weight", "fc.bias"),
    ("resnet56", "conv1.weight", "fc.bias"),
    ("vgg13", "block0.0.weight", "classifier.bias"),
    ("ResNet50", "conv1.weight", "linear.bias"),
]


def build(name: str, seed: int) -> TappedNet:
    torch.manual_seed(seed)
    return TappedNet(NetSpec(timm=f"{name}_32px", family="cnn"), 100, name).eval()


def optimizer(net: TappedNet) -> dict[str, Any]:
    """The state of an optimiser that has taken a step, as training scripts save it."""
    sgd = torch.optim.SGD(net.net.parameters(), lr=0.05, momentum=0.9)
    for parameter in net.net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    sgd.step()
    return sgd.state_dict()


def wrapped(form: str, net: TappedNet) -> dict[str, Any]:
    state, accuracy = net.net.state_dict(), torch.tensor([75.61])
    if form == "RepDistiller, ckpt_epoch_240.pth":
        return {"epoch": 240, "model": state, "accuracy": accuracy, "optimizer": optimizer(net)}
    if form == "RepDistiller, best":
        return {"epoch": 237, "model": state, "best_acc": accuracy, "optimizer": optimizer(net)}
    if form == "RepDistiller, last":
        options = argparse.Namespace(model=net.name, batch_size=64, lr_decay_epochs=[150, 180, 210])
        return {"opt": options, "model": state, "optimizer": optimizer(net)}
    return {"model": state}  # mdistiller, student_best


FORMS = ("RepDistiller, ckpt_epoch_240.pth", "RepDistiller, best", "RepDistiller, last", "mdistiller, student_best")


def same(first: TappedNet, second: TappedNet) -> bool:
    pairs = zip(first.net.state_dict().values(), second.net.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


@pytest.mark.parametrize("form", FORMS)
def test_checkpoints_of_both_forms_are_read(form: str, tmp_path: Path) -> None:
    saved, loaded = build("resnet8x4", 1), build("resnet8x4", 2)
    path = tmp_path / "ckpt_epoch_240.pth"
    torch.save(wrapped(form, saved), path)
    assert load_state(loaded, path) == {"part": "model", "classes": 100, "rows": None, "resized": 0}
    assert same(saved, loaded)


@pytest.mark.parametrize(("name", "first", "last"), TEACHERS)
def test_the_released_teachers_keys_are_read(name: str, first: str, last: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        keys = list(build(name, 0).net.state_dict())
    assert (keys[0], keys[-1]) == (first, last)
    if name != "ResNet50":  # 95 MB
        torch.save(wrapped(FORMS[0], saved := build(name, 1)), path := tmp_path / "ckpt_epoch_240.pth")
        load_state(loaded := build(name, 2), path)
        assert same(saved, loaded)


def test_files_of_a_torch_that_counted_no_batches_are_read(tmp_path: Path) -> None:
    saved, loaded = build("wrn_16_1", 1), build("wrn_16_1", 2)
    state = {key: value for key, value in saved.net.state_dict().items() if "num_batches_tracked" not in key}
    torch.save({"model": state}, tmp_path / "old.pth")
    load_state(loaded, tmp_path / "old.pth")
    assert same(saved, loaded)


def test_the_net_is_taken_out_of_a_whole_distiller(tmp_path: Path) -> None:
    def prefixed(prefix: str, net: TappedNet) -> dict[str, Tensor]:
        return {f"module.{prefix}.{key}": value for key, value in net.net.state_dict().items()}

    saved, loaded = build("resnet8", 1), build("resnet8", 2)
    both = {**prefixed("student", saved), **prefixed("teacher", build("resnet14", 1))}
    torch.save({"epoch": 240, "model": both}, tmp_path / "latest")
    load_state(loaded, tmp_path / "latest")
    assert same(saved, loaded)
    with pytest.raises(WeightsError, match="resnet20"):
        load_state(build("resnet20", 2), tmp_path / "latest")


class Runs:
    """Pickled, it asks to be rebuilt by a function."""

    def __reduce__(self) -> Any:
        return print, ("it ran",)


def test_a_checkpoint_that_needs_code_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": build("resnet8", 1).net.state_dict(), "opt": Runs()}, tmp_path / "last.pth")
    with pytest.raises(WeightsError, match="needs print to be loaded"):
        read_tensors(tmp_path / "last.pth")
    assert "it ran" not in capsys.readouterr().out


def test_teachers_of_the_suite_have_the_files_of_both_releases() -> None:
    suite = load_suite("cifar100-classic")
    for name in ("wrn_40_2", "resnet56", "resnet110", "resnet32x4", "vgg13", "ResNet50"):
        weights: Any = suite.net(name).weights
        assert weights.file == f"cifar100-classic/{name}_vanilla/ckpt_epoch_240.pth"
