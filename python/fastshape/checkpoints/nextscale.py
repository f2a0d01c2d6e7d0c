"""Checkpoints of VAR (github.com/FoundationVision/VAR): its transformers, and the quantizer of its tokenizer.

`var_d16.pth` and so on hold the transformer, `vae_ch160v4096z32.pth` the tokenizer, of which this library has
the quantizer alone: the rest of it is of images.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fastshape.checkpoints.reading import read_state
from fastshape.models.nextscale import NextScaleConfig, NextScaleTransformer
from fastshape.models.pretrained import CheckpointError, CheckpointMetadata, compare_shapes
from fastshape.nn import MultiscaleQuantizer

Source = str | os.PathLike[str] | Mapping[str, Tensor]

# Ours -> official, outside of the blocks and within them.
_TOP = {
    "class_embed.weight": "class_emb.weight",
    "code_embed.weight": "word_embed.weight",
    "code_embed.bias": "word_embed.bias",
    "start_position": "pos_start",
    "position": "pos_1LC",
    "scale_embed.weight": "lvl_embed.weight",
    "shared_modulation.weight": "shared_ada_lin.1.weight",
    "shared_modulation.bias": "shared_ada_lin.1.bias",
    "head_modulation.weight": "head_nm.ada_lin.1.weight",
    "head_modulation.bias": "head_nm.ada_lin.1.bias",
    "head.weight": "head.weight",
    "head.bias": "head.bias",
}
_BLOCK = {
    "modulation.weight": "ada_lin.1.weight",
    "modulation.bias": "ada_lin.1.bias",
    "offset": "ada_gss",
    "attention.to_qkv.weight": "attn.mat_qkv.weight",
    "attention.q_bias": "attn.q_bias",
    "attention.v_bias": "attn.v_bias",
    "attention.log_scale": "attn.scale_mul_1H11",
    "attention.to_out.weight": "attn.proj.weight",
    "attention.to_out.bias": "attn.proj.bias",
    "mlp_in.weight": "ffn.fc1.weight",
    "mlp_in.bias": "ffn.fc1.bias",
    "mlp_out.weight": "ffn.fc2.weight",
    "mlp_out.bias": "ffn.fc2.bias",
}
# What the official files hold beside parameters: constants that follow from the scales.
_LEVELS = "lvl_1L"
_CONSTANTS = re.compile(rf"{_LEVELS}|attn_bias_for_masking|blocks\.\d+\.attn\.zero_k_bias")


_PHI = r"quant_resi\.(qresi|qresi_ls\.\d+|\d+)\.weight"


def official_name(ours: str) -> str | None:
    """The official name of a parameter; None where the official model has none."""
    block = re.match(r"blocks\.(\d+)\.", ours)
    if block is None:
        return _TOP.get(ours)
    leaf = _BLOCK.get(ours[block.end() :])
    return None if leaf is None else f"blocks.{block[1]}.{leaf}"


def infer_config(state: Mapping[str, Tensor], source: str = "the state dict") -> NextScaleConfig:
    """The configuration that official parameters were made with.

    The scales are in the constants of the official files; without these only the published ones are known. So
    are the heads without unit queries and keys: there they are taken to have 64 channels. Paths are not
    dropped.

    Raises:
        CheckpointError: the parameters are not of this family, or the scales do not show.
    """

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise CheckpointError(f"{source} is not a VAR transformer: it has no {name}")
        return state[name].shape

    dim, code_dim = shape("word_embed.weight")
    unit = state.get("blocks.0.attn.scale_mul_1H11")
    layers = {int(match[1]) for match in (re.match(r"blocks\.(\d+)\.", name) for name in state) if match}
    return NextScaleConfig(
        scales=_scales(state, shape("pos_1LC")[1], shape("lvl_embed.weight")[0], source),
        vocab_size=shape("head.weight")[0],
        code_dim=code_dim,
        dim=dim,
        depth=len(layers),
        heads=max(dim // 64, 1) if unit is None else unit.numel(),
        mlp_ratio=shape("blocks.0.ffn.fc1.weight")[0] / dim,
        qk_norm=unit is not None,
        shared_modulation="shared_ada_lin.1.weight" in state,
        num_classes=shape("class_emb.weight")[0] - 1,
    )


def _scales(state: Mapping[str, Tensor], tokens: int, count: int, source: str) -> tuple[int, ...]:
    if _LEVELS in state:
        return tuple(state[_LEVELS].flatten().long().bincount().tolist())
    for config in NextScaleTransformer.configs.values():
        if config.num_classes and (config.num_tokens, len(config.scales)) == (tokens, count):
            return config.scales
    raise CheckpointError(
        f"{source} has {tokens} tokens in {count} scales and no {_LEVELS}, so that the scales do not show: "
        "pass `config`"
    )


def load(source: Source, config: NextScaleConfig | None = None) -> NextScaleTransformer:
    """A `NextScaleTransformer` with official parameters, in evaluation mode and float32.

    Args:
        source: a `.pth` or `.safetensors` file, or a state dict.
        config: None infers it, see `infer_config`.

    Raises:
        CheckpointError: the file cannot be read, or its parameters are not exactly the configuration's; every
            missing, extra and misshapen one is listed by its official name. Nothing is ever loaded in part.
    """
    state, name = read_state(source)
    config = infer_config(state, name) if config is None else config
    with torch.device("meta"):
        model = NextScaleTransformer(config)
    expected = {official_name(ours): (ours, value.shape) for ours, value in model.state_dict().items()}
    if None in expected:
        raise CheckpointError(f"{name}: VAR has classes alone, `config` has {', '.join(config.conditions)}")
    found = {key: value for key, value in state.items() if not _CONSTANTS.fullmatch(key)}
    compare_shapes(
        {str(key): _official_shape(str(key), tuple(shape)) for key, (_, shape) in expected.items()},
        {key: tuple(value.shape) for key, value in found.items()},
        name,
    )
    model = model.to_empty(device="cpu")
    model.load_state_dict(
        {ours: found[str(key)].float().reshape(shape) for key, (ours, shape) in expected.items()}, strict=True
    )
    model.metadata = CheckpointMetadata(license="MIT", source="VAR (github.com/FoundationVision/VAR)")
    return model.eval()


def _official_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """There some parameters have axes of size one around them."""
    if name in ("pos_start", "pos_1LC"):
        return (1, *shape)
    if name.endswith("scale_mul_1H11"):
        return (1, *shape, 1, 1)
    return (1, 1, *shape) if name.endswith("ada_gss") else shape


def load_quantizer(
    source: Source, scales: Sequence[int], *, phi_ratio: float = 0.5, prefix: str = "quantize."
) -> MultiscaleQuantizer:
    """The quantizer of an official tokenizer.

    Args:
        source: a file or state dict of the tokenizer; of it what begins with `prefix` counts.
        scales: tokens of each scale, coarse to fine, squares.
        phi_ratio: `quant_resi` there.
        prefix: of its parameters' names.

    Raises:
        CheckpointError: the file cannot be read, or holds no quantizer of this kind.
    """
    state, name = read_state(source)
    state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
    # One convolution for all scales, a list that the scales share, or one for each.
    phis = sorted(
        (key.removesuffix("weight") for key in state if re.fullmatch(_PHI, key)),
        key=lambda phi: int(re.sub(r"\D", "", phi) or 0),
    )
    if "embedding.weight" not in state:
        raise CheckpointError(f"{name} is not a VAR tokenizer: it has no {prefix}embedding.weight")
    codes, dim = state["embedding.weight"].shape
    quantizer = MultiscaleQuantizer(codes, dim, scales, num_phis=len(phis), phi_ratio=phi_ratio)
    with torch.no_grad():
        quantizer.codebook.copy_(state["embedding.weight"])
        if phis:
            assert quantizer.phi_weight is not None
            assert quantizer.phi_bias is not None
            quantizer.phi_weight.copy_(torch.stack([state[f"{phi}weight"] for phi in phis]))
            quantizer.phi_bias.copy_(torch.stack([state[f"{phi}bias"] for phi in phis]))
    return quantizer.eval()
