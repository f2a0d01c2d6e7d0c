"""Autoencoders of 3D shapes. Each has a `Config`, and loads its official weights where there are any.

`load` takes trained weights of any of them: a name of `shipped`, a folder or a hub id. `MODELS`: the classes
whose decoder is a field; `VOXEL_MODELS`: those whose decoder gives voxels.
"""

from fastshape.models.dora import DoraConfig, DoraVAE
from fastshape.models.field import FieldAutoencoder, FieldOutput
from fastshape.models.lagem import LaGeM, LaGeMConfig
from fastshape.models.pretrained import (
    CheckpointError,
    CheckpointMetadata,
    PreparationWarning,
    PretrainedModel,
)
from fastshape.models.registry import (
    MODELS,
    OFFICIAL,
    VOXEL_MODELS,
    Autoencoder,
    load,
    load_official,
    shipped,
)
from fastshape.models.slat import SLatConfig, SLatVAE
from fastshape.models.structure import SparseStructureConfig, SparseStructureVAE, StructureOutput
from fastshape.models.triposf import SparsePosterior, TripoSFConfig, TripoSFVAE
from fastshape.models.vecset import VecSetConfig, VecSetVAE

__all__ = [
    "MODELS",
    "OFFICIAL",
    "VOXEL_MODELS",
    "Autoencoder",
    "CheckpointError",
    "CheckpointMetadata",
    "DoraConfig",
    "DoraVAE",
    "FieldAutoencoder",
    "FieldOutput",
    "LaGeM",
    "LaGeMConfig",
    "PreparationWarning",
    "PretrainedModel",
    "SLatConfig",
    "SLatVAE",
    "SparsePosterior",
    "SparseStructureConfig",
    "SparseStructureVAE",
    "StructureOutput",
    "TripoSFConfig",
    "TripoSFVAE",
    "VecSetConfig",
    "VecSetVAE",
    "load",
    "load_official",
    "shipped",
]
