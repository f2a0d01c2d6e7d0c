"""Pictures of meshes: no window, no GPU, the same picture everywhere."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fastshape.geometry.io import write_atomically
from fastshape.geometry.mesh import Mesh
from fastshape.geometry.optional import require
from fastshape.ops import build_bvh, cast_rays, rasterize

View = tuple[float, float]
VIEWS: tuple[View, ...] = ((35.0, 25.0), (215.0, 25.0))

_BACKGROUND = (0.955, 0.875)  # top and bottom, as shown
_FRONT = (0.66, 0.74, 0.84)
_BACK = (0.80, 0.50, 0.36)
_CREASE = math.cos(math.radians(45))
_STRIP = 1 << 22  # pixels that are drawn at a time

Trace = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
Paint = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Camera:
    """A pinhole that looks at `target`; picture coordinates run over [-1, 1], `extent` is their half side."""

    eye: Tensor
    right: Tensor
    up: Tensor
    forward: Tensor
    extent: float

    def rays(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        """Origins and unit directions (N, 3) through picture positions, y downward."""
        plane = x[:, None] * self.right - y[:, None] * self.up
        directions = torch.nn.functional.normalize(self.forward + plane * self.extent, dim=1)
        return self.eye.expand_as(directions).contiguous(), directions

    def clip(self, points: Tensor) -> Tensor:
        """Clip coordinates (N, 4) float32 of points (N, 3); w is the distance along `forward`."""
        offset = points.double() - self.eye.double()
        x, y, w = (offset @ axis.double() for axis in (self.right, self.up, self.forward))
        far = 1.01 * float(w.max())
        near = max(0.99 * float(w.min()), 1e-3 * far)
        z = (w * (far + near) - 2 * far * near) / (far - near)
        return torch.stack([x / self.extent, y / self.extent, z, w], 1).float()


def look_at(mesh: Mesh, views: Sequence[View], *, up: Literal["y", "z"] = "z") -> list[Camera]:
    """Cameras around a mesh, all at one scale, so that it fills the picture from every view.

    Args:
        mesh: what has to fit.
        views: azimuth and elevation in degrees; azimuth 0 looks along the axis after `up`'s, turning left.
        up: the vertical axis of the mesh.
    """
    if up not in ("y", "z"):
        raise ValueError(f"`up` must be 'y' or 'z', got {up!r}")
    axes = {"z": (0, 1, 2), "y": (2, 0, 1)}[up]
    points = mesh.used_vertices.double()
    center = mesh.bounds.double().mean(0)
    radius = float((points - center).norm(dim=1).max())
    vertical = torch.eye(3, dtype=torch.float64)[axes[2]]
    frames, extent = [], 0.0
    for azimuth, elevation in views:
        a, e = math.radians(azimuth), math.radians(max(min(elevation, 89.9), -89.9))
        outward = torch.zeros(3, dtype=torch.float64)
        outward[axes[0]], outward[axes[1]] = math.cos(e) * math.sin(a), -math.cos(e) * math.cos(a)
        outward[axes[2]] = math.sin(e)
        right = torch.nn.functional.normalize(torch.linalg.cross(-outward, vertical), dim=0)
        top = torch.linalg.cross(right, -outward)
        # Slide sideways so that the projection, not the box, is in the middle.
        eye = center + 4.5 * radius * outward
        for _ in range(2):
            offset = points - eye
            plane = torch.stack([offset @ right, offset @ top], 1) / (offset @ -outward)[:, None]
            middle = (plane.amin(0) + plane.amax(0)) / 2
            eye = eye + 4.5 * radius * (middle[0] * right + middle[1] * top)
        offset = points - eye
        plane = torch.stack([offset @ right, offset @ top], 1) / (offset @ -outward)[:, None]
        extent = max(extent, float(plane.abs().max()))
        frames.append((eye.float(), right.float(), top.float(), -outward.float()))
    return [Camera(eye, right, top, forward, extent * 1.06) for eye, right, top, forward in frames]


def render(
    mesh: Mesh,
    *,
    size: int = 512,
    views: Sequence[View] = VIEWS,
    up: Literal["y", "z"] = "z",
    frame: Mesh | None = None,
    supersample: int = 4,
    occlusion: int = 16,
    color: tuple[float, float, float] | Paint = _FRONT,
) -> Tensor:
    """Draw a mesh from several views, side by side.

    Lambert shading under two lights that move with the camera, darkened where the surroundings are covered
    (ambient occlusion), smooth across edges flatter than 45 degrees. Back faces are orange: they show where a
    surface is open or turned over. Pixels at edges are averaged over supersample^2 places.

    Args:
        mesh: what to draw.
        size: height and width of one view in pixels.
        views: (azimuth, elevation) in degrees.
        up: the vertical axis.
        frame: the mesh that the cameras are fitted to, e.g. the input beside its reconstruction; None is
            `mesh`.
        supersample: side of the grid of places in a pixel at an edge; 1 turns it off.
        occlusion: rays per pixel that look for covering geometry; 0 turns it off.
        color: of front faces, in [0, 1]; or a function from points of the surface (N, 3) float32, in the
            frame of `mesh`, to colors (N, 3), for both sides: a map of errors, say.

    Returns:
        uint8 (size, len(views) * size, 3).

    Raises:
        ValueError: no faces, no views, or a size below 1.
    """
    if not mesh.num_faces:
        raise ValueError("a mesh without faces cannot be drawn")
    if size < 1 or not views or supersample < 1 or occlusion < 0:
        raise ValueError(
            "`size`, `supersample` and the number of `views` must be at least 1 and `occlusion` at least 0, "
            f"got {size}, {supersample}, {len(views)} and {occlusion}"
        )
    mesh = mesh.compact()  # the camera's range of depths is that of the vertices
    frame = mesh if frame is None else frame
    # One frame of float32 for everything: a mesh of millimeters or far from the origin draws the same.
    center = frame.bounds.double().mean(0)
    scale = 1 / float((frame.bounds[1] - frame.bounds[0]).max())
    mesh = Mesh(((mesh.vertices.double() - center) * scale).float(), mesh.faces)
    frame = Mesh(((frame.vertices.double() - center) * scale).float(), frame.faces)
    if callable(color):
        paint = color

        def base(points: Tensor, facing: Tensor) -> Tensor:
            return paint((points.double() / scale + center).float())

    else:
        front, back = torch.tensor(color), torch.tensor(_BACK)

        def base(points: Tensor, facing: Tensor) -> Tensor:
            return torch.where(facing[:, None], front, back)

    model = _Model(mesh, mesh.face_normals, _corner_normals(mesh), base)
    bvh = build_bvh(mesh.vertices, mesh.faces) if occlusion else None

    def trace(origins: Tensor, directions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        assert bvh is not None
        return cast_rays(origins, directions, bvh)

    pictures = []
    for camera in look_at(frame, views, up=up):
        pictures.append(_draw(model, trace, camera, size, supersample, occlusion))
    return torch.cat(pictures, 1)


@dataclass(frozen=True)
class _Model:
    """What shading needs to know of a mesh: normals of faces (F, 3) and of their corners (F, 3, 3), and the
    colors (N, 3) of points (N, 3), of which the second argument says whether their front is seen."""

    mesh: Mesh
    face_normals: Tensor
    corner_normals: Tensor
    color: Callable[[Tensor, Tensor], Tensor]


def _corner_normals(mesh: Mesh) -> Tensor:
    """Normals (F, 3, 3): at each corner, smoothed over the faces there within 45 degrees of its own."""
    corner_vertex = mesh.faces.reshape(-1)
    order = corner_vertex.argsort(stable=True)
    valence = corner_vertex.bincount(minlength=mesh.num_vertices)
    start = valence.cumsum(0) - valence
    # Corners where very many faces meet (the middle of a fan) keep their face's normal.
    count = torch.where(valence > 64, 0, valence)[corner_vertex]
    corner = torch.arange(len(corner_vertex)).repeat_interleave(count)
    rank = torch.arange(len(corner)) - (count.cumsum(0) - count)[corner]
    other = order[start[corner_vertex[corner]] + rank]
    normals = mesh.face_normals
    near = (normals[corner // 3] * normals[other // 3]).sum(1) > _CREASE
    corner, other = corner[near], other[near]
    # Weighted by the angle at the corner: how a face is cut into triangles then makes no difference.
    sides = mesh.triangles[:, [1, 2, 0]] - mesh.triangles
    sides = torch.nn.functional.normalize(sides, dim=2)
    angles = torch.acos((-(sides * sides[:, [2, 0, 1]]).sum(2)).clamp(-1, 1)).reshape(-1, 1)
    total = normals.repeat_interleave(3, 0) * 1e-3
    total.index_add_(0, corner, normals[other // 3] * angles[other])
    return torch.nn.functional.normalize(total, dim=1).reshape(-1, 3, 3)


def _see(
    clip: Tensor, faces: Tensor, size: int, first_row: int, last_row: int, places: int
) -> tuple[Tensor, Tensor]:
    """The face (N,) and its weights (N, 3) at places x places centers of each pixel of some rows."""
    # The rows' part of the picture, stretched over all of clip space.
    top, bottom = 1 - 2 * first_row / size, 1 - 2 * last_row / size
    x, y, z, w = clip.double().unbind(1)
    y = (y - (top + bottom) / 2 * w) * (2 / (top - bottom))
    strip = torch.stack([x, y, z, w], 1).float()
    rows = last_row - first_row
    seen = rasterize(strip, faces, (rows * places, size * places))
    # From rows of the fine grid to pixels with their places together.
    face = seen.triangle_id.view(rows, places, size, places).transpose(1, 2).reshape(-1)
    weights = seen.barycentrics.view(rows, places, size, places, 3).transpose(1, 2).reshape(-1, 3)
    return face, weights


def _draw(model: _Model, trace: Trace, camera: Camera, size: int, supersample: int, occlusion: int) -> Tensor:
    steps = (torch.arange(size) + 0.5) / size * 2 - 1
    y, x = (grid.reshape(-1) for grid in torch.meshgrid(steps, steps, indexing="ij"))
    clip = camera.clip(model.mesh.vertices)
    seen = _see(clip, model.mesh.faces, size, 0, size, 1)
    picture, open_sky = _shade(model, trace, camera, x, y, *seen, occlusion)
    if supersample > 1:
        grid = picture.reshape(size, size, 3)
        rough = torch.zeros(size, size, dtype=torch.bool)
        for axis in (0, 1):
            jump = (grid.diff(dim=axis).abs() > 0.03).any(2)
            rough.narrow(axis, 0, size - 1).logical_or_(jump)
            rough.narrow(axis, 1, size - 1).logical_or_(jump)
        open_sky = torch.nn.functional.max_pool2d(open_sky.reshape(1, size, size), 3, 1, 1).reshape(-1)
        inner = ((torch.arange(supersample) + 0.5) / supersample - 0.5) * (2 / size)
        dy, dx = (shift.reshape(-1) for shift in torch.meshgrid(inner, inner, indexing="ij"))
        rows = max(1, _STRIP // (size * supersample**2))
        for first in range(0, size, rows):
            last = min(size, first + rows)
            pixels = rough[first:last].reshape(-1).nonzero()[:, 0]
            if not len(pixels):
                continue
            face, weights = _see(clip, model.mesh.faces, size, first, last, supersample)
            face, weights = face.view(-1, len(dx))[pixels], weights.view(-1, len(dx), 3)[pixels]
            part = pixels + first * size
            fine_x, fine_y = ((at[part, None] + shift).reshape(-1) for at, shift in ((x, dx), (y, dy)))
            sky = open_sky[part].repeat_interleave(len(dx))
            fine, _ = _shade(model, trace, camera, fine_x, fine_y, face.view(-1), weights.view(-1, 3), sky)
            # Averaged as light, shown as numbers: edges look even on both sides.
            picture[part] = fine.pow(2.2).reshape(len(part), -1, 3).mean(1).pow(1 / 2.2)
    return (picture.clamp(0, 1) * 255 + 0.5).to(torch.uint8).reshape(size, size, 3)


def _shade(
    model: _Model,
    trace: Trace,
    camera: Camera,
    x: Tensor,
    y: Tensor,
    face: Tensor,
    weights: Tensor,
    occlusion: int | Tensor,
) -> tuple[Tensor, Tensor]:
    """Colors (N, 3) in [0, 1] at picture positions, and the share of open sky (N,), 0 where nothing is seen.

    `face` (N,) is what is seen, -1 for nothing, and `weights` (N, 3) where on it. `occlusion` is a number of
    rays, or the share of open sky where it is known already.
    """
    top, bottom = _BACKGROUND
    picture = (top + (bottom - top) * (y[:, None] + 1) / 2).expand(-1, 3).clone()
    hit = face >= 0
    open_sky = torch.zeros(len(x))
    if not bool(hit.any()):
        return picture, open_sky
    face, barycentric = face[hit], weights[hit]
    directions = camera.rays(x[hit], y[hit])[1]
    points = (model.mesh.vertices[model.mesh.faces[face]] * barycentric[:, :, None]).sum(1)

    flat = model.face_normals[face]
    normals = (model.corner_normals[face] * barycentric[:, :, None]).sum(1)
    normals = torch.nn.functional.normalize(normals, dim=1)
    facing = (flat * directions).sum(1) < 0
    sign = torch.where(facing, 1.0, -1.0)[:, None]
    flat, normals = flat * sign, normals * sign

    base = model.color(points, facing).pow(2.2)
    key = torch.nn.functional.normalize(
        -0.55 * camera.right + 0.75 * camera.up - 0.65 * camera.forward, dim=0
    )
    fill = torch.nn.functional.normalize(0.9 * camera.right + 0.05 * camera.up - 0.5 * camera.forward, dim=0)
    light = 1.0 * (normals @ key).clamp(min=0) + 0.22 * (normals @ fill).clamp(min=0)
    sky = 0.5 + 0.5 * (normals @ camera.up)
    ambient = 0.13 + 0.30 * sky
    if isinstance(occlusion, Tensor):
        seen = occlusion[hit]
    else:
        seen = _open_sky(trace, points, flat, normals, occlusion) if occlusion else torch.ones_like(sky)
    open_sky[hit] = seen
    shaded = base * (light * (0.4 + 0.6 * seen) + ambient * seen)[:, None]
    half = torch.nn.functional.normalize(key - directions, dim=1)
    gloss = 0.06 * (normals * half).sum(1).clamp(min=0).pow(24) * seen
    picture[hit] = (shaded + gloss[:, None]).clamp(min=0).pow(1 / 2.2)
    return picture, open_sky


def _open_sky(trace: Trace, points: Tensor, flat: Tensor, normals: Tensor, rays: int) -> Tensor:
    """The cosine-weighted share of directions (N,) that leave a point freely, over a fixed set of directions.

    All points use the same directions, so that neighbors differ by geometry only and no noise appears.
    """
    index = torch.arange(2 * rays) + 0.5
    polar = torch.acos(1 - index / rays)
    turn = math.pi * (1 + 5**0.5) * index
    sphere = torch.stack([turn.cos() * polar.sin(), turn.sin() * polar.sin(), polar.cos()], 1)
    free, total = torch.zeros(len(points)), torch.zeros(len(points))
    start = points + 2e-4 * flat
    for direction in sphere:
        weight = (normals @ direction).clamp(min=0)
        above = ((flat @ direction > 0.02) & (weight > 0)).nonzero()[:, 0]
        if not len(above):
            continue
        distance, face, _ = trace(start[above], direction.expand(len(above), 3).contiguous())
        # Far walls cover less than near ones: inner sides of bowls stay readable.
        cover = torch.where(face >= 0, torch.exp(-4 * distance.float()), 0.0)
        free[above] += weight[above] * (1 - cover)
        total[above] += weight[above]
    return torch.where(total > 0, free / total.clamp(min=1e-6), torch.ones_like(free))


def save_png(image: Tensor, path: str | os.PathLike[str]) -> None:
    """Write a uint8 image (H, W, 3) as PNG, atomically.

    Raises:
        MeshError: the file cannot be written.
        ImportError: Pillow is not installed (extra `image`).
    """
    pillow = require("PIL.Image", "image", "writing a picture")
    _save(pillow.fromarray(image.numpy()), path)


def _save(picture: Any, path: str | os.PathLike[str]) -> None:
    buffer = io.BytesIO()
    picture.save(buffer, format="PNG", optimize=True)
    write_atomically(Path(path), buffer.getvalue())


def compare_picture(
    meshes: Sequence[tuple[str, Mesh]],
    path: str | os.PathLike[str] | None = None,
    *,
    size: int = 480,
    views: Sequence[View] = VIEWS,
    up: Literal["y", "z"] = "z",
    title: str = "",
    occlusion: int = 16,
) -> Tensor:
    """Draw meshes side by side through the same cameras, one column each, one row per view.

    The cameras fit the first mesh. The first line of a label is set large, further lines small.

    Args:
        meshes: label and mesh of each column.
        path: where to write a PNG; None only returns it.
        size: height and width of one view in pixels.
        views, up, occlusion: as in `render`.
        title: a line above everything.

    Returns:
        uint8 (H, W, 3).
    """
    if not meshes:
        raise ValueError("`meshes` is empty")
    pillow = require("PIL.Image", "image", "drawing a comparison")
    draw_module = require("PIL.ImageDraw", "image", "drawing a comparison")
    font_module = require("PIL.ImageFont", "image", "drawing a comparison")
    large, small = (font_module.load_default(round(size * share)) for share in (0.046, 0.036))
    margin, gap = round(size * 0.03), round(size * 0.02)
    line = round(size * 0.058)
    head = margin + (round(line * 1.4) if title else 0)
    caption = line * max(len(label.split("\n")) for label, _ in meshes) + margin
    width = 2 * margin + len(meshes) * size + (len(meshes) - 1) * gap
    height = head + len(views) * size + (len(views) - 1) * gap + caption + margin // 2
    sheet = pillow.new("RGB", (width, height), (255, 255, 255))
    pen = draw_module.Draw(sheet)
    if title:
        pen.text((margin, margin * 0.8), title, fill=(20, 20, 20), font=large)
    for column, (label, mesh) in enumerate(meshes):
        left = margin + column * (size + gap)
        image = render(mesh, size=size, views=views, up=up, frame=meshes[0][1], occlusion=occlusion)
        for row, part in enumerate(image.split(size, 1)):
            sheet.paste(pillow.fromarray(part.contiguous().numpy()), (left, head + row * (size + gap)))
        top = head + len(views) * size + (len(views) - 1) * gap + margin // 2
        for number, text in enumerate(label.split("\n")):
            ink = (20, 20, 20) if number == 0 else (90, 90, 90)
            pen.text((left, top + number * line), text, fill=ink, font=large if number == 0 else small)
    if path is not None:
        _save(sheet, path)
    return torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8).reshape(height, width, 3)
