"""Mesh to latent tokens and back: `reconstruct` is `encode_mesh`, `decode_latents` and a comparison."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from fastshape.geometry import Evaluation, Mesh, Normalization, SurfaceKind, evaluate
from fastshape.models import VAT, Autoencoder, FieldAutoencoder, SparseStructureVAE, TripoSFVAE
from fastshape.ops.tokens import Tokens
from fastshape.pipelines.encode_inputs import encoder_inputs
from fastshape.pipelines.latents import Encoded, LatentsError, short_frame
from fastshape.pipelines.sparse_inputs import sparse_inputs
from fastshape.pipelines.structure import (
    encode_structure,
    structure_inputs,
    structure_mesh,
    structure_tokens,
    tokens_to_volume,
    voxel_iou,
)
from fastshape.pipelines.triposf import (
    SUBDIVISION,
    at_surface_resolution,
    encode_triposf,
    sparse_latents,
)

OnStage = Callable[[str], None]

LATTICE = 128
"""Points along an axis of the lattice that the surface of a field is extracted from, by default."""


@dataclass(frozen=True)
class Reconstruction:
    """A mesh that went through an autoencoder.

    Attributes:
        mesh: the reconstruction, in the frame and unit of the input.
        encoded: the tokens it was made from.
        evaluation: the comparison with the input; None where it was not asked for.
        seconds: wall time of each stage: sample, encode, decode, extract, evaluate.
        voxel_iou: of a structure model, intersection over union of the occupied voxels, its own measure.
    """

    mesh: Mesh
    encoded: Encoded
    evaluation: Evaluation | None
    seconds: dict[str, float]
    voxel_iou: float | None = None

    @property
    def latents(self) -> tuple[Tensor, ...]:
        """(1, M_l, C_l) of each level, the finest first; one level for most models; none of codes."""
        return self.encoded.latents

    @property
    def num_tokens(self) -> int:
        """Of all levels together."""
        return self.encoded.num_tokens

    @property
    def num_bytes(self) -> int:
        """Size of the tokens as they are, without any coding."""
        return self.encoded.num_bytes


def reconstruct(
    mesh: Mesh,
    model: Autoencoder,
    *,
    resolution: int | None = None,
    surface: SurfaceKind = "marching_cubes",
    num_points: int | None = None,
    num_tokens: int | Sequence[int] | None = None,
    sample_posterior: bool = False,
    prune: bool = True,
    memory: int | None = None,
    seed: int = 0,
    metrics: bool = True,
    num_samples: int = 100_000,
    on_stage: OnStage | None = None,
) -> Reconstruction:
    """Encode a mesh, decode its tokens and extract the surface again.

    What the encoder is shown follows the model: see `encoder_inputs`. The same seed gives the same result.

    Args:
        mesh: any mesh with a surface; it need not be closed.
        model: a trained autoencoder, in evaluation mode; `models.load` loads one of any family.
        resolution: points of the extraction lattice along an axis, by default `LATTICE`; of TripoSF voxels of
            the surface, by default the model's own; a structure model has its own voxels.
        surface: how it is made of the lattice; see `geometry.extract_surface`.
        num_points, num_tokens, sample_posterior: as in `encode_mesh`.
        prune, memory: as in `decode_latents`.
        seed: of every draw.
        metrics: compare the result with the input.
        num_samples: points per surface of that comparison.
        on_stage: called with the name of each stage as it begins.

    Raises:
        ValueError: a mesh without surface, or (`NoSurfaceError`) a decoded field without one.
    """
    encoded, normalized, voxels = _encode(
        mesh, model, resolution, num_points, num_tokens, sample_posterior, seed, on_stage
    )
    stages = _Stages(model, on_stage)
    extracted, logits = _decode(encoded, model, resolution, surface, prune, memory, stages)
    evaluation = None
    if metrics:
        with stages("evaluate"):
            evaluation = evaluate(extracted, normalized, num_samples=num_samples, seed=seed)
    overlap = None
    if isinstance(model, SparseStructureVAE):
        assert voxels is not None
        assert logits is not None
        overlap = voxel_iou(logits, voxels, model)
    return Reconstruction(
        encoded.normalization.undo_mesh(extracted),
        encoded,
        evaluation,
        encoded.seconds | stages.seconds,
        overlap,
    )


def encode_mesh(
    mesh: Mesh,
    model: Autoencoder,
    *,
    resolution: int | None = None,
    num_points: int | None = None,
    num_tokens: int | Sequence[int] | None = None,
    sample_posterior: bool = False,
    quantize: bool = True,
    seed: int = 0,
    on_stage: OnStage | None = None,
) -> Encoded:
    """Encode a mesh: its latent tokens, and what leads back from them.

    Args:
        mesh: any mesh with a surface; it need not be closed.
        model: a trained autoencoder, in evaluation mode.
        resolution: of TripoSF voxels of the surface along an axis, four times those of the latents; None is
            the model's own. Of no account for others.
        num_points: points to encode, of each cloud; None takes the model's `num_inputs`, or what
            `sparse_inputs` draws.
        num_tokens: None takes the model's own number; of TripoSF it follows from the mesh. Of a model with
            levels an integer is the number of the finest, and the others follow in proportion; or a number
            for each level.
        sample_posterior: draw the latents from the posterior, not its mode.
        quantize: of a model with a codebook the codes; False gives the latents that they are made of.
        seed: of the points, and of that draw.
        on_stage: called with the name of each stage as it begins.

    Raises:
        ValueError: a mesh without surface, or a number of tokens that the model cannot have.
    """
    return _encode(
        mesh,
        model,
        resolution,
        num_points,
        num_tokens,
        sample_posterior,
        seed,
        on_stage,
        quantize=quantize,
        check=True,
    )[0]


def decode_latents(
    encoded: Encoded,
    model: Autoencoder,
    *,
    resolution: int | None = None,
    surface: SurfaceKind = "marching_cubes",
    prune: bool = True,
    memory: int | None = None,
    on_stage: OnStage | None = None,
) -> Mesh:
    """The surface that latents stand for, in the frame and unit of the mesh that they were made of.

    Args:
        encoded: of `encode_mesh` or `load_latents`.
        model: the one that made them.
        resolution: points of the extraction lattice along an axis, by default `LATTICE`. Voxels are those of
            the latents.
        surface: how it is made of the lattice; see `geometry.extract_surface`.
        prune: of TripoSF: leave out what its decoder says has no surface, without which open surfaces become
            closed. Its official code leaves this out unless it is asked for.
        memory: of TripoSF: bytes that the subdivision of a chunk may take; see `TripoSFVAE.decode`.
        on_stage: called with the name of each stage as it begins.

    Raises:
        LatentsError: another model, or other voxels than `resolution`; both are named.
        NoSurfaceError: the decoded field has no surface.
    """
    encoded.require(model)
    mesh, _ = _decode(encoded, model, resolution, surface, prune, memory, _Stages(model, on_stage))
    return encoded.normalization.undo_mesh(mesh)


def token_counts(model: Autoencoder, num_tokens: int | Sequence[int] | None) -> Any:
    """What `num_tokens` is to a model's `encode`: an integer, for a model with levels one for each, and None
    for one of sparse latents.

    Raises:
        ValueError: fewer tokens than a model can have, or not a number for each level.
    """
    if isinstance(model, SparseStructureVAE):
        count = structure_tokens(model)
        if num_tokens not in (None, count):
            raise ValueError(f"`num_tokens` of {model.title} is always {count}, got {num_tokens}")
        return count
    if isinstance(model, TripoSFVAE):
        if num_tokens is not None:
            raise ValueError(
                f"`num_tokens` of {model.title} follows from the mesh, one for each voxel, got {num_tokens}"
            )
        return None
    own = model.config.num_latents
    if num_tokens is None:
        return own
    levels = len(own) if isinstance(own, tuple) else 1
    if isinstance(num_tokens, int):
        counts = model.config.token_counts(num_tokens) if levels > 1 else (num_tokens,)
    else:
        counts = tuple(num_tokens)
    least = len(model.inputs)  # a token of each cloud
    if len(counts) != levels or min(counts) < least or (isinstance(num_tokens, int) and num_tokens < least):
        wanted = f"an integer of at least {least}" + (f", or {levels} integers" if levels > 1 else "")
        raise ValueError(f"`num_tokens` of {type(model).__name__} must be {wanted}, got {num_tokens}")
    if getattr(model.config, "learned_queries", False) and counts != (own,):
        raise ValueError(f"`num_tokens` of {model.title} is always {own}: its queries are learned")
    return counts if isinstance(own, tuple) else counts[0]


class _Stages:
    """Names and times what is done."""

    def __init__(self, model: Autoencoder, on_stage: OnStage | None) -> None:
        self.seconds: dict[str, float] = {}
        self.device = _device(model)
        self._on_stage = on_stage

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        if self._on_stage is not None:
            self._on_stage(name)
        begin = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds[name] = time.perf_counter() - begin


def _device(model: Autoencoder) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@torch.no_grad()
def _encode(
    mesh: Mesh,
    model: Autoencoder,
    resolution: int | None,
    num_points: int | None,
    num_tokens: int | Sequence[int] | None,
    sample_posterior: bool,
    seed: int,
    on_stage: OnStage | None,
    *,
    quantize: bool = True,
    check: bool = False,
) -> tuple[Encoded, Mesh, Tensor | None]:
    """The encoded mesh, with the weights' fingerprint where that is to be checked; the normalized mesh; of a
    structure model the voxels too.
    """
    counts = token_counts(model, num_tokens)
    stages = _Stages(model, on_stage)
    generator = torch.Generator().manual_seed(seed)
    if isinstance(model, SparseStructureVAE):
        with stages("sample"):
            voxels, normalization, normalized = structure_inputs(mesh, model)
        with stages("encode"):
            tokens = encode_structure(model, voxels, sample_posterior, generator)
        return (
            _encoded(model, (tokens,), normalization, seed, sample_posterior, stages, check),
            normalized,
            voxels,
        )
    if isinstance(model, TripoSFVAE):
        finer = at_surface_resolution(model, resolution)
        with stages("sample"):
            options = {} if num_points is None else {"num_points": num_points}
            given = sparse_inputs(mesh, finer, generator=generator, **options)
        with stages("encode"):
            tokens, coords = encode_triposf(finer, given, sample_posterior, generator)
        encoded = _encoded(model, (tokens,), given.normalization, seed, sample_posterior, stages, check)
        return (
            replace(encoded, coords=coords, resolution=finer.config.resolution),
            given.mesh,
            None,
        )
    with stages("sample"):
        inputs = encoder_inputs(mesh, model, num_points=num_points, generator=generator)
        clouds = [cloud.to(stages.device) for cloud in inputs.points]
    with stages("encode"):
        encode: Any = model.encode
        posterior = encode(*clouds, num_latents=counts)
        latents = posterior.sample(generator) if sample_posterior else posterior.mode()
        codes = _codes(model, latents) if quantize else None
    levels = (latents,) if isinstance(latents, Tensor) else tuple(latents)
    encoded = _encoded(model, levels, inputs.normalization, seed, sample_posterior, stages, check)
    if codes is not None:
        encoded = replace(encoded, latents=(), codes=codes)
    return encoded, inputs.mesh, None


def _codes(model: FieldAutoencoder, latents: Any) -> Tokens | None:
    """What a model that quantizes makes of latents (1, K, d); None of another."""
    if not isinstance(model, VAT) or model.quantizer is None or not model.quantizing:
        return None
    quantizer = model.quantizer
    tokens = quantizer.quantize(latents).tokens[0].cpu()
    return Tokens(tokens, quantizer.scales, quantizer.num_codes, len(quantizer.scales))


def _encoded(
    model: Autoencoder,
    levels: tuple[Tensor, ...],
    normalization: Normalization,
    seed: int,
    sampled: bool,
    stages: _Stages,
    check: bool,
) -> Encoded:
    return Encoded(
        latents=tuple(level.float().cpu() for level in levels),
        normalization=short_frame(normalization),
        model=type(model).__name__,
        weights=model.title,
        fingerprint=model.fingerprint() if check else "",
        seed=seed,
        sampled=sampled,
        seconds=stages.seconds,
    )


def _features(encoded: Encoded, model: FieldAutoencoder, device: torch.device) -> Any:
    """What the decoder makes of codes, or of latents as they are.

    Raises:
        LatentsError: codes of another codebook.
    """
    if encoded.codes is not None:
        codes, scales, num_codes, _ = encoded.codes
        quantizer = model.quantizer if isinstance(model, VAT) else None
        if quantizer is None or (quantizer.scales, quantizer.num_codes) != (scales, num_codes):
            raise LatentsError(
                f"these are codes of {num_codes} on scales {scales}, which {model.title} does not decode"
            )
        assert isinstance(model, VAT)
        return model.decode_tokens(codes[None].to(device))
    levels = [level.to(device, torch.float32) for level in encoded.latents]
    if isinstance(model, VAT):
        return model.decode(levels[0], quantize=False)
    return model.decode(levels if isinstance(model.config.num_latents, tuple) else levels[0])


@torch.no_grad()
def _decode(
    encoded: Encoded,
    model: Autoencoder,
    resolution: int | None,
    surface: SurfaceKind,
    prune: bool,
    memory: int | None,
    stages: _Stages,
) -> tuple[Mesh, Tensor | None]:
    """The surface in the normalized frame, and of a structure model the logits of its voxels."""
    if isinstance(model, TripoSFVAE):
        latents = sparse_latents(encoded, stages.device)
        assert encoded.resolution is not None
        finer = model.at_resolution(encoded.resolution)
        if resolution not in (None, SUBDIVISION * encoded.resolution):
            raise LatentsError(
                f"the latents are of a surface of {SUBDIVISION * encoded.resolution} voxels along an axis, "
                f"got `resolution` {resolution}"
            )
        with stages("decode"):
            fine = finer.decode(latents, prune=prune, memory=memory)
        with stages("extract"):
            return finer.extract(fine), None
    if isinstance(model, SparseStructureVAE):
        with stages("decode"):
            logits = model.decode(tokens_to_volume(encoded.latents[0].to(stages.device, torch.float32)))
        with stages("extract"):
            return structure_mesh(model, logits), logits
    with stages("decode"):
        features = _features(encoded, model, stages.device)
    with stages("extract"):
        return model.extract(features, LATTICE if resolution is None else resolution, surface=surface), None
