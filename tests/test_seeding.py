"""Seeds from names, and random streams that do not touch each other."""

from __future__ import annotations

import ast
import io
import random
from pathlib import Path

import numpy as np
import pytest
import torch

import kdbench.blocks
from kdbench.plugins.registry import catalog
from kdbench.seeding import RandomStream, may_draw_on_host, seed_for


def draw() -> list[float]:
    """Numbers from every global generator."""
    of_numpy = [float(np.random.rand()), float(np.random.randn())]  # noqa: NPY002 - the global generator is meant
    return [torch.rand(1).item(), torch.randn(1).item(), *of_numpy, random.random(), random.gauss(0, 1)]  # noqa: S311 - no secret


def test_seed_is_fixed_by_the_names_alone() -> None:
    assert seed_for("data", "digits", 0) == 6728299246923660517  # sha256sum of the names, its first 8 bytes, halved


def test_different_names_give_different_seeds() -> None:
    parts = [("a", "b"), ("ab",), ("a", "b", ""), ("b", "a"), ("a", 0), ("a", 1), ("a0",), ("a", "0", "0")]
    assert len({seed_for(*names) for names in parts}) == len(parts)
    assert all(0 <= seed_for(*names) < 2**63 for names in parts)


def test_stream_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = RandomStream(5)
    torch.manual_seed(2)
    random.seed(9)
    second, other = RandomStream(5), RandomStream(6)
    with first.active():
        a = draw()
    with second.active():
        b = draw()
    with other.active():
        c = draw()
    assert a == b
    assert a != c


def test_streams_taken_in_turns_give_what_each_gives_alone() -> None:
    alone = RandomStream(5)
    with alone.active():
        expected = [draw() for _ in range(4)]
    turns, other = RandomStream(5), RandomStream(6)
    seen = []
    for _ in range(4):
        with turns.active():
            seen.append(draw())
        with other.active():
            draw()
        draw()
    assert seen == expected


def test_stream_leaves_the_global_state_as_it_was_even_after_an_error() -> None:
    def seeded() -> None:
        torch.manual_seed(3)
        np.random.seed(3)  # noqa: NPY002
        random.seed(3)

    seeded()
    expected = [draw(), draw()]
    seeded()
    stream = RandomStream(5)
    first = draw()
    with pytest.raises(ZeroDivisionError), stream.active():
        draw()[0] / 0
    assert [first, draw()] == expected


def test_saved_stream_goes_on_where_it_was() -> None:
    stream = RandomStream(5)
    with stream.active():
        draw()
    buffer = io.BytesIO()
    torch.save(stream.state_dict(), buffer)
    buffer.seek(0)
    with stream.active():
        expected = [draw(), draw()]
    again = RandomStream(99)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    with again.active():
        assert [draw(), draw()] == expected


def test_a_stream_of_the_device_alone_leaves_the_hosts_generators_and_draws_as_a_whole_one() -> None:
    whole, device_alone = RandomStream(5), RandomStream(5, host=False)
    with whole.active():
        expected = torch.rand(3)
    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    here = (random.getstate(), np.random.get_state()[1].tolist())  # noqa: NPY002
    with device_alone.active():
        assert torch.equal(torch.rand(3), expected)
        assert (random.getstate(), np.random.get_state()[1].tolist()) == here  # noqa: NPY002
    assert device_alone.state_dict()["python"] == RandomStream(5).state_dict()["python"]


def test_a_plugin_may_draw_on_the_host_and_no_method_of_the_suite_does() -> None:
    assert may_draw_on_host(type("Plugin", (), {"__module__": "kdbench_plugin_x"}))
    methods = catalog()
    assert [name for name in methods if may_draw_on_host(methods[name].load())] == []
    sources = [*(Path(kdbench.__file__).parents[1] / "methods").glob("*.py"), Path(kdbench.blocks.__file__)]
    assert len(sources) > 30
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not {name.split(".")[0] for name in names} & {"numpy", "random"}, path
