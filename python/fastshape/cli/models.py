"""Which weights a command takes, and what it says of them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from rich.console import Console

from fastshape import models
from fastshape.cli.app import CommandError
from fastshape.models import (
    Autoencoder,
    CheckpointError,
    FieldAutoencoder,
    NextScaleTransformer,
    PreparationWarning,
    PretrainedModel,
    SparseStructureVAE,
    TripoSFVAE,
)

PREFERRED = ("dora-tiny", "vecset-tiny")  # where no --model is given, and they are shipped


def default_model() -> str | None:
    """The shipped weights that are taken unless others are asked for; None where none are shipped."""
    names = [*models.shipped()]
    return next((name for name in (*PREFERRED, *names) if name in names), None)


def load_model(name: str | None, weights: Sequence[str] = ()) -> Autoencoder:
    """Weights by a shipped name, a folder or a hub id, on the GPU if torch has one.

    Args:
        name: of the weights; with `weights` a family of `models.OFFICIAL`.
        weights: files of an official checkpoint.

    Raises:
        CommandError: `weights` without a family, or a family without them.
        CheckpointError: nothing of that name, not to be loaded, or a model that no command takes.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    families = ", ".join(models.OFFICIAL)
    if weights:
        if name is None:
            raise CommandError(f"--weights {weights[0]}: say of which family: -m with one of {families}")
        return models.load_official(name, weights, device=device)
    if name is None:
        raise CommandError(
            "no weights are shipped with this installation: give -m MODEL, a folder or a hub id"
        )
    if name in models.OFFICIAL and not Path(name).is_dir():
        raise CommandError(f"-m {name} is a family: give its official checkpoint too, --weights FILE")
    return taken(models.load(name, device=device))


def taken(model: PretrainedModel) -> Autoencoder:
    """The model, if it is one that leads from a mesh to a mesh.

    Raises:
        CheckpointError: it is not.
    """
    if isinstance(model, NextScaleTransformer):
        raise CheckpointError(f"{model.title} is a generator: see `fastshape generate`")
    if not isinstance(model, FieldAutoencoder | SparseStructureVAE | TripoSFVAE):
        raise CheckpointError(
            f"{model.title} is a {type(model).__name__}, which the commands do not take yet"
        )
    return model


def num_parameters(model: PretrainedModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def about(model: PretrainedModel) -> dict[str, str]:
    """What a reader of results must know of the weights, by name."""
    text = f"{model.title}: {type(model).__name__}, {num_parameters(model):,} parameters"
    facts = {"model": f"{text}, weights {model.fingerprint()}"}
    for name in ("license", "source"):
        if getattr(model.metadata, name):
            facts[name] = getattr(model.metadata, name)
    return facts


@contextlib.contextmanager
def preparation_notes(console: Console) -> Iterator[None]:
    """Says once, in one line, where inputs differ from what a model was trained on."""
    with warnings.catch_warnings():
        warnings.simplefilter("once", PreparationWarning)
        warnings.showwarning = lambda message, *rest: console.print(
            f"note: {message}", style="yellow", markup=False, soft_wrap=True
        )
        yield
