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
    if options.print_config:
        print(json.dumps(config.to_dict(), indent=2))
        return
    if options.data is None or options.output is None:
        raise CommandError("expected DATA and -o DIR (or --print-config)")
    first = os.environ.get("RANK", "0") == "0"  # of torchrun's processes
    try:
        model = train.fit(
            config,
            _data(config, options.data, options.cache),
            validation=[] if options.validation is None else list(_data(config, options.validation)),
            initial=None if options.initial is None else models.load(options.initial),
            output_dir=options.output,
            resume=not options.restart,
            progress=console.is_terminal,
            tensorboard=_tensorboard(options),
            device=options.device,
            on_step=None if console.is_terminal or not first else _lines(console, config.steps),
        )
    except train.TrainingInterrupted as stopped:
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


def _data(config: train.RunConfig, path: str, cache: int = 0) -> Sequence[Any]:
    kind = train.VoxelDataset if isinstance(config, train.StructureTrainConfig) else train.ShapeDataset
    return kind(path, cache=cache)


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
