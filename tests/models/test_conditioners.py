"""Pictures and words as conditions, by tiny random transformers."""

from __future__ import annotations

import pytest
import tiny_backbones
import torch

from fastshape.geometry import optional
from fastshape.models import CheckpointError, ImageConditioner, TextConditioner
from fastshape.testing import generator


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def vision(tmp_path_factory):
    return tiny_backbones.vision(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="module")
def language(tmp_path_factory):
    return tiny_backbones.language(tmp_path_factory.mktemp("language"))


def test_pictures_become_tokens(transformers, vision):
    conditioner = ImageConditioner(vision, size=42)
    pictures = torch.rand(2, 3, 42, 42, generator=generator(0))
    tokens = conditioner(pictures)
    assert tokens.shape == (2, 10, conditioner.dim) == (2, 10, 16)  # of the class, and 3 x 3
    mean = torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    deviation = torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    backbone = transformers.Dinov2Model.from_pretrained(vision).eval()
    expected = backbone(pixel_values=(pictures - mean) / deviation).last_hidden_state
    torch.testing.assert_close(tokens, expected, rtol=1e-4, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in conditioner.parameters())
    assert ImageConditioner(vision, size=None).size == 42
    assert ImageConditioner(vision, size=28)(pictures).shape == (2, 5, 16)  # of any size


def test_what_is_transparent_is_white(vision):
    conditioner = ImageConditioner(vision, size=42)
    draw = generator(1)
    color, cover = torch.rand(1, 3, 42, 42, generator=draw), torch.rand(1, 1, 42, 42, generator=draw)
    over = color * cover + 1.0 - cover
    torch.testing.assert_close(conditioner(torch.cat([color, cover], 1)), conditioner(over))
    # Another resolution shows the same picture.
    smooth, large = (torch.linspace(0, 1, 2 * size + 1)[1::2].expand(1, 3, size, size) for size in (42, 126))
    torch.testing.assert_close(conditioner(large), conditioner(smooth), rtol=0.1, atol=0.1)
    for shape in ((3, 42, 42), (1, 1, 42, 42)):
        with pytest.raises(ValueError, match=r"`pictures` must have shape \(B, 3, H, W\)"):
            conditioner(torch.zeros(shape))


def test_words_become_an_embedding(transformers, language):
    conditioner = TextConditioner(language)
    texts = ["a chair", "a", "a chair a chair a chair a chair"]
    found = conditioner(texts)
    assert found.shape == (3, conditioner.dim) == (3, 16)
    assert not torch.allclose(found[0], found[1])
    torch.testing.assert_close(conditioner(["a"])[0], found[1], rtol=1e-4, atol=1e-5)
    backbone = transformers.CLIPTextModel.from_pretrained(language).eval()
    tokens = torch.tensor([[11, 0, 1, 12]])  # start, a, chair, end
    torch.testing.assert_close(backbone(tokens).pooler_output[0], found[0], rtol=1e-4, atol=1e-5)


def test_equal_weights_have_equal_fingerprints(vision, language):
    images = [ImageConditioner(vision, size=size) for size in (42, 42, 28)]
    assert images[0].fingerprint() == images[1].fingerprint() != images[2].fingerprint()
    words = [TextConditioner(language) for _ in range(2)]
    assert words[0].fingerprint() == words[1].fingerprint()
    with torch.no_grad():
        next(words[1].parameters())[0] += 1.0
    assert words[0].fingerprint() != words[1].fingerprint()


@pytest.mark.parametrize("kind", [ImageConditioner, TextConditioner])
def test_weights_that_are_not_there(transformers, kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for where in (tmp_path, "nobody/nothing"):
        with pytest.raises(
            CheckpointError, match="neither a folder of weights nor a hub id in the local cache"
        ):
            kind(where)


@pytest.mark.parametrize("kind", [ImageConditioner, TextConditioner])
def test_without_the_package_one_line_says_what_to_install(kind, monkeypatch):
    def missing(name):
        raise ImportError(name)

    monkeypatch.setattr(optional.importlib, "import_module", missing)
    with pytest.raises(ImportError, match=r"needs transformers: pip install 'fastshape\[image\]'"):
        kind("anything")
