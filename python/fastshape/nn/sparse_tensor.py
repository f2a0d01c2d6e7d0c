"""Features of sparse voxels, with what layers need of their coordinates computed once and shared."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from fastshape import ops


class _Layout:
    """Coordinates, and what follows from them alone: whatever is asked for is kept."""

    def __init__(self, coords: Tensor, batch_size: int) -> None:
        self.coords = coords
        self.batch_size = batch_size
        self.kept: dict[Any, Any] = {}

    def keep(self, key: Any, make: Any) -> Any:
        if key not in self.kept:
            self.kept[key] = make()
        return self.kept[key]


class SparseTensor:
    """Features of the voxels of a batch of shapes.

    What layers need of the coordinates (which rows are neighbors, which lie in a window) is computed when it
    is first asked for and shared with every tensor of the same voxels: those of `replace` and of `to` with a
    dtype. Nothing is changed in place.

    Args:
        coords: (N, 4) int32: item, x, y, z, none negative; the rows of an item behind each other, the items
            ascending. None twice, where neighbors are asked for.
        feats: (N, C), floating, on the same device.
        batch_size: B; None takes the largest item and one. Items may be empty.

    Raises:
        TypeError: not a tensor, or a wrong dtype.
        ValueError: wrong shapes or devices, or items that are not in order or beyond `batch_size`.

    Attributes:
        coords, feats, batch_size: as given.
    """

    __slots__ = ("_layout", "feats")

    def __init__(self, coords: Tensor, feats: Tensor, batch_size: int | None = None) -> None:
        for name, tensor in (("coords", coords), ("feats", feats)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"`{name}` must be a tensor, got {type(tensor).__name__}")
        if coords.dtype != torch.int32:
            raise TypeError(f"`coords` must be int32, got {coords.dtype}")
        if coords.dim() != 2 or coords.shape[1] != 4:
            raise ValueError(f"`coords` must have shape (N, 4), got {tuple(coords.shape)}")
        coords = coords.contiguous()
        items = coords[:, 0]
        largest = -1
        if len(items):
            ends = torch.stack([items[0], items[-1], (items.diff() < 0).any().int()]).tolist()  # the sync
            if ends[2] or ends[0] < 0:
                raise ValueError(
                    "`coords` must have the rows of each item behind each other, the items ascending from 0"
                )
            largest = int(ends[1])
        size = largest + 1 if batch_size is None else batch_size
        if largest >= size:
            raise ValueError(f"`coords` must have items below `batch_size` = {size}, got {largest}")
        self._layout = _Layout(coords, size)
        self.feats = self._checked(feats)

    def _checked(self, feats: Tensor) -> Tensor:
        if not isinstance(feats, Tensor):
            raise TypeError(f"`feats` must be a tensor, got {type(feats).__name__}")
        if not feats.is_floating_point():
            raise TypeError(f"`feats` must be floating, got {feats.dtype}")
        if feats.dim() != 2 or len(feats) != len(self.coords):
            raise ValueError(
                f"`feats` must have shape ({len(self.coords)}, C), a row for each voxel, "
                f"got {tuple(feats.shape)}"
            )
        if feats.device != self.coords.device:
            raise ValueError(
                f"`coords` and `feats` must be on one device, got {self.coords.device} and {feats.device}"
            )
        return feats

    @classmethod
    def _of(cls, layout: _Layout, feats: Tensor) -> SparseTensor:
        tensor = cls.__new__(cls)
        tensor._layout = layout
        tensor.feats = tensor._checked(feats)
        return tensor

    # ---- What it is ----------------------------------------------------------------------------------------

    @property
    def coords(self) -> Tensor:
        return self._layout.coords

    @property
    def batch_size(self) -> int:
        return self._layout.batch_size

    @property
    def num_channels(self) -> int:
        return self.feats.shape[1]

    @property
    def device(self) -> torch.device:
        return self.feats.device

    @property
    def dtype(self) -> torch.dtype:
        return self.feats.dtype

    def __len__(self) -> int:
        return len(self.feats)

    def __repr__(self) -> str:
        return (
            f"SparseTensor({len(self)} voxels of {self.batch_size} items, {self.num_channels} channels, "
            f"{self.dtype}, {self.device})"
        )

    # ---- Other tensors of it -------------------------------------------------------------------------------

    def replace(self, feats: Tensor) -> SparseTensor:
        """The same voxels with other features (N, C')."""
        return self._of(self._layout, feats)

    def to(self, *arguments: Any, **options: Any) -> SparseTensor:
        """On another device, or with features of another dtype; arguments as of `Tensor.to`."""
        feats = self.feats.to(*arguments, **options)
        if feats.device == self.coords.device:
            return self.replace(feats)
        return self._of(_Layout(self.coords.to(feats.device), self.batch_size), feats)

    def select(self, rows: Tensor) -> SparseTensor:
        """Some of the voxels: (N,) bool, or ascending (M,) integers. The batch stays as large as it is."""
        layout = _Layout(self.coords[rows], self.batch_size)
        return self._of(layout, self.feats[rows])

    def __getitem__(self, item: int | slice) -> SparseTensor:
        """One item of the batch, as a batch of one, or consecutive ones."""
        if isinstance(item, slice):
            begin, end, step = item.indices(self.batch_size)
            if step != 1:
                raise ValueError(f"a slice of items must have the step 1, got {step}")
            end = max(begin, end)
        else:
            if not -self.batch_size <= item < self.batch_size:
                raise IndexError(f"item {item} of a batch of {self.batch_size}")
            begin = item % self.batch_size
            end = begin + 1
        offsets = self.offsets
        rows = slice(offsets[begin], offsets[end])
        coords = self.coords[rows].clone()
        coords[:, 0] -= begin
        return self._of(_Layout(coords, end - begin), self.feats[rows])

    def __iter__(self) -> Iterator[SparseTensor]:
        return (self[item] for item in range(self.batch_size))

    @staticmethod
    def cat(tensors: Sequence[SparseTensor]) -> SparseTensor:
        """The items of several tensors as one batch, in their order.

        Raises:
            ValueError: no tensors, or other channels.
        """
        if not tensors:
            raise ValueError("`tensors` must have at least one tensor")
        if len({tensor.num_channels for tensor in tensors}) > 1:
            channels = ", ".join(str(tensor.num_channels) for tensor in tensors)
            raise ValueError(f"`tensors` must have the same channels, got {channels}")
        parts, size = [], 0
        for tensor in tensors:
            coords = tensor.coords.clone()
            coords[:, 0] += size
            parts.append(coords)
            size += tensor.batch_size
        return SparseTensor._of(
            _Layout(torch.cat(parts), size), torch.cat([tensor.feats for tensor in tensors])
        )

    # ---- What follows from the coordinates -----------------------------------------------------------------

    @property
    def offsets(self) -> list[int]:
        """Where the rows of each item begin, B + 1 of them; one sync, the first time."""
        return self._layout.keep("offsets", lambda: self.cu_lengths.tolist())

    @property
    def cu_lengths(self) -> Tensor:
        """(B + 1,) int32: where the rows of each item begin."""

        def make() -> Tensor:
            counts = torch.bincount(self.coords[:, 0], minlength=self.batch_size)
            return torch.nn.functional.pad(counts.cumsum(0), (1, 0)).int()

        return self._layout.keep("cu_lengths", make)

    @property
    def items(self) -> ops.Segments:
        """The rows of each item, for `ops.segment_reduce` and `ops.gather_segments`."""

        def make() -> ops.Segments:
            rows = torch.arange(len(self), dtype=torch.int32, device=self.device)
            return ops.Segments(self.coords[:, 0].long(), rows, self.cu_lengths.long())

        return self._layout.keep("items", make)

    def neighbors(self, kernel_size: int = 3) -> ops.NeighborTable:
        """The table of a convolution that keeps the voxels."""
        return self._layout.keep(
            ("neighbors", kernel_size), lambda: ops.neighbor_table(self.coords, kernel_size=kernel_size)
        )

    @property
    def in_voxel_order(self) -> bool:
        """Whether the rows stand as `ops.voxel_order` puts them; one sync, the first time."""

        def make() -> bool:
            order = self._voxel_order
            return bool((order == torch.arange(len(order), device=order.device)).all())

        return self._layout.keep("in_voxel_order", make)

    @property
    def _voxel_order(self) -> Tensor:
        return self._layout.keep("voxel_order", lambda: ops.voxel_order(self.coords))

    def sorted(self) -> SparseTensor:
        """The same voxels in the order of `ops.voxel_order`, in which windows are runs of rows."""
        if self.in_voxel_order:
            return self
        order = self._voxel_order

        def make() -> _Layout:
            layout = _Layout(self.coords[order], self.batch_size)
            layout.kept["in_voxel_order"] = True
            return layout

        return self._of(self._layout.keep("sorted", make), self.feats[order])

    def restored(self, sorted_tensor: SparseTensor) -> SparseTensor:
        """What was made of `sorted()`, in the order of this tensor's rows.

        Raises:
            ValueError: a tensor of other voxels.
        """
        if sorted_tensor._layout is self._layout:
            return sorted_tensor
        if sorted_tensor._layout is not self._layout.kept.get("sorted"):
            raise ValueError("`sorted_tensor` must have been made of this tensor's `sorted()`")
        order = self._voxel_order
        back = self._layout.keep("back", lambda: torch.empty_like(order).scatter_(0, order, _count(order)))
        return self.replace(sorted_tensor.feats[back])

    def window_plan(self, window: int, shift: int = 0) -> ops.WindowPlan:
        """The windows of `ops.sparse_window_attention`, of a tensor in voxel order."""
        if not self.in_voxel_order:
            raise ValueError("the rows must be in voxel order: take `sorted()`")
        return self._layout.keep(
            ("window_plan", window, shift),
            lambda: ops.window_plan(self.coords, window=window, shift=shift),
        )


def _count(like: Tensor) -> Tensor:
    return torch.arange(len(like), dtype=like.dtype, device=like.device)
