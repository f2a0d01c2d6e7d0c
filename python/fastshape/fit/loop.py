"""One mesh as a FlexiCubes field, fitted to pictures of it by differentiable rendering: no network.

Each step a camera looks at the mesh and at the field's surface; depth, normals and masks are compared, and
the field's values move. Focusing (section 3) does this behind a decoder; its two savings apply here as they
do there: voxels that the camera cannot see are carved away by the mesh's depth, and the picture is zoomed in
on as many voxels as there is room for, so that they are seen in detail.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from fastshape import losses, ops
from fastshape.fit.field import Part, SignedDistance, Surface, SurfaceField, Values, voxels_near
from fastshape.fit.views import Camera, random_camera
from fastshape.geometry import Mesh, Normalization, adaptive_zoom, normalize, render_views

EXTENT = 0.95  # of the cube's half side: the surface keeps away from the outermost voxels


@dataclass(frozen=True)
class FitConfig:
    """How a mesh is fitted.

    Attributes:
        resolution: voxels along a side of the cube around the mesh, at the last level.
        levels: resolutions, each half of the next; the first starts at the mesh's signed distances.
        steps: of the last level; each level before has half as many.
        image_size: pixels along a side.
        carve: leave out the voxels that the camera cannot see.
        carve_threshold: how far behind the depth a voxel's center may lie, in voxels.
        zoom: fill the picture with a part of the voxels that are left.
        zoom_share: the least and the largest part, a share of them, uniform.
        zoom_limits: the least and the largest number of voxels in it.
        learning_rate: at first; it falls to a tenth, as a cosine.
        depth_weight, mask_weight, normal_weight, ssim_weight: of the differences of the pictures.
        deviation_weight, weights_weight: FlexiCubes' regularizers.
        tv_weight: of the total variation of the values, which closes small holes.
        distance_weight: of the difference to the mesh's signed distances, truncated at 3 voxels.
        distance_share: the first part of the steps of a level, in which that counts.
        seed: of the cameras and the crops.
    """

    resolution: int = 128
    levels: int = 2
    steps: int = 400
    image_size: int = 256
    carve: bool = True
    carve_threshold: float = 2.0
    zoom: bool = True
    zoom_share: tuple[float, float] = (0.1, 0.3)
    zoom_limits: tuple[int, int] = (4096, 15360)
    learning_rate: float = 0.02
    depth_weight: float = 10.0
    mask_weight: float = 1.0
    normal_weight: float = 1.0
    ssim_weight: float = 0.2
    deviation_weight: float = 0.5
    weights_weight: float = 0.2
    tv_weight: float = 1e-3
    distance_weight: float = 1.0
    distance_share: float = 0.3
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("resolution", "levels", "steps", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if self.resolution % (1 << self.levels - 1) or self.resolution >> self.levels - 1 < 8:
            raise ValueError(
                f"`resolution` must be at least 8 after {self.levels - 1} halvings, and whole, "
                f"got {self.resolution}"
            )
        low, high = self.zoom_share
        if not 0 < low <= high <= 1:
            raise ValueError(f"`zoom_share` must ascend in (0, 1], got {self.zoom_share}")


class Target(NamedTuple):
    """The mesh that is looked at, in [-0.5, 0.5]^3."""

    vertices: Tensor
    faces: Tensor
    twins: Tensor  # of its edges, for smooth silhouettes
    distance: SignedDistance


class Step(NamedTuple):
    """What a step did."""

    resolution: int
    number: int  # steps of this level that are done
    of: int
    loss: float
    num_voxels: int


@dataclass(frozen=True)
class Fit:
    """A fitted mesh.

    Attributes:
        mesh: the surface, in the frame of the input.
        field: in the cube [-0.5, 0.5]^3.
        normalization: from the input's frame to twice that cube.
        num_voxels: of the last level.
        voxels_per_step: mean number that took part in a step of the last level.
        seconds_per_step: its mean, of the last level.
    """

    mesh: Mesh
    field: SurfaceField
    normalization: Normalization
    num_voxels: int
    voxels_per_step: float
    seconds_per_step: float


def to_cube(mesh: Mesh) -> tuple[Mesh, Normalization]:
    """A mesh in the cube [-0.5, 0.5]^3, and the map to twice that."""
    normalized, normalization = normalize(mesh, extent=EXTENT)
    return Mesh(normalized.vertices * 0.5, normalized.faces), normalization


def from_cube(mesh: Mesh, normalization: Normalization) -> Mesh:
    """The way back."""
    return normalization.undo_mesh(Mesh(mesh.vertices * 2, mesh.faces))


def start(
    mesh: Mesh,
    resolution: int,
    *,
    distance: SignedDistance | None = None,
    device: torch.device | str = "cpu",
) -> SurfaceField:
    """A field with a mesh's signed distances, on the voxels that the mesh passes through or near by.

    Args:
        mesh: in [-0.5, 0.5]^3.
        resolution: R.
        distance: of the mesh, if it is at hand.
        device: of the field.
    """
    distance = distance or SignedDistance(mesh)
    field = SurfaceField(voxels_near(distance.bvh, resolution).to(device), resolution)
    with torch.no_grad():
        points = field.corner_points()
        field.corner_values[:, 0] = distance(points.cpu()).to(points.device) * resolution
    return field


def dual_marching_cubes_mesh(mesh: Mesh, resolution: int) -> Mesh:
    """What dual marching cubes make of a mesh's signed distances, in the mesh's frame: the one to beat."""
    target, normalization = to_cube(mesh)
    field = start(target, resolution)
    vertices, faces = ops.dual_marching_cubes(
        field.corner_values.detach()[:, 0].contiguous(),
        cubes=field.corners.cubes,
        positions=field.corner_points(),
    )
    return from_cube(Mesh(vertices, faces), normalization)


def fit_mesh(
    mesh: Mesh,
    config: FitConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    on_step: Callable[[Step], None] | None = None,
) -> Fit:
    """Fit a FlexiCubes field to a mesh by what cameras see of both.

    Args:
        mesh: any mesh with a surface; it need not be closed. A closed one gives a closed one.
        config: how; None takes the defaults.
        device: where the steps are done.
        on_step: called after each step.

    Raises:
        ValueError: a mesh without surface.
        FloatingPointError: the loss is not finite.

    Reference: Shen et al. 2023 (FlexiCubes); Focusing for carving, zoom, total variation and the warm-up by
    distances; losses and weights of TRELLIS.
    """
    config = config or FitConfig()
    cube, normalization = to_cube(mesh)
    distance = SignedDistance(cube)
    vertices, faces = cube.vertices.to(device), cube.faces.to(device)
    target = Target(vertices, faces, ops.edge_twins(faces), distance)
    generator = Generator().manual_seed(config.seed)
    field: SurfaceField | None = None
    took = voxels = 0.0
    for level in range(config.levels):
        resolution = config.resolution >> (config.levels - 1 - level)
        steps = max(1, config.steps >> (config.levels - 1 - level))
        field = (
            start(cube, resolution, distance=distance, device=device)
            if field is None
            else field.refined(voxels_near(distance.bvh, resolution).to(device))
        )
        begin = time.perf_counter()
        voxels = _fit_level(field, target, config, steps, generator, on_step)
        took = (time.perf_counter() - begin) / steps
    assert field is not None
    return Fit(from_cube(field.mesh(), normalization), field, normalization, field.num_voxels, voxels, took)


def _fit_level(
    field: SurfaceField,
    target: Target,
    config: FitConfig,
    steps: int,
    generator: Generator,
    on_step: Callable[[Step], None] | None,
) -> float:
    """Moves the field; returns the mean number of voxels of a step."""
    points = field.corner_points()
    wanted = target.distance(points.cpu()).to(points.device) * field.resolution
    optimizer = torch.optim.SparseAdam(field.parameters(), lr=config.learning_rate)
    voxels = 0
    for number in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * (0.55 + 0.45 * math.cos(math.pi * number / steps))
        camera, part = _look(field, target, config, generator)
        voxels += len(part.rows)
        values = field.values(part)
        surface = field.surface(part, values, training=True)
        if not len(surface.faces):
            continue
        loss = _picture_loss(surface, target, camera, field.resolution, config)
        loss = loss + _regularization(values, surface, part, config)
        if number < config.distance_share * steps:
            aim = wanted[part.corner_rows]
            loss = loss + config.distance_weight * losses.sparse_tsdf_loss(values.distances, aim, 3.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if not math.isfinite(value := float(loss.detach())):
            raise FloatingPointError(f"the loss of step {number + 1} is {value}")
        if on_step is not None:
            on_step(Step(field.resolution, number + 1, steps, value, len(part.rows)))
    return voxels / steps


def _look(
    field: SurfaceField, target: Target, config: FitConfig, generator: Generator
) -> tuple[Camera, Part]:
    """A camera, and the voxels that take part in its picture."""
    camera = random_camera(generator).to(field.coords.device)
    if not (config.carve or config.zoom):
        return camera, field.whole()
    rows = torch.arange(field.num_voxels, device=field.coords.device)
    if config.carve:
        seen = render_views(target.vertices, target.faces, camera.matrix[None], config.image_size, smooth=())
        depth = torch.where(seen.triangle_id >= 0, seen.depth, torch.inf)
        _, rows = ops.depth_carve(
            field.coords,
            depth,
            camera.matrix[None],
            resolution=field.resolution,
            threshold=config.carve_threshold / field.resolution,
        )
    if config.zoom and len(rows):
        crop = adaptive_zoom(
            field.coords[rows],
            camera.matrix,
            resolution=field.resolution,
            alpha=config.zoom_share,
            num_range=config.zoom_limits,
            generator=generator,
        )
        rows, camera = rows[crop.indices], Camera(camera.eye, crop.matrix)
    return camera, field.part(rows)


def _picture_loss(
    surface: Surface, target: Target, camera: Camera, resolution: int, config: FitConfig
) -> Tensor:
    """How much the surface looks unlike the target."""
    matrices, size = camera.matrix[None], config.image_size
    with torch.no_grad():
        wanted = render_views(target.vertices, target.faces, matrices, size, twins=target.twins)
    found = render_views(surface.vertices, surface.faces, matrices, size)
    both = (found.triangle_id >= 0) & (wanted.triangle_id >= 0)
    depth = losses.depth_loss(found.depth, wanted.depth, both, beta=0.5 / resolution)
    normals, aims = (losses.toward_camera(view.normals, camera.rays(size)) for view in (found, wanted))
    loss = config.mask_weight * losses.mask_loss(found.mask, wanted.mask)
    loss = loss + config.depth_weight * depth
    loss = loss + config.normal_weight * losses.normal_loss(normals, aims, both)
    if config.ssim_weight:
        image, aim = ((view * 0.5 + 0.5).permute(0, 3, 1, 2) for view in (normals, aims))
        loss = loss + config.ssim_weight * losses.ssim_loss(image, aim, both, border="zeros")
    return loss


def _regularization(values: Values, surface: Surface, part: Part, config: FitConfig) -> Tensor:
    loss = config.deviation_weight * losses.deviation_loss(surface.deviation)
    loss = loss + config.weights_weight * losses.weight_loss(values.weights[:, :20])
    if config.tv_weight:
        neighbors = ops.corner_neighbors(part.corners)
        loss = loss + config.tv_weight * losses.total_variation_loss(values.distances, neighbors)
    return loss
