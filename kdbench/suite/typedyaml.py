"""YAML files of users as typed objects: what is wrong is said in one line, with the file and the line."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, RootModel, ValidationError

from kdbench.errors import KdbenchError
from kdbench.opening import RefusedFileError, read_file
from kdbench.suite.problems import first_problem

Model = TypeVar("Model", bound=BaseModel)

#: Bounds of a file, which aliases could make explode.
MAX_BYTES, MAX_VALUES, MAX_DEPTH = 1_000_000, 100_000, 50


class SuiteError(KdbenchError):
    """A file that does not parse or contradicts itself; names the file and the line."""


def read_typed(path: Path, model: type[Model], what: str) -> Model:
    """Read a YAML file whose top is a mapping.

    Args:
        path: the file.
        model: what it holds.
        what: how errors call that, ``"a suite"``.

    Raises:
        SuiteError: if it cannot be read, does not parse, or holds something else.
    """
    try:
        # The user named the file, so a link is followed; a pipe or a device would be read without end.
        text = read_file(Path(os.path.realpath(path)), MAX_BYTES).decode("utf-8")
        tree = yaml.compose(text, Loader=yaml.SafeLoader)
        _check_tree(tree)
        content = None if tree is None else yaml.SafeLoader("").construct_document(tree)
    except RefusedFileError as error:
        raise SuiteError(f"{path}: {what} {error.reason}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"{path}: cannot be read ({error})") from None
    except yaml.reader.ReaderError as error:
        raise SuiteError(f"{path}: character {error.position + 1} cannot be in a YAML file ({error.reason})") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise SuiteError(f"{path}{line}: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise SuiteError(f"{path}: nested too deeply") from None
    except (ValueError, OverflowError, TypeError) as error:  # a value that looks like a date or a number and is none
        raise SuiteError(f"{path}: a value cannot be read ({error}); quote it if it is text") from None
    if not isinstance(content, dict):
        keys = "" if issubclass(model, RootModel) else f" with the keys {', '.join(model.model_fields)}"
        raise SuiteError(f"{path}, line 1: {what} is a mapping{keys}")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        location, problem = first_problem(error, model, content)
        where = ".".join(map(str, location))
        raise SuiteError(f"{path}, line {_line_of(tree, location)}: {where and f'{where}: '}{problem}") from None


def _check_tree(root: yaml.Node | None) -> None:
    """Refuse a key given twice, of which YAML would keep the last, and aliases that make a small file explode."""
    count, stack = 0, [(root, 0)]
    while stack:
        node, depth = stack.pop()
        count += 1
        if depth > MAX_DEPTH:
            raise _marked("nested too deeply, or an alias refers to itself", node)
        if count > MAX_VALUES:
            raise _marked("aliases expand to too many values", node)
        if isinstance(node, yaml.SequenceNode):
            stack += [(child, depth + 1) for child in node.value]
        elif isinstance(node, yaml.MappingNode):
            seen = set()
            for key, child in node.value:
                if isinstance(key, yaml.ScalarNode):
                    if key.value in seen:
                        raise _marked(f"key {key.value!r} is given twice", key)
                    seen.add(key.value)
                stack += [(key, depth + 1), (child, depth + 1)]


def _marked(problem: str, node: yaml.Node | None) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=node.start_mark if node else None)


def _line_of(node: yaml.Node | None, location: Sequence[Any]) -> int:
    """Line (from 1) of the deepest part of ``location`` that the file holds."""
    line = 1
    for key in location:
        if isinstance(node, yaml.MappingNode):
            match = next(((k, v) for k, v in node.value if k.value == str(key)), None)
            if match is None:
                break
            line, node = match[0].start_mark.line + 1, match[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(key, int) and key < len(node.value):
            node = node.value[key]
            line = node.start_mark.line + 1
        else:
            break
    return line
