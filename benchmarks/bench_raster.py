"""Pictures of meshes, beside ray casters that build their hierarchy for each, as an optimization has to."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastshape import ops
from fastshape.reference import raster as reference
from fastshape.testing import icosphere

from .peers import installed
from .registry import Case, Peer, Target, row

_DISTANCE = 3.0
_SLOPE = math.tan(math.radians(22.5))


def clip_of(vertices: Tensor) -> Tensor:
    """(V, 4) float32 of a camera at z = 3 with a field of view of 45 degrees."""
    near, far = 0.5, 20.0
    x, y, z = vertices.double().unbind(1)
    w = _DISTANCE - z
    depth = (w * (far + near) - 2 * far * near) / (far - near)
    return torch.stack([x / _SLOPE, y / _SLOPE, depth, w], 1).float()


def scene(device: torch.device, subdivisions: int) -> tuple[Tensor, Tensor, Tensor]:
    vertices, faces = icosphere(subdivisions)
    return vertices, faces.to(device), clip_of(vertices).to(device)


def w_of_sphere(side: int) -> Tensor:
    """(H, W): the exact w of the unit sphere, NaN where it is not seen or only just."""
    x, y = reference.pixel_positions(side, side)
    square = (_SLOPE * x) ** 2 + (_SLOPE * y) ** 2 + 1
    root = _DISTANCE**2 - square * (_DISTANCE**2 - 1)
    return torch.where(root > 0.01, (_DISTANCE - root.clamp(min=0).sqrt()) / square, torch.nan)


def near_the_sphere(result: Tensor, expected: Tensor) -> None:
    """Where the sphere is seen, w is its own within the flatness of faces."""
    seen = ~expected.isnan()
    error = (result.cpu().double() - expected)[seen].abs().max()
    assert float(error) < 3e-3, f"differs by {float(error):.2g}"


def trimesh_embree(vertices: Tensor, faces: Tensor, side: int) -> Peer | None:
    package = installed("trimesh")
    if package is None or installed("embreex") is None:
        return None
    from trimesh.ray.ray_pyembree import RayMeshIntersector

    x, y = reference.pixel_positions(side, side)
    rays = torch.stack([_SLOPE * x, _SLOPE * y, -torch.ones_like(x)], -1).view(-1, 3)
    origins = torch.tensor([0.0, 0.0, _DISTANCE]).double().expand_as(rays).numpy()
    directions, corners = rays.numpy(), vertices[faces.cpu()]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])

    def run() -> Any:
        mesh = package.Trimesh(vertices.numpy(), faces.cpu().numpy(), process=False)
        return RayMeshIntersector(mesh).intersects_first(origins, directions)

    def w_of(face: Any) -> Tensor:
        hit = torch.from_numpy(face).view(side, side)
        normal, corner = normals[hit.clamp(min=0)], corners[hit.clamp(min=0), 0]
        eye = torch.tensor([0.0, 0.0, _DISTANCE]).double()
        along = ((corner - eye) * normal).sum(-1) / (rays.view(side, side, 3) * normal).sum(-1)
        return torch.where(hit >= 0, along, 0.0)

    return Peer(run, result=w_of, note="builds its hierarchy; ids alone")


@row(family="raster", op="rasterize", shape="82k faces, 512x512", subdivisions=6, side=512)
@row(family="raster", op="rasterize", shape="82k faces, 2048x2048", subdivisions=6, side=2048)
@row(family="raster", op="rasterize", shape="20k faces, 256x256", subdivisions=5, side=256)
@row(family="raster", op="rasterize", shape="328k faces, 512x512", subdivisions=7, side=512)
def rasterize(device: torch.device, subdivisions: int, side: int) -> Case:
    """Ids, weights and both depths; ours against the exact sphere."""
    vertices, faces, clip = scene(device, subdivisions)
    return Case(
        run=lambda: ops.rasterize(clip, faces, side).w,
        reference=lambda: w_of_sphere(side),
        check=near_the_sphere,
        peers={
            "trimesh+embreex": trimesh_embree(vertices, faces, side) if device.type == "cpu" else None,
        },
        bytes=clip.nbytes + faces.nbytes + 28.0 * side * side,
        target=Target("trimesh+embreex", 1 / 8) if (subdivisions, side) == (6, 512) else None,
    )


@row(family="raster", op="rasterize and backward", shape="82k faces, 512x512", subdivisions=6, side=512)
def rasterize_backward(device: torch.device, subdivisions: int, side: int) -> Case:
    """The gradient of a depth image; the peer is our own forward, at most three times as fast."""
    _, faces, clip = scene(device, subdivisions)
    grad = torch.ones(side, side, device=device)
    leaf = clip.clone().requires_grad_()

    def run() -> Tensor:
        (back,) = torch.autograd.grad(ops.rasterize(leaf, faces, side).depth, leaf, grad)
        return back

    def expected() -> Tensor:
        """z/w of the seen point moves with z of the vertices alone as much as 1/w of it."""
        seen = ops.rasterize(clip, faces, side)
        return torch.where(seen.triangle_id >= 0, 1 / seen.w, 0.0).double().sum()

    def total(result: Tensor, expected: Tensor) -> None:
        torch.testing.assert_close(result[:, 2].double().sum(), expected, rtol=1e-5, atol=0)

    return Case(
        run=run,
        reference=expected,
        check=total,
        peers={
            "forward alone": Peer(lambda: ops.rasterize(clip, faces, side).w, check=lambda result, _: None)
        },
        bytes=2 * clip.nbytes + faces.nbytes + 28.0 * side * side,
        target=Target("forward alone", 3.0),
    )


@row(
    family="raster",
    op="depth, normals, mask and backward",
    shape="82k faces, 512x512",
    subdivisions=6,
    side=512,
)
def pictures(device: torch.device, subdivisions: int, side: int) -> Case:
    """Interpolated normals and a smoothed mask, and the gradients of all three."""
    vertices, faces, clip = scene(device, subdivisions)
    twins = ops.edge_twins(faces)
    normals = vertices.float().to(device).requires_grad_()
    leaf = clip.clone().requires_grad_()

    def draw(places: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        seen = ops.rasterize(places, faces, side)
        image = ops.interpolate(values, faces, seen.triangle_id, seen.barycentrics)
        mask = (seen.triangle_id >= 0).to(image.dtype)[..., None]
        mask = ops.antialias(mask, seen.triangle_id, seen.depth, places, faces, twins=twins)
        return seen.w, image, mask

    def run() -> Tensor:
        w, image, mask = draw(leaf, normals)
        torch.autograd.grad(w.sum() + image.square().sum() + mask.sum(), (leaf, normals))
        return mask.detach().sum()

    def area(result: Tensor, expected: Tensor) -> None:
        assert abs(float(result) / float(expected) - 1) < 2e-3

    def forward() -> Any:
        with torch.no_grad():
            return draw(clip, normals)

    radius = math.tan(math.asin(1 / _DISTANCE)) / _SLOPE * side / 2
    return Case(
        run=run,
        reference=lambda: torch.tensor(math.pi * radius**2),
        check=area,
        peers={"forward alone": Peer(forward, check=lambda result, _: None)},
        bytes=2 * clip.nbytes + faces.nbytes + 60.0 * side * side,
        target=Target("forward alone", 3.0),
    )
