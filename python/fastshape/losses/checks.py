"""Checks that the losses share."""

from __future__ import annotations

from torch import Tensor


def require_one_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    if tensor.shape != other.shape:
        raise ValueError(
            f"`{name}` and `{other_name}` must have one shape, "
            f"got {tuple(tensor.shape)} and {tuple(other.shape)}"
        )
