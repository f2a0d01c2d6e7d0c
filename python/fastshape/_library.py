"""Registers the kernels as ``torch.ops.fastshape.*``.

An operator is a schema, an implementation that allocates the outputs with torch and calls the extension
module, and a fake that only allocates. The same implementation serves CPU and CUDA: the extension picks
the kernel by the tensors' device. Gradients do not stand here: an ``autograd.Function`` outside (see
``fastshape.ops``) calls a forward and a backward operator, which costs half of what ``register_autograd``
costs a call.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch

from fastshape import _C

_LIBRARY = torch.library.Library("fastshape", "DEF")
_backend: ModuleType = _C
_threads = 0  # what the extension module was last told


def backend() -> ModuleType:
    """The extension module that runs the kernels, told how many threads torch uses."""
    global _threads
    threads = torch.get_num_threads()
    if threads != _threads:
        _backend.set_num_threads(threads)
        _threads = threads
    return _backend


@contextmanager
def use_backend(module: ModuleType) -> Iterator[None]:
    """Runs the kernels of another build of the extension module (see :func:`fastshape.testing.emulated`)."""
    global _backend, _threads
    former = _backend
    _backend, _threads = module, 0
    try:
        yield
    finally:
        _backend, _threads = former, 0


def define(
    schema: str, *, implementation: Callable[..., Any], fake: Callable[..., Any]
) -> torch._ops.OpOverload:
    """Defines ``torch.ops.fastshape.<name>`` and returns its overload, ready to be called.

    Args:
        schema: ``"name(Tensor points, int num_samples) -> Tensor"``.
        implementation: allocates the outputs and calls ``backend().<name>``; for CPU and CUDA tensors.
        fake: the same outputs, allocated only: shapes, dtypes, devices (``torch.compile``, ``FakeTensor``).
    """
    name = schema.split("(", 1)[0].strip()
    _LIBRARY.define(schema)
    _LIBRARY.impl(name, implementation, "CPU")
    _LIBRARY.impl(name, implementation, "CUDA")
    torch.library.register_fake(f"fastshape::{name}", fake, lib=_LIBRARY)
    return getattr(torch.ops.fastshape, name).default
