"""Checkpoints of LaGeM (github.com/1zb/LaGeM): its `AutoEncoder`.

Its files keep the parameters under "model". It counts networks from the finest level, but what decodes and
what queries from the coarsest.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from fastshape.checkpoints.reading import read_state
from fastshape.checkpoints.vecset import BASIS, require_basis
from fastshape.models.lagem import LaGeM, LaGeMConfig
from fastshape.models.pretrained import CheckpointError, CheckpointMetadata, compare_shapes

_HEAD_DIM = 64
_LEAVES = {
    r"\.attention\.to_": ".fn.to_",
    r"\.proj_in\.": ".fn.net.0.",
    r"\.proj_out\.": ".fn.net.2.",
    r"\.to_latent\.": ".pre_bottleneck_proj.",
    r"\.project\.": ".post_bottleneck_proj.",
    r"^to_logits\.": "to_outputs.",
    r"^point_embed\.proj\.": "point_embed.mlp.",
}
_BLOCKS = {
    r"^levels\.(\d+)\.(?:bottleneck\.)?": r"networks.\1.",
    r"\.encoder\.cross_attention\.": ".cross_attend_blocks.0.",
    r"\.encoder\.feed_forward\.": ".cross_attend_blocks.1.",
    r"\.layers\.(\d+)\.attention\.": r".layers.\1.0.",
    r"\.layers\.(\d+)\.feed_forward\.": r".layers.\1.1.",
    r"^(up\.\d+)\.cross_attention\.": r"\1.0.",
    r"^(up\.\d+)\.feed_forward\.": r"\1.1.",
}


def official_name(ours: str, num_levels: int) -> str:
    """The official name of one of our parameters."""
    name = ours
    for pattern, replacement in {**_BLOCKS, **_LEAVES}.items():
        name = re.sub(pattern, replacement, name)
    name = re.sub(r"^up\.(\d+)", lambda m: f"upsample_blocks.{num_levels - 2 - int(m[1])}", name)
    return re.sub(r"^heads\.(\d+)", lambda m: f"decoder_cross_attn.{num_levels - 1 - int(m[1])}", name)


def official_names(model: LaGeM) -> dict[str, str]:
    """Our name -> official name, for every parameter of the model."""
    return {name: official_name(name, model.config.num_levels) for name in model.state_dict()}


def infer_config(state: Mapping[str, Tensor], source: str = "the state dict") -> LaGeMConfig:
    """The configuration that official parameters were made with, as far as shapes tell it.

    head_dim is taken to be 64, as in every published configuration. `num_latents` has no parameters: it is
    taken to be 2048, divided by 4 from level to level, as published. Attention is left in float32.

    Raises:
        CheckpointError: the parameters are not of this family, or heads * head_dim is not a multiple of 64.
    """

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise CheckpointError(f"{source} is not a LaGeM autoencoder: it has no {name}")
        return state[name].shape

    def count(pattern: str) -> int:
        return 1 + max(
            (int(match[1]) for match in (re.match(pattern, name) for name in state) if match), default=-1
        )

    dim = shape("point_embed.mlp.bias")[0]
    inner = shape("networks.0.cross_attend_blocks.0.fn.to_q.weight")[0]
    if inner % _HEAD_DIM:
        raise CheckpointError(
            f"{source} has {inner} attention channels, not a multiple of the usual head_dim of {_HEAD_DIM}: "
            "its heads cannot be inferred, pass `config`"
        )
    levels = range(count(r"networks\.(\d+)\."))
    return LaGeMConfig(
        dim=dim,
        heads=inner // _HEAD_DIM,
        head_dim=_HEAD_DIM,
        num_latents=tuple(max(1, 2048 // 4**level) for level in levels),
        latent_dims=tuple(shape(f"networks.{level}.gamma")[0] for level in levels),
        depths=tuple(count(rf"networks\.{level}\.layers\.(\d+)\.") for level in levels),
    )


def load(source: str | os.PathLike[str] | Mapping[str, Tensor], config: LaGeMConfig | None = None) -> LaGeM:
    """A `LaGeM` with official parameters, in evaluation mode and float32.

    Args:
        source: a `.pth` or `.safetensors` file, or a state dict.
        config: None infers it, see `infer_config`; needed where head_dim is not 64.
            `attention_dtype="bfloat16"` rounds as the official code does.

    Raises:
        CheckpointError: the file cannot be read, or its parameters are not exactly the configuration's; every
            missing, extra and misshapen one is listed by its official name. Nothing is ever loaded in part.
        ValueError: a configuration with another bottleneck than the official one.
    """
    state, name = read_state(source)
    config = infer_config(state, name) if config is None else config
    if config.bottleneck != "normalized":
        raise ValueError(f"official checkpoints have the normalized bottleneck, not {config.bottleneck!r}")
    require_basis(state.pop(BASIS, None), name)
    with torch.device("meta"):
        model = LaGeM(config)
    names = official_names(model)
    expected = {names[ours]: tuple(tensor.shape) for ours, tensor in model.state_dict().items()}
    compare_shapes(expected, {key: tuple(value.shape) for key, value in state.items()}, name)
    converted = {ours: state[official].float() for ours, official in names.items()}
    converted["to_logits.weight"] = reverse_levels(converted["to_logits.weight"], config.num_levels)
    model = model.to_empty(device="cpu")
    model.load_state_dict(converted, strict=True)
    model.metadata = _metadata()
    return model.eval()


def reverse_levels(weight: Tensor, num_levels: int) -> Tensor:
    """The columns of the last layer, (1, num_levels * dim), with the levels in the opposite order."""
    return weight.unflatten(1, (num_levels, -1)).flip(1).flatten(1).contiguous()


def _metadata() -> CheckpointMetadata:
    from fastshape.geometry import PrepareSpec

    return CheckpointMetadata(
        source="LaGeM (github.com/1zb/LaGeM)", preparation=PrepareSpec.preset("lagem").to_dict()
    )
