"""Several processes that train one cohort: each steps on its rows of the global batch, gradients are averaged (DDP).

The process group is mmengine's where there are GPUs (``torchrun`` and Slurm), torch's own with gloo on a CPU.
"""

from __future__ import annotations

import gc
import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as differentiable
import torch.nn.functional as F
from mmengine.dist import init_dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from kdbench.distributed import draw_for_batch, rank, rows_of, world_size
from kdbench.errors import KdbenchError

#: Minutes after which a process that waits for the others within a job gives up.
TIMEOUT_MINUTES = 30
#: Days that a process waits for the next job: the first one may have to do one without the others. When it dies, what started
#: all of them (torchrun, Slurm) ends the others.
WAITING_DAYS = 30


#: All processes, for what is said between jobs.
_between_jobs: Any = None


def join(launcher: str, device: str | None) -> torch.device:
    """Join the other processes of ``torchrun`` (``"pytorch"``) or of a Slurm step (``"slurm"``).

    Returns:
        the device of this process.

    Raises:
        KdbenchError: if the processes cannot find each other.
    """
    global _between_jobs
    timeout = timedelta(minutes=TIMEOUT_MINUTES)
    cuda = device != "cpu" and torch.cuda.is_available()
    try:
        if cuda:
            init_dist(launcher, backend="nccl", timeout=timeout.total_seconds())
        else:
            if launcher == "slurm":
                os.environ.update(RANK=os.environ["SLURM_PROCID"], WORLD_SIZE=os.environ["SLURM_NTASKS"])
            dist.init_process_group("gloo", timeout=timeout)
        _between_jobs = dist.new_group(backend="gloo", timeout=timedelta(days=WAITING_DAYS))
    except (RuntimeError, ValueError, KeyError, dist.DistError) as error:
        raise KdbenchError(f"the processes of this run cannot find each other: {str(error).splitlines()[0]}") from None
    return torch.device("cuda", torch.cuda.current_device()) if cuda else torch.device("cpu")


def leave() -> None:
    """End the process group, if there is one."""
    global _between_jobs
    _between_jobs = None
    if dist.is_available() and dist.is_initialized():
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
    if world_size() == 1:
        return decision
    box = [decision]
    dist.broadcast_object_list(box, src=0)
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
    return DistributedDataParallel(
        module,
        device_ids=None if device.type == "cpu" else [torch.cuda.current_device()],
        broadcast_buffers=False,  # banks are kept equal by their methods, statistics by average_statistics
        find_unused_parameters=True,  # a method need not use the student's own head (SimKD)
    )


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


def _mean_of_all(value: Tensor) -> Tensor:
    return differentiable.all_reduce(value.contiguous()) / world_size()


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
    if world_size() > 1:
        dist.broadcast_object_list(box, src=0, group=_between_jobs)
    return box[0]
