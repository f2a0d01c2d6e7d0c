"""Layers that take each row by itself, over many rows."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_PART = 1 << 14  # rows


def by_rows(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """layer(x) of x (N, C); in inference for some thousand rows at a time, so that what the layer holds
    between does not grow with N.
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or len(x) <= _PART:
        return layer(x)
    parts = iter(x.split(_PART))
    first = layer(next(parts))
    out = first.new_empty(len(x), *first.shape[1:])
    out[:_PART] = first
    for begin, part in zip(range(_PART, len(x), _PART), parts, strict=True):
        out[begin : begin + _PART] = layer(part)
    return out
