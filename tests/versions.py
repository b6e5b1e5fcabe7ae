"""What the oldest versions that the package allows are known not to do."""

from __future__ import annotations

import pytest
import torch
from packaging.version import Version

# With 2.6, dynamo breaks graphs at plain Python that later versions read, and FSDP2 has no streams on CPUs.
needs_newer_torch = pytest.mark.skipif(
    Version(torch.__version__) < Version("2.13"),
    reason="one graph for torch.compile and torch.export, and shards on CPUs, are tested from torch 2.13 on",
)
