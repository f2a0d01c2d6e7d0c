"""Checkpoints of TRELLIS' structured latents: its `SLatEncoder` and its `SLatMeshDecoder`, a file each.

The names are those of TripoSF's transformers, without `encoder.` and `decoder.` before them.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from fastshape.checkpoints.reading import read_state
from fastshape.checkpoints.triposf import converted, official_name, official_shape
from fastshape.models.pretrained import CheckpointError, CheckpointMetadata, compare_shapes
from fastshape.models.slat import SLatConfig, SLatVAE
from fastshape.nn.sparseflex import COLOR_CHANNELS, SHAPE_CHANNELS

_HEAD_DIM = 64

Source = str | os.PathLike[str] | Mapping[str, Tensor]


def infer_config(state: Mapping[str, Tensor], source: str = "the state dict") -> SLatConfig:
    """The configuration of official parameters, `encoder.` and `decoder.` before their names.

    Each head is taken to have 64 channels, and `resolution`, `window` and `groups`, which have no parameters,
    to be the published ones.

    Raises:
        CheckpointError: the parameters are not of this family, or the width is not a multiple of 64.
    """

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise CheckpointError(f"{source} is not TRELLIS' structured latents: it has no {name}")
        return state[name].shape

    dim, feature_dim = shape("encoder.input_layer.weight")
    if dim % _HEAD_DIM:
        raise CheckpointError(
            f"{source} has tokens of {dim} channels, not a multiple of the usual {_HEAD_DIM} of a head: "
            "its heads cannot be inferred, pass `config`"
        )
    blocks = {match[1] for match in (re.match(r"encoder\.blocks\.(\d+)\.", name) for name in state) if match}
    return SLatConfig(
        feature_dim=feature_dim,
        dim=dim,
        depth=len(blocks),
        heads=dim // _HEAD_DIM,
        ratio=shape("encoder.blocks.0.mlp.mlp.0.weight")[0] / dim if blocks else 4.0,
        latent_channels=shape("decoder.input_layer.weight")[1],
        qk_norm="encoder.blocks.0.attn.q_rms_norm.gamma" in state,
        colors=shape("decoder.out_layer.weight")[0] == SHAPE_CHANNELS + COLOR_CHANNELS,
    )


def load(encoder: Source, decoder: Source, config: SLatConfig | None = None) -> SLatVAE:
    """A `SLatVAE` with official parameters, in evaluation mode and float32.

    Args:
        encoder, decoder: a `.safetensors`, `.pt` or `.ckpt` file, or a state dict, of each half.
        config: None infers it, see `infer_config`.

    Raises:
        CheckpointError: a file cannot be read, or its parameters are not exactly the configuration's; every
            missing, extra and misshapen one is listed with `encoder.` or `decoder.` before its official name.
            Nothing is ever loaded in part.
    """
    state: dict[str, Tensor] = {}
    names = []
    for half, source in (("encoder", encoder), ("decoder", decoder)):
        part, name = read_state(source)
        state |= {f"{half}.{key}": tensor for key, tensor in part.items()}
        names.append(name)
    source_name = " with ".join(dict.fromkeys(names))
    config = infer_config(state, source_name) if config is None else config
    model = SLatVAE(config)
    official = {ours: official_name(ours) for ours in model.state_dict()}
    expected = {
        official[ours]: official_shape(official[ours], tuple(tensor.shape))
        for ours, tensor in model.state_dict().items()
    }
    compare_shapes(expected, {key: tuple(value.shape) for key, value in state.items()}, source_name)
    model.load_state_dict({ours: converted(key, state[key]) for ours, key in official.items()}, strict=True)
    model.metadata = CheckpointMetadata(license="MIT", source="TRELLIS (github.com/microsoft/TRELLIS)")
    return model.eval()
