"""Autoencoders of 3D shapes. Each has a `Config`, and loads its official weights where there are any.

`load` takes trained weights of any of them: a name of `shipped`, a folder or a hub id. `MODELS`: the classes
whose decoder is a field; `VOXEL_MODELS`: those whose decoder gives voxels.
"""

from fastshape.models.condition_folder import ConditionFolder
from fastshape.models.conditioners import ImageConditioner, TextConditioner
from fastshape.models.dora import DoraConfig, DoraVAE
from fastshape.models.field import FieldAutoencoder, FieldOutput
from fastshape.models.lagem import LaGeM, LaGeMConfig
from fastshape.models.nextscale import (
    Condition,
    NextScaleConfig,
    NextScaleTransformer,
    ScaleQuantizer,
)
from fastshape.models.pretrained import (
    CheckpointError,
    CheckpointMetadata,
    PreparationWarning,
    PretrainedModel,
)
from fastshape.models.registry import (
    GENERATORS,
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
from fastshape.models.token_sampling import Sampling
from fastshape.models.triposf import SparsePosterior, TripoSFConfig, TripoSFVAE
from fastshape.models.vat import VAT, CodedPosterior
from fastshape.models.vat_config import VATConfig
from fastshape.models.vecset import VecSetConfig, VecSetVAE

__all__ = [
    "GENERATORS",
    "MODELS",
    "OFFICIAL",
    "VAT",
    "VOXEL_MODELS",
    "Autoencoder",
    "CheckpointError",
    "CheckpointMetadata",
    "CodedPosterior",
    "Condition",
    "ConditionFolder",
    "DoraConfig",
    "DoraVAE",
    "FieldAutoencoder",
    "FieldOutput",
    "ImageConditioner",
    "LaGeM",
    "LaGeMConfig",
    "NextScaleConfig",
    "NextScaleTransformer",
    "PreparationWarning",
    "PretrainedModel",
    "SLatConfig",
    "SLatVAE",
    "Sampling",
    "ScaleQuantizer",
    "SparsePosterior",
    "SparseStructureConfig",
    "SparseStructureVAE",
    "StructureOutput",
    "TextConditioner",
    "TripoSFConfig",
    "TripoSFVAE",
    "VATConfig",
    "VecSetConfig",
    "VecSetVAE",
    "load",
    "load_official",
    "shipped",
]
