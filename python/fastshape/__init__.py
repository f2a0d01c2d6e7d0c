"""fastshape: train and run 3D-shape autoencoders and generators, with or without a GPU.

``fastshape.ops`` holds the kernels, ``fastshape.models`` the models, ``fastshape.geometry`` what surrounds
them. Nothing is imported until it is used.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from fastshape._C import __version__ as __version__

_SUBMODULES = (
    "checkpoints",
    "cli",
    "flow",
    "geometry",
    "losses",
    "models",
    "nn",
    "ops",
    "pipelines",
    "train",
)


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"fastshape.{name}")
    raise AttributeError(f"module 'fastshape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted((*globals(), *_SUBMODULES))
