"""Whole ways through the library: a mesh in, a mesh out."""

from fastshape.pipelines.reconstruct import Reconstruction as Reconstruction
from fastshape.pipelines.reconstruct import reconstruct as reconstruct
