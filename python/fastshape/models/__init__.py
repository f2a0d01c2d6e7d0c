"""Autoencoders of 3D shapes. Each has a `Config`, and loads its official weights where there are any.

`load` takes trained weights of any of them: a name of `shipped`, a folder or a hub id. `MODELS`: the classes.
"""

from fastshape.models.dora import DoraConfig, DoraVAE
from fastshape.models.field import FieldAutoencoder, FieldOutput
from fastshape.models.lagem import LaGeM, LaGeMConfig
from fastshape.models.pretrained import CheckpointError, CheckpointMetadata, PreparationWarning
from fastshape.models.registry import MODELS, load, shipped
from fastshape.models.vecset import VecSetConfig, VecSetVAE

__all__ = [
    "MODELS",
    "CheckpointError",
    "CheckpointMetadata",
    "DoraConfig",
    "DoraVAE",
    "FieldAutoencoder",
    "FieldOutput",
    "LaGeM",
    "LaGeMConfig",
    "PreparationWarning",
    "VecSetConfig",
    "VecSetVAE",
    "load",
    "shipped",
]
