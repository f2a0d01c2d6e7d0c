"""Encoded shapes: all that leads back from latents, or from codes, to a mesh in its own frame."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from fastshape.geometry import Normalization
from fastshape.models import Autoencoder
from fastshape.ops.tokens import Tokens

DTYPES = (torch.float32, torch.float16)
_HARMLESS = 1e-6  # of half a shape's size: a hundredth of the finest lattice's cell, a rounding of float32


class LatentsError(ValueError):
    """Latents that cannot be read, or that another model made."""


@dataclass(frozen=True)
class Encoded:
    """A shape as latent tokens, and what is needed to decode them.

    Attributes:
        latents: (1, M_l, C_l) of each level, the finest first, on the CPU; one level for most models; none
            where there are codes.
        normalization: the way from the mesh's own frame to the model's. It leads back to the mesh's unit of
            length, whatever that is.
        model: the class of the model.
        weights: what the weights are called or were loaded by.
        fingerprint: of configuration and weights, `model.fingerprint()`; empty where it was not taken.
        seed: of the points that were encoded, and of a draw from the posterior.
        sampled: whether the latents were drawn from the posterior, and are not its mode.
        codes: of a model that quantizes, instead of latents: coarse to fine, the first scales or all.
        coords: of a model of sparse latents the voxel (M, 3) int32 of each token; None for others.
        resolution: voxels along an axis of their grid; None where there are none.
        seconds: wall time of each stage so far: sample, encode.
    """

    latents: tuple[Tensor, ...]
    normalization: Normalization
    model: str
    weights: str
    fingerprint: str = ""
    seed: int = 0
    sampled: bool = False
    codes: Tokens | None = None
    coords: Tensor | None = None
    resolution: int | None = None
    seconds: dict[str, float] = field(default_factory=dict, compare=False)

    @property
    def tokens(self) -> tuple[int, ...]:
        """M_l of each level, the finest first; of codes, how many each scale has, the coarsest first."""
        if self.codes is not None:
            return self.codes.scales[: self.codes.num_scales]
        return tuple(level.shape[1] for level in self.latents)

    @property
    def num_tokens(self) -> int:
        """Of all levels or scales together."""
        return sum(self.tokens)

    @property
    def num_bytes(self) -> int:
        """Size of the latents and their voxels as they are, or of the codes' bits, without any coding."""
        if self.codes is not None:
            return -(-self.num_tokens * max(1, (self.codes.num_codes - 1).bit_length()) // 8)
        tensors = self.latents if self.coords is None else (*self.latents, self.coords)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def to(self, dtype: torch.dtype) -> Encoded:
        """The same with latents of torch.float32 or torch.float16; codes stay what they are.

        Raises:
            ValueError: another dtype, or latents too large for it.
        """
        if dtype not in DTYPES:
            raise ValueError(f"`dtype` must be torch.float32 or torch.float16, got {dtype}")
        latents = tuple(level.to(dtype) for level in self.latents)
        if not all(bool(level.isfinite().all()) for level in latents):
            raise ValueError(f"`dtype` {dtype} cannot hold these latents, or they are not finite")
        return replace(self, latents=latents)

    def coarser(self, scales: int) -> Encoded:
        """The same with the codes of the first `scales` scales alone: a coarser shape.

        Raises:
            LatentsError: latents that have no scales, or not so many.
        """
        if self.codes is None:
            raise LatentsError(f"the latents of {self.weights} ({self.model}) have no scales to choose from")
        if not 1 <= scales <= self.codes.num_scales:
            raise LatentsError(f"there are 1 to {self.codes.num_scales} scales to decode, got {scales}")
        kept = self.codes.codes[: sum(self.codes.scales[:scales])]
        return replace(self, codes=self.codes._replace(codes=kept, num_scales=scales))

    def require(self, model: Autoencoder) -> None:
        """Nothing if this model made the latents.

        Raises:
            LatentsError: another model, or the same with other weights; both are named.
        """
        kind = type(model).__name__
        if self.model != kind:
            raise LatentsError(
                f"the latents were made by {self.weights} ({self.model}), the model is {model.title} ({kind})"
            )
        if self.fingerprint and self.fingerprint != (found := model.fingerprint()):
            raise LatentsError(
                f"the latents were made by {self.weights} (weights {self.fingerprint}), "
                f"the model is {model.title} (weights {found})"
            )


def short_frame(frame: Normalization) -> Normalization:
    """The frame in numbers of float32, half the bytes, where that moves no point of the shape by more than a
    millionth of its size; as it is otherwise: a small shape far from the origin.
    """
    exact = torch.tensor([*frame.center, frame.scale], dtype=torch.float64)
    rounded = exact.float().double()
    shift = float((rounded[:3] - exact[:3]).abs().max()) * frame.scale
    stretch = abs(float(rounded[3]) / frame.scale - 1)
    if not shift + stretch <= _HARMLESS:
        return frame
    x, y, z, scale = rounded.tolist()
    return Normalization((x, y, z), scale)
