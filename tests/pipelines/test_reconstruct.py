"""Any mesh to tokens and back, for every family: frames, inputs, tokens, seeds."""

from __future__ import annotations

import warnings

import pytest
import torch
from tiny_models import ANY_COUNT, ball, exact, tiny

from fastshape import geometry, pipelines
from fastshape.geometry import Mesh, NoSurfaceError, PrepareSpec, shapes
from fastshape.models import MODELS, CheckpointError, CheckpointMetadata, PreparationWarning
from fastshape.pipelines import decode_latents, encode_mesh, encoder_inputs, reconstruct


def far_away(mesh: Mesh) -> Mesh:
    """In another unit, off the origin, longer along y, as a file might have it."""
    stretch = torch.tensor([1.0, 1.7, 0.6], dtype=torch.float64)
    return Mesh(mesh.vertices.double() * stretch * 0.01 + torch.tensor([5.0, -3.0, 40.0]), mesh.faces)


@pytest.mark.parametrize("family", MODELS)
def test_the_result_stands_where_the_input_stood(family) -> None:
    mesh = far_away(shapes.torus(segments=48))
    stages: list[str] = []
    result = reconstruct(mesh, exact(family, mesh), resolution=64, num_samples=20_000, on_stage=stages.append)
    assert stages == list(result.seconds) == ["sample", "encode", "decode", "extract", "evaluate"]
    size = float((mesh.bounds[1] - mesh.bounds[0]).max())
    torch.testing.assert_close(result.mesh.bounds, mesh.bounds, atol=size / 64, rtol=0)
    assert result.mesh.volume == pytest.approx(mesh.volume, rel=0.05)
    # The field is the input's own distance: what is left is the lattice and the sampling.
    assert result.evaluation is not None
    values = result.evaluation.values()
    assert values["target_to_surface_mean"] < 0.004
    assert values["prediction_to_surface_mean"] < 0.004
    assert result.evaluation.scores.chamfer_l1 < 1.3 * result.evaluation.floor.chamfer_l1


@pytest.mark.parametrize("family", MODELS)
def test_encoding_and_decoding_is_reconstructing(family) -> None:
    mesh, model = far_away(shapes.knot(segments=48)), ball(family)
    count = 8 if family in ANY_COUNT else None
    whole = reconstruct(mesh, model, resolution=24, num_tokens=count, seed=3, metrics=False)
    assert whole.evaluation is None
    encoded = encode_mesh(mesh, model, num_tokens=count, seed=3)
    parts = decode_latents(encoded, model, resolution=24)
    assert torch.equal(parts.vertices, whole.mesh.vertices)
    assert torch.equal(parts.faces, whole.mesh.faces)
    assert encoded.tokens == {"LaGeM": (8, 4, 2), "VAT": (1, 4, 9, 16)}.get(family, (8,))
    assert (encoded.model, encoded.fingerprint) == (family, model.fingerprint())
    assert whole.num_tokens == sum(encoded.tokens)
    codes = 19 if family == "VAT" else 0  # 30 of 5 bits
    assert whole.num_bytes == sum(level.numel() * 4 for level in encoded.latents) + codes


@pytest.mark.parametrize("family", MODELS)
def test_the_seed_decides(family) -> None:
    model, mesh = tiny(family), shapes.torus(segments=32)
    options = {"quantize": False}  # a code may be the same for other latents
    first, second, third = (encode_mesh(mesh, model, seed=seed, **options).latents for seed in (0, 0, 1))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], third[0])
    state = torch.get_rng_state()
    encode_mesh(mesh, model, seed=4, sample_posterior=True)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is not touched


@pytest.mark.parametrize("family", MODELS)
def test_the_posterior_is_sampled_where_asked(family) -> None:
    model, mesh = tiny(family), shapes.torus(segments=32)
    mode = encode_mesh(mesh, model, quantize=False)
    drawn, again, other = (
        encode_mesh(mesh, model, sample_posterior=True, quantize=False, seed=seed) for seed in (0, 0, 1)
    )
    assert torch.equal(drawn.latents[0], again.latents[0])
    assert not torch.equal(drawn.latents[0], other.latents[0])
    # LaGeM's bottleneck has no noise: the draw is its mode.
    assert torch.equal(mode.latents[0], drawn.latents[0]) == (family == "LaGeM")
    assert (mode.sampled, drawn.sampled) == (False, True)


# ---- What the encoder is shown -----------------------------------------------------------------------------


def test_each_family_is_shown_its_own_inputs() -> None:
    mesh = far_away(shapes.make("plate"))
    generator = torch.Generator().manual_seed(0)
    found = {family: encoder_inputs(mesh, tiny(family), generator=generator) for family in MODELS}

    (points,) = found["VecSetVAE"].points
    assert points.shape == (1, 256, 3)
    torch.testing.assert_close(points.abs().max(), torch.tensor(1.0), atol=0.05, rtol=0)

    surface, sharp = found["DoraVAE"].points
    assert surface.shape == sharp.shape == (1, 256, 6)
    for cloud in (surface, sharp):
        torch.testing.assert_close(cloud[..., 3:].norm(dim=2), torch.ones(1, 256))
    assert float(surface[..., :3].abs().max()) <= 1.0
    # Sharp points lie where two faces meet: their normals are no face's.
    assert (surface[..., 3:].abs().amax(2) > 0.999).float().mean() > 0.5
    normals = found["DoraVAE"].mesh.face_normals
    assert ((sharp[0, :, 3:] @ normals.T).amax(1) < 0.99).float().mean() > 0.9

    (points,) = found["LaGeM"].points
    assert float(found["LaGeM"].mesh.vertices.norm(dim=1).max()) == pytest.approx(0.999, abs=1e-5)
    assert points.shape == (1, 256, 3)
    assert float(points.norm(dim=2).max()) <= 0.9991
    for inputs in found.values():
        torch.testing.assert_close(
            inputs.normalization.undo_mesh(inputs.mesh).bounds, mesh.bounds, atol=1e-6, rtol=0
        )


def test_the_weights_may_say_how_their_data_was_prepared() -> None:
    mesh = far_away(shapes.torus(segments=32))
    model = tiny("VecSetVAE")
    model.metadata = CheckpointMetadata(
        preparation=PrepareSpec(
            normalization="sphere", extent=0.5, num_surface=2000, oversample=6000
        ).to_dict()
    )
    (points,) = encoder_inputs(mesh, model).points
    assert points.shape == (1, 256, 3)
    assert float(points.norm(dim=2).max()) <= 0.5001
    assert float(points.norm(dim=2).max()) > 0.45

    model.metadata = CheckpointMetadata(preparation={"extent": 0.25})  # the rest is the family's
    (points,) = encoder_inputs(mesh, model).points
    assert float(points.abs().max()) == pytest.approx(0.25, abs=0.01)

    model.metadata = CheckpointMetadata(preparation={"extent": -1.0})
    with pytest.raises(CheckpointError, match="VecSetVAE: its metadata holds a bad preparation: `extent`"):
        encoder_inputs(mesh, model)


def test_sharp_settings_of_the_weights_are_used() -> None:
    mesh = shapes.make("plate")
    model = tiny("DoraVAE")
    model.metadata = CheckpointMetadata(preparation={"num_sharp": 256, "sharp_weighting": "length"})
    _, sharp = encoder_inputs(mesh, model, generator=torch.Generator().manual_seed(0)).points
    generator = torch.Generator().manual_seed(0)
    normalized, _ = geometry.normalize(mesh)
    geometry.sample_surface(normalized, 32_768, generator, oversample=200_000)
    torch.randperm(32_768, generator=generator)
    expected = geometry.sample_sharp_edges(normalized, 256, weighting="length", generator=generator)
    assert torch.equal(sharp[0, :, :3], expected.points)


def test_weights_that_knew_no_sharp_points_are_warned_about() -> None:
    model = tiny("DoraVAE")
    model.metadata = CheckpointMetadata(preparation=PrepareSpec.preset("vecset").to_dict())
    with pytest.warns(PreparationWarning, match="any num_sharp: trained with False, got True"):
        encoder_inputs(shapes.torus(segments=24), model)
    model.metadata = CheckpointMetadata(preparation=PrepareSpec.preset("dora").to_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder_inputs(shapes.torus(segments=24), model)


def test_normals_look_outward_however_the_faces_are_turned() -> None:
    mesh = shapes.torus(segments=32)
    inputs = [
        encoder_inputs(m, tiny("DoraVAE"), generator=torch.Generator().manual_seed(0)).points
        for m in (mesh, mesh.flip())
    ]
    for straight, turned in zip(*inputs, strict=True):
        # The points of a turned face are drawn with two corners exchanged: its plane is the same.
        middle = geometry.normalize(mesh)[1].apply(torch.zeros(3))
        assert middle.abs().max() < 1e-6
        for cloud in (straight, turned):
            ring = torch.nn.functional.normalize(cloud[0, :, :2], dim=1)
            center = torch.cat([ring * cloud[0, :, :2].norm(dim=1).mean(), torch.zeros(256, 1)], 1)
            outward = ((cloud[0, :, :3] - center) * cloud[0, :, 3:]).sum(1)
            assert float((outward > 0).float().mean()) > 0.9


# ---- Tokens ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "asked", "tokens"),
    [
        ("VecSetVAE", None, (16,)),
        ("VecSetVAE", 5, (5,)),
        ("VecSetVAE", [7], (7,)),
        ("VecSetVAE", 300, (300,)),  # more than there are points
        ("DoraVAE", 3, (3,)),
        ("LaGeM", None, (16, 8, 4)),
        ("LaGeM", 64, (64, 32, 16)),
        ("LaGeM", 1, (1, 1, 1)),
        ("LaGeM", (20, 5, 5), (20, 5, 5)),
    ],
)
def test_any_number_of_tokens(family, asked, tokens) -> None:
    assert encode_mesh(shapes.torus(segments=24), tiny(family), num_tokens=asked).tokens == tokens


@pytest.mark.parametrize(
    ("family", "asked", "message"),
    [
        ("VecSetVAE", 0, "`num_tokens` of VecSetVAE must be an integer of at least 1, got 0"),
        ("VecSetVAE", (4, 2), "must be an integer of at least 1, got"),
        ("DoraVAE", 1, "`num_tokens` of DoraVAE must be an integer of at least 2, got 1"),
        ("LaGeM", (4, 2), "an integer of at least 1, or 3 integers, got"),
        ("LaGeM", (4, 8, 2), "never grow from level to level"),
    ],
)
def test_impossible_numbers_of_tokens(family, asked, message) -> None:
    with pytest.raises(ValueError, match=message):
        encode_mesh(shapes.torus(segments=24), tiny(family), num_tokens=asked)


def test_learned_queries_have_one_number_of_tokens() -> None:
    model = tiny("VecSetVAE", learned_queries=True)
    assert encode_mesh(shapes.torus(segments=24), model).tokens == (16,)
    with pytest.raises(ValueError, match="`num_tokens` of VecSetVAE is always 16"):
        encode_mesh(shapes.torus(segments=24), model, num_tokens=8)


# ---- What goes wrong ---------------------------------------------------------------------------------------


def test_an_untrained_model_says_what_to_do() -> None:
    model = tiny("VecSetVAE")
    with torch.no_grad():
        model.head.to_logits.bias.fill_(-10)
    with pytest.raises(NoSurfaceError, match="train longer"):
        pipelines.reconstruct(shapes.torus(segments=24), model, resolution=16)


def test_another_model_is_refused_and_both_are_named() -> None:
    encoded = encode_mesh(shapes.torus(segments=24), tiny("VecSetVAE"))
    with pytest.raises(
        pipelines.LatentsError, match=r"made by VecSetVAE \(VecSetVAE\), the model is DoraVAE \(DoraVAE\)"
    ):
        decode_latents(encoded, tiny("DoraVAE"))
    other = tiny("VecSetVAE", seed=1)
    other.origin = "runs/other"
    with pytest.raises(pipelines.LatentsError, match=r"\(weights .{16}\), the model is runs/other \(weights"):
        decode_latents(encoded, other)
