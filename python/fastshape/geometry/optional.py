"""Lazy imports of packages that belong to an extra."""

from __future__ import annotations

import importlib
from typing import Any

_PACKAGES = {"PIL": "pillow", "igl": "libigl"}


def require(module: str, extra: str, purpose: str) -> Any:
    """Import `module`, or say which extra of fastshape brings it.

    Raises:
        ImportError: the package is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.split(".")[0]
        package = _PACKAGES.get(name, name)
        raise ImportError(f"{purpose} needs {package}: pip install 'fastshape[{extra}]'") from error
