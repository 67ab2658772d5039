"""Write fields.md and suite.schema.json anew, from the models of a suite: ``python docs/fields.py``."""

from __future__ import annotations

import json
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel

from kdbench.suite.schema import MODELS, descriptions, suite_schema, summary

PAGE = Path(__file__).with_name("fields.md")
SCHEMA = Path(__file__).with_name("suite.schema.json")

#: Headings of the models.
TITLES = {
    "Suite": "A suite",
    "DatasetSpec": "`dataset`",
    "NetSpec": "`nets`: each net",
    "WeightsFile": "`weights` of a net, as a file",
    "Recipe": "`recipes`: each recipe",
    "OptimizerSpec": "`optimizer` of a recipe",
    "ScheduleSpec": "`schedule` of a recipe",
    "Augment": "`augment` of a recipe",
    "ResizedCrop": "`resized_crop` of `augment`",
    "Protocol": "`protocols`: each protocol",
    "MethodsSpec": "`methods`",
    "Variant": "`variants`: each variant",
}
_WORDS = {str: "text", int: "integer", float: "number", bool: "true or false", Any: "any value"}

_INTRODUCTION = """\
# Fields of a suite

<!-- Written by python docs/fields.py; do not edit. -->

Every field of a suite's file ([adding-a-suite.md](adding-a-suite.md)). Unknown fields, wrong types and contradictions are refused
with file and line. Editors with a YAML language server complete and check fields, after
`kdbench list schema > suite.schema.json`, if the suite's file begins with

```yaml
# yaml-language-server: $schema=suite.schema.json
```
"""


def page() -> str:
    """The text of fields.md."""
    parts = [_INTRODUCTION]
    for model in MODELS:
        said, hints = descriptions(model), get_type_hints(model)
        lines = ["| field | value | default | meaning |", "|---|---|---|---|"]
        for name, field in model.model_fields.items():
            default = "required" if field.is_required() else _default(field.get_default(call_default_factory=True))
            lines.append(f"| `{name}` | {_cell(_words(hints[name]))} | {default} | {_cell(said[name])} |")
        parts.append(f"## {TITLES[model.__name__]}\n\n{summary(model)}\n\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _words(hint: Any) -> str:
    """A type in the words of YAML."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _words(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        return " or ".join(_words(part) for part in inner if part is not types.NoneType)
    if origin is tuple:
        return f"list of {_words(inner[0])}" if inner[-1] is Ellipsis else f"[{', '.join(map(_words, inner))}]"
    if origin is dict:
        return f"mapping of {_words(inner[1])}"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        title = TITLES[hint.__name__]
        anchor = "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")
        return f"[fields](#{anchor})"
    return _WORDS[hint]


def _default(value: Any) -> str:
    if value is None or value == "":
        return ""
    if isinstance(value, BaseModel):
        return "its own defaults"
    return f"`{list(value) if isinstance(value, tuple) else value}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def main() -> None:
    """Write both."""
    PAGE.write_text(page(), encoding="utf-8")
    SCHEMA.write_text(json.dumps(suite_schema(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {PAGE} and {SCHEMA}")


if __name__ == "__main__":
    main()
