"""Attention within windows of voxels and within packed sequences, and the order of voxels."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from fastshape import ops
from fastshape.reference import attention as reference

from .registry import Case, Peer, Target, row

Function = Callable[[Tensor, Tensor, Tensor], Tensor]


@functools.cache
def voxels(kind: str, resolution: int) -> Tensor:
    """What a surface passes through, (N, 4) in voxel order: about one voxel and a half deep."""
    axis = (torch.arange(resolution) + 0.5) / resolution * 2 - 1
    x, y, z = torch.meshgrid(axis, axis, axis, indexing="ij")
    if kind == "sphere":
        distance = (x * x + y * y + z * z).sqrt() - 0.8
    else:
        distance = ((x * x + y * y).sqrt() - 0.6).hypot(z) - 0.25
    coords = (distance.abs() < 1.9 / resolution).nonzero().int()
    coords = torch.nn.functional.pad(coords, (1, 0))
    return coords[ops.voxel_order(coords)].contiguous()


def token_rows(plan: ops.WindowPlan) -> Tensor:
    """The rows of all windows' tokens, one window after the other: what the peers gather by."""
    steps = (plan.run_starts - plan.run_positions[:-1]).long()
    positions = torch.arange(plan.num_tokens, device=steps.device)
    return positions + steps.repeat_interleave(plan.run_positions.diff().long())


# ---- Peers -------------------------------------------------------------------------------------------------


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """(B, L, H, D)"""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)


def each_sequence(lengths_q: list[int], lengths_k: list[int]) -> Function:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = zip(q.split(lengths_q), k.split(lengths_k), v.split(lengths_k), strict=True)
        return torch.cat([attend(a[None], b[None], c[None])[0] for a, b, c in parts])

    return run


def gathered(function: Function, rows: Tensor) -> Function:
    """`function` of the windows one after the other, and its result back in the voxels' order."""
    inverse = rows.argsort()
    return lambda q, k, v: function(q[rows], k[rows], v[rows])[inverse]


def buckets(lengths: list[int], rows: Tensor) -> Function:
    """Windows of similar length padded to the same multiple of 16, with a mask."""
    by_length: dict[int, list[Tensor]] = {}
    for part in rows.split(lengths):
        by_length.setdefault(-(-len(part) // 16) * 16, []).append(part)
    tables = []
    for length, parts in by_length.items():
        table = torch.full((len(parts), length), -1, device=rows.device)
        for i, part in enumerate(parts):
            table[i, : len(part)] = part
        tables.append((table.clamp_min(0), (table >= 0)[:, None, None]))
    kept = torch.cat([mask.flatten() for _, mask in tables])
    order = torch.cat([table.flatten() for table, _ in tables])[kept].argsort()

    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        parts = [attend(q[t], k[t], v[t], mask).flatten(0, 1) for t, mask in tables]
        return torch.cat(parts)[kept][order]

    return run


def varlen(cu_q: Tensor, cu_k: Tensor) -> Function | None:
    """torch's own, where it has a kernel."""
    if not cu_q.is_cuda:
        return None
    from torch.nn.attention import varlen

    attend_packed: Any = varlen.varlen_attn
    longest = int(cu_q.diff().max()), int(cu_k.diff().max())
    return lambda q, k, v: attend_packed(q, k, v, cu_q, cu_k, *longest)


def inputs(device: torch.device, shapes: list[tuple[int, ...]], dtype: str) -> list[Tensor]:
    return [torch.randn(*shape).to(device, getattr(torch, dtype)) for shape in shapes]


def case(
    tensors: list[Tensor],
    own: Function,
    expected: Function,
    peers: dict[str, Function | None],
    pairs: float,
    backward: bool,
    target: Target | None,
) -> Case:
    """Of q, k, v: the result alone, or with the gradients."""
    q, k, v = tensors
    rounding = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}[q.dtype]

    def close(result: Any, wanted: Any) -> None:
        for a, b in zip(result, wanted, strict=True):
            a, b = (x.detach().double().cpu() for x in (a, b))
            error = float((a - b).abs().max() / b.abs().max())
            assert error < rounding, f"relative error {error:.2g}"

    grad_out = torch.randn_like(q)
    leaves = [x.detach().clone().requires_grad_() for x in tensors]

    def call(function: Function) -> Callable[[], Any]:
        def with_gradients() -> Any:
            out = function(*leaves)
            return (out, *torch.autograd.grad(out, leaves, grad_out))

        def alone() -> Any:
            with torch.no_grad():
                return (function(q, k, v),)

        return with_gradients if backward else alone

    size = q.nbytes + k.nbytes + v.nbytes + q.nbytes
    return Case(
        run=call(own),
        reference=call(expected),
        check=close,
        peers={name: None if f is None else Peer(call(f)) for name, f in peers.items()},
        bytes=float(size + (2 * size if backward else 0)),
        flops=4.0 * pairs * q.shape[1] * q.shape[2] * (3.5 if backward else 1),
        target=target,
        memory=True,
    )


# ---- Rows --------------------------------------------------------------------------------------------------


def window_rows(function: Any) -> Any:
    """All sizes of grid, shifts, dtypes, with and without gradients."""
    for kind, resolution in (("sphere", 64), ("torus", 64), ("sphere", 128)):
        for shift in (0, 4):
            for dtype in ("float32", "bfloat16"):
                for backward in (False, True):
                    if kind == "torus" and backward:
                        continue
                    function = row(
                        family="attention",
                        op="sparse_window_attention",
                        shape=f"{kind} {resolution}^3, shift {shift}{', gradients' if backward else ''}",
                        dtype=dtype,
                        kind=kind,
                        resolution=resolution,
                        shift=shift,
                        dtype_name=dtype,
                        backward=backward,
                    )(function)
    return function


@window_rows
def sparse_window_attention(
    device: torch.device, kind: str, resolution: int, shift: int, dtype_name: str, backward: bool
) -> Case:
    """12 heads of 64 features; windows of 8^3."""
    coords = voxels(kind, resolution)
    plan = ops.window_plan(coords, shift=shift)
    lengths = plan.cu_lengths.diff().tolist()
    rows, plan = token_rows(plan).to(device), plan.to(device)
    tensors = inputs(device, [(len(coords), 12, 64)] * 3, dtype_name)
    flash = varlen(plan.cu_lengths, plan.cu_lengths) if dtype_name != "float32" else None
    on_cpu = device.type == "cpu"
    moved = coords.to(device)
    return case(
        tensors,
        lambda q, k, v: ops.sparse_window_attention(q, k, v, plan),
        lambda q, k, v: reference.sparse_window_attention(q, k, v, moved, shift=shift),
        {
            "SDPA of each window": gathered(each_sequence(lengths, lengths), rows) if on_cpu else None,
            "SDPA in buckets": buckets(lengths, rows),
            "gather, varlen_attn, scatter": None if flash is None else gathered(flash, rows),
        },
        float(sum(n * n for n in lengths)),
        backward,
        Target("SDPA of each window", 1 / 3)
        if on_cpu
        else Target("gather, varlen_attn, scatter", 1 / 2)
        if flash is not None
        else None,
    )


@row(
    family="attention",
    op="sparse_window_attention",
    shape="sphere 128^3, norm and rotation",
    dtype="bfloat16",
)
def prepared_attention(device: torch.device) -> Case:
    """With the norm and the rotation of q and k; the peer does them in torch, before."""
    coords = voxels("sphere", 128).to(device)
    plan = ops.window_plan(coords)
    tensors = inputs(device, [(len(coords), 12, 64)] * 3, "bfloat16")
    gamma = torch.rand(2, 12, 64, device=device) + 0.5
    rope = ops.rope_table(128, 64, device=device)
    rows, lengths = token_rows(plan), plan.cu_lengths.diff().tolist()
    core = varlen(plan.cu_lengths, plan.cu_lengths) or each_sequence(lengths, lengths)

    def prepare(x: Tensor, gamma: Tensor) -> Tensor:
        return reference.rotate(reference.normalize(x.float(), gamma), coords, rope).to(x.dtype)

    peer = gathered(core, rows)
    options: dict[str, Any] = {"q_gamma": gamma[0], "k_gamma": gamma[1], "rope": rope}
    return case(
        tensors,
        lambda q, k, v: ops.sparse_window_attention(q, k, v, plan, **options),
        lambda q, k, v: reference.sparse_window_attention(q, k, v, coords, **options),
        {"torch": lambda q, k, v: peer(prepare(q, gamma[0]), prepare(k, gamma[1]), v)},
        float(sum(n * n for n in lengths)),
        False,
        None,
    )


@row(family="attention", op="varlen_attention", shape="4 x 1024", dtype="bfloat16", lengths=(1024,) * 4)
@row(
    family="attention",
    op="varlen_attention",
    shape="4096, 500, 2500",
    dtype="bfloat16",
    lengths=(4096, 500, 2500),
)
@row(
    family="attention",
    op="varlen_attention",
    shape="4096, 500, 2500, gradients",
    dtype="bfloat16",
    lengths=(4096, 500, 2500),
    backward=True,
)
def varlen_attention(device: torch.device, lengths: tuple[int, ...], backward: bool = False) -> Case:
    """12 heads of 64 features, every sequence with itself."""
    total = sum(lengths)
    cu = torch.tensor([0, *lengths], device=device).cumsum(0).int()
    tensors = inputs(device, [(total, 12, 64)] * 3, "bfloat16")
    return case(
        tensors,
        lambda q, k, v: ops.varlen_attention(q, k, v, cu, cu),
        lambda q, k, v: reference.varlen_attention(q, k, v, cu, cu),
        {"SDPA of each sequence": each_sequence(list(lengths), list(lengths)), "varlen_attn": varlen(cu, cu)},
        float(sum(n * n for n in lengths)),
        backward,
        None,
    )


@row(family="attention", op="voxel_order", shape="sphere 128^3", dtype="int32")
def voxel_order(device: torch.device) -> Case:
    coords = voxels("sphere", 128)
    coords = coords[torch.randperm(len(coords), generator=torch.Generator().manual_seed(0))].to(device)
    return Case(
        run=lambda: ops.voxel_order(coords),
        reference=lambda: reference.voxel_order(coords),
        peers={"torch": lambda: reference.voxel_order(coords)},
        bytes=24.0 * len(coords),
    )


@row(family="attention", op="window_plan", shape="sphere 128^3, shift 4", dtype="int32")
def window_plan(device: torch.device) -> Case:
    """Beside what TRELLIS does: a window's number of every voxel, sorted, and the windows counted."""
    coords = voxels("sphere", 128).to(device)

    def sort() -> Tensor:
        at = (coords[:, 1:].long() + 4) // 8
        size = int(at.max()) + 1
        number = ((coords[:, 0] * size + at[:, 0]) * size + at[:, 1]) * size + at[:, 2]
        order, counts = number.argsort(), number.bincount()
        return torch.cat([order, counts[counts > 0]])

    return Case(
        run=lambda: ops.window_plan(coords, shift=4).cu_lengths.diff().long(),
        reference=lambda: torch.tensor([len(rows) for rows in reference.windows(coords.cpu(), 8, 4)]),
        peers={
            "sort of all voxels": Peer(sort, result=lambda x: x[len(coords) :].sort(descending=True).values)
        },
        bytes=16.0 * len(coords),
    )
