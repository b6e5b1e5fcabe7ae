"""Memory that is freed is used again, where the system's allocator lets itself be told."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from hvq.training.memory import keep_freed_memory

# In a process of its own: pages that are fetched from the system while 47 MiB are taken and freed again and again.
SCRIPT = """
import resource
import torch
from hvq.training.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(11):
        torch.empty(47 * 2**18).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
plain = faults()
assert keep_freed_memory()
faults()
print(plain, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator is another one")
def test_freed_memory_is_not_fetched_again() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    plain, kept = map(int, done.stdout.split())
    assert kept < 100
    assert kept < plain / 20


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not keep_freed_memory()


PEAK = """
import torch
from hvq.training.memory import peak_memory

before = peak_memory(torch.device("cpu"))
torch.ones(3 * 2**27)
print(before, peak_memory(torch.device("cpu")))
"""


@pytest.mark.skipif(sys.platform == "win32", reason="the system does not say")
def test_the_peak_is_of_what_was_held_at_once_though_it_is_freed() -> None:
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    before, after = map(float, done.stdout.split())
    # A gibibyte and a half in GiB; some of what was there before may have been given back.
    assert 0.05 < before < 4
    assert 1.2 < after - before < 1.7
