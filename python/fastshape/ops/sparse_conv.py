"""Convolutions over sparse voxels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastshape._library import backend, define
from fastshape.ops.sparse import NeighborTable


def _new_result(feats: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, order: Any) -> Tensor:
    return feats.new_empty(rows.shape[0], weight.shape[0])


def _sparse_conv3d(
    feats: Tensor, weight: Tensor, bias: Tensor | None, rows: Tensor, order: Tensor | None
) -> Tensor:
    out = _new_result(feats, weight, bias, rows, order)
    if order is not None and order.shape[0] == 0:
        order = None  # of no use on the CPU
    backend().sparse_conv3d(feats, weight, bias, rows, order, out)
    return out


_sparse_conv3d_op = define(
    "sparse_conv3d(Tensor feats, Tensor weight, Tensor? bias, Tensor rows, Tensor? order) -> Tensor",
    implementation=_sparse_conv3d,
    fake=_new_result,
)


def _new_weight_grad(grad_out: Tensor, feats: Tensor, rows: Tensor) -> Tensor:
    return feats.new_empty(grad_out.shape[1], rows.shape[1], feats.shape[1])


def _weight_grad(grad_out: Tensor, feats: Tensor, rows: Tensor) -> Tensor:
    module, workspace = backend(), None
    grad_weight = _new_weight_grad(grad_out, feats, rows)
    if feats.is_cuda or module.emulated:
        sizes = (rows.shape[0], feats.shape[1], grad_out.shape[1], rows.shape[1])
        size = module.sparse_conv3d_weight_grad_workspace_bytes(*sizes)
        workspace = torch.empty(size, dtype=torch.uint8, device=feats.device)
    module.sparse_conv3d_weight_grad(grad_out, feats, rows, workspace, grad_weight)
    return grad_weight


_weight_grad_op = define(
    "sparse_conv3d_weight_grad(Tensor grad_out, Tensor feats, Tensor rows) -> Tensor",
    implementation=_weight_grad,
    fake=_new_weight_grad,
)


class _SparseConv3d(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, feats: Tensor, weight: Tensor, bias: Tensor | None, table: NeighborTable) -> Tensor:
        mirrored = table.inverse is None
        back = table.rows if mirrored else table.inverse
        ctx.save_for_backward(
            feats, weight, table.rows, back, table.order if mirrored else table.inverse_order
        )
        ctx.mirrored = mirrored
        kernels = weight.view(weight.shape[0], -1, weight.shape[4])
        return _sparse_conv3d_op(feats, kernels, bias, table.rows, table.order)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        feats, weight, rows, back, back_order = ctx.saved_tensors
        grad_out = grad_out.contiguous()
        grad_feats = grad_weight = grad_bias = None
        if ctx.needs_input_grad[0]:
            # What a voxel gave to its neighbors: the convolution of the gradient with the weight transposed.
            kernels = weight.view(weight.shape[0], -1, weight.shape[4])
            kernels = (kernels.flip(1) if ctx.mirrored else kernels).permute(2, 1, 0).contiguous()
            grad_feats = _sparse_conv3d_op(grad_out, kernels, None, back, back_order)
        if ctx.needs_input_grad[1]:
            grad_weight = _weight_grad_op(grad_out, feats, rows).view_as(weight)
        if ctx.needs_input_grad[2]:
            grad_bias = grad_out.sum(0)
        return grad_feats, grad_weight, grad_bias, None


def sparse_conv3d(feats: Tensor, weight: Tensor, bias: Tensor | None, table: NeighborTable) -> Tensor:
    """A convolution over sparse voxels: what is no voxel has no features.

    ``out[m] = bias + sum over k of weight[:, k] @ feats[table.rows[m, k]]`` over the neighbors there are,
    k as in :func:`neighbor_table`. The table says what kind it is: submanifold, where the voxels stay,
    strided, onto coarser voxels, and with ``table.transposed()`` back from there.

    Args:
        feats: (N, in_channels) float32, float64, float16 or bfloat16, contiguous: of the voxels that
            ``table`` was built of.
        weight: (out_channels, n, n, n, in_channels), dtype of ``feats``, contiguous: [kx, ky, kz] as spconv
            has it for n > 1; torch's is ``weight.permute(0, 4, 1, 2, 3)``.
        bias: (out_channels,), dtype of ``feats``, or None.
        table: of :func:`neighbor_table`, of the same n.

    Returns:
        (M, out_channels), dtype of ``feats``. 16-bit floats are summed in float32.

    Raises:
        TypeError: not a tensor, wrong dtype.
        ValueError: wrong shape, another device, not contiguous, a table of other voxels or another size.

    Gradient: with respect to ``feats``, ``weight`` and ``bias``, once.

    Device: CPU and CUDA; no sync. float32 and float64 are summed with fused multiply-adds in the same order
    on both, to the same bits where the processor has them; 16-bit floats on CUDA take tensor cores where
    channels are a multiple of 8. A row's result depends neither on the other rows nor on their order or the
    number of threads. The gradient of the weight is summed in pieces that depend on the sizes alone.

    Reference: Graham et al. 2018, "3D Semantic Segmentation with Submanifold Sparse Convolutional Networks";
    Yan et al. 2018 (SECOND, spconv). Our own: the CPU lists the pairs of each block of rows and multiplies
    them where they lie; CUDA does so for the offsets that a tile of rows has.
    """
    columns = table.rows.shape[1]
    if weight.ndim != 5 or len(set(weight.shape[1:4])) != 1 or weight.shape[1] ** 3 != columns:
        raise ValueError(
            "`weight` must have shape (out_channels, n, n, n, in_channels) with the table's "
            f"n^3 = {columns}, got {tuple(weight.shape)}"
        )
    if not weight.is_contiguous():
        raise ValueError("`weight` must be contiguous")
    num_feats = (table.rows if table.inverse is None else table.inverse).shape[0]
    if feats.ndim == 2 and feats.shape[0] != num_feats:
        raise ValueError(
            f"`feats` must have a row for each of the table's {num_feats} voxels, got {feats.shape[0]}"
        )
    inputs = (feats, weight) if bias is None else (feats, weight, bias)
    if torch.is_grad_enabled() and any(i.requires_grad for i in inputs):
        return _SparseConv3d.apply(feats, weight, bias, table)
    kernels = weight.view(weight.shape[0], columns, weight.shape[4])
    return _sparse_conv3d_op(feats, kernels, bias, table.rows, table.order)
