"""Voxels and inputs for the tests of attention."""

import torch

from fastshape import testing
from fastshape.reference import attention as reference

FLOATS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def voxels(number, size, *, batch=2, seed=0):
    """At most `number` different voxels of a grid of `size`^3 each, in voxel order."""
    generator = testing.generator(seed)
    numbers = torch.randint(batch, (number, 1), generator=generator)
    coords = torch.cat([numbers, torch.randint(size, (number, 3), generator=generator)], 1).unique(dim=0)
    return coords[reference.voxel_order(coords)].int().contiguous()


def cube(size, *, batch=1, start=0):
    """All voxels of a cube, in voxel order."""
    axis = torch.arange(start, start + size)
    coords = torch.cartesian_prod(torch.arange(batch), axis, axis, axis)
    return coords[reference.voxel_order(coords)].int().contiguous()


def heads(rows, num_heads, head_dim, *, dtype=torch.float64, seed=0, count=3):
    """`count` tensors (rows, num_heads, head_dim)."""
    values = torch.randn(count, rows, num_heads, head_dim, generator=testing.generator(seed)).to(dtype)
    return list(values.unbind(0))


def gammas(num_heads, head_dim, *, seed=0):
    """Of q and k, (num_heads, head_dim) float64."""
    values = torch.rand(2, num_heads, head_dim, generator=testing.generator(seed), dtype=torch.float64)
    return list((values + 0.5).unbind(0))


def result_and_gradients(function, tensors, grad_out):
    """Of a function of `tensors`: what it returns, and the gradient of each."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, grad_out.to(out))]


def assert_all_accurate(results, expected64, same_precision):
    """Float32 gradients of gammas too are made of the result as it was rounded to the first one's dtype."""
    floor = testing.FLOORS[results[0].dtype]
    for result, wide, same in zip(results, expected64, same_precision, strict=True):
        testing.assert_accurate(result, wide, same, floor=floor)


def plan_rows(plan):
    """The rows of every window of a plan, from its runs."""
    rows = []
    for i in range(plan.num_windows):
        runs = range(int(plan.run_offsets[i]), int(plan.run_offsets[i + 1]))
        for run in runs:
            length = int(plan.run_positions[run + 1] - plan.run_positions[run])
            rows.append((i, int(plan.run_starts[run]), length))
    return rows
