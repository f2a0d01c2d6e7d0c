"""The structure autoencoder: parity with the official code, and what the model promises beyond it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastshape import geometry, models, ops
from fastshape.checkpoints import structure as official
from fastshape.geometry import shapes
from fastshape.losses import dice_loss, structure_loss
from fastshape.models import CheckpointError, SparseStructureVAE
from fastshape.nn import ResBlock3d, pixel_shuffle_3d
from fastshape.testing import GOLDEN_FEATURES, assert_golden, generator

# Of the published model: parameters, and how many names each half has.
OFFICIAL = (132_969_393, 74, 74)


class Golden:
    """The two golden files and our model with their parameters."""

    def __init__(self, folder: Path) -> None:
        self.encoder = load_file(folder / "ss_encoder_a.safetensors")
        self.decoder = load_file(folder / "ss_decoder_a.safetensors")
        self.states = [self.state(self.encoder), self.state(self.decoder)]
        self.model = SparseStructureVAE.from_official(*self.states)

    @staticmethod
    def state(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {k.removeprefix("state."): v for k, v in tensors.items() if k.startswith("state.")}


@pytest.fixture(scope="module")
def golden(golden_folder):
    return Golden(golden_folder)


def small_config(**changes) -> SparseStructureVAE.Config:
    sizes = {"resolution": 16, "channels": (4, 8, 12), "latent_channels": 3, "num_res_blocks": 1}
    return SparseStructureVAE.Config(**{**sizes, "num_res_blocks_middle": 1, **changes})


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return SparseStructureVAE(small_config()).eval()


def random_occupancy(batch: int, size: int = 16, seed: int = 0) -> torch.Tensor:
    return (torch.rand(batch, 1, size, size, size, generator=generator(seed)) < 0.2).float()


# ---- Parity ------------------------------------------------------------------------------------------------


def test_encoder(golden):
    tensors = golden.encoder
    occupancy = tensors["in.x"].clone().requires_grad_()
    posterior = golden.model.encode(occupancy)
    assert_golden(posterior.mean, tensors["out.mean"], GOLDEN_FEATURES)
    assert_golden(posterior.logvar, tensors["out.logvar"], GOLDEN_FEATURES)
    assert_golden(posterior.kl(), tensors["out.kl"].reshape(1), GOLDEN_FEATURES)
    latents = posterior.sample(noise=tensors["in.eps"])
    assert_golden(latents, tensors["out.z"], GOLDEN_FEATURES)
    golden.model.zero_grad()
    (latents * tensors["in.cot"]).sum().backward()
    assert_golden(occupancy.grad, tensors["grad.x"], GOLDEN_FEATURES)
    weight = golden.model.encoder.input_layer.weight
    assert_golden(weight.grad, tensors["grad.state.input_layer.weight"], GOLDEN_FEATURES)


def test_decoder(golden):
    tensors = golden.decoder
    latents = tensors["in.z"].clone().requires_grad_()
    logits = golden.model.decode(latents)
    assert_golden(logits, tensors["out.y"], GOLDEN_FEATURES)
    for kind in ("dice", "bce"):
        assert_golden(
            structure_loss(logits, tensors["in.target"], kind), tensors[f"out.{kind}"], GOLDEN_FEATURES
        )
    golden.model.zero_grad()
    (logits * tensors["in.cot"]).sum().backward()
    assert_golden(latents.grad, tensors["grad.z"], GOLDEN_FEATURES)
    weight = golden.model.decoder.input_layer.weight
    assert_golden(weight.grad, tensors["grad.state.input_layer.weight"], GOLDEN_FEATURES)


def test_pixel_shuffle(golden):
    tensors = golden.decoder
    x, expected = tensors["in.pixel_shuffle_x"], tensors["out.pixel_shuffle_y"]  # of three different sides
    assert torch.equal(pixel_shuffle_3d(x, 2), expected)
    assert torch.equal(pixel_shuffle_3d(x, 1), x)
    with pytest.raises(ValueError, match=r"`x` must have shape \(B, C \* 27, X, Y, Z\) for the factor 3"):
        pixel_shuffle_3d(x, 3)


def test_published_model_has_the_official_parameters():
    with torch.device("meta"):
        model = SparseStructureVAE(SparseStructureVAE.configs["trellis"])
    halves = [half.state_dict() for half in (model.encoder, model.decoder)]
    assert (sum(p.numel() for p in model.parameters()), *map(len, halves)) == OFFICIAL
    encoder, decoder = halves
    assert encoder["blocks.2.conv.weight"].shape == (128, 32, 2, 2, 2)
    assert encoder["out_layer.2.weight"].shape == (16, 512, 3, 3, 3)
    assert decoder["blocks.2.conv.weight"].shape == (1024, 512, 3, 3, 3)
    assert decoder["blocks.5.conv.weight"].shape == (256, 128, 3, 3, 3)
    assert decoder["out_layer.2.weight"].shape == (1, 32, 3, 3, 3)


@pytest.mark.parametrize("way", ["autocast", "half"])
@torch.no_grad()
def test_half_precision_stays_near(golden, way):
    model = SparseStructureVAE.from_official(*golden.states)
    occupancy, expected = golden.encoder["in.x"], golden.encoder["out.mean"]
    if way == "half":
        model, occupancy = model.bfloat16(), occupancy.bfloat16()
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast"):
        mean = model.encode(occupancy).mean
        logits = model.decode(golden.decoder["in.z"].to(mean.dtype))
    assert_golden(mean.float(), expected, 0.15)
    assert_golden(logits.float(), golden.decoder["out.y"], 0.15)


# ---- Verbs -------------------------------------------------------------------------------------------------


def test_forward_is_the_verbs_in_a_row(model):
    occupancy = random_occupancy(2)
    logits, posterior = model(occupancy)
    assert torch.equal(logits, model.decode(model.encode(occupancy).mode()))
    assert logits.shape == occupancy.shape
    assert posterior.mean.shape == (2, 3, 4, 4, 4)
    drawn = [model(occupancy, sample=True, generator=generator(seed)).logits for seed in (1, 1, 2)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
    each = [generator(5), generator(6)]
    pair = model(occupancy, sample=True, generator=each).logits
    alone = model(occupancy[1:], sample=True, generator=generator(6)).logits
    torch.testing.assert_close(pair[1:], alone)


@torch.no_grad()
def test_any_resolution(model):
    occupancy = torch.zeros(1, 1, 8, 12, 20)
    assert model.decode(model.encode(occupancy).mode()).shape == occupancy.shape


def test_voxels_and_back(model):
    voxels = [torch.tensor([[0, 1, 2], [15, 0, 3]]), torch.zeros(0, 3, dtype=torch.int16)]
    occupancy = model.occupancy(voxels)
    assert occupancy.shape == (2, 1, 16, 16, 16)
    assert occupancy.sum() == 2
    assert model.coords(occupancy - 0.5).tolist() == [[0, 0, 1, 2], [0, 15, 0, 3]]
    assert model.occupancy([voxels[0]], resolution=20).shape == (1, 1, 20, 20, 20)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda m: m.encode(torch.zeros(1, 16, 16, 16)),
            ValueError,
            r"`occupancy` must have shape \(B, 1, X",
        ),
        (lambda m: m.encode(torch.zeros(1, 1, 16, 16, 18)), ValueError, "must have axes in multiples of 4"),
        (lambda m: m.decode(torch.zeros(1, 4, 4, 4, 4)), ValueError, r"`latents` must have shape \(B, 3, X"),
        (lambda m: m.decode([]), TypeError, "`latents` must be a tensor, got list"),
        (lambda m: m.occupancy([torch.zeros(2, 3)]), TypeError, r"`voxels\[0\]` must hold integers"),
        (lambda m: m.occupancy([torch.zeros(2, 4).int()]), ValueError, r"must have shape \(N, 3\)"),
        (lambda m: m.occupancy([torch.full((1, 3), 16)]), ValueError, r"must lie in \[0, 16\)"),
        (lambda m: m.extract(torch.zeros(2, 1, 8, 8, 8)), ValueError, "`logits` must be of one shape"),
    ],
)
def test_wrong_inputs(model, call, error, message):
    with pytest.raises(error, match=message):
        call(model)


def test_extract_closes_shells_and_leaves_open_surfaces(model):
    vertices, faces = shapes.torus().vertices, shapes.torus().faces
    voxels = ops.voxelize_mesh(vertices.contiguous(), faces, 32)
    logits = model.occupancy([voxels], resolution=32) * 20 - 10
    mesh = model.extract(logits)
    assert mesh.is_watertight
    expected = shapes.torus()
    # Half a voxel of 1/16 outside: the volume grows by about that times the area.
    area = float(expected.area)
    grown = float(mesh.volume) - float(expected.volume)
    assert 0.4 * area / 32 < grown < 2.0 * area / 32
    hollow = model.extract(logits, fill=False)
    assert float(hollow.volume) < 0.8 * float(mesh.volume)
    # A plate has no inside: filling changes nothing.
    plate = torch.full((16, 16, 16), -1.0)
    plate[3:12, 3:12, 8] = 1.0
    assert torch.equal(model.extract(plate).vertices, model.extract(plate, fill=False).vertices)
    with pytest.raises(geometry.NoSurfaceError, match="no voxel is occupied"):
        model.extract(torch.full((8, 8, 8), -1.0))


def test_a_voxel_is_where_it_is(model):
    logits = torch.full((8, 8, 8), -20.0)
    logits[7, 0, 3] = 20.0
    mesh = model.extract(logits)
    middle = 0.5 * (mesh.vertices.amin(0) + mesh.vertices.amax(0))
    torch.testing.assert_close(middle, (torch.tensor([7.0, 0.0, 3.0]) + 0.5) / 4 - 1)
    assert mesh.volume > 0


@pytest.mark.parametrize("kind", ["dice", "bce", "l1"])
def test_loss_falls(kind):
    torch.manual_seed(0)
    model = SparseStructureVAE(small_config(resolution=8, channels=(8, 16))).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    occupancy = torch.zeros(2, 1, 8, 8, 8)
    occupancy[0, 0, 2:6, 2:6, 3] = occupancy[1, 0, 1, 1:7, 1:7] = 1.0
    losses = []
    for step in range(40):
        logits, posterior = model(occupancy, generator=generator(step))
        loss = structure_loss(logits, occupancy, kind)
        optimizer.zero_grad()
        (loss + 1e-4 * posterior.kl().mean()).backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_losses_by_hand():
    logits = torch.tensor([0.0, 0.0])
    occupied = torch.tensor([1.0, 0.0])
    assert dice_loss(logits, occupied).item() == pytest.approx(1 - (2 * 0.5 + 1) / (1 + 1 + 1))
    assert dice_loss(torch.tensor([50.0, -50.0]), occupied).item() == pytest.approx(0.0, abs=1e-6)
    assert structure_loss(logits, occupied, "l1").item() == pytest.approx(0.5)
    with pytest.raises(ValueError, match="`kind` must be one of dice, bce, l1, got 'mse'"):
        structure_loss(logits, occupied, "mse")
    with pytest.raises(ValueError, match="must have one shape"):
        dice_loss(logits, occupied[:1])


def test_a_block_starts_as_the_identity():
    x = torch.randn(1, 4, 5, 5, 5, generator=generator(0))
    assert torch.equal(ResBlock3d(4)(x), x)
    assert ResBlock3d(4, 6)(x).shape == (1, 6, 5, 5, 5)


# ---- Configuration, saving and loading ---------------------------------------------------------------------


def test_configuration_survives_json():
    for config in (*SparseStructureVAE.configs.values(), small_config(norm="layer")):
        assert SparseStructureVAE.Config.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    "changes",
    [
        {"resolution": 18},
        {"channels": ()},
        {"latent_channels": 0},
        {"num_res_blocks": -1},
        {"norm": "batch"},
        {"norm": "group"},
    ],
)
def test_configuration_is_checked(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        small_config(**changes)


def test_the_last_norm_may_be_of_groups():
    model = SparseStructureVAE(small_config(channels=(32, 64), norm="group")).eval()
    assert isinstance(model.encoder.out_layer[0], torch.nn.GroupNorm)
    assert isinstance(model.encoder.blocks[0].norm1, torch.nn.LayerNorm)  # as in the official code
    assert model(random_occupancy(1)).logits.isfinite().all()


def test_save_and_load(golden, tmp_path):
    golden.model.save_pretrained(tmp_path)
    for loaded in (SparseStructureVAE.from_pretrained(tmp_path), models.load(tmp_path)):
        assert isinstance(loaded, SparseStructureVAE)
        assert loaded.config == golden.model.config
        assert loaded.metadata == golden.model.metadata
        assert loaded.metadata.preparation["voxels"] == 64
        state = golden.model.state_dict()
        assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.state_dict().items())


# ---- Official checkpoints ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["pt", "safetensors", "half"])
def test_official_files(golden, tmp_path, layout):
    paths = []
    for name, state in zip(("enc", "dec"), golden.states, strict=True):
        path = tmp_path / f"{name}.{'pt' if layout == 'pt' else 'safetensors'}"
        if layout == "pt":
            torch.save(state, path)
        else:
            save_file({k: v.half() if layout == "half" else v for k, v in state.items()}, path)
        arguments = {"norm_type": "layer", "resolution": 32, "use_fp16": True}
        path.with_suffix(".json").write_text(json.dumps({"name": "SparseStructure", "args": arguments}))
        paths.append(path)
    loaded = SparseStructureVAE.from_official(*paths)
    assert loaded.config == small_config(resolution=32, channels=(8, 16, 24), latent_channels=4)
    assert not loaded.training
    for name, tensor in loaded.state_dict().items():
        half, _, key = name.partition(".")
        expected = golden.states[0 if half == "encoder" else 1][key]
        assert torch.equal(tensor, expected.half().float() if layout == "half" else expected)


def test_every_difference_is_listed(golden):
    encoder, decoder = (dict(state) for state in golden.states)
    del encoder["blocks.0.norm1.bias"]
    decoder["extra"] = torch.zeros(2)
    decoder["out_layer.0.weight"] = torch.zeros(5)
    with pytest.raises(CheckpointError) as caught:
        SparseStructureVAE.from_official(encoder, decoder)
    text = str(caught.value)
    assert "1 missing, 1 extra, 1 misshapen parameters; nothing was loaded" in text
    assert "missing    encoder.blocks.0.norm1.bias (8,)" in text
    assert "extra      decoder.extra (2,)" in text
    assert "decoder.out_layer.0.weight: expected (8,), found (5,)" in text


def test_halves_must_belong_together(golden):
    with pytest.raises(CheckpointError, match="is not the encoder of a structure autoencoder: it has no"):
        SparseStructureVAE.from_official({"x": torch.zeros(2)}, golden.states[1])
    wide = SparseStructureVAE(small_config(channels=(8, 16, 32), latent_channels=4)).decoder.state_dict()
    with pytest.raises(CheckpointError, match=r"channels \(8, 16, 24\) and \(8, 16, 32\)"):
        SparseStructureVAE.from_official(golden.states[0], wide)
    assert official.infer_config(golden.states[0], golden.states[1]).num_res_blocks_middle == 1
