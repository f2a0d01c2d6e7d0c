"""Turning a field into a mesh."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor

from fastshape import ops
from fastshape.geometry.coarse_to_fine import STRIDES, SurfaceSearch, search_and_verify
from fastshape.geometry.field_sampler import ExtractionReport, Outcome, Sampler
from fastshape.geometry.mesh import Mesh

Inside = Literal["negative", "positive"]
Method = Literal["dense", "coarse_to_fine"]
SurfaceKind = Literal["marching_cubes", "dual_marching_cubes"]
SURFACES: tuple[SurfaceKind, ...] = ("marching_cubes", "dual_marching_cubes")

# The value beyond a closed border for dual marching cubes, whose vertices depend on it in their last bits: so
# it is not taken from the values' range, which differs with the points that are asked.
_BEYOND = 1e30


class NoSurfaceError(ValueError):
    """A field that does not cross the level."""


def grid_points(resolution: int, *, bounds: float = 1.0, begin: int = 0, end: int | None = None) -> Tensor:
    """Points (N, 3) float32 of `linspace(-bounds, bounds, resolution)^3` in [x, y, z] order, z fastest.

    Args:
        resolution: R, points along an axis.
        bounds: half side of the cube.
        begin: first flat index.
        end: flat index after the last; None means R^3.
    """
    axis = torch.linspace(-bounds, bounds, resolution)
    flat = torch.arange(begin, resolution**3 if end is None else end)
    return torch.stack(
        [axis[flat // resolution**2], axis[flat // resolution % resolution], axis[flat % resolution]], 1
    )


def extract_surface(
    values: Tensor,
    *,
    level: float = 0.0,
    inside: Inside = "negative",
    bounds: float = 1.0,
    closed: bool = False,
    surface: SurfaceKind = "marching_cubes",
) -> Mesh:
    """Extract the surface where a sampled field crosses a level.

    The sample `values[i, j, k]` belongs to the point `(x_i, y_j, z_k)` of `linspace(-bounds, bounds, R)^3`,
    so a vertex at grid position v lies at `(v / (R - 1) * 2 - 1) * bounds`. Faces look away from the inside:
    a closed surface has a positive volume.

    Args:
        values: (R, R, R) floating point, finite, R >= 2; the work is done on their device.
        level: value on the surface.
        inside: the side of the level that is solid: "negative" (values below it: a signed distance) or
            "positive" (values above it: occupancy, or its logits).
        bounds: half side of the cube.
        closed: everything beyond the cube counts as outside: a solid that reaches its border gets a face
            there. False leaves it open.
        surface: "marching_cubes", vertices on the lattice's edges, triangles in its cells; or
            "dual_marching_cubes", a vertex or a few in each cell and a quad, as two triangles, around each
            edge: as many triangles, better shaped. It ends half a cell before the border where it is left
            open.

    Returns:
        Mesh with float32 vertices.

    Raises:
        NoSurfaceError: no sample on one side of the level; gives the range of the field and what to try.
        ValueError: wrong shape or values that are not finite.

    Two inside samples of an ambiguous cell face are never joined across it by marching cubes. Where a sample
    equals the level, triangles without area are possible.

    Reference: see `ops.marching_cubes` and `ops.dual_marching_cubes`.
    """
    _check_surface(surface)
    if inside not in ("negative", "positive"):
        raise ValueError(f"`inside` must be 'negative' or 'positive', got {inside!r}")
    if values.dim() != 3 or len(set(values.shape)) != 1 or values.shape[0] < 2:
        raise ValueError(f"`values` must have shape (R, R, R) with R >= 2, got {tuple(values.shape)}")
    field = values.detach()
    if field.dtype not in (torch.float32, torch.float64):
        field = field.float()
    level = float(torch.tensor(level, dtype=field.dtype))  # as marching cubes compares with it
    low, high = (float(end) for end in field.aminmax())
    if not (math.isfinite(low) and math.isfinite(high)):  # NaN takes both
        count = int((~torch.isfinite(field)).sum())
        raise ValueError(f"`values` has {count} of {field.numel()} entries that are not finite")
    _require_surface(low, high, level, values.shape[0])
    resolution = values.shape[0]
    sign = 1 if inside == "negative" else -1
    if closed:
        # Far beyond the level, so that the face lies on the border to within a thousandth of a cell.
        beyond = sign * level + 1e3 * (high - low) if surface == "marching_cubes" else _BEYOND
        padded = field.new_full((resolution + 2,) * 3, beyond)
        torch.mul(field, sign, out=padded[1:-1, 1:-1, 1:-1])
        field = padded
    else:
        field = field.contiguous() if sign == 1 else -field.contiguous()
    if surface == "marching_cubes":
        vertices, faces = ops.marching_cubes(field, level=sign * level)
    else:
        vertices, faces = _used(*ops.dual_marching_cubes(field, level=sign * level))
    return _lattice_mesh(vertices, faces, resolution, bounds, closed)


def _dual_surface(search: SurfaceSearch) -> tuple[Tensor, Tensor]:
    """Dual marching cubes of the cells that a search found, in units of its lattice."""
    cells, corners = search.cells()
    points = ops.voxel_corners(cells, resolution=search.size - 1)
    values = corners.new_empty(len(points.coords))
    values[points.cubes.flatten()] = corners.flatten()  # cells agree on the points that they share
    if search.closed:
        values[((points.coords == 0) | (points.coords == search.size - 1)).any(1)] = _BEYOND
    positions = points.coords.to(corners.dtype)
    return _used(
        *ops.dual_marching_cubes(values, cubes=points.cubes, positions=positions, level=search.threshold)
    )


def _used(vertices: Tensor, faces: Tensor) -> tuple[Tensor, Tensor]:
    """Without vertices of no face: those of cells at the border, whose quads would reach beyond it."""
    used = torch.zeros(len(vertices), dtype=torch.bool, device=vertices.device)
    used[faces.flatten()] = True
    if bool(used.all()):
        return vertices, faces
    return vertices[used], (used.cumsum(0) - 1)[faces]


def _require_surface(low: float, high: float, level: float, resolution: int, asked: str = "") -> None:
    """NoSurfaceError unless some values lie below the level and some above."""
    if low < level < high:
        return
    side = "above" if low >= level else "below"
    raise NoSurfaceError(
        f"no surface at level {level:g}: the field lies between {low:.4g} and {high:.4g}, all {side} "
        f"it{asked}. Try a level inside that range, a finer grid than {resolution}^3 for thin parts, "
        "or train longer if the field comes from a model"
    )


def _lattice_mesh(vertices: Tensor, faces: Tensor, resolution: int, bounds: float, closed: bool) -> Mesh:
    """The mesh of vertices (V, 3) in units of the lattice, which begins one point earlier if closed."""
    position = vertices.double() - (1 if closed else 0)
    positions = (position / (resolution - 1) * 2 - 1).clamp(-1, 1) * bounds
    return Mesh(positions.float().cpu(), faces.cpu())


@overload
def extract(
    field: Callable[[Tensor], Tensor],
    resolution: int = ...,
    *,
    level: float = ...,
    inside: Inside = ...,
    bounds: float = ...,
    closed: bool = ...,
    method: Method = ...,
    surface: SurfaceKind = ...,
    stride: int | None = ...,
    verify: int = ...,
    seed: int = ...,
    chunk: int = ...,
    device: torch.device | str = ...,
    progress: Callable[[float], None] | None = ...,
    return_report: Literal[False] = ...,
) -> Mesh: ...


@overload
def extract(
    field: Callable[[Tensor], Tensor],
    resolution: int = ...,
    *,
    level: float = ...,
    inside: Inside = ...,
    bounds: float = ...,
    closed: bool = ...,
    method: Method = ...,
    surface: SurfaceKind = ...,
    stride: int | None = ...,
    verify: int = ...,
    seed: int = ...,
    chunk: int = ...,
    device: torch.device | str = ...,
    progress: Callable[[float], None] | None = ...,
    return_report: Literal[True],
) -> tuple[Mesh, ExtractionReport]: ...


@torch.no_grad()
def extract(
    field: Callable[[Tensor], Tensor],
    resolution: int = 128,
    *,
    level: float = 0.0,
    inside: Inside = "negative",
    bounds: float = 1.0,
    closed: bool = False,
    method: Method = "dense",
    surface: SurfaceKind = "marching_cubes",
    stride: int | None = None,
    verify: int = 0,
    seed: int = 0,
    chunk: int = 65536,
    device: torch.device | str = "cpu",
    progress: Callable[[float], None] | None = None,
    return_report: bool = False,
) -> Mesh | tuple[Mesh, ExtractionReport]:
    """Evaluate a field on a lattice and extract its surface.

    The method "coarse_to_fine" asks the lattice only near the surface: coarse lattices first, finer ones
    where the values there show a surface or may hide one, then along the surface wherever it leads. Where
    it finds all of it the mesh is that of "dense", with the same vertices and faces in the same order, to
    the last bit; the rule stands at `coarse_to_fine.SurfaceSearch`. What it can miss is a part that is
    apart from all others, smaller than the first lattice's cells, in a field that shows nothing around it.
    Memory goes with the surface.

    Args:
        field: maps points (N, 3) float32 on `device` to values (N,) or (N, 1). For meshes that are equal to
            the last bit a point's value must not depend on which others are asked with it.
        resolution: R, points along an axis.
        level, inside, bounds, closed: as in `extract_surface`.
        method: "dense" asks all R^3 points; "coarse_to_fine" those near the surface.
        stride: of the first lattice of "coarse_to_fine": 8, 4 or 2; None takes the largest that leaves 48
            cells along an axis. Where none does (R < 97; closed, 95) every point is asked.
        verify: n, how many skipped cells of "coarse_to_fine" are drawn, uniformly, and looked into. If none
            shows a surface, at 95 % confidence a share less than 3 / n of the skipped cells is missed. If
            some do, the surface is followed from them and n others are drawn; the fourth time every point
            is asked.
        seed: of those draws.
        chunk: points per call of `field`.
        device: where the points go, the field is asked and its surface extracted.
        progress: called with the share that is done, from 0 to 1; of "coarse_to_fine" an estimate. An
            exception that it raises ends the extraction.
        return_report: return an `ExtractionReport` too.

    Returns:
        The mesh, or (mesh, report).

    Raises:
        NoSurfaceError, ValueError: as `extract_surface`, of the points that were asked; or a field of the
            wrong shape; or a wrong argument, which the message names.
    """
    _check(resolution, inside, method, stride, verify, chunk)
    _check_surface(surface)
    start = time.perf_counter()
    level = float(torch.tensor(level, dtype=torch.float32))
    sampler = Sampler(field, torch.linspace(-bounds, bounds, resolution).to(device), chunk, progress)
    search = SurfaceSearch(sampler, level, 1 if inside == "negative" else -1, closed, stride)
    strides: tuple[int, ...] = (1,)
    outcome = Outcome()
    if method == "coarse_to_fine" and search.stride > 1:
        strides, outcome = search.strides, search_and_verify(search, verify, seed)
    elif method == "coarse_to_fine":
        outcome = Outcome(
            fell_back=True, why=f"{resolution} points along an axis are too few for a coarse lattice"
        )
    if strides == (1,) or outcome.fell_back:
        values = _ask_all(sampler, resolution)
        mesh = extract_surface(
            values, level=level, inside=inside, bounds=bounds, closed=closed, surface=surface
        )
        outcome = dataclasses.replace(outcome, bound=0.0)
    else:
        asked = f" at the {sampler.count} points that were asked; method='dense' asks all"
        _require_surface(sampler.low, sampler.high, level, resolution, asked)
        if surface == "marching_cubes":
            cells, corners = search.cells()
            vertices, faces = ops.marching_cubes_sparse(corners, cells, level=search.threshold)
        else:
            vertices, faces = _dual_surface(search)
        mesh = _lattice_mesh(vertices, faces, resolution, bounds, closed)
    if sampler.done < 1:
        sampler.advance(1.0)
    if not return_report:
        return mesh
    report = ExtractionReport(
        method=method,
        queries=sampler.count,
        dense_queries=resolution**3,
        strides=strides,
        seconds=time.perf_counter() - start,
        **dataclasses.asdict(outcome),
    )
    return mesh, report


def _ask_all(sampler: Sampler, resolution: int) -> Tensor:
    """Values (R, R, R) at all points, z fastest."""
    total, device = resolution**3, sampler.axis.device
    values = torch.empty(total, device=device)
    for begin in range(0, total, sampler.chunk):
        end = min(begin + sampler.chunk, total)
        flat = torch.arange(begin, end, device=device)
        values[begin:end] = sampler(
            torch.stack([flat // resolution**2, flat // resolution % resolution, flat % resolution], 1)
        )
        sampler.advance(end / total)
    return values.view(resolution, resolution, resolution)


def _check_surface(surface: str) -> None:
    if surface not in SURFACES:
        raise ValueError(f"`surface` must be 'marching_cubes' or 'dual_marching_cubes', got {surface!r}")


def _check(resolution: int, inside: str, method: str, stride: int | None, verify: int, chunk: int) -> None:
    """ValueError, naming the argument, for what `extract` cannot take."""
    if resolution < 2 or chunk < 1:
        raise ValueError(
            f"`resolution` must be at least 2 and `chunk` at least 1, got {resolution} and {chunk}"
        )
    if inside not in ("negative", "positive"):
        raise ValueError(f"`inside` must be 'negative' or 'positive', got {inside!r}")
    if method not in ("dense", "coarse_to_fine"):
        raise ValueError(f"`method` must be 'dense' or 'coarse_to_fine', got {method!r}")
    if stride is not None and stride not in STRIDES:
        raise ValueError(f"`stride` must be None or one of {STRIDES}, got {stride}")
    if verify < 0:
        raise ValueError(f"`verify` must not be negative, got {verify}")
