"""A camera that is turned to part of the voxels that it sees."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

_SMALLEST_BOX = 1e-3  # side of the box in clip coordinates that is still spread over the picture


class Zoom(NamedTuple):
    """What :func:`adaptive_zoom` chose."""

    indices: Tensor  # (K,) int64, ascending: the rows of the voxels in the crop
    matrix: Tensor  # (4, 4), world to clip, of the narrowed camera
    box: Tensor  # (4,): x_min, x_max, y_min, y_max of the crop's centers, in the clip coordinates before


def zoom_matrix(
    matrix: Tensor, box: Tensor, *, scale: float = 1.1, keep_aspect: bool = False, paper_eq4: bool = False
) -> Tensor:
    """The camera that sees a box of another's picture, scaled by `scale` about the box's middle.

    Of column vectors, ``M matrix`` with x' = 2 s (x - x_c) / width, y' likewise: the box becomes [-s, s]^2.
    Depth, near and far stay as they are, and so does the last row, which is the linear depth of a perspective
    camera.

    Args:
        matrix: (4, 4) float32 or float64, world to clip.
        box: (4,): x_min, x_max, y_min, y_max, in clip coordinates after the division; a side shorter than
            0.001 counts as that.
        scale: s, positive; above 1 the border of the box, where a cropped mesh is jagged, lies beside the
            picture.
        keep_aspect: both sides are the longer one: nothing is stretched.
        paper_eq4: the formula as printed, of which only the y of the second row is put right: its offset
            lacks s, so that the box's middle lands at 2 (s - 1) x_c / width.

    Returns:
        (4, 4), dtype of ``matrix``.

    Reference: Focusing, equation 4.
    """
    if matrix.shape != (4, 4) or not matrix.is_floating_point():
        raise ValueError(
            f"`matrix` must be floating point of shape (4, 4), got {matrix.dtype} {tuple(matrix.shape)}"
        )
    if box.shape != (4,):
        raise ValueError(f"`box` must have shape (4,), got {tuple(box.shape)}")
    if not scale > 0:
        raise ValueError(f"`scale` must be positive, got {scale}")
    low, high = box[0::2], box[1::2]
    side = (high - low).clamp_min(_SMALLEST_BOX)
    if keep_aspect:
        side = side.max().expand(2)
    narrow = torch.eye(4, dtype=matrix.dtype, device=matrix.device)
    narrow[0, 0], narrow[1, 1] = 2 * scale / side
    narrow[:2, 3] = -(1.0 if paper_eq4 else scale) * (low + high) / side
    return narrow @ matrix


def adaptive_zoom(
    coords: Tensor,
    matrix: Tensor,
    *,
    resolution: int,
    alpha: float | tuple[float, float] = (0.1, 0.3),
    num_range: tuple[int, int] = (8192, 15360),
    scale: float = 1.1,
    query: int | None = None,
    candidates: Tensor | None = None,
    generator: torch.Generator | None = None,
    bounds: tuple[float, float] = (-0.5, 0.5),
    keep_aspect: bool = False,
    paper_eq4: bool = False,
) -> Zoom:
    """A part of the voxels that lies together in a picture, and the camera whose picture it fills.

    A query voxel is drawn. The crop is the K voxels whose centers are nearest to its center in the picture
    (Euclidean in clip coordinates after the division; of equal distances the lowest row first), itself among
    them: K = alpha N, not below and not above ``num_range``, and not above N, the number of voxels before the
    camera. With the new matrix the mesh that is decoded from the crop and the true one are rendered where the
    crop is whole.

    Args:
        coords: (N, 3) int32, what is left of a shape's voxels after :func:`fastshape.ops.depth_carve`.
        matrix: (4, 4) float32 or float64, world to clip, of column vectors.
        resolution: voxels along an axis.
        alpha: share of the voxels, in (0, 1]; a pair is a range from which it is drawn uniformly.
        num_range: least and largest K.
        scale: see :func:`zoom_matrix`.
        query: row of the query voxel; None draws one.
        candidates: (M,) int64, rows among which the query is drawn; None is all voxels before the camera.
            What the carving keeps without a neighborhood is seen, what it keeps beside that may not be.
        generator: draws, on the CPU.
        bounds: lowest and highest coordinate of the cube of voxels.
        keep_aspect: see :func:`zoom_matrix`.
        paper_eq4: see :func:`zoom_matrix`.

    Returns:
        :class:`Zoom`: ``indices``, ``matrix``, ``box``.

    Raises:
        TypeError: `coords` are not int32.
        ValueError: wrong shape, no voxel before the camera, a query that is not, a number out of range.

    Gradient: none through the choice.

    Device: CPU and CUDA; syncs. The distance of the K-th is selected, not sorted for; the same crop whatever
    the number of threads.

    Reference: Focusing, section 3.3 and equation 4. What N is, the query and the distance are not told there.
    """
    if coords.dtype != torch.int32:
        raise TypeError(f"`coords` must be int32, got {str(coords.dtype).removeprefix('torch.')}")
    if coords.ndim != 2 or coords.shape[1] != 3:
        raise ValueError(f"`coords` must have shape (N, 3), got {tuple(coords.shape)}")
    if matrix.shape != (4, 4) or not matrix.is_floating_point():
        raise ValueError(
            f"`matrix` must be floating point of shape (4, 4), got {matrix.dtype} {tuple(matrix.shape)}"
        )
    least, most = num_range
    if not 1 <= least <= most:
        raise ValueError(f"`num_range` must ascend from at least 1, got {tuple(num_range)}")
    lowest, highest = (alpha, alpha) if isinstance(alpha, (int, float)) else alpha
    if not 0 < lowest <= highest <= 1:
        raise ValueError(f"`alpha` must lie in (0, 1], a pair must ascend, got {alpha}")

    x, y, before = _project(coords, matrix, resolution, bounds)
    pool = before.nonzero()[:, 0]
    count = len(pool)
    if not count:
        raise ValueError(f"none of {len(coords)} voxels is before the camera: there is nothing to zoom to")
    share = lowest + (highest - lowest) * float(torch.rand((), generator=generator, dtype=torch.float64))
    number = min(max(math.floor(share * count), least), most, count)
    if query is None:
        if candidates is not None:
            pool = candidates[before[candidates]]
            if not len(pool):
                raise ValueError("none of the `candidates` is before the camera")
        query = int(pool[int(torch.randint(len(pool), (), generator=generator))])
    elif not 0 <= query < len(coords) or not bool(before[query]):
        raise ValueError(f"`query` must be the row of a voxel before the camera, got {query}")

    distance = (x - x[query]).square() + (y - y[query]).square()
    indices = _nearest(torch.where(before, distance, torch.inf), number)
    box = torch.stack([*x[indices].aminmax(), *y[indices].aminmax()])
    new = zoom_matrix(matrix, box, scale=scale, keep_aspect=keep_aspect, paper_eq4=paper_eq4)
    return Zoom(indices, new, box)


def _project(
    coords: Tensor, matrix: Tensor, resolution: int, bounds: tuple[float, float]
) -> tuple[Tensor, Tensor, Tensor]:
    """x and y of the centers after the division, and which of them are before the camera."""
    low, high = bounds
    px, py, pz = (coords.T.contiguous().to(matrix.dtype) + 0.5) * ((high - low) / resolution) + low
    # Not a matrix product, whose rounding differs between devices.
    rows = [matrix[k, 0] * px + matrix[k, 1] * py + matrix[k, 2] * pz + matrix[k, 3] for k in (0, 1, 3)]
    return rows[0] / rows[2], rows[1] / rows[2], rows[2] > 0


def _nearest(distance: Tensor, number: int) -> Tensor:
    """The rows of the `number` smallest, ascending; of equal ones the lowest rows."""
    last = distance.topk(number, largest=False, sorted=False).values.max()
    nearer, level = distance < last, distance == last
    fill = level & (level.cumsum(0) <= number - nearer.sum())
    return (nearer | fill).nonzero()[:, 0]
