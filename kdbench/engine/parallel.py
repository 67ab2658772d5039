"""Several processes that train one cohort: each steps on its rows of the global batch, gradients are averaged (DDP).

Their group is NCCL's where there are GPUs, and gloo's on a CPU. A group that broke is left, and the same processes form another.
"""

from __future__ import annotations

import gc
import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from kdbench.distributed import draw_for_batch, rank, rows_of, world_size
from kdbench.errors import KdbenchError, counted

#: Minutes after which a process that waits for the others within a job gives up.
TIMEOUT_MINUTES = 30
#: Days that a process waits for the next job: the first one may have to do one without the others. When it dies, what started
#: all of them (torchrun, Slurm) ends the others.
WAITING_DAYS = 30


@dataclass
class _Processes:
    """What this process knows of the others.

    Attributes:
        store: by which they found each other. It outlives groups: ``number`` counts those that were formed.
        board: the same store by another connection, for the thread that looks for reports while ``store`` is waited for.
        between_jobs: the group for what is said between jobs.
        aside: the group for decisions within a job, which GPUs do not wait for; None for the group itself.
    """

    store: Any
    board: Any
    backend: str
    rank: int
    size: int
    number: int = 0
    between_jobs: Any = None
    aside: Any = None


_processes: _Processes | None = None


def join(launcher: str, device: str | None) -> torch.device:
    """Join the other processes of ``torchrun`` (``"pytorch"``) or of a Slurm step (``"slurm"``).

    Returns:
        the device of this process.

    Raises:
        KdbenchError: if the processes cannot find each other, or this one has no GPU of its own.
    """
    global _processes
    cuda = device != "cpu" and torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(own_gpu(launcher, os.environ, torch.cuda.device_count()))
    try:
        if launcher == "slurm":
            _follow_slurm()
        store, rank, size = next(dist.rendezvous("env://", timeout=timedelta(minutes=TIMEOUT_MINUTES)))
        board = dist.TCPStore(
            os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), size, False, wait_for_workers=False
        )
        attempt = "/".join(os.environ.get(f"TORCHELASTIC_{name}", "") for name in ("RUN_ID", "RESTART_COUNT"))
        own, other = (dist.PrefixStore(f"kdbench/{attempt}", each) for each in (store, board))
        _processes = _Processes(own, other, "nccl" if cuda else "gloo", rank, size)
        _form(_processes)
    except (RuntimeError, ValueError, KeyError, OSError) as error:
        raise KdbenchError(f"the processes of this run cannot find each other: {str(error).splitlines()[0]}") from None
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def own_gpu(launcher: str, environment: Mapping[str, str], count: int) -> int:
    """The GPU of this process among the ``count`` that it sees.

    Slurm may show each task its own alone; torchrun shows all of a machine to all.

    Raises:
        KdbenchError: if there is none.
    """
    place = int(environment.get("LOCAL_RANK" if launcher == "pytorch" else "SLURM_LOCALID", "0"))
    if launcher == "slurm" and count == 1:
        return 0
    if place >= count:
        raise KdbenchError(
            f"process {place} of this machine has no GPU of its own: {counted(count, 'GPU')} for at least "
            f"{place + 1} processes; start {count}, or use --device cpu"
        )
    return place


def _follow_slurm() -> None:
    """Say in torch's words what Slurm says in its own."""
    os.environ.update(RANK=os.environ["SLURM_PROCID"], WORLD_SIZE=os.environ["SLURM_NTASKS"])
    os.environ.setdefault("MASTER_PORT", "29500")
    if "MASTER_ADDR" not in os.environ:
        names = subprocess.run(
            ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]],
            capture_output=True,
            text=True,
            check=False,
        )
        os.environ["MASTER_ADDR"] = names.stdout.split()[0] if names.stdout.split() else "localhost"


def _form(processes: _Processes) -> None:
    dist.init_process_group(
        processes.backend,
        store=dist.PrefixStore(f"group-{processes.number}", processes.store),
        rank=processes.rank,
        world_size=processes.size,
        timeout=timedelta(minutes=TIMEOUT_MINUTES),
    )
    processes.between_jobs = dist.new_group(backend="gloo", timeout=timedelta(days=WAITING_DAYS))
    if processes.backend != "gloo":
        processes.aside = dist.new_group(backend="gloo", timeout=timedelta(minutes=TIMEOUT_MINUTES))


def form_again() -> None:
    """Leave the group, and form the next one with the same processes. All of them have to do it."""
    assert _processes is not None
    _leave_group(_processes)
    _processes.number += 1
    _form(_processes)


def group_number() -> int:
    """How many groups the processes have left; -1 where there are no others."""
    return -1 if _processes is None else _processes.number


def report(text: str) -> str:
    """Tell the other processes why this one leaves the group; what the first of those that do so said is returned."""
    assert _processes is not None
    return str(_processes.board.compare_set(f"report-{_processes.number}", "", text), "utf-8")


def reported() -> str | None:
    """What the first process that left the group said, if one did."""
    if _processes is None or not _processes.board.check([key := f"report-{_processes.number}"]):
        return None
    return str(_processes.board.get(key), "utf-8")


def leave() -> None:
    """End the process group, if there is one."""
    global _processes
    if _processes is not None:
        _leave_group(_processes)
        _processes = None


def _leave_group(processes: _Processes) -> None:
    processes.between_jobs = processes.aside = None
    gc.collect()  # wrapped modules in cycles of references hold the group's threads
    dist.destroy_process_group()


def is_first() -> bool:
    """Whether this process is the one that writes."""
    return rank() == 0


def local_rows(batch_size: int, mixes: bool) -> Tensor | None:
    """Rows of the global batch that this process makes; None for all.

    Raises:
        KdbenchError: for a batch that cannot be shared equally, or in odd shares where images are mixed.
    """
    processes = world_size()
    if processes == 1:
        return None
    reason = why_not_shared(batch_size, mixes)
    if reason:
        raise KdbenchError(reason)
    return rows_of(rank(), processes, batch_size)


def why_not_shared(batch_size: int, mixes: bool) -> str | None:
    """Why the processes cannot share a batch of so many images, or None."""
    processes = world_size()
    if batch_size % processes:
        return f"batch_size = {batch_size} cannot be shared equally by {processes} processes"
    if mixes and processes > 1 and batch_size // processes % 2:
        return f"batch_size = {batch_size} leaves {processes} processes an odd number of images, which cannot be mixed in pairs"
    return None


def share_of(count: int) -> range:
    """The part of ``count`` images that this process evaluates."""
    processes = world_size()
    return range(count * rank() // processes, count * (rank() + 1) // processes)


def join_shares(part: Tensor, count: int) -> Tensor:
    """What all processes made of their ``share_of(count)``, (count, ...) in order."""
    processes = world_size()
    if processes == 1:
        return part
    longest = -(-count // processes)
    padded = part.new_zeros(longest, *part.shape[1:])
    padded[: len(part)] = part
    parts = [torch.empty_like(padded) for _ in range(processes)]
    dist.all_gather(parts, padded)
    lengths = [count * (process + 1) // processes - count * process // processes for process in range(processes)]
    return torch.cat([whole[:length] for whole, length in zip(parts, lengths, strict=True)])


def average(*values: Tensor) -> None:
    """Replace tensors by their mean over the processes."""
    if world_size() > 1:
        for value in values:
            dist.all_reduce(value)
            value /= world_size()


def first_step(steps: Tensor) -> Tensor:
    """The smallest step of all processes, per element; -1 means none."""
    if world_size() == 1:
        return steps
    far = torch.iinfo(steps.dtype).max
    steps = torch.where(steps < 0, far, steps)
    dist.all_reduce(steps, dist.ReduceOp.MIN)
    return torch.where(steps == far, -1, steps)


def barrier() -> None:
    """Wait for the other processes."""
    if world_size() > 1:
        dist.barrier()


def agree(decision: bool) -> bool:
    """The first process's decision, for all: their clocks differ."""
    if _processes is None:
        return decision
    box = [decision]
    dist.broadcast_object_list(box, src=0, group=_processes.aside)
    return box[0]


def average_statistics(module: nn.Module) -> None:
    """Make the running statistics of batch normalisation the same in all processes: their mean."""
    if world_size() == 1:
        return
    for layer in module.modules():
        if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None:
            average(layer.running_mean, layer.running_var)


def wrap(module: nn.Module, device: torch.device) -> nn.Module:
    """``module`` with averaged gradients where several processes train it, else as it is."""
    if world_size() == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    wrapped = DistributedDataParallel(
        module,
        device_ids=None if device.type == "cpu" else [torch.cuda.current_device()],
        find_unused_parameters=True,  # a method need not use the student's own head (SimKD)
    )
    # Banks are kept equal by their methods, statistics by average_statistics. No argument says so in all versions of torch: the
    # one of this name is deprecated in new ones, and old ones do not know its successor.
    wrapped.broadcast_buffers = False
    return wrapped


class JointBatchNorm(_BatchNorm):
    """Batch normalisation over the batches of all processes, on any device (torch's SyncBatchNorm needs CUDA).

    Where a channel has a single value it falls back on the running statistics.
    """

    def _check_input_dim(self, value: Tensor) -> None:
        if value.ndim < 2:
            raise ValueError(f"expected (B, c, ...), got {tuple(value.shape)}")

    def forward(self, value: Tensor) -> Tensor:
        count = value.numel() // value.shape[1] * world_size()
        if not self.training or count == 1:
            return F.batch_norm(
                value, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        axes = [0, *range(2, value.ndim)]
        shape = [1, -1] + [1] * (value.ndim - 2)
        wide = value.to(torch.promote_types(value.dtype, torch.float32))
        mean = _mean_of_all(wide.mean(axes))
        centred = wide - mean.view(shape)
        variance = _mean_of_all(centred.square().mean(axes))
        if self.running_mean is not None and self.running_var is not None:
            with torch.no_grad():
                assert self.num_batches_tracked is not None
                self.num_batches_tracked.add_(1)
                momentum = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
                self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), momentum)
        normal = centred * (variance + self.eps).rsqrt().view(shape)
        if self.weight is not None:
            normal = normal * self.weight.view(shape) + self.bias.view(shape)
        return normal.to(value.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes; each one's gradient is the sum of all theirs."""

    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        total = value.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        return _Sum.forward(ctx, gradient)


def _mean_of_all(value: Tensor) -> Tensor:
    return _Sum.apply(value) / world_size()


def join_batch_norms(module: nn.Module) -> nn.Module:
    """``module`` with its layers of batch normalisation over the joint batch; its parameters and buffers stay."""
    if isinstance(module, _BatchNorm) and not isinstance(module, JointBatchNorm):
        joint = JointBatchNorm(module.num_features, module.eps, module.momentum, affine=module.affine)
        joint.train(module.training)
        for kind in (module._parameters, module._buffers):
            for name, value in kind.items():
                setattr(joint, name, value)
        return joint
    for name, child in list(module.named_children()):
        replaced = join_batch_norms(child)
        if replaced is not child:
            setattr(module, name, replaced)
    return module


class JointDropPath(nn.Module):
    """Stochastic depth with the masks that one process would draw for the global batch; otherwise as timm's ``DropPath``."""

    def __init__(self, drop_prob: float, scale_by_keep: bool) -> None:
        super().__init__()
        self.drop_prob = drop_prob
        self.scale_by_keep = scale_by_keep

    def forward(self, value: Tensor) -> Tensor:
        if not self.training or self.drop_prob == 0.0:
            return value
        keep = 1.0 - self.drop_prob
        ones = [1] * (value.ndim - 1)
        mask = draw_for_batch(lambda count: value.new_empty(count, *ones).bernoulli_(keep), len(value))
        return value * (mask / keep if self.scale_by_keep and keep > 0.0 else mask)


def join_drop_paths(net: nn.Module) -> None:
    """Give the layers of stochastic depth the masks of the global batch, in place."""
    from timm.layers import DropPath

    for parent in list(net.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, DropPath):
                joint = JointDropPath(float(child.drop_prob), child.scale_by_keep)
                setattr(parent, name, joint.train(child.training))


def sync_student(net: nn.Module, device: torch.device) -> nn.Module:
    """A timm net whose BatchNorm is over the global batch.

    Raises:
        KdbenchError: on a CPU, where timm's layers cannot be exchanged.
    """
    from timm.layers import convert_sync_batchnorm

    if device.type != "cuda":
        if any(isinstance(layer, _BatchNorm) for layer in net.modules()):
            raise KdbenchError("sync_bn needs GPUs: torch synchronises BatchNorm on CUDA only")
        return net
    return convert_sync_batchnorm(net)


def send(text: str | None) -> str | None:
    """Give a text from the first process to all; others pass anything."""
    box = [text]
    if _processes is not None:
        dist.broadcast_object_list(box, src=0, group=_processes.between_jobs)
    return box[0]
