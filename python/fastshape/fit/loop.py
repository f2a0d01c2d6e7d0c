"""One mesh as a FlexiCubes field, fitted to pictures of it by differentiable rendering: no network.

Each step a camera looks at the mesh and at the field's surface; depth, normals and masks are compared, and
the field's values move. Focusing (section 3) does this behind a decoder; its two savings apply here as they
do there: voxels that the camera cannot see are carved away by the mesh's depth, and the picture is zoomed in
on as many voxels as there is room for, so that they are seen in detail.
"""

from __future__ import annotations

import dataclasses
import math
import os
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Generator, Tensor

from fastshape import losses, ops
from fastshape.fit import checkpoint
from fastshape.fit.adam import RowAdam
from fastshape.fit.coverage import Coverage
from fastshape.fit.field import Part, Surface, SurfaceField, Values, voxels_near
from fastshape.fit.views import Camera
from fastshape.geometry import (
    DistanceField,
    Mesh,
    Normalization,
    RenderedViews,
    adaptive_zoom,
    normalize,
    orient,
    render_views,
)
from fastshape.ops.rows import count_edges
from fastshape.runtime.interrupt import delayed_interrupt

_CHUNK = 1 << 20
_COVERAGE_POINTS = 1 << 14
# Smooth normals tell of outlines before other parts of the surface, of a slit in a wall too, where masks see
# nothing. Smooth depth would as well, but its steps are so high that nothing else counts.
_SMOOTH = ("mask", "normals")
EXTENT = 0.95  # of the cube's half side: the surface keeps away from the outermost voxels


@dataclass(frozen=True)
class FitConfig:
    """How a mesh is fitted.

    Attributes:
        resolution: voxels along a side of the cube around the mesh, at the last level.
        levels: resolutions, each half of the next; the first starts at the mesh's signed distances. As those
            are known, more than one brought nothing on the meshes that we measured.
        trust: how far from the mesh's distances, in voxels, a level may begin with what the one before found;
            elsewhere it begins with the distances. Thin walls are lost on a coarse level.
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
    levels: int = 1
    trust: float = 0.25
    steps: int = 400
    image_size: int = 256
    carve: bool = True
    carve_threshold: float = 2.0
    zoom: bool = True
    zoom_share: tuple[float, float] = (0.1, 0.3)
    zoom_limits: tuple[int, int] = (4096, 15360)
    learning_rate: float = 0.04
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


class FitWarning(UserWarning):
    """Something about a fit that its result should be looked at for."""


class FitInterrupted(KeyboardInterrupt):
    """Ctrl-C during a fit: the current step was finished and, with a `checkpoint`, saved."""


class Target(NamedTuple):
    """The mesh that is looked at, in [-0.5, 0.5]^3."""

    vertices: Tensor
    faces: Tensor
    twins: Tensor  # of its edges, for smooth silhouettes


class View(NamedTuple):
    """A picture of the target, and the voxels that take part in it."""

    camera: Camera
    part: Part
    wanted: RenderedViews


class Step(NamedTuple):
    """What a step did."""

    resolution: int
    number: int  # steps of this level that are done
    of: int
    loss: float
    num_voxels: int
    num_faces: int


@dataclass(frozen=True)
class Fit:
    """A fitted mesh.

    Attributes:
        mesh: the surface, in the frame of the input.
        field: in the cube [-0.5, 0.5]^3.
        normalization: from the input's frame to twice that cube.
        num_voxels: of the last level.
        voxels_per_step: mean number that took part in a step of the last level.
        seconds_per_step, cpu_seconds_per_step: means of the last level, by the clock and of all processors.
        empty_steps: steps of the last level whose picture showed nothing of the field's surface.
    """

    mesh: Mesh
    field: SurfaceField
    normalization: Normalization
    num_voxels: int
    voxels_per_step: float
    seconds_per_step: float
    cpu_seconds_per_step: float
    empty_steps: int


# ---- Before the first step ---------------------------------------------------------------------------------


def to_cube(mesh: Mesh) -> tuple[Mesh, Normalization]:
    """A mesh in the cube [-0.5, 0.5]^3, and the map to twice that."""
    normalized, normalization = normalize(mesh, extent=EXTENT)
    return Mesh(normalized.vertices * 0.5, normalized.faces), normalization


def from_cube(mesh: Mesh, normalization: Normalization) -> Mesh:
    """The way back."""
    return normalization.undo_mesh(Mesh(mesh.vertices * 2, mesh.faces))


def distance_field(mesh: Mesh) -> DistanceField:
    """Distances to a mesh, negative inside; of a mesh with open edges, negative behind its faces."""
    is_open = count_edges(mesh.faces.int(), mesh.num_vertices).open > 0
    return DistanceField(
        orient(mesh) if is_open else mesh, sign="front" if is_open else "auto", dtype=torch.float32
    )


def start(
    mesh: Mesh,
    resolution: int,
    *,
    distance: DistanceField | None = None,
    device: torch.device | str = "cpu",
) -> SurfaceField:
    """A field with a mesh's signed distances, on the voxels that the mesh passes through or near by.

    Args:
        mesh: in [-0.5, 0.5]^3.
        resolution: R.
        distance: of the mesh, if it is at hand.
        device: of the field.
    """
    distance = distance or distance_field(mesh)
    field = SurfaceField(voxels_near(distance.bvh, resolution).to(device), resolution)
    field.corner_values[:, 0] = _distances(field, distance)
    return field


def _distances(field: SurfaceField, distance: DistanceField) -> Tensor:
    """The mesh's at a field's corners, (P,), in voxels."""
    points = field.corner_points().cpu()
    found = torch.cat([distance(part.contiguous()) for part in points.split(_CHUNK)])
    return found.to(field.coords.device) * field.resolution


def dual_marching_cubes_mesh(mesh: Mesh, resolution: int) -> Mesh:
    """What dual marching cubes make of a mesh's signed distances, in the mesh's frame: the one to beat."""
    target, normalization = to_cube(mesh)
    field = start(target, resolution)
    vertices, faces = ops.dual_marching_cubes(
        field.corner_values[:, 0].contiguous(), cubes=field.corners.cubes, positions=field.corner_points()
    )
    return from_cube(Mesh(vertices, faces), normalization)


# ---- The whole job -----------------------------------------------------------------------------------------


def fit_mesh(
    mesh: Mesh,
    config: FitConfig | None = None,
    *,
    device: torch.device | str = "cpu",
    checkpoint_file: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 100,
    resume: bool = True,
    on_step: Callable[[Step], None] | None = None,
) -> Fit:
    """Fit a FlexiCubes field to a mesh by what cameras see of both.

    Args:
        mesh: any mesh with a surface; it need not be closed. A closed one gives a closed one.
        config: how; None takes the defaults.
        device: where the steps are done.
        checkpoint_file: written now and then and on Ctrl-C; what goes on from it ends as if it had never
            stopped, bit for bit. It is left there at the end.
        checkpoint_every: steps between; 0 for Ctrl-C only.
        resume: go on from that file if it is there; False starts again.
        on_step: called after each step.

    Raises:
        ValueError: a mesh without surface, no surface in any picture of a level, or (`CheckpointError`) the
            checkpoint of another fit.
        FloatingPointError: the loss is not finite.
        FitInterrupted: Ctrl-C (a KeyboardInterrupt); calling again goes on.

    Warns:
        FitWarning: a picture that shows nothing of the field's surface, once.

    Reference: Shen et al. 2023 (FlexiCubes); Focusing for carving, zoom, total variation and the warm-up by
    distances; losses and weights of TRELLIS.
    """
    path = None if checkpoint_file is None else Path(checkpoint_file)
    run = _Run(mesh, config or FitConfig(), torch.device(device))
    if path is not None and resume and path.exists():
        run.restore(path)
    with delayed_interrupt() as interrupted:
        while run.more():
            step = run.step()
            stop = interrupted() and run.more()
            due = checkpoint_every > 0 and step.number % checkpoint_every == 0
            if path is not None and (stop or due):
                run.save(path)
            if on_step is not None:
                on_step(step)
            if stop:
                where = "" if path is None else f"; saved in {path}"
                raise FitInterrupted(f"stopped after step {step.number} of {step.of}{where}")
    return run.result()


class _Run:
    """The state of a fit, and a step of it."""

    def __init__(self, mesh: Mesh, config: FitConfig, device: torch.device) -> None:
        self.config, self.device = config, device
        self.cube, self.normalization = to_cube(mesh)
        self.distance = distance_field(self.cube)
        vertices, faces = self.cube.vertices.to(device), self.cube.faces.to(device)
        self.target = Target(vertices, faces, ops.edge_twins(faces))
        self.generator = Generator().manual_seed(config.seed)
        self.coverage = Coverage(self.cube, self.distance.bvh, _COVERAGE_POINTS, self.generator)
        self.level = 0
        self._begin(start(self.cube, self._resolution, distance=self.distance, device=device))

    @property
    def _resolution(self) -> int:
        return self.config.resolution >> (self.config.levels - 1 - self.level)

    @property
    def _steps(self) -> int:
        return max(1, self.config.steps >> (self.config.levels - 1 - self.level))

    def _begin(self, field: SurfaceField) -> None:
        """A level."""
        self.field = field
        self.optimizer = RowAdam([field.corner_values, field.weights])
        self.wanted = _distances(field, self.distance)
        self.done = self.voxels = self.empty = 0
        self.seconds = self.cpu_seconds = 0.0

    def more(self) -> bool:
        """Whether steps are left, of this level or, which begins then, of the next."""
        if self.done < self._steps:
            return True
        if self.empty == self._steps:
            raise ValueError(
                f"none of {self._steps} pictures at {self._resolution} voxels a side showed a surface of the "
                "field: the mesh may be too small or too thin for that resolution"
            )
        if self.level + 1 == self.config.levels:
            return False
        self.level += 1
        coords = voxels_near(self.distance.bvh, self._resolution).to(self.device)
        self._begin(self.field.refined(coords))
        values = self.field.corner_values
        lost = (values[:, 0] - self.wanted).abs() > self.config.trust
        values[lost] = torch.nn.functional.pad(self.wanted[lost, None], (0, 3))
        return True

    def step(self) -> Step:
        begin, cpu_begin = time.perf_counter(), time.process_time()
        config, field = self.config, self.field
        view = _look(field, self.target, config, self.coverage, self.generator)
        values = field.values(view.part)
        surface = field.surface(view.part, values, training=True)
        num_faces = len(surface.faces)
        loss = values.corners.new_zeros(())
        if num_faces:
            loss = loss + _picture_loss(surface, self.target, view, field.resolution, config)
            loss = loss + _regularization(values, surface, view.part, config)
        if not num_faces or self.done < config.distance_share * self._steps:
            # Without a surface only the distances can bring one back.
            aim = self.wanted[view.part.corner_rows]
            loss = loss + config.distance_weight * losses.sparse_tsdf_loss(values.distances, aim, 3.0)
        if not math.isfinite(value := float(loss.detach())):
            raise FloatingPointError(f"the loss of step {self.done + 1} is {value}")
        gradients = torch.autograd.grad(loss, list(values), materialize_grads=True)
        rate = config.learning_rate * (0.55 + 0.45 * math.cos(math.pi * self.done / self._steps))
        self.optimizer.step([view.part.corner_rows, view.part.rows], gradients, rate)
        self.done += 1
        self.voxels += len(view.part.rows)
        if not num_faces:
            self.empty += 1
            if self.empty == 1:
                warnings.warn(
                    f"step {self.done} of {self._steps} at {self._resolution} voxels a side: nothing of the "
                    "field's surface is in the picture",
                    FitWarning,
                    stacklevel=3,
                )
        self.seconds += time.perf_counter() - begin
        self.cpu_seconds += time.process_time() - cpu_begin
        return Step(field.resolution, self.done, self._steps, value, len(view.part.rows), num_faces)

    def result(self) -> Fit:
        self.optimizer = RowAdam([])  # its moments take more than the field
        return Fit(
            from_cube(self.field.mesh(), self.normalization),
            self.field,
            self.normalization,
            self.field.num_voxels,
            self.voxels / self._steps,
            self.seconds / self._steps,
            self.cpu_seconds / self._steps,
            self.empty,
        )

    # ---- Going on ------------------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        checkpoint.save(
            path,
            {
                "coords": self.field.coords,
                "corner_values": self.field.corner_values,
                "weights": self.field.weights,
                "seen": self.coverage.seen,
                "generator": self.generator.get_state(),
                **self.optimizer.state(),
            },
            config=dataclasses.asdict(self.config),
            mesh=checkpoint.fingerprint(self.cube),
            numbers={name: getattr(self, name) for name in _NUMBERS},
        )

    def restore(self, path: Path) -> None:
        tensors, numbers = checkpoint.load(
            path, config=dataclasses.asdict(self.config), mesh=checkpoint.fingerprint(self.cube)
        )
        self.level = int(numbers["level"])
        self._begin(SurfaceField(tensors["coords"].to(self.device), self._resolution))
        self.field.corner_values.copy_(tensors["corner_values"])
        self.field.weights.copy_(tensors["weights"])
        self.coverage.seen.copy_(tensors["seen"])
        self.generator.set_state(tensors["generator"])
        self.optimizer.restore(tensors)
        for name in _NUMBERS:
            setattr(self, name, numbers[name])


_NUMBERS = ("level", "done", "voxels", "empty", "seconds", "cpu_seconds")


# ---- A step ------------------------------------------------------------------------------------------------


def _look(
    field: SurfaceField, target: Target, config: FitConfig, coverage: Coverage, generator: Generator
) -> View:
    """A camera, what it sees of the target, and the voxels that take part in that."""
    device = field.coords.device
    camera, point = coverage.camera(generator)
    camera = camera.to(device)
    wanted = None
    rows = torch.arange(field.num_voxels, device=device)
    if config.carve:
        if config.zoom:  # the picture will be another one
            depth = _depth(target, camera, config.image_size)
        else:
            wanted = _render(target, camera, config.image_size)
            depth = torch.where(wanted.triangle_id >= 0, wanted.depth, torch.inf)
        _, rows = ops.depth_carve(
            field.coords,
            depth,
            camera.matrix[None],
            resolution=field.resolution,
            threshold=config.carve_threshold / field.resolution,
        )
    if config.zoom and len(rows):
        place = ((point + 0.5) * field.resolution).long().to(device)
        own = (rows == field.rows(place[None].to(field.coords.dtype))).nonzero()[:, 0]
        crop = adaptive_zoom(
            field.coords[rows],
            camera.matrix,
            resolution=field.resolution,
            alpha=config.zoom_share,
            num_range=config.zoom_limits,
            query=int(own[0]) if len(own) else None,
            generator=generator,
        )
        rows, camera = rows[crop.indices], Camera(camera.eye, crop.matrix)
    if wanted is None:
        wanted = _render(target, camera, config.image_size)
    depth = torch.where(wanted.triangle_id >= 0, wanted.depth, torch.inf)
    coverage.count(camera, depth[0], 0.5 / field.resolution)
    return View(camera, field.whole() if len(rows) == field.num_voxels else field.part(rows), wanted)


@torch.no_grad()
def _render(target: Target, camera: Camera, size: int) -> RenderedViews:
    matrices = camera.matrix[None]
    return render_views(target.vertices, target.faces, matrices, size, smooth=_SMOOTH, twins=target.twins)


@torch.no_grad()
def _depth(target: Target, camera: Camera, size: int) -> Tensor:
    """(1, size, size), +inf where nothing is seen."""
    matrix = camera.matrix
    clip = target.vertices @ matrix[:, :3].T + matrix[:, 3]
    seen = ops.rasterize(clip.contiguous(), target.faces, size)
    return torch.where(seen.triangle_id >= 0, seen.w, torch.inf)[None]


def _picture_loss(surface: Surface, target: Target, view: View, resolution: int, config: FitConfig) -> Tensor:
    """How much the surface looks unlike the target."""
    size, wanted = config.image_size, view.wanted
    matrices, twins = view.camera.matrix[None], centered_twins(surface.faces)
    found = render_views(surface.vertices, surface.faces, matrices, size, smooth=_SMOOTH, twins=twins)
    both = (found.triangle_id >= 0) & (wanted.triangle_id >= 0)
    depth = losses.depth_loss(found.depth, wanted.depth, both, beta=0.5 / resolution)
    rays = view.camera.rays(size)
    normals, aims = (losses.toward_camera(seen.normals, rays) for seen in (found, wanted))
    loss = config.mask_weight * losses.mask_loss(found.mask, wanted.mask)
    loss = loss + config.depth_weight * depth
    loss = loss + config.normal_weight * losses.normal_loss(normals, aims, both)
    if config.ssim_weight:
        image, aim = ((seen * 0.5 + 0.5).permute(0, 3, 1, 2) for seen in (normals, aims))
        loss = loss + config.ssim_weight * losses.ssim_loss(image, aim, both, border="zeros")
    return loss


def centered_twins(faces: Tensor) -> Tensor:
    """`ops.edge_twins` of quads that are four triangles around a center each, as they come for training.

    Three times as fast: edges at a center are known, only the quads' own are looked for.

    Args:
        faces: (4 Q, 3): (0, 1, c), (1, 2, c), (2, 3, c) and (3, 0, c) of each quad.
    """
    quads = faces.view(-1, 4, 3)
    outer = ops.edge_twins(quads[:, :, 0])  # (Q, 4): 4 * quad + edge, which is the number of a triangle
    first = torch.arange(0, len(faces), 4, device=faces.device)[:, None]
    turn = torch.arange(4, device=faces.device)
    after, before = first + (turn + 1) % 4, first + (turn + 3) % 4
    return torch.stack([torch.where(outer >= 0, 3 * outer, -1), 3 * after + 2, 3 * before + 1], 2).view(-1, 3)


def _regularization(values: Values, surface: Surface, part: Part, config: FitConfig) -> Tensor:
    loss = config.deviation_weight * losses.deviation_loss(surface.deviation)
    loss = loss + config.weights_weight * losses.weight_loss(values.weights[:, :20])
    if config.tv_weight:
        loss = loss + config.tv_weight * losses.total_variation_loss(values.distances, part.neighbors)
    return loss
