"""Meshes and points to the voxels that they touch, and what pictures show of points."""

from __future__ import annotations

import torch
from torch import Tensor

from fastshape._library import backend, define

# ---- voxelize_mesh -----------------------------------------------------------------------------------------


def _voxelize_mesh(vertices: Tensor, faces: Tensor, resolution: int, low: float, high: float) -> Tensor:
    module = backend()
    counts = faces.new_empty(faces.shape[0] if faces.ndim else 0, dtype=torch.int64)
    module.voxelize_mesh_count(vertices, faces, resolution, low, high, counts)
    ends = counts.cumsum(0)
    keys = counts.new_empty(int(ends[-1]) if len(ends) else 0)  # the sync
    module.voxelize_mesh_fill(vertices, faces, resolution, low, high, ends - counts, keys)
    return _coords(keys.sort().values.unique_consecutive(), resolution)


def _coords(keys: Tensor, resolution: int) -> Tensor:
    columns = keys.div(resolution, rounding_mode="floor")
    x, y, z = columns.div(resolution, rounding_mode="floor"), columns % resolution, keys % resolution
    return torch.stack([x, y, z], 1).int()


_voxelize_mesh_op = define(
    "voxelize_mesh(Tensor vertices, Tensor faces, int resolution, float low, float high) -> Tensor",
    implementation=_voxelize_mesh,
    fake=lambda vertices, *_: vertices.new_empty(
        torch.library.get_ctx().new_dynamic_size(), 3, dtype=torch.int32
    ),
)


def voxelize_mesh(
    vertices: Tensor, faces: Tensor, resolution: int, box: tuple[float, float] = (-1.0, 1.0)
) -> Tensor:
    """The voxels that a mesh touches, as it is: open surfaces stay open, and what is inside stays too.

    A voxel is a closed box: it is touched by a triangle that only reaches its border, so that a face in the
    plane between two layers of voxels touches both. What lies outside of the grid touches nothing. A face
    with a vertex that is not finite, or not there, is left out; degenerate faces (segments, points) are not.

    Args:
        vertices: (V, 3), float32 or float64, contiguous.
        faces: (F, 3), int64, contiguous, on the same device; rows of ``vertices``.
        resolution: voxels along an axis, R, from 1 to 2^20.
        box: (low, high), the grid's cube on every axis; voxel i reaches from low + i (high - low) / R to
            low + (i + 1) (high - low) / R.

    Returns:
        (N, 3) int32: x, y, z of each touched voxel once, in lexicographic order.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous, a resolution out of range, a bad box.

    Gradient: none.

    Device: CPU and CUDA with equal results, the same for any number of threads; two syncs, as the number of
    voxels depends on the mesh. 8 bytes for each pair of a face and a voxel, and what sorting them takes.

    Reference: Akenine-Moeller 2001, "Fast 3D Triangle-Box Overlap Testing", in double precision with a bound
    of the rounding, so that nothing touched is lost. Only the voxels around a triangle's plane are tested:
    those in reach of its part in each column of voxels.
    """
    low, high = (float(side) for side in box)
    return _voxelize_mesh_op(vertices.detach(), faces, resolution, low, high)


def voxelize_points(
    points: Tensor, resolution: int, box: tuple[float, float] = (-1.0, 1.0), *, reach: float = 0.0
) -> Tensor:
    """The voxels that points lie in, or come near to.

    Args:
        points: (N, 3), floating; those outside of the box, or not finite, are left out.
        resolution: voxels along an axis, R, from 1 to 2^20.
        box: (low, high), the grid's cube on every axis; its upper side belongs to the last voxel.
        reach: also the voxels of the 26 points that lie this far away along one, two or three axes.

    Returns:
        (M, 3) int32: x, y, z of each voxel once, in lexicographic order.

    Raises:
        TypeError: not a tensor, or not floating.
        ValueError: wrong shape, a resolution or a reach out of range, a bad box.

    Gradient: none.

    Device: CPU and CUDA; one sync.

    Reference: He et al. 2025, "SparseFlex" (TripoSF), whose encoder takes the union of these with a reach of
    1 / (4 R - 1) of the box, and of what :func:`voxelize_mesh` gives.
    """
    low, high = (float(side) for side in box)
    if not isinstance(points, Tensor):
        raise TypeError(f"`points` must be a tensor, got {type(points).__name__}")
    if not points.is_floating_point():
        raise TypeError(f"`points` must be floating, got {points.dtype}")
    if points.dim() != 2 or points.shape[1] != 3:
        raise ValueError(f"`points` must have shape (N, 3), got {tuple(points.shape)}")
    if not 1 <= resolution <= 2**20:
        raise ValueError(f"`resolution` must lie in [1, {2**20}], got {resolution}")
    if not (low < high and high - low < float("inf")):
        raise ValueError(f"`box` must be two finite numbers, the smaller first, got ({low:g}, {high:g})")
    if not 0 <= reach < float("inf"):
        raise ValueError(f"`reach` must be finite and at least 0, got {reach}")
    places = points.detach()
    if reach > 0:
        steps = torch.tensor([-reach, 0.0, reach], dtype=points.dtype, device=points.device)
        places = (places[:, None] + torch.cartesian_prod(steps, steps, steps)).reshape(-1, 3)
    inside = ((places >= low) & (places <= high)).all(1)  # False for what is not finite
    voxels = (places[inside] - low).div_(high - low).mul_(resolution).long().clamp_max_(resolution - 1)
    keys = (voxels[:, 0] * resolution + voxels[:, 1]) * resolution + voxels[:, 2]
    return _coords(keys.unique(), resolution)


# ---- project_features --------------------------------------------------------------------------------------


def project_features(
    maps: Tensor,
    matrices: Tensor,
    points: Tensor,
    *,
    visible: Tensor | None = None,
    chunk: int = 65536,
) -> Tensor:
    """The mean over views of what their feature maps show at points.

    A point p is projected to ``clip = matrix (p, 1)``, ``x, y = clip[:2] / clip[3]``, and its features are
    interpolated bilinearly between the middles of the map's cells; the first row is at y = 1. A view counts
    where ``clip[3] > 0``, x and y lie in [-1, 1], and ``visible`` does not say otherwise.

    Args:
        maps: (V, C, h, w), floating: of each view, for example of a picture model's patches.
        matrices: (V, 4, 4), floating: from the world to clip coordinates, as :func:`depth_carve` takes them.
        points: (N, 3), floating, all on one device.
        visible: (V, N) bool, which points each view sees; :func:`depth_carve` of one view at a time tells.
        chunk: points at a time; the working memory is that of chunk * C numbers.

    Returns:
        (N, C), dtype of ``maps``; zeros where no view counts.

    Raises:
        TypeError: not a tensor, or not floating.
        ValueError: wrong shapes.

    Gradient: with respect to ``maps``.

    Device: CPU and CUDA; no sync.

    Reference: Xiang et al. 2024 (TRELLIS), section 3.1, whose code takes the mean over all views, those that
    see the point or not: ``visible`` None and points that lie in all pictures.
    """
    for name, tensor, shape in (
        ("maps", maps, "V, C, h, w"),
        ("matrices", matrices, "V, 4, 4"),
        ("points", points, "N, 3"),
    ):
        if not isinstance(tensor, Tensor):
            raise TypeError(f"`{name}` must be a tensor, got {type(tensor).__name__}")
        if not tensor.is_floating_point():
            raise TypeError(f"`{name}` must be floating, got {tensor.dtype}")
        if tensor.dim() != shape.count(",") + 1:
            raise ValueError(f"`{name}` must have shape ({shape}), got {tuple(tensor.shape)}")
    views, channels = maps.shape[:2]
    if matrices.shape != (views, 4, 4):
        raise ValueError(f"`matrices` must have shape ({views}, 4, 4), got {tuple(matrices.shape)}")
    if points.shape[1] != 3:
        raise ValueError(f"`points` must have shape (N, 3), got {tuple(points.shape)}")
    if visible is not None and visible.shape != (views, len(points)):
        raise ValueError(f"`visible` must have shape ({views}, {len(points)}), got {tuple(visible.shape)}")
    if chunk < 1:
        raise ValueError(f"`chunk` must be at least 1, got {chunk}")
    results = [maps.new_zeros(0, channels)]
    for begin in range(0, len(points), chunk):
        part = points[begin : begin + chunk]
        places = torch.nn.functional.pad(part, (0, 1), value=1.0).to(matrices.dtype)
        total = maps.new_zeros(len(part), channels)
        count = maps.new_zeros(len(part), 1)
        for view in range(views):
            clip = places @ matrices[view].T
            at = clip[:, :2] / clip[:, 3:]
            counts = (clip[:, 3] > 0) & (at.abs() <= 1).all(1)
            if visible is not None:
                counts = counts & visible[view, begin : begin + chunk]
            at = torch.where(counts[:, None], at, 0.0).to(maps.dtype)
            grid = torch.stack([at[:, 0], -at[:, 1]], 1)[None, :, None]
            found = torch.nn.functional.grid_sample(
                maps[view : view + 1], grid, padding_mode="border", align_corners=False
            )
            share = counts[:, None].to(maps.dtype)
            total = total + found[0, :, :, 0].T * share
            count = count + share
        results.append(total / count.clamp_min(1))
    return torch.cat(results)
