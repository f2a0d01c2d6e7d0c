"""What a generator is told: pictures as tokens of DINOv2, words as the pooled embedding of CLIP.

Both come through the package `transformers` (extra `image`), their weights from a folder, or by a hub id
from what the Hugging Face cache holds; nothing is fetched unless `download` says so. VAT (arXiv 2412.02202),
section 3.3, takes ViT-L/14 of both: `facebook/dinov2-large` and `openai/clip-vit-large-patch14`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastshape.geometry.optional import require
from fastshape.models.pretrained import CheckpointError, weights_hash

_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as DINOv2 was trained


def _load(path: str | os.PathLike[str], load: Callable[..., Any], download: bool) -> Any:
    try:
        return load(os.fspath(path), local_files_only=not download)
    except (OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()
        hint = "" if download else "; `download=True` fetches a hub id"
        raise CheckpointError(
            f"{os.fspath(path)}: neither a folder of weights nor a hub id in the local cache{hint} "
            f"({reason[0] if reason else type(error).__name__})"
        ) from error


class ImageConditioner(nn.Module):
    """Pictures as the last tokens of a vision transformer, DINOv2 or another that `transformers` knows.

    Args:
        path: a folder that `save_pretrained` of transformers wrote, or a hub id.
        size: pixels along a side of what the transformer sees; None is its own size. DINOv2's 224 gives 257
            tokens: the class's, and 16 x 16.
        download: whether a hub id may be fetched.

    Raises:
        ImportError: `transformers` is not installed.
        CheckpointError: there are no such weights.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, size: int | None = 224, download: bool = False
    ) -> None:
        super().__init__()
        transformers = require("transformers", "image", "an image condition")
        self.backbone: Any = _load(path, transformers.AutoModel.from_pretrained, download)
        self.size = int(self.backbone.config.image_size) if size is None else size
        self.backbone.requires_grad_(False).eval()

    @property
    def dim(self) -> int:
        """Channels of a token."""
        return int(self.backbone.config.hidden_size)

    def fingerprint(self) -> str:
        """A hash of the weights and the size, 16 hexadecimal digits: equal ones give equal tokens."""
        return weights_hash(self.backbone, f"{type(self.backbone).__name__} {self.size}")

    @torch.no_grad()
    def forward(self, pictures: Tensor) -> Tensor:
        """pictures (B, 3, H, W), or (B, 4, H, W) that are laid over white, in [0, 1] -> tokens (B, N, dim).

        A picture is brought to the size of the transformer whole, without cutting anything off.

        Raises:
            ValueError: another shape.
        """
        if pictures.dim() != 4 or pictures.shape[1] not in (3, 4):
            raise ValueError(
                f"`pictures` must have shape (B, 3, H, W) or (B, 4, H, W), got {tuple(pictures.shape)}"
            )
        parameter = next(self.backbone.parameters())
        pictures = pictures.to(parameter.device, torch.float32)
        if pictures.shape[1] == 4:
            color, cover = pictures[:, :3], pictures[:, 3:]
            pictures = color * cover + 1.0 - cover
        size = (self.size, self.size)
        if pictures.shape[2:] != size:
            pictures = F.interpolate(pictures, size, mode="bicubic", align_corners=False, antialias=True)
        mean, deviation = (
            torch.tensor(v, device=pictures.device)[:, None, None] for v in (_MEAN, _DEVIATION)
        )
        pixels = ((pictures.clamp(0.0, 1.0) - mean) / deviation).to(parameter.dtype)
        return self.backbone(pixel_values=pixels).last_hidden_state


class TextConditioner(nn.Module):
    """Words as the pooled embedding of CLIP's text transformer.

    Args:
        path: a folder with model and tokenizer, or a hub id.
        download: whether a hub id may be fetched.

    Raises:
        ImportError: `transformers` is not installed.
        CheckpointError: there are no such weights.
    """

    def __init__(self, path: str | os.PathLike[str], *, download: bool = False) -> None:
        super().__init__()
        transformers = require("transformers", "image", "a text condition")
        self.backbone: Any = _load(path, transformers.CLIPTextModel.from_pretrained, download)
        self.tokenizer: Any = _load(path, transformers.AutoTokenizer.from_pretrained, download)
        self.backbone.requires_grad_(False).eval()

    @property
    def dim(self) -> int:
        """Channels of the embedding."""
        return int(self.backbone.config.hidden_size)

    def fingerprint(self) -> str:
        """A hash of the weights, 16 hexadecimal digits; the tokenizer of the words plays no part."""
        return weights_hash(self.backbone, type(self.backbone).__name__)

    @torch.no_grad()
    def forward(self, texts: Sequence[str]) -> Tensor:
        """B texts -> (B, dim). What goes beyond the transformer's number of tokens is cut off."""
        tokens = self.tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.backbone.config.max_position_embeddings,
            return_tensors="pt",
        )
        device = next(self.backbone.parameters()).device
        return self.backbone(
            input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
        ).pooler_output
