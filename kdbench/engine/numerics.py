"""Settings of CUDA's libraries on which numbers depend: taken from the recipe and the request before anything is computed."""

from __future__ import annotations

import os
import warnings

import torch

from kdbench.matrix.request import Request
from kdbench.suite.recipe import Recipe


def set_numerics(recipe: Recipe, request: Request) -> None:
    """Set what cuBLAS and cuDNN may do: TF32 as the recipe says, searched or deterministic kernels as the request says.

    On a CPU only ``deterministic`` means anything: torch then refuses operations without a deterministic kernel there too.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of torch have another name for the two, older ones only these
        torch.backends.cuda.matmul.allow_tf32 = recipe.tf32 == "all"
        torch.backends.cudnn.allow_tf32 = recipe.tf32 != "none"
    torch.backends.cudnn.benchmark = request.cudnn_benchmark
    torch.backends.cudnn.deterministic = request.deterministic
    if request.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    torch.use_deterministic_algorithms(request.deterministic)
    # Costs a kernel for each new tensor; none is read unwritten.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a property of the module's class
