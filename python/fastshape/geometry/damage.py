"""Meshes with one thing wrong, as files have them."""

from __future__ import annotations

from dataclasses import replace

import torch

from fastshape.geometry.mesh import Mesh

DAMAGES = (
    "duplicates",
    "degenerate",
    "hole",
    "soup",
    "flipped",
    "inside_out",
    "double_wall",
    "unused",
    "noise",
)


def damage(mesh: Mesh, kind: str, seed: int = 0, share: float | None = None) -> Mesh:
    """The mesh with one thing wrong, as files have it; for tests and for studies of robustness.

    - "duplicates": a share (0.2) of the faces twice.
    - "degenerate": a share (0.2) of the faces again as segments, and as points.
    - "hole": a share (0.02) of the faces missing around one of them.
    - "soup": every face with vertices of its own, in random order.
    - "flipped": a share (0.2) of the faces turned over.
    - "inside_out": all faces turned over.
    - "double_wall": a copy of the surface turned the same way, a share (0.03) of the longest side further in.
    - "unused": some vertices far away that no face has.
    - "noise": vertices moved by a normal distribution, a share (0.002) of the longest side wide.

    Args:
        mesh: any.
        kind: one of :data:`DAMAGES`.
        seed: of what is chosen at random.
        share: instead of the one named above.

    Raises:
        ValueError: an unknown kind, or a share outside of 0 to 1.
    """
    if kind not in DAMAGES:
        raise ValueError(f"`kind` must be one of {', '.join(DAMAGES)}, got {kind!r}")
    if share is None:
        share = {"hole": 0.02, "double_wall": 0.03, "noise": 0.002}.get(kind, 0.2)
    if not 0 <= share <= 1:
        raise ValueError(f"`share` must lie in 0 to 1, got {share}")
    generator = torch.Generator().manual_seed(seed)
    vertices, faces = mesh.vertices, mesh.faces
    size = float((mesh.bounds[1] - mesh.bounds[0]).max())
    order = torch.randperm(len(faces), generator=generator)
    chosen = torch.zeros(len(faces), dtype=torch.bool)
    chosen[order[: round(share * len(faces))]] = True

    if kind == "duplicates":
        faces = torch.cat([faces, faces[chosen]])
    elif kind == "degenerate":
        segments, points = faces[chosen].clone(), faces[chosen].clone()
        segments[:, 2] = segments[:, 1]
        points[:, 1:] = points[:, :1]
        faces = torch.cat([segments, faces, points])
    elif kind == "hole":
        middle = mesh.triangles.mean(1)
        near = (middle - middle[order[0]]).norm(dim=1).sort(stable=True).indices
        faces = faces[near[round(share * len(faces)) :].sort().values]
    elif kind == "soup":
        vertices, faces = mesh.triangles[order].reshape(-1, 3), torch.arange(3 * len(faces)).view(-1, 3)
    elif kind == "flipped":
        faces = torch.where(chosen[:, None], faces.flip(1), faces)
    elif kind == "inside_out":
        faces = faces.flip(1)
    elif kind == "double_wall":
        vertices = torch.cat([vertices, vertices - share * size * mesh.vertex_normals])
        faces = torch.cat([faces, faces + mesh.num_vertices])
    elif kind == "unused":
        vertices = torch.cat([vertices, mesh.bounds[1] + 1e3 * size * torch.ones(5, 3, dtype=vertices.dtype)])
    else:
        vertices = vertices + share * size * torch.randn(vertices.shape, generator=generator).to(
            vertices.dtype
        )
    return replace(mesh, vertices=vertices, faces=faces)
