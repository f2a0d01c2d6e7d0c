"""Tokens from logits: guidance, what is kept of a distribution, and draws that an item has for itself."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def _check_kept(top_k: int, top_p: float) -> None:
    if top_k < 0:
        raise ValueError(f"`top_k` must not be negative, got {top_k}")
    if not 0.0 <= top_p <= 1.0:
        raise ValueError(f"`top_p` must be in [0, 1], got {top_p}")


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        guidance: weight of classifier-free guidance at the last scale, growing linearly from 0 at the first.
        temperature: logits are divided by it; small ones leave the likely tokens alone.
        top_k, top_p: as of `keep_likely`.
    """

    guidance: float = 0.0
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.0

    def __post_init__(self) -> None:
        if not self.guidance >= 0.0:
            raise ValueError(f"`guidance` must not be negative, got {self.guidance}")
        if not self.temperature > 0.0:
            raise ValueError(f"`temperature` must be positive, got {self.temperature}")
        _check_kept(self.top_k, self.top_p)


PLAIN = Sampling()


def guide(conditional: Tensor, unconditional: Tensor, weight: float) -> Tensor:
    """Classifier-free guidance: (1 + weight) conditional - weight unconditional."""
    return (1.0 + weight) * conditional - weight * unconditional


def keep_likely(logits: Tensor, top_k: int = 0, top_p: float = 0.0) -> Tensor:
    """The logits with -inf where a token is left out: first by rank, then by probability.

    Args:
        logits: (..., V).
        top_k: how many are kept, and all that are equal to the last of them; 0 keeps all.
        top_p: of what is left, the least likely are left out as long as their probabilities sum to no more
            than 1 - top_p; the most likely one always stays. 0 keeps all.

    Raises:
        ValueError: a negative `top_k`, or a `top_p` outside of [0, 1].

    Reference: VAR's released code, ``sample_with_top_k_top_p_``.
    """
    _check_kept(top_k, top_p)
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p > 0.0:
        ordered, places = logits.sort(dim=-1)
        left_out = ordered.softmax(-1).cumsum(-1) <= 1.0 - top_p
        left_out[..., -1] = False
        logits = logits.masked_fill(torch.zeros_like(left_out).scatter(-1, places, left_out), -torch.inf)
    return logits


def draw_tokens(probabilities: Tensor, generators: Sequence[torch.Generator]) -> Tensor:
    """A token for each row, by the generator of its item.

    One uniform number a row looks up the cumulated probabilities, so that a CPU generator draws the same on
    every device.

    Args:
        probabilities: (B, L, V); a row need not sum to one.
        generators: B CPU generators.

    Returns:
        (B, L) int64.
    """
    length = probabilities.shape[1]
    uniform = torch.stack([torch.rand(length, generator=generator) for generator in generators])
    total = probabilities.double().cumsum(-1)
    # A float below 1 times the last sum is below it in float64: no token without probability is drawn.
    sought = uniform.to(total.device, torch.float64)[..., None] * total[..., -1:]
    return torch.searchsorted(total, sought, right=True).squeeze(-1)
