"""Random transformers of the package `transformers`, small enough for tests, in folders as it writes them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

WORDS = ("a</w>", "chair</w>", "c", "h", "a", "i", "r", "r</w>", "ch", "ai", "chai")
"""Of the tokenizer; then come the start and the end."""


def vision(folder: Path) -> Path:
    """DINOv2: 16 channels, patches of 14."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.Dinov2Config(**sizes, image_size=42, patch_size=14)
    transformers.Dinov2Model(config).save_pretrained(folder)
    return folder


def language(folder: Path) -> Path:
    """CLIP's part for words: 16 channels, 6 tokens."""
    transformers = pytest.importorskip("transformers")
    vocabulary = {word: number for number, word in enumerate([*WORDS, "<|startoftext|>", "<|endoftext|>"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\nc h\na i\nch ai\nchai r</w>\n")
    tokenizer = transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.CLIPTextConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=6,
        bos_token_id=len(WORDS),
        eos_token_id=len(WORDS) + 1,
        pad_token_id=len(WORDS) + 1,
    )
    transformers.CLIPTextModel(config).save_pretrained(folder)
    return folder
