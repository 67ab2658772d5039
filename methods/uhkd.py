"""Distillation of frequency-domain representations, reconstructed."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdbench import Batch, Method, NetInfo, Outputs, Range, Task, register_method
from kdbench.blocks import kl_divergence, resize_map
from kdbench.method import stage_numbers


def compact_spectrum(feature_map: Tensor, bins: int) -> Tensor:
    """Log-amplitudes of the lowest spatial frequencies of each channel, standardised over the channels.

    Args:
        feature_map: (B, c, h, w).
        bins: k; the k frequencies around 0 are kept along the height and the k from 0 on along the width, or what the
            map has.

    Returns:
        (B, c, min(k, h), min(k, w // 2 + 1)), float32 or float64. Unchanged by cyclic shifts of the map.
    """
    if feature_map.dtype in (
        torch.bfloat16,
        torch.float16,
    ):  # the Fourier transform has no half precision on every device
        feature_map = feature_map.float()
    spectrum = torch.fft.fftshift(torch.fft.rfft2(feature_map, norm="ortho"), dim=-2)
    height = spectrum.shape[-2]
    rows = min(bins, height)
    block = spectrum.narrow(-2, height // 2 - rows // 2, rows)[..., :bins]
    # each frequency on its own: otherwise the mean of the map, by far the largest amplitude, would be all that counts
    log_amplitude = block.abs().log1p()
    return F.layer_norm(log_amplitude.movedim(1, -1), log_amplitude.shape[1:2]).movedim(-1, 1)


@register_method("uhkd")
class UHKD(Method):
    """Yu et al., UHKD: A Unified Framework for Heterogeneous Knowledge Distillation via Frequency-Domain Representations,
    2025 (arXiv:2510.24116).

    A reconstruction: only the abstract was read and no code is published. Known are a Fourier transform that makes the
    teacher's intermediate features compact, learned modules that project the student's features to that space at
    several levels, and a loss of cross-entropy, KL on logits and MSE on the frequency features. Everything else is our
    choice, and no result of it reproduces the paper's:

    - all four stages, class tokens dropped; the student's map goes through a 1 x 1 convolution to the teacher's width
      and to the teacher's grid (average pooling down, nearest neighbours up);
    - both maps: 2-D Fourier transform per channel, log(1 + amplitude), phases dropped, the lowest ``bins`` x ``bins``
      frequencies, standardised over the channels at each frequency;
    - a 1 x 1 convolution adapts the student's spectrum; mean squared error, summed over the stages;
    - the weight of the spectra 1; KD at its own settings on the suite.
    """

    display, family, fidelity = "UHKD", "hybrid", "reconstruction"
    needs = frozenset({"logits", "stages"})
    carries_kd: ClassVar[dict[str, str]] = {
        "temperature": "temperature",
        "kd_weight": "kd_weight",
        "ce_weight": "ce_weight",
    }
    citation: ClassVar[dict[str, Any]] = {
        "key": "yu2025uhkd",
        "authors": "Yu, Fengming and Pan, Haiwei and Zhang, Kejia and Guan, Jian and Jiang, Haiying",
        "title": "UHKD: A Unified Framework for Heterogeneous Knowledge Distillation via Frequency-Domain "
        "Representations",
        "venue": "arXiv",
        "year": 2025,
        "arxiv": "2510.24116",
    }

    def __init__(
        self,
        student: NetInfo,
        teacher: NetInfo,
        task: Task,
        *,
        stages: Annotated[tuple[int, ...], Range(at_least=1, at_most=4)] = (1, 2, 3, 4),
        bins: Annotated[int, Range(at_least=1)] = 4,
        temperature: Annotated[float, Range(above=0, search=(1, 8), scale="log")] = 1.0,
        ce_weight: Annotated[float, Range(at_least=0)] = 1.0,
        kd_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
        frequency_weight: Annotated[float, Range(at_least=0, search=(0.1, 10), scale="log")] = 1.0,
    ) -> None:
        super().__init__(student, teacher, task)
        stage_numbers(stages=stages)
        self.stages = stages
        self.bins = bins
        self.temperature = temperature
        self.ce_weight = ce_weight
        self.kd_weight = kd_weight
        self.frequency_weight = frequency_weight
        widths = [(student.stages[n - 1].channels, teacher.stages[n - 1].channels) for n in stages]
        self.align = nn.ModuleList(nn.Conv2d(width_in, width_out, 1) for width_in, width_out in widths)
        self.adapt = nn.ModuleList(nn.Conv2d(width_out, width_out, 1) for _, width_out in widths)

    def forward(self, batch: Batch, student: Outputs, teacher: Outputs) -> dict[str, Tensor]:
        assert student.stages is not None
        assert teacher.stages is not None
        losses = []
        for number, align, adapt in zip(self.stages, self.align, self.adapt, strict=True):
            target = teacher.stages[number - 1].map
            source = resize_map(align(student.stages[number - 1].map), (target.shape[2], target.shape[3]))
            losses.append(F.mse_loss(adapt(compact_spectrum(source, self.bins)), compact_spectrum(target, self.bins)))
        return {
            "ce": self.ce_weight * batch.task_loss(student.logits),
            "kd": self.kd_weight * kl_divergence(student.logits, teacher.logits, self.temperature),
            "frequency": self.frequency_weight * sum(losses[1:], losses[0]),
        }
