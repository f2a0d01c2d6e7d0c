"""Sparse voxels: tables of neighbors, coarser grids, reductions over segments, convolutions."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastshape import ops, testing

from .peers import installed
from .registry import Case, Peer, Target, row

# ---- Inputs ------------------------------------------------------------------------------------------------


@functools.cache
def surface_voxels(resolution: int) -> Tensor:
    """(N, 4) int32: the voxels that a sphere passes through, in ascending order."""
    axis = torch.arange(resolution + 1) / resolution - 0.5
    inside = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).norm(dim=-1) < 0.4
    share = torch.nn.functional.avg_pool3d(inside.float()[None, None], 2, 1)[0, 0]
    voxels = ((share > 0) & (share < 1)).nonzero().int()
    return torch.nn.functional.pad(voxels, (1, 0))


def shuffled(rows: Tensor) -> Tensor:
    return rows[torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]


def packed(coords: Tensor) -> Tensor:
    """A key of 16 bits for each number, with room for one step down."""
    shifts = torch.tensor([48, 32, 16, 0], device=coords.device)
    return ((coords.long() + torch.tensor([0, 1, 1, 1], device=coords.device)) << shifts).sum(-1)


def torch_table(coords: Tensor, queries: Tensor, kernel_size: int, stride: int) -> Tensor:
    """The table of neighbors by bisection of sorted keys."""
    keys, order = packed(coords).sort()
    steps = torch.arange(kernel_size, device=coords.device) - (kernel_size - 1) // 2
    offsets = torch.nn.functional.pad(torch.cartesian_prod(steps, steps, steps), (1, 0))
    scale = torch.tensor([1, stride, stride, stride], device=coords.device)
    wanted = packed((queries * scale)[:, None] + offsets)
    found = torch.searchsorted(keys, wanted).clamp_max(len(keys) - 1)
    return torch.where(keys[found] == wanted, order[found], -1).int()


# ---- Voxels ------------------------------------------------------------------------------------------------


@row(family="sparse", op="neighbor_table", shape="sphere in 64^3", dtype="int32", resolution=64)
@row(family="sparse", op="neighbor_table", shape="sphere in 128^3", dtype="int32", resolution=128)
@row(family="sparse", op="neighbor_table", shape="sphere in 256^3", dtype="int32", resolution=256)
def neighbor_table(device: torch.device, resolution: int) -> Case:
    coords = shuffled(surface_voxels(resolution)).to(device)
    return Case(
        run=lambda: ops.neighbor_table(coords).rows,
        reference=lambda: torch_table(coords, coords, 3, 1),
        peers={"torch": lambda: torch_table(coords, coords, 3, 1)},
        bytes=coords.nbytes + 27.0 * 4 * len(coords),
        target=Target("torch", 1 / 3) if device.type == "cpu" else None,
    )


@row(family="sparse", op="downsample_voxels", shape="sphere in 128^3", dtype="int32", resolution=128)
@row(family="sparse", op="downsample_voxels", shape="sphere in 256^3", dtype="int32", resolution=256)
def downsample_voxels(device: torch.device, resolution: int) -> Case:
    """Voxels in a random order to the next coarser grid, beside torch.unique of rows."""
    coords = shuffled(surface_voxels(resolution)).to(device)

    def run() -> tuple[Tensor, Tensor]:
        coarse = ops.downsample_voxels(coords)
        return coarse.coords, coarse.segments.ids

    def in_torch() -> tuple[Tensor, Tensor]:
        return torch.unique(torch.cat([coords[:, :1], coords[:, 1:] // 2], 1), dim=0, return_inverse=True)

    return Case(
        run=run,
        reference=in_torch,
        peers={"torch": in_torch},
        bytes=coords.nbytes + 12.0 * len(coords),
        target=Target("torch", 1 / 3) if device.type == "cpu" else None,
    )


@row(family="sparse", op="segment_reduce", shape="mean, 800k x 32 -> 50k", mode="mean")
@row(family="sparse", op="segment_reduce", shape="max, 800k x 32 -> 50k", mode="max")
def segment_reduce(device: torch.device, mode: str) -> Case:
    """Points pooled into the voxels they lie in, sorted beforehand; beside torch's scatter_reduce."""
    index = torch.randint(50_000, (800_000,)).to(device)
    values = torch.randn(800_000, 32).to(device)
    segments = ops.make_segments(index, 50_000)
    name = {"mean": "mean", "max": "amax"}[mode]

    def in_torch() -> Tensor:
        return values.new_zeros(50_000, 32).scatter_reduce(
            0, index[:, None].expand(-1, 32), values, name, include_self=False
        )

    return Case(
        run=lambda: ops.segment_reduce(values, segments, mode=mode),
        reference=in_torch,
        check=lambda result, expected: testing.assert_accurate(result, expected.double(), floor=1e-5),
        peers={"torch": in_torch},
        bytes=values.nbytes + 4.0 * len(index) + 4.0 * 32 * 50_000,
    )


# ---- Convolutions ------------------------------------------------------------------------------------------


def in_torch(feats: Tensor, weight: Tensor, bias: Tensor, rows: Tensor) -> Callable[[], Tensor]:
    """Gathered rows, one product an offset, scattered; the pairs of rows are listed beforehand."""
    kernels = weight.flatten(1, 3).permute(1, 2, 0).contiguous()
    pairs = [(rows[:, k] >= 0).nonzero()[:, 0] for k in range(rows.shape[1])]
    sources = [rows[m, k].long() for k, m in enumerate(pairs)]

    def run() -> Tensor:
        out = bias.expand(len(rows), -1).clone()
        for kernel, m, n in zip(kernels, pairs, sources, strict=True):
            out.index_add_(0, m, feats[n] @ kernel)
        return out

    return run


def spconv_peer(feats: Tensor, weight: Tensor, bias: Tensor, coords: Tensor) -> Peer | None:
    """spconv's submanifold convolution, its pairs listed beforehand; on the CPU in training mode only."""
    spconv = installed("spconv.pytorch")
    if spconv is None:
        return None
    layer = spconv.SubMConv3d(weight.shape[4], weight.shape[0], 3, padding=1, indice_key="table").train()
    layer.weight.data.copy_(weight)
    layer.bias.data.copy_(bias)
    extent = (coords[:, 1:].amax(0) + 1).tolist()
    voxels = spconv.SparseConvTensor(feats, coords, extent, 1)

    def run() -> tuple[Tensor]:
        with torch.no_grad():
            return (layer(voxels).features,)

    run()
    return Peer(run, note="with more than one thread some rows of some calls are wrong")


def near(result: Any, expected: Any) -> None:
    """Up to the roundings of sums in another order."""
    for got, want in zip(result, expected, strict=True):
        floor = 1e-5 if got.dtype == torch.float32 else 4 * testing.FLOORS[got.dtype]
        testing.assert_accurate(got, want.double(), floor=floor)


def layer_of(
    device: torch.device, table: ops.NeighborTable, channels: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Features, weight and bias."""
    size = round(table.rows.shape[1] ** (1 / 3))
    count = len(table.rows if table.inverse is None else table.inverse)
    weight = torch.randn(channels[1], size, size, size, channels[0]) * channels[0] ** -0.5 / 3
    tensors = (torch.randn(count, channels[0]), weight, torch.randn(channels[1]))
    feats, weight, bias = (t.to(device, dtype) for t in tensors)
    return feats, weight, bias


def costs(table: ops.NeighborTable, channels: tuple[int, int], dtype: torch.dtype) -> tuple[float, float]:
    """Operations and bytes."""
    pairs = int((table.rows >= 0).sum())
    count = len(table.rows if table.inverse is None else table.inverse)
    weight = table.rows.shape[1] * channels[0] * channels[1]
    numbers = count * channels[0] + len(table.rows) * channels[1] + weight
    return 2.0 * pairs * channels[0] * channels[1], float(dtype.itemsize * numbers + table.rows.nbytes)


def forward_case(
    device: torch.device,
    coords: Tensor,
    table: ops.NeighborTable,
    channels: tuple[int, int],
    dtype: torch.dtype,
) -> Case:
    feats, weight, bias = layer_of(device, table, channels, dtype)
    peers: dict[str, Peer | None] = {
        "torch": Peer(in_torch(feats, weight, bias, table.rows), result=lambda out: (out,))
    }
    if table.inverse is None and dtype == torch.float32 and device.type == "cpu":
        peers["spconv"] = spconv_peer(feats, weight, bias, coords)
    flops, moved = costs(table, channels, dtype)
    return Case(
        run=lambda: (ops.sparse_conv3d(feats, weight, bias, table),),
        reference=lambda: (in_torch(feats.float(), weight.float(), bias.float(), table.rows)(),),
        check=near,
        peers=peers,
        target=Target("torch", 1 / 3) if device.type == "cpu" and dtype == torch.float32 else None,
        flops=flops,
        bytes=moved,
    )


def declare(shape: str, **parameters: Any) -> Callable[[Callable[..., Case]], Callable[..., Case]]:
    """A row in float32 and one in bfloat16."""

    def both(make: Callable[..., Case]) -> Callable[..., Case]:
        for name in ("bfloat16", "float32"):
            kind = {"float_type": getattr(torch, name), **parameters}
            make = row(family="sparse", op=make.__name__, shape=shape, dtype=name, **kind)(make)
        return make

    return both


@declare("3^3, 64->64, sphere in 64^3", resolution=64, channels=(64, 64))
@declare("3^3, 192->192, sphere in 64^3", resolution=64, channels=(192, 192))
@declare("3^3, 64->64, sphere in 128^3", resolution=128, channels=(64, 64))
@declare("3^3, 192->192, sphere in 128^3", resolution=128, channels=(192, 192))
def sparse_conv3d(
    device: torch.device, resolution: int, channels: tuple[int, int], float_type: torch.dtype
) -> Case:
    """Submanifold; the table of neighbors is built beforehand, as for all layers of a network."""
    coords = surface_voxels(resolution).to(device)
    return forward_case(device, coords, ops.neighbor_table(coords), channels, float_type)


@row(
    family="sparse",
    op="sparse_conv3d",
    shape="3^3, 768->192, children of a sphere in 64^3",
    dtype="bfloat16",
    devices=("cuda",),
)
def sparse_conv3d_of_children(device: torch.device) -> Case:
    """The largest layer of TripoSF's decoder, on a smaller shape."""
    coords = ops.subdivide_voxels(surface_voxels(64).to(device))
    return forward_case(device, coords, ops.neighbor_table(coords), (768, 192), torch.bfloat16)


def strided_table(device: torch.device, resolution: int) -> tuple[Tensor, ops.NeighborTable]:
    coords = surface_voxels(resolution).to(device)
    coarse = ops.downsample_voxels(coords).coords
    return coords, ops.neighbor_table(coords, coarse, kernel_size=2, stride=2)


@declare("2^3 with stride 2, 64->128, sphere in 128^3", resolution=128, channels=(64, 128))
def sparse_conv3d_strided(
    device: torch.device, resolution: int, channels: tuple[int, int], float_type: torch.dtype
) -> Case:
    coords, table = strided_table(device, resolution)
    return forward_case(device, coords, table, channels, float_type)


@declare("inverse of 2^3 with stride 2, 128->64, sphere in 128^3", resolution=128, channels=(128, 64))
def sparse_conv3d_inverse(
    device: torch.device, resolution: int, channels: tuple[int, int], float_type: torch.dtype
) -> Case:
    coords, table = strided_table(device, resolution)
    return forward_case(device, coords, table.transposed(), channels, float_type)


@declare("3^3, 64->64, sphere in 64^3", resolution=64, channels=(64, 64))
@declare("3^3, 64->64, sphere in 128^3", resolution=128, channels=(64, 64))
def sparse_conv3d_gradients(
    device: torch.device, resolution: int, channels: tuple[int, int], float_type: torch.dtype
) -> Case:
    """Forward and backward, with respect to features, weight and bias. spconv has no backward on the CPU."""
    coords = surface_voxels(resolution).to(device)
    table = ops.neighbor_table(coords)
    feats, weight, bias = inputs = [t.requires_grad_() for t in layer_of(device, table, channels, float_type)]
    grad = torch.randn(len(coords), channels[1]).to(device, float_type)
    wide = [t.detach().float().requires_grad_() for t in inputs]

    def torch_gradients(given: list[Tensor], grad: Tensor) -> tuple[Tensor, ...]:
        convolve = in_torch(given[0], given[1], given[2], table.rows)
        return torch.autograd.grad(convolve(), given, grad)

    flops, moved = costs(table, channels, float_type)
    return Case(
        run=lambda: torch.autograd.grad(ops.sparse_conv3d(feats, weight, bias, table), inputs, grad),
        reference=lambda: torch_gradients(wide, grad.float()),
        check=near,
        peers={"torch": lambda: torch_gradients(inputs, grad)},
        target=Target("torch", 1 / 3) if device.type == "cpu" and float_type == torch.float32 else None,
        flops=3 * flops,
        bytes=2 * moved,
        memory=True,
    )
