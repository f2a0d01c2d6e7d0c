"""TensorBoard: the numbers of a run, and pictures of what the model makes of the validation shapes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from fastshape.geometry import Mesh, NoSurfaceError, render
from fastshape.geometry.optional import require
from fastshape.models import NextScaleTransformer, SparseStructureVAE
from fastshape.train.validate import decode

DIRECTORY = "tensorboard"
_PICTURES = 4  # shapes
_RESOLUTION = 64
_SIZE = 256  # pixels


class Board(Protocol):
    """Where a run shows itself."""

    def scalars(self, step: int, values: dict[str, float]) -> None: ...

    def pictures(self, step: int, model: Any, shapes: Sequence[Any]) -> None: ...


class NoBoard:
    """Shows nothing."""

    def scalars(self, step: int, values: dict[str, float]) -> None:
        pass

    def pictures(self, step: int, model: Any, shapes: Sequence[Any]) -> None:
        pass


class TensorBoard:
    """Event files in a folder; those of steps that a resumed run does again are superseded."""

    def __init__(self, folder: Path, done: int) -> None:
        require("tensorboard", "train", "tensorboard=True")
        from torch.utils.tensorboard import SummaryWriter

        self._writer: Any = SummaryWriter(str(folder), purge_step=done + 1 if done else None)

    def scalars(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            group = "validation" if name.startswith("validation_") else "train"
            self._writer.add_scalar(f"{group}/{name.removeprefix('validation_')}", value, step)

    def pictures(self, step: int, model: Any, shapes: Sequence[Any]) -> None:
        """The surfaces of the first shapes, each a picture of its own name, so that steps can be compared.

        A model of tokens has none: without its tokenizer it knows of no shapes.
        """
        if isinstance(model, NextScaleTransformer):
            return
        device = next(model.parameters()).device
        for index, shape in enumerate(shapes[:_PICTURES]):
            mesh = reconstruction(model, shape, device)
            if mesh is not None:
                picture = render(mesh, size=_SIZE)
                self._writer.add_image(f"validation/{index}", picture, step, dataformats="HWC")
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


@torch.no_grad()
def reconstruction(
    model: Any, shape: Any, device: str | torch.device, resolution: int = _RESOLUTION
) -> Mesh | None:
    """What a model makes of a prepared shape; None where that has no surface."""
    training = model.training
    model.eval()
    try:
        if isinstance(model, SparseStructureVAE):
            occupancy = model.occupancy([shape.coords], resolution=shape.resolution)
            return model.extract(model.decode(model.encode(occupancy).mode()))
        return model.extract(decode(model, shape, device), resolution)
    except NoSurfaceError:
        return None
    finally:
        model.train(training)


@contextlib.contextmanager
def open_board(directory: Path | None, wanted: bool, done: int) -> Iterator[Board]:
    """The board of a run of which `done` steps are done."""
    if not wanted or directory is None:
        yield NoBoard()
        return
    board = TensorBoard(directory / DIRECTORY, done)
    try:
        yield board
    finally:
        board.close()
