"""How well a model reconstructs shapes that it was not trained on, by their own labeled points."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fastshape.models import FieldAutoencoder
from fastshape.train.config import TrainConfig
from fastshape.train.data import ShapeSamples

_QUERIES = 8192  # of each kind and shape, about


@torch.no_grad()
def validate(
    model: FieldAutoencoder,
    shapes: Sequence[ShapeSamples],
    config: TrainConfig,
    *,
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """Means over the shapes, of the mode of the posterior at the configuration's number of tokens.

    Args:
        model: on `device`; its mode of training or evaluation is left as it is.
        shapes: with the labels of the kinds that the configuration draws.
        config: of the run.
        device: where the points go.

    Returns:
        "validation_KIND_iou" for each kind of query drawn: intersection over union of inside, the volume's
        being the shape's own where the queries are uniform; 1 where both are empty.
    """
    training = model.training
    model.eval()
    scores: dict[str, list[float]] = {}
    for shape in shapes:
        features = decode(model, shape, device)
        for kind, count in config.queries.items():
            if count:
                points = getattr(shape, kind)
                every = slice(None, None, max(1, len(points) // _QUERIES))  # near points go by their sigma
                values = model.query(points[every][None].to(device), features)[0].cpu()
                inside = values > 0 if model.inside == "positive" else values < 0
                scores.setdefault(kind, []).append(_iou(inside, shape.inside(kind)[every]))
    model.train(training)
    return {f"validation_{kind}_iou": sum(values) / len(values) for kind, values in scores.items()}


def decode(model: FieldAutoencoder, shape: ShapeSamples, device: str | torch.device) -> Any:
    """The features of a shape, from the mode of its posterior at the configuration's number of tokens."""
    encode: Any = model.encode
    return model.decode(encode(*_inputs(model, shape, device)).mode())


def _inputs(model: FieldAutoencoder, shape: ShapeSamples, device: str | torch.device) -> list[Tensor]:
    """The model's input clouds (1, N, 3 or 6) of a shape: its first points, which are in random order."""
    clouds = (shape.cloud(name, model.input_channels) for name in model.inputs)
    return [cloud[: model.config.num_inputs][None].to(device) for cloud in clouds]


def _iou(first: Tensor, second: Tensor) -> float:
    union = int((first | second).sum())
    return int((first & second).sum()) / union if union else 1.0
