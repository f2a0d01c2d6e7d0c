"""How detailed a mesh is, by its salient edges: the levels that tables are divided into."""

from __future__ import annotations

from dataclasses import dataclass

from fastshape.geometry.mesh import Mesh
from fastshape.geometry.sharp import count_salient_edges
from fastshape.geometry.watertight import watertight

LEVEL_BOUNDS = (5_000, 20_000, 50_000)


@dataclass(frozen=True)
class DetailLevel:
    """A level of detail.

    Attributes:
        level: 1 to 4.
        salient_edges: edges at which two faces meet at more than 15 degrees.
        counted_on: the mesh they were counted on, "as given" or "watertight remesh of R".
    """

    level: int
    salient_edges: int
    counted_on: str

    def __str__(self) -> str:
        return f"L{self.level} ({self.salient_edges:,} salient edges, {self.counted_on})"


def detail_level(mesh: Mesh, *, resolution: int | None = None) -> DetailLevel:
    """The level of a mesh: up to 5,000, 20,000 and 50,000 salient edges for 1, 2 and 3, more for 4.

    The count depends on the mesh, not only on the shape: scans are rough, remeshing rounds creases and makes
    steps of flat faces. So levels compare only between meshes that were made alike; a fixed remesh makes them
    so, at the price of its own edges. A mesh without salient edges is of level 1.

    Args:
        mesh: what to count on.
        resolution: count on the `watertight` remesh of this resolution instead; None counts on the mesh.

    Reference: Dora-Bench (Chen et al. 2025), the bounds and 15 degrees.
    """
    counted_on = "as given"
    if resolution is not None:
        mesh = watertight(mesh, resolution=resolution).mesh
        counted_on = f"watertight remesh of {resolution}"
    count = count_salient_edges(mesh)
    return DetailLevel(1 + sum(count > bound for bound in LEVEL_BOUNDS), count, counted_on)
