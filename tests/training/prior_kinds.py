"""A tiny prior of every kind, as a person writes it in YAML."""

from __future__ import annotations

from typing import Any

PRIORS: dict[str, dict[str, Any]] = {
    "transformer": {"kind": "transformer", "width": 8, "layers": 1, "heads": 2},
    "pixelsnail": {
        "kind": "pixelsnail",
        "width": 8,
        "heads": 2,
        "residual_width": 5,
        "blocks": 1,
        "residual_blocks": 2,
    },
    "pixelcnn": {"kind": "pixelcnn", "width": 8, "layers": 2},
}
