"""Pre-normalized attention and feed-forward layers, and the two blocks that join them.

The layers do not add their residuals; the blocks do.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention, softmax(q k^T / sqrt(head_dim)) v, the output with a bias.

    `to_kv` holds the keys in its first half and the values in its second, heads outermost in each.

    Args:
        dim: channels of x and of the result.
        context_dim: channels of the context; None for `dim`.
        heads, head_dim: their product need not be `dim`.
        qkv_bias: biases of q, k and v.
        qk_norm: LayerNorm (eps 1e-6) of each head's q and k, as VecSetX and Hunyuan3D-2 have it.
        dtype: q, k and v are rounded to it and the result is cast back; None leaves them.
    """

    def __init__(
        self,
        dim: int,
        context_dim: int | None = None,
        *,
        heads: int,
        head_dim: int,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.heads = heads
        self.dtype = dtype
        inner = heads * head_dim
        self.to_q = nn.Linear(dim, inner, bias=qkv_bias)
        self.to_kv = nn.Linear(dim if context_dim is None else context_dim, 2 * inner, bias=qkv_bias)
        self.to_out = nn.Linear(inner, dim)
        self.norm_q = nn.LayerNorm(head_dim, eps=1e-6) if qk_norm else None
        self.norm_k = nn.LayerNorm(head_dim, eps=1e-6) if qk_norm else None

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context (B, M, context_dim) -> keys and values (B, heads, M, head_dim)."""
        keys, values = (self._split(part) for part in self.to_kv(context).chunk(2, dim=-1))
        keys = keys if self.norm_k is None else self.norm_k(keys)
        return self._round(keys), self._round(values)

    def attend(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """x (B, Q, dim) over prepared keys and values -> (B, Q, dim)."""
        queries = self._split(self.to_q(x))
        queries = self._round(queries if self.norm_q is None else self.norm_q(queries))
        out = F.scaled_dot_product_attention(queries, keys, values).transpose(1, 2).flatten(2)
        return self.to_out(out if self.dtype is None else out.to(x.dtype))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, Q, dim), context (B, M, context_dim) or None for self-attention -> (B, Q, dim)."""
        return self.attend(x, *self.keys_values(x if context is None else context))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, head_dim)

    def _round(self, x: Tensor) -> Tensor:
        return x if self.dtype is None else x.to(self.dtype)


class SelfAttention(nn.Module):
    """Attention(LayerNorm(x)); options as of `Attention`."""

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        head_dim: int,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(
            dim, heads=heads, head_dim=head_dim, qkv_bias=qkv_bias, qk_norm=qk_norm, dtype=dtype
        )

    def forward(self, x: Tensor) -> Tensor:
        """x (B, M, dim) -> (B, M, dim)."""
        return self.attention(self.norm(x))


class CrossAttention(nn.Module):
    """Attention(LayerNorm(x), LayerNorm(context)); options as of `Attention`."""

    def __init__(
        self,
        dim: int,
        context_dim: int,
        *,
        heads: int,
        head_dim: int,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(context_dim)
        self.attention = Attention(
            dim, context_dim, heads=heads, head_dim=head_dim, qkv_bias=qkv_bias, qk_norm=qk_norm, dtype=dtype
        )

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of context (B, M, context_dim), to be used by many `attend` calls."""
        return self.attention.keys_values(self.norm_context(context))

    def attend(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """x (B, Q, dim) over prepared keys and values -> (B, Q, dim)."""
        return self.attention.attend(self.norm(x), keys, values)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, Q, dim), context (B, M, context_dim) -> (B, Q, dim)."""
        return self.attend(x, *self.keys_values(context))


class FeedForward(nn.Module):
    """Two linear layers over LayerNorm(x) with an exact GELU between them.

    Gated (GEGLU): Linear(a * gelu(gate)), the gate being the SECOND half. Plain: Linear(gelu(a)).
    """

    def __init__(self, dim: int, expansion: int = 4, *, gated: bool = True) -> None:
        super().__init__()
        self.gated = gated
        self.norm = nn.LayerNorm(dim)
        self.proj_in = nn.Linear(dim, (2 if gated else 1) * expansion * dim)
        self.proj_out = nn.Linear(expansion * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        hidden = self.proj_in(self.norm(x))
        if not self.gated:
            return self.proj_out(F.gelu(hidden))
        value, gate = hidden.chunk(2, dim=-1)
        return self.proj_out(value * F.gelu(gate))


class DropPath(nn.Module):
    """In training zeroes whole samples of the batch with the given probability and scales the others by
    1 / (1 - probability) (stochastic depth, Huang et al. 2016); the identity in evaluation.
    """

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) -> (B, ...)."""
        if not self.training or self.probability == 0.0:
            return x
        keep = 1.0 - self.probability
        mask = torch.rand((x.shape[0],) + (1,) * (x.dim() - 1), device=x.device) < keep
        return x * mask.to(x.dtype) / keep


class SelfAttentionBlock(nn.Module):
    """x += attention(x); x += feed_forward(x). `gated` as of `FeedForward`, the rest as of `Attention`."""

    def __init__(
        self,
        dim: int,
        *,
        heads: int,
        head_dim: int,
        gated: bool = True,
        drop_path: float = 0.0,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.attention = SelfAttention(
            dim, heads=heads, head_dim=head_dim, qkv_bias=qkv_bias, qk_norm=qk_norm, dtype=dtype
        )
        self.feed_forward = FeedForward(dim, gated=gated)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, M, dim) -> (B, M, dim)."""
        x = x + self.drop_path(self.attention(x))
        return x + self.drop_path(self.feed_forward(x))


class CrossAttentionBlock(nn.Module):
    """x += cross_attention(x, context); x += feed_forward(x). Options as of `SelfAttentionBlock`."""

    def __init__(
        self,
        dim: int,
        context_dim: int | None = None,
        *,
        heads: int,
        head_dim: int,
        gated: bool = True,
        qkv_bias: bool = False,
        qk_norm: bool = False,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.cross_attention = CrossAttention(
            dim,
            dim if context_dim is None else context_dim,
            heads=heads,
            head_dim=head_dim,
            qkv_bias=qkv_bias,
            qk_norm=qk_norm,
            dtype=dtype,
        )
        self.feed_forward = FeedForward(dim, gated=gated)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of context (B, M, context_dim), to be used by many `attend` calls."""
        return self.cross_attention.keys_values(context)

    def attend(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """x (B, Q, dim) over prepared keys and values -> (B, Q, dim)."""
        x = x + self.cross_attention.attend(x, keys, values)
        return x + self.feed_forward(x)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        """x (B, Q, dim), context (B, M, context_dim) -> (B, Q, dim)."""
        return self.attend(x, *self.keys_values(context))
