"""Values at some points of a fine lattice, in bricks of 8^3 points: memory goes with the bricks in use."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

SIDE = 8  # points along a brick
_POINTS = SIDE**3
_GATHER = 1 << 20  # values looked at together


class Bricks:
    """A sparse lattice of floating-point values; a point that is not known holds NaN.

    A table of one number a brick of the whole lattice, 1 / 512 of it, leads to the slot of each brick in use;
    slot 0 is an empty brick that stands for all others. A point's address is `slot * 512` and its place in
    the brick, z fastest. Bricks one beyond the lattice exist on every side, so that neighbors need no
    special case.

    Args:
        size: points of the lattice along an axis.
        device: where everything lies.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.size = size
        self.width = size // SIDE + 4  # bricks along an axis, those beyond the lattice included
        self.count = 1  # slots in use
        self.table = torch.zeros(self.width**3, dtype=torch.int32, device=device)
        self.keys = torch.zeros(1, dtype=torch.int64, device=device)  # number of each slot's brick
        self.values = torch.full((1, _POINTS), torch.nan, device=device)
        self._moves = torch.tensor(
            [
                (x * self.width + y) * self.width + z
                for x in (-1, 0, 1)
                for y in (-1, 0, 1)
                for z in (-1, 0, 1)
            ],
            device=device,
        )

    def number(self, bricks: Tensor) -> Tensor:
        """Numbers (N,) of the bricks with coordinates (N, 3), the lattice's point 0 being in brick 0."""
        shifted = bricks + 1
        return (shifted[:, 0] * self.width + shifted[:, 1]) * self.width + shifted[:, 2]

    def slots(self, numbers: Tensor) -> Tensor:
        """Slots (N,) int64 of bricks by number; new ones are made."""
        new = numbers[self.table[numbers] == 0]
        if len(new):
            new = new.unique()
            first, self.count = self.count, self.count + len(new)
            if self.count > len(self.values):
                grown = self.values.new_full((max(self.count, len(self.values) * 3 // 2), _POINTS), torch.nan)
                grown[:first] = self.values[:first]
                self.values = grown
            self.keys = torch.cat([self.keys, new])
            self.table[new] = torch.arange(first, self.count, dtype=torch.int32, device=new.device)
        return self.table[numbers].long()

    def origins(self, slots: Tensor) -> Tensor:
        """(N, 3) int64: the lattice's coordinates of the first point of each slot's brick."""
        keys = self.keys[slots]
        plane = torch.div(keys, self.width, rounding_mode="floor")
        x = torch.div(plane, self.width, rounding_mode="floor")
        return (torch.stack([x, plane - x * self.width, keys - plane * self.width], 1) - 1) * SIDE

    def addresses(self, coords: Tensor) -> Tensor:
        """Addresses (N,) int64 of points with coordinates (N, 3); their bricks are made where need be."""
        slots = self.slots(self.number(coords >> 3))
        local = coords & (SIDE - 1)
        return ((slots * SIDE + local[:, 0]) * SIDE + local[:, 1]) * SIDE + local[:, 2]

    def known(self, coords: Tensor) -> Tensor:
        """(N,) bool: which points with coordinates (N, 3) have a value."""
        local = coords & (SIDE - 1)
        place = (local[:, 0] * SIDE + local[:, 1]) * SIDE + local[:, 2]
        return ~self.values.view(-1)[self.table[self.number(coords >> 3)].long() * _POINTS + place].isnan()

    def coords(self, addresses: Tensor) -> Tensor:
        """(N, 3) int64 coordinates of the points at addresses."""
        local = torch.stack([addresses >> 6 & 7, addresses >> 3 & 7, addresses & 7], 1)
        return self.origins(addresses >> 9).add_(local)

    def unknown(self, addresses: Tensor) -> Tensor:
        """The addresses without a value, each once, ascending."""
        if len(addresses) < 1 << 15:
            addresses = addresses.unique()
            return addresses[self.values.view(-1)[addresses].isnan()]
        marks = torch.zeros(self.count * _POINTS, dtype=torch.bool, device=addresses.device)
        marks[addresses] = True
        marks &= self.values[: self.count].view(-1).isnan()
        return marks.nonzero().flatten()

    def write(self, addresses: Tensor, values: Tensor) -> None:
        """Make values known."""
        self.values.view(-1)[addresses] = values

    def around(self, slots: Tensor, offsets: Sequence[int]) -> Tensor:
        """Values (N, k, k, k) at all triples of k offsets, in -8..15, from the first point of each brick."""
        axis = torch.tensor(offsets, device=slots.device)
        brick, local = (axis >> 3) + 1, axis & (SIDE - 1)
        which = ((brick[:, None, None] * 3 + brick[:, None]) * 3 + brick).flatten()
        place = ((local[:, None, None] * SIDE + local[:, None]) * SIDE + local).flatten()
        neighbors = self.table[self.keys[slots][:, None] + self._moves]  # (N, 27)
        if self.count * _POINTS < 1 << 31:  # half the traffic of 64 bits
            neighbors, place = neighbors * _POINTS, place.int()
        else:
            neighbors = neighbors.long() * _POINTS
        address = neighbors.index_select(1, which).add_(place)
        count = len(offsets)
        return self.values.view(-1).index_select(0, address.view(-1)).view(-1, count, count, count)

    def scan(self, slots: Tensor, offsets: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Slots, some at a time, and their `around`."""
        for some in slots.split(max(1, _GATHER // len(offsets) ** 3)):
            yield some, self.around(some, offsets)
