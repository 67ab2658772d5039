"""Build every timm model of tests/nets/timm_nets.txt as teacher and as student; write nets.csv anew: ``python docs/nets.py``.

At native size, with random weights: nothing is fetched. Takes an hour or more.
"""

from __future__ import annotations

import argparse
import csv
import re
import sys
from pathlib import Path
from typing import Any

import torch

import kdbench.nets.tapped
from kdbench.errors import KdbenchError
from kdbench.nets.tapped import TappedNet, describe
from kdbench.suite.net import NetSpec

NAMES = Path(__file__).parents[1] / "tests" / "nets" / "timm_nets.txt"
TABLE = Path(__file__).with_name("nets.csv")
COLUMNS = ("net", "family", "taps", "stages", "embedding", "classifiers", "outcome")
CLASSES = 10
#: Largest difference, relative to the largest value, that counts as equal: the same sums in another order.
ROUNDING = 1e-4


def spec_of(name: str) -> NetSpec:
    """A net of timm; one of three stages with the taps that its refusal says."""
    spec = NetSpec(timm=name)
    try:
        describe(spec, CLASSES)
    except KdbenchError as error:
        if found := re.search(r"write taps: \[(.*?)\]", str(error)):
            taps = tuple(int(tap) if tap.isdigit() else tap for tap in found[1].split(", "))
            return NetSpec(timm=name, taps=taps)
    return spec


def differences(name: str) -> dict[str, float]:
    """Build a net, compare it with timm's own functions, and take a step back through it (on the device "meta").

    Returns:
        the largest difference of logits, embedding and stages, relative to the largest value.

    Raises:
        KdbenchError: for a net that is refused.
    """
    torch.manual_seed(0)
    spec = spec_of(name)
    kdbench.nets.tapped.check_own_forward = lambda *arguments: None  # what follows compares the same, and more
    tapped = TappedNet(spec, CLASSES, name)
    net: Any = tapped.net
    with torch.no_grad():
        for module in net.modules():  # some classifiers start at zero
            if getattr(module, "out_features", 0) == CLASSES or getattr(module, "out_channels", 0) == CLASSES:
                torch.nn.init.normal_(module.weight)
    tapped.eval()
    images = torch.randn(1, 3, *tapped.input_size)
    with torch.no_grad():
        ours = tapped.run(images, {"logits", "stages", "embedding"})
        final, values = net.forward_intermediates(images)
        pairs = {
            "logits": [(ours.logits, net(images))],
            "embedding": [(ours.embedding, net.forward_head(final, pre_logits=True).flatten(1))],
            "stages": [(s.map, values[t]) for s, t in zip(ours.stages, tapped.taps, strict=True) if isinstance(t, int)],
        }
    found = {
        key: max(
            float((a - b).abs().max() / max(float(b.abs().max()), 1e-12)) if a.shape == b.shape else float("inf")
            for a, b in tensors
        )
        for key, tensors in pairs.items()
    }
    with torch.device("meta"):
        student = TappedNet(spec, CLASSES, name).train()
        outputs = student.run(torch.zeros(2, 3, *student.input_size), {"logits", "stages", "embedding"})
        sum(value.sum() for value in (outputs.logits, outputs.embedding, *(s.map for s in outputs.stages))).backward()
    return found


def row(name: str) -> dict[str, str]:
    """A line of the table."""
    try:
        found = differences(name)
        spec = spec_of(name)
        info = describe(spec, CLASSES, name)
    except KdbenchError as error:
        return dict.fromkeys(COLUMNS, "") | {"net": name, "outcome": f"refused: {error}"}
    different = [key for key, value in found.items() if not value <= ROUNDING]
    several = re.search(r"has (\d+) classifiers", info.lacks.get("classifier", ""))
    return {
        "net": name,
        "family": info.family,
        "taps": "" if spec.taps is None else f"[{', '.join(map(str, spec.taps))}]",
        "stages": " ".join(
            f"{s.channels}x{s.height}x{s.width}{f'+{s.class_tokens}' if s.class_tokens else ''}" for s in info.stages
        ),
        "embedding": str(info.embedding_dim),
        "classifiers": several[1] if several else "1",
        "outcome": f"differs: {', '.join(different)}" if different else "equal",
    }


def main() -> None:
    """Write the table, a line as soon as it is known."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="some models only; their lines are printed, nothing is written")
    chosen = parser.parse_args().names
    file = sys.stdout if chosen else TABLE.open("w", newline="", encoding="utf-8")
    writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for name in chosen or NAMES.read_text(encoding="utf-8").split():
        writer.writerow(row(name))
        file.flush()


if __name__ == "__main__":
    main()
