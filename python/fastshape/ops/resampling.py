"""How the tokens of a scale come from a grid of vectors, and go back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Resampling(NamedTuple):
    """How the tokens of each scale come from a grid of vectors, and go back: linear maps along its axes.

    Made by :func:`grid_resampling`, :func:`line_resampling` or :func:`matrix_resampling`.
    """

    grid: tuple[int, int]  # (H, W): M = H * W vectors, row by row
    scales: tuple[tuple[int, int], ...]  # tokens of each scale along both axes, coarse to fine
    factors: Tensor  # for each scale the matrices of Down along y and x and of Up along y and x, flat
    bands: Tensor  # where in their rows, and in the columns of Up, what is not zero begins and ends, int32

    @property
    def tokens(self) -> tuple[int, ...]:
        """Tokens of each scale."""
        return tuple(height * width for height, width in self.scales)

    def to(self, *args: Any, **kwargs: Any) -> Resampling:
        """On another device, or with factors of another dtype."""
        factors = self.factors.to(*args, **kwargs)
        return self._replace(factors=factors, bands=self.bands.to(factors.device))

    def matrices(self, scale: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Down along y and x, Up along y and x of one scale: (h, H), (w, W), (H, h), (W, w)."""
        (height, width), (h, w) = self.grid, self.scales[scale]
        begin = sum(2 * (a * height + b * width) for a, b in self.scales[:scale])
        found = []
        for rows, columns in ((h, height), (w, width), (height, h), (width, w)):
            found.append(self.factors[begin : begin + rows * columns].view(rows, columns))
            begin += rows * columns
        return found[0], found[1], found[2], found[3]

    def part(self, begin: int, end: int) -> Resampling:
        """That of the scales from `begin` to before `end`."""
        (height, width), before, scales = self.grid, self.scales[:begin], self.scales[begin:end]

        def factors(sizes: Sequence[tuple[int, int]]) -> int:
            return sum(2 * (h * height + w * width) for h, w in sizes)

        def bands(sizes: Sequence[tuple[int, int]]) -> int:
            return sum(2 * (2 * h + 2 * w + height + width) for h, w in sizes)

        return Resampling(
            self.grid,
            scales,
            self.factors[factors(before) :][: factors(scales)],
            self.bands[bands(before) :][: bands(scales)],
        )

    def down(self, values: Tensor, scale: int) -> Tensor:
        """Vectors (B, M, D) as the tokens of one scale, (B, L, D)."""
        down_y, down_x = self.matrices(scale)[:2]
        grid = values.unflatten(1, self.grid)
        return torch.einsum("iy,jx,byxd->bijd", down_y, down_x, grid).flatten(1, 2)


def _bands(matrix: Tensor) -> Tensor:
    """(rows, 2) int32."""
    there = matrix != 0
    begin = there.int().argmax(1)
    end = matrix.shape[1] - there.flip(1).int().argmax(1)
    return torch.stack([begin, torch.where(there.any(1), end, begin)], 1).int()


def _resampling(
    grid: tuple[int, int],
    scales: Sequence[tuple[int, int]],
    matrices: Sequence[Sequence[Tensor]],
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Resampling:
    factors, bands = [], []
    for four in matrices:
        factors += [m.flatten() for m in four]
        bands += [_bands(m).flatten() for m in (*four, four[2].T, four[3].T)]
    return Resampling(
        grid,
        tuple(scales),
        torch.cat(factors).to(device=device, dtype=dtype),
        torch.cat(bands).to(device),
    )


def _area(out: int, size: int) -> Tensor:
    """(out, size): means over windows, as adaptive average pooling takes them."""
    matrix = torch.zeros(out, size, dtype=torch.float64)
    for i in range(out):
        begin, end = i * size // out, -(-(i + 1) * size // out)
        matrix[i, begin:end] = 1 / (end - begin)
    return matrix


def _cubic(out: int, size: int) -> Tensor:
    """(out, size): Keys' bicubic interpolation with a = -0.75; beyond the border its last value."""
    a, matrix = -0.75, torch.zeros(out, size, dtype=torch.float64)
    for i in range(out):
        at = (i + 0.5) * size / out - 0.5
        first = math.floor(at)
        for k in range(-1, 3):
            d = abs(at - first - k)
            if d <= 1:
                weight = ((a + 2) * d - (a + 3)) * d * d + 1
            else:
                weight = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
            matrix[i, min(max(first + k, 0), size - 1)] += weight
    return matrix


def _linear(out: int, size: int) -> Tensor:
    """(out, size): linear interpolation; beyond the border its last value."""
    matrix = torch.zeros(out, size, dtype=torch.float64)
    for i in range(out):
        at = max((i + 0.5) * size / out - 0.5, 0.0)
        first = min(math.floor(at), size - 1)
        matrix[i, first] += 1 - (at - first)
        matrix[i, min(first + 1, size - 1)] += at - first
    return matrix


def _check_scales(name: str, sizes: Sequence[int]) -> list[int]:
    sizes = [int(size) for size in sizes]
    if not sizes or min(sizes) < 1 or max(sizes) != sizes[-1]:
        raise ValueError(f"`{name}` must be positive with the largest last, got {tuple(sizes)}")
    return sizes


def grid_resampling(
    sides: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Resampling:
    """Square grids: a token of a coarse one is the mean of an area, and goes back by bicubic interpolation.

    Args:
        sides: of the grid of each scale, coarse to fine; the last one is that of the vectors.
        dtype, device: those of what is quantized.

    Raises:
        ValueError: sides that are not positive, a largest one that is not the last.

    Reference: Tian et al. 2024 (VAR), algorithm 1, and its released code: area, and bicubic with a = -0.75.
    """
    sides = _check_scales("sides", sides)
    size = sides[-1]
    matrices = []
    for side in sides:
        down, up = _area(side, size), _cubic(size, side)
        matrices.append((down, down, up, up))
    return _resampling((size, size), [(side, side) for side in sides], matrices, dtype, device)


def line_resampling(
    lengths: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str | None = None
) -> Resampling:
    """Sequences: a token of a short one is the mean of a stretch, and goes back by linear interpolation.

    Args:
        lengths: tokens of each scale, coarse to fine; the last is the number of vectors.
        dtype, device: those of what is quantized.

    Raises:
        ValueError: lengths that are not positive, a largest one that is not the last.
    """
    lengths = _check_scales("lengths", lengths)
    size, one = lengths[-1], torch.ones(1, 1, dtype=torch.float64)
    matrices = [(one, _area(length, size), one, _linear(size, length)) for length in lengths]
    return _resampling((1, size), [(1, length) for length in lengths], matrices, dtype, device)


def matrix_resampling(down: Sequence[Tensor], up: Sequence[Tensor]) -> Resampling:
    """Any linear maps, as learned ones: ``softmax(queries @ keys.T)`` of queries of each scale, say.

    Args:
        down: for each scale a matrix (L_s, M) that gives its tokens from the vectors.
        up: for each scale a matrix (M, L_s) that gives vectors from its codes. One dtype, one device.

    Returns:
        :class:`Resampling`, on the matrices' device. The quantizer gives the matrices no gradient.

    Raises:
        ValueError: shapes that do not fit.
    """
    if not down or len(down) != len(up):
        raise ValueError(f"`down` and `up` must have a matrix a scale, got {len(down)} and {len(up)}")
    size = down[0].shape[-1]
    factors, bands, scales = [], [], []
    for s, (d, u) in enumerate(zip(down, up, strict=True)):
        if d.ndim != 2 or d.shape[1] != size or u.shape != (size, d.shape[0]):
            raise ValueError(
                f"`down` and `up` must have shapes (L, {size}) and ({size}, L), got {tuple(d.shape)} and "
                f"{tuple(u.shape)} for scale {s}"
            )
        length = d.shape[0]
        one = d.new_ones(1)
        factors += [one, d.detach().flatten(), one, u.detach().flatten()]
        # Rows and columns whole: their numbers are not looked at.
        for rows, columns in ((1, 1), (length, size), (1, 1), (size, length), (1, 1), (length, size)):
            bands += [0, columns] * rows
        scales.append((1, length))
    on = torch.tensor(bands, dtype=torch.int32, device=down[0].device)
    return Resampling((1, size), tuple(scales), torch.cat(factors), on)


def shared_phi_index(num_scales: int, num_phis: int) -> tuple[int, ...]:
    """Which of some convolutions each scale uses: neighbors share one, from coarse to fine.

    Scale s, at s / (S - 1) of the way, takes the first of the nearest of evenly spread ticks: middles of P
    equal parts, but from 1/12 to 11/12 where P is 4.

    Reference: Tian et al. 2024 (VAR), its released code, ``PhiPartiallyShared``.
    """
    if num_scales < 1 or num_phis < 1:
        raise ValueError(f"there must be scales and convolutions, got {num_scales} and {num_phis}")
    edge = 1 / 3 / num_phis if num_phis == 4 else 1 / 2 / num_phis
    # In numpy's order of operations: ties are decided by how the ticks were rounded there.
    step = (1 - edge - edge) / max(num_phis - 1, 1)
    ticks = [k * step + edge for k in range(num_phis - 1)] + [1 - edge]

    def nearest(place: float) -> int:
        return min(range(num_phis), key=lambda k: abs(ticks[k] - place))

    return tuple(nearest(s / max(num_scales - 1, 1)) for s in range(num_scales))
