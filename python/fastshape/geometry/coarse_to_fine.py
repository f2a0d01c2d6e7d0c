"""The cells of a fine lattice that a surface crosses, from few values: coarse to fine, then along it.

The lattice has L points along an axis, those of the target and, where solids are closed at the cube's border,
one more on either side that is outside. Coarse lattices take every 8th, 4th and 2nd of its points, those
beyond the target's ends moved onto them, so that every value asked is the target's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastshape.geometry.bricks import SIDE, Bricks
from fastshape.geometry.field_sampler import Outcome, Sampler
from fastshape.geometry.refinement import any_corner, corners_of, may_hide

STRIDES = (8, 4, 2)
_REACH = {8: 1.1216, 4: 1.1216, 2: 0.75}  # of the slope test
_START_CELLS = 48  # along an axis of the first lattice, at least
_ROUNDS = 4  # of verification: when the last finds something too, the whole lattice is asked
_PIECE = 8192  # bricks looked at together


class SurfaceSearch:
    """The crossed cells of one lattice; `run`, then `verify` as often as wanted, then `cells`.

    The rule. On the first lattice, of `stride` 8, 4 or 2 (the largest that leaves 48 cells along an axis;
    1, all points, where none does), a cell is looked into where

    1. its corners have both signs, or one inside lies on a closed border; or
    2. the bend test: the smallest distance of a corner's value from the level is less than the largest bend
       at a corner. A bend is a second difference of the values towards the level, along each axis, summed.
       A field that is linear but for one kink in the cell, as a distance is at a thin part, passes its
       neighbors by at most half the bend that they show: the safety factor is 2; or
    3. the slope test: the mean distance of its corners' values from the level is less than the reach times
       the length of the vector of the largest differences of neighboring values along x, y and z in the 27
       cells around, which estimates the Lipschitz constant. The reach is 1.1216, the largest mean distance
       of a unit cube's corners from a point in it, for strides 8 and 4, and 0.75 for 2: there the surface
       alone is most of what is asked, and no ripple of the networks measured needs more; or
    4. the probe: one point inside, at another place in every cell, has another sign than the corners (looked
       into from there, not by halving); for strides 8 and 4.

    To look into a cell is to ask the points of the lattice twice as fine in it; its eight cells are judged
    alike. On every lattice, the finest too, all corners are asked of each cell with known corners on both
    sides, until none lacks one: a surface that was found anywhere is followed to its end, however thin.

    What the rule cannot see is a part with no connection to any other, smaller than the cells of a lattice
    that is to show it, in a field so saturated, or so rough, that the values around show nothing of it.
    `verify` bounds how much of that there is.

    Values are kept as `sign * value`: inside is below `threshold`, as marching cubes has it.
    """

    def __init__(
        self, sampler: Sampler, level: float, sign: int, closed: bool, stride: int | None = None
    ) -> None:
        self.sampler, self.sign, self.closed = sampler, sign, closed
        self.threshold = sign * level
        self.device = sampler.axis.device
        self.margin = int(closed)
        self.last = len(sampler.axis) - 1  # of the target
        self.size = len(sampler.axis) + 2 * self.margin  # L
        fitting = [s for s in STRIDES if (self.size - 1) >= _START_CELLS * s]
        self.stride = stride if stride is not None else fitting[0] if fitting else 1
        self.bricks = Bricks(self.size, self.device)
        self.base = torch.empty(0)

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the lattices."""
        return tuple(s for s in (*STRIDES, 1) if s <= self.stride)

    def run(self) -> bool:
        """Finds the surface; False where it is nearly everywhere: then the whole lattice is better asked."""
        active = self._first_lattice()
        if 2 * int(active.sum()) > active.numel():
            return False
        seeds = self._probe(active)
        slots, masks = self._place(active)
        stride = self.stride
        while True:
            self._halve(slots, masks, stride)
            stride //= 2
            self.sampler.advance(0.9 - 0.4 * stride / self.stride)
            if stride == 1:
                break
            self._follow(self._all_slots(), stride)
            slots, masks = self._select(stride)
        self._ask(seeds)
        self._follow(self._all_slots(), 1)
        self.sampler.advance(0.95)
        return True

    # ---- The first lattice ---------------------------------------------------------------------------------

    def _first_lattice(self) -> Tensor:
        """Asks it; (n - 1)^3 bool: which of its cells to look into."""
        n = -(-(self.size - 1) // self.stride) + 1
        total, chunk = n**3, self.sampler.chunk
        base = torch.empty(total, device=self.device)
        for begin in range(0, total, chunk):
            flat = torch.arange(begin, min(begin + chunk, total), device=self.device)
            coords = torch.stack([flat // n**2, flat // n % n, flat % n], 1) * self.stride
            base[begin : begin + chunk] = self._values(coords)
            self.sampler.advance(0.4 * min(begin + chunk, total) / total)
        self.base = base.view(1, n, n, n)
        inside = self.base < self.threshold
        other = any_corner(~inside)
        if self.closed:
            border = inside.clone()
            border[:, 1:-1, 1:-1, 1:-1] = False
            other |= any_corner(border)
        wide = torch.nn.functional.pad(self.base, (1,) * 6, value=torch.nan)
        return (any_corner(inside) & other | may_hide(wide - self.threshold, _REACH[self.stride]))[0]

    def _probe(self, active: Tensor) -> Tensor:
        """Asks one point within each cell that is not looked into, at another place in each.

        A wall along an axis can pass between two planes of a lattice, but not between the points of many
        cells that lie at many heights. Where a point is on the other side than its cell's corners, the
        points on a way from it to a corner (M, 3) are returned: one of the steps crosses the surface.
        """
        stride = self.stride
        if stride == 2:  # a point inside each cell would double what the first lattice costs
            return torch.empty(0, 3, dtype=torch.int64, device=self.device)
        cells = (~active).nonzero()
        ways = [cells[:0]]
        for some in cells.split(self.sampler.chunk):
            points = some * stride + 1 + _scatter(some, stride - 1)
            points.clamp_(max=self.size - 1 - self.margin)
            x, y, z = some.unbind(1)
            found = (self._values(points) < self.threshold) != (self.base[0, x, y, z] < self.threshold)
            ways.append(self._ways(points[found], some[found] * stride))
        return torch.cat(ways)

    def _ways(self, points: Tensor, ends: Tensor) -> Tensor:
        """The points (M, 3) of ways along x, y and z from points (N, 3) down to ends (N, 3)."""
        steps = torch.arange(self.stride + 1, device=self.device)
        ways, here = [points[:0]], points.clone()
        for axis in range(3):
            way = here[:, None].repeat(1, len(steps), 1)
            way[:, :, axis] = torch.maximum(here[:, axis, None] - steps, ends[:, axis, None])
            ways.append(way.view(-1, 3))
            here[:, axis] = ends[:, axis]
        return torch.cat(ways)

    def _place(self, active: Tensor) -> tuple[Tensor, Tensor]:
        """Bricks for the cells to look into, with the values known: slots (N,), cells (N, m, m, m)."""
        per_brick = SIDE // self.stride
        count = -(-active.shape[0] // per_brick)
        width = count * per_brick
        cells = torch.zeros(width, width, width, dtype=torch.bool, device=self.device)
        cells[tuple(slice(n) for n in active.shape)] = active
        values = torch.full((width,) * 3, torch.nan, device=self.device)
        n = min(width, self.base.shape[1])
        values[:n, :n, :n] = self.base[0, :n, :n, :n]
        cells, values = (
            x.view(count, per_brick, count, per_brick, count, per_brick)
            .permute(0, 2, 4, 1, 3, 5)
            .reshape(count**3, per_brick, per_brick, per_brick)
            for x in (cells, values)
        )
        rows = cells.flatten(1).any(1).nonzero().flatten()
        coords = torch.stack([rows // count**2, rows // count % count, rows % count], 1)
        slots = self.bricks.slots(self.bricks.number(coords))
        steps = slice(None, None, self.stride)
        self.bricks.values.view(-1, SIDE, SIDE, SIDE)[slots, steps, steps, steps] = values[rows]
        return slots, cells[rows]

    # ---- From a lattice to the next ------------------------------------------------------------------------

    def _halve(self, slots: Tensor, masks: Tensor, stride: int) -> None:
        """Asks the points of the next lattice in and on the cells `masks` (N, m, m, m) of bricks."""
        for some, cells in zip(slots.split(_PIECE), masks.split(_PIECE), strict=True):
            for dim in (1, 2, 3):
                cells = cells.repeat_interleave(2, dim)
            row, *place = corners_of(cells).nonzero().unbind(1)
            self._ask(self.bricks.origins(some)[row] + torch.stack(place, 1) * (stride // 2))

    def _select(self, stride: int) -> tuple[Tensor, Tensor]:
        """The known cells to look into: slots (N,), cells (N, m, m, m)."""
        offsets = range(-stride, SIDE + stride + 1, stride)
        slots, masks = [], []
        for some, wide in self.bricks.scan(self._all_slots(), offsets):
            values = wide[:, 1:-1, 1:-1, 1:-1]
            mixed = self._mixed(some, values, offsets[1:-1], stride)
            hidden = may_hide(wide - self.threshold, _REACH[stride]) & self._within(some, offsets[1:-2])
            cells = (mixed | hidden) & ~any_corner(values.isnan())
            rows = cells.flatten(1).any(1)
            slots.append(some[rows])
            masks.append(cells[rows])
        return torch.cat(slots), torch.cat(masks)

    def _follow(self, slots: Tensor, stride: int) -> None:
        """Asks all corners of every cell with known corners on both sides, until none lacks one.

        So a surface that crosses one known edge is followed through all its cells.
        """
        offsets = range(-stride, SIDE + 1, stride)
        while len(slots):
            wanted = []
            for some, values in self.bricks.scan(slots, offsets):
                values = self._with_border(some, values, offsets, stride)
                unknown = values.isnan()
                cells = self._mixed(some, values, offsets, stride) & any_corner(unknown)
                rows = cells.flatten(1).any(1).nonzero().flatten()
                if len(rows):
                    row, *place = (corners_of(cells[rows]) & unknown[rows]).nonzero().unbind(1)
                    wanted.append(
                        self.bricks.origins(some[rows])[row] + torch.stack(place, 1) * stride - stride
                    )
            slots = self._ask(torch.cat(wanted)) if wanted else slots[:0]
            self.sampler.advance(self.sampler.done)

    def cells(self) -> tuple[Tensor, Tensor]:
        """The crossed cells in the order of (x, y, z): coordinates (N, 3) int32, `sign * value` (N, 8)."""
        side = SIDE + 1
        corner = torch.arange(8, device=self.device)
        corner = ((corner & 1) * side + (corner >> 1 & 1)) * side + (corner >> 2 & 1)
        coords = [torch.empty(0, 3, dtype=torch.int64, device=self.device)]
        corners = [torch.empty(0, 8, device=self.device)]
        for some, values in self.bricks.scan(self._all_slots(), range(side)):
            values = self._with_border(some, values, range(side), 1)
            crossed = self._mixed(some, values, range(side), 1).nonzero()
            row, x, y, z = crossed.unbind(1)
            coords.append(self.bricks.origins(some)[row] + crossed[:, 1:])
            first = ((row * side + x) * side + y) * side + z
            corners.append(values.reshape(-1)[first[:, None] + corner])
        cells, values = torch.cat(coords), torch.cat(corners)
        order = ((cells[:, 0] * self.size + cells[:, 1]) * self.size + cells[:, 2]).argsort()
        return cells[order].to(torch.int32), values[order]

    # ---- Verification --------------------------------------------------------------------------------------

    def verify(self, number: int, generator: torch.Generator) -> tuple[int, int]:
        """Looks into cells that were skipped, uniformly drawn, and follows what it finds.

        Returns:
            How many were looked into, `number` unless there are hardly any, and how many showed a surface:
            both signs among their corners, or another than all corners of the first lattice's cell around.
        """
        corner = torch.cartesian_prod(*[torch.arange(2, device=self.device)] * 3)
        taken, found = 0, 0
        for _ in range(64):
            if taken == number:
                break
            draws = torch.randint(self.size - 1, (2 * (number - taken), 3), generator=generator)
            draws = draws.to(self.device)
            known = self.bricks.known((draws[:, None] + corner).view(-1, 3)).view(-1, 8).all(1)
            cells = draws[~known][: number - taken]
            taken += len(cells)
            for some in cells.split(max(1, self.sampler.chunk // 8)):
                points = (some[:, None] + corner).view(-1, 3)
                inside = (self._values(points) < self.threshold) & ~self._beyond(points)
                number_inside = inside.view(-1, 8).sum(1)
                around = self._around(some)
                mixed = (number_inside > 0) & (number_inside < 8)
                shown = mixed | ((number_inside == 8) & (around < 0)) | ((number_inside == 0) & (around > 0))
                found += int(shown.sum())
                if bool(shown.any()):
                    ends = torch.div(some[shown], self.stride, rounding_mode="floor") * self.stride
                    own = (some[shown][:, None] + corner).view(-1, 3)
                    self._follow(self._ask(torch.cat([own, self._ways(some[shown], ends)])), 1)
        return taken, found

    def _around(self, cells: Tensor) -> Tensor:
        """Of the first lattice's cells around cells (N, 3): -1 all outside, 1 all inside, 0 both."""
        x, y, z = torch.div(cells, self.stride, rounding_mode="floor").unbind(1)
        inside = torch.stack(
            [self.base[0, x + (i & 1), y + (i >> 1 & 1), z + (i >> 2 & 1)] < self.threshold for i in range(8)]
        )
        return inside.all(0).int() - (~inside).all(0).int()

    # ---- Points --------------------------------------------------------------------------------------------

    def _values(self, coords: Tensor) -> Tensor:
        """Values (N,) at points (N, 3) of the lattice; those beyond the target stand for its border."""
        return self.sampler((coords - self.margin).clamp_(0, self.last)) * self.sign

    def _ask(self, coords: Tensor) -> Tensor:
        """Makes points (N, 3) known; the slots of the bricks in which there were new ones."""
        addresses = self.bricks.unknown(self.bricks.addresses(coords))
        for some in addresses.split(self.sampler.chunk):
            if len(some):
                self.bricks.write(some, self._values(self.bricks.coords(some)))
                self.sampler.advance(self.sampler.done)
        return (addresses >> 9).unique()

    def _all_slots(self) -> Tensor:
        return torch.arange(1, self.bricks.count, device=self.device)

    def _axes(self, slots: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, 3, k) coordinates along each axis of the points at offsets from bricks' first points."""
        return self.bricks.origins(slots)[:, :, None] + torch.tensor(offsets, device=self.device)

    def _within(self, slots: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, k, k, k) bool: cells that begin at offsets and belong to the lattice."""
        axes = self._axes(slots, offsets)
        return _all_axes((axes >= 0) & (axes < self.size - 1))

    def _beyond(self, points: Tensor) -> Tensor:
        """(N,) bool: points (N, 3) that close the solid; they are outside."""
        return ((points == 0) | (points == self.size - 1)).any(1) & self.closed

    def _mixed(self, slots: Tensor, values: Tensor, offsets: Sequence[int], stride: int) -> Tensor:
        """(N, k - 1, ...) bool: cells of the lattice with known corners on both sides.

        On a coarse lattice an inside corner on a closed border has the other side next to it.
        """
        inside, outside = values < self.threshold, values >= self.threshold
        other = any_corner(outside)
        axes = self._axes(slots, offsets)
        if self.closed and stride > 1:
            other |= any_corner(inside & _any_axis((axes <= 0) | (axes >= self.size - 1)))
        cells = any_corner(inside) & other
        within = (axes >= 0) & (axes < self.size - 1)
        if not bool(within[:, :, :-1].all()):
            cells &= _all_axes(within[:, :, :-1])
        return cells

    def _with_border(self, slots: Tensor, values: Tensor, offsets: Sequence[int], stride: int) -> Tensor:
        """At stride 1 the points that close the solid are outside, and other points beyond unknown."""
        if stride > 1:
            return values
        axes = self._axes(slots, offsets)
        if self.closed:
            # Far beyond the level, so that the vertices beside it lie on the border.
            end = (axes <= 0) | (axes >= self.size - 1)
            value = self.threshold + 1e3 * (self.sampler.high - self.sampler.low)
        else:
            end, value = (axes < 0) | (axes >= self.size), torch.nan
        return values.masked_fill(_any_axis(end), value) if bool(end.any()) else values


def search_and_verify(search: SurfaceSearch, number: int, seed: int) -> Outcome:
    """Runs a search; verifies it with `number` cells at a time, until nothing is found or it is given up."""
    if not search.run():
        return Outcome(
            fell_back=True, why="more than half of the first lattice's cells had to be looked into"
        )
    if not number:
        return Outcome()
    generator, found = torch.Generator().manual_seed(seed), 0
    for turn in range(_ROUNDS):
        taken, new = search.verify(number, generator)
        found += new
        if not new:
            why = f"the surface was followed from {found} cells that verification found" if turn else ""
            return Outcome(taken, found, 3 / taken if taken else 0.0, why=why)
    return Outcome(found=found, fell_back=True, why=f"{_ROUNDS} verifications in a row found missed cells")


def _all_axes(axes: Tensor) -> Tensor:
    """(N, 3, k) bool along each axis -> (N, k, k, k): true along all three."""
    return axes[:, 0, :, None, None] & axes[:, 1, None, :, None] & axes[:, 2, None, None, :]


def _any_axis(axes: Tensor) -> Tensor:
    """(N, 3, k) bool along each axis -> (N, k, k, k): true along one at least."""
    return axes[:, 0, :, None, None] | axes[:, 1, None, :, None] | axes[:, 2, None, None, :]


def _scatter(cells: Tensor, count: int) -> Tensor:
    """Numbers (N, 3) in [0, count) for cells (N, 3) that follow no line or plane of them."""
    x, y, z = cells.unbind(1)
    mixed = x * 0x9E3779B97F4A7C1 + y * 0x7F4A7C15F39CC06 + z * 0x2545F4914F6CDD1
    mixed ^= mixed >> 29
    mixed *= 0x369DEA0F31A53F8
    mixed ^= mixed >> 32
    return torch.stack([(mixed >> shift & 0xFFFF) % count for shift in (0, 16, 32)], 1)
