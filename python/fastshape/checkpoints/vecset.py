"""Checkpoints of 3DShape2VecSet (github.com/1zb/3DShape2VecSet): `AutoEncoder` and `KLAutoEncoder`.

Its `.pth` files keep the parameters under "model", beside the optimizer and an `argparse.Namespace`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import torch
from torch import Tensor

from fastshape.checkpoints.reading import read_state
from fastshape.models.pretrained import CheckpointError, CheckpointMetadata, compare_shapes
from fastshape.models.vecset import VecSetConfig, VecSetVAE
from fastshape.nn.embedding import sine_frequencies

BASIS = "point_embed.basis"

# Official prefix -> ours; the first that matches is used.
_MODULES = {
    "cross_attend_blocks.0.": "encoder.cross_attention.",
    "cross_attend_blocks.1.": "encoder.feed_forward.",
    "decoder_cross_attn.": "head.cross_attention.",
    "decoder_ff.": "head.feed_forward.",
    "to_outputs.": "head.to_logits.",
    "point_embed.mlp.": "point_embed.proj.",
    "mean_fc.": "bottleneck.to_mean.",
    "logvar_fc.": "bottleneck.to_logvar.",
    "proj.": "bottleneck.from_latent.",
}
_LAYER = re.compile(r"layers\.(\d+)\.([01])\.")
_LEAVES = {
    "fn.net.0.": "proj_in.",
    "fn.net.2.": "proj_out.",
    "fn.": "attention.",
}


def our_name(official: str) -> str | None:
    """Our name of an official parameter; None if the official code has no such parameter."""
    layer = _LAYER.match(official)
    if layer:
        part = "attention" if layer[2] == "0" else "feed_forward"
        module, leaf = f"layers.{layer[1]}.{part}.", official[layer.end() :]
    else:
        prefix = next((p for p in _MODULES if official.startswith(p)), None)
        if prefix is None:
            return None
        module, leaf = _MODULES[prefix], official.removeprefix(prefix)
    for old, new in _LEAVES.items():
        if leaf.startswith(old):
            return module + new + leaf.removeprefix(old)
    return module + leaf


def official_names(config: VecSetConfig) -> dict[str, str]:
    """Our name -> official name, for every parameter of the configuration."""
    linear = ("weight", "bias")
    projections = ("fn.to_q.weight", "fn.to_kv.weight", "fn.to_out.weight", "fn.to_out.bias")
    attention = ("norm.weight", "norm.bias", *projections)
    cross_attention = (*attention, "norm_context.weight", "norm_context.bias")
    feed_forward = ("norm", "fn.net.0", "fn.net.2")
    crosses = ("cross_attend_blocks.0", "decoder_cross_attn")
    names = [f"{block}.{leaf}" for block in crosses for leaf in cross_attention]
    blocks = ["cross_attend_blocks.1", *(["decoder_ff"] if config.decoder_feed_forward else [])]
    for i in range(config.depth):
        names += [f"layers.{i}.0.{leaf}" for leaf in attention]
        blocks.append(f"layers.{i}.1")
    names += [f"{block}.{module}.{leaf}" for block in blocks for module in feed_forward for leaf in linear]
    linears = ["point_embed.mlp", "to_outputs"]
    if config.latent_dim is not None:
        linears += ["proj", "mean_fc", "logvar_fc"]
    names += [f"{module}.{leaf}" for module in linears for leaf in linear]
    return {str(our_name(name)): name for name in names}


def infer_config(state: Mapping[str, Tensor], source: str = "the state dict") -> VecSetConfig:
    """The configuration that official parameters were made with, as far as shapes tell it.

    The number of heads is not in the shapes, only heads * head_dim is: head_dim is taken to be 64, as in
    every published configuration. `num_latents` and `num_inputs` have no parameters and keep their defaults.

    Raises:
        CheckpointError: the parameters are not of this family, or heads * head_dim is not a multiple of 64.
    """

    def shape(name: str) -> torch.Size:
        if name not in state:
            raise CheckpointError(f"{source} is not a 3DShape2VecSet autoencoder: it has no {name}")
        return state[name].shape

    dim = shape("point_embed.mlp.bias")[0]
    layers = {int(match[1]) for match in map(_LAYER.match, state) if match}
    depth = max(layers) + 1 if layers else 0
    heads, head_dim = 8, 64
    if depth:
        inner = shape("layers.0.0.fn.to_q.weight")[0]
        if inner % head_dim:
            raise CheckpointError(
                f"{source} has {inner} self-attention channels, not a multiple of the usual head_dim of 64: "
                "its heads cannot be inferred, pass `config`"
            )
        heads = inner // head_dim
    return VecSetConfig(
        dim=dim,
        depth=depth,
        heads=heads,
        head_dim=head_dim,
        latent_dim=shape("mean_fc.weight")[0] if "mean_fc.weight" in state else None,
        decoder_feed_forward=any(name.startswith("decoder_ff.") for name in state),
    )


def load(
    source: str | os.PathLike[str] | Mapping[str, Tensor], config: VecSetConfig | None = None
) -> VecSetVAE:
    """A `VecSetVAE` with official parameters, in evaluation mode and float32.

    Args:
        source: a `.pth` or `.safetensors` file, or a state dict.
        config: None infers it, see `infer_config`; needed where head_dim is not 64.

    Raises:
        CheckpointError: the file cannot be read, or its parameters are not exactly the configuration's; every
            missing, extra and misshapen one is listed by its official name. Nothing is ever loaded in part.
    """
    state, name = read_state(source)
    config = infer_config(state, name) if config is None else config
    require_basis(state.pop(BASIS, None), name)
    with torch.device("meta"):
        model = VecSetVAE(config)
    names = official_names(config)
    expected = {names[ours]: tuple(tensor.shape) for ours, tensor in model.state_dict().items()}
    compare_shapes(expected, {key: tuple(value.shape) for key, value in state.items()}, name)
    model = model.to_empty(device="cpu")
    model.load_state_dict({ours: state[official].float() for ours, official in names.items()}, strict=True)
    model.metadata = _metadata()
    return model.eval()


def _metadata() -> CheckpointMetadata:
    from fastshape.geometry import PrepareSpec

    return CheckpointMetadata(
        source="3DShape2VecSet (github.com/1zb/3DShape2VecSet)",
        preparation=PrepareSpec.preset("vecset").to_dict(),
    )


def require_basis(basis: Tensor | None, source: str) -> None:
    """CheckpointError unless the basis of a point embedding is the published one, or not there."""
    published = torch.block_diag(*[sine_frequencies(8)[None]] * 3)
    if basis is not None and (
        basis.shape != published.shape
        or not torch.allclose(basis.float().cpu(), published, rtol=1e-6, atol=0.0)
    ):
        raise CheckpointError(f"{source}: {BASIS} is not the published one (8 frequencies pi * 2^i per axis)")
