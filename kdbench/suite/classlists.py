"""Lists of classes that have a name in the literature."""

from __future__ import annotations

from collections.abc import Iterable

from kdbench.errors import UnknownNameError

#: WNIDs of ImageNet-1K.
CLASS_LISTS: dict[str, tuple[str, ...]] = {
    # github.com/fastai/imagenette: tench, English springer, cassette player, chain saw, church, French horn, garbage truck,
    # gas pump, golf ball, parachute
    "imagenette": (
        *("n01440764", "n02102040", "n02979186", "n03000684", "n03028079"),
        *("n03394916", "n03417042", "n03425413", "n03445777", "n03888257"),
    ),
    # github.com/fastai/imagenette: Shih-Tzu, Rhodesian ridgeback, beagle, English foxhound, Australian terrier, Border terrier,
    # golden retriever, Old English sheepdog, Samoyed, dingo
    "imagewoof": (
        *("n02086240", "n02087394", "n02088364", "n02089973", "n02093754"),
        *("n02096294", "n02099601", "n02105641", "n02111889", "n02115641"),
    ),
    # github.com/HobbitLong/CMC, imagenet100.txt (Tian et al., Contrastive Multiview Coding, arXiv:1906.05849), in its order
    "imagenet100": (
        *("n02869837", "n01749939", "n02488291", "n02107142", "n13037406"),
        *("n02091831", "n04517823", "n04589890", "n03062245", "n01773797"),
        *("n01735189", "n07831146", "n07753275", "n03085013", "n04485082"),
        *("n02105505", "n01983481", "n02788148", "n03530642", "n04435653"),
        *("n02086910", "n02859443", "n13040303", "n03594734", "n02085620"),
        *("n02099849", "n01558993", "n04493381", "n02109047", "n04111531"),
        *("n02877765", "n04429376", "n02009229", "n01978455", "n02106550"),
        *("n01820546", "n01692333", "n07714571", "n02974003", "n02114855"),
        *("n03785016", "n03764736", "n03775546", "n02087046", "n07836838"),
        *("n04099969", "n04592741", "n03891251", "n02701002", "n03379051"),
        *("n02259212", "n07715103", "n03947888", "n04026417", "n02326432"),
        *("n03637318", "n01980166", "n02113799", "n02086240", "n03903868"),
        *("n02483362", "n04127249", "n02089973", "n03017168", "n02093428"),
        *("n02804414", "n02396427", "n04418357", "n02172182", "n01729322"),
        *("n02113978", "n03787032", "n02089867", "n02119022", "n03777754"),
        *("n04238763", "n02231487", "n03032252", "n02138441", "n02104029"),
        *("n03837869", "n03494278", "n04136333", "n03794056", "n03492542"),
        *("n02018207", "n04067472", "n03930630", "n03584829", "n02123045"),
        *("n04229816", "n02100583", "n03642806", "n04336792", "n03259280"),
        *("n02116738", "n02108089", "n03424325", "n01855672", "n02090622"),
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


def list_called(classes: Iterable[str]) -> str | None:
    """The name of the list with exactly these classes, or None."""
    chosen = set(classes)
    return next((name for name, members in CLASS_LISTS.items() if set(members) == chosen), None)
