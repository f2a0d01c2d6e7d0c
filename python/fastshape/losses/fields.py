"""Losses of fields at points: occupancy and distances."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastshape.losses.checks import require_one_shape


def occupancy_loss(logits: Tensor, occupancy: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over everything.

    Args:
        logits: (...) positive inside.
        occupancy: (...) 1 or True inside, 0 or False outside, or between.

    Returns:
        Scalar.
    """
    require_one_shape("logits", logits, "occupancy", occupancy)
    return F.binary_cross_entropy_with_logits(logits, occupancy.to(logits.dtype))


def soft_occupancy(sdf: Tensor, truncation: float) -> Tensor:
    """A ramp from 1 inside to 0 outside, clip(1/2 - sdf / (2 truncation), 0, 1): what `occupancy_loss` takes.

    Args:
        sdf: (...) signed distances, negative inside.
        truncation: distance at which the ramp ends, positive.

    Returns:
        (...) in [0, 1], 1/2 on the surface.

    Reference: VAT (arXiv 2412.02202), which takes it from Direct3D; 1/128 of the unit cube there.
    """
    if not truncation > 0:
        raise ValueError(f"`truncation` must be positive, got {truncation}")
    return (0.5 - sdf / (2.0 * truncation)).clamp(0.0, 1.0)


def tsdf_loss(values: Tensor, sdf: Tensor, truncation: float) -> Tensor:
    """Mean squared error of a truncated signed distance that is 1 deep INSIDE, as Dora's decoder has it.

    The target is -sdf / truncation, cut off at -1 and 1; the values are not cut off.

    Args:
        values: (...) of the model, positive inside.
        sdf: (...) signed distances, negative inside.
        truncation: distance at which the target saturates, positive.

    Returns:
        Scalar.

    Reference: Dora (arXiv 2412.17808) and its code, truncation 0.015.
    """
    require_one_shape("values", values, "sdf", sdf)
    if not truncation > 0:
        raise ValueError(f"`truncation` must be positive, got {truncation}")
    return F.mse_loss(values, (sdf / -truncation).clamp(-1.0, 1.0).to(values.dtype))


def distance_loss(values: Tensor, sdf: Tensor) -> Tensor:
    """Mean absolute error of a signed distance, negative inside.

    Args:
        values: (...) of the model.
        sdf: (...) signed distances.

    Returns:
        Scalar.
    """
    require_one_shape("values", values, "sdf", sdf)
    return F.l1_loss(values, sdf.to(values.dtype))
