"""`fastshape train`."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fastshape import models, train
from fastshape.cli.app import CommandError
from fastshape.train.board import DIRECTORY
from fastshape.train.loop import METRICS_FILE, MODEL_DIRECTORY

_EVERY = 100  # steps between the lines where there is no terminal


def run(options: argparse.Namespace) -> None:
    console = Console(stderr=True, highlight=False)
    config = configuration(options)
    tokenizer = _tokenizer(config, options)
    if tokenizer is not None:
        fields = _told_fields(config, options) if options.data or options.conditions else {}
        try:
            model = dataclasses.replace(config.model, **train.token_fields(tokenizer), **fields)
            config = dataclasses.replace(config, model=model)
        except ValueError as error:
            raise CommandError(f"{options.recipe} with {tokenizer.title}: {error}") from None
    if options.print_config:
        print(json.dumps(config.to_dict(), indent=2))
        return
    if options.data is None or options.output is None:
        raise CommandError("expected DATA and -o DIR (or --print-config)")
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes
    try:
        shapes, validation = _shapes(config, options, tokenizer, console.is_terminal)
        model = train.fit(
            config,
            shapes,
            validation=validation,
            initial=None if options.initial is None else models.load(options.initial),
            output_dir=options.output,
            resume=not options.restart,
            progress=console.is_terminal,
            tensorboard=_tensorboard(options),
            device=options.device,
            on_step=None if console.is_terminal or not first else _lines(console, config.steps),
        )
    except (train.TrainingInterrupted, train.EncodingInterrupted) as stopped:
        again = shlex.join(word for word in ["fastshape", *options.words] if word != "--restart")
        raise KeyboardInterrupt(f"{stopped}; to go on: {again}") from None
    if first:
        _report(model, Path(options.output), Console(highlight=False))


def configuration(options: argparse.Namespace) -> train.RunConfig:
    """The recipe, or a configuration in a JSON file, with what the command line sets.

    Raises:
        CommandError: an unknown recipe or field, or a bad value; names it.
    """
    try:
        if options.recipe.endswith(".json"):
            config = train.config_from_dict(json.loads(Path(options.recipe).read_text(encoding="utf-8")))
        else:
            config = train.recipes.get(options.recipe)
        config = config.override(options.set)
        for name in ("steps", "seed"):
            if getattr(options, name) is not None:
                config = dataclasses.replace(config, **{name: getattr(options, name)})
    except (ValueError, TypeError) as error:
        raise CommandError(str(error)) from None
    return config


def _tokenizer(config: train.RunConfig, options: argparse.Namespace) -> models.VAT | None:
    if not isinstance(config, train.TokenTrainConfig):
        for name in ("tokenizer", "conditions"):
            if getattr(options, name) is not None:
                raise CommandError(f"--{name} is of models of tokens, which {options.recipe} is none of")
        return None
    if options.tokenizer is not None:
        return models.load(options.tokenizer, kind=models.VAT)
    if options.print_config:
        return None
    raise CommandError(f"{options.recipe} trains a model of tokens: what makes them? --tokenizer MODEL")


def _shapes(
    config: train.RunConfig, options: argparse.Namespace, tokenizer: models.VAT | None, progress: bool
) -> tuple[Sequence[Any], Sequence[Any]]:
    """What is trained and what is validated on."""
    if isinstance(config, train.TokenTrainConfig):
        assert tokenizer is not None
        folders = {"tokens": options.data, "tokens-validation": options.validation}
        shapes = {name: train.ShapeDataset(data) for name, data in folders.items() if data is not None}
        # What is told of them comes first: the tokens take long, and an error must not come after them.
        told = {name: _conditions(options, name, data.prepared.keys) for name, data in shapes.items()}
        found = {
            name: train.encode_tokens(
                tokenizer,
                data,
                Path(options.output) / name,
                variants=config.variants if name == "tokens" else 1,
                augment=config.augment if name == "tokens" else "none",
                conditions=told[name],
                device=options.device,
                progress=progress,
            )
            for name, data in shapes.items()
        }
        return found["tokens"], found.get("tokens-validation", [])
    kind = train.VoxelDataset if isinstance(config, train.StructureTrainConfig) else train.ShapeDataset
    validation = [] if options.validation is None else list(kind(options.validation))
    return kind(options.data, cache=options.cache), validation


def _told_fields(config: train.RunConfig, options: argparse.Namespace) -> dict[str, int]:
    """The fields of a model that --conditions decides, where the recipe's model takes none by itself.

    Raises:
        CommandError: the recipe's model takes others.
    """
    assert isinstance(config.model, models.NextScaleConfig)
    fields = {}
    if options.conditions is not None:
        fields = train.condition_fields(train.read_conditions(options.conditions))
    if not config.model.conditions:
        return fields
    for name in ("num_classes", "text_dim", "image_dim", "image_tokens"):
        wanted, found = getattr(config.model, name), fields.get(name, 0)
        if wanted and (found != wanted if name != "num_classes" else not 0 < found <= wanted):
            given = (
                f"--conditions has {found}" if options.conditions is not None else "--conditions is not given"
            )
            raise CommandError(
                f"{options.recipe}: `model.{name}` is {wanted}, and {given}: --set model.{name}={found}"
            )
    return {}


def _conditions(
    options: argparse.Namespace, name: str, keys: Sequence[str]
) -> models.Condition | models.ConditionFolder:
    """What is known of shapes; a file knows those that are trained on only."""
    if options.conditions is None or (name != "tokens" and not Path(options.conditions).is_dir()):
        return models.Condition()
    return train.read_conditions(options.conditions, keys, allow_missing=options.allow_missing)


def _tensorboard(options: argparse.Namespace) -> bool:
    """Asked for, or there and not refused."""
    if options.tensorboard is None:
        return importlib.util.find_spec("tensorboard") is not None
    return bool(options.tensorboard)


def _lines(console: Console, steps: int):  # type: ignore[no-untyped-def]
    def on_step(step: int, metrics: dict[str, float]) -> None:
        if step % _EVERY == 0 or step == steps:
            parts = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            console.print(f"step {step:,} of {steps:,}: {parts}", soft_wrap=True, markup=False)

    return on_step


def _report(model: models.PretrainedModel, output: Path, console: Console) -> None:
    table = Table(show_header=False, box=None, pad_edge=False)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    table.add_row("model", f"{type(model).__name__}, {parameters:,} parameters")
    lines = (output / METRICS_FILE).read_text(encoding="utf-8").splitlines()
    for name, value in (json.loads(lines[-1]) if lines else {}).items():
        table.add_row(name, f"{value:.4g}" if isinstance(value, float) else str(value))
    console.print(table)
    console.print(f"wrote {output / MODEL_DIRECTORY}", markup=False, soft_wrap=True)
    if (output / DIRECTORY).is_dir():
        console.print(f"curves: tensorboard --logdir {output / DIRECTORY}", markup=False, soft_wrap=True)
