"""New shapes: a model of tokens says them, its tokenizer makes meshes of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from fastshape.geometry import Mesh, Normalization, NoSurfaceError, SurfaceKind
from fastshape.models import VAT, CheckpointError, Condition, NextScaleTransformer, Sampling, load
from fastshape.models.nextscale import NOTHING
from fastshape.models.token_sampling import PLAIN
from fastshape.ops.tokens import Tokens
from fastshape.pipelines.latents import Encoded
from fastshape.pipelines.reconstruct import decode_latents


@dataclass(frozen=True)
class Generated:
    """A generated shape.

    Attributes:
        encoded: its codes, as those of a mesh; `save_latents` writes them, `decode_latents` leads back.
        mesh: None where the codes decode to a field without a surface.
    """

    encoded: Encoded
    mesh: Mesh | None


def load_tokenizer(
    model: NextScaleTransformer,
    path: str | os.PathLike[str] | None = None,
    *,
    device: str | torch.device | None = None,
) -> VAT:
    """The tokenizer whose tokens a model says, in evaluation mode.

    Args:
        model: its metadata says which weights made its tokens.
        path: where they are; None: by the name they had.
        device: None is the model's.

    Raises:
        CheckpointError: they are not to be found, are no tokenizer, or others than the model was trained
            with.
    """
    said = model.metadata
    where = path if path is not None else said.tokenizer
    if where is None:
        raise CheckpointError(f"{model.title} does not say what made its tokens: name the tokenizer")
    place = next(model.parameters()).device if device is None else device
    try:
        tokenizer = load(where, kind=VAT, device=place)
    except CheckpointError as error:
        if path is not None:
            raise
        raise CheckpointError(
            f"{model.title} says the tokens of {where}, which cannot be loaded: {error}"
        ) from error
    if tokenizer.quantizer is None:
        raise CheckpointError(f"{os.fspath(where)} has no quantizer, and makes no tokens")
    found = tokenizer.fingerprint()
    if said.tokenizer_fingerprint not in (None, found):
        raise CheckpointError(
            f"{model.title} says the tokens of {said.tokenizer} (weights {said.tokenizer_fingerprint}), "
            f"and {os.fspath(where)} has weights {found}"
        )
    return tokenizer


def generate(
    model: NextScaleTransformer,
    tokenizer: VAT,
    seeds: Sequence[int],
    *,
    condition: Condition = NOTHING,
    sampling: Sampling = PLAIN,
    given: Encoded | None = None,
    batch_size: int = 1,
    resolution: int = 128,
    surface: SurfaceKind = "marching_cubes",
) -> Iterator[Generated]:
    """Generates a shape for each seed, one after the other as they are asked for.

    A shape depends on its seed alone, not on the others; `batch_size` apart, see
    `NextScaleTransformer.generate`.

    Args:
        model: of tokens, in evaluation mode.
        tokenizer: of `load_tokenizer`.
        seeds: of the shapes.
        condition: a row for each, or one for all.
        sampling: how tokens are drawn.
        given: go on from these codes of the first scales, into their frame: `encode_mesh(mesh, tokenizer)`,
            `.coarser(scales)`.
        batch_size: shapes that go through the model together.
        resolution: points of the extraction lattice along an axis.
        surface: how it is made of them; see `geometry.extract_surface`.

    Yields:
        `Generated`, in the order of the seeds; its mesh in the frame of the model, or of the given shape.

    Raises:
        LatentsError: given codes that another model made.
    """
    quantizer = tokenizer.quantizer
    assert quantizer is not None
    device = next(model.parameters()).device
    known, frame = None, Normalization((0.0, 0.0, 0.0), 1.0)
    if given is not None:
        given.require(tokenizer)
        assert given.codes is not None
        known, frame = given.codes.codes.to(device), given.normalization
    single = {len(rows) for rows in condition if rows is not None} == {1}
    fingerprint = tokenizer.fingerprint()
    for first in range(0, len(seeds), batch_size):
        part = seeds[first : first + batch_size]
        told = condition if single else condition.map(lambda rows: rows[first : first + batch_size])  # noqa: B023
        tokens = model.generate(
            quantizer,
            part,
            told,
            sampling=sampling,
            given=None if known is None else known.expand(len(part), -1),
            batch_size=batch_size,
        )
        for seed, row in zip(part, tokens.cpu(), strict=True):
            encoded = Encoded(
                latents=(),
                normalization=frame,
                model=type(tokenizer).__name__,
                weights=tokenizer.title,
                seed=seed,
                sampled=True,
                codes=Tokens(row, quantizer.scales, quantizer.num_codes, len(quantizer.scales)),
            )
            try:
                mesh = decode_latents(encoded, tokenizer, resolution=resolution, surface=surface)
            except NoSurfaceError:
                mesh = None
            yield Generated(replace(encoded, fingerprint=fingerprint), mesh)
