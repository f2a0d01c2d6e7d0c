"""Training steps of whole models: LaGeM's hierarchy of latents beside VecSet's one set of as many.

Zhang and Wonka: "LaGeM: A Large Geometry Model for 3D Representation Learning and Diffusion" (arXiv
2410.01295), table 3. An iteration is `train.train_step` on a batch that is in memory already. So that the
models differ in the hierarchy alone, VecSet's cross-attentions have as many heads as LaGeM's, and none of its
residual branches is dropped. On a CPU the models have the paper's layers and tokens and are far narrower.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastshape.models import LaGeMConfig, VecSetConfig
from fastshape.runtime.memory import peak_of
from fastshape.train import Batch, TrainConfig, train_step
from fastshape.train.data import keyed_generator

from . import measure
from .registry import Case, Peer, Quoted, row


@dataclass(frozen=True)
class Pair:
    """The sizes that LaGeM and VecSet share, and where they must differ.

    Attributes:
        dim, heads: of both; the heads of every attention.
        tokens: of LaGeM's levels, the finest first; VecSet has as many as the finest.
        channels: of LaGeM's latents, level by level.
        vecset_channels: of VecSet's latents.
        layers: self-attention layers of each level; VecSet has as many as all levels together.
        batch_size, num_points, num_queries: of a step; half of the queries are near the surface.
    """

    dim: int
    heads: int
    tokens: tuple[int, ...]
    channels: tuple[int, ...]
    vecset_channels: int
    layers: int
    batch_size: int
    num_points: int
    num_queries: int

    def lagem(self) -> LaGeMConfig:
        return LaGeMConfig(
            dim=self.dim,
            heads=self.heads,
            head_dim=self.dim // self.heads,
            num_latents=self.tokens,
            latent_dims=self.channels,
            depths=(self.layers,) * len(self.tokens),
            num_inputs=self.num_points,
        )

    def vecset(self) -> VecSetConfig:
        return VecSetConfig(
            dim=self.dim,
            depth=self.layers * len(self.tokens),
            heads=self.heads,
            head_dim=self.dim // self.heads,
            cross_heads=self.heads,
            num_latents=self.tokens[0],
            num_inputs=self.num_points,
            latent_dim=self.vecset_channels,
            drop_path=0.0,
        )

    def training(self, model: LaGeMConfig | VecSetConfig, device: torch.device) -> TrainConfig:
        """The configuration of a step; in mixed precision on a GPU."""
        return TrainConfig(
            model=model,
            batch_size=self.batch_size,
            volume_queries=self.num_queries // 2,
            near_queries=self.num_queries // 2,
            bfloat16=device.type == "cuda",
        )

    def batch(self, device: torch.device) -> Batch:
        """Points on spheres, and queries in the cube and near the sphere."""
        half = self.num_queries // 2
        points = F.normalize(torch.randn(self.batch_size, self.num_points, 3), dim=-1)
        volume = torch.rand(self.batch_size, half, 3) * 2 - 1
        near = F.normalize(torch.randn(self.batch_size, half, 3), dim=-1)
        queries = torch.cat([volume, near + 0.05 * torch.randn(near.shape)], 1)
        counts = {"volume": half, "near": half, "sharp_near": 0}
        return Batch((points,), queries, (queries.norm(dim=-1) < 1).float(), counts).to(device)


_LARGE = {"tokens": (2048, 512, 128), "channels": (16, 32, 64), "vecset_channels": 64, "layers": 8}
_SMALL = {"tokens": (512, 128, 32), "channels": (8, 16, 32), "vecset_channels": 8, "layers": 8}
_PAPER = {"num_points": 8192, "num_queries": 2048}
_CPU = {"num_points": 2048, "num_queries": 1024, "batch_size": 1}

PAPER_LARGE = Pair(dim=1024, heads=16, batch_size=4, **_LARGE, **_PAPER)  # type: ignore[arg-type]
PAPER_SMALL = Pair(dim=512, heads=8, batch_size=64, **_SMALL, **_PAPER)  # type: ignore[arg-type]
CPU_LARGE = Pair(dim=64, heads=1, **_LARGE, **_CPU)  # type: ignore[arg-type]
CPU_SMALL = Pair(dim=128, heads=2, **_SMALL, **_CPU)  # type: ignore[arg-type]


class Training:
    """A model in training, one step of which is measured."""

    def __init__(self, config: TrainConfig, batch: Batch) -> None:
        device = batch.queries.device
        self.config, self.batch = config, batch
        self.model = config.model_class(config.model).to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.parameters())
        self.first_loss = self.plain_loss()

    def step(self) -> dict[str, Tensor]:
        return train_step(self.model, self.optimizer, self.batch, self.config, 0)

    @torch.no_grad()
    def plain_loss(self) -> Tensor:
        """The loss of the first step: the model's verbs one by one in single precision, then the formula."""
        model: Any = self.model
        posterior = model.encode(*self.batch.inputs)
        items = range(self.config.batch_size)
        noise = [keyed_generator(self.config.seed, "posterior", 0, item) for item in items]
        values = model.query(self.batch.queries, model.decode(posterior.sample(noise)), chunk_size=512)
        entropy = F.softplus(values) - self.batch.labels * values
        volume, near = entropy.split(list(self.batch.counts.values())[:2], 1)
        kl = posterior.kl().mean()
        return volume.mean() + self.config.near_weight * near.mean() + self.config.kl_weight * kl

    def check(self, result: dict[str, Tensor], _: Any = None) -> None:
        """Raise unless the first step's loss is the plain one."""
        tolerance = 1e-2 if self.config.bfloat16 else 1e-4
        torch.testing.assert_close(result["loss"].float(), self.first_loss, rtol=tolerance, atol=0.0)

    def state_bytes(self) -> int:
        """Parameters, their gradients and the optimizer's moments."""
        parameters = list(self.model.parameters())
        states = [v for state in self.optimizer.state.values() for v in state.values()]
        return sum(
            t.nbytes for t in [*parameters, *(p.grad for p in parameters if p.grad is not None), *states]
        )

    def counts(self) -> dict[str, float]:
        """`saved` for backward, the `state` that stays from step to step, and on a GPU the `peak` of all."""
        found = {
            "saved": measure.saved_bytes(self.step, self.model.parameters()),
            "state": self.state_bytes(),
        }
        device = self.batch.queries.device
        if (
            device.type == "cuda"
        ):  # what the step needs beyond all that is there, of which the state is its own
            found["peak"] = found["state"] + (peak_of(self.step, device) or 0)
        return dict(found)


def quoted(pair: Pair) -> list[Quoted]:
    """What table 3 has for as many tokens; for another width it stands beside the row without a ratio."""
    if pair.tokens == PAPER_LARGE.tokens:
        sizes = "2048 latents, width 1024, batch 4: 0.70x time, 0.58x memory"
        figures = [("LaGeM", 0.4853, 31_662e6), ("VecSet", 0.6902, 54_543e6)]
    else:
        sizes = "512 latents, width 512, batch 64: 0.87x time, 0.66x memory"
        figures = [("LaGeM", 0.5658, 37_055e6), ("VecSet", 0.6481, 56_125e6)]
    comparable = pair in (PAPER_LARGE, PAPER_SMALL)
    return [Quoted(name, time, sizes, "table 3", memory, comparable) for name, time, memory in figures]


_SHAPE = "{0.tokens[0]} tokens, width {0.dim}, batch {0.batch_size}".format


@row(
    family="models",
    op="lagem_train_step",
    shape=_SHAPE(PAPER_LARGE),
    dtype="bfloat16",
    devices=("cuda",),
    pair=PAPER_LARGE,
)
@row(
    family="models",
    op="lagem_train_step",
    shape=_SHAPE(PAPER_SMALL),
    dtype="bfloat16",
    devices=("cuda",),
    pair=PAPER_SMALL,
)
@row(family="models", op="lagem_train_step", shape=_SHAPE(CPU_LARGE), devices=("cpu",), pair=CPU_LARGE)
@row(family="models", op="lagem_train_step", shape=_SHAPE(CPU_SMALL), devices=("cpu",), pair=CPU_SMALL)
def lagem_train_step(device: torch.device, pair: Pair) -> Case:
    """A step of LaGeM, and of VecSet as its peer; each step's loss is compared with the plain one first."""
    batch = pair.batch(device)
    lagem = Training(pair.training(pair.lagem(), device), batch)
    vecset = Training(pair.training(pair.vecset(), device), batch)
    return Case(
        run=lagem.step,
        reference=lambda: lagem.first_loss,
        check=lagem.check,
        peers={"vecset": Peer(vecset.step, check=vecset.check, note="one level", counts=vecset.counts)},
        quoted=quoted(pair),
        counts=lagem.counts,
    )
