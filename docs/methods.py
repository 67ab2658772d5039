"""Write methods.md anew, and the packaged numbers of extra parameters: ``python docs/methods.py``.

Methods are measured on the device "meta", without memory for weights.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kdbench.cli.listing import COSTS, short_count
from kdbench.plugins.entry import FAMILIES, MethodEntry
from kdbench.plugins.registry import MethodCatalog, catalog
from kdbench.suite.net import NetSpec

PAGE = Path(__file__).with_name("methods.md")
#: Values of official codes, which tests compare with; a case has its ``source``, the repository and the files.
GOLDEN = Path(__file__).parents[1] / "tests" / "golden" / "losses.json"

#: Cases that kdbench does not follow: squeeze-and-excitation that returns its gate alone, as PAT was released.
LEFT_OUT = {"gate_only"}

CLASSES = 100
#: Pairs whose extra parameters are shown: key -> (teacher, student) in timm's names, with 100 classes.
REFERENCE_PAIRS = {
    "usual": ("swin_tiny_patch4_window7_224", "resnet18"),
    "small": ("vit_32px_large", "resnet_32px_small"),
}

_TAPS = {
    "stages": "four stages",
    "preactivation": "maps before the last activation",
    "embedding": "embedding",
    "index": "index of the sample",
    "classifier": "classifier",
    "stagewise": "net stage by stage",
    "strong": "strongly augmented view",
    "attention": "attention of a ViT",
}

_INTRODUCTION = """\
# Methods

<!-- Written by python docs/methods.py; do not edit. -->

Every method of kdbench, each from one file in [methods/](../methods). `kdbench list methods` prints a short form;
[adding-a-method.md](adding-a-method.md) says how to add one.

**Fidelity** says how far the code is backed: `reference` equals official code numerically; `paper` follows the equations of
the paper; `reconstruction` was made from an abstract or a summary, or for other data, with choices of our own that its notes
name: its results do not reproduce the paper's.

**Compared with** names the official code, and its commit where known, whose values and gradients on fixed inputs the method's
functions and modules reproduce in double precision, to a relative 1e-9. The notes say what differs around them.

**Extra parameters** are trained with the student and dropped afterwards, unless the notes say otherwise. They are counted for
two pairs with 100 classes: *usual* is Swin-T to ResNet18 at 224 px (the student has 11.2 million parameters), *small* is
`vit_32px_large` to `resnet_32px_small`.
"""


def measure(methods: MethodCatalog) -> dict[str, dict[str, int]]:
    """Count the trainable parameters of every method on the reference pairs, with its default hyper-parameters."""
    import torch

    from kdbench.method import Task
    from kdbench.nets.tapped import describe

    found: dict[str, dict[str, int]] = {}
    for name, entry in sorted(methods.items()):
        cls: Any = entry.load()
        found[name] = {}
        for key, nets in REFERENCE_PAIRS.items():
            teacher, student = (describe(NetSpec(timm=net), CLASSES) for net in nets)
            with torch.random.fork_rng(devices=[]), torch.device("meta"):
                labels = torch.zeros(50_000, dtype=torch.int64)
                method = cls(student, teacher, Task(CLASSES, len(labels), labels, "cifar100"))
            found[name][key] = sum(p.numel() for p in method.parameters() if p.requires_grad)
    return found


def methods_page(methods: MethodCatalog, costs: Mapping[str, Mapping[str, int]]) -> str:
    """The text of docs/methods.md."""
    ordered = in_order(methods)
    rows = [
        (
            f"[{entry.display}](#{_anchor(entry)})",
            f"`{entry.name}`",
            entry.fidelity,
            taps(entry),
            *(short_count(costs.get(entry.name, {}).get(key)) for key in REFERENCE_PAIRS),
        )
        for entry in ordered
    ]
    heads = ("method", "name", "fidelity", "taps", "extra, usual", "extra, small")
    parts = [_INTRODUCTION, _markdown_table(heads, rows)]
    for family, title in FAMILIES.items():
        members = [entry for entry in ordered if entry.family == family]
        if members:
            parts.append(f"## {title}\n")
            parts += [section(entry, costs) for entry in members]
    return "\n".join(parts).rstrip("\n") + "\n"


def in_order(methods: MethodCatalog) -> list[MethodEntry]:
    """Methods by family, then by name."""
    families = list(FAMILIES)
    return sorted(methods.values(), key=lambda entry: ((*families, entry.family).index(entry.family), entry.name))


def taps(entry: MethodEntry) -> str:
    """What a method taps beside the logits, in words."""
    return ", ".join(text for tap, text in _TAPS.items() if tap in entry.needs) or "none"


def notes(entry: MethodEntry) -> str:
    """A method's docstring without its first paragraph, read from the source."""
    tree = ast.parse(entry.path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and node.name == entry.class_name:
            text = inspect.cleandoc(ast.get_docstring(node) or "")
            return text.partition("\n\n")[2].strip()
    return ""


def official(entry: MethodEntry) -> list[str]:
    """What the functions and modules of a method's file are compared with, a sentence for each source."""
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    counted: dict[str, dict[str, int]] = {}
    for case in (*golden["cases"], *golden["classes"], golden["crd"]):
        name = case.get("function") or case.get("class") or case["class_"]
        if case["module"] == entry.path.stem and case.get("name") not in LEFT_OUT:
            names = counted.setdefault(case["source"], {})
            names[name] = names.get(name, 0) + 1
    return [
        f"Compared with {source.replace(' ', ', ', 1)}: "
        + ", ".join(f"`{name}` in {count} {'cases' if count > 1 else 'case'}" for name, count in names.items())
        + "."
        for source, names in counted.items()
    ]


def section(entry: MethodEntry, costs: Mapping[str, Mapping[str, int]]) -> str:
    """What the page says of one method."""
    own = costs.get(entry.name, {})
    counted = ", ".join(f"{own[key]:,} ({key})" for key in REFERENCE_PAIRS if key in own) or "not measured"
    lines = [
        f"### {entry.display}\n",
        f"{_code(entry.paper)}\n",
        f"`{entry.name}` in [{entry.path.name}](../methods/{entry.path.name}), version {entry.version}. "
        f"Fidelity: {entry.fidelity}. Taps beside the logits: {taps(entry)}. Extra parameters: {counted}.\n",
    ]
    if entry.hyperparameters:
        presets = list(entry.presets)
        heads = ("hyper-parameter", "default", *presets)
        rows = [
            (
                f"`{name}`",
                f"`{parameter.default}`",
                *(f"`{entry.presets[key][name]}`" if name in entry.presets[key] else "" for key in presets),
            )
            for name, parameter in entry.hyperparameters.items()
        ]
        lines.append(_markdown_table(heads, rows))
    lines += [f"{compared}\n" for compared in official(entry)]
    text = notes(entry)
    if text:
        lines.append(f"{_code(text)}\n")
    return "\n".join(lines)


def _anchor(entry: MethodEntry) -> str:
    """GitHub's anchor of a heading: letters, digits and hyphens in lower case, spaces as hyphens."""
    return "".join(c for c in entry.display.lower().replace(" ", "-") if c.isalnum() or c == "-")


def _code(text: str) -> str:
    return text.replace("``", "`")


def _markdown_table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, ("---",) * len(heads), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def main() -> None:
    """Measure, then write the packaged figures and the page."""
    methods = MethodCatalog()
    for entry in catalog().values():
        if entry.builtin:
            methods.add(entry)
    found = measure(methods)
    pairs = {key: {"teacher": nets[0], "student": nets[1]} for key, nets in REFERENCE_PAIRS.items()}
    content = {"num_classes": CLASSES, "pairs": pairs, "extra_parameters": found}
    COSTS.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    PAGE.write_text(methods_page(methods, found), encoding="utf-8")
    print(f"wrote {COSTS} and {PAGE}: {len(methods)} methods")


if __name__ == "__main__":
    main()
