"""Training of next-scale transformers: shapes as tokens, made once and kept, their batches and their loss."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastshape.models import (
    VAT,
    CheckpointError,
    CheckpointMetadata,
    Condition,
    ConditionFolder,
    NextScaleConfig,
    NextScaleTransformer,
)
from fastshape.models.nextscale import NOTHING
from fastshape.nn import Generators, MultiscaleQuantizer
from fastshape.runtime.files import atomic_path, read_safetensors, write_safetensors
from fastshape.runtime.interrupt import delayed_interrupt
from fastshape.train.augment import augment
from fastshape.train.config import TokenTrainConfig
from fastshape.train.data import ShapeDataset, ShapeSamples, _choose, batch_items, keyed_generator
from fastshape.train.distributed import local_device

INDEX_FILE = "index.json"
_BLOCK = 32  # shapes of a file: what an interruption loses at most
_FORMAT_VERSION = 1


class EncodingInterrupted(KeyboardInterrupt):
    """Ctrl-C while shapes became tokens: what was done is kept."""


class ShapeTokens(NamedTuple):
    """A shape as tokens.

    Attributes:
        tokens: (V, L) integers: V encodings, each from other points and in another position.
        condition: what is known of it: a class (), text (text_dim,), pictures (W, image_tokens, image_dim).
    """

    tokens: Tensor
    condition: Condition


class TokenDataset(Sequence[ShapeTokens]):
    """The tokens of shapes.

    Args:
        tokens: (N, V, L) integers, as of `ShapeTokens`.
        tokenizer: that made them.
        conditions: N rows of what `ShapeTokens` says, or N conditions in a folder; see `read_conditions`.
        preparation: how the shapes were prepared.
        key: by which a resumed run knows its shapes; conditions count too.

    Attributes:
        quantizer: the tokenizer's, on the CPU.
        metadata: what a model trained on them is to say of them.

    Raises:
        ValueError: conditions of another number of shapes.
    """

    def __init__(
        self,
        tokens: Tensor,
        tokenizer: VAT,
        *,
        conditions: Condition | ConditionFolder = NOTHING,
        preparation: dict[str, Any] | None = None,
        key: str = "",
    ) -> None:
        parts: dict[str, Any] = {"conditions": conditions}
        if not isinstance(conditions, ConditionFolder):
            parts = conditions._asdict()
        for name, rows in parts.items():
            if rows is not None and len(rows) != len(tokens):
                raise ValueError(
                    f"`{name}` must have a row for each of {len(tokens)} shapes, got {len(rows)}"
                )
        self.tokens, self.conditions = tokens, conditions
        self.quantizer = copy.deepcopy(_quantizer(tokenizer)).cpu().float().eval()
        self.metadata = CheckpointMetadata(
            preparation=preparation,
            tokenizer=tokenizer.title,
            tokenizer_fingerprint=tokenizer.fingerprint(),
        )
        self._key = key

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        if isinstance(self.conditions, ConditionFolder):
            return ShapeTokens(self.tokens[index], self.conditions[index])
        return ShapeTokens(self.tokens[index], self.conditions.map(lambda tensor: tensor[index]))

    @property
    def told(self) -> list[str]:
        """What is known of the shapes: "classes", "text", "image"."""
        if isinstance(self.conditions, ConditionFolder):
            return self.conditions.names
        return [name for name, rows in self.conditions._asdict().items() if rows is not None]

    def fingerprint(self) -> str:
        """By which a resumed run knows its shapes: how the tokens were made, of what; and the conditions."""
        digest = hashlib.sha256(self._key.encode() if self._key else self.tokens.contiguous().numpy().data)
        if isinstance(self.conditions, ConditionFolder):
            digest.update(self.conditions.fingerprint.encode())
        else:
            for name, tensor in self.conditions._asdict().items():
                if tensor is not None:
                    digest.update(name.encode() + tensor.contiguous().numpy().data)
        return digest.hexdigest()

    def require(self, config: NextScaleConfig) -> None:
        """ValueError unless a model of this configuration takes these tokens."""
        for name, value in _fields(self.quantizer).items():
            if getattr(config, name) != value:
                raise ValueError(f"`model.{name}` is {getattr(config, name)}, and the tokenizer's is {value}")


def token_fields(tokenizer: VAT) -> dict[str, Any]:
    """The fields of a `NextScaleConfig` that a tokenizer decides.

    Raises:
        ValueError: a model without a quantizer, the first stage of a tokenizer.
    """
    return _fields(_quantizer(tokenizer))


def _quantizer(tokenizer: VAT) -> MultiscaleQuantizer:
    if tokenizer.quantizer is None:
        raise ValueError(f"{tokenizer.title} has no quantizer, and makes no tokens")
    return tokenizer.quantizer


def _fields(quantizer: MultiscaleQuantizer) -> dict[str, Any]:
    return {"scales": quantizer.scales, "vocab_size": quantizer.num_codes, "code_dim": quantizer.dim}


def encode_tokens(
    tokenizer: VAT,
    shapes: ShapeDataset,
    folder: str | os.PathLike[str],
    *,
    variants: int = 1,
    augment: str = "none",
    seed: int = 0,
    conditions: Condition | ConditionFolder = NOTHING,
    device: str | torch.device | None = None,
    progress: bool = True,
) -> TokenDataset:
    """Encodes every shape once; what a folder holds already is taken from there.

    The first variant of a shape is the shape as it is. Under torchrun the processes share the work.

    Args:
        tokenizer: in evaluation mode.
        shapes: prepared.
        folder: gets `index.json` and a file for every 32 shapes.
        variants: encodings of each shape, each of other points of its surface.
        augment: how the others are moved, as of `TokenTrainConfig`.
        seed: of points and motions.
        conditions: as of `TokenDataset`, in the order of `shapes`.
        device: where the tokenizer works; None takes CUDA where there is a GPU, else the CPU.
        progress: show a progress bar on stderr.

    Raises:
        ValueError: a model without a quantizer.
        CheckpointError: the folder holds the tokens of something else, or a damaged file.
        EncodingInterrupted: Ctrl-C (a KeyboardInterrupt); calling again goes on.
    """
    _quantizer(tokenizer)
    folder = Path(folder)
    about = {
        "format_version": _FORMAT_VERSION,
        "tokenizer": tokenizer.fingerprint(),
        "shapes": shapes.fingerprint(),
        "variants": variants,
        "augment": augment,
        "seed": seed,
    }
    rank, world_size = (
        int(os.environ.get(name, value)) for name, value in (("RANK", "0"), ("WORLD_SIZE", "1"))
    )
    _claim(folder / INDEX_FILE, about, write=rank == 0)
    starts = range(0, len(shapes), _BLOCK)
    paths = [folder / f"tokens-{start // _BLOCK:05}.safetensors" for start in starts]
    mine = [place for place in range(rank, len(paths), world_size) if not paths[place].exists()]
    if mine:
        kind = local_device(device)
        worker = copy.deepcopy(tokenizer).to(kind).eval()
        with delayed_interrupt() as interrupted:
            for done, place in enumerate(_track(mine, progress and rank == 0)):
                block = range(starts[place], min(starts[place] + _BLOCK, len(shapes)))
                rows = [_encode(worker, shapes[i], i, about, kind) for i in block]
                write_safetensors(paths[place], {"tokens": _small(torch.stack(rows), tokenizer)})
                if interrupted() and done + 1 < len(mine):
                    raise EncodingInterrupted(
                        f"stopped with {len(paths) - len(mine) + done + 1} of {len(paths)} files of tokens; "
                        f"kept in {folder}"
                    )
    while world_size > 1 and not all(path.exists() for path in paths):  # the other processes' share
        time.sleep(0.5)
    tokens = torch.cat([_read(path, tokenizer) for path in paths])
    return TokenDataset(
        tokens,
        tokenizer,
        conditions=conditions,
        preparation=shapes.prepared.spec.to_dict(),
        key=json.dumps(about, sort_keys=True),
    )


def read_conditions(
    path: str | os.PathLike[str], keys: Sequence[str] = (), *, allow_missing: bool = False
) -> Condition | ConditionFolder:
    """What is known of prepared shapes.

    Args:
        path: a folder that `fastshape conditions` wrote, of which a step reads what it takes; or a
            safetensors file of `classes` (N,), `text` (N, text_dim) and `image` (N, W, image_tokens,
            image_dim), or of some of them, its rows in the order of the shapes.
        keys: of the shapes, `ShapeDataset.prepared.keys`, for which the folder is asked.
        allow_missing: of a folder, see `ConditionFolder`.

    Raises:
        CheckpointError: the file or folder is missing, damaged, holds something else, or lacks a shape.
    """
    if Path(path).is_dir():
        return ConditionFolder(path, keys, allow_missing=allow_missing)
    tensors, _ = read_safetensors(Path(path))
    if not tensors or not tensors.keys() <= set(Condition._fields):
        raise CheckpointError(
            f"{path} holds {', '.join(sorted(tensors)) or 'nothing'}; expected classes, text or image"
        )
    return Condition(**tensors)


def condition_fields(conditions: Condition | ConditionFolder) -> dict[str, int]:
    """The fields of a `NextScaleConfig` that conditions decide."""
    if isinstance(conditions, ConditionFolder):
        return conditions.fields
    fields = {}
    if conditions.classes is not None:
        fields["num_classes"] = int(conditions.classes.max()) + 1
    if conditions.text is not None:
        fields["text_dim"] = conditions.text.shape[-1]
    if conditions.image is not None:
        fields["image_tokens"], fields["image_dim"] = conditions.image.shape[-2:]
    return fields


def _claim(path: Path, about: dict[str, Any], write: bool) -> None:
    """Writes what the folder is for, or compares it."""
    if path.exists():
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise CheckpointError(f"{path} is damaged: {error}") from error
        if found != about:
            changed = ", ".join(name for name in about if found.get(name) != about[name])
            raise CheckpointError(
                f"{path.parent} holds tokens of other {changed}; use another folder, or remove it"
            )
    elif write:
        with atomic_path(path) as temporary:
            temporary.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


@torch.no_grad()
def _encode(
    tokenizer: VAT, shape: ShapeSamples, index: int, about: dict[str, Any], device: torch.device
) -> Tensor:
    """(V, L) of a shape."""
    variants = []
    for variant in range(about["variants"]):
        generator = keyed_generator(about["seed"], "tokens", index, variant)
        clouds = []
        for name in tokenizer.inputs:
            cloud = shape.cloud(name, tokenizer.input_channels)
            clouds.append(cloud[_choose(len(cloud), tokenizer.config.num_inputs, generator)])
        if variant:
            clouds = augment(about["augment"], clouds, clouds[0][:0, :3], generator).clouds
        variants.append(clouds)
    return tokenizer.tokenize(
        *(torch.stack(clouds).to(device) for clouds in zip(*variants, strict=True))
    ).cpu()


def _small(tokens: Tensor, tokenizer: VAT) -> Tensor:
    return tokens.to(torch.int16 if _quantizer(tokenizer).num_codes <= 1 << 15 else torch.int32)


def _read(path: Path, tokenizer: VAT) -> Tensor:
    tokens = read_safetensors(path)[0].get("tokens")
    if tokens is None or tokens.dim() != 3 or tokens.shape[2] != _quantizer(tokenizer).num_tokens:
        raise CheckpointError(f"{path} does not hold tokens of {tokenizer.title}")
    return tokens


def _track(places: list[int], shown: bool):  # type: ignore[no-untyped-def]
    from rich.console import Console
    from rich.progress import track

    return track(places, "tokens", console=Console(stderr=True), disable=not shown)


class TokenBatch(NamedTuple):
    """A batch of shapes as tokens.

    Attributes:
        tokens: (B, T) int64, of all scales or of the first of them.
        inputs: (B, T - L_0, d), what the model sees of each scale but the first.
        condition: what it is told.
    """

    tokens: Tensor
    inputs: Tensor
    condition: Condition = NOTHING

    @property
    def size(self) -> int:
        """B."""
        return self.tokens.shape[0]

    @property
    def device(self) -> torch.device:
        return self.tokens.device

    def to(self, device: torch.device) -> TokenBatch:
        """The batch on another device."""
        return TokenBatch(
            self.tokens.to(device, non_blocking=True),
            self.inputs.to(device, non_blocking=True),
            self.condition.map(lambda tensor: tensor.to(device, non_blocking=True)),
        )

    def split(self, size: int) -> list[TokenBatch]:
        """Batches of at most `size` shapes."""
        return [
            TokenBatch(
                self.tokens[begin : begin + size],
                self.inputs[begin : begin + size],
                self.condition.map(lambda tensor: tensor[begin : begin + size]),  # noqa: B023
            )
            for begin in range(0, self.size, size)
        ]


def sample_tokens(
    samples: TokenDataset, config: TokenTrainConfig, step: int, *, rank: int = 0, world_size: int = 1
) -> TokenBatch:
    """The batch of a step: the same for the same (seed, step), whatever came before; see `sample_batch`.

    Raises:
        ValueError: the batch is not the same for every rank, the tokens are not the model's, or nothing is
            known of the shapes that the model is to be told.
    """
    assert isinstance(config.model, NextScaleConfig)
    samples.require(config.model)
    for name in config.model.conditions:
        if name not in samples.told:
            raise ValueError(f"the model takes `{name}`, and there is none with the shapes")
    rows, told = [], []
    for shape, key in batch_items(samples, config, step, rank, world_size):
        generator = keyed_generator(*key)
        rows.append(shape.tokens[torch.randint(len(shape.tokens), (), generator=generator)].long())
        told.append(_chosen(shape.condition, config.model, generator))
    tokens = torch.stack(rows)[:, : config.model.bounds[num_scales(config, step) - 1][1]].contiguous()
    return TokenBatch(tokens, samples.quantizer.scale_inputs(tokens), _stacked(told))


def num_scales(config: TokenTrainConfig, step: int) -> int:
    """First scales that a step is about, the same on every rank."""
    assert isinstance(config.model, NextScaleConfig)
    if not config.scale_counts:
        return len(config.model.scales)
    weights = torch.tensor(config.scale_probabilities or (1.0,) * len(config.scale_counts))
    drawn = torch.multinomial(weights, 1, generator=keyed_generator(config.seed, "scales", step))
    return config.scale_counts[int(drawn)]


def _chosen(condition: Condition, model: NextScaleConfig, generator: torch.Generator | None) -> Condition:
    """What a model takes of a shape's condition: of its pictures a random one, or the first."""
    taken = Condition(**{name: getattr(condition, name) for name in model.conditions})
    if taken.image is None:
        return taken
    count = len(taken.image)
    place = 0 if generator is None else int(torch.randint(count, (), generator=generator))
    return taken._replace(image=taken.image[place])


def _stacked(conditions: list[Condition]) -> Condition:
    classes, text, image = zip(*conditions, strict=True)
    return Condition(
        None if classes[0] is None else torch.stack(classes).long(),
        None if text[0] is None else torch.stack(text).float(),
        None if image[0] is None else torch.stack(image).float(),
    )


def token_losses(model: nn.Module, batch: TokenBatch, noise: Generators) -> dict[str, Tensor]:
    """The parts of a batch's loss: "loss", the cross-entropy of a token in nats, and "accuracy", the share of
    tokens that are the most likely ones.

    Args:
        model: the model, or its data parallel wrapper.
        batch: what it is shown.
        noise: draws what it is not told.
    """
    logits = model(batch.inputs, batch.condition, generator=noise).float()
    right = (logits.argmax(-1) == batch.tokens).float().mean()
    return {"loss": F.cross_entropy(logits.flatten(0, 1), batch.tokens.flatten()), "accuracy": right}


@torch.no_grad()
def validate_tokens(
    model: NextScaleTransformer, shapes: TokenDataset, *, device: str | torch.device = "cpu"
) -> dict[str, float]:
    """How well a model foretells the tokens of shapes that it was not trained on, of their first variants.

    Args:
        model: on `device`; its mode of training or evaluation is left as it is.
        shapes: not trained on, by the same tokenizer.
        device: where the tokens go.

    Returns:
        "validation_loss" and "validation_accuracy", as of `token_losses`; "validation_bytes": what the tokens
        of a shape take when coded by the model's probabilities.
    """
    shapes.require(model.config)
    training = model.training
    model.eval()
    sums = {"loss": 0.0, "accuracy": 0.0}
    for shape in shapes:
        tokens = shape.tokens[:1].long()
        told = _stacked([_chosen(shape.condition, model.config, None)])
        batch = TokenBatch(tokens, shapes.quantizer.scale_inputs(tokens), told).to(torch.device(device))
        for name, value in token_losses(model, batch, torch.Generator()).items():
            sums[name] += float(value) / len(shapes)
    model.train(training)
    size = sums["loss"] * model.config.num_tokens / (8 * 0.6931471805599453)
    return {
        "validation_loss": sums["loss"],
        "validation_accuracy": sums["accuracy"],
        "validation_bytes": size,
    }
