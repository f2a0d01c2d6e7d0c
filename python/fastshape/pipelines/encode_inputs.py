"""What each family's encoder is shown of a mesh: in which frame, and which points.

    VecSetVAE   bounding box to [-1, 1]^3           points of the surface
    DoraVAE     bounding box to [-1, 1]^3           points and normals of the surface, and of sharp edges
    LaGeM       farthest vertex to 0.999            points of the surface
    VAT         bounding box to [-1, 1]^3           points and normals of the surface

Weights that state how their training data was prepared (`metadata.preparation`) go by that instead.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from fastshape.geometry import (
    Mesh,
    Normalization,
    PrepareSpec,
    normalize,
    orient,
    sample_sharp_edges,
    sample_surface,
)
from fastshape.models import VAT, CheckpointError, DoraVAE, FieldAutoencoder, LaGeM, VecSetVAE

FAMILIES: Mapping[type[FieldAutoencoder], PrepareSpec] = MappingProxyType(
    {
        VecSetVAE: PrepareSpec.preset("vecset"),
        DoraVAE: PrepareSpec.preset("dora"),
        LaGeM: PrepareSpec.preset("lagem", extent=0.999),  # of its code; the paper's unit ball is closed
        VAT: PrepareSpec.preset("vat", extent=1.0),  # the paper's unit cube, with twice the side
    }
)
_FRAME = ("normalization", "extent")
_POINTS = ("num_surface", "oversample", "num_sharp", "sharp_angle", "sharp_weighting")


class EncoderInputs(NamedTuple):
    """What goes into `encode`.

    Attributes:
        points: a cloud (1, N, C) for each of the model's `inputs`, float32, in the normalized frame.
        normalization: the way into that frame and back.
        mesh: the mesh in that frame, float32.
    """

    points: tuple[Tensor, ...]
    normalization: Normalization
    mesh: Mesh


def preparation_of(model: FieldAutoencoder) -> PrepareSpec:
    """How a model's inputs are made: as its metadata says, and what that leaves open as its family does.

    Raises:
        CheckpointError: the metadata says something that cannot be.
    """
    family = next((kind for kind in FAMILIES if isinstance(model, kind)), VecSetVAE)
    said = model.metadata.preparation or {}
    fields = {name: said[name] for name in (*_FRAME, *_POINTS) if name in said}
    if "num_surface" in fields:
        fields.setdefault("oversample", None)
    try:
        return dataclasses.replace(FAMILIES[family], **fields)
    except (ValueError, TypeError) as error:
        raise CheckpointError(f"{model.title}: its metadata holds a bad preparation: {error}") from error


def encoder_inputs(
    mesh: Mesh,
    model: FieldAutoencoder,
    *,
    num_points: int | None = None,
    generator: torch.Generator | None = None,
) -> EncoderInputs:
    """Normalizes a mesh and draws what a model encodes, as in its training.

    Where the training picked its points from larger stored sets that are not simply uniform (thinned by
    farthest point sampling, or on sharp edges), such a set is drawn and picked from here too. For normals the
    faces are turned outward first.

    Args:
        mesh: any mesh with a surface.
        model: it may state its preparation in its metadata.
        num_points: N of each cloud; None is the configuration's `num_inputs`.
        generator: CPU generator; None draws from torch's global one.

    Raises:
        ValueError: a mesh without surface.
        CheckpointError: see `preparation_of`.
    """
    spec = preparation_of(model)
    count = model.config.num_inputs if num_points is None else num_points
    with_normals = model.input_channels > 3
    if with_normals and not (mesh.is_watertight and mesh.volume > 0):
        mesh = orient(mesh)
    normalized, normalization = normalize(mesh, extent=spec.extent, fit=spec.normalization)  # type: ignore[call-overload]
    clouds, used = [], [*_FRAME]
    for name in model.inputs:
        if name == "surface":
            points, normals = _surface(normalized, count, spec, generator)
        else:
            used += ["num_sharp", "sharp_angle", "sharp_weighting"]
            points, normals = _sharp(normalized, count, spec, generator)
        clouds.append((torch.cat([points, normals], dim=1) if with_normals else points)[None])
    model.check_preparation({**{name: getattr(spec, name) for name in used}, **_amounts(model, count)})
    return EncoderInputs(tuple(clouds), normalization, normalized)


def _amounts(model: FieldAutoencoder, count: int) -> dict[str, int]:
    return {f"num_{name}": count for name in model.inputs}


def _surface(
    mesh: Mesh, count: int, spec: PrepareSpec, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    if spec.oversample is None:
        samples = sample_surface(mesh, count, generator)
        return samples.points, samples.normals
    stored = max(spec.num_surface, count)
    samples = sample_surface(mesh, stored, generator, oversample=max(spec.oversample, stored))
    return _pick(samples.points, samples.normals, count, generator)


def _sharp(
    mesh: Mesh, count: int, spec: PrepareSpec, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    samples = sample_sharp_edges(
        mesh,
        max(spec.num_sharp, count),
        angle=spec.sharp_angle,
        weighting=spec.sharp_weighting,  # type: ignore[arg-type]
        generator=generator,
    )
    return _pick(samples.points, samples.normals, count, generator)


def _pick(
    points: Tensor, normals: Tensor, count: int, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    if len(points) == count:
        return points, normals
    rows = torch.randperm(len(points), generator=generator)[:count]
    return points[rows], normals[rows]
