"""Lists of classes that have a name in the literature. Works without torch."""

from __future__ import annotations

from kdbench.errors import UnknownNameError

#: WNIDs of ImageNet-1K.
CLASS_LISTS: dict[str, tuple[str, ...]] = {
    # github.com/fastai/imagenette: tench, English springer, cassette player, chain saw, church, French horn, garbage truck,
    # gas pump, golf ball, parachute
    "imagenette": (
        *("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"),
        *("n03394916", "n03417042", "n03425413", "n03445777", "n03888257"),
    ),
}


def named_class_list(name: str) -> tuple[str, ...]:
    """The classes of a named list.

    Raises:
        UnknownNameError: with the nearest valid name.
    """
    if name not in CLASS_LISTS:
        raise UnknownNameError("list of classes", name, CLASS_LISTS)
    return CLASS_LISTS[name]
