"""Checkpoints of TripoSF (github.com/VAST-AI-Research/TripoSF): its `TripoSFVAEInference`.

The parameters have the names of `local_pc_encoder.`, `encoder.` and `decoder.` here too, but for those of the
subdivisions. One of these is stored in a way of its own: spconv takes the memory of a convolution of 1^3 as
(in, out), though its shape says (out, 1, 1, 1, in).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from fastshape.checkpoints.reading import read_state
from fastshape.models.pretrained import CheckpointError, CheckpointMetadata, compare_shapes
from fastshape.models.triposf import TripoSFConfig, TripoSFVAE

_HEAD_DIM = 64

_LEAVES = {
    ".norm1.": ".act_layers.0.",
    ".conv1.": ".out_layers.0.conv.",
    ".norm2.": ".out_layers.1.",
    ".conv2.": ".out_layers.3.conv.",
    ".skip.": ".skip_connection.conv.",
    ".pruning.": ".pruning_head.mlp.",
}


def official_name(ours: str) -> str:
    """The official name of one of our parameters."""
    if "upsample." not in ours:
        return ours
    for leaf, official in _LEAVES.items():
        if leaf in ours:
            return ours.replace(leaf, official)
    raise KeyError(ours)


def official_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of an official parameter, of ours."""
    if name.endswith("skip_connection.conv.weight"):
        return (shape[0], 1, 1, 1, shape[1])
    return shape


def converted(name: str, tensor: Tensor) -> Tensor:
    """An official parameter in our layout, in float32."""
    tensor = tensor.float()
    if name.endswith("skip_connection.conv.weight"):
        out_channels, channels = tensor.shape[0], tensor.shape[-1]
        return tensor.reshape(channels, out_channels).T.contiguous()
    return tensor


def infer_config(state: Mapping[str, Tensor], source: str = "the state dict") -> TripoSFConfig:
    """The configuration that official parameters were made with, as far as shapes tell it.

    Each head is taken to have 64 channels, and `resolution`, `window` and `groups`, which have no parameters,
    to be the published ones.

    Raises:
        CheckpointError: the parameters are not of this family, or the width is not a multiple of 64.
    """

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise CheckpointError(f"{source} is not a TripoSF autoencoder: it has no {name}")
        return state[name].shape

    def count(pattern: str) -> int:
        return len({match[1] for match in (re.match(pattern, name) for name in state) if match})

    dim, feature_dim = shape("encoder.input_layer.weight")
    if dim % _HEAD_DIM:
        raise CheckpointError(
            f"{source} has tokens of {dim} channels, not a multiple of the usual {_HEAD_DIM} of a head: "
            "its heads cannot be inferred, pass `config`"
        )
    depth = count(r"encoder\.blocks\.(\d+)\.")
    return TripoSFConfig(
        point_channels=shape("local_pc_encoder.fc_pos.weight")[1],
        point_hidden=shape("local_pc_encoder.fc_pos.weight")[0] // 2,
        point_depth=count(r"local_pc_encoder\.blocks\.(\d+)\."),
        feature_dim=feature_dim,
        dim=dim,
        depth=depth,
        heads=dim // _HEAD_DIM,
        ratio=shape("encoder.blocks.0.mlp.mlp.0.weight")[0] / dim if depth else 4.0,
        latent_channels=shape("decoder.input_layer.weight")[1],
        qk_norm="encoder.blocks.0.attn.q_rms_norm.gamma" in state,
    )


def load(
    source: str | os.PathLike[str] | Mapping[str, Tensor], config: TripoSFConfig | None = None
) -> TripoSFVAE:
    """A `TripoSFVAE` with official parameters, in evaluation mode and float32.

    Args:
        source: a `.safetensors`, `.ckpt` or `.pth` file, or a state dict.
        config: None infers it, see `infer_config`.

    Raises:
        CheckpointError: the file cannot be read, or its parameters are not exactly the configuration's; every
            missing, extra and misshapen one is listed by its official name. Nothing is ever loaded in part.
    """
    state, name = read_state(source)
    config = infer_config(state, name) if config is None else config
    with torch.device("meta"):
        model = TripoSFVAE(config)
    names = {ours: official_name(ours) for ours in model.state_dict()}
    expected = {
        names[ours]: official_shape(names[ours], tuple(tensor.shape))
        for ours, tensor in model.state_dict().items()
    }
    compare_shapes(expected, {key: tuple(value.shape) for key, value in state.items()}, name)
    model = TripoSFVAE(config)
    model.load_state_dict({ours: converted(key, state[key]) for ours, key in names.items()}, strict=True)
    model.metadata = CheckpointMetadata(license="MIT", source="TripoSF (github.com/VAST-AI-Research/TripoSF)")
    return model.eval()
