"""Losses of dense occupancy grids."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastshape.losses.checks import require_one_shape

STRUCTURE_LOSSES = ("dice", "bce", "l1")


def dice_loss(logits: Tensor, occupancy: Tensor) -> Tensor:
    """1 - (2 sum(p o) + 1) / (sum(p) + sum(o) + 1) with p = sigmoid(logits), sums over the whole batch.

    Unlike cross-entropy it does not care how many empty voxels there are.

    Args:
        logits: (...) positive where occupied.
        occupancy: (...) 1 or True where occupied, else 0 or False.

    Returns:
        Scalar in [0, 1), the sums in float32.

    Reference: Milletari et al. 2016 (V-Net), with the one that TRELLIS' code adds on both sides.
    """
    require_one_shape("logits", logits, "occupancy", occupancy)
    share = torch.sigmoid(logits.float() if logits.dtype != torch.float64 else logits)
    truth = occupancy.to(share.dtype)
    return 1.0 - (2.0 * (share * truth).sum() + 1.0) / (share.sum() + truth.sum() + 1.0)


def structure_loss(logits: Tensor, occupancy: Tensor, kind: str = "dice") -> Tensor:
    """The reconstruction loss of a structure autoencoder.

    Args:
        logits: (...) positive where occupied.
        occupancy: (...) 1 or True where occupied.
        kind: "dice", "bce" (binary cross-entropy) or "l1" (of the probabilities).

    Returns:
        Scalar.

    Reference: TRELLIS' code, whose shipped configuration has "dice".
    """
    if kind == "dice":
        return dice_loss(logits, occupancy)
    require_one_shape("logits", logits, "occupancy", occupancy)
    if kind == "bce":
        return F.binary_cross_entropy_with_logits(logits, occupancy.to(logits.dtype))
    if kind == "l1":
        return F.l1_loss(torch.sigmoid(logits), occupancy.to(logits.dtype))
    raise ValueError(f"`kind` must be one of {', '.join(STRUCTURE_LOSSES)}, got {kind!r}")
