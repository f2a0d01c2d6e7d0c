"""Layers that more than one model uses: point embeddings, attention, feed-forward, posteriors."""

from fastshape.nn.embedding import PointEmbed
from fastshape.nn.posterior import Posterior
from fastshape.nn.transformer import Attention, CrossAttention, DropPath, FeedForward, SelfAttention

__all__ = [
    "Attention",
    "CrossAttention",
    "DropPath",
    "FeedForward",
    "PointEmbed",
    "Posterior",
    "SelfAttention",
]
