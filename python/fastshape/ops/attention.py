"""Attention within the windows of a sparse voxel grid and within packed sequences."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastshape._library import backend, define

# ---- voxel_order -------------------------------------------------------------------------------------------


_MAX_COORD = 2**20 - 1  # kVoxelBits in csrc/attention/voxel_order.h


def _raise_bad_row(coords: Tensor, row: int) -> None:
    raise ValueError(
        f"`coords` must have a number in the batch below 2^31 and coordinates in [0, {_MAX_COORD}], "
        f"got {coords[row].tolist()} in row {row}"
    )


def _require_coords(coords: Tensor) -> None:
    if not isinstance(coords, Tensor):
        raise TypeError(f"`coords` must be a torch.Tensor, got {type(coords).__name__}")
    if coords.ndim != 2 or coords.shape[1] != 4:
        raise ValueError(f"`coords` must have shape (N, 4), got {tuple(coords.shape)}")


def _voxel_order(coords: Tensor) -> Tensor:
    module, workspace = backend(), None
    order = torch.empty(len(coords), dtype=torch.int64, device=coords.device)
    bad_row = torch.full((1,), len(coords), dtype=torch.int64, device=coords.device)
    if coords.is_cuda or module.emulated:
        size = module.voxel_order_workspace_bytes(len(coords))
        workspace = torch.empty(size, dtype=torch.uint8, device=coords.device)
    module.voxel_order(coords, workspace, bad_row, order)
    bad = int(bad_row)  # the sync
    if bad < len(coords):
        _raise_bad_row(coords, bad)
    return order


_voxel_order_op = define(
    "voxel_order(Tensor coords) -> Tensor",
    implementation=_voxel_order,
    fake=lambda coords: coords.new_empty(len(coords), dtype=torch.int64),
)


def voxel_order(coords: Tensor) -> Tensor:
    """The permutation that puts voxels into an order in which windows are a few runs of rows.

    ``coords[voxel_order(coords)]`` ascends by the number in the batch, then by the bits of x, y and z from
    the highest down, x before y before z of one place (Morton order). So every box of side 2^k at a multiple
    of 2^k is one run of rows, and a window of 8^3 that is shifted by 4 is at most eight. Equal rows keep
    their order.

    Args:
        coords: (N, 4) int32 or int64, contiguous: number in the batch, x, y, z; coordinates below 2^20.

    Returns:
        (N,) int64.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, not contiguous, coordinates out of range.

    Gradient: none.

    Device: CPU and CUDA with equal results; one sync, for the check of the range.

    Reference: Morton 1966.
    """
    _require_coords(coords)
    return _voxel_order_op(coords)


# ---- window_plan -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WindowPlan:
    """Which rows of a list of voxels lie in which window, made by :func:`window_plan`. One device.

    A window is some runs of rows; one after the other these are its tokens. The windows stand by length, the
    longest first, and the tokens of all of them one after the other are positions 0 .. N - 1.

    Attributes:
        coords: (N, 4) int32, as given to ``window_plan``.
        cu_lengths: (W + 1,) int32, the position of every window's first token, and N.
        run_offsets: (W + 1,) int32, every window's first run, and the number of runs R.
        run_starts: (R,) int32, the first row of every run.
        run_positions: (R + 1,) int32, the position of every run's first token, and N.
        window: voxels along an axis of a window.
        shift: what is added to a coordinate before it is divided.
        max_length: tokens of the longest window.
        max_coord: the largest coordinate.
    """

    coords: Tensor
    cu_lengths: Tensor
    run_offsets: Tensor
    run_starts: Tensor
    run_positions: Tensor
    window: int
    shift: int
    max_length: int
    max_coord: int

    @property
    def num_tokens(self) -> int:
        return len(self.coords)

    @property
    def num_windows(self) -> int:
        return len(self.cu_lengths) - 1

    def to(self, device: torch.device | str) -> WindowPlan:
        moved = {
            f.name: getattr(self, f.name).to(device)
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **moved)


_NUM_COUNTS = 6  # WindowPlanCounts in csrc/attention/window_plan.h


def _window_plan(coords: Tensor, window: int, shift: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    module, workspace, size = backend(), None, len(coords)
    sizes = (size + 1, size + 1, size, size + 1)
    arrays = [torch.empty(n, dtype=torch.int32, device=coords.device) for n in sizes]
    counts = torch.empty(_NUM_COUNTS, dtype=torch.int64, device=coords.device)
    if coords.is_cuda or module.emulated:
        bytes_needed = module.window_plan_workspace_bytes(size)
        workspace = torch.empty(bytes_needed, dtype=torch.uint8, device=coords.device)
    module.window_plan(coords, window, shift, workspace, *arrays, counts)
    windows, runs, max_length, max_coord, bad, unordered = counts.tolist()  # the sync
    if bad < size:
        _raise_bad_row(coords, bad)
    if unordered < size:
        raise ValueError(
            "`coords` must be in voxel order, coords[voxel_order(coords)], "
            f"got {coords[unordered].tolist()} in row {unordered} behind {coords[unordered - 1].tolist()}"
        )
    ends = (windows + 1, windows + 1, runs, runs + 1)
    cu_lengths, run_offsets, run_starts, run_positions = (
        array[:end].clone() for array, end in zip(arrays, ends, strict=True)
    )
    return cu_lengths, run_offsets, run_starts, run_positions, torch.tensor([max_length, max_coord])


def _fake_window_plan(
    coords: Tensor, window: int, shift: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    context = torch.library.get_ctx()
    offsets, runs = context.new_dynamic_size(), context.new_dynamic_size()
    cu_lengths, run_offsets, run_starts, run_positions = (
        coords.new_empty(size) for size in (offsets, offsets, runs, runs + 1)
    )
    return (
        cu_lengths,
        run_offsets,
        run_starts,
        run_positions,
        torch.empty(2, dtype=torch.int64),
    )


_window_plan_op = define(
    "window_plan(Tensor coords, int window, int shift) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    implementation=_window_plan,
    fake=_fake_window_plan,
)


def window_plan(coords: Tensor, *, window: int = 8, shift: int = 0) -> WindowPlan:
    """The windows of voxels that stand in the order of :func:`voxel_order`, for attention within them.

    A voxel's window is (b, (x + shift) // window, (y + shift) // window, (z + shift) // window). Windows are
    put together from cells, boxes whose side is the largest power of two that divides both ``window`` and
    ``shift``, as each of them is a run of rows; of windows of 8 and shifts of 4 that is one run or eight. Any
    other sizes do too, at worst with a run for every voxel.

    Args:
        coords: (N, 4) int32, contiguous: number in the batch, x, y, z, below 2^20; in voxel order.
        window: voxels along an axis of a window, at least 1.
        shift: at least 0; ``window // 2`` in every second block of a Swin transformer.

    Returns:
        A plan that serves every call with these voxels.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, not contiguous, coordinates out of range or not in voxel order, a window or
            a shift that is too small.

    Gradient: none.

    Device: CPU and CUDA with equal results; one sync, as the sizes of the plan depend on the voxels. None
    where the plan is used.

    Reference: Liu et al. 2021 (Swin); TRELLIS' windows, without its padding of the grid.
    """
    _require_coords(coords)
    if window < 1 or shift < 0:
        raise ValueError(f"`window` must be at least 1 and `shift` at least 0, got {window} and {shift}")
    cu_lengths, run_offsets, run_starts, run_positions, counts = _window_plan_op(coords, window, shift)
    max_length, max_coord = counts.tolist()
    return WindowPlan(
        coords, cu_lengths, run_offsets, run_starts, run_positions, window, shift, max_length, max_coord
    )


# ---- The kernels -------------------------------------------------------------------------------------------

# What all of them take beside q, k and v. Without k_offsets they are those of q: torch.compile wants no
# tensor twice.
_LAYOUT = (
    "Tensor q_offsets, Tensor? k_offsets, Tensor? run_offsets, Tensor? run_starts, Tensor? run_positions,"
    " Tensor? coords, float scale, Tensor? q_gamma, Tensor? k_gamma, Tensor? rope"
)


def _wide_dtype(q: Tensor) -> torch.dtype:
    return torch.float64 if q.dtype == torch.float64 else torch.float32


def _both_offsets(layout: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layout[0], layout[0] if layout[1] is None else layout[1], *layout[2:])


def _new_out(q: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.empty(
        (q.shape[1], q.shape[0]), dtype=_wide_dtype(q), device=q.device
    )


def _require_heads(name: str, x: Tensor, axes: str) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(x).__name__}")
    if x.ndim != axes.count(",") + 1:
        raise ValueError(f"`{name}` must have shape ({axes}), got {tuple(x.shape)}")


def _check_offsets(name: str, offsets: Tensor, total: int) -> None:
    """Of tensors on the CPU; what else may be wrong with them the kernel's binding says."""
    if offsets.dtype != torch.int32 or offsets.ndim != 1 or len(offsets) == 0 or offsets.is_cuda:
        return
    if int(offsets[0]) != 0 or int(offsets[-1]) != total or bool((offsets.diff() < 0).any()):
        raise ValueError(f"`{name}` must ascend from 0 to {total}, got {offsets.tolist()}")


def _attention(q: Tensor, k: Tensor, v: Tensor, *layout: Any) -> tuple[Tensor, Tensor]:
    out, lse = _new_out(q)
    layout = _both_offsets(layout)
    if layout[2] is None:
        _check_offsets("cu_seqlens_q", layout[0], len(q))
        _check_offsets("cu_seqlens_k", layout[1], len(k))
    backend().attention(q, k, v, *layout, out, lse)
    return out, lse


_attention_op = define(
    f"attention(Tensor q, Tensor k, Tensor v, {_LAYOUT}) -> (Tensor, Tensor)",
    implementation=_attention,
    fake=lambda q, *_: _new_out(q),
)


def _new_gamma_grads(q: Tensor, q_gamma: Tensor | None, k_gamma: Tensor | None) -> tuple[Tensor, Tensor]:
    """Empty where there is no gamma."""
    dtype, none = _wide_dtype(q), q.new_empty(0, dtype=_wide_dtype(q))
    return (
        none if q_gamma is None else torch.empty_like(q_gamma, dtype=dtype),
        none.clone() if k_gamma is None else torch.empty_like(k_gamma, dtype=dtype),
    )


def _run_backward(
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    layout: tuple[Any, ...],
    grads: tuple[Tensor, Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """Writes the gradients of q, k and v; returns those of the gammas."""
    module, (num_queries, num_heads, head_dim) = backend(), q.shape
    q_gamma, k_gamma = layout[7:9]
    size = module.attention_backward_workspace_bytes(
        num_queries, len(layout[0]) - 1, num_heads, head_dim, q.dtype == _wide_dtype(q), q.is_cuda
    )
    workspace = torch.empty(size, dtype=torch.uint8, device=q.device) if size else None
    shape = (module.attention_gamma_parts(max(num_queries, len(k)), len(layout[0]) - 1), num_heads, head_dim)
    parts = [
        None if gamma is None else torch.empty(shape, dtype=_wide_dtype(q), device=q.device)
        for gamma in (q_gamma, k_gamma)
    ]
    module.attention_backward(grad_out, q, k, v, out, lse, *_both_offsets(layout), workspace, *grads, *parts)
    none = q.new_empty(0, dtype=_wide_dtype(q))
    q_grad, k_grad = (none.clone() if part is None else part.sum(0) for part in parts)
    return q_grad, k_grad


def _attention_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *layout: Any
) -> tuple[Tensor, ...]:
    grad_q, grad_k, grad_v = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    grads = (grad_q, grad_k, grad_v)
    return (*grads, *_run_backward(grad_out, q, k, v, out, lse, layout, grads))


def _fake_attention_backward(
    grad_out: Tensor, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *layout: Any
) -> tuple[Tensor, ...]:
    grads = tuple(torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (q, k, v))
    return (*grads, *_new_gamma_grads(q, *layout[7:9]))


_attention_backward_op = define(
    f"attention_backward(Tensor grad_out, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_LAYOUT})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    implementation=_attention_backward,
    fake=_fake_attention_backward,
)


def _attention_backward_packed(
    grad_out: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, *layout: Any
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of q, k and v in one tensor, (N, 3, H, D)."""
    grad = torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device)
    q, k, v = qkv.unbind(1)
    grad_q, grad_k, grad_v = grad.unbind(1)
    return grad, *_run_backward(grad_out, q, k, v, out, lse, layout, (grad_q, grad_k, grad_v))


_attention_backward_packed_op = define(
    f"attention_backward_packed(Tensor grad_out, Tensor qkv, Tensor out, Tensor lse, {_LAYOUT})"
    " -> (Tensor, Tensor, Tensor)",
    implementation=_attention_backward_packed,
    fake=lambda grad_out, qkv, out, lse, *layout: (
        torch.empty(qkv.shape, dtype=qkv.dtype, device=qkv.device),
        *_new_gamma_grads(out, *layout[7:9]),
    ),
)


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, *layout: Any) -> Tensor:
        out, lse = _attention_op(q, k, v, *layout)
        tensors = [x for x in layout if isinstance(x, Tensor)]
        ctx.save_for_backward(q, k, v, out, lse, *tensors)
        ctx.layout = [None if isinstance(x, Tensor) else x for x in layout]
        ctx.tensors = [isinstance(x, Tensor) for x in layout]
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse, *tensors = ctx.saved_tensors
        layout = _restored(ctx, tensors)
        *grads, q_gamma, k_gamma = _attention_backward_op(grad_out.contiguous(), q, k, v, out, lse, *layout)
        return (*grads, *_layout_grads(layout, q_gamma, k_gamma))


class _AttentionPacked(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, qkv: Tensor, *layout: Any) -> Tensor:
        out, lse = _attention_op(*qkv.unbind(1), *layout)
        ctx.save_for_backward(qkv, out, lse, *[x for x in layout if isinstance(x, Tensor)])
        ctx.layout = [None if isinstance(x, Tensor) else x for x in layout]
        ctx.tensors = [isinstance(x, Tensor) for x in layout]
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        qkv, out, lse, *tensors = ctx.saved_tensors
        layout = _restored(ctx, tensors)
        grad, q_gamma, k_gamma = _attention_backward_packed_op(grad_out.contiguous(), qkv, out, lse, *layout)
        return grad, *_layout_grads(layout, q_gamma, k_gamma)


def _restored(ctx: Any, tensors: list[Tensor]) -> list[Any]:
    rest = iter(tensors)
    return [next(rest) if there else x for x, there in zip(ctx.layout, ctx.tensors, strict=True)]


def _layout_grads(layout: list[Any], q_gamma: Tensor, k_gamma: Tensor) -> tuple[Tensor | None, ...]:
    grads: list[Tensor | None] = [None] * len(layout)
    grads[7] = None if layout[7] is None else q_gamma
    grads[8] = None if layout[8] is None else k_gamma
    return tuple(grads)


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


def _wide_gamma(gamma: Tensor | None, q: Tensor) -> Tensor | None:
    return None if gamma is None else gamma.to(_wide_dtype(q)).contiguous()


# ---- sparse_window_attention -------------------------------------------------------------------------------


def rope_table(
    length: int, head_dim: int, *, base: float = 10000.0, device: torch.device | str | None = None
) -> Tensor:
    """Cosine and sine for the 3-D RoPE of :func:`sparse_window_attention`, for coordinates below ``length``.

    Args:
        length: the largest coordinate and one.
        head_dim: D; an axis has F = D // 2 // 3 frequencies ``base ** (-f / F)``.
        base: 10000 in TRELLIS.2.
        device: of the result.

    Returns:
        (length, F, 2) float32, rounded from float64.
    """
    count = head_dim // 6
    frequency = base ** (-torch.arange(count, dtype=torch.float64) / count)
    angle = torch.arange(length, dtype=torch.float64)[:, None] * frequency
    return torch.stack([angle.cos(), angle.sin()], -1).float().to(device)


def _window_layout(
    q: Tensor,
    plan: WindowPlan,
    scale: float | None,
    q_gamma: Tensor | None,
    k_gamma: Tensor | None,
    rope: Tensor | None,
) -> tuple[Any, ...]:
    if len(q) != plan.num_tokens:
        raise ValueError(f"`q` must have a row for each of the plan's {plan.num_tokens} voxels, got {len(q)}")
    if rope is not None and len(rope) <= plan.max_coord:
        raise ValueError(
            f"`rope` must have a row for every coordinate up to {plan.max_coord}, got {len(rope)} rows"
        )
    return (
        plan.cu_lengths,
        None,
        plan.run_offsets,
        plan.run_starts,
        plan.run_positions,
        None if rope is None else plan.coords,
        q.shape[-1] ** -0.5 if scale is None else float(scale),
        _wide_gamma(q_gamma, q),
        _wide_gamma(k_gamma, q),
        rope,
    )


def sparse_window_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    plan: WindowPlan,
    *,
    scale: float | None = None,
    q_gamma: Tensor | None = None,
    k_gamma: Tensor | None = None,
    rope: Tensor | None = None,
) -> Tensor:
    """Softmax attention of every voxel to all voxels in its window.

    Nothing is gathered, scattered or padded: a window is some runs of rows, see :func:`window_plan`. The norm
    of q and k, and their rotation, are part of the kernel.

    Args:
        q, k, v: (N, H, D), one dtype of float16, bfloat16, float32, float64, in the order of the plan's
            voxels. Views with strides, such as those of (N, 3, H, D), are taken as they are, if the features
            lie side by side and each row of them at a multiple of 16 bytes. D: a multiple of 8, 16 to 128.
        plan: of :func:`window_plan`.
        scale: of the scores; 1 / sqrt(D) if None.
        q_gamma, k_gamma: (H, D), any float dtype, used in float32: q, or k, is divided by its norm and
            multiplied by gamma * sqrt(D).
        rope: (P, F, 2) float32, of :func:`rope_table`: afterwards q and k are rotated by their voxel's x, y
            and z, features 2p and 2p + 1 by axis p // F and frequency p % F.

    Returns:
        (N, H, D), dtype of ``q``.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, strides that no kernel takes, a plan of other voxels.

    Gradient: of q, k, v and the gammas, once; scores are computed again from the saved logarithm of each
    row's sum.

    Device: CPU and CUDA; no sync. Arithmetic in float32 (float64 for float64), results do not change from run
    to run nor with the number of threads. On CUDA float16 and bfloat16 use the tensor cores.

    Reference: Liu et al. 2021 (Swin), as TRELLIS does it with sparse voxels: partial windows at the border,
    no mask and no bias. The softmax without a second pass is Milakov and Gimelshein's (2018) and Dao's
    (2022); norm and rotation in TRELLIS.2's order.
    """
    _require_heads("q", q, "N, H, D")
    layout = _window_layout(q, plan, scale, q_gamma, k_gamma, rope)
    if _needs_grad(q, k, v, q_gamma, k_gamma):
        return _Attention.apply(q, k, v, *layout)
    return _attention_op(q, k, v, *layout)[0]


def sparse_window_attention_packed(
    qkv: Tensor,
    plan: WindowPlan,
    *,
    scale: float | None = None,
    q_gamma: Tensor | None = None,
    k_gamma: Tensor | None = None,
    rope: Tensor | None = None,
) -> Tensor:
    """:func:`sparse_window_attention` of q, k and v in one tensor, (N, 3, H, D); so is the gradient."""
    _require_heads("qkv", qkv, "N, 3, H, D")
    if qkv.shape[1] != 3:
        raise ValueError(f"`qkv` must have shape (N, 3, H, D), got {tuple(qkv.shape)}")
    q, k, v = qkv.unbind(1)
    layout = _window_layout(q, plan, scale, q_gamma, k_gamma, rope)
    if _needs_grad(qkv, q_gamma, k_gamma):
        return _AttentionPacked.apply(qkv, *layout)
    return _attention_op(q, k, v, *layout)[0]


# ---- varlen_attention --------------------------------------------------------------------------------------


def varlen_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    *,
    scale: float | None = None,
    q_gamma: Tensor | None = None,
    k_gamma: Tensor | None = None,
) -> Tensor:
    """Softmax attention of every sequence's queries to the keys of the same sequence.

    Args:
        q: (total_q, H, D), the sequences one after the other; as in :func:`sparse_window_attention`.
        k, v: (total_k, H, D).
        cu_seqlens_q: (B + 1,) int32, ascending from 0 to total_q: where every sequence begins. Checked on the
            CPU only.
        cu_seqlens_k: the same of the keys, to total_k.
        scale: of the scores; 1 / sqrt(D) if None.
        q_gamma, k_gamma: (H, D), as in :func:`sparse_window_attention`.

    Returns:
        (total_q, H, D), dtype of ``q``; zeros for a sequence without keys.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, strides that no kernel takes, on the CPU wrong offsets.

    Gradient: of q, k, v and the gammas, once.

    Device: CPU and CUDA; no sync; results do not change from run to run nor with the number of threads.

    Reference: Dao et al. 2022; see :func:`sparse_window_attention`.
    """
    _require_heads("q", q, "N, H, D")
    layout = (
        cu_seqlens_q,
        None if cu_seqlens_k is cu_seqlens_q else cu_seqlens_k,
        None,
        None,
        None,
        None,
        q.shape[-1] ** -0.5 if scale is None else float(scale),
        _wide_gamma(q_gamma, q),
        _wide_gamma(k_gamma, q),
        None,
    )
    if _needs_grad(q, k, v, q_gamma, k_gamma):
        return _Attention.apply(q, k, v, *layout)
    return _attention_op(q, k, v, *layout)[0]
