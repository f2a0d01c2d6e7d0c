"""What the threshold of depth carving keeps and loses: shares of a shape's voxels, by threshold.

    python scripts/carving_sweep.py -o sweep

writes sweep.csv, a line for each shape, threshold and neighborhood, and sweep.png, where the thresholds
without a neighborhood are drawn. Kept: the share of all voxels that hold a part of the surface. Lost: of the
voxels that hold a point that a pixel shows, the share that was carved all the same. A threshold is given in
voxels; 2 / resolution is half a voxel if the resolution is that of the decoded grid, four times finer.
"""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastshape import geometry, ops
from fastshape.geometry.io import write_atomically
from fastshape.geometry.optional import require
from fastshape.geometry.views import sphere_directions

SHAPES = ("torus", "knot", "plate", "gear", "half_pipe", "closed_shells", "csg-2", "blobs")
THRESHOLDS = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 8.0)
MARKED = {0.5: "2 / decoded", 2.0: "2 / latent"}
HALF_SIDE = 0.475  # of a shape, in the cube of the voxels
DEGREES = 40.0


# ---- Measuring ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One shape with one threshold; means over the views.

    Attributes:
        shape: its name in `geometry.shapes`.
        voxels: that hold a part of the surface.
        threshold: in voxels.
        neighborhood: steps around what is kept that are kept too.
        kept: share of the voxels.
        lost: share of the visible voxels.
    """

    shape: str
    voxels: int
    threshold: float
    neighborhood: int
    kept: float
    lost: float


@dataclass(frozen=True)
class View:
    matrix: Tensor  # (4, 4) world to clip
    depth: Tensor  # (H, W)
    shown: Tensor  # (M, 3) points of the surface, one for each pixel that has one


def look(mesh: geometry.Mesh, bvh: ops.Bvh, outward: Tensor, size: int) -> View:
    """A camera at twice the cube's side, in the direction `outward`."""
    axis = torch.eye(3)[outward.abs().argmin()]
    right = torch.nn.functional.normalize(torch.linalg.cross(axis, outward), dim=0)
    basis = torch.stack([right, torch.linalg.cross(outward, right), outward])
    distance, k = 2.0, 1 / math.tan(math.radians(DEGREES) / 2)
    to_camera = torch.eye(4)
    to_camera[:3, :3] = basis
    to_camera[2, 3] = -distance
    projection = torch.tensor([[k, 0, 0, 0], [0, k, 0, 0], [0, 0, -1.2, -0.2], [0, 0, -1, 0]])
    pixel = (torch.arange(size) + 0.5) * (2 / size) - 1
    y, x = torch.meshgrid(-pixel, pixel, indexing="ij")
    rays = torch.stack([x / k, y / k, torch.full_like(x, -1)], -1).reshape(-1, 3)  # of depth 1
    directions = torch.nn.functional.normalize(rays @ basis, dim=1)
    eye = distance * outward
    hits = ops.cast_rays(eye.expand_as(directions).contiguous(), directions, bvh)
    found = hits.face >= 0
    points = eye + hits.t[:, None] * directions
    depth = torch.where(found, distance - points @ outward, torch.inf)
    return View(projection @ to_camera, depth.reshape(size, size), points[found])


def voxels_of(points: Tensor, resolution: int) -> Tensor:
    """Flat indices, ascending, each once."""
    x, y, z = ((points + 0.5) * resolution).long().clamp(0, resolution - 1).T
    return ((x * resolution + y) * resolution + z).unique()


def measure(
    name: str,
    *,
    resolution: int = 128,
    num_views: int = 6,
    size: int = 518,
    thresholds: Sequence[float] = THRESHOLDS,
    samples: int = 4_000_000,
) -> list[Line]:
    """All lines of a shape."""
    made = geometry.shapes.make(name)
    mesh = geometry.Mesh(made.vertices * HALF_SIDE, made.faces)
    bvh = ops.build_bvh(mesh.vertices, mesh.faces)
    views = [look(mesh, bvh, outward, size) for outward in sphere_directions(num_views)]
    points = geometry.sample_surface(mesh, samples, torch.Generator().manual_seed(0)).points
    keys = voxels_of(torch.cat([points, *(view.shown for view in views)]), resolution)
    parts = [keys // resolution**2, keys // resolution % resolution, keys % resolution]
    coords = torch.stack(parts, 1).int().contiguous()
    visible = [torch.isin(keys, voxels_of(view.shown, resolution)) for view in views]
    lines = []
    for neighborhood in (0, 1):
        for threshold in thresholds:
            kept = lost = 0.0
            for view, seen in zip(views, visible, strict=True):
                mask, _ = ops.depth_carve(
                    coords,
                    view.depth[None],
                    view.matrix[None],
                    resolution=resolution,
                    threshold=threshold / resolution,
                    neighborhood=neighborhood,
                )
                kept += float(mask.double().mean()) / num_views
                lost += float((~mask[seen]).double().mean()) / num_views
            lines.append(Line(name, len(coords), threshold, neighborhood, kept, lost))
    return lines


# ---- Writing -----------------------------------------------------------------------------------------------


def table(lines: Sequence[Line]) -> bytes:
    out = io.StringIO()
    writer = csv.DictWriter(out, list(asdict(lines[0])), lineterminator="\n")
    writer.writeheader()
    writer.writerows(
        {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in asdict(line).items()} for line in lines
    )
    return out.getvalue().encode()


INK, FAINT, MARK = (40, 44, 52), (222, 224, 228), (150, 154, 162)
COLORS = (
    (31, 96, 168),
    (214, 108, 28),
    (46, 134, 86),
    (176, 48, 64),
    (122, 84, 168),
    (120, 90, 60),
    (202, 84, 152),
    (110, 118, 130),
)
SCALE, WIDTH, HEIGHT = 2, 460, 380  # drawn larger and reduced; of a panel
LEFT, TOP, RIGHT, BOTTOM = 52, 66, 24, 56


def picture(lines: Sequence[Line]) -> bytes:
    """Both shares over the thresholds, without a neighborhood, as a PNG."""
    image_module = require("PIL.Image", "image", "drawing a chart")
    draw_module = require("PIL.ImageDraw", "image", "drawing a chart")
    font = require("PIL.ImageFont", "image", "drawing a chart").load_default(12 * SCALE)
    shown = [line for line in lines if not line.neighborhood]
    names = list(dict.fromkeys(line.shape for line in shown))
    thresholds = sorted({line.threshold for line in shown})
    image = image_module.new("RGB", (2 * WIDTH * SCALE, (HEIGHT + 30) * SCALE), (255, 255, 255))
    pen = draw_module.Draw(image)

    def text(x: float, y: float, words: str, anchor: str, color: Any = INK) -> None:
        pen.text((x * SCALE, y * SCALE), words, fill=color, font=font, anchor=anchor)

    def stroke(points: Sequence[tuple[float, float]], color: Any, width: int = 1) -> None:
        pen.line([(x * SCALE, y * SCALE) for x, y in points], fill=color, width=width * SCALE)

    bottom, top = HEIGHT - BOTTOM, TOP
    for number, (title, field) in enumerate(
        (("kept, of all voxels", "kept"), ("lost, of the voxels that a pixel shows", "lost"))
    ):
        left, right = number * WIDTH + LEFT, (number + 1) * WIDTH - RIGHT
        highest = max(getattr(line, field) for line in shown)
        step = next(s for s in (0.01, 0.02, 0.05, 0.1, 0.2, 1.0) if highest / s <= 6)
        count = max(1, math.ceil(highest / step - 1e-9))

        def across(threshold: float, left: float = left, right: float = right) -> float:
            return left + (right - left) * thresholds.index(threshold) / max(len(thresholds) - 1, 1)

        def up(value: float, scale: float = step * count) -> float:
            return bottom - (bottom - top) * value / scale

        text(left, 20, title, "lm")
        for mark in range(count + 1):
            stroke([(left, up(mark * step)), (right, up(mark * step))], FAINT)
            text(left - 6, up(mark * step), f"{mark * step:.4g}", "rm")
        for threshold in thresholds:
            text(across(threshold), bottom + 8, f"{threshold:g}", "mt")
            if threshold in MARKED:
                stroke([(across(threshold), top - 8), (across(threshold), bottom)], MARK)
                text(across(threshold), top - 16, MARKED[threshold], "mm", MARK)
        text((left + right) / 2, bottom + 36, "threshold in voxels", "mm")
        for place, name in enumerate(names):
            ends = [(across(x.threshold), up(getattr(x, field))) for x in shown if x.shape == name]
            for pair in pairwise(ends):
                stroke(pair, COLORS[place % len(COLORS)], 2)
    for place, name in enumerate(names):
        x = LEFT + place * (2 * WIDTH - LEFT - RIGHT) / len(names)
        stroke([(x, HEIGHT + 8), (x + 16, HEIGHT + 8)], COLORS[place % len(COLORS)], 3)
        text(x + 21, HEIGHT + 8, name, "lm")
    buffer = io.BytesIO()
    small = (image.width // SCALE, image.height // SCALE)
    image.resize(small, image_module.LANCZOS).save(buffer, format="PNG", optimize=True)
    return buffer.getvalue()


# ---- Command -----------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("shapes", nargs="*", default=SHAPES, help=f"default: {' '.join(SHAPES)}")
    p.add_argument("-o", "--output", type=Path, required=True, help="both files, without or with an ending")
    p.add_argument("--resolution", type=int, default=128, help="voxels along an axis; default: 128")
    p.add_argument("--views", type=int, default=6, help="of each shape; default: 6")
    p.add_argument("--size", type=int, default=518, help="pixels along a side; default: 518")
    p.add_argument("--samples", type=int, default=4_000_000, help="points that find the voxels")
    options = p.parse_args(arguments)
    lines: list[Line] = []
    for name in options.shapes:
        lines += measure(
            name,
            resolution=options.resolution,
            num_views=options.views,
            size=options.size,
            samples=options.samples,
        )
        at = {line.threshold: line for line in lines if line.shape == name and not line.neighborhood}
        print(name, *(f"{MARKED[t]}: kept {at[t].kept:.3f}, lost {at[t].lost:.4f};" for t in MARKED))
    write_atomically(options.output.with_suffix(".csv"), table(lines))
    write_atomically(options.output.with_suffix(".png"), picture(lines))


if __name__ == "__main__":
    main()
