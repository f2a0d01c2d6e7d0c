"""The conditions of prepared shapes on the disk: a file for each shape, read when asked for."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import overload

import torch

from fastshape.geometry.prepared import INDEX_FILE
from fastshape.models.nextscale import Condition
from fastshape.runtime.files import CheckpointError, read_safetensors

ABOUT_FILE = "conditions.json"


class ConditionFolder(Sequence[Condition]):
    """What `fastshape conditions` wrote, of the shapes with these keys, in their order.

    A shape's condition is `text` (text_dim,), NaN where the shape has no caption, and `image`
    (V, image_tokens, image_dim), V views of it; or one of the two; float16. The files are mapped into memory:
    whoever takes one view reads that view.

    Args:
        path: the folder.
        keys: of the shapes, `geometry.PreparedShapes.keys`.
        allow_missing: a shape that the folder lacks has a condition of which nothing is known, instead of an
            error.

    Attributes:
        about: what made them, as `conditions.json` has it.
        fields: those of a `NextScaleConfig` that they decide.
        fingerprint: a hash of all that the keys stand for, by which a run knows its data.

    Raises:
        CheckpointError: no such folder, one without an index, or one that lacks a shape; on access, a file
            that is missing or damaged.
    """

    def __init__(
        self, path: str | os.PathLike[str], keys: Sequence[str] = (), *, allow_missing: bool = False
    ) -> None:
        self.path = Path(path)
        files, digests = {}, {}
        try:
            self.about = json.loads((self.path / ABOUT_FILE).read_text(encoding="utf-8"))
            image, text = self.about["image"], self.about["text"]
            self.fields: dict[str, int] = {}
            if image is not None:
                self.fields |= {"image_dim": int(image["dim"]), "image_tokens": int(image["tokens"])}
            if text is not None:
                self.fields |= {"text_dim": int(text["dim"])}
            with open(self.path / INDEX_FILE, "rb") as file:
                for line in map(json.loads, file):
                    files[line["key"]], digests[line["key"]] = line["file"], line["sha256"]
        except FileNotFoundError as error:
            raise CheckpointError(
                f"{self.path}: no {Path(error.filename).name}; a run of `fastshape conditions` that ends "
                "writes it"
            ) from None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{self.path}: not a folder of conditions: {error!r}") from error
        lacking = [key for key in keys if key not in files]
        if lacking and not (allow_missing and len(lacking) < len(keys)):
            raise CheckpointError(
                f"{self.path}: holds no conditions of {len(lacking):,} of the {len(keys):,} shapes, "
                f"{lacking[0]} say; `fastshape conditions` makes them, with --allow-missing nothing is known "
                "of these shapes"
            )
        self._files = [files.get(key) for key in keys]
        known = [self.about, *((key, digests.get(key)) for key in keys)]
        self.fingerprint = hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()

    @property
    def names(self) -> list[str]:
        """What is known: "text", "image"."""
        return [name for name in ("text", "image") if self.about[name] is not None]

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> Condition: ...
    @overload
    def __getitem__(self, index: slice) -> list[Condition]: ...
    def __getitem__(self, index: int | slice) -> Condition | list[Condition]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        file = self._files[index]
        if file is None:
            known = self.fields.get
            shapes: dict[str, tuple[int, ...]] = {
                "text": (known("text_dim", 0),),
                "image": (1, known("image_tokens", 0), known("image_dim", 0)),
            }
            return Condition(**{name: torch.full(shapes[name], torch.nan).half() for name in self.names})
        rows, _ = read_safetensors(self.path / file)
        if not rows.keys() >= set(self.names):
            raise CheckpointError(f"{self.path / file} holds {', '.join(sorted(rows)) or 'nothing'}")
        return Condition(**{name: rows[name] for name in self.names})
