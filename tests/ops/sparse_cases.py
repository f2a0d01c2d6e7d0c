"""Voxels and tables for the tests of the sparse family."""

import torch

from fastshape import testing


def random_voxels(count, size, batches=2, seed=0, dtype=torch.int32, distinct=True):
    """(N, 4), in no order."""
    generator = testing.generator(seed)
    coords = torch.randint(size, (count, 4), generator=generator)
    coords[:, 0] %= batches
    if distinct:
        coords = coords.unique(dim=0)
        coords = coords[torch.randperm(len(coords), generator=generator)]
    return coords.to(dtype)


def sphere_voxels(resolution, batches=1):
    """(N, 4) int32: the voxels that a sphere passes through, ascending."""
    axis = torch.arange(resolution + 1) / resolution - 0.5
    corners = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1).norm(dim=-1) < 0.4
    inside = corners.float()[None, None]
    share = torch.nn.functional.avg_pool3d(inside, 2, 1)[0, 0]
    voxels = ((share > 0) & (share < 1)).nonzero().int()
    one = [torch.nn.functional.pad(voxels, (1, 0), value=b) for b in range(batches)]
    return torch.cat(one)


def full_grid(*size, batches=1):
    return torch.cartesian_prod(torch.arange(batches), *map(torch.arange, size)).int()


def random_values(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=testing.generator(seed), dtype=torch.float64).to(dtype)
