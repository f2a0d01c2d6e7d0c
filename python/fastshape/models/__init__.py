"""Autoencoders of 3D shapes. Each has a `Config`, and loads its official weights where there are any."""

from fastshape.models.pretrained import CheckpointError
from fastshape.models.vecset import VecSetConfig, VecSetOutput, VecSetVAE

__all__ = ["CheckpointError", "VecSetConfig", "VecSetOutput", "VecSetVAE"]
