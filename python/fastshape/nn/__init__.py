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
from fastshape.nn.volume import (
    ChannelNorm3d,
    Downsample3d,
    GroupNorm3d,
    ResBlock3d,
    Upsample3d,
    pixel_shuffle_3d,
)

__all__ = [
    "Attention",
    "ChannelNorm3d",
    "CrossAttention",
    "CrossAttentionBlock",
    "Downsample3d",
    "DropPath",
    "FeedForward",
    "FourierEmbed",
    "Generators",
    "GroupNorm3d",
    "KLBottleneck",
    "LevelPosterior",
    "NormalizedBottleneck",
    "PointEmbed",
    "Posterior",
    "ResBlock3d",
    "SelfAttention",
    "SelfAttentionBlock",
    "Upsample3d",
    "pixel_shuffle_3d",
]
