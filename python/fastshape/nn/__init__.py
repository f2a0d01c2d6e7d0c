"""Layers that more than one model uses: embeddings, attention, feed-forward, bottlenecks, posteriors."""

from fastshape.nn.bottleneck import KLBottleneck, NormalizedBottleneck
from fastshape.nn.embedding import FourierEmbed, PointEmbed
from fastshape.nn.posterior import Generators, LevelPosterior, Posterior
from fastshape.nn.transformer import (
    Attention,
    CrossAttention,
    CrossAttentionBlock,
    DropPath,
    FeedForward,
    SelfAttention,
    SelfAttentionBlock,
)

__all__ = [
    "Attention",
    "CrossAttention",
    "CrossAttentionBlock",
    "DropPath",
    "FeedForward",
    "FourierEmbed",
    "Generators",
    "KLBottleneck",
    "LevelPosterior",
    "NormalizedBottleneck",
    "PointEmbed",
    "Posterior",
    "SelfAttention",
    "SelfAttentionBlock",
]
