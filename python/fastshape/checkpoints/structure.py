"""Checkpoints of TRELLIS' structure autoencoder (github.com/microsoft/TRELLIS).

It comes as two files, `ss_enc_conv3d_16l8_fp16` and `ss_dec_conv3d_16l8_fp16`, with the configuration of each
as JSON beside it. The parameters have the same names here, below `encoder.` and `decoder.`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastshape.checkpoints.reading import read_state
from fastshape.models.pretrained import CheckpointError, CheckpointMetadata, compare_shapes
from fastshape.models.structure import SparseStructureConfig, SparseStructureVAE

Source = str | os.PathLike[str] | Mapping[str, Tensor]


def infer_config(
    encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor], source: str = "the state dict"
) -> SparseStructureConfig:
    """The configuration that official parameters were made with; all but `resolution` and `norm` show.

    Raises:
        CheckpointError: the parameters are not of this family, or the two halves are not mirror images.
    """
    halves = [_half(encoder, "encoder", source), _half(decoder, "decoder", source)]
    halves[1]["channels"] = halves[1]["channels"][::-1]
    if halves[0] != halves[1]:
        differences = ", ".join(
            f"{name} {value} and {halves[1][name]}"
            for name, value in halves[0].items()
            if value != halves[1][name]
        )
        raise CheckpointError(f"{source}: encoder and decoder are not of one model: {differences}")
    return SparseStructureConfig(**halves[0])


def _half(state: Mapping[str, Tensor], name: str, source: str) -> dict[str, Any]:
    def shape(key: str) -> torch.Size:
        if key not in state:
            raise CheckpointError(f"{source} is not the {name} of a structure autoencoder: it has no {key}")
        return state[key].shape

    def count(pattern: str) -> int:
        return len({match[1] for match in (re.match(pattern, key) for key in state) if match})

    levels = count(r"blocks\.(\d+)\.conv\.weight") + 1
    channels = [shape("input_layer.weight")[0]]
    for key in sorted(
        (key for key in state if re.match(r"blocks\.\d+\.conv\.weight", key)),
        key=lambda key: int(key.split(".")[1]),
    ):
        channels.append(state[key].shape[0] // (1 if name == "encoder" else 8))
    latent = shape("out_layer.2.weight")[0] // 2 if name == "encoder" else shape("input_layer.weight")[1]
    return {
        "channels": tuple(channels),
        "latent_channels": latent,
        "num_res_blocks": count(r"blocks\.(\d+)\.conv1\.weight") // levels,
        "num_res_blocks_middle": count(r"middle_block\.(\d+)\.conv1\.weight"),
    }


def _said(source: Source) -> dict[str, Any]:
    """What the JSON beside a file says of its model; nothing where there is none."""
    if isinstance(source, Mapping):
        return {}
    path = Path(source).with_suffix(".json")
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return dict(content.get("args", content))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path} is not the configuration of a model: {error}") from error


def load(encoder: Source, decoder: Source, config: SparseStructureConfig | None = None) -> SparseStructureVAE:
    """A `SparseStructureVAE` with official parameters, in evaluation mode and float32.

    Args:
        encoder, decoder: a `.safetensors`, `.pt` or `.ckpt` file, or a state dict, of each half.
        config: None infers it from the parameters and, where there is a file of the same name that ends in
            `.json`, the norm and the resolution from that.

    Raises:
        CheckpointError: a file cannot be read, or its parameters are not exactly the configuration's; every
            missing, extra and misshapen one is listed with `encoder.` or `decoder.` before its official name.
            Nothing is ever loaded in part.
    """
    states, names = [], []
    for source in (encoder, decoder):
        state, name = read_state(source)
        states.append(state)
        names.append(name)
    source_name = names[0] if names[0] == names[1] else f"{names[0]} with {names[1]}"
    if config is None:
        values = infer_config(states[0], states[1], source_name).to_dict()
        said = _said(encoder) or _said(decoder)
        values.update({ours: said[key] for ours, key in _SAID.items() if key in said})
        config = SparseStructureConfig.from_dict(values)
    with torch.device("meta"):
        model = SparseStructureVAE(config)
    found = {
        f"{half}.{key}": tensor
        for half, state in zip(("encoder", "decoder"), states, strict=True)
        for key, tensor in state.items()
    }
    compare_shapes(
        {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()},
        {name: tuple(tensor.shape) for name, tensor in found.items()},
        source_name,
    )
    model = model.to_empty(device="cpu")
    model.load_state_dict({name: tensor.float() for name, tensor in found.items()}, strict=True)
    model.metadata = _metadata(config)
    return model.eval()


_SAID = {"norm": "norm_type", "resolution": "resolution"}


def _metadata(config: SparseStructureConfig) -> CheckpointMetadata:
    from fastshape.geometry import PrepareSpec

    return CheckpointMetadata(
        license="MIT",
        source="TRELLIS (github.com/microsoft/TRELLIS)",
        preparation=PrepareSpec.preset("structure", voxels=config.resolution).to_dict(),
    )
