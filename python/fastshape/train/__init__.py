"""Training.

    from fastshape import geometry, train

    samples = [train.prepare(geometry.load("mug.stl"))]  # or ShapeSamples of your own points and labels,
    # or train.ShapeDataset("prepared"), what `fastshape prepare` or `fastshape pack` wrote
    model = train.fit_meshes(samples, train.recipes.vecset_single(), output_dir="runs/mug")

`fit(config, samples)` is the whole of it; `fit_meshes(samples, recipe, steps=..., seed=...)` takes a recipe
(or its name) and overrides its commonest fields. A recipe is a function that returns a `TrainConfig`, or for
the autoencoder of structures a `StructureTrainConfig`, whose shapes are `ShapeVoxels`. With an
`output_dir`, a run is saved as it goes, an interrupted one goes on where it was, bit for bit, and
`output_dir/model` is in the end a directory for `from_pretrained`.
"""

from fastshape.train import recipes
from fastshape.train.config import RunConfig, StructureTrainConfig, TrainConfig, config_from_dict
from fastshape.train.data import Batch, ShapeDataset, ShapeSamples, num_tokens, sample_batch
from fastshape.train.loop import TrainingInterrupted, fit, fit_meshes, learning_rate, losses, train_step
from fastshape.train.prepare import prepare
from fastshape.train.structure import (
    GridBatch,
    ShapeVoxels,
    VoxelDataset,
    sample_grids,
    structure_losses,
    validate_structure,
)
from fastshape.train.validate import validate

__all__ = [
    "Batch",
    "GridBatch",
    "RunConfig",
    "ShapeDataset",
    "ShapeSamples",
    "ShapeVoxels",
    "StructureTrainConfig",
    "TrainConfig",
    "TrainingInterrupted",
    "VoxelDataset",
    "config_from_dict",
    "fit",
    "fit_meshes",
    "learning_rate",
    "losses",
    "num_tokens",
    "prepare",
    "recipes",
    "sample_batch",
    "sample_grids",
    "structure_losses",
    "train_step",
    "validate",
    "validate_structure",
]
