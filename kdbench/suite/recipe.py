"""Recipes: how a kind of student, or a teacher, is trained."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from kdbench.suite.problems import Contradiction
from kdbench.suite.types import Count, NonNegative, Positive, Probability, Share, Strict


class ResizedCrop(Strict):
    """A random part of the image, resized (torchvision's and timm's RandomResizedCrop).

    Attributes:
        scale: range of its share of the image's area.
        ratio: range of its aspect ratio, drawn on a logarithmic scale.
        interpolation: ``random`` is bilinear or bicubic by chance.
    """

    scale: tuple[Positive, Positive] = (0.08, 1.0)
    ratio: tuple[Positive, Positive] = (3 / 4, 4 / 3)
    interpolation: Literal["random", "bilinear", "bicubic"] = "random"

    @model_validator(mode="after")
    def _ranges_ascend(self) -> ResizedCrop:
        for name in ("scale", "ratio"):
            low, high = getattr(self, name)
            if low > high or (name == "scale" and high > 1):
                raise Contradiction(f"[{low:g}, {high:g}] is no range{' of shares' if name == 'scale' else ''}", name)
        return self


class Augment(Strict):
    """Augmentation of training images.

    Attributes:
        crop_padding: zero padding (px) before a random crop of the old size.
        flip: horizontal flip, with probability 0.5.
        resized_crop: a random resized crop to the suite's image size, instead of ``crop_padding``.
        randaugment: timm's RandAugment, in its notation (``rand-m9-mstd0.5-inc1``).
        color_jitter: timm's colour jitter; off with RandAugment, as in timm.
        erasing: probability of random erasing, with noise for every pixel.
        mixup: alpha of mixup's Beta distribution; 0 turns it off.
        cutmix: alpha of CutMix's Beta distribution; 0 turns it off.
        mix_prob: probability that a batch (or image) is mixed at all.
        mix_switch_prob: probability of CutMix if both are on.
        mix_mode: whether a ratio is drawn for every image or, as in timm's default, for a batch.
        repeats: copies of each drawn image in an epoch (repeated augmentation, Hoffer et al., arXiv:1901.09335).
    """

    crop_padding: Annotated[int, Field(ge=0)] = 0
    flip: bool = False
    mixup: NonNegative = 0.0
    resized_crop: ResizedCrop | None = None
    randaugment: str | None = None
    color_jitter: NonNegative = 0.0
    erasing: Probability = 0.0
    cutmix: NonNegative = 0.0
    mix_prob: Probability = 1.0
    mix_switch_prob: Probability = 0.5
    mix_mode: Literal["image", "batch"] = "image"
    repeats: Count = 1

    @model_validator(mode="after")
    def _one_crop(self) -> Augment:
        if self.crop_padding and self.resized_crop:
            raise Contradiction("crop_padding and resized_crop are two crops; choose one", "crop_padding")
        if self.cutmix and self.mix_mode == "image":
            raise Contradiction("cutmix is made for whole batches: set mix_mode: batch", "cutmix")
        return self

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed, which makes targets soft."""
        return bool(self.mixup or self.cutmix)


class OptimizerSpec(Strict):
    """An optimiser of timm.

    Attributes:
        name: timm's name; ``sgd`` has Nesterov momentum, ``momentum`` does not.
        lr: learning rate, after warm-up.
        weight_decay: weight decay, by default not on biases and normalisation layers.
        momentum: momentum, for optimisers that have one.
        betas: betas of Adam and similar optimisers; by default timm's.
        honour_no_weight_decay: do not decay what the net itself exempts (position embeddings, class tokens).
        decay_biases_and_norms: decay biases and normalisation layers too.
    """

    name: str
    lr: Positive
    weight_decay: NonNegative = 0.0
    momentum: NonNegative = 0.9
    betas: tuple[Share, Share] | None = None
    honour_no_weight_decay: bool = True
    decay_biases_and_norms: bool = False


class ScheduleSpec(Strict):
    """A schedule of timm.

    Attributes:
        name: kind of schedule.
        warmup_epochs: epochs of linear warm-up, part of the recipe's ``epochs``.
        warmup_lr: learning rate at its start.
        min_lr: learning rate at the end of ``cosine``.
        decay_epochs: epochs between the steps of ``step``.
        decay_rate: factor of each step of ``step`` and ``multistep``.
        milestones: epochs of the steps of ``multistep``.
        per: how often the learning rate changes.
    """

    name: Literal["cosine", "step", "multistep", "constant"] = "cosine"
    warmup_epochs: Annotated[int, Field(ge=0)] = 0
    warmup_lr: NonNegative = 0.0
    min_lr: NonNegative = 0.0
    decay_epochs: NonNegative = 30
    decay_rate: Positive = 0.1
    milestones: tuple[int, ...] = ()
    per: Literal["epoch", "step"] = "epoch"


#: Fields that were added later, with their defaults: where they have them, identities are as they were.
_LATER = {"tf32": "convolutions"}


class Recipe(Strict):
    """How a kind of student, or a teacher, is trained.

    Attributes:
        epochs: number of epochs, warm-up included.
        batch_size: global batch size, over all processes of a cohort and all micro-batches.
        optimizer, schedule, augment: see there.
        label_smoothing: label smoothing of the supervised loss; with mixing, inside the soft targets.
        clip_norm: largest norm of the gradient; by default no clipping.
        loss: the supervised loss; ``bce`` is binary cross-entropy on every class (Wightman et al., arXiv:2110.00476).
        ema: decay of an exponential moving average of the weights, which is then evaluated and kept.
        drop_path: stochastic depth of the student; by default the net's own.
        eval_crop: share of the image's side that evaluation keeps; by default each net's own.
        pipeline: ``device`` makes batches on the device, ``exact`` with timm's own transforms in loader processes.
        precision: precision of forward passes: ``bfloat16`` and ``float16`` use autocast, ``float16`` with loss scaling.
        evaluate_every: epochs from one evaluation to the next; the last epoch is always evaluated.
        tf32: what may use TF32 on a GPU: ``convolutions`` is torch's default; ``all`` adds matrix products.
        sync_bn: BatchNorm over the global batch when several processes train a cohort.
    """

    epochs: Count
    batch_size: Count
    optimizer: OptimizerSpec
    schedule: ScheduleSpec = ScheduleSpec()
    augment: Augment = Augment()
    label_smoothing: Share = 0.0
    clip_norm: Positive | None = None
    loss: Literal["cross-entropy", "bce"] = "cross-entropy"
    ema: Share | None = None
    drop_path: Share | None = None
    eval_crop: Annotated[float, Field(gt=0, le=1)] | None = None
    pipeline: Literal["device", "exact"] = "device"
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    evaluate_every: Count = 1
    sync_bn: bool = False
    tf32: Literal["none", "convolutions", "all"] = "convolutions"

    def identity(self) -> dict[str, Any]:
        """What results depend on. Fields that were added later are in it where they have not their default."""
        content = self.model_dump(mode="json")
        return {name: value for name, value in content.items() if name not in _LATER or value != _LATER[name]}

    @property
    def evaluations(self) -> int:
        """How often a net is evaluated."""
        return -(-self.epochs // self.evaluate_every)

    @model_validator(mode="after")
    def _consistent(self) -> Recipe:
        if self.schedule.name != "constant" and self.schedule.warmup_epochs >= self.epochs:
            raise Contradiction(
                f"{self.schedule.warmup_epochs} leaves no epoch of epochs = {self.epochs} for the schedule itself",
                "schedule",
                "warmup_epochs",
            )
        if self.augment.mixes and self.augment.mix_mode == "batch" and self.batch_size % 2:
            raise Contradiction(f"{self.batch_size} is odd, but images of a batch are mixed in pairs", "batch_size")
        if self.pipeline == "device":
            for name in ("randaugment", "color_jitter"):
                if getattr(self.augment, name):
                    raise Contradiction(f"{name} works image by image: set pipeline: exact", "augment", name)
        return self
