"""Choosing points of a cloud."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, overload

import torch
from torch import Tensor
from torch.compiler import is_compiling

from fastshape._library import backend, define

# ---- Operators ---------------------------------------------------------------------------------------------
# `clouds` (5, B) int64 holds begin, length, number of picks, start and first output of every cloud. It lies
# on the points' device, so that ragged batches need no sync. What the host must know are the largest number
# of picks and, where not all clouds of a padded batch have that many, the total; the rest follows from the
# shapes, since every argument costs the dispatcher time.


def _farthest(points: Tensor, clouds: Tensor, max_num: int, total_num: int = -1) -> Tensor:
    if total_num < 0:
        indices = clouds.new_empty(clouds.shape[1], max_num)
    else:
        indices = clouds.new_full(_output_shape(points, clouds, max_num, total_num), -1)
    module = backend()
    workspace = _workspace(points, clouds, max_num) if points.is_cuda or module.emulated else None
    module.farthest_point_sampling(points, clouds, max_num, workspace, indices, None)
    return indices


def _farthest_fake(points: Tensor, clouds: Tensor, max_num: int, total_num: int = -1) -> Tensor:
    return clouds.new_empty(_output_shape(points, clouds, max_num, total_num))


def _farthest_with_distances(
    points: Tensor, clouds: Tensor, max_num: int, total_num: int = -1
) -> tuple[Tensor, Tensor]:
    shape = _output_shape(points, clouds, max_num, total_num)
    indices, distances = clouds.new_full(shape, -1), points.new_zeros(shape)
    module = backend()
    workspace = _workspace(points, clouds, max_num) if points.is_cuda or module.emulated else None
    module.farthest_point_sampling(points, clouds, max_num, workspace, indices, distances)
    return indices, distances


def _farthest_with_distances_fake(
    points: Tensor, clouds: Tensor, max_num: int, total_num: int = -1
) -> tuple[Tensor, Tensor]:
    shape = _output_shape(points, clouds, max_num, total_num)
    return clouds.new_empty(shape), points.new_empty(shape)


def _output_shape(points: Tensor, clouds: Tensor, max_num: int, total_num: int) -> tuple[int, ...]:
    return (total_num,) if points.dim() == 2 and total_num >= 0 else (clouds.shape[1], max_num)


def _workspace(points: Tensor, clouds: Tensor, max_num: int) -> Tensor:
    size = backend().farthest_point_sampling_workspace_bytes(
        clouds.shape[1], points.numel() // 3, points.shape[-2], max_num
    )
    return torch.empty(size, dtype=torch.uint8, device=points.device)


_ARGUMENTS = "(Tensor points, Tensor clouds, SymInt max_num, SymInt total_num=-1)"
_farthest_op = define(
    f"farthest_point_sampling{_ARGUMENTS} -> Tensor", implementation=_farthest, fake=_farthest_fake
)
# What the overload's own __call__ calls: 0.2 us less, where nothing is being traced.
_farthest_call = _farthest_op._op
_farthest_with_distances_op = define(
    f"farthest_point_sampling_with_distances{_ARGUMENTS} -> (Tensor, Tensor)",
    implementation=_farthest_with_distances,
    fake=_farthest_with_distances_fake,
)


# ---- Public functions --------------------------------------------------------------------------------------


@overload
def farthest_point_sampling(
    points: Tensor,
    num_samples: int | Sequence[int],
    *,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    start: int | Tensor | str = 0,
    generator: torch.Generator | None = None,
    return_distances: Literal[False] = False,
) -> Tensor: ...
@overload
def farthest_point_sampling(
    points: Tensor,
    num_samples: int | Sequence[int],
    *,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    start: int | Tensor | str = 0,
    generator: torch.Generator | None = None,
    return_distances: Literal[True],
) -> tuple[Tensor, Tensor]: ...
def farthest_point_sampling(
    points: Tensor,
    num_samples: int | Sequence[int],
    *,
    lengths: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    start: int | Tensor | str = 0,
    generator: torch.Generator | None = None,
    return_distances: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Picks points one after the other, each the farthest from all picked before it.

    The rule, exact and the same on every device, instruction set and number of threads: with squared
    distances ``(dx*dx + dy*dy) + dz*dz`` in float32, each operation rounded on its own, the next pick is the
    point with the largest distance to its nearest pick; **ties go to the lowest index**. Picked points stay
    candidates with distance 0, so a cloud with fewer distinct points than picks repeats its lowest index, as
    torch_cluster does on the CPU. Points with a NaN or infinite coordinate are never picked and influence
    nothing; where the start is one (or lies outside its cloud), the lowest finite index starts. Picks beyond
    the number of finite points are -1.

    Args:
        points: float32, contiguous. Padded ``(B, N, 3)``, or packed ``(total, 3)`` with ``cu_seqlens``.
        num_samples: picks per cloud, ``K >= 0``; or one number per cloud (a sequence of B integers).
        lengths: ``(B,)`` int32 or int64 on the points' device: only the first ``lengths[b]`` points of cloud
            b count. Padded batches only; None: all N.
        cu_seqlens: ``(B + 1,)`` int32 or int64 on the points' device: cloud b is rows ``cu_seqlens[b]`` to
            ``cu_seqlens[b + 1]``. Needed for packed points.
        start: index of the first pick in its cloud: one integer, a ``(B,)`` integer tensor on the points'
            device, or "random" (uniform in each cloud).
        generator: for ``start="random"``.
        return_distances: also return how far each pick was from the picks before it.

    Returns:
        Indices, int64. Padded: ``(B, K)``, local to the cloud; with one number per cloud ``(B, max K)``,
        padded with -1. Packed: ``(sum of K,)`` rows of ``points``, cloud after cloud. With
        ``return_distances`` also the distances, float32, of the same shape: Euclidean, +inf for the first
        pick, 0 where the index is -1.

    Raises:
        TypeError: an argument is not a tensor where it must be one, or has another dtype.
        ValueError: a shape, a size, a range or a device is wrong. Values inside ``lengths`` and
            ``cu_seqlens`` are checked on the CPU; on CUDA that would need a sync: there ``lengths`` is
            clamped to 0..N and ``cu_seqlens`` must be right.
        RuntimeError: CUDA points, and a build without CUDA.

    Gradient: none; indices are not differentiable and the distances carry no gradient.

    Device: CPU (threads over the clouds, and within large ones) and CUDA, bit-equal and deterministic. No
    device sync.

    Reference: Eldar et al., "The farthest point strategy for progressive image sampling", 1997. The CPU
    kernel prunes with boxes as QuickFPS does (Han et al., "QuickFPS: Architecture and Algorithm Co-Design for
    Farthest Point Sampling in Large-Scale Point Clouds", TCAD 2023), but in a sixteen-wide tree of vectorized
    tests, with a bound that holds for the rounded distances, so that nothing is approximate.
    """
    known: tuple[Any, ...] | None = None
    uniform = lengths is None and cu_seqlens is None and type(num_samples) is int and type(start) is int
    if uniform and type(points) is Tensor and not is_compiling():
        known = _uniform_cache.get((points.shape, num_samples, start, points.is_cpu or points.device))
        if known is not None and not return_distances:
            return _farthest_call(points, *known)
    if known is None:
        if not isinstance(points, Tensor):
            raise TypeError(f"`points` must be a torch.Tensor, got {type(points).__name__}")
        if uniform and points.dim() == 3:
            known = _uniform_clouds(points, num_samples, start)  # type: ignore[arg-type]
        else:
            known = _general_clouds(points, num_samples, lengths, cu_seqlens, start, generator)
    if return_distances:
        return _farthest_with_distances_op(points.detach(), *known)
    return _farthest_op(points, *known)


# Making `clouds` costs more than sampling a small cloud, so the last ones of uniform batches are kept.
# Neither fake tensors nor traced ones may be in here.
_uniform_cache: dict[tuple[Any, ...], tuple[Tensor, int]] = {}


def _uniform_clouds(points: Tensor, num: int, start: int) -> tuple[Tensor, int]:
    """`clouds` and the number of picks where all clouds have the same sizes."""
    batch, length = points.shape[0], points.shape[1]
    if num < 0:
        raise ValueError(f"`num_samples` must be at least 0, got {num}")
    if not (0 <= start < length or (start == 0 and length == 0)):
        raise ValueError(f"`start` must lie in 0..{length - 1}, got {start}")
    begin = [b * length for b in range(batch)]
    out_begin = [b * num for b in range(batch)]
    rows = [begin, [length] * batch, [num] * batch, [start] * batch, out_begin]
    clouds = torch.tensor(rows, dtype=torch.int64, device=points.device).view(5, batch)
    made = clouds, num
    if type(points) is Tensor and type(clouds) is Tensor and not is_compiling():
        if len(_uniform_cache) >= 256:
            _uniform_cache.clear()
        _uniform_cache[points.shape, num, start, points.is_cpu or points.device] = made
    return made


def _general_clouds(
    points: Tensor,
    num_samples: int | Sequence[int],
    lengths: Tensor | None,
    cu_seqlens: Tensor | None,
    start: int | Tensor | str,
    generator: torch.Generator | None,
) -> tuple[Tensor, int, int]:
    """`clouds`, largest and total number of picks for ragged, packed and randomly started batches."""
    device, packed = points.device, cu_seqlens is not None
    if cu_seqlens is not None:
        if lengths is not None:
            raise ValueError("`lengths` is for padded and `cu_seqlens` for packed points; pass one of them")
        if points.dim() != 2 or points.shape[1] != 3:
            raise ValueError(
                f"`points` must have shape (total, 3) with `cu_seqlens`, got {tuple(points.shape)}"
            )
        bounds = _integers(cu_seqlens, "cu_seqlens", None, device)
        if bounds.shape[0] == 0:
            raise ValueError("`cu_seqlens` must have shape (B + 1,), got (0,)")
        batch, max_length = bounds.shape[0] - 1, points.shape[0]
        begin = bounds[:-1]
        length = bounds.diff()
    else:
        if points.dim() != 3 or points.shape[2] != 3:
            hint = "; packed points (total, 3) need `cu_seqlens`" if points.dim() == 2 else ""
            raise ValueError(f"`points` must have shape (B, N, 3), got {tuple(points.shape)}{hint}")
        batch, max_length = points.shape[0], points.shape[1]
        begin = torch.arange(batch, device=device) * max_length
        if lengths is None:
            length = torch.full((batch,), max_length, dtype=torch.int64, device=device)
        else:
            length = _integers(lengths, "lengths", batch, device)
            if points.is_cuda:
                length = length.clamp(0, max_length)
            elif points.device.type == "cpu" and not is_compiling() and batch > 0:
                low, high = (int(v) for v in length.aminmax())
                if low < 0 or high > max_length:
                    raise ValueError(
                        f"`lengths` must lie in 0..{max_length}, got values from {low} to {high}"
                    )

    if isinstance(num_samples, int):
        nums = [num_samples] * batch
    else:
        nums = [int(k) for k in num_samples]
        if len(nums) != batch:
            raise ValueError(f"`num_samples` must hold one number per cloud ({batch}), got {len(nums)}")
    if (isinstance(num_samples, int) and num_samples < 0) or any(k < 0 for k in nums):
        raise ValueError(f"`num_samples` must be at least 0, got {num_samples}")
    max_num = max(nums, default=0 if not isinstance(num_samples, int) else num_samples)
    out_begin = [0] * batch
    for b in range(1, batch):
        out_begin[b] = out_begin[b - 1] + (nums[b - 1] if packed else max_num)

    if isinstance(start, str):
        if start != "random":
            raise ValueError(f"`start` must be an index, a tensor of indices or 'random', got {start!r}")
        where = generator.device if generator is not None else device
        chance = torch.rand(batch, dtype=torch.float64, device=where, generator=generator).to(device)
        start = torch.minimum((chance * length).long(), length - 1)
    elif isinstance(start, int):
        if not 0 <= start < max(max_length, 1):
            raise ValueError(f"`start` must lie in 0..{max_length - 1}, got {start}")
        start = torch.full((batch,), start, dtype=torch.int64, device=device)
    else:
        start = _integers(start, "start", batch, device)

    host = torch.tensor([nums, out_begin], dtype=torch.int64, device=device).view(2, batch)
    clouds = torch.stack([begin, length, host[0], start, host[1]])
    return clouds, max_num, sum(nums)


def _integers(value: Tensor, name: str, size: int | None, device: torch.device) -> Tensor:
    """A (size,) tensor of integers as int64."""
    if not isinstance(value, Tensor):
        raise TypeError(f"`{name}` must be a torch.Tensor, got {type(value).__name__}")
    if value.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"`{name}` must be int32 or int64, got {str(value.dtype).removeprefix('torch.')}")
    if value.dim() != 1 or (size is not None and value.shape[0] != size):
        expected = f"({size},)" if size is not None else "(B + 1,)"
        raise ValueError(f"`{name}` must have shape {expected}, got {tuple(value.shape)}")
    if value.device != device:
        raise ValueError(f"`{name}` must be on the device of `points` ({device}), got {value.device}")
    return value.long()


def num_samples_from_ratio(length: int, ratio: float) -> int:
    """The number of picks that torch_cluster takes for a ratio: ``ceil(float32(length) * float32(ratio))``.

    Not always ``round(length * ratio)``: 10000 points at ratio 768 / 10000 give 769.

    Args:
        length: points of the cloud, at least 0.
        ratio: in (0, 1].

    Raises:
        ValueError: a number is out of its range.
    """
    if length < 0:
        raise ValueError(f"`length` must be at least 0, got {length}")
    if not 0.0 < ratio <= 1.0:
        raise ValueError(f"`ratio` must lie in (0, 1], got {ratio}")
    product = torch.tensor(float(length), dtype=torch.float32) * torch.tensor(ratio, dtype=torch.float32)
    return math.ceil(product.item())
