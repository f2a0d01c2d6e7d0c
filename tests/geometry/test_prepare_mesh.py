"""The pure function behind `fastshape prepare`, and its specification."""

from __future__ import annotations

import json

import pytest
import torch

from fastshape import geometry, testing
from fastshape.geometry import DistanceField, Mesh, PrepareSpec, normalize, shapes
from fastshape.models.pretrained import read_safetensors, safetensors_bytes

SPEC = PrepareSpec(surface=300, volume=400, near=500)


@pytest.fixture(scope="module")
def ball() -> Mesh:
    vertices, faces = testing.icosphere(4, radius=3.0)
    return Mesh(vertices + 5.0, faces, ("a note",))


def test_what_is_asked_for_is_there(ball) -> None:
    prepared = geometry.prepare(ball, SPEC)
    assert {name: tuple(tensor.shape) for name, tensor in prepared.items()} == {
        "surface_points": (300, 3),
        "surface_normals": (300, 3),
        "volume_points": (400, 3),
        "volume_sdf": (400,),
        "near_points": (500, 3),
        "near_sdf": (500,),
    }
    assert all(tensor.dtype == torch.float32 for tensor in prepared.values())
    radius = prepared["surface_points"].norm(dim=1)
    assert radius.min() > 0.99
    torch.testing.assert_close(
        prepared["surface_normals"], prepared["surface_points"] / radius[:, None], atol=0.1, rtol=0
    )
    for name in ("volume", "near"):
        expected = prepared[f"{name}_points"].norm(dim=1) - 1
        torch.testing.assert_close(prepared[f"{name}_sdf"], expected, atol=0.01, rtol=0)
    metadata = {name: json.loads(value) for name, value in prepared.metadata.items() if name not in _WORDS}
    assert metadata["center"] == pytest.approx([5, 5, 5])
    assert metadata["scale"] == pytest.approx(1 / 3)
    assert metadata["notes"] == ["a note"]
    assert metadata["doubt"] == 0
    assert metadata["spec"] == SPEC.to_dict()
    assert prepared.metadata["spec_hash"] == SPEC.hash


_WORDS = ("spec_hash", "fastshape")


def test_the_same_bytes_with_any_number_of_threads_and_other_bytes_for_another_mesh(ball) -> None:
    def data(mesh: Mesh = ball, **changes: object) -> bytes:
        prepared = geometry.prepare(
            mesh, PrepareSpec(**{"surface": 3000, "volume": 3000, "near": 3000, **changes})
        )
        return safetensors_bytes(prepared, prepared.metadata)

    first = data()
    torch.manual_seed(7)
    with testing.num_threads(1):
        assert data() == first
    with testing.num_threads(3):
        assert data() == first
    assert data(seed=1) != first
    volume = geometry.prepare(ball, SPEC)["volume_points"]
    assert not torch.equal(volume, geometry.prepare(shapes.torus(), SPEC)["volume_points"])


def test_half_precision_labels_the_points_that_are_stored(ball) -> None:
    prepared = geometry.prepare(ball, PrepareSpec(surface=10, volume=200, near=200, dtype="float16"))
    assert all(tensor.dtype == torch.float16 for tensor in prepared.values())
    field = DistanceField(normalize(ball)[0])
    for name in ("volume", "near"):
        exact = field(prepared[f"{name}_points"].float())
        assert torch.equal(prepared[f"{name}_sdf"], exact.half())
    occupancy = geometry.prepare(ball, PrepareSpec(surface=0, volume=200, near=0, labels="occupancy"))
    assert occupancy.keys() == {"volume_points", "volume_occupancy"}
    assert torch.equal(occupancy["volume_occupancy"], field.inside(occupancy["volume_points"]))


def test_doubt_is_stored() -> None:
    assert json.loads(geometry.prepare(shapes.half_pipe(), SPEC).metadata["doubt"]) > 0.01


@pytest.mark.parametrize("name", ["dora", "vecset", "lagem", "vat"])
def test_specifications_survive_json(name) -> None:
    spec = PrepareSpec.preset(name, seed=3)
    assert spec.name == name
    assert PrepareSpec.from_json(spec.to_json()) == spec
    assert PrepareSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.hash == PrepareSpec.from_json(spec.to_json()).hash != PrepareSpec.preset(name).hash


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"near": -1}, ValueError, "`near` must be at least 0, got -1"),
        ({"near": 1.5}, TypeError, "`near` must be an integer, got 1.5"),
        ({"near": True}, TypeError, "`near` must be an integer, got True"),
        ({"surface": 0, "volume": 0, "near": 0}, ValueError, "without any points"),
        ({"volume_bound": float("nan")}, ValueError, "`volume_bound` must be positive and finite"),
        ({"near_sigmas": ()}, ValueError, "`near_sigmas` must not be empty"),
        ({"near_sigmas": (-1.0,)}, ValueError, "`near_sigmas` must be finite and at least 0"),
        ({"near_sigmas": 0.1}, TypeError, "`near_sigmas` must be a tuple of numbers"),
        ({"dtype": "int8"}, ValueError, "`dtype` must be one of float32, float16, got 'int8'"),
        ({"labels": 3}, TypeError, "`labels` must be a word"),
        ({"colour": 3}, ValueError, "there is no field 'colour' in a specification; there are name"),
    ],
)
def test_a_bad_field_is_one_clear_error(fields, error, message) -> None:
    with pytest.raises(error, match=message.replace("(", r"\(")):
        PrepareSpec.preset("vecset", **fields)


def test_other_versions_and_names_are_refused() -> None:
    with pytest.raises(ValueError, match="has version 99; this release has"):
        PrepareSpec.from_dict({**SPEC.to_dict(), "version": 99})
    with pytest.raises(ValueError, match="there is no preset 'nobody'; there are"):
        PrepareSpec.preset("nobody")
    with pytest.raises(ValueError, match="must be a JSON object"):
        PrepareSpec.from_json("[]")


def test_the_bytes_of_a_file_do_not_depend_on_the_order(tmp_path) -> None:
    tensors = {
        "b": torch.arange(3),
        "a": torch.rand(2, 3),
        "c": torch.tensor([True]),
        "d": torch.rand(0, 3).half(),
    }
    metadata = {name: f"value of {name} \N{SNOWMAN}" for name in "qwertyuiop"}
    data = safetensors_bytes(tensors, metadata)
    assert data == safetensors_bytes(dict(reversed(tensors.items())), dict(reversed(metadata.items())))
    (tmp_path / "file.safetensors").write_bytes(data)
    read, read_metadata = read_safetensors(tmp_path / "file.safetensors")
    assert read_metadata == metadata
    assert read.keys() == tensors.keys()
    assert all(
        torch.equal(read[name], tensors[name]) and read[name].dtype == tensors[name].dtype for name in read
    )
    with pytest.raises(TypeError, match=r"`a` has dtype torch\.complex64"):
        safetensors_bytes({"a": torch.zeros(1, dtype=torch.complex64)})
