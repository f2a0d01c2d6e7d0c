"""Training losses."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def occupancy_loss(logits: Tensor, occupancy: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over everything.

    Args:
        logits: (...) positive inside.
        occupancy: (...) 1 or True inside, 0 or False outside.

    Returns:
        Scalar.
    """
    if logits.shape != occupancy.shape:
        raise ValueError(
            "`logits` and `occupancy` must have one shape, "
            f"got {tuple(logits.shape)} and {tuple(occupancy.shape)}"
        )
    return F.binary_cross_entropy_with_logits(logits, occupancy.to(logits.dtype))
