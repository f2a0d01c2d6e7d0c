"""From a mesh to the points that training draws from."""

from __future__ import annotations

from collections.abc import Sequence

from fastshape import geometry
from fastshape.geometry import Mesh, PrepareSpec
from fastshape.train.data import ShapeSamples


def prepare(
    mesh: Mesh,
    *,
    num_surface: int = 100_000,
    num_volume: int = 150_000,
    num_near: int = 150_000,
    sigmas: Sequence[float] = (0.01, 0.03, 0.1),
    seed: int = 0,
) -> ShapeSamples:
    """Samples a mesh, normalized to [-1, 1]^3 by its bounding box, and labels the queries.

    A point is inside by the "auto" rule of `geometry.signed_distance`: the mesh may have holes, overlapping
    parts and faces that are turned the wrong way.

    Args:
        mesh: a mesh with a surface.
        num_surface: points on it, uniform by area.
        num_volume: queries uniform in the cube.
        num_near: queries near the surface.
        sigmas: standard deviations of the near queries, see `geometry.sample_queries`. The default suits the
            small recipe; the paper's code has (0.005, 0.05).
        seed: of every draw.

    Returns:
        Samples for `fit`.
    """
    spec = PrepareSpec(
        num_surface=num_surface,
        num_volume=num_volume,
        num_near=num_near,
        near_sigmas=tuple(sigmas),
        watertight="none",
        labels="occupancy",
        seed=seed,
        per_mesh=False,
    )
    return ShapeSamples.from_prepared(geometry.prepare(mesh, spec))
