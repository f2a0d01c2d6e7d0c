"""The connectivity of dual surfaces: which cubes are crossed, their cases, and the quads between them."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastshape._library import backend, define

NUM_TOPOLOGY = 9  # tensors of Topology


def bytes_like(tensor: Tensor, size: int) -> Tensor:
    return torch.empty(size, dtype=torch.uint8, device=tensor.device)


# lowest, rows, cases, first_vertex, first_pair, vertex_cubes, pair_edges, quads, kinds
Topology = tuple[Tensor, ...]


def _new_topology(values: Tensor, crossed: Any, vertices: Any, pairs: Any, quads: Any) -> Topology:
    def new(*shape: Any, dtype: torch.dtype = torch.int64) -> Tensor:
        return values.new_empty(*shape, dtype=dtype)

    cubes = (new(crossed), new(crossed), new(crossed, dtype=torch.uint8), new(crossed), new(crossed))
    return (
        *cubes,
        new(vertices),
        new(pairs, dtype=torch.uint8),
        new(quads, 4),
        new(quads, dtype=torch.uint8),
    )


class Marked(NamedTuple):
    """Which cubes a surface crosses, as bits, and what it takes to list them."""

    num_crossed: int
    workspace: Tensor
    count_workspace: Tensor


def mark(values: Tensor, cubes: Tensor | None, level: float) -> Marked:
    module = backend()
    shape = values.shape if cubes is None and values.ndim == 3 else (0, 0, 0)
    size = module.dual_surface_workspace_bytes(values.numel(), *shape, cubes is not None, values.is_cuda)
    workspace, found = bytes_like(values, size), values.new_empty(2, dtype=torch.int64)
    module.dual_surface_mark(values, cubes, level, workspace, found)
    num_crossed, bad_row = found.tolist()  # a sync
    if cubes is not None and bad_row < len(cubes):
        raise ValueError(
            f"`cubes` must lie in [0, {values.numel()}), got {cubes[bad_row].tolist()} in row {bad_row}"
        )
    count_size = module.dual_surface_count_workspace_bytes(num_crossed, values.is_cuda)
    return Marked(num_crossed, workspace, bytes_like(values, count_size))


def fill_workspace(values: Tensor, num_quads: int) -> Tensor:
    return bytes_like(values, backend().dual_surface_fill_workspace_bytes(num_quads, values.is_cuda))


def _dual_surface(
    values: Tensor, cubes: Tensor | None, level: float, manifold: bool, face_order: int
) -> Topology:
    module = backend()
    num_crossed, *workspaces = mark(values, cubes, level)
    crossed = _new_topology(values, num_crossed, 0, 0, 0)[:5]
    totals = values.new_empty(3, dtype=torch.int64)
    module.dual_surface_count(values, cubes, manifold, *workspaces, *crossed, totals)
    mesh = _new_topology(values, 0, *totals.tolist())[5:]  # a sync
    module.dual_surface_fill(
        values, cubes, face_order, *workspaces, fill_workspace(values, len(mesh[2])), *crossed, *mesh
    )
    return (*crossed, *mesh)


def _fake_dual_surface(
    values: Tensor, cubes: Tensor | None, level: float, manifold: bool, face_order: int
) -> Topology:
    context = torch.library.get_ctx()
    return _new_topology(values, *(context.new_dynamic_size() for _ in range(4)))


dual_surface_op = define(
    "dual_surface(Tensor values, Tensor? cubes, float level, bool manifold, int face_order)"
    " -> (" + ", ".join(["Tensor"] * NUM_TOPOLOGY) + ")",
    implementation=_dual_surface,
    fake=_fake_dual_surface,
)


def rows_of(tensor: Tensor | None, name: str, num_rows: int, width: int | None, rows: str) -> Tensor | None:
    """An attribute of points or cubes, given flat or in the lattice's shape, as (rows, width).

    ``width`` is None where each row is one number without an axis of its own, and -1 where it may be any.
    """
    if tensor is None:
        return None
    last = 1 if width is None or tensor.ndim == 0 else tensor.shape[-1]
    flat = tensor.reshape(-1, last)
    if flat.shape[0] != num_rows or (width is not None and width >= 0 and flat.shape[1] != width):
        raise ValueError(f"`{name}` must have {rows}, got {tuple(tensor.shape)}")
    return flat
