"""Small pieces that several methods share: bringing features of different nets to one shape, and their initialisation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def full_precision(value: Tensor) -> Tensor:
    """The value in single precision where it has less, as under autocast."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def inner_products(first: Tensor, second: Tensor) -> Tensor:
    """Inner products (..., n, m) of the rows of (..., n, d) and (..., m, d), never in half precision: what follows looks at
    small differences between them."""
    with torch.autocast(first.device.type, enabled=False):
        return full_precision(first) @ full_precision(second).mT


def resize_map(value: Tensor, size: tuple[int, int], mode: str = "nearest") -> Tensor:
    """Bring a map (B, c, h, w) to ``size``: adaptive average pooling down, interpolation up, nothing when it fits."""
    height, width = value.shape[-2:]
    if (height, width) == tuple(size):
        return value
    if height >= size[0] and width >= size[1]:
        return F.adaptive_avg_pool2d(value, size)
    return F.interpolate(value, size, mode=mode)


def match_maps(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Pool the larger of two maps to the size of the smaller one (adaptive average pooling)."""
    size = (min(first.shape[-2], second.shape[-2]), min(first.shape[-1], second.shape[-1]))
    return resize_map(first, size), resize_map(second, size)


def tokens_to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """(B, L, d) with L = height * width to (B, d, height, width)."""
    return tokens.transpose(1, 2).unflatten(2, (height, width))


def embedding_map(feature_map: Tensor, embedding: Tensor) -> Tensor:
    """Bring a last-stage map into the space of the classifier: its mean over the positions becomes ``embedding``.

    Args:
        feature_map: (B, d, h, w), the last stage.
        embedding: (B, d), what enters the classifier.

    Each sample is scaled by one number, the ratio of the spreads over the channels of the embedding and of the map's
    mean, and shifted by one vector. Where the embedding is the map's mean (ResNet) this is the identity. Where a
    normalisation lies between (ViT, Swin, MLP, ConvNeXt) it stands in for it, and where the embedding is a class token
    it replaces the mean. The scale takes no gradient.
    """
    pooled = feature_map.mean(dim=(2, 3))
    scale = (embedding.std(dim=1, keepdim=True) / pooled.std(dim=1, keepdim=True).clamp_min(1e-6)).detach()
    shift = embedding - scale * pooled
    return feature_map * scale[:, :, None, None] + shift[:, :, None, None]


class BatchNormAnySize(nn.BatchNorm2d):
    """Batch normalisation that falls back on its running statistics where a channel has one value (one 1 x 1 map).

    One value has no variance; torch refuses such a batch in training mode.
    """

    def forward(self, value: Tensor) -> Tensor:
        if self.training and value.numel() == value.shape[1]:
            return F.batch_norm(
                value, self.running_mean, self.running_var, self.weight, self.bias, False, 0.0, self.eps
            )
        return super().forward(value)


class SepConv(nn.Sequential):
    """Separable convolution that halves height and width: depthwise 3 x 3 (stride 2), pointwise, then both again with stride 1.

    The exit branches of OFA-KD (Hao et al., arXiv:2310.19444) are made of it.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(
            nn.Conv2d(channels_in, channels_in, 3, stride=2, padding=1, groups=channels_in, bias=False),
            nn.Conv2d(channels_in, channels_in, 1, bias=False),
            BatchNormAnySize(channels_in),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels_in, channels_in, 3, padding=1, groups=channels_in, bias=False),
            nn.Conv2d(channels_in, channels_out, 1, bias=False),
            BatchNormAnySize(channels_out),
            nn.ReLU(inplace=True),
        )


def init_like_ofa(module: nn.Module) -> None:
    """Initialise as OFA-KD does: convolutions Kaiming-normal (fan out), norms 1 and 0, linear layers truncated normal 0.02.

    Biases of convolutions keep torch's own values, those of linear layers are 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            if layer.weight is not None:
                nn.init.ones_(layer.weight)
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def kl_divergence(student_logits: Tensor, teacher_logits: Tensor, temperature: Tensor | float = 1.0) -> Tensor:
    """T^2 * mean over the batch of KL(teacher || student), both softened by ``temperature``. Logits (B, C)."""
    student_log = F.log_softmax(student_logits / temperature, dim=1)
    teacher_log = F.log_softmax(teacher_logits / temperature, dim=1)
    return F.kl_div(student_log, teacher_log, reduction="batchmean", log_target=True) * temperature**2


def warmup_factor(epoch: int, warmup_epochs: int) -> float:
    """Linear warm-up of a loss in an ``epoch`` counted from 0: 1 / ``warmup_epochs`` in the first, at last 1; 0 means none."""
    return min((epoch + 1) / warmup_epochs, 1.0) if warmup_epochs else 1.0


def one_hot(labels: Tensor, num_classes: int, dtype: torch.dtype) -> Tensor:
    """(B,) labels to a (B, C) one-hot matrix of ``dtype``. Unlike torch's it reads no label on the host, on any device."""
    return torch.zeros(len(labels), num_classes, dtype=dtype, device=labels.device).scatter_(1, labels[:, None], 1)
