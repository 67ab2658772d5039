"""Processes that train one cohort together give the numbers of one process, from the command that starts them to the files."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from timm.layers import DropPath
from torch import nn

from kdbench import distributed
from kdbench.engine import fate, parallel
from kdbench.engine.faults import CellFailure, TooLargeError
from kdbench.errors import DeviceLostError, KdbenchError
from kdbench.plugins.registry import catalog
from kdbench.store.rows import load_results

#: Nets without batch normalisation, as teacher and as students; those of the methods are over the joint batch.
SUITE = """
name: together
title: Together
dataset: {name: digits, images_per_class: 4}
nets:
  mlp: {timm: mixer_32px_small, family: mlp, args: {patch_size: 8, embed_dim: 20, num_blocks: 4}}
  vit: {timm: vit_32px_small, family: vit, args: {patch_size: 8, embed_dim: 16, depth: 4, num_heads: 2}}
  cnn: {timm: convnext_32px_small, family: cnn, args: {dims: [8, 12, 16, 24], depths: [1, 1, 1, 1]}}
pairs: [mlp--vit, vit--cnn]
recipes:
  sgd:
    epochs: 2
    batch_size: 20
    optimizer: {name: momentum, lr: 0.02, weight_decay: 0.001}
    schedule: {name: constant}
    augment: {crop_padding: 2, mixup: 0.4}
    label_smoothing: 0.1
    clip_norm: 1.0
student_recipe: &all {cnn: sgd, vit: sgd, mlp: sgd}
teacher_recipe: *all
methods:
  default: [scratch]
  set:
    crd: {num_negatives: 12, dim: 8}
    scalekd: {frequency_weight: 0.006}  # with 0.06, rounding grows a thousandfold in a step on maps that are nearly constant
protocols:
  only: {description: "two epochs", teacher_images_per_class: 4, measured_images_per_class: 5}
default_protocol: only
"""


#: Each fails in the last of the processes alone, in another place.
BREAKING = """
import torch
from kdbench import Method, register_method
from kdbench.distributed import rank, world_size

LAST = lambda: rank() == world_size() - 1

class Fails(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        raise ValueError("backward is broken")

class Breaks(Method):
    def forward(self, batch, student, teacher):
        loss = batch.task_loss(student.logits)
        if batch.progress > 0.3 and LAST():
            loss = self.break_down(loss)
        return {"ce": loss}

    def break_down(self, loss):
        return loss

@register_method("in-forward")
class InForward(Breaks):
    def break_down(self, loss):
        raise ValueError("forward is broken")

@register_method("in-backward")
class InBackward(Breaks):
    def break_down(self, loss):
        return Fails.apply(loss)

@register_method("in-memory")
class InMemory(Breaks):
    def break_down(self, loss):
        raise torch.OutOfMemoryError("CUDA out of memory")

@register_method("in-building")
class InBuilding(Breaks):
    def __init__(self, student, teacher, task):
        super().__init__(student, teacher, task)
        if LAST() and world_size() > 1:
            raise ValueError("building is broken")

@register_method("in-evaluation")
class InEvaluation(Breaks):
    def predict(self, outputs):
        if LAST():
            raise ValueError("evaluation is broken")
        return outputs.logits
"""


def run(
    folder: Path, methods: str, pairs: str, processes: int, text: str = SUITE, plugin: str = "", status: int = 0
) -> Path:
    suite = folder / "together.yaml"
    suite.write_text(text)
    out = folder / f"with-{processes}"
    command = ["-m", "kdbench", "run", str(suite), "--methods", methods, "--pairs", pairs, "--out", str(out)]
    command += ["--device", "cpu", "--on", "inprocess"]
    if plugin:
        (folder / "breaking.py").write_text(plugin)
        command += ["--plugin", str(folder / "breaking.py")]
    torchrun = ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--master_port=0", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    words = [sys.executable, *(torchrun if processes > 1 else []), *command]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == status, ended.stdout[-3000:] + ended.stderr[-3000:]
    assert "FutureWarning" not in ended.stderr, ended.stderr[-3000:]
    return out


def compare(one: Path, two: Path) -> None:
    first, second = (load_results(out).set_index("path").sort_index() for out in (one, two))
    assert (first["state"] == second.loc[first.index, "state"]).all()
    for path in first.index[first["state"] == "done"]:
        results = [json.loads((out / path / "result.json").read_text()) for out in (one, two)]
        for name, value in results[0]["losses"].items():
            assert math.isclose(results[1]["losses"][name], value, rel_tol=2e-4, abs_tol=1e-5), (path, name, results)
        nll = [result["metrics"]["last"]["nll"] for result in results]
        assert math.isclose(*nll, rel_tol=1e-4), (path, nll)
        assert results[1]["cost"]["processes"] == 2


@pytest.mark.slow
@pytest.mark.xdist_group("two processes")
def test_torchrun_with_two_processes_gives_the_numbers_of_one(tmp_path: Path) -> None:
    """With one method that fails, in one of the processes alone where there are two."""
    methods = "scratch,kd,crd,cc,mgd,in-forward"
    outs = [run(tmp_path, methods, "mlp--vit", processes, plugin=BREAKING, status=1) for processes in (1, 2)]
    compare(*outs)
    for out in outs:
        assert reasons(out) == {"in-forward": "ValueError: forward is broken"}


@pytest.mark.slow
@pytest.mark.xdist_group("two processes")
def test_whatever_fails_in_one_process_is_in_the_files_of_its_cell_and_costs_no_other_cell(tmp_path: Path) -> None:
    guilty = "in-forward,in-backward,in-memory,in-building,in-evaluation"
    without = run(tmp_path, "scratch,kd,crd", "mlp--vit", 1)
    out = run(tmp_path, f"scratch,{guilty},kd,crd", "mlp--vit", 2, plugin=BREAKING, status=1)
    compare(without, out)
    found = reasons(out)
    assert found.pop("in-memory").startswith("out of memory in a step of mlp--vit/in-memory")
    assert found == {
        f"in-{place}": f"ValueError: {place} is broken" for place in ("forward", "backward", "building", "evaluation")
    }


def reasons(out: Path) -> dict[str, str]:
    """Why cells failed, by method."""
    rows = load_results(out)
    return {row.method: row.reason for row in rows[rows["state"] == "failed"].itertuples()}


def test_a_process_that_is_told_why_another_left_says_the_same_and_not_what_it_met_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first report counts; a process without one of its own waits for it."""
    failure = CellFailure("exception", "ValueError: broken", 1, "traceback")
    board: list[str] = []
    formed: list[int] = []
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    monkeypatch.setattr(parallel, "rank", lambda: 0)
    monkeypatch.setattr(parallel, "reported", lambda: board[0] if board else None)
    monkeypatch.setattr(parallel, "report", lambda text: board.append(text) or board[0])
    monkeypatch.setattr(parallel, "form_again", lambda: formed.append(1))
    monkeypatch.setattr(fate, "REPORT_SECONDS", 0.0)
    guilty = fate.CellFailedError("cell", failure)
    assert fate.agreed(guilty) is guilty
    left = RuntimeError("[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer")
    innocent = fate.CellFailedError("other", CellFailure("exception", str(left), 1, ""))
    innocent.__context__ = left
    told = fate.agreed(innocent)
    assert isinstance(told, fate.CellFailedError)
    assert (told.key, told.failure) == ("cell", failure)
    for error, expected in (
        (TooLargeError("a step of cell", "traceback", True), TooLargeError),
        (OSError("no space"), fate.SharedError),
        (RuntimeError("CUDA error: device-side assert triggered"), DeviceLostError),
    ):
        board.clear()
        formed.clear()
        assert isinstance(fate.agreed(error), expected)
        told = fate.agreed(left)
        assert type(told) is expected
        assert "cell" in str(told) or str(error) in str(told)
        assert len(formed) == (0 if expected is DeviceLostError else 2)


#: Imports what any job imports, between joining and leaving.
LEAVING = """
import gc, importlib, pkgutil, weakref
import torch.distributed as dist
from kdbench.launch.torchrun import together

groups = []

def lead():
    import kdbench.engine
    for module in pkgutil.iter_modules(kdbench.engine.__path__, "kdbench.engine."):
        importlib.import_module(module.name)
    groups.append(weakref.ref(dist.group.WORLD))
    return 0

together("pytorch", "cpu", lead)
gc.collect()
assert groups[0]() is None
"""


@pytest.mark.slow
def test_nothing_holds_a_group_that_is_left_so_that_the_others_notice(tmp_path: Path) -> None:
    (tmp_path / "leaving.py").write_text(LEAVING)
    words = ["torch.distributed.run", "--nproc_per_node=1", "--master_port=0", "--standalone"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    words = [sys.executable, "-m", *words, str(tmp_path / "leaving.py")]
    ended = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == 0, ended.stderr[-3000:]


def test_each_process_has_the_gpu_of_its_place_or_the_only_one_that_slurm_shows_it() -> None:
    assert parallel.own_gpu("pytorch", {"LOCAL_RANK": "1"}, 2) == 1
    assert parallel.own_gpu("slurm", {"SLURM_LOCALID": "3"}, 4) == 3
    assert parallel.own_gpu("slurm", {"SLURM_LOCALID": "3"}, 1) == 0
    for launcher, name, count in (("pytorch", "LOCAL_RANK", 1), ("slurm", "SLURM_LOCALID", 2)):
        with pytest.raises(KdbenchError, match=f"process 3 of this machine has no GPU of its own: {count} GPU"):
            parallel.own_gpu(launcher, {name: "3"}, count)


@pytest.mark.slow
@pytest.mark.xdist_group("two processes")
def test_a_batch_that_cannot_be_shared_is_trained_by_one_process_while_the_others_wait(tmp_path: Path) -> None:
    odd = SUITE.replace("batch_size: 20", "batch_size: 15")
    outs = [run(tmp_path, "scratch,kd", "mlp--vit", processes, odd) for processes in (1, 2)]
    first, second = (load_results(out).set_index("path").sort_index() for out in outs)
    assert list(first["state"]) == ["done", "done"]
    assert list(second["state"]) == ["done", "done"]
    for path in first.index:
        one, two = (json.loads((out / path / "result.json").read_text()) for out in outs)
        assert one["metrics"]["last"] == two["metrics"]["last"]
        assert two["cost"]["processes"] == 1


def test_stochastic_depth_in_a_single_process_is_that_of_timm() -> None:
    value = torch.rand(16, 5, 3, requires_grad=True)
    for scale in (True, False):
        net = nn.Sequential(DropPath(0.4, scale))
        torch.manual_seed(1)
        expected = net(value)
        parallel.join_drop_paths(net)
        assert isinstance(net[0], parallel.JointDropPath)
        torch.manual_seed(1)
        assert torch.equal(net(value), expected)
        assert torch.equal(net.eval()(value), value)


def test_stochastic_depth_of_two_processes_is_that_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = parallel.JointDropPath(0.5, True)
    value = torch.rand(12, 4) + 0.1
    torch.manual_seed(3)
    whole = layer(value)
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for process in range(2):
        monkeypatch.setattr(distributed, "rank", lambda process=process: process)
        rows = distributed.rows_of(process, 2, len(value))
        torch.manual_seed(3)
        assert torch.equal(layer(value[rows]), whole[rows])
        with monkeypatch.context() as later:  # positions come to the device once: each copy makes the host wait for it
            later.setattr(distributed, "rows_of", lambda *given: pytest.fail("a copy in every step"))
            layer(value[rows])


@pytest.mark.slow
@pytest.mark.parametrize("pair", ["mlp--vit", "vit--cnn"])
def test_every_method_gives_the_numbers_of_one_process(tmp_path: Path, pair: str) -> None:
    methods = ",".join(catalog())
    compare(run(tmp_path, methods, pair, 1), run(tmp_path, methods, pair, 2))
