"""Training.

    from fastshape import geometry, train

    samples = [train.prepare(geometry.load("mug.stl"))]  # or ShapeSamples of your own points and labels,
    # or train.ShapeDataset("prepared"), what `fastshape prepare` or `fastshape pack` wrote
    model = train.fit_meshes(samples, train.recipes.vecset_single(), output_dir="runs/mug")

`fit(config, samples)` is the whole of it; `fit_meshes(samples, recipe, steps=..., seed=...)` takes a recipe
(or its name) and overrides its commonest fields. A recipe is a function that returns a `TrainConfig`, or for
the autoencoder of structures a `StructureTrainConfig`, whose shapes are `ShapeVoxels`, and for a next-scale
transformer a `TokenTrainConfig`, whose shapes `encode_tokens` makes with a tokenizer. With an
`output_dir`, a run is saved as it goes, an interrupted one goes on where it was, bit for bit, and
`output_dir/model` is in the end a directory for `from_pretrained`.
"""

from fastshape.train import recipes
from fastshape.train.config import (
    RunConfig,
    StructureTrainConfig,
    TokenTrainConfig,
    TrainConfig,
    config_from_dict,
)
from fastshape.train.data import (
    Batch,
    SamplesError,
    ShapeDataset,
    ShapeSamples,
    num_tokens,
    sample_batch,
)
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
from fastshape.train.tokens import (
    EncodingInterrupted,
    ShapeTokens,
    TokenBatch,
    TokenDataset,
    condition_fields,
    encode_tokens,
    read_conditions,
    sample_tokens,
    token_fields,
    token_losses,
    validate_tokens,
)
from fastshape.train.validate import validate

__all__ = [
    "Batch",
    "EncodingInterrupted",
    "GridBatch",
    "RunConfig",
    "SamplesError",
    "ShapeDataset",
    "ShapeSamples",
    "ShapeTokens",
    "ShapeVoxels",
    "StructureTrainConfig",
    "TokenBatch",
    "TokenDataset",
    "TokenTrainConfig",
    "TrainConfig",
    "TrainingInterrupted",
    "VoxelDataset",
    "condition_fields",
    "config_from_dict",
    "encode_tokens",
    "fit",
    "fit_meshes",
    "learning_rate",
    "losses",
    "num_tokens",
    "prepare",
    "read_conditions",
    "recipes",
    "sample_batch",
    "sample_grids",
    "sample_tokens",
    "structure_losses",
    "token_fields",
    "token_losses",
    "train_step",
    "validate",
    "validate_structure",
    "validate_tokens",
]
