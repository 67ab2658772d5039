"""Modules with weights against the values that the official codes give: outputs, their probed sum and its gradients.

A case of ``classes`` in ``losses.json`` names a class, its sizes, its weights and buffers by their official names, its
inputs, and for each output a probe of the same shape; ``value`` is the sum of the outputs times their probes. Here are the
official names in kdbench's modules, and how each is built and run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from kdbench.method import StageInfo
from kdbench.methods.fofa import Prompt, RegionAttention
from kdbench.methods.scalekd import CrossAttentionProjector

FOLDER = Path(__file__).parents[1] / "golden"
# Squeeze-and-excitation that returns its gate alone is the release's, which kdbench does not follow.
CASES = [case for case in json.loads((FOLDER / "losses.json").read_text())["classes"] if case["name"] != "gate_only"]
with np.load(FOLDER / "inputs.npz") as _archive:
    ARRAYS = {name: _archive[name] for name in _archive.files}

TOLERANCE = 1e-9

#: Class -> (official name, kdbench's); the first pattern that matches counts.
NAMES: dict[str, list[tuple[str, str]]] = {
    "CrossAttentionProjector": [
        (r"proj_student\.(\d)", r"student.\1"),
        ("pos_embed", "positions"),
        (r"proj_pos\.0", "embed_query.0"),
        (r"query\.weight", "queries"),
        (r"pos_attention\.q", "query"),
        (r"pos_attention\.k", "key"),
        (r"pos_attention\.v", "value"),
        (r"pos_attention\.proj", "out"),
        (r"ffn\.layers\.0\.0", "mlp.0"),
        (r"ffn\.layers\.1", "mlp.2"),
        ("norm", "norm"),
    ],
    "RegionAttention": [
        (r"projector_s\.(\d)\.projector\.proj", r"patches.\1.embed"),
        ("to_q", "query"),
        ("to_kv", "key_value"),
        ("norm", "norm"),
    ],
    "Prompt": [
        (r"prompt_block\.3\.compress", "prompt.3.gate.0"),
        (r"prompt_block\.3\.excitation", "prompt.3.gate.2"),
        (r"fusion_block\.3\.compress", "fuse.3.gate.0"),
        (r"fusion_block\.3\.excitation", "fuse.3.gate.2"),
        ("prompt_block", "prompt"),
        ("fusion_block", "fuse"),
        ("beta", "beta"),
    ],
}


def array(name: str) -> Tensor:
    return torch.from_numpy(ARRAYS[name].copy())


def our_name(cls: str, official: str) -> str:
    for pattern, ours in NAMES[cls]:
        if re.match(pattern, official):
            return re.sub(rf"^{pattern}", ours, official)
    raise KeyError(official)


def projector(case: dict[str, Any]) -> nn.Module:
    init = case["init"]
    own = "query.weight" in case["state"]
    size = tuple(init["query_size"])
    return CrossAttentionProjector(
        init["student_channels"],
        init["teacher_channels"],
        size if own else None,
        init["heads"],
        init["softmax_scale"],
        size,
    )


def region_attention(case: dict[str, Any]) -> nn.Module:
    init = case["init"]
    stages = [StageInfo(c, s, s, "map") for c, s in zip(init["channels"], init["sizes"], strict=True)]
    module = RegionAttention(stages, init["grid"], init["dim"], init["heads"])
    torch.testing.assert_close(module.positions.double(), array("fofa_positions"), rtol=0, atol=1e-6)
    return module


def prompt(case: dict[str, Any]) -> nn.Module:
    stage = StageInfo(case["init"]["channels"], *case["init"]["size"], "map")
    module = Prompt(stage, stage, feedback=True)
    module.align = nn.Identity()  # the feedback of the case has the shape of the stage's input
    return module


def each_with_its_feedback(module: nn.Module, value: Tensor, feedback: Tensor) -> Tensor:
    """kdbench's feedback is one for the whole batch; the gradient by each sample's own takes a batch of each sample."""
    return torch.cat([module(value[i : i + 1], feedback[i]) for i in range(len(value))])


#: Class -> how it is built for a case and run on its inputs.
RUNS: dict[str, tuple[Callable[[dict[str, Any]], nn.Module], Callable[..., Tensor | Sequence[Tensor]]]] = {
    "CrossAttentionProjector": (projector, lambda module, *inputs: module(*inputs)),
    "RegionAttention": (region_attention, lambda module, *maps: module(maps)),
    "Prompt": (prompt, each_with_its_feedback),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['class']}-{case['name']}")
def test_a_module_with_the_official_weights_gives_the_official_outputs_and_gradients(case: dict[str, Any]) -> None:
    cls = case["class"]
    build, run = RUNS[cls]
    module = build(case).double().train()
    names = {official: our_name(cls, official) for official in case["state"]}
    own = dict(module.named_parameters())
    assert set(names.values()) == set(own), "every parameter has its official one"
    with torch.no_grad():
        for official, ours in names.items():
            own[ours].copy_(array(case["state"][official]).reshape(own[ours].shape))
        for official, source in case["buffers"].items():
            module.get_buffer(official).copy_(array(source))

    inputs = [array(name).requires_grad_() for name in case["inputs"]]
    outputs = run(module, *inputs)
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    for output, expected in zip(outputs, case["outputs"], strict=True):
        torch.testing.assert_close(output, array(expected), rtol=TOLERANCE, atol=TOLERANCE)
    value = sum((output * array(probe)).sum() for output, probe in zip(outputs, case["probes"], strict=True))
    value.backward()
    assert value.item() == pytest.approx(case["value"], rel=TOLERANCE)
    assert [source.grad.norm().item() for source in inputs] == pytest.approx(case["grad_norm"], rel=TOLERANCE)
    found = {official: own[ours].grad.norm().item() for official, ours in names.items()}
    for official in case["zero_gradient"]:
        assert found.pop(official) < 1e-10
    assert found == pytest.approx(case["grad_norm_state"], rel=TOLERANCE)
