"""The pure function behind `fastshape prepare`, and its specification."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from fastshape import geometry, testing
from fastshape.geometry import DistanceField, Mesh, Prepared, PrepareSpec, normalize, shapes
from fastshape.geometry.prepared import labeled_queries
from fastshape.runtime.files import read_safetensors, safetensors_bytes

SPEC = PrepareSpec(num_surface=300, num_volume=400, num_near=500)


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
            mesh, PrepareSpec(**{"num_surface": 3000, "num_volume": 3000, "num_near": 3000, **changes})
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
    prepared = geometry.prepare(
        ball, PrepareSpec(num_surface=10, num_volume=200, num_near=200, dtype="float16")
    )
    assert all(tensor.dtype == torch.float16 for tensor in prepared.values())
    field = DistanceField(normalize(ball)[0])
    for name in ("volume", "near"):
        exact = field(prepared[f"{name}_points"].float())
        assert torch.equal(prepared[f"{name}_sdf"], exact.half())
    occupancy = geometry.prepare(
        ball, PrepareSpec(num_surface=0, num_volume=200, num_near=0, labels="occupancy")
    )
    assert occupancy.keys() == {"volume_points", "volume_occupancy"}
    assert torch.equal(occupancy["volume_occupancy"], field.inside(occupancy["volume_points"]))


def test_sharp_edges_have_points_normals_and_queries() -> None:
    cube = Mesh(*_CUBE)
    spec = PrepareSpec.preset(
        "dora", num_surface=64, oversample=256, num_sharp=100, num_volume=50, num_near=60, num_sharp_near=80
    )
    prepared = geometry.prepare(cube, spec)
    assert {name: len(tensor) for name, tensor in prepared.items() if name.endswith("points")} == {
        "surface_points": 64,
        "sharp_points": 100,
        "volume_points": 50,
        "near_points": 60,
        "sharp_near_points": 80,
    }
    assert (prepared["sharp_points"].abs().sort(dim=1).values[:, 1:] == 1).all()
    torch.testing.assert_close(prepared["sharp_normals"].norm(dim=1), torch.ones(100))
    distance = prepared["sharp_near_points"].abs().amax(1) - 1
    inside = distance < 0
    torch.testing.assert_close(prepared["sharp_near_sdf"][inside], distance[inside])
    assert json.loads(prepared.metadata["salient_edges"]) == 12
    assert prepared["volume_points"].abs().max() <= 1.05
    ball = PrepareSpec.preset("lagem", num_surface=10, num_volume=1000, num_near=10)
    prepared = geometry.prepare(cube, ball)
    assert prepared["surface_points"].norm(dim=1).max() <= 1
    assert 1.2 < prepared["volume_points"].norm(dim=1).max() <= 3**0.5
    assert prepared["volume_occupancy"].float().mean() == pytest.approx(
        (2 / 3**0.5) ** 3 / (4 / 3 * 3.1416 * 3**1.5), abs=0.02
    )


_CUBE = (
    torch.tensor([[float(n >> 2 & 1), float(n >> 1 & 1), float(n & 1)] for n in range(8)]),
    torch.tensor(
        [
            0,
            1,
            3,
            0,
            3,
            2,
            4,
            6,
            7,
            4,
            7,
            5,
            0,
            4,
            5,
            0,
            5,
            1,
            2,
            3,
            7,
            2,
            7,
            6,
            0,
            2,
            6,
            0,
            6,
            4,
            1,
            5,
            7,
            1,
            7,
            3,
        ]
    ).view(12, 3),
)


def test_a_mesh_without_a_clear_inside_is_made_watertight_first() -> None:
    pipe = shapes.half_pipe()
    options = {"num_surface": 100, "num_volume": 500, "num_near": 500, "resolution": 32}
    left = geometry.prepare(pipe, PrepareSpec(watertight="none", **options))
    assert json.loads(left.metadata["doubt"]) > 0.01
    assert json.loads(left.metadata["epsilon"]) == 0
    assert "watertight" not in left.metadata
    made = geometry.prepare(pipe, PrepareSpec(num_sharp=50, **options))
    report = json.loads(made.metadata["watertight"])
    assert report["method"] == "shell"
    assert "seconds" not in report
    assert json.loads(made.metadata["input_doubt"]) == json.loads(left.metadata["doubt"])
    assert json.loads(made.metadata["doubt"]) < 0.01
    epsilon = json.loads(made.metadata["epsilon"])
    assert epsilon == pytest.approx(2 / 32)
    field = DistanceField(normalize(pipe)[0])
    for name in ("surface", "sharp"):
        distance = field.unsigned(made[f"{name}_points"])
        torch.testing.assert_close(distance, torch.full_like(distance, epsilon), atol=0.025, rtol=0)
    # The same mesh and specification, the same bytes, through the repair too.
    again = geometry.prepare(pipe, PrepareSpec(num_sharp=50, **options))
    assert safetensors_bytes(made, made.metadata) == safetensors_bytes(again, again.metadata)
    clear = geometry.prepare(shapes.torus(), PrepareSpec(**options))
    assert "watertight" not in clear.metadata
    forced = geometry.prepare(shapes.torus(), PrepareSpec(**{**options, "watertight": "shell"}))
    assert json.loads(forced.metadata["epsilon"]) == pytest.approx(2 / 32)
    assert forced["surface_points"].abs().max() > 1


@pytest.mark.parametrize("name", ["dora", "vecset", "lagem", "vat", "hunyuan"])
def test_specifications_survive_json(name) -> None:
    spec = PrepareSpec.preset(name, seed=3)
    assert spec.name == name
    assert PrepareSpec.from_json(spec.to_json()) == spec
    assert PrepareSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert spec.hash == PrepareSpec.from_json(spec.to_json()).hash != PrepareSpec.preset(name).hash


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"num_near": -1}, ValueError, "`num_near` must be at least 0, got -1"),
        ({"num_near": 1.5}, TypeError, "`num_near` must be an integer, got 1.5"),
        ({"num_near": True}, TypeError, "`num_near` must be an integer, got True"),
        ({"num_surface": 0, "num_volume": 0, "num_near": 0}, ValueError, "without any points"),
        ({"volume_bound": float("nan")}, ValueError, "`volume_bound` must be positive and finite"),
        ({"near_sigmas": ()}, ValueError, "`near_sigmas` must not be empty"),
        ({"near_sigmas": (-1.0,)}, ValueError, "`near_sigmas` must be finite and at least 0"),
        ({"near_sigmas": 0.1}, TypeError, "`near_sigmas` must be a tuple of numbers"),
        ({"extent": 0.0}, ValueError, "`extent` must be positive and finite"),
        ({"sharp_angle": 200.0}, ValueError, r"`sharp_angle` must lie in 0\.\.180 degrees"),
        ({"oversample": 5}, ValueError, "`oversample` must be at least `num_surface` = 100000, got 5"),
        ({"oversample": 0.5}, TypeError, "`oversample` must be an integer or None, got 0.5"),
        ({"num_sharp_near": 5}, ValueError, "`sharp_sigmas` must not be empty where `num_sharp_near`"),
        ({"watertight": "maybe"}, ValueError, "`watertight` must be one of none, doubt, auto"),
        ({"epsilon": 0.001}, ValueError, "`epsilon` must lie between"),
        ({"resolution": 4}, ValueError, "`resolution` must be at least 8, got 4"),
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


_HASHES = """
import hashlib, json
from fastshape import geometry
from fastshape.geometry import PrepareSpec, shapes
from fastshape.runtime.files import safetensors_bytes
for mesh in (shapes.gear(), shapes.half_pipe()):
    for preset in ("dora", "lagem"):
        spec = PrepareSpec.preset(
            preset, num_surface=2000, oversample=4000, num_sharp=1000, num_volume=3000, num_near=3000,
            num_sharp_near=2000, sharp_sigmas=(0.005, 0.05), resolution=48,
        )
        prepared = geometry.prepare(mesh, spec)
        print(hashlib.sha256(safetensors_bytes(prepared, prepared.metadata)).hexdigest())
"""


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_the_processor() -> None:
    """As far as one machine can tell: torch without its vector code, ours without vector instructions."""
    found = set()
    for capability, ours in (("default", "portable"), ("avx2", "portable"), ("avx512", "")):
        code = f"from fastshape import _C\n_C.set_instruction_set({ours!r})\n{_HASHES}" if ours else _HASHES
        environment = {**os.environ, "ATEN_CPU_CAPABILITY": capability}
        result = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        found.add(result.stdout)
        assert len(result.stdout.split()) == 4
    assert len(found) == 1


def test_a_contact_sheet_has_a_tile_for_each_shape(tmp_path) -> None:
    image = pytest.importorskip("PIL.Image")
    spec = PrepareSpec(num_surface=500, num_volume=0, num_near=0)
    prepared = [geometry.prepare(shapes.torus(segments=16 + n), spec) for n in range(3)]
    without = geometry.prepare(
        shapes.torus(segments=16), PrepareSpec(num_surface=0, num_volume=9, num_near=0)
    )
    assert geometry.contact_sheet([*prepared, without], tmp_path / "sheet.png", columns=3, size=40) == 4
    with image.open(tmp_path / "sheet.png") as picture:
        pixels = torch.from_numpy(np.array(picture.convert("L")))
    drawn = [(pixels[y : y + 40, x : x + 40] < 250).float().mean() for y in (0, 40) for x in (0, 40, 80)]
    assert all(0.1 < share < 0.9 for share in drawn[:3])
    assert drawn[3:] == [0, 0, 0]
    with pytest.raises(ValueError, match="no shapes to draw"):
        geometry.contact_sheet([], tmp_path / "sheet.png")


def test_the_sign_survives_half_precision_and_the_surface_itself() -> None:
    box = shapes.plate()
    points = torch.cat([geometry.sample_surface(box, 200).points, box.vertices.float()])
    field = DistanceField(box)
    distances = field(points).half()
    assert bool((distances == 0).any())
    tiny = torch.tensor([-1e-9, 1e-9]).half()
    prepared = Prepared({"near_points": torch.zeros(2, 3), "near_sdf": tiny}, {})
    assert labeled_queries(prepared, "near")[1].tolist() == [True, False]
    prepared = Prepared({"near_points": points, "near_sdf": distances}, {})
    assert torch.equal(labeled_queries(prepared, "near")[1], field.inside(points))
