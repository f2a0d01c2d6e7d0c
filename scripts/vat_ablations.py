"""VAT's ablations in small: what each of its parts brings, by short runs that differ in nothing else.

    python scripts/vat_ablations.py prepared --validation held-out -o runs/vat --steps 300
    python scripts/vat_ablations.py prepared --validation held-out -o runs/vat --tables 3 4

trains every variant that the tables name once (an interrupted run goes on), asks it about shapes held out,
and prints the tables; tables.csv in the output folder has all rows. Zhang et al.: "3D representation in
512-Byte" (VAT), arXiv 2412.02202:

    2  naive tokenizers of K tokens, compression alone, with the quantizer's noise ("curse of hierarchy")
    3  no noise, dropout of scales, stochastic codes, noise ("necessity of VVQ"), each with a generator of its
       own that says the last two scales where all before them are given
    4  a cross-attention as decoder, or three planes
    5  pooling, a cross-attention (Q-Former), or latent tokens among the others, as compression
    7  K and V, its figure 7, with the bytes of a file's codes

Accuracy and IoU are over as many uniform as near points, those of the prepared shapes, of the field from all
scales; cross-scale (CS) ones the mean over the scales of the field without the later ones; given and
completed ones those of the field from all but the last two scales, and from these and what the generator
says. Small models that learned for seconds say which part learns faster, and not what it reaches in the end.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from vat_tables import agreement, csv_of

from fastshape import train
from fastshape.geometry.io import write_atomically
from fastshape.models import VAT, NextScaleConfig, NextScaleTransformer, VATConfig

# fewer latents than the small recipe's planes have texels: they can be pooled
VVQ: dict[str, Any] = {"num_latents": 64}
NAIVE = {"compression": "pooling", "noise": False}
TABLES: Mapping[str, Mapping[str, dict[str, Any]]] = {
    "2": {
        **{f"naive, K = {count}": {**NAIVE, "num_latents": count} for count in (16, 64, 144)},
        "compression, no noise, K = 64": {**VVQ, "noise": False},
        "compression, VVQ, K = 64": VVQ,
    },
    "3": {
        "none": {**VVQ, "noise": False},
        "dropout of scales": {**VVQ, "noise": False, "scale_dropout": 0.5},
        "stochastic codes": {**VVQ, "noise": False, "temperature": 0.5},
        "VVQ": VVQ,
    },
    "4": {"cross-attention": {**VVQ, "decoder": "cross"}, "triplane": VVQ},
    "5": {
        "pooling": {**VVQ, "compression": "pooling"},
        "Q-Former": {**VVQ, "compression": "qformer"},
        "in context": VVQ,
    },
    "7": {
        **{f"K = {count}": {"num_latents": count} for count in (16, 64, 256)},
        **{f"K = 64, V = {count}": {**VVQ, "num_codes": count} for count in (64, 256)},
    },
}
COLUMNS = ("tokens", "bytes", "accuracy", "iou", "cs_accuracy", "cs_iou")
GENERATED = ("given_accuracy", "given_iou", "completed_accuracy", "completed_iou", "nats")
WITH_GENERATOR = ("3",)
GIVEN_UP = 2  # scales that a generator says
POINTS = 4_000  # of each kind and shape: as much work as some steps of training


def run_config(recipe: str, changes: Mapping[str, Any], steps: int) -> train.TrainConfig:
    """The recipe, shortened, with another model: every stage of it by as much."""
    config = train.recipes.get(recipe)
    if not isinstance(config.model, VATConfig):
        raise SystemExit(f"expected a recipe of VAT, got {recipe!r}")
    share = steps / config.steps
    decay = config.ema_decay
    return dataclasses.replace(
        config,
        model=dataclasses.replace(config.model, scales=(), **changes),  # the published ones for every K
        steps=steps,
        warmup_steps=round(share * config.warmup_steps),
        revive_every=max(1, round(share * config.revive_every)),
        ema_decay=None if decay is None else max(0.0, 1.0 - (1.0 - decay) / share),
        validate_every=0,
    )


def generator_config(tokenizer: train.TrainConfig, steps: int) -> train.TokenTrainConfig:
    """The recipe of the small generator, shortened, for the tokens of another tokenizer; of all scales."""
    config = train.recipes.get("vat-tiny-ar")
    of = tokenizer.model
    assert isinstance(config, train.TokenTrainConfig)
    assert isinstance(config.model, NextScaleConfig)
    assert isinstance(of, VATConfig)
    model = dataclasses.replace(
        config.model, scales=of.all_scales, vocab_size=of.num_codes, code_dim=of.latent_dim
    )
    return dataclasses.replace(
        config,
        model=model,
        variants=1,
        scale_counts=(),
        scale_probabilities=(),
        steps=steps,
        warmup_steps=round(steps / config.steps * config.warmup_steps),
        ema_decay=None,
        batch_size=tokenizer.batch_size * 2,
        validate_every=0,
    )


def folder_of(changes: Mapping[str, Any]) -> str:
    """The name of a variant's run."""
    return ",".join(f"{name}={value}" for name, value in sorted(changes.items()))


@torch.no_grad()
def measure(model: VAT, shapes: Sequence[train.ShapeSamples]) -> dict[str, float]:
    """Means over the shapes, by column."""
    device = next(model.parameters()).device
    found: dict[str, list[float]] = {}
    scales = range(1, len(model.config.all_scales) + 1)
    for shape in shapes:
        cloud = shape.cloud("surface", model.input_channels)[: model.config.num_inputs]
        tokens = model.tokenize(cloud[None].to(device))
        points, inside = questions(shape)
        scores = [agreement(model, model.decode_tokens(tokens, scale), points, inside) for scale in scales]
        for name in ("accuracy", "iou"):
            found.setdefault(name, []).append(scores[-1][name])
            found.setdefault(f"cs_{name}", []).append(statistics.fmean(score[name] for score in scores))
    return {name: statistics.fmean(values) for name, values in found.items()}


def questions(shape: train.ShapeSamples) -> tuple[Tensor, Tensor]:
    """Points (N, 3) and which are inside: as many uniform ones as near ones, evenly chosen."""
    kinds = ("volume", "near")
    count = min(POINTS, *(len(getattr(shape, kind)) for kind in kinds))
    parts = []
    for kind in kinds:
        every = torch.arange(count) * len(getattr(shape, kind)) // count  # near points go by their sigma
        parts.append((getattr(shape, kind)[every], shape.inside(kind)[every]))
    points, inside = zip(*parts, strict=True)
    return torch.cat(points), torch.cat(inside)


@torch.no_grad()
def measure_generator(
    generator: NextScaleTransformer, model: VAT, shapes: Sequence[train.ShapeSamples], seed: int = 0
) -> dict[str, float]:
    """Means over the shapes of the field from the first scales, alone and with what is said after them."""
    found: dict[str, list[float]] = {}
    scales = len(model.config.all_scales) - GIVEN_UP
    for shape in shapes:
        cloud = shape.cloud("surface", model.input_channels)[: model.config.num_inputs]
        given = model.tokenize(cloud[None])[:, : sum(model.config.all_scales[:scales])]
        said = generator.generate(model.quantizer, [seed], given=given)  # type: ignore[arg-type]
        points, inside = questions(shape)
        for kind, tokens, count in (("given", given, scales), ("completed", said, None)):
            scores = agreement(model, model.decode_tokens(tokens, count), points, inside)
            for name in ("accuracy", "iou"):
                found.setdefault(f"{kind}_{name}", []).append(scores[name])
    return {name: statistics.fmean(values) for name, values in found.items()}


class Variants:
    """What variants reach; each is trained and measured where that has not been done."""

    def __init__(self, options: argparse.Namespace, console: Console) -> None:
        self.options, self.console = options, console
        self.samples, self.held_out = (
            train.ShapeDataset(path) for path in (options.data, options.validation)
        )

    @cached_property
    def shapes(self) -> list[train.ShapeSamples]:
        """Those held out, in memory."""
        return list(track(self.held_out, description="reading what was held out", console=self.console))

    def row(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a tokenizer."""

        def make() -> dict[str, Any]:
            model = self._tokenizer(changes)
            bits = max(1, (model.config.num_codes - 1).bit_length())
            tokens = sum(model.config.all_scales)
            return {"tokens": tokens, "bytes": -(-tokens * bits // 8), **measure(model, self.shapes)}

        return self._known(changes, "measured", self._config(changes), make)

    def generator_row(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The columns of a generator that learned this tokenizer's tokens."""
        folder, steps = self.options.output / folder_of(changes), self.options.generator_steps
        config = generator_config(self._config(changes), steps)

        def make() -> dict[str, Any]:
            model = self._tokenizer(changes)
            kept = {"device": "cpu", "progress": True}
            samples = train.encode_tokens(model, self.samples, folder / "tokens", **kept)
            unseen = train.encode_tokens(model, self.held_out, folder / "tokens-held-out", **kept)
            self.console.print(f"[bold]{folder.name}[/]: {steps} steps of a generator")
            generator = train.fit(config, samples, output_dir=folder / "generator", device="cpu")
            nats = train.validate_tokens(generator, unseen)["validation_loss"]
            return {**measure_generator(generator, model, self.shapes), "nats": nats}

        return self._known(changes, "generated", config, make)

    def _config(self, changes: Mapping[str, Any]) -> train.TrainConfig:
        return run_config(self.options.recipe, changes, self.options.steps)

    def _tokenizer(self, changes: Mapping[str, Any]) -> VAT:
        folder = self.options.output / folder_of(changes)
        self.console.print(f"[bold]{folder.name}[/]: {self.options.steps} steps")
        model = train.fit(self._config(changes), self.samples, output_dir=folder, device="cpu")
        assert isinstance(model, VAT)
        return model

    def _known(
        self,
        changes: Mapping[str, Any],
        name: str,
        config: train.RunConfig,
        make: Callable[[], dict[str, Any]],
    ) -> dict[str, Any]:
        """What a file says of this configuration, or what `make` finds, which it then says."""
        path = self.options.output / folder_of(changes) / f"{name}.json"
        wanted = json.loads(json.dumps(config.to_dict()))  # with lists, as in the file
        if path.is_file() and (said := json.loads(path.read_text()))["config"] == wanted:
            return dict(said["row"])
        row = make()
        write_atomically(path, (json.dumps({"config": wanted, "row": row}, indent=1) + "\n").encode())
        return row


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data", type=Path, help="what `fastshape prepare` wrote")
    parser.add_argument("--validation", type=Path, required=True, help="the same, of shapes held out")
    parser.add_argument("-o", "--output", type=Path, required=True, help="gets a run for each variant")
    parser.add_argument("--recipe", default="vat-tiny")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--generator-steps", type=int, default=300, help="of table 3")
    parser.add_argument("--tables", nargs="+", default=list(TABLES), choices=list(TABLES))
    options = parser.parse_args(arguments)
    console = Console(width=160, highlight=False)
    variants = Variants(options, console)
    rows: list[dict[str, Any]] = []
    for table in options.tables:
        generated = table in WITH_GENERATOR
        columns = (*COLUMNS, *(GENERATED if generated else ()))
        printed = Table("", *columns, box=None, title=f"Table {table}")
        for label, changes in TABLES[table].items():
            row = variants.row(changes)
            if generated:
                row |= variants.generator_row(changes)
            rows.append({"table": table, "variant": label, "steps": options.steps} | row)
            printed.add_row(
                label, *(f"{row[n]:.4f}" if isinstance(row[n], float) else str(row[n]) for n in columns)
            )
            every = [{name: row.get(name) for name in (*rows[0], *GENERATED)} for row in rows]
            write_atomically(options.output / "tables.csv", csv_of(every))
        console.print(printed)


if __name__ == "__main__":
    main()
