"""Pre-normalized attention and feed-forward layers. None adds its residual: the model's text shows it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Multi-head attention, softmax(q k^T / sqrt(head_dim)) v; q, k, v without bias, the output with one.

    `to_kv` holds the keys in its first half and the values in its second, heads outermost in each.
    """

    def __init__(self, dim: int, context_dim: int | None = None, *, heads: int, head_dim: int) -> None:
        super().__init__()
        self.heads = heads
        inner = heads * head_dim
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_kv = nn.Linear(dim if context_dim is None else context_dim, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, dim)

    def keys_values(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """context (B, M, context_dim) -> keys and values (B, heads, M, head_dim)."""
        keys, values = self.to_kv(context).chunk(2, dim=-1)
        return self._split(keys), self._split(values)

    def attend(self, x: Tensor, keys: Tensor, values: Tensor) -> Tensor:
        """x (B, Q, dim) over prepared keys and values -> (B, Q, dim)."""
        out = F.scaled_dot_product_attention(self._split(self.to_q(x)), keys, values)
        return self.to_out(out.transpose(1, 2).flatten(2))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """x (B, Q, dim), context (B, M, context_dim) or None for self-attention -> (B, Q, dim)."""
        return self.attend(x, *self.keys_values(x if context is None else context))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, heads, N, head_dim)


class SelfAttention(nn.Module):
    """Attention(LayerNorm(x))."""

    def __init__(self, dim: int, *, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads=heads, head_dim=head_dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, M, dim) -> (B, M, dim)."""
        return self.attention(self.norm(x))


class CrossAttention(nn.Module):
    """Attention(LayerNorm(x), LayerNorm(context))."""

    def __init__(self, dim: int, context_dim: int, *, heads: int, head_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.norm_context = nn.LayerNorm(context_dim)
        self.attention = Attention(dim, context_dim, heads=heads, head_dim=head_dim)

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
    """GEGLU: Linear(a * gelu(gate)) of LayerNorm(x), exact GELU, the gate being the SECOND half."""

    def __init__(self, dim: int, expansion: int = 4) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.proj_in = nn.Linear(dim, 2 * expansion * dim)
        self.proj_out = nn.Linear(expansion * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., dim) -> (..., dim)."""
        value, gate = self.proj_in(self.norm(x)).chunk(2, dim=-1)
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
