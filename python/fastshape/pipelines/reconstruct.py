"""Mesh to latent tokens and back."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from fastshape.geometry import Evaluation, Mesh, evaluate, normalize, sample_surface
from fastshape.nn import Posterior


class FieldModel(Protocol):
    """What `reconstruct` asks of an autoencoder of fields, e.g. `fastshape.models.VecSetVAE`."""

    config: Any

    def encode(self, points: Tensor, *, num_latents: int | None = None) -> Posterior: ...

    def decode(self, latents: Tensor) -> Tensor: ...

    def extract(self, features: Tensor, resolution: int = 128) -> Mesh: ...


@dataclass(frozen=True)
class Reconstruction:
    """A mesh that went through an autoencoder.

    Attributes:
        mesh: the reconstruction, in the frame and unit of the input.
        latents: the tokens it was made from, (1, M, C).
        evaluation: the comparison with the input; None where it was not asked for.
        seconds: wall time of each stage: sample, encode, decode, extract, evaluate.
    """

    mesh: Mesh
    latents: Tensor
    evaluation: Evaluation | None
    seconds: dict[str, float]

    @property
    def num_tokens(self) -> int:
        return self.latents.shape[1]

    @property
    def num_bytes(self) -> int:
        """Size of the tokens as they are, without any coding."""
        return self.latents.numel() * self.latents.element_size()


@torch.no_grad()
def reconstruct(
    mesh: Mesh,
    model: FieldModel,
    *,
    resolution: int = 128,
    num_points: int | None = None,
    num_tokens: int | None = None,
    seed: int = 0,
    metrics: bool = True,
    num_samples: int = 100_000,
    on_stage: Callable[[str], None] | None = None,
) -> Reconstruction:
    """Encode a mesh, decode its tokens and extract the surface again.

    The mesh is normalized to [-1, 1]^3 by its bounding box and sampled uniformly by area; the latents are the
    mode of the posterior. The same seed gives the same result.

    Args:
        mesh: any mesh with a surface; it need not be closed.
        model: a trained autoencoder, in evaluation mode.
        resolution: points of the extraction lattice along an axis.
        num_points: surface points to encode; None takes the model's `num_inputs`.
        num_tokens: M; None takes the model's own number.
        seed: of the surface samples.
        metrics: compare the result with the input.
        num_samples: points per surface of that comparison.
        on_stage: called with the name of each stage as it begins.

    Raises:
        ValueError: a mesh without surface, or (`NoSurfaceError`) a decoded field without one.
    """
    seconds: dict[str, float] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        if on_stage is not None:
            on_stage(name)
        begin = time.perf_counter()
        yield
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds[name] = time.perf_counter() - begin

    parameters = model.parameters() if isinstance(model, torch.nn.Module) else iter(())
    device = next((parameter.device for parameter in parameters), torch.device("cpu"))
    with stage("sample"):
        normalized, normalization = normalize(mesh)
        count = model.config.num_inputs if num_points is None else num_points
        generator = torch.Generator().manual_seed(seed)
        points = sample_surface(normalized, count, generator).points[None].to(device)
    with stage("encode"):
        latents = model.encode(points, num_latents=num_tokens).mode()
    with stage("decode"):
        features = model.decode(latents)
    with stage("extract"):
        extracted = model.extract(features, resolution)
    evaluation = None
    if metrics:
        with stage("evaluate"):
            evaluation = evaluate(extracted, normalized, num_samples=num_samples, seed=seed)
    return Reconstruction(normalization.undo_mesh(extracted), latents, evaluation, seconds)
