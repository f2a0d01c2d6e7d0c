"""New shapes: a model of tokens says them, its tokenizer makes meshes of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from fastshape.geometry import Mesh, Normalization, NoSurfaceError, SurfaceKind
from fastshape.models import VAT, CheckpointError, Condition, NextScaleTransformer, Sampling, load
from fastshape.models.nextscale import NOTHING
from fastshape.models.token_sampling import PLAIN
from fastshape.pipelines.encode_inputs import encoder_inputs


@dataclass(frozen=True)
class Generated:
    """A generated shape.

    Attributes:
        seed: that it came of.
        tokens: (L,) int64, coarse to fine, on the CPU.
        mesh: None where the tokens decode to a field without a surface.
    """

    seed: int
    tokens: Tensor
    mesh: Mesh | None


@dataclass(frozen=True)
class Beginning:
    """The first scales of a given shape.

    Attributes:
        tokens: (1, T) int64.
        normalization: the way from the shape's own frame to the model's.
    """

    tokens: Tensor
    normalization: Normalization


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
    found = tokenizer.fingerprint()
    if said.tokenizer_fingerprint not in (None, found):
        raise CheckpointError(
            f"{model.title} says the tokens of {said.tokenizer} (weights {said.tokenizer_fingerprint}), "
            f"and {os.fspath(where)} has weights {found}"
        )
    return tokenizer


def begin(mesh: Mesh, tokenizer: VAT, scales: int, *, seed: int = 0) -> Beginning:
    """The tokens of the first scales of a mesh, for `generate` to go on from.

    Args:
        mesh: any mesh with a surface.
        tokenizer: in evaluation mode.
        scales: how many, 1 to all.
        seed: of the points that are encoded.

    Raises:
        ValueError: no such number of scales, or a mesh without surface.
    """
    ends = [*accumulate(tokenizer.config.all_scales)]
    if not 1 <= scales <= len(ends):
        raise ValueError(f"`scales` must be in [1, {len(ends)}], got {scales}")
    inputs = encoder_inputs(mesh, tokenizer, generator=torch.Generator().manual_seed(seed))
    device = next(tokenizer.parameters()).device
    tokens = tokenizer.tokenize(*(points.to(device) for points in inputs.points))
    return Beginning(tokens[:, : ends[scales - 1]], inputs.normalization)


def generate(
    model: NextScaleTransformer,
    tokenizer: VAT,
    seeds: Sequence[int],
    *,
    condition: Condition = NOTHING,
    sampling: Sampling = PLAIN,
    given: Beginning | None = None,
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
        given: go on from the first scales of a shape, into its frame.
        batch_size: shapes that go through the model together.
        resolution: points of the extraction lattice along an axis.
        surface: how it is made of them; see `geometry.extract_surface`.

    Yields:
        `Generated`, in the order of the seeds; its mesh in the frame of the model, or of the given shape.
    """
    for first in range(0, len(seeds), batch_size):
        part = seeds[first : first + batch_size]
        single = {len(tensor) for tensor in condition if tensor is not None} == {1}
        told = condition if single else condition.map(lambda rows: rows[first : first + batch_size])  # noqa: B023
        tokens = model.generate(
            tokenizer.quantizer,  # type: ignore[arg-type]
            part,
            told,
            sampling=sampling,
            given=None if given is None else given.tokens.expand(len(part), -1),
            batch_size=batch_size,
        )
        for seed, row in zip(part, tokens, strict=True):
            yield Generated(seed, row.cpu(), _mesh(tokenizer, row, given, resolution, surface))


@torch.no_grad()
def _mesh(
    tokenizer: VAT, tokens: Tensor, given: Beginning | None, resolution: int, surface: SurfaceKind
) -> Mesh | None:
    try:
        mesh = tokenizer.extract(tokenizer.decode_tokens(tokens[None]), resolution, surface=surface)
    except NoSurfaceError:
        return None
    return mesh if given is None else given.normalization.undo_mesh(mesh)
