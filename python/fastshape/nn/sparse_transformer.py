"""Transformer blocks over sparse voxels: attention in windows, over whole shapes, and to a context.

Parameters have the names of TRELLIS' code (Xiang et al., CVPR 2025), which TripoSF shares.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastshape import ops
from fastshape.nn.rows import by_rows
from fastshape.nn.sparse_tensor import SparseTensor
from fastshape.nn.volume import at_least_single

AttentionMode = Literal["full", "windowed"]
_LEAST_HEAD, _HEAD_STEP = 16, 8  # what the attention kernels take


class VoxelEmbed(nn.Module):
    """Sines and cosines of integer coordinates; no parameters.

    `[sin(x f), cos(x f)]` axis after axis with `dim // 6` frequencies f from 1 down to almost 1 / 10000, and
    zeros behind them up to `dim`. In float32.

    Reference: Vaswani et al. 2017; TRELLIS' absolute position embedding.
    """

    frequencies: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        if dim < 6:
            raise ValueError(f"`dim` must be at least 6, got {dim}")
        self.dim = dim
        self.register_buffer("frequencies", self._exact(), persistent=False)

    def _exact(self) -> Tensor:
        count = self.dim // 6
        return 1.0 / 10000 ** (torch.arange(count, dtype=torch.float32) / count)

    def _apply(self, fn, recurse: bool = True):  # type: ignore[no-untyped-def]
        super()._apply(fn, recurse)
        self.frequencies = self._exact().to(self.frequencies.device)  # a half-precision model keeps them
        return self

    def forward(self, coords: Tensor) -> Tensor:
        """coords (N, 3), integers -> (N, dim) float32."""
        angles = coords.float()[..., None] * self.frequencies
        features = torch.cat([angles.sin(), angles.cos()], dim=-1).flatten(-2)
        return F.pad(features, (0, self.dim - features.shape[-1]))


class PlainNorm(nn.LayerNorm):
    """LayerNorm over channels, computed in float32 whatever the parameters' dtype."""

    def __init__(self, dim: int, *, affine: bool = False, eps: float = 1e-6) -> None:
        super().__init__(dim, eps=eps, elementwise_affine=affine)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> the same shape and dtype."""
        weight = None if self.weight is None else at_least_single(self.weight)
        bias = None if self.bias is None else at_least_single(self.bias)
        return F.layer_norm(at_least_single(x), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class HeadNorm(nn.Module):
    """The factors of the RMS norm of each head's queries or keys; the attention kernels apply it."""

    def __init__(self, heads: int, head_dim: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(heads, head_dim))


def _pad_heads(x: Tensor) -> Tensor:
    """Zeros behind the channels of each head up to a size that the kernels take; the scores are the same."""
    size = x.shape[-1]
    wanted = max(_LEAST_HEAD, -(-size // _HEAD_STEP) * _HEAD_STEP)
    return x if wanted == size else F.pad(x, (0, wanted - size))


class _Heads(nn.Module):
    """What both attentions have: heads of any size, and norms of their queries and keys."""

    to_out: nn.Linear

    def __init__(self, dim: int, heads: int, qk_norm: bool) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"`heads` must divide `dim`, got {heads} and {dim}")
        self.heads = heads
        self.head_dim = dim // heads
        self.q_rms_norm = HeadNorm(heads, self.head_dim) if qk_norm else None
        self.k_rms_norm = HeadNorm(heads, self.head_dim) if qk_norm else None

    def _split(self, x: Tensor, *parts: int) -> Tensor:
        """x (N, parts * dim) -> (N, parts, heads, channels), as many channels as the kernels take."""
        return _pad_heads(x.unflatten(-1, (*parts, self.heads, self.head_dim)))

    def _join(self, out: Tensor) -> Tensor:
        """out (N, heads, channels) -> (N, dim), through the last layer."""
        return self.to_out(out[..., : self.head_dim].flatten(1))

    def _options(self) -> dict[str, object]:
        """Scale and factors for heads that may be padded: the kernel's norm has the padded size's root."""
        padded = max(_LEAST_HEAD, -(-self.head_dim // _HEAD_STEP) * _HEAD_STEP)
        root = (self.head_dim / padded) ** 0.5
        gammas = {
            name: None if norm is None else _pad_heads(norm.gamma) * root
            for name, norm in (("q_gamma", self.q_rms_norm), ("k_gamma", self.k_rms_norm))
        }
        return {"scale": self.head_dim**-0.5, **gammas}


class SparseSelfAttention(_Heads):
    """Attention of each voxel to those of its window, or to all of its item.

    Args:
        dim: channels.
        heads: of dim / heads channels each.
        mode: "windowed" or "full".
        window: voxels along an axis of a window; voxel x lies in window (x + shift) // window.
        shift: of the windows; half a window in every second block.
        qkv_bias: biases of queries, keys and values.
        qk_norm: RMS norm of each head's queries and keys.
        rope: rotary embedding of the voxels' coordinates, as TRELLIS.2 has it; "windowed" only. TRELLIS' own
            code of it does not run.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        mode: AttentionMode = "full",
        window: int = 8,
        shift: int = 0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        rope: bool = False,
    ) -> None:
        super().__init__(dim, heads, qk_norm)
        if mode not in ("full", "windowed"):
            raise ValueError(f"`mode` must be 'full' or 'windowed', got {mode!r}")
        if rope and mode != "windowed":
            raise ValueError("`rope` is for the mode 'windowed'")
        if rope and self.head_dim % _HEAD_STEP:
            raise ValueError(
                f"`rope` needs heads of a multiple of {_HEAD_STEP} channels, got {self.head_dim}"
            )
        self.mode, self.window, self.shift, self.rope = mode, window, shift, rope
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """x of dim channels, windowed in voxel order -> the same voxels, dim channels."""
        qkv = self._split(self.to_qkv(x.feats), 3)
        options = self._options()
        if self.mode == "windowed":
            plan = x.window_plan(self.window, self.shift)
            if self.rope:
                options["rope"] = ops.rope_table(plan.max_coord + 1, self.head_dim, device=x.device)
            out = ops.sparse_window_attention_packed(qkv, plan, **options)  # type: ignore[arg-type]
        else:
            q, k, v = qkv.unbind(1)
            out = ops.varlen_attention(q, k, v, x.cu_lengths, x.cu_lengths, **options)  # type: ignore[arg-type]
        return x.replace(self._join(out))


class SparseCrossAttention(_Heads):
    """Attention of each voxel to the tokens of its item's context."""

    def __init__(
        self, dim: int, context_dim: int, *, heads: int, qkv_bias: bool = True, qk_norm: bool = False
    ) -> None:
        super().__init__(dim, heads, qk_norm)
        self.to_q = nn.Linear(dim, dim, bias=qkv_bias)
        self.to_kv = nn.Linear(context_dim, 2 * dim, bias=qkv_bias)
        self.to_out = nn.Linear(dim, dim)

    def forward(self, x: SparseTensor, context: Tensor) -> SparseTensor:
        """x of dim channels, context (B, L, context_dim) -> the same voxels, dim channels.

        Raises:
            ValueError: a context of another shape or number of items.
        """
        if context.dim() != 3 or context.shape[0] != x.batch_size:
            raise ValueError(
                f"`context` must have shape ({x.batch_size}, L, {self.to_kv.in_features}), "
                f"got {tuple(context.shape)}"
            )
        length = context.shape[1]
        q = self._split(self.to_q(x.feats))
        k, v = self._split(self.to_kv(context.flatten(0, 1)), 2).unbind(1)
        ends = torch.arange(0, (x.batch_size + 1) * length, max(length, 1), device=x.device)
        cu_context = ends[: x.batch_size + 1].int() if length else x.cu_lengths.new_zeros(x.batch_size + 1)
        out = ops.varlen_attention(q, k, v, x.cu_lengths, cu_context, **self._options())  # type: ignore[arg-type]
        return x.replace(self._join(out))


class SparseFeedForward(nn.Module):
    """Two linear layers with a GELU (its tanh form) between them."""

    def __init__(self, dim: int, ratio: float = 4.0) -> None:
        super().__init__()
        hidden = int(dim * ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        """x (N, dim) -> (N, dim)."""
        return by_rows(self.mlp, x)


class SparseTransformerBlock(nn.Module):
    """x += attention(norm(x)); x += feed_forward(norm(x)), norms without parameters.

    `ratio` is of the feed-forward layer, the other options as of `SparseSelfAttention`.
    """

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        ratio: float = 4.0,
        mode: AttentionMode = "full",
        window: int = 8,
        shift: int = 0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        rope: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = PlainNorm(dim)
        self.norm2 = PlainNorm(dim)
        self.attn = SparseSelfAttention(
            dim,
            heads=heads,
            mode=mode,
            window=window,
            shift=shift,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            rope=rope,
        )
        self.mlp = SparseFeedForward(dim, ratio)

    def forward(self, x: SparseTensor) -> SparseTensor:
        """x of dim channels -> the same voxels, dim channels."""
        feats = x.feats + self.attn(x.replace(self.norm1(x.feats))).feats
        return x.replace(feats + self.mlp(self.norm2(feats)))


class ModulatedSparseCrossBlock(nn.Module):
    """A block that a vector of each item modulates, with attention to a context.

    With (shift, scale, gate) of attention and of the feed-forward layer from the vector:
    x += gate * attention(norm(x) (1 + scale) + shift); x += cross_attention(norm(x), context), which is
    neither modulated nor gated; x += gate' * feed_forward(norm(x) (1 + scale') + shift').

    Args:
        dim, context_dim: channels of the voxels and of the context's tokens.
        share_modulation: the vector holds the six parts already; else a layer of the block makes them.
        qk_norm, qk_norm_cross: RMS norms of queries and keys in either attention.

    Reference: Peebles and Xie 2023 (DiT); TRELLIS' second flow. Its code leaves the cross-attention's norm
    broken for a dense context.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int,
        *,
        heads: int,
        ratio: float = 4.0,
        mode: AttentionMode = "full",
        window: int = 8,
        shift: int = 0,
        qkv_bias: bool = True,
        qk_norm: bool = False,
        qk_norm_cross: bool = False,
        share_modulation: bool = False,
    ) -> None:
        super().__init__()
        self.norm1 = PlainNorm(dim)
        self.norm2 = PlainNorm(dim, affine=True)
        self.norm3 = PlainNorm(dim)
        self.self_attn = SparseSelfAttention(
            dim, heads=heads, mode=mode, window=window, shift=shift, qkv_bias=qkv_bias, qk_norm=qk_norm
        )
        self.cross_attn = SparseCrossAttention(
            dim, context_dim, heads=heads, qkv_bias=qkv_bias, qk_norm=qk_norm_cross
        )
        self.mlp = SparseFeedForward(dim, ratio)
        if not share_modulation:
            self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(dim, 6 * dim))
        self.share_modulation = share_modulation

    def forward(self, x: SparseTensor, modulation: Tensor, context: Tensor) -> SparseTensor:
        """x of dim channels, modulation (B, dim), or (B, 6 dim) if shared, context (B, L, context_dim).

        Raises:
            ValueError: a wrong shape.
        """
        width = x.num_channels * (6 if self.share_modulation else 1)
        if modulation.shape != (x.batch_size, width):
            raise ValueError(
                f"`modulation` must have shape ({x.batch_size}, {width}), got {tuple(modulation.shape)}"
            )
        parts = modulation if self.share_modulation else self.adaLN_modulation(modulation)
        rows = ops.gather_segments(parts.contiguous(), x.items)  # (N, 6 dim)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = rows.chunk(6, dim=-1)
        hidden = self.norm1(x.feats) * (1 + scale_a) + shift_a
        feats = x.feats + gate_a * self.self_attn(x.replace(hidden)).feats
        feats = feats + self.cross_attn(x.replace(self.norm2(feats)), context).feats
        hidden = self.norm3(feats) * (1 + scale_m) + shift_m
        return x.replace(feats + gate_m * self.mlp(hidden))


class SparseTransformer(nn.Module):
    """A linear layer, an embedding of the coordinates, and blocks; every second one shifts its windows.

    Args:
        in_dim, dim: channels before and after the first layer.
        depth: blocks.
        heads, ratio, mode, window, qk_norm: as of `SparseTransformerBlock`.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        *,
        depth: int,
        heads: int,
        ratio: float = 4.0,
        mode: AttentionMode = "windowed",
        window: int = 8,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        self.input_layer = nn.Linear(in_dim, dim)
        self.embed = VoxelEmbed(dim)
        self.blocks = nn.ModuleList(
            SparseTransformerBlock(
                dim,
                heads=heads,
                ratio=ratio,
                mode=mode,
                window=window,
                shift=window // 2 * (index % 2),
                qk_norm=qk_norm,
            )
            for index in range(depth)
        )

    def forward(self, x: SparseTensor) -> SparseTensor:
        """x of in_dim channels -> the same voxels in the same order, dim channels."""
        inner = x.sorted()
        feats = self.input_layer(inner.feats)
        inner = inner.replace(feats + self.embed(inner.coords[:, 1:]).to(feats.dtype))
        for block in self.blocks:
            inner = block(inner)
        return x.restored(inner)
