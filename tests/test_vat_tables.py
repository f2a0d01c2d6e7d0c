"""The scripts that measure tokenizers: what they write, that they go on, and that their scores are right."""

from __future__ import annotations

import csv
import dataclasses
import importlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType

import pytest
import torch
from tiny_models import ball, tiny

from fastshape import geometry, pipelines, train
from fastshape.geometry import shapes
from fastshape.models import VAT, NextScaleConfig, NextScaleTransformer

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
if not SCRIPTS.is_dir():
    pytest.skip("the scripts are not part of an installed package", allow_module_level=True)
pytest.importorskip("PIL")


@pytest.fixture(scope="module")
def tables() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPTS)
        module = importlib.import_module("vat_tables")
        patch.setattr(module, "NUM_QUERIES", 1000)
        patch.setattr(module, "NUM_NEAR", 250)
        yield module


@pytest.fixture
def model(tables, monkeypatch) -> VAT:
    """Has learned a ball; every name loads it."""
    model = ball("VAT")
    assert isinstance(model, VAT)
    monkeypatch.setattr(tables.models, "load", lambda name, kind, device: model)
    return model


@pytest.fixture
def meshes(tmp_path) -> Path:
    folder = tmp_path / "meshes"
    folder.mkdir()
    geometry.save(shapes.torus(segments=24), folder / "torus.ply")
    geometry.save(shapes.knot(segments=48), folder / "knot.ply")
    geometry.save(shapes.half_pipe(), folder / "open.ply")  # not taken
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_the_curve_has_a_line_for_each_scale_and_goes_on(
    tables, model, meshes, tmp_path, capsys, monkeypatch
):
    words = ["curve", "a-model", "--meshes", str(meshes), "-o", str(tmp_path / "curve")]
    words += ["--resolution", "16", "--samples", "500"]
    tables.main(words)
    rows = rows_of(tmp_path / "curve.csv")
    count = len(model.config.all_scales)
    assert [(row["mesh"], int(row["scales"])) for row in rows] == [
        (name, scales) for name in ("knot", "torus") for scales in range(count + 1)
    ]
    for before, after in pairwise(rows):
        if int(after["scales"]) > 1:
            assert int(before["bytes"]) < int(after["bytes"])
            assert float(before["ratio"]) > float(after["ratio"])
    assert all(0 < float(row["iou"]) < 1 and float(row["chamfer_l1"]) > 0 for row in rows)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    out = capsys.readouterr().out
    assert "cross-scale" in out
    assert "floor" in out

    # What was measured is not measured again, and a run that was cut off goes on.
    (tmp_path / "curve.csv").write_bytes(
        b"".join((tmp_path / "curve.csv").read_bytes().splitlines(keepends=True)[: count + 2])
    )
    asked = []
    measure = tables.measure
    monkeypatch.setattr(
        tables, "measure", lambda path, *rest: asked.append(path.stem) or measure(path, *rest)
    )
    tables.main(words)
    assert asked == ["torus"]
    assert rows_of(tmp_path / "curve.csv") == rows


def test_a_model_without_a_surface_has_no_distance(tables, model, meshes, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "_field", lambda points, context: torch.full(points.shape[:2], -1.0))
    (line, *_) = tables.measure(meshes / "torus.ply", geometry.load(meshes / "torus.ply"), model, 16, 200)
    assert (line.faces, line.fscore_01, line.chamfer_l1, line.iou) == (0, 0.0, None, 0.0)
    assert line.chamfer_l1_floor > 0


def test_latents_are_decoded_as_they_are(tables, model, meshes):
    codes, latents = tables.encoded_twice(geometry.load(meshes / "torus.ply"), model)
    exact = latents.latents[0].float()
    assert torch.equal(tables.decoded(latents, model)[0], model.decode(exact, quantize=False)[0])
    assert not torch.equal(tables.decoded(latents, model)[0], tables.decoded(codes, model)[0])
    assert [tables.label(name) for name in ("vat-tiny", "runs/a/model", "model")] == [
        "vat-tiny",
        "a",
        "model",
    ]


def test_scores_by_hand(tables, model):
    """A ball of radius 0.7, about, and points that are known to be in it or not."""
    points = torch.tensor([[0.0, 0, 0], [0.5, 0, 0], [0, 0.9, 0], [0, 0, 1.0]])
    features = model.decode_tokens(torch.zeros(1, sum(model.config.all_scales), dtype=torch.int64))
    inside = torch.tensor([True, False, True, False])
    scores = tables.agreement(model, features, points, inside, slice(0, 1))
    assert scores == {"accuracy": 0.5, "iou": pytest.approx(1 / 3), "near_accuracy": 1.0}


def test_usage(tables, model, meshes, tmp_path):
    tables.main(["usage", "a-model", "--meshes", str(meshes), "-o", str(tmp_path / "usage")])
    rows = rows_of(tmp_path / "usage.csv")
    assert [int(row["tokens"]) for row in rows] == list(model.config.all_scales)
    for row in rows:
        assert int(row["tokens_seen"]) == 2 * int(row["tokens"])
        assert 1 <= float(row["perplexity_seen"]) <= int(row["codes_seen"]) + 1e-3
    assert (tmp_path / "usage.png").is_file()


def test_the_histogram_is_a_density(tables, model, meshes, tmp_path):
    tables.main(["histogram", "a-model", "--meshes", str(meshes), "-o", str(tmp_path / "histogram")])
    rows = rows_of(tmp_path / "histogram.csv")
    width = float(rows[1]["value"]) - float(rows[0]["value"])
    for name in rows[0]:
        if name != "value":
            assert sum(float(row[name]) for row in rows) * width == pytest.approx(1.0, abs=0.01), name
    values = 2.0 + torch.randn(100_000, generator=torch.Generator().manual_seed(0))
    found = tables.moments("a", "before", values)
    for name, expected in (("mean", 2.0), ("deviation", 1.0), ("skewness", 0.0), ("excess_kurtosis", 0.0)):
        assert found[name] == pytest.approx(expected, abs=0.05)
    assert (tmp_path / "histogram.png").is_file()


def test_a_generator_completes_the_first_scales(tables, model, meshes, tmp_path, monkeypatch):
    torch.manual_seed(0)
    config = NextScaleConfig(dim=16, depth=1, heads=2, **train.token_fields(model))
    generator = NextScaleTransformer(config).eval()
    monkeypatch.setattr(tables.models, "load", lambda name, kind, device: generator)
    monkeypatch.setattr(tables.pipelines, "load_tokenizer", lambda given, path: model)
    words = ["complete", "a-generator", "--meshes", str(meshes), "-o", str(tmp_path / "complete")]
    tables.main([*words, "--resolution", "16", "--samples", "500", "--given", "2", "4"])
    rows = rows_of(tmp_path / "complete.csv")
    assert [(row["codes"], row["given"]) for row in rows] == [
        ("all, true", "4"),
        ("these alone", "2"),
        ("completed", "2"),
        ("these alone", "4"),
        ("completed", "4"),
    ]
    scores = [[row[name] for name in tables.COMPLETED] for row in rows]
    assert scores[0] == scores[3] == scores[4]  # nothing is left to say
    codes = tables.pipelines.encode_mesh(geometry.load(meshes / "torus.ply"), model)
    whole = tables.completed(codes, generator, model, 2, seed=0).codes
    assert whole.num_scales == 4
    assert torch.equal(whole.codes[:5], codes.codes.codes[:5])


def test_pictures_of_the_first_scales(tables, model, meshes, tmp_path):
    output = tmp_path / "scales.png"
    tables.main(
        [
            "scales",
            "a-model",
            str(meshes / "torus.ply"),
            "-o",
            str(output),
            "--resolution",
            "16",
            "--size",
            "40",
        ]
    )
    image = importlib.import_module("PIL.Image").open(output)
    assert image.width > 40 * (1 + len(model.config.all_scales))


def test_ablations_train_each_variant_once(tables, tmp_path, monkeypatch, capsys):
    ablations = importlib.import_module("vat_ablations")
    queries = {"volume_queries": 64, "near_queries": 64, "sharp_near_queries": 0}
    recipe = dataclasses.replace(
        train.recipes.get("vat-tiny"), model=tiny("VAT", plane_size=4).config, batch_size=1, **queries
    )
    small = {"num_latents": 16}
    cut = {name: {k: {**v, **small} for k, v in ablations.TABLES[name].items()} for name in ("4", "5")}
    monkeypatch.setattr(ablations, "TABLES", cut)
    monkeypatch.setattr(ablations.train.recipes, "get", lambda name: recipe)
    spec = geometry.PrepareSpec.preset("vat", num_surface=300, num_volume=300, num_near=300, labels="sdf")
    spec = dataclasses.replace(spec, extent=1.0, volume_bound=1.0)
    shape = train.ShapeSamples.from_prepared(geometry.prepare(shapes.torus(segments=24), spec))
    monkeypatch.setattr(ablations.train, "ShapeDataset", lambda path: [shape])
    words = ["data", "--validation", "held-out", "-o", str(tmp_path), "--steps", "2"]
    ablations.main(words)
    rows = rows_of(tmp_path / "tables.csv")
    assert [(row["table"], row["variant"]) for row in rows] == [
        ("4", "cross-attention"),
        ("4", "triplane"),
        ("5", "pooling"),
        ("5", "Q-Former"),
        ("5", "in context"),
    ]
    assert all(0 <= float(row["cs_iou"]) <= 1 for row in rows)
    assert rows[1]["iou"] == rows[4]["iou"]
    runs = sorted(path.name for path in tmp_path.iterdir() if path.is_dir())
    assert runs == [
        "compression=pooling,num_latents=16",
        "compression=qformer,num_latents=16",
        "decoder=cross,num_latents=16",
        "num_latents=16",
    ]
    monkeypatch.setattr(ablations.train, "fit", None)  # everything is known
    ablations.main(words)
    assert rows_of(tmp_path / "tables.csv") == rows
    assert "in context" in capsys.readouterr().out


def test_ablations_give_the_variants_of_table_3_generators(tables, tmp_path, monkeypatch, capsys):
    ablations = importlib.import_module("vat_ablations")
    monkeypatch.setattr(ablations, "TABLES", {"3": {"none": {"noise": False}, "VVQ": {}}})
    generator = train.recipes.get("vat-tiny-ar")
    small = dataclasses.replace(generator.model, dim=16, depth=1, heads=2)
    recipes = {
        "vat-tiny-ar": dataclasses.replace(generator, model=small),
        "vat-tiny": dataclasses.replace(
            train.recipes.get("vat-tiny"),
            model=tiny("VAT", plane_size=4).config,
            batch_size=2,
            **{"volume_queries": 32, "near_queries": 32, "sharp_near_queries": 0},
        ),
    }
    monkeypatch.setattr(ablations.train.recipes, "get", recipes.__getitem__)
    for name in ("data", "held-out"):
        (tmp_path / name / "in").mkdir(parents=True)
        geometry.save(shapes.torus(segments=24), tmp_path / name / "in" / "torus.ply")
        spec = geometry.PrepareSpec.preset("vat", num_surface=300, num_volume=90, num_near=90, labels="sdf")
        spec = dataclasses.replace(spec, extent=1.0, volume_bound=1.0)
        pipelines.prepare([tmp_path / name / "in"], tmp_path / name / "out", spec, workers=1)
    words = [str(tmp_path / "data" / "out"), "--validation", str(tmp_path / "held-out" / "out")]
    words += ["-o", str(tmp_path / "runs"), "--steps", "2", "--generator-steps", "2"]
    ablations.main(words)
    rows = rows_of(tmp_path / "runs" / "tables.csv")
    assert [row["variant"] for row in rows] == ["none", "VVQ"]
    for row in rows:
        assert all(0 <= float(row[name]) <= 1 for name in ablations.GENERATED if name != "nats")
        assert float(row["nats"]) > 0
    monkeypatch.setattr(ablations.train, "fit", None)  # everything is known
    ablations.main(words)
    assert rows_of(tmp_path / "runs" / "tables.csv") == rows
    assert "completed_iou" in capsys.readouterr().out
