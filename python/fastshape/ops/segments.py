"""Rows that belong to segments: reductions over them in a fixed order, and the way back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastshape._library import backend, define

_MODES = {"sum": 0, "mean": 1, "mean_with_zero": 2, "max": 3}  # Reduction in csrc/sparse/segments.h


class Segments(NamedTuple):
    """Which rows belong to which segment, as :func:`make_segments` gives it.

    ``ids`` (N,) int64: the segment of a row. ``order`` (N,) int32: the rows by segment, ascending in each.
    ``offsets`` (S + 1,) int64: where the rows of a segment begin in the order.
    """

    ids: Tensor
    order: Tensor
    offsets: Tensor

    @property
    def num_segments(self) -> int:
        return self.offsets.shape[0] - 1


# ---- make_segments -----------------------------------------------------------------------------------------


def _new_segments(index: Tensor, num_segments: Any) -> tuple[Tensor, Tensor]:
    return (
        index.new_empty(index.shape[0] if index.ndim else 0, dtype=torch.int32),
        index.new_empty(num_segments + 1, dtype=torch.int64),
    )


def _make_segments(index: Tensor, num_segments: int) -> tuple[Tensor, Tensor]:
    module, workspace = backend(), None
    order, offsets = _new_segments(index, num_segments)
    if index.is_cuda or module.emulated:
        size = module.make_segments_workspace_bytes(order.shape[0])
        workspace = torch.empty(size, dtype=torch.uint8, device=index.device)
    module.make_segments(index, workspace, order, offsets)
    return order, offsets


_make_segments_op = define(
    "make_segments(Tensor index, SymInt num_segments) -> (Tensor, Tensor)",
    implementation=_make_segments,
    fake=_new_segments,
)


def make_segments(index: Tensor, num_segments: int) -> Segments:
    """Sorts rows by their segment, once for all reductions over them.

    Args:
        index: (N,) int64, contiguous: the segment of each row, in any order; a row whose index is not in
            [0, num_segments) belongs to none. N below 2^31.
        num_segments: S, below 2^31; segments may be empty.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, not contiguous, a negative ``num_segments``.

    Gradient: none.

    Device: CPU and CUDA with equal results; no sync.
    """
    if num_segments < 0:
        raise ValueError(f"`num_segments` must not be negative, got {num_segments}")
    return Segments(index, *_make_segments_op(index, num_segments))


# ---- segment_reduce, gather_segments -----------------------------------------------------------------------


def _new_reduced(values: Tensor, order: Tensor, offsets: Tensor, mode: int) -> tuple[Tensor, Tensor]:
    shape = (offsets.shape[0] - 1, values.shape[1])
    best = shape if mode == _MODES["max"] else (0, 0)
    return values.new_empty(shape), values.new_empty(best, dtype=torch.int32)


def _segment_reduce(values: Tensor, order: Tensor, offsets: Tensor, mode: int) -> tuple[Tensor, Tensor]:
    if values.ndim != 2:
        raise ValueError(f"`values` must have shape (N, C), got {tuple(values.shape)}")
    out, best = _new_reduced(values, order, offsets, mode)
    found = best if mode == _MODES["max"] else None
    backend().segment_reduce(values, order, offsets, mode, out, found)
    return out, best


_segment_reduce_op = define(
    "segment_reduce(Tensor values, Tensor order, Tensor offsets, int mode) -> (Tensor, Tensor)",
    implementation=_segment_reduce,
    fake=_new_reduced,
)


def _new_gathered(values: Tensor, index: Tensor, best: Tensor | None) -> Tensor:
    return values.new_empty(index.shape[0], values.shape[1])


def _gather_segments(values: Tensor, index: Tensor, best: Tensor | None) -> Tensor:
    if values.ndim != 2:
        raise ValueError(f"`values` must have shape (S, C), got {tuple(values.shape)}")
    out = _new_gathered(values, index, best)
    backend().gather_segments(values, index, best, out)
    return out


_gather_segments_op = define(
    "gather_segments(Tensor values, Tensor index, Tensor? best) -> Tensor",
    implementation=_gather_segments,
    fake=_new_gathered,
)


class _SegmentReduce(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, segments: Segments, mode: int) -> Tensor:
        out, best = _segment_reduce_op(values, segments.order, segments.offsets, mode)
        ctx.save_for_backward(segments.ids, segments.offsets, best)
        ctx.mode = mode
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        index, offsets, best = ctx.saved_tensors
        grad_out = grad_out.contiguous()
        if ctx.mode == _MODES["max"]:
            return _gather_segments_op(grad_out, index, best), None, None
        if ctx.mode != _MODES["sum"]:
            extra = 1 if ctx.mode == _MODES["mean_with_zero"] else 0
            counts = (offsets.diff() + extra).clamp_min(1)
            grad_out = (grad_out / counts[:, None]).to(grad_out.dtype)
        return _gather_segments_op(grad_out, index, None), None, None


class _GatherSegments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, segments: Segments) -> Tensor:
        ctx.save_for_backward(segments.order, segments.offsets)
        return _gather_segments_op(values, segments.ids, None)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_rows: Tensor) -> tuple[Tensor | None, ...]:
        order, offsets = ctx.saved_tensors
        return _segment_reduce_op(grad_rows.contiguous(), order, offsets, _MODES["sum"])[0], None


def segment_reduce(values: Tensor, segments: Segments, *, mode: str = "mean") -> Tensor:
    """The mean, sum or maximum over the rows of each segment.

    Args:
        values: (N, C) float32, float64, float16 or bfloat16, contiguous.
        segments: of :func:`make_segments`, :func:`unique_voxels` or :func:`downsample_voxels`, for N rows.
        mode: "mean"; "sum"; "max", where a NaN is the largest; or "mean_with_zero", which divides by the
            count plus one, as the sparse downsampling of TRELLIS does.

    Returns:
        (S, C), dtype of ``values``: summed in the order of the rows, 16-bit floats in float32; zero where a
        segment is empty.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous, an unknown mode.

    Gradient: with respect to ``values``, once; that of "max" goes to the first row that has it.

    Device: CPU and CUDA with equal results, the same for any number of threads; no sync.
    """
    if mode not in _MODES:
        raise ValueError(f"`mode` must be one of {', '.join(_MODES)}, got {mode!r}")
    if torch.is_grad_enabled() and values.requires_grad:
        return _SegmentReduce.apply(values, segments, _MODES[mode])
    return _segment_reduce_op(values, segments.order, segments.offsets, _MODES[mode])[0]


def gather_segments(values: Tensor, segments: Segments) -> Tensor:
    """To every row the values of its segment.

    Args:
        values: (S, C) float32, float64, float16 or bfloat16, contiguous.
        segments: as of :func:`segment_reduce`, of S segments.

    Returns:
        (N, C), dtype of ``values``; zeros for rows that belong to no segment.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous, another number of segments.

    Gradient: with respect to ``values``, once: the sum over the rows, in their order.

    Device: CPU and CUDA with equal results; no sync.
    """
    if values.ndim == 2 and values.shape[0] != segments.num_segments:
        raise ValueError(
            f"`values` must have a row for each of {segments.num_segments} segments, got {values.shape[0]}"
        )
    if torch.is_grad_enabled() and values.requires_grad:
        return _GatherSegments.apply(values, segments)
    return _gather_segments_op(values, segments.ids, None)
