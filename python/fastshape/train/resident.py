"""Shapes that stay on the training device, and the batches drawn there.

Drawing a batch on the CPU takes longer than a small model's step on a GPU; here it takes a few kernels. As in
`fastshape.train.data`, what a step sees is a function of (seed, step, rank) alone, on one kind of device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastshape.train.augment import motion
from fastshape.train.config import TrainConfig
from fastshape.train.data import Batch, SamplesError, ShapeSamples, batch_places, keyed_generator


class ResidentSamples:
    """All shapes' points and labels, stacked on a device.

    Args:
        samples: shapes with as many points each, as one preparation makes them.
        config: of the run; what it never draws is left out.
        device: where they go.

    Raises:
        ValueError: shapes with different numbers of points, or without what the configuration draws; an
            augmentation or balanced queries, which are drawn on the CPU only.
    """

    def __init__(self, samples: Sequence[ShapeSamples], config: TrainConfig, device: torch.device) -> None:
        if config.augment not in ("none", "axes", "dora"):
            raise ValueError(f"`data_on_device` knows no `augment` = {config.augment!r}: none, axes, dora")
        if config.balanced:
            raise ValueError("`data_on_device` knows no `balanced` queries")
        self.config, self.device, self.count = config, device, len(samples)
        self._rows: dict[str, Tensor] = {}
        for place, shape in enumerate(samples):
            for name, rows in self._wanted(shape).items():
                if place == 0:
                    self._rows[name] = rows.new_empty(self.count, *rows.shape, device=device)
                elif rows.shape != self._rows[name].shape[1:]:
                    raise ValueError(
                        f"`data_on_device` needs shapes with as many `{name}` points each, "
                        f"got {self._rows[name].shape[1]} and {len(rows)}"
                    )
                self._rows[name][place] = rows

    def _wanted(self, shape: ShapeSamples) -> dict[str, Tensor]:
        """What is drawn of a shape: clouds (N, 3 or 6), queries with their labels (Q, 4)."""
        config = self.config
        channels = 3 + getattr(config.model, "point_features", 0)
        rows = {name: shape.cloud(name, channels) for name in config.model_class.inputs}
        for kind in self._kinds():
            points: Tensor = getattr(shape, kind)
            labels = shape.inside(kind) if config.output == "occupancy" else getattr(shape, f"{kind}_labels")
            if labels.dtype == torch.bool and config.output != "occupancy":
                raise SamplesError(f"the model's {config.output!r} needs signed distances, not bool labels")
            if not len(points):
                raise SamplesError(f"a shape has no `{kind}` points, and the configuration draws some")
            rows[f"queries {kind}"] = torch.cat([points, labels[:, None].float()], 1)
        return rows

    def _kinds(self) -> list[str]:
        return [kind for kind, count in self.config.queries.items() if count]

    def sample_batch(self, step: int, *, rank: int = 0, world_size: int = 1) -> Batch:
        """The batch of a step, as `fastshape.train.sample_batch` has it, with other draws."""
        config = self.config
        places = batch_places(self.count, config, step, rank, world_size)
        shapes = torch.tensor(places, device=self.device)
        draw = keyed_generator(config.seed, "resident", step, rank)
        move = torch.stack([motion(config.augment, draw) for _ in places]).to(self.device)  # (B, 3, 3)
        generator = torch.Generator(self.device).manual_seed(int(torch.randint(2**62, (), generator=draw)))
        clouds = []
        for name in config.model_class.inputs:
            size, channels = self._rows[name].shape[1:]
            chosen = self._choose(len(places), size, config.model.num_inputs, generator)  # type: ignore[attr-defined]
            cloud = self._rows[name][shapes[:, None], chosen]
            # An orthogonal motion moves normals as it moves points.
            clouds.append((cloud.unflatten(2, (channels // 3, 3)) @ move[:, None]).flatten(2))
        queries = []
        for kind in self._kinds():
            rows = self._rows[f"queries {kind}"]
            wanted = (len(places), config.queries[kind])
            chosen = torch.randint(rows.shape[1], wanted, generator=generator, device=self.device)
            queries.append(rows[shapes[:, None], chosen])
        drawn = torch.cat(queries, 1)
        return Batch(tuple(clouds), drawn[..., :3] @ move, drawn[..., 3].contiguous(), config.queries)

    def _choose(self, batch: int, size: int, count: int, generator: torch.Generator) -> Tensor:
        """Rows without repetition, where there are enough: (batch, count)."""
        if size < count:
            return torch.randint(size, (batch, count), generator=generator, device=self.device)
        keys = torch.rand(batch, size, generator=generator, device=self.device)
        return keys.topk(count, dim=1, sorted=False).indices
