"""Training of next-scale transformers: tokens, batches, loss, learning, going on, and the command."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from test_train import same
from tiny_models import tiny

from fastshape import geometry, models, pipelines, train
from fastshape.cli import main
from fastshape.geometry import PrepareSpec, shapes
from fastshape.models import CheckpointError, Condition, NextScaleConfig, NextScaleTransformer, Sampling
from fastshape.train import tokens as tokens_module

SHAPES = 5


@pytest.fixture(scope="module")
def tokenizer():
    return tiny("VAT")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """What `fastshape prepare` writes, of a few shapes."""
    folder = tmp_path_factory.mktemp("tokens")
    (folder / "in").mkdir()
    for segments in range(6, 6 + SHAPES):
        geometry.save(shapes.torus(segments=segments), folder / "in" / f"torus-{segments}.ply")
    spec = PrepareSpec.preset("vat", num_surface=400, num_volume=50, num_near=50)
    pipelines.prepare([folder / "in"], folder / "out", spec, workers=1)
    return folder / "out"


def encode(tokenizer, data, folder, **options):
    return train.encode_tokens(tokenizer, train.ShapeDataset(data), folder, progress=False, **options)


@pytest.fixture(scope="module")
def samples(tokenizer, data, tmp_path_factory):
    return encode(tokenizer, data, tmp_path_factory.mktemp("kept"), variants=3, augment="axes")


def small_config(tokenizer, **changes) -> train.TokenTrainConfig:
    model = {"dim": 16, "depth": 2, "heads": 2, **train.token_fields(tokenizer), **changes.pop("model", {})}
    values = {
        "model": NextScaleConfig(**model),
        "steps": 12,
        "batch_size": 4,
        "learning_rate": 1e-2,
        "checkpoint_every": 6,
        "log_every": 3,
        "num_threads": 1,
    }
    return train.TokenTrainConfig(**{**values, **changes})


def run(config, samples, **options):
    return train.fit(config, samples, **{"progress": False, "device": "cpu", **options})


# ---- Tokens ------------------------------------------------------------------------------------------------


def test_tokens_are_the_tokenizer_s(tokenizer, data, samples):
    assert len(samples) == SHAPES
    assert samples.tokens.shape == (SHAPES, 3, tokenizer.quantizer.num_tokens)
    assert samples.tokens.dtype == torch.int16
    dataset = train.ShapeDataset(data)
    cloud = dataset[2].cloud("surface", 6)
    rows = torch.randperm(len(cloud), generator=train.data.keyed_generator(0, "tokens", 2, 0))[:256]
    # In a batch with the other variants some ties may fall otherwise.
    expected = tokenizer.tokenize(cloud[rows][None])[0]
    assert (samples[2].tokens[0].long() == expected).float().mean() > 0.9
    assert not torch.equal(samples[2].tokens[0], samples[2].tokens[1])
    assert samples.metadata.tokenizer == tokenizer.title
    assert samples.metadata.tokenizer_fingerprint == tokenizer.fingerprint()
    assert samples.metadata.preparation["name"] == "vat"


def test_what_is_there_is_not_made_again(tokenizer, data, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens_module, "_BLOCK", 2)
    calls = []
    plain = type(tokenizer).tokenize

    def counted(self, points):
        calls.append(len(points))
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return plain(self, points)

    monkeypatch.setattr(type(tokenizer), "tokenize", counted)
    with pytest.raises(train.EncodingInterrupted, match=r"stopped with 2 of 3 files of tokens; kept in"):
        encode(tokenizer, data, tmp_path, variants=2)
    assert calls == [2, 2, 2, 2]  # the file is finished
    found = encode(tokenizer, data, tmp_path, variants=2)
    assert calls == [2] * 5
    again = encode(tokenizer, data, tmp_path / "other", variants=2)
    assert torch.equal(found.tokens, again.tokens)
    assert found.fingerprint() == again.fingerprint()
    encode(tokenizer, data, tmp_path, variants=2)
    assert len(calls) == 10

    with pytest.raises(CheckpointError, match="holds tokens of other variants, augment; use another folder"):
        encode(tokenizer, data, tmp_path, variants=3, augment="axes")
    with pytest.raises(CheckpointError, match="holds tokens of other tokenizer"):
        encode(tiny("VAT", seed=1), data, tmp_path, variants=2)
    with pytest.raises(ValueError, match="VAT has no quantizer, and makes no tokens"):
        encode(tiny("VAT", quantize=False), data, tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (tmp_path / "tokens-00001.safetensors").write_bytes(b"half")
    with pytest.raises(CheckpointError, match=r"tokens-00001\.safetensors is damaged"):
        encode(tokenizer, data, tmp_path, variants=2)


def test_processes_share_the_work(tokenizer, data, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens_module, "_BLOCK", 2)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    waited = []

    def other(seconds):
        """The first process does its share while the second waits."""
        waited.append(seconds)
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setattr(tokens_module.time, "sleep", lambda seconds: pytest.fail("waits for nobody"))
        encode(tokenizer, data, tmp_path, variants=3, augment="axes")

    monkeypatch.setattr(tokens_module.time, "sleep", other)
    found = encode(tokenizer, data, tmp_path, variants=3, augment="axes")
    assert torch.equal(found.tokens, samples.tokens)
    assert len(waited) == 1


def test_conditions_come_from_a_file(tokenizer, data, tmp_path):
    draw = torch.Generator().manual_seed(0)
    rows = {
        "classes": torch.arange(SHAPES),
        "text": torch.randn(SHAPES, 3, generator=draw),
        "image": torch.randn(SHAPES, 4, 2, 5, generator=draw),
    }
    save_file({**rows, "text": rows["text"].half()}, tmp_path / "told.safetensors")
    conditions = train.read_conditions(tmp_path / "told.safetensors")
    samples = encode(tokenizer, data, tmp_path / "tokens", conditions=conditions)
    plain = encode(tokenizer, data, tmp_path / "tokens")
    assert samples.fingerprint() != plain.fingerprint()
    model = {"num_classes": SHAPES, "text_dim": 3, "image_dim": 5, "image_tokens": 2}
    config = small_config(tokenizer, model=model)
    batch = train.sample_tokens(samples, config, 0)
    assert [tuple(tensor.shape) for tensor in batch.condition] == [(4,), (4, 3), (4, 2, 5)]
    for item, shape in enumerate(batch.condition.classes.tolist()):
        torch.testing.assert_close(batch.condition.text[item], rows["text"][shape], rtol=1e-3, atol=1e-3)
        assert bool((rows["image"][shape] == batch.condition.image[item]).flatten(1).all(1).any())
    assert [part.condition.text.shape[0] for part in batch.split(3)] == [3, 1]
    assert run(small_config(tokenizer, model=model, steps=2), samples).config.conditions == list(rows)

    with pytest.raises(ValueError, match="the model takes `classes`, and there is none with the shapes"):
        train.sample_tokens(plain, config, 0)
    save_file({"words": rows["text"]}, tmp_path / "wrong.safetensors")
    with pytest.raises(CheckpointError, match="holds words; expected classes, text or image"):
        train.read_conditions(tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=r"`classes` must have a row for each of 5 shapes, got 2"):
        encode(tokenizer, data, tmp_path / "tokens", conditions=Condition(classes=torch.arange(2)))


# ---- Batches -----------------------------------------------------------------------------------------------


def test_a_batch_is_a_function_of_seed_and_step(tokenizer, samples):
    config = small_config(tokenizer)
    batch = train.sample_tokens(samples, config, 3)
    assert batch.tokens.shape == (4, samples.tokens.shape[2])
    assert torch.equal(batch.inputs, tokenizer.quantizer.scale_inputs(batch.tokens))
    assert torch.equal(batch.tokens, train.sample_tokens(samples, config, 3).tokens)
    assert not torch.equal(batch.tokens, train.sample_tokens(samples, config, 4).tokens)
    halves = [train.sample_tokens(samples, config, 3, rank=rank, world_size=2) for rank in (0, 1)]
    assert torch.equal(torch.cat([half.tokens for half in halves]), batch.tokens)
    assert [part.size for part in batch.split(3)] == [3, 1]
    seen = {int(row.sum()) for step in range(40) for row in train.sample_tokens(samples, config, step).tokens}
    assert seen == set(samples.tokens.long().sum(2).flatten().tolist())
    with pytest.raises(ValueError, match=r"`model\.vocab_size` is 33, and the tokenizer's is 32"):
        train.sample_tokens(samples, small_config(tokenizer, model={"vocab_size": 33}), 0)


def test_some_steps_are_about_the_first_scales(tokenizer, samples):
    scales = tokenizer.quantizer.scales
    config = small_config(tokenizer, scale_counts=(1, len(scales)), scale_probabilities=(0.25, 0.75))
    sizes = [train.sample_tokens(samples, config, step).tokens.shape[1] for step in range(100)]
    assert set(sizes) == {scales[0], sum(scales)}
    assert 10 <= sizes.count(scales[0]) <= 40
    model = run(config, samples)
    assert isinstance(model, NextScaleTransformer)


def test_the_loss_is_the_cross_entropy_of_a_token(tokenizer, samples):
    config = small_config(tokenizer)
    torch.manual_seed(0)
    model = NextScaleTransformer(config.model)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    batch = train.sample_tokens(samples, config, 0)
    logits = model(batch.inputs)
    expected = F.cross_entropy(logits.flatten(0, 1), batch.tokens.flatten())
    right = (logits.argmax(-1) == batch.tokens).float().mean()
    parts = train.train_step(model, torch.optim.AdamW(model.parameters(), lr=0.0), batch, config, 0)
    torch.testing.assert_close(parts["loss"], expected.detach())
    torch.testing.assert_close(parts["accuracy"], right)
    scores = train.validate_tokens(model, samples)
    model.requires_grad_(False)
    losses = [
        F.cross_entropy(model(tokenizer.quantizer.scale_inputs(row[None]))[0], row)
        for row in samples.tokens[:, 0].long()
    ]
    assert scores["validation_loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=1e-4)
    bits = scores["validation_loss"] / 0.693147 * samples.tokens.shape[2]
    assert scores["validation_bytes"] == pytest.approx(bits / 8, rel=1e-4)


# ---- Runs --------------------------------------------------------------------------------------------------


def test_shapes_are_learned_by_their_class(tokenizer, samples):
    classes = torch.arange(2)
    few = train.TokenDataset(samples.tokens[:2, :1], tokenizer, conditions=Condition(classes=classes))
    config = small_config(
        tokenizer,
        model={"num_classes": 2, "drop_condition": 0.0},
        steps=100,
        batch_size=2,
        learning_rate=2e-2,
        betas=(0.9, 0.95),
    )
    model = run(config, few)
    assert train.validate_tokens(model, few)["validation_loss"] < 0.1
    tokens = model.generate(tokenizer.quantizer, [0, 1], Condition(classes), sampling=Sampling(top_k=1))
    assert float((tokens == few.tokens[:, 0]).float().mean()) > 0.95


def test_a_stopped_run_goes_on_bit_for_bit(tokenizer, samples, tmp_path):
    model = {"num_classes": 2, "drop_path": 0.2}
    told = train.TokenDataset(
        samples.tokens, tokenizer, conditions=Condition(classes=torch.arange(SHAPES) % 2)
    )
    config = small_config(tokenizer, model=model, ema_decay=0.9, validate_every=6)
    whole = run(config, told, validation=samples)

    class StopError(Exception):
        pass

    def stop(step, metrics):
        if step == 6:
            raise StopError

    with pytest.raises(StopError):
        run(config, told, output_dir=tmp_path, on_step=stop)
    resumed = run(config, told, output_dir=tmp_path, validation=samples)
    assert same(resumed, whole)
    with pytest.raises(CheckpointError, match="variants"):
        run(
            small_config(tokenizer, model=model, ema_decay=0.9, validate_every=6, variants=2),
            told,
            output_dir=tmp_path,
        )
    other = train.TokenDataset(samples.tokens[:, :1], tokenizer, conditions=told.conditions)
    with pytest.raises(CheckpointError, match="other shapes"):
        run(config, other, output_dir=tmp_path)


def test_small_pieces_of_a_batch_give_the_same_gradient(tokenizer, samples):
    told = train.TokenDataset(samples.tokens, tokenizer, conditions=Condition(classes=torch.arange(SHAPES)))
    pieces = [
        run(
            small_config(
                tokenizer,
                model={"num_classes": SHAPES, "drop_condition": 0.5},
                steps=1,
                micro_batch_size=size,
            ),
            told,
        )
        for size in (None, 1)
    ]
    for a, b in zip(*(model.parameters() for model in pieces), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_configurations_survive_json_and_are_checked(tokenizer):
    for config in (
        small_config(tokenizer, scale_counts=(1, 2)),
        *map(train.recipes.get, ("vat-tiny-ar", "vat-ar")),
    ):
        assert train.config_from_dict(json.loads(json.dumps(config.to_dict()))) == config
    for changes in (
        {"variants": 0},
        {"augment": "vecset"},
        {"scale_counts": (2, 1)},
        {"scale_counts": (9,)},
        {"scale_counts": (1, 2), "scale_probabilities": (1.0,)},
    ):
        name = "scale_probabilities" if "scale_probabilities" in changes else next(iter(changes))
        with pytest.raises(ValueError, match=name):
            small_config(tokenizer, **changes)
    shipped = NextScaleTransformer(train.recipes.get("vat-tiny-ar").model)
    assert sum(parameter.numel() for parameter in shipped.parameters()) < 2_000_000
    published = train.recipes.get("vat-ar")
    assert (published.batch_size, published.learning_rate, published.betas) == (1600, 1e-4, (0.9, 0.99))
    assert published.model == NextScaleTransformer.configs["vat"]


def test_the_command(capsys, tmp_path, data, tokenizer):
    def command(*words) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        return code, *capsys.readouterr()

    tokenizer.save_pretrained(tmp_path / "tokenizer")
    words = ["train", "vat-tiny-ar", data, "-o", tmp_path / "run", "--validation", data, "--no-tensorboard"]
    for setting in (
        "model.dim=16",
        "model.depth=1",
        "model.heads=2",
        "batch_size=2",
        "scale_counts=",
        "scale_probabilities=",
    ):
        words += ["--set", setting]
    code, _, err = command(*words)
    assert code == 2
    assert "vat-tiny-ar trains a model of tokens: what makes them? --tokenizer MODEL" in err
    words += ["--tokenizer", tmp_path / "tokenizer", "--steps"]
    code, out, err = command(*words, 2)
    assert code == 0, err
    assert "NextScaleTransformer" in out
    assert "validation_bytes" in out
    model = models.load(tmp_path / "run" / "model")
    assert model.config.scales == tokenizer.quantizer.scales
    assert model.metadata.tokenizer == str(tmp_path / "tokenizer")
    assert model.metadata.tokenizer_fingerprint == tokenizer.fingerprint()
    assert sorted(path.name for path in (tmp_path / "run" / "tokens").iterdir()) == [
        "index.json",
        "tokens-00000.safetensors",
    ]
    code, _, err = command("train", "vecset-tiny", data, "-o", tmp_path / "x", "--tokenizer", "vat-tiny")
    assert code == 2
    assert "--tokenizer is of models of tokens, which vecset-tiny is none of" in err
