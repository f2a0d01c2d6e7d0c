"""Checkpoints of Dora-VAE (github.com/Seed3D/Dora): its `MichelangeloAutoencoder`.

`dora_vae_1_1.ckpt` keeps the parameters flat or under "state_dict", with the prefix `shape_model.`. Two of
its layouts differ from ours: attention's rows come head by head, each head's [q | k | v] or [k | v] together,
and the mean and the log variance come from one layer.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from fastshape.checkpoints.reading import read_state
from fastshape.models.dora import DoraConfig, DoraVAE
from fastshape.models.pretrained import CheckpointError, CheckpointMetadata, compare_shapes

_PREFIX = "shape_model."
_HEAD_DIM = 64

# Version 1.1's training data: `geometry.PrepareSpec.preset("dora")` of shells at this distance in [-1, 1]^3.
_EPSILON = 2 / 256

_STEMS = {
    "encoder.surface_proj": "encoder.input_proj",
    "encoder.sharp_proj": "encoder.input_proj1",
    "encoder.surface_block": "encoder.cross_attn",
    "encoder.sharp_block": "encoder.cross_attn1",
    "encoder.layers": "encoder.self_attn.resblocks",
    "encoder.norm": "encoder.ln_post",
    "bottleneck.to_mean": "pre_kl",
    "bottleneck.to_logvar": "pre_kl",
    "bottleneck.from_latent": "post_kl",
    "layers": "transformer.resblocks",
    "head.query_proj": "decoder.query_proj",
    "head.block": "decoder.cross_attn_decoder",
    "head.norm": "decoder.ln_post",
    "head.to_values": "decoder.output_proj",
}
_LEAVES = {
    r"cross_attention\.attention\.to_q\.": "attn.c_q.",
    r"cross_attention\.attention\.to_kv\.": "attn.c_kv.",
    r"cross_attention\.attention\.to_out\.": "attn.c_proj.",
    r"cross_attention\.norm\.": "ln_1.",
    r"cross_attention\.norm_context\.": "ln_2.",
    r"(?<=block\.)feed_forward\.norm\.": "ln_3.",
    r"(?<!cross_)attention\.attention\.to_(q|kv)\.": "attn.c_qkv.",
    r"(?<!cross_)attention\.attention\.to_out\.": "attn.c_proj.",
    r"(?<!cross_)attention\.norm\.": "ln_1.",
    r"feed_forward\.norm\.": "ln_2.",
    r"feed_forward\.proj_in\.": "mlp.c_fc.",
    r"feed_forward\.proj_out\.": "mlp.c_proj.",
}


def official_name(ours: str) -> str:
    """The official parameter that holds one of ours, alone or with others."""
    name = ours
    for pattern, leaf in _LEAVES.items():
        name, count = re.subn(pattern, leaf, name)
        if count:
            break
    stem = max((stem for stem in _STEMS if name.startswith(f"{stem}.")), key=len)
    return _STEMS[stem] + name.removeprefix(stem)


def parts(model: DoraVAE) -> dict[str, list[str]]:
    """Official name -> the names of our parameters in it, in the order of its (permuted) rows."""
    found: dict[str, list[str]] = {}
    for ours in model.state_dict():
        found.setdefault(official_name(ours), []).append(ours)
    return found


def rows(name: str, tensor: Tensor, heads: int) -> Tensor:
    """The rows of an official parameter in our order: all of q, then k, then v, heads outermost in each."""
    for leaf, kinds in ((".attn.c_qkv.", 3), (".attn.c_kv.", 2)):
        if leaf in name:
            return tensor.unflatten(0, (heads, kinds, -1)).transpose(0, 1).flatten(0, 2)
    return tensor


def infer_config(state: Mapping[str, Tensor], source: str = "the state dict") -> DoraConfig:
    """The configuration that official parameters were made with, as far as shapes tell it.

    Each head is taken to have 64 channels, as in every published configuration, and `output`, `truncation`,
    `include_pi`, `num_latents`, `num_inputs` and `init_scale`, which have no parameters, to be those of
    version 1.1. Of version 1.0 pass `DoraVAE.configs["v1.0"]`.

    Raises:
        CheckpointError: the parameters are not of this family, or the width is not a multiple of 64.
    """

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise CheckpointError(f"{source} is not a Dora autoencoder: it has no {name}")
        return state[name].shape

    def depth(stem: str) -> int:
        pattern = re.compile(rf"{re.escape(stem)}\.resblocks\.(\d+)\.")
        return 1 + max((int(match[1]) for match in map(pattern.match, state) if match), default=-1)

    dim, embedded = shape("decoder.query_proj.weight")
    if dim % _HEAD_DIM:
        raise CheckpointError(
            f"{source} has tokens of {dim} channels, not a multiple of the usual {_HEAD_DIM} of a head: "
            "its heads cannot be inferred, pass `config`"
        )
    return DoraConfig(
        dim=dim,
        heads=dim // _HEAD_DIM,
        encoder_depth=depth("encoder.self_attn"),
        depth=depth("transformer"),
        latent_dim=shape("post_kl.weight")[1],
        point_features=shape("encoder.input_proj.weight")[1] - embedded,
        num_frequencies=(embedded // 3 - 1) // 2,
        qkv_bias="encoder.cross_attn.attn.c_q.bias" in state,
        encoder_norm="encoder.ln_post.weight" in state,
    )


def load(source: str | os.PathLike[str] | Mapping[str, Tensor], config: DoraConfig | None = None) -> DoraVAE:
    """A `DoraVAE` with official parameters, in evaluation mode and float32.

    Args:
        source: a `.ckpt`, `.pth` or `.safetensors` file, or a state dict.
        config: None infers version 1.1, see `infer_config`; needed for version 1.0, whose parameters look the
            same, and where a head does not have 64 channels.

    Raises:
        CheckpointError: the file cannot be read, or its parameters are not exactly the configuration's; every
            missing, extra and misshapen one is listed by its official name. Nothing is ever loaded in part.
    """
    state, name = read_state(source)
    state = {key.removeprefix(_PREFIX): value for key, value in state.items()}
    config = infer_config(state, name) if config is None else config
    with torch.device("meta"):
        model = DoraVAE(config)
    shapes = {ours: tensor.shape for ours, tensor in model.state_dict().items()}
    expected = {
        official: (sum(shapes[ours][0] for ours in names), *shapes[names[0]][1:])
        for official, names in parts(model).items()
    }
    compare_shapes(expected, {key: tuple(value.shape) for key, value in state.items()}, name)
    converted: dict[str, Tensor] = {}
    for official, names in parts(model).items():
        pieces = rows(official, state[official].float(), config.heads).split([shapes[n][0] for n in names])
        converted.update(zip(names, (piece.contiguous() for piece in pieces), strict=True))
    model = model.to_empty(device="cpu")
    model.load_state_dict(converted, strict=True)
    model.metadata = _metadata(config)
    return model.eval()


def _metadata(config: DoraConfig) -> CheckpointMetadata:
    from fastshape.geometry import PrepareSpec

    labels = "sdf" if config.output == "tsdf" else "occupancy"
    return CheckpointMetadata(
        source="Dora-VAE (github.com/Seed3D/Dora)",
        epsilon=_EPSILON if config.output == "tsdf" else None,
        preparation=PrepareSpec.preset("dora", labels=labels).to_dict(),
    )
