"""The sharp-normal error: how well creases and corners look, rather than where they lie."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastshape.geometry.mesh import Mesh
from fastshape.ops import Bvh, build_bvh, cast_rays

_SIGMA = 1.0  # pixels
_LOW, _HIGH = 0.2, 0.4  # of the Sobel magnitude; a crease of 15 degrees seen face on gives about 0.4
_DILATION = 2  # pixels on each side


def sphere_directions(count: int) -> Tensor:
    """Unit vectors (count, 3) float64 spread evenly: a Fibonacci lattice.

    z_i = 1 - (2 i + 1) / count, at the azimuth i times the golden angle, pi (3 - sqrt 5). None lies along an
    axis, so no view of a box looks along its faces.
    """
    index = torch.arange(count, dtype=torch.float64)
    z = 1 - (2 * index + 1) / count
    turn = math.pi * (3 - 5**0.5) * index
    ring = (1 - z * z).sqrt()
    return torch.stack([ring * turn.cos(), ring * turn.sin(), z], 1)


def canny(picture: Tensor, *, sigma: float = _SIGMA, low: float = _LOW, high: float = _HIGH) -> Tensor:
    """Canny's edges of a gray picture (H, W) float; bool (H, W).

    Gaussian blur (cut at 4 sigma, the border repeated), Sobel gradient without a factor (a step of height h
    gives 4 h before the blur), thinning along the gradient rounded to 45 degrees, and of what exceeds `low`
    the parts, connected over 8 neighbors, that exceed `high` somewhere.

    Reference: Canny 1986, "A computational approach to edge detection".
    """
    functional = torch.nn.functional
    radius = max(int(4 * sigma + 0.5), 1)
    steps = torch.arange(-radius, radius + 1, dtype=picture.dtype)
    kernel = torch.exp(-0.5 * (steps / sigma) ** 2)
    kernel = kernel / kernel.sum()
    image = picture[None, None]
    image = functional.pad(image, (radius, radius, radius, radius), "replicate")
    image = functional.conv2d(functional.conv2d(image, kernel[None, None, None]), kernel[None, None, :, None])
    image = functional.pad(image, (1, 1, 1, 1), "replicate")
    smooth, slope = picture.new_tensor([1.0, 2, 1]), picture.new_tensor([-1.0, 0, 1])
    gx, gy = functional.conv2d(
        image, torch.stack([torch.outer(smooth, slope), torch.outer(slope, smooth)])[:, None]
    )[0]
    magnitude = torch.hypot(gx, gy)

    # Neighbors on both sides along the gradient, y downward.
    sector = (torch.atan2(gy, gx) * (4 / math.pi)).round().long() % 4
    padded = functional.pad(magnitude, (1, 1, 1, 1))
    height, width = picture.shape

    def shifted(dy: int, dx: int) -> Tensor:
        return padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]

    thin = torch.zeros_like(magnitude, dtype=torch.bool)
    for number, (dy, dx) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        peak = (magnitude >= shifted(dy, dx)) & (magnitude > shifted(-dy, -dx))
        thin |= peak & (sector == number)
    return _connected_to(thin & (magnitude > low), thin & (magnitude > high))


def _connected_to(weak: Tensor, strong: Tensor) -> Tensor:
    """The pixels of `weak` (H, W) whose part, over 8 neighbors, holds one of `strong`."""
    width = weak.shape[1]
    pixels = weak.reshape(-1).nonzero()[:, 0]
    if not len(pixels):
        return weak
    number = torch.full((weak.numel(),), -1)
    number[pixels] = torch.arange(len(pixels))
    number = torch.nn.functional.pad(number.reshape(weak.shape), (1, 1, 1, 1), value=-1)
    y, x = pixels // width + 1, pixels % width + 1
    rows = torch.arange(len(pixels))
    pairs = []
    for dy, dx in ((0, 1), (1, -1), (1, 0), (1, 1)):
        other = number[y + dy, x + dx]
        pairs.append(torch.stack([rows, other])[:, other >= 0])
    u, v = torch.cat(pairs, 1)
    parent = rows
    while len(u):  # hook larger roots to smaller ones, compress, until no pair joins two roots
        low, high = torch.minimum(parent[u], parent[v]), torch.maximum(parent[u], parent[v])
        parent = parent.scatter_reduce(0, high, low, "amin")
        while not torch.equal(above := parent[parent], parent):
            parent = above
        apart = parent[u] != parent[v]
        u, v = u[apart], v[apart]
    has_strong = torch.zeros(len(pixels), dtype=torch.bool)
    has_strong[parent[strong.reshape(-1)[pixels]]] = True
    kept = torch.zeros(weak.numel(), dtype=torch.bool)
    kept[pixels[has_strong[parent]]] = True
    return kept.reshape(weak.shape)


def normal_maps(
    mesh: Mesh, direction: Tensor, center: Tensor, radius: float, size: int, bvh: Bvh | None = None
) -> Tensor:
    """Normals (size, size, 3) float32 of a mesh seen from far along `direction`, 0 where there is none.

    Parallel rays through the centers of the pixels of a square of side 2 `radius` about `center`; the unit
    normals of the faces that are met first, in the mesh's frame, turned towards the viewer.
    """
    bvh = build_bvh(mesh.vertices.float(), mesh.faces) if bvh is None else bvh
    helper = torch.zeros(3, dtype=torch.float64)
    helper[int(direction.abs().argmin())] = 1
    right = torch.nn.functional.normalize(torch.linalg.cross(helper, direction), dim=0)
    up = torch.linalg.cross(direction, right)
    steps = ((torch.arange(size, dtype=torch.float64) + 0.5) / size * 2 - 1) * radius
    y, x = torch.meshgrid(-steps, steps, indexing="ij")
    reach = radius + float((mesh.used_vertices.double() - center).norm(dim=1).max())
    origins = center + reach * direction + x[..., None] * right + y[..., None] * up
    origins = origins.reshape(-1, 3).float()
    hits = cast_rays(origins, (-direction).float().expand_as(origins).contiguous(), bvh)
    normals = mesh.face_normals.float()[hits.face.clamp_min(0)]
    normals = torch.where((normals @ direction.float() < 0)[:, None], -normals, normals)
    return torch.where((hits.face >= 0)[:, None], normals, torch.zeros(3)).reshape(size, size, 3)


def sharp_mask(normals: Tensor) -> Tensor:
    """Where a normal map (H, W, 3) has creases and outlines; bool (H, W).

    `canny` of each component as a picture, (n + 1) / 2, the three joined and widened by 2 pixels each way.
    """
    edges = torch.zeros(normals.shape[:2], dtype=torch.bool)
    for component in normals.unbind(2):
        edges |= canny((component + 1) / 2)
    width = 2 * _DILATION + 1
    return torch.nn.functional.max_pool2d(edges[None].float(), width, 1, _DILATION)[0] > 0


def sharp_normal_error(prediction: Mesh, target: Mesh, *, views: int = 22, size: int = 512) -> float:
    """The mean squared difference of two meshes' normal maps where the target's has edges.

    Both meshes are seen through the same `views` parallel cameras, from the directions of
    `sphere_directions`, at the scale at which the target's bounding sphere (about the middle of its box)
    fills the picture. In each view `sharp_mask` of the target's `normal_maps` says where to look. The error
    is the mean over these pixels of all views, and over the three components of the maps taken as pictures,
    (n + 1) / 2: 0 for equal meshes; 1/6 for perpendicular normals; 1/12 where one surface is absent. It has
    no sampling floor.

    Args:
        prediction: in the target's frame.
        target: a mesh with a surface.
        views: number of cameras.
        size: height and width of the maps in pixels.

    Raises:
        ValueError: a mesh without faces.

    Reference: Dora (Chen et al. 2025) names 22 views, Canny on the ground truth's maps, dilation and the
    mean squared error, and reports it times 100. It does not publish cameras, picture size, thresholds or the
    width of the mask; those are ours.
    """
    if not prediction.num_faces or not target.num_faces:
        raise ValueError("a mesh without faces has no normals to compare")
    center = target.bounds.double().mean(0)
    radius = float((target.used_vertices.double() - center).norm(dim=1).max())
    trees = [build_bvh(m.vertices.float(), m.faces) for m in (prediction, target)]
    total, count = 0.0, 0
    for direction in sphere_directions(views):
        predicted, wanted = (
            normal_maps(mesh, direction, center, radius, size, tree)
            for mesh, tree in zip((prediction, target), trees, strict=True)
        )
        mask = sharp_mask(wanted)
        difference = (predicted - wanted)[mask].double() / 2
        total += float(difference.square().sum())
        count += 3 * int(mask.sum())
    return total / count if count else 0.0
