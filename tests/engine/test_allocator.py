"""Memory that is freed is there for the next step."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from kdbench.engine.process import keep_freed_memory

FAULTS = """
import resource, torch
from kdbench.engine.process import keep_freed_memory
assert keep_freed_memory()
def use():
    torch.empty(25_000_000).fill_(1)
for _ in range(12):  # until the heap has settled
    use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_a_tensor_of_a_hundred_megabytes_is_not_fetched_from_the_system_again() -> None:
    done = subprocess.run([sys.executable, "-c", FAULTS], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 1000  # 24,000 pages each time without it


def test_a_c_library_without_the_setting_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_freed_memory()
