"""Two processes that share a batch give the losses, gradients and buffers of one process on the whole batch.

Each steps on its half and gradients are averaged, as DDP does. The methods of ``test_relation_methods.py`` are tested
there, on embeddings of any kind; here are all others, on real nets, and CRD with its banks. Batch normalisation has the
statistics of its own process under DDP, so the nets have none and those of the methods are in eval mode.
"""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kdbench.distributed import rows_of
from kdbench.method import Batch, Task
from kdbench.nets.tapped import TappedNet
from kdbench.plugins.registry import catalog
from kdbench.suite.net import NetSpec
from tests.few import few

CLASSES, BATCH, SAMPLES = 5, 8, 24
STUDENT = NetSpec(
    timm="vit_32px_small", family="vit", args={"patch_size": 8, "embed_dim": 16, "depth": 4, "num_heads": 2}
)
TEACHER = NetSpec(
    timm="vit_32px_small", family="vit", args={"patch_size": 8, "embed_dim": 20, "depth": 4, "num_heads": 2}
)
SETTINGS: dict[str, dict[str, Any]] = {
    "crd": {"num_negatives": 12, "dim": 8},
    "fofa": {"queries": 16, "dim": 16, "heads": 2},
    "tas": {"dim": 8},
    "lfcc": {"dim": 8},
    "msdcrd": {"dim": 8},
}
#: Run by default: a bank and draws, two that gather, and one that needs nothing of the other process.
TELLING = {"crd", "lfcc", "srd", "kd"}
ELSEWHERE = {"cc", "rkd", "sp", "pkt", "rsd", "dist", "mlld"}
METHODS = sorted((name for name in catalog() if name not in ELSEWHERE), key=lambda name: name not in TELLING)


@functools.lru_cache(maxsize=1)
def nets() -> tuple[TappedNet, TappedNet]:
    torch.manual_seed(0)
    student, teacher = TappedNet(STUDENT, CLASSES).double(), TappedNet(TEACHER, CLASSES).double()
    for net in (student, teacher):
        classifier: Any = net.classifier
        nn.init.normal_(classifier.weight, std=0.2)
    return student.train(), teacher.eval().requires_grad_(False)


def two_steps(name: str, rows: Tensor) -> dict[str, Tensor]:
    """Loss terms and gradients of two steps (on other images), and the buffers after them, for ``rows`` of the batch."""
    student, teacher = nets()
    torch.manual_seed(1)
    labels = torch.arange(SAMPLES) % CLASSES
    cls: Any = catalog()[name].load()
    task = Task(CLASSES, SAMPLES, labels)
    method = cls(student.describe(), teacher.describe(), task, **SETTINGS.get(name, {})).double()
    for module in method.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    needs = frozenset(method.needs)
    images = torch.rand(2, BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(2)).double()
    found: dict[str, Tensor] = {}
    for step in range(2):
        index = torch.arange(step * BATCH, (step + 1) * BATCH)[rows]
        torch.manual_seed(step)  # all processes draw from the same stream
        student.zero_grad()
        method.zero_grad()
        with torch.no_grad():
            taught = teacher(images[step][rows], needs)
        terms = method(Batch(labels[index], index), student(images[step][rows], needs), taught)
        sum(terms.values()).backward()
        found |= {f"{step} term {key}": term.detach().reshape(()).clone() for key, term in terms.items()}
        for key, parameter in (*student.net.named_parameters(), *method.named_parameters(prefix="method")):
            if parameter.grad is not None:
                found[f"{step} gradient {key}"] = parameter.grad.clone()
    return found | {f"buffer {key}": value.clone().double() for key, value in method.named_buffers()}


def work(rank: int, folder: str, names: list[str]) -> None:
    """One of two processes."""
    torch.set_num_threads(1)
    if os.path.exists("/sys/class/net/lo"):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {name: two_steps(name, rows_of(rank, 2, BATCH)) for name in names}
    torch.save(found, f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def processes(request, tmp_path_factory) -> list[dict[str, dict[str, Tensor]]]:
    """What each of two processes found, of the methods that are tested."""
    tested = [item for item in request.session.items if "processes" in getattr(item, "fixturenames", ())]
    folder: Path = tmp_path_factory.mktemp("processes")
    torch.multiprocessing.spawn(work, (str(folder), [item.callspec.params["name"] for item in tested]), nprocs=2)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", few(METHODS, len(TELLING)))
@pytest.mark.xdist_group("two processes")
def test_two_processes_give_the_losses_and_gradients_of_one_on_the_whole_batch(name, processes) -> None:
    whole = two_steps(name, torch.arange(BATCH))
    parts = [found[name] for found in processes]
    assert all(part.keys() == whole.keys() for part in parts)
    for key, value in whole.items():
        mean = sum(part[key] for part in parts) / 2
        torch.testing.assert_close(
            mean, value, rtol=1e-7, atol=1e-9, msg=lambda text, key=key: f"{name}, {key}: {text}"
        )
        if key.startswith("buffer"):
            torch.testing.assert_close(parts[0][key], parts[1][key], rtol=1e-7, atol=1e-9)
