"""Tar shards of prepared shapes: readable by tarfile and webdataset, and at random."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import pickle
import shutil
import tarfile
from pathlib import Path

import pytest
import torch

from fastshape import geometry, train
from fastshape.cli import main
from fastshape.geometry import PackedShapes, PreparedFolder, PrepareError, PrepareSpec, open_prepared, shapes
from fastshape.geometry.prepared import read_prepared
from fastshape.models import VecSetConfig
from fastshape.pipelines import pack, prepare
from fastshape.pipelines.status import read_lines

SPEC = PrepareSpec(num_surface=64, num_volume=50, num_near=40, dtype="float16")


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    (folder / "in").mkdir()
    for segments in range(8, 15):
        geometry.save(shapes.torus(segments=segments), folder / "in" / f"torus-{segments}.ply")
    prepare([folder / "in"], folder / "out", SPEC, workers=1)
    return folder / "out"


@pytest.fixture(scope="module")
def packed(prepared: Path) -> Path:
    pack(prepared, prepared.parent / "shards", shard_size=12_000)
    return prepared.parent / "shards"


def tree(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_shards_are_plain_tar_files_in_the_order_of_the_keys(prepared, packed) -> None:
    index = json.loads((packed / "index.json").read_text())
    assert index["num_samples"] == 7 == sum(shard["samples"] for shard in index["shards"])
    assert PrepareSpec.from_dict(index["spec"]) == SPEC
    names, lines = [], {line["key"]: line for line in read_lines(prepared / "index.jsonl")}
    assert len(index["shards"]) > 2
    for shard in index["shards"]:
        path = packed / shard["file"]
        assert path.stat().st_size == shard["bytes"] <= 12_000
        assert hashlib.sha256(path.read_bytes()).hexdigest() == shard["sha256"]
        with tarfile.open(path) as file:
            members = file.getmembers()
            assert len(members) == 2 * shard["samples"]
            assert all((m.mtime, m.uid, m.gid, m.mode) == (0, 0, 0, 0o644) and m.isfile() for m in members)
            for member in members:
                key, extension = member.name.split(".")
                content = file.extractfile(member).read()
                names.append(member.name)
                if extension == "json":
                    assert json.loads(content) == lines[key]
                else:
                    assert content == (prepared / lines[key]["file"]).read_bytes()
    assert names == [f"{key}.{extension}" for key in sorted(lines) for extension in ("json", "safetensors")]


@pytest.mark.skipif(importlib.util.find_spec("webdataset") is None, reason="webdataset is not installed")
def test_webdataset_reads_the_shards(packed) -> None:
    import webdataset

    urls = [str(path) for path in sorted(packed.glob("*.tar"))]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == PackedShapes(packed).keys
    for sample, expected in zip(samples, PackedShapes(packed), strict=True):
        assert json.loads(sample["json"])["key"] == sample["__key__"]
        assert torch.equal(read_prepared(sample["safetensors"])["near_points"], expected["near_points"])


def test_a_folder_and_its_shards_read_alike(prepared, packed) -> None:
    folder, shards = open_prepared(prepared), open_prepared(packed)
    assert isinstance(folder, PreparedFolder)
    assert isinstance(shards, PackedShapes)
    assert folder.keys == shards.keys
    assert folder.spec == shards.spec == SPEC
    assert folder.fingerprint == shards.fingerprint
    for a, b in zip(folder, pickle.loads(pickle.dumps(shards)), strict=True):
        assert a.metadata == b.metadata
        assert a.keys() == b.keys()
        assert all(torch.equal(a[name], b[name]) for name in a)
    assert torch.equal(shards[-1]["near_sdf"], folder[6]["near_sdf"])
    assert [s.metadata["key"] for s in shards[2:4]] == shards.keys[2:4]
    with pytest.raises(IndexError):
        shards[7]


def test_packing_again_gives_the_same_bytes_and_leaves_nothing_of_another_packing(
    prepared, packed, tmp_path
) -> None:
    pack(prepared, tmp_path / "a", shard_size=5_000)
    assert len(list((tmp_path / "a").glob("*.tar"))) == 7
    done = []
    report = pack(prepared, tmp_path / "a", shard_size=12_000, on_sample=lambda *count: done.append(count))
    assert tree(tmp_path / "a") == tree(packed)
    assert (report.num_samples, report.num_shards) == (7, len(list(packed.glob("*.tar"))))
    assert done[-1] == (7, 7)
    assert main(["pack", str(prepared), "-o", str(tmp_path / "b"), "--shard-size", "12000"]) == 0
    assert tree(tmp_path / "b") == tree(packed)


def test_what_is_wrong_is_said(prepared, packed, tmp_path, capsys) -> None:
    assert main(["pack", str(tmp_path / "none"), "-o", str(tmp_path / "x")]) == 2
    assert "no spec.json, so this is not a folder of prepared shapes" in capsys.readouterr().err
    shutil.copytree(prepared, tmp_path / "unfinished", ignore=shutil.ignore_patterns("index.jsonl"))
    with pytest.raises(PrepareError, match=r"no index\.jsonl; it is written when a run"):
        PreparedFolder(tmp_path / "unfinished")
    with pytest.raises(PrepareError, match=r"no index\.json, so this is not a folder of shards"):
        PackedShapes(tmp_path)
    shutil.copytree(prepared, tmp_path / "changed")
    victim = next((tmp_path / "changed").glob("??/*"))
    victim.write_bytes(victim.read_bytes()[:-1] + b"!")
    with pytest.raises(PrepareError, match="is not the file that was prepared"):
        pack(tmp_path / "changed", tmp_path / "y")
    assert not (tmp_path / "y" / "index.json").exists()
    shutil.copytree(packed, tmp_path / "cut")
    last = sorted((tmp_path / "cut").glob("*.tar"))[-1]
    last.write_bytes(last.read_bytes()[:600])
    shards = PackedShapes(tmp_path / "cut")
    assert len(shards[0]) > 0
    with pytest.raises(PrepareError, match="ends before its sample"):
        shards[-1]
    last.unlink()
    with pytest.raises(PrepareError, match="cannot be read"):
        shards[-1]


def test_training_reads_folders_and_shards(prepared, packed, tmp_path) -> None:
    datasets = [train.ShapeDataset(prepared), train.ShapeDataset(packed, cache=2)]
    sample = datasets[0][3]
    source = open_prepared(prepared)[3]
    assert sample.surface.dtype == torch.float32
    assert torch.equal(sample.inside("near"), source["near_sdf"] < 0)
    assert torch.equal(sample.volume, source["volume_points"].float())
    assert sample.fingerprint() == train.ShapeSamples.from_prepared(source).fingerprint()
    model = VecSetConfig(
        dim=8, depth=1, heads=1, head_dim=8, num_latents=4, num_inputs=16, latent_dim=4, drop_path=0.0
    )
    config = train.TrainConfig(model=model, steps=2, batch_size=3, volume_queries=8, near_queries=8)
    batches = [train.sample_batch(dataset, config, 5) for dataset in datasets]
    assert torch.equal(batches[0].queries, batches[1].queries)
    assert torch.equal(batches[0].labels, batches[1].labels)
    # Three ranks see together what one process sees.
    parts = [train.sample_batch(datasets[1], config, 5, rank=rank, world_size=3) for rank in range(3)]
    assert torch.equal(torch.cat([part.queries for part in parts]), batches[0].queries)
    train.fit(config, datasets[1], output_dir=tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "model" / "config.json").exists()
    # The same data from the other place: the checkpoint fits.
    train.fit(config, datasets[0], output_dir=tmp_path / "run", progress=False)
