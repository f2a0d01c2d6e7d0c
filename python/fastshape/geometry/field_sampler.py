"""Asking a field at points of a lattice, and the report of what was asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ExtractionReport:
    """What an extraction asked, and what its verification says.

    Attributes:
        method: "dense" or "coarse_to_fine", as asked for.
        queries: points asked of the field, those of the verification included.
        dense_queries: R^3.
        strides: of the lattices, the coarsest first; 1 is the target's own.
        seconds: all of the extraction.
        verified: skipped cells that the last verification sampled and found empty.
        found: sampled cells, of all verifications, that showed a surface that had been missed.
        bound: 3 / verified: at 95 % confidence a smaller share of the skipped cells is missed (the rule of
            three). 0 where every point was asked, None without verification.
        fell_back: every point was asked though the method was "coarse_to_fine".
        why: what was done about what was found, or why every point was asked; else empty.
    """

    method: str
    queries: int
    dense_queries: int
    strides: tuple[int, ...]
    seconds: float
    verified: int
    found: int
    bound: float | None
    fell_back: bool
    why: str

    @property
    def share(self) -> float:
        """Queries as a share of the dense ones."""
        return self.queries / self.dense_queries


@dataclass(frozen=True)
class Outcome:
    """What a search came to; the attributes are those of `ExtractionReport`."""

    verified: int = 0
    found: int = 0
    bound: float | None = None
    fell_back: bool = False
    why: str = ""


class Sampler:
    """Asks a field at points of a lattice, in chunks; keeps count, range and progress."""

    def __init__(
        self,
        field: Callable[[Tensor], Tensor],
        axis: Tensor,
        chunk: int,
        progress: Callable[[float], None] | None,
    ) -> None:
        self.field, self.axis, self.chunk, self.progress = field, axis, chunk, progress
        self.count = 0
        self.low, self.high = float("inf"), float("-inf")
        self.done = 0.0  # share of the work, as far as it can be told

    def __call__(self, coords: Tensor) -> Tensor:
        """Values (N,) float32 at the target's points (N, 3) int64, one chunk at most."""
        points = self.axis[coords]
        answer = self.field(points)
        if answer.numel() != len(points):
            raise ValueError(
                f"`field` must return one value per point, got {tuple(answer.shape)} for {len(points)}"
            )
        values = answer.detach().reshape(-1).to(self.axis.device, torch.float32)
        if len(values):
            low, high = torch.stack(values.aminmax()).tolist()
            if not (abs(low) < float("inf") and abs(high) < float("inf")):  # NaN takes both
                count = int((~torch.isfinite(values)).sum())
                raise ValueError(f"`field` gave {count} of {len(values)} values that are not finite")
            self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += len(points)
        return values

    def advance(self, share: float) -> None:
        """Report that this share of the work is done."""
        self.done = max(self.done, share)
        if self.progress is not None:
            self.progress(self.done)
