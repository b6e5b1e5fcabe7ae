"""Packages that the core does without: imported where they are used; a missing one is named with its extra."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from hvq.errors import ConfigurationError, HVQError


def require_package(module: str, *, what: str, extra: str, error: type[HVQError] = ConfigurationError) -> Any:
    """Import a module of a package that the core does without.

    Args:
        module: its dotted name.
        what: what takes it, as the beginning of a sentence that ends with the package.
        extra: of `hvq`, which brings the package.
        error: that is raised.

    Raises:
        HVQError: of the kind `error`, where the package is not installed, or cannot be imported.

    Example:
        >>> require_package("json", what="text is read with json", extra="data").loads("[3, 5]")
        [3, 5]
        >>> require_package("webdatasets", what="shards are read with webdatasets", extra="data")
        Traceback (most recent call last):
        hvq.errors.ConfigurationError: shards are read with webdatasets, which is not installed: pip install "hvq[data]"
    """
    try:
        return import_module(module)
    except ImportError as fault:
        if isinstance(fault, ModuleNotFoundError) and f"{module}.".startswith(f"{fault.name}."):
            raise error(f'{what}, which is not installed: pip install "hvq[{extra}]"') from None
        raise error(
            f'{what}, which cannot be imported ({fault}); install it again: pip install "hvq[{extra}]"'
        ) from None
