"""The other side of ``peers``: torchdistill trains, in a Python of its own, as much as it is told on standard input.

It is used as its examples use it: its ``DistillationBox`` with its forward hooks, its losses, its loader built from a dictionary
(a map-style data set of Pillow images under torchvision's transforms), its pre- and post-processing; but without its metric
logger, whose ``item()`` in every step is a cost that a user could leave out.

A request is a line ``{"method": ..., "steps": N}``; the answer has the seconds that passed and the seconds of CPU.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import sys
import time
from typing import Any

import timm
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, RandomSampler
from torchdistill.core.distillation import get_distillation_box
from torchvision import transforms

import kdbench.nets.small  # noqa: F401 - registers the 32 px nets with timm

LOGITS = {
    "student_module_path": ".",
    "student_module_io": "output",
    "teacher_module_path": ".",
    "teacher_module_io": "output",
}
CROSS_ENTROPY = {
    "criterion": {"key": "CrossEntropyLoss", "kwargs": {}},
    "criterion_wrapper": {
        "key": "SimpleLossWrapper",
        "kwargs": {
            "input": {"is_from_teacher": False, "module_path": ".", "io": "output"},
            "target": {"uses_label": True},
        },
    },
    "weight": 1.0,
}  # fmt: skip


class Pictures(Dataset[tuple[Tensor, int]]):
    """As torchvision's CIFAR data sets hold and give images."""

    def __init__(self, images: int, mean: Any, std: Any) -> None:
        generator = torch.Generator().manual_seed(0)
        self.pixels = torch.randint(0, 256, (images, 32, 32, 3), dtype=torch.uint8, generator=generator).numpy()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(mean, std),
            ]
        )

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[position])), position % 100


def criterion(method: str, request: dict[str, Any]) -> dict[str, Any]:
    """The loss of a method by torchdistill's names, with the weights that kdbench's has."""
    embeddings = {
        "student_output_path": request["student_embedding"],
        "teacher_output_path": request["teacher_embedding"],
    }
    stages = {"student_output_path": request["student_stage"], "teacher_output_path": request["teacher_stage"]}
    modules = {
        "student_module_path": request["student_embedding"], "student_module_io": "output",
        "teacher_module_path": request["teacher_embedding"], "teacher_module_io": "output",
    }  # fmt: skip
    alone = {"kd": {"key": "KDLoss", "kwargs": {**LOGITS, "temperature": 4.0, "alpha": 0.1}}}
    added = {
        "dist": {"key": "DISTLoss", "kwargs": {**LOGITS, "beta": 2.0, "gamma": 2.0, "tau": 4.0}},
        "lskd": {"key": "LogitStdKDLoss", "kwargs": {**LOGITS, "temperature": 2.0, "alpha": 0.0, "beta": 9.0}},
        "rkd": {
            "key": "RKDLoss",
            "kwargs": {**embeddings, "dist_factor": 25.0, "angle_factor": 50.0, "reduction": "mean"},
        },
        "pkt": {"key": "PKTLoss", "kwargs": modules},
        "sp": {"key": "SPKDLoss", "kwargs": {**stages, "reduction": "batchmean"}},
    }
    if method in alone:
        terms = {method: {"criterion": alone[method], "weight": 1.0}}
    else:
        terms = {"ce": CROSS_ENTROPY, method: {"criterion": added[method], "weight": 1.0}}
    return {"key": "WeightedSumLoss", "kwargs": {"sub_terms": terms}}


def make_box(method: str, request: dict[str, Any], data: Pictures) -> Any:
    """torchdistill's box for one method: teacher frozen, hooks where the loss wants them."""
    teacher, student = (timm.create_model(net["timm"], num_classes=100, **net["args"]) for net in request["nets"])
    needs = {"rkd": "embedding", "pkt": "embedding", "sp": "stage"}.get(method)
    hooks = {side: {"output": [request[f"{side}_{needs}"]]} if needs else {} for side in ("teacher", "student")}
    config = {
        "num_epochs": 1,
        "train_data_loader": {
            "dataset_id": "train",
            "requires_supp": True,
            "sampler": {"class_or_func": RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": request["batch_size"], "num_workers": request["workers"], "drop_last": True,
                       "persistent_workers": request["workers"] > 0, "pin_memory": request["device"] != "cpu"},
        },
        "teacher": {"forward_proc": "forward_batch_only", "forward_hook": hooks["teacher"], "requires_grad": False},
        "student": {"forward_proc": "forward_batch_only", "forward_hook": hooks["student"], "requires_grad": True},
        "criterion": criterion(method, request),
        "optimizer": {"key": "SGD", "kwargs": {"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4}},
    }  # fmt: skip
    device = torch.device(request["device"])
    teacher.to(device).eval()
    return get_distillation_box(teacher, student.to(device), {"train": data}, config, device, None, False, 1.0)


class Trainer:
    """Steps of one method, epoch after epoch, as torchdistill's examples take them."""

    def __init__(self, box: Any, device: torch.device) -> None:
        self.box, self.device, self.epoch = box, device, 0
        self._batches: Any = iter(())
        self.loss = torch.zeros(())

    def __call__(self, steps: int) -> None:
        for _ in range(steps):
            batch = next(self._batches, None)
            if batch is None:
                self.box.pre_epoch_process(epoch=self.epoch)
                self.epoch += 1
                self._batches = iter(self.box.train_data_loader)
                batch = next(self._batches)
            images, labels, supplement = batch
            images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
            self.loss = self.box.forward_process(images, labels, supplement)
            self.box.post_forward_process(loss=self.loss)


def main() -> None:
    """Set up what the first line asks for, then do what each further line asks for."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever is printed must not get between the answers
    logging.disable(logging.WARNING)
    request = json.loads(sys.stdin.readline())
    torch.set_num_threads(request["threads"])
    device = torch.device(request["device"])
    data = Pictures(request["images"], request["mean"], request["std"])
    trainers = {method: Trainer(make_box(method, request, data), device) for method in request["methods"]}
    answers.write(
        json.dumps({"torchdistill": importlib.metadata.version("torchdistill"), "torch": torch.__version__}) + "\n"
    )
    for line in sys.stdin:
        wanted = json.loads(line)
        _wait(device)
        begun = time.perf_counter(), _core()
        trainers[wanted["method"]](wanted["steps"])
        _wait(device)
        answers.write(json.dumps({"wall": time.perf_counter() - begun[0], "core": _core() - begun[1]}) + "\n")


def _core() -> float:
    """Seconds of CPU of this process and its loader processes."""
    ticks, total = os.sysconf("SC_CLK_TCK"), time.process_time()
    children = f"/proc/self/task/{os.getpid()}/children"
    with open(children) as file:
        for child in file.read().split():
            with open(f"/proc/{child}/stat") as stat:
                fields = stat.read().rsplit(")", 1)[1].split()
            total += (int(fields[11]) + int(fields[12])) / ticks
    return total


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    main()
