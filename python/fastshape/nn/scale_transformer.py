"""The transformer of next-scale prediction: what is known of a scale sees its own scale and those before it.

Tian et al.: "Visual Autoregressive Modeling" (VAR, NeurIPS 2024), section 3.2, and its released code.

    block:   g1, g2, a1, a2, b1, b2 = W silu(c)                  c (B, dim), what all tokens are told
             x += g1 * attention(norm(x) (1 + a1) + b1);   x += g2 * mlp(norm(x) (1 + a2) + b2)

Tokens come in segments, one for each scale, and, before them, one of the condition if there is a prefix. A
token sees every token of its segment and of those before. That needs no mask: a segment is one dense
attention over the keys so far, which is exact and two thirds of the work of the square with a mask.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastshape.nn.transformer import Attention, DropPath

_LARGEST_LOG_SCALE = math.log(100.0)


class KeyValueCache:
    """Keys and values of the tokens so far, in memory for all that will come: growing copies nothing.

    Args:
        layers: attention layers.
        shape: (batch, heads, tokens in all, head_dim).
        like: a tensor of the dtype and device.
    """

    def __init__(self, layers: int, shape: tuple[int, int, int, int], like: Tensor) -> None:
        self.keys = like.new_empty(layers, *shape)
        self.values = like.new_empty(layers, *shape)
        self.lengths = [0] * layers

    def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Adds keys and values (B, heads, N, head_dim) of a layer and returns all of it so far."""
        begin, end = self.lengths[layer], self.lengths[layer] + keys.shape[2]
        self.keys[layer, :, :, begin:end] = keys
        self.values[layer, :, :, begin:end] = values
        self.lengths[layer] = end
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class ScaleAttention(nn.Module):
    """Multi-head self-attention by segments; queries and values have a bias, keys have none.

    Args:
        dim: channels, a multiple of `heads`.
        heads: their number.
        qk_norm: queries and keys are unit vectors, the scores scaled by exp(min(a, log 100)) with an `a` for
            each head that begins at log 4. False: scores are products times 0.25 / sqrt(head_dim), the
            released code's, which is a quarter of the usual.
    """

    def __init__(self, dim: int, heads: int, *, qk_norm: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.to_qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(dim))
        self.v_bias = nn.Parameter(torch.zeros(dim))
        self.log_scale = nn.Parameter(torch.full((heads,), math.log(4.0))) if qk_norm else None
        self.scale = 1.0 if qk_norm else 0.25 / math.sqrt(dim // heads)
        self.to_out = nn.Linear(dim, dim)

    def forward(
        self, x: Tensor, segments: Sequence[int], cache: KeyValueCache | None = None, layer: int = 0
    ) -> Tensor:
        """x (B, N, dim) -> (B, N, dim).

        Args:
            x: the tokens of `segments`, which follow what the cache holds.
            segments: tokens of each, N in all.
            cache: keys and values of what came before; gets those of x.
            layer: of the cache.
        """
        bias = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = F.linear(x, self.to_qkv.weight, bias).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (B, heads, N, head_dim) each
        if self.log_scale is not None:
            scale = self.log_scale.clamp_max(_LARGEST_LOG_SCALE).exp()
            q = (F.normalize(q, dim=-1) * scale[:, None, None]).to(v.dtype)
            k = F.normalize(k, dim=-1).to(v.dtype)
        if cache is not None:
            k, v = cache.append(layer, k, v)
        end = k.shape[2] - q.shape[2]
        parts = []
        for part in q.split([size for size in segments if size], dim=2):
            end += part.shape[2]
            parts.append(F.scaled_dot_product_attention(part, k[:, :, :end], v[:, :, :end], scale=self.scale))
        return self.to_out(torch.cat(parts, 2).transpose(1, 2).flatten(2))


class ScaleBlock(nn.Module):
    """A block, modulated by what all its tokens are told; with a context, cross-attention before the rest.

    Args:
        dim, heads, qk_norm: as of `ScaleAttention`.
        hidden: channels within the MLP.
        eps: of the norms, which have no parameters.
        shared: the modulation is made once for all blocks; this one has an offset of its own.
        cross: whether there is a context. Its queries have an RMSNorm before them, as in SAR3D.
        drop_path: probability of `DropPath`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        hidden: int,
        *,
        qk_norm: bool = True,
        eps: float = 1e-6,
        shared: bool = False,
        cross: bool = False,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.modulation = None if shared else nn.Linear(dim, 6 * dim)
        self.offset = nn.Parameter(torch.randn(6, dim) / math.sqrt(dim)) if shared else None
        self.norm = nn.LayerNorm(dim, eps=eps, elementwise_affine=False)
        self.attention = ScaleAttention(dim, heads, qk_norm=qk_norm)
        self.cross_norm = nn.RMSNorm(dim, eps=eps) if cross else None
        self.cross_attention = Attention(dim, heads=heads, head_dim=dim // heads) if cross else None
        self.mlp_in = nn.Linear(dim, hidden)
        self.mlp_out = nn.Linear(hidden, dim)
        self.drop_path = DropPath(drop_path)

    def forward(
        self,
        x: Tensor,
        told: Tensor,
        segments: Sequence[int],
        *,
        context: tuple[Tensor, Tensor] | None = None,
        cache: KeyValueCache | None = None,
        layer: int = 0,
    ) -> Tensor:
        """x (B, N, dim) -> (B, N, dim).

        Args:
            x, segments, cache, layer: as of `ScaleAttention`.
            told: silu(c) (B, dim), or the shared modulation (B, 6 dim).
            context: keys and values of the cross-attention.
        """
        if self.modulation is not None:
            parts = self.modulation(told)[:, None]
        else:
            assert self.offset is not None
            parts = (told + self.offset.flatten())[:, None]
        gate1, gate2, scale1, scale2, shift1, shift2 = parts.chunk(6, dim=-1)  # (B, 1, dim) each
        if context is not None:
            assert self.cross_attention is not None
            assert self.cross_norm is not None
            x = x + self.cross_attention.attend(self.cross_norm(x), *context)
        attended = self.attention(self.norm(x) * (1 + scale1) + shift1, segments, cache, layer)
        x = x + self.drop_path(gate1 * attended)
        hidden = F.gelu(self.mlp_in(self.norm(x) * (1 + scale2) + shift2), approximate="tanh")
        return x + self.drop_path(gate2 * self.mlp_out(hidden))
