"""A request survives its way to a command and back, whatever options it has."""

from __future__ import annotations

import dataclasses
import os
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from kdbench.cli.options import FIELDS, plan_of
from kdbench.cli.replay import command_of, replay_command
from kdbench.cli.run import run
from kdbench.matrix.request import Request

#: A request in which nothing is as it would be without options.
EVERYTHING = Request(
    "cifar100-32", protocol="smoke", methods=("kd", "o*"), pairs=("a--b",), seeds=(3, 4), split="validation", limit=50,
    set={"kd": {"temperature": 1e-3}, "uhkd": {"stages": [2, 4], "name": "it's"}},
    variants={"w1": {"method": "ofa", "set": {"stages": [2, 4], "eps": 1e-3}}, "plain": {"method": "kd", "set": {}}},
    settings="best of.yaml", as_tuned=True, train_teachers=("cnn", "v*"),
    fine_tune_teachers=("all",), accept_teacher=True, teacher_tolerance=5.5, plugins=("a.py", "b c.py"), hooks=("h.py", "i.py"),
    out="some where",
    data="d", weights="w", download=True, on="slurm", slurm="time=4:00:00,mem=2G", workers=3, device="cpu", memory=1 / 3,
    solo=True, compile=True, graphs=False, cuda_streams=3, deterministic=True, cudnn_benchmark=True, loaders=0,
    log=("tensorboard", "wandb"),
    max_hours=0.0, stall=0.1, retry_failed=True, yes=True, confirm=("kd", "ofa"),
)  # fmt: skip


def request_of(command: str) -> Request:
    program, verb, *words = shlex.split(command)
    assert (program, verb) == ("kdbench", "run")
    return Request(**run.make_context(verb, words).params)


def test_run_has_an_option_for_every_field_of_a_request() -> None:
    assert {parameter.name for parameter in run.params} == set(FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_every_option_of_run_is_in_the_command_of_a_request(name: str) -> None:
    value = getattr(EVERYTHING, name)
    assert value != getattr(Request(), name)
    alone = dataclasses.replace(Request(), **{name: value})
    assert request_of(command_of(alone)) == alone


def test_all_options_together_make_the_same_request_again() -> None:
    assert request_of(command_of(EVERYTHING)) == EVERYTHING
    assert command_of(Request()) == "kdbench run digits"


def test_every_path_of_a_request_holds_in_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    moved = dataclasses.replace(EVERYTHING, suite="mine.yaml").absolute()
    paths = {parameter.name for parameter in run.params if getattr(parameter, "metavar", None) in ("DIR", "FILE")}
    assert paths == {"settings", "plugins", "hooks", "out", "data", "weights"}
    for name in (*paths, "suite"):
        value = getattr(moved, name)
        for path in value if isinstance(value, tuple) else (value,):
            assert os.path.isabs(path), name
    assert dataclasses.replace(EVERYTHING).absolute().suite == "cifar100-32"


def test_replay_command_makes_the_same_cell_again(
    write_suite: Callable[..., Path], write_plugin: Callable[..., Path], tmp_path: Path
) -> None:
    request = Request(
        str(write_suite(name="with space.yaml")),
        protocol="seeds",
        split="validation",
        seeds=(3, 4),
        plugins=(str(write_plugin()),),
        methods=("mine", "kd", "uhkd", "light", "hot"),
        set={"kd": {"temperature": 1e-3}, "mine": {"weight": 2}, "uhkd": {"stages": [2, 4]}, "light": {"weight": 0.5}},
        variants={
            "light": {"method": "mine", "set": {"weight": 3}},
            "hot": {"method": "kd", "set": {"ce_weight": 0.5}},
        },
        out=str(tmp_path / "some where"),
        compile=True,
    )
    for cell in plan_of(request).cells:
        replayed = request_of(replay_command(cell, request))
        assert (replayed.out, replayed.compile, replayed.solo, replayed.retry_failed) == (request.out, True, True, True)
        (same,) = plan_of(replayed).cells
        assert (same.folder, same.hyperparameters) == (cell.folder, cell.hyperparameters)


def test_replay_command_holds_what_the_user_chose_and_nothing_else(tmp_path: Path) -> None:
    request = Request("digits", pairs=("resnet-l--vit-s",), out=str(tmp_path))
    cell = plan_of(request).cells[0]
    assert replay_command(cell, request) == (
        f"kdbench run digits --protocol {cell.protocol} --methods {cell.method} --pairs {cell.pair} --seeds {cell.seed} "
        f"--out {tmp_path} --solo --retry-failed"
    )
