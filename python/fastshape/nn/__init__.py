"""Layers that more than one model uses: of tokens, of dense volumes, of sparse voxels; and posteriors."""

from fastshape.nn.bottleneck import KLBottleneck, NormalizedBottleneck
from fastshape.nn.embedding import FourierEmbed, PointEmbed
from fastshape.nn.multiscale_quantizer import CodeUsage, MultiscaleQuantizer, Quantized
from fastshape.nn.posterior import Generators, LevelPosterior, Posterior
from fastshape.nn.scale_transformer import KeyValueCache, ScaleAttention, ScaleBlock
from fastshape.nn.sparse_layers import (
    PointPool,
    SparseConv3d,
    SparseGroupNorm,
    SubdivideBlock,
    voxel_places,
)
from fastshape.nn.sparse_tensor import SparseTensor
from fastshape.nn.sparse_transformer import (
    ModulatedSparseCrossBlock,
    PlainNorm,
    SparseCrossAttention,
    SparseFeedForward,
    SparseSelfAttention,
    SparseTransformer,
    SparseTransformerBlock,
    VoxelEmbed,
)
from fastshape.nn.sparseflex import SparseFlexSurface, sparseflex_surface
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
    "CodeUsage",
    "CrossAttention",
    "CrossAttentionBlock",
    "Downsample3d",
    "DropPath",
    "FeedForward",
    "FourierEmbed",
    "Generators",
    "GroupNorm3d",
    "KLBottleneck",
    "KeyValueCache",
    "LevelPosterior",
    "ModulatedSparseCrossBlock",
    "MultiscaleQuantizer",
    "NormalizedBottleneck",
    "PlainNorm",
    "PointEmbed",
    "PointPool",
    "Posterior",
    "Quantized",
    "ResBlock3d",
    "ScaleAttention",
    "ScaleBlock",
    "SelfAttention",
    "SelfAttentionBlock",
    "SparseConv3d",
    "SparseCrossAttention",
    "SparseFeedForward",
    "SparseFlexSurface",
    "SparseGroupNorm",
    "SparseSelfAttention",
    "SparseTensor",
    "SparseTransformer",
    "SparseTransformerBlock",
    "SubdivideBlock",
    "Upsample3d",
    "VoxelEmbed",
    "pixel_shuffle_3d",
    "sparseflex_surface",
    "voxel_places",
]
