"""Autoencoders of 3D shapes. Each has a `Config`, and loads its official weights where there are any."""

from fastshape.models.dora import DoraConfig, DoraVAE
from fastshape.models.field import FieldAutoencoder, FieldOutput
from fastshape.models.lagem import LaGeM, LaGeMConfig
from fastshape.models.pretrained import CheckpointError, CheckpointMetadata, PreparationWarning
from fastshape.models.vecset import VecSetConfig, VecSetVAE

__all__ = [
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
]
