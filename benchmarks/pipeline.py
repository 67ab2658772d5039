"""The on-device pipeline against torchvision's transforms in loader processes: 32 px, padded crop, flip, normalisation.

    python -m benchmarks.pipeline [--to FILE]

Images per second and core. On the CPU a core is counted by the seconds of it that were used: by this process, with one thread,
and by the loader processes. On a GPU the clock on the wall counts, for one core on the one side, for as many cores as there
are loader processes on the other.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from benchmarks.common import Candidate, compare, core_clock, machine, parser, report, wall_clock
from kdbench.data.device import DevicePipeline
from kdbench.data.images import ImageSet
from kdbench.suite.dataset import IMAGENET_MEAN, IMAGENET_STD
from kdbench.suite.recipe import Recipe

#: Times as many images per second and core as torchvision's.
TARGET = 5.0


class Pictures(Dataset[tuple[Tensor, int]]):
    """As torchvision's CIFAR data sets hold and give them: an array, one Pillow image at a time."""

    def __init__(self, data: ImageSet) -> None:
        self.pixels = data.images.permute(0, 2, 3, 1).contiguous().numpy()
        self.labels = data.labels.tolist()
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(data.images.shape[-1], padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        image: Tensor = self.transform(Image.fromarray(self.pixels[position]))
        return image, self.labels[position]


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; 1 if the target is missed."""
    arguing = parser(__doc__.splitlines()[0] if __doc__ else "")
    arguing.add_argument("--images", type=int, default=10_000, help="in an epoch, which is one run")
    arguing.add_argument("--batch-size", type=int, default=128)
    arguing.add_argument("--workers", type=int, default=1, help="loader processes; 0 works in this process")
    options = arguing.parse_args(arguments)
    torch.set_num_threads(1)
    device = torch.device(options.device)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (options.images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    data = ImageSet(pixels, torch.arange(options.images) % 100)
    recipe = Recipe.model_validate(
        {
            "epochs": 1,
            "batch_size": options.batch_size,
            "optimizer": {"name": "sgd", "lr": 0.1},
            "augment": {"crop_padding": 4, "flip": True},
        }
    )
    ours = DevicePipeline(data, recipe, 100, 0, device)
    mean, std = (torch.tensor(values, device=device)[:, None, None] for values in (IMAGENET_MEAN, IMAGENET_STD))
    theirs = DataLoader(
        Pictures(data),
        options.batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        pin_memory=device.type == "cuda",
    )

    def on_device() -> None:
        for made in ours.batches(0):
            made.images.sub_(mean).div_(std)

    def in_loaders() -> None:
        for images, labels in theirs:
            images.to(device, non_blocking=True)
            labels.to(device, non_blocking=True)

    def loaders() -> list[int]:
        return [process.pid for process in getattr(theirs._iterator, "_workers", ())]

    units = len(ours) * options.batch_size
    wall, cuda = wall_clock(device), device.type == "cuda"
    cores = max(1, options.workers)
    comparison = compare(
        Candidate("on the device", on_device, wall if cuda else core_clock(), units, "images"),
        Candidate(
            "torchvision in loader processes",
            in_loaders,
            (lambda: wall() * cores) if cuda else core_clock(loaders),
            units,
            "images",
        ),
        options.repeats,
    )
    settings = {"images": options.images, "batch_size": options.batch_size, "workers": options.workers, "per": "core"}
    return 0 if report("pipeline", comparison, TARGET, machine(device), options.to, **settings) else 1


if __name__ == "__main__":
    sys.exit(main())
