"""The codebook's care in training: its beginning, its running means, and codes that nothing takes.

What is done depends on (seed, step) and the parameters alone, so that a resumed run does the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from fastshape.models import VAT
from fastshape.train.config import TrainConfig
from fastshape.train.data import ShapeSamples, keyed_generator, sample_batch
from fastshape.train.distributed import Processes

_KMEANS_SHAPES = 128


class CodebookCare:
    """What a quantized model needs beside its gradients.

    Args:
        model: that is trained.
        average: of its parameters, or None.
        optimizer: of its parameters.
        config: of the run.
        group: the processes.
        begun: whether the codebook is that of trained weights, and needs no beginning.
    """

    def __init__(
        self,
        model: VAT,
        average: VAT | None,
        optimizer: torch.optim.Optimizer,
        config: TrainConfig,
        group: Processes,
        *,
        begun: bool,
    ) -> None:
        assert model.quantizer is not None
        self.model, self.average, self.optimizer = model, average, optimizer
        self.quantizer = model.quantizer
        self.config, self.group, self.begun = config, group, begun

    def before(self, step: int, samples: Sequence[ShapeSamples]) -> None:
        """Before a step: whether it quantizes; before the first that does, k-means."""
        quantizing = step >= self.config.quantize_from
        for model in self._models():
            model.quantizing = quantizing
        self.model.coded.clear()
        if step == self.config.quantize_from and not self.begun:
            latents = self._latents(samples, step)
            self.quantizer.start(latents, generator=keyed_generator(self.config.seed, "k-means"))
            self._spread()

    def after(self, step: int) -> None:
        """After a step: running means, and now and then new places for unused codes."""
        if not self.model.quantizing:
            return
        coded = list(self.model.coded)
        counts = self.group.sum(sum((batch.counts for batch in coded[1:]), coded[0].counts))
        sums = None
        if self.quantizer.ema:
            parts = [self.quantizer.code_sums(batch.latents, batch.tokens) for batch in coded]
            sums = self.group.sum(sum(parts[1:], parts[0]))
        self.quantizer.tally(counts, sums)
        if (step + 1) % self.config.revive_every == 0 and step + 1 < self.config.steps:
            self._revive(step, coded[0].latents, coded[0].tokens)

    def scores(self) -> dict[str, float]:
        """Of the codebook's use, for the log; empty before it is used."""
        if not self.model.quantizing:
            return {}
        report = self.quantizer.report()
        return {
            "codes_unused": float(report.unused),
            "codes_share_last": float(report.share[-1]),
            "codes_perplexity_last": float(report.perplexity[-1]),
        }

    def finish(self) -> None:
        """Gives the average what is counted, not averaged; the result quantizes."""
        if self.average is not None:
            for mine, theirs in zip(self.average.buffers(), self.model.buffers(), strict=True):
                mine.copy_(theirs)
        for model in self._models():
            model.quantizing = True

    def _models(self) -> list[VAT]:
        return [self.model] if self.average is None else [self.model, self.average]

    @torch.no_grad()
    def _latents(self, samples: Sequence[ShapeSamples], step: int) -> Tensor:
        """Latents (N, K, d) of the shapes of the steps to come, the same in every process."""
        found = []
        for ahead in range(-(-_KMEANS_SHAPES // self.config.batch_size)):
            batch = sample_batch(samples, self.config, step + ahead).to(self.group.device)
            found += [self.model.encode(*part.inputs).mode() for part in batch.split(8)]
        return torch.cat(found)[:_KMEANS_SHAPES]

    @torch.no_grad()
    def _revive(self, step: int, latents: Tensor, tokens: Tensor) -> None:
        draw = keyed_generator(self.config.seed, "revive", step)
        rows = self.quantizer.revive(latents, tokens, generator=draw)
        reset_moments(self.optimizer, self.quantizer.codebook, rows)
        self._spread(rows)

    @torch.no_grad()
    def _spread(self, rows: Tensor | None = None) -> None:
        """Rank 0's quantizer to all processes, and its codes (all, or some) to the average."""
        for tensor in self.quantizer.state_dict().values():
            self.group.share(tensor)
        if self.average is not None:
            assert self.average.quantizer is not None
            which = slice(None) if rows is None else rows
            self.average.quantizer.codebook[which] = self.quantizer.codebook[which]


@torch.no_grad()
def reset_moments(optimizer: torch.optim.Optimizer, parameter: nn.Parameter, rows: Tensor) -> None:
    """Forgets what an optimizer of Adam's kind knows of some rows of a parameter."""
    for name, value in optimizer.state.get(parameter, {}).items():
        if name != "step" and isinstance(value, Tensor):
            value[rows] = 0.0
