"""Encoded shapes, and the file that holds one: all that leads back to a mesh in its own frame."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastshape import __version__
from fastshape.geometry import Normalization
from fastshape.models import Autoencoder, CheckpointError
from fastshape.runtime.files import atomic_path, read_safetensors, safetensors_bytes

SUFFIX = ".safetensors"
_FORMAT = "fastshape latents"
_VERSION = 1
_DTYPES = (torch.float32, torch.float16)


class LatentsError(ValueError):
    """Latents that cannot be read, or that another model made."""


@dataclass(frozen=True)
class Encoded:
    """A shape as latent tokens, and what is needed to decode them.

    Attributes:
        latents: (1, M_l, C_l) of each level, the finest first, on the CPU; one level for most models.
        coords: of a model of sparse latents the voxel (M, 3) int32 of each token; None for others.
        resolution: voxels along an axis of their grid; None where there are none.
        normalization: the way from the mesh's own frame to the model's.
        model: the class of the model.
        weights: what the weights are called or were loaded by.
        fingerprint: of the weights, `model.fingerprint()`; empty where it was not taken.
        seed: of the points that were encoded, and of a draw from the posterior.
        sampled: whether the latents were drawn from the posterior, and are not its mode.
        version: of the fastshape that encoded.
        seconds: wall time of each stage so far: sample, encode.
    """

    latents: tuple[Tensor, ...]
    normalization: Normalization
    model: str
    weights: str
    fingerprint: str = ""
    seed: int = 0
    sampled: bool = False
    version: str = __version__
    seconds: dict[str, float] = field(default_factory=dict, compare=False)
    coords: Tensor | None = None
    resolution: int | None = None

    @property
    def tokens(self) -> tuple[int, ...]:
        """M_l of each level, the finest first."""
        return tuple(level.shape[1] for level in self.latents)

    @property
    def num_tokens(self) -> int:
        """Of all levels together."""
        return sum(self.tokens)

    @property
    def num_bytes(self) -> int:
        """Size of the latents and their voxels as they are, without any coding."""
        tensors = self.latents if self.coords is None else (*self.latents, self.coords)
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    def to(self, dtype: torch.dtype) -> Encoded:
        """The same with latents of torch.float32 or torch.float16.

        Raises:
            ValueError: another dtype, or latents too large for it.
        """
        if dtype not in _DTYPES:
            raise ValueError(f"`dtype` must be torch.float32 or torch.float16, got {dtype}")
        latents = tuple(level.to(dtype) for level in self.latents)
        if not all(bool(level.isfinite().all()) for level in latents):
            raise ValueError(f"`dtype` {dtype} cannot hold these latents, or they are not finite")
        return replace(self, latents=latents)

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


def save_latents(encoded: Encoded, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
    """Writes one safetensors file, atomically; equal shapes give equal bytes.

    It holds the tensors `latents.0`, `latents.1`, ..., the finest level first, of sparse latents `coords`,
    and as metadata (strings) everything else.

    Args:
        encoded: what to write.
        path: the file; its folder is made if need be.
        dtype: torch.float16 halves the file; None keeps the latents' own.

    Raises:
        ValueError: see `Encoded.to`.
    """
    if dtype is not None:
        encoded = encoded.to(dtype)
    tensors = {f"latents.{number}": level for number, level in enumerate(encoded.latents)}
    metadata = {
        "format": _FORMAT,
        "format_version": str(_VERSION),
        "model": encoded.model,
        "weights": encoded.weights,
        "fingerprint": encoded.fingerprint,
        "center": json.dumps(list(encoded.normalization.center)),
        "scale": json.dumps(encoded.normalization.scale),
        "tokens": json.dumps(list(encoded.tokens)),
        "seed": json.dumps(encoded.seed),
        "sampled": json.dumps(encoded.sampled),
        "fastshape": encoded.version,
    }
    if encoded.coords is not None:
        tensors["coords"] = encoded.coords
        metadata["resolution"] = json.dumps(encoded.resolution)
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(safetensors_bytes(tensors, metadata))


def load_latents(path: str | os.PathLike[str]) -> Encoded:
    """Reads what `save_latents` wrote.

    Raises:
        LatentsError: the file is missing, damaged or something else; it names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise LatentsError(f"{path}: no such file of latents")
    try:
        tensors, metadata = read_safetensors(path)
    except CheckpointError as error:
        raise LatentsError(f"{path}: expected latents, got a damaged file or no safetensors") from error
    if metadata.get("format") != _FORMAT:
        names = ", ".join(sorted(tensors)[:3]) or "nothing"
        raise LatentsError(f"{path}: expected latents that `fastshape encode` wrote, got tensors {names}")
    if metadata.get("format_version") != str(_VERSION):
        raise LatentsError(
            f"{path}: the latents have format version {metadata.get('format_version')}; "
            f"this release reads {_VERSION}"
        )
    try:
        return _encoded(tensors, metadata)
    except (KeyError, ValueError, TypeError) as error:
        raise LatentsError(f"{path}: the latents' metadata is damaged ({error!r})") from error


def _encoded(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Encoded:
    def value(name: str) -> Any:
        return json.loads(metadata[name])

    coords, resolution = tensors.get("coords"), None
    levels = len(tensors) - ("coords" in tensors)
    latents = tuple(tensors[f"latents.{number}"] for number in range(levels))
    for level in latents:
        if level.dim() != 3 or level.dtype not in _DTYPES or not bool(level.isfinite().all()):
            raise ValueError(
                f"a level has shape {tuple(level.shape)} and dtype {level.dtype}, or is not finite"
            )
    if [level.shape[1] for level in latents] != value("tokens"):
        raise ValueError(f"tokens are {metadata['tokens']}")
    if coords is not None:
        resolution = int(value("resolution"))
        _require_voxels(coords, latents[0].shape[1], resolution)
    x, y, z = (float(part) for part in value("center"))
    scale = float(value("scale"))
    if not scale > 0:
        raise ValueError(f"scale is {scale}")
    return Encoded(
        latents=latents,
        normalization=Normalization((x, y, z), scale),
        model=metadata["model"],
        weights=metadata["weights"],
        fingerprint=metadata["fingerprint"],
        seed=int(value("seed")),
        sampled=bool(value("sampled")),
        version=metadata["fastshape"],
        coords=coords,
        resolution=resolution,
    )


def _require_voxels(coords: Tensor, count: int, resolution: int) -> None:
    if coords.shape != (count, 3) or coords.dtype != torch.int32:
        raise ValueError(f"coords have shape {tuple(coords.shape)} and dtype {coords.dtype}")
    if bool(((coords < 0) | (coords >= resolution)).any()):
        raise ValueError(f"coords are not in [0, {resolution})")
    if len(coords.unique(dim=0)) != count:
        raise ValueError("a voxel is there twice")
