"""The meshes that the shipped models are trained on, as a list for `fastshape prepare`.

    pip download --no-deps pybullet==3.2.7 dm_control==1.0.50   # unpack both wheels into WHEELS
    python scripts/training_corpus.py WHEELS corpus
    fastshape prepare corpus/training.txt -o prepared --spec corpus/box.json

Three sources: pybullet's random_urdfs (zlib licence), the meshes of dm_control (Apache-2.0), and solids of
`geometry.shapes.corpus`, which are written here. Meshes with equal geometry are kept once; every fortieth is
held out for validation.
"""

from __future__ import annotations

import argparse
import hashlib
from pathlib import Path

from fastshape import geometry
from fastshape.geometry import PrepareSpec, shapes

HELD_OUT = 40  # one of so many


def signature(mesh: geometry.Mesh) -> bytes:
    """Equal for meshes with the same triangles up to place and scale, in any order of vertices."""
    normalized, _ = geometry.normalize(mesh)
    corners = normalized.vertices[normalized.faces].double()
    areas = 0.5 * (corners[:, 1] - corners[:, 0]).cross(corners[:, 2] - corners[:, 0], dim=1).norm(dim=1)
    return hashlib.sha256((areas.sort().values * 1e4).round().int().numpy().tobytes()).digest()


def find(wheels: Path, output: Path, procedural: int) -> list[Path]:
    """Every readable mesh once, in a fixed order."""
    found = sorted((wheels / "pybullet_data" / "random_urdfs").rglob("*.obj"))
    found += sorted(p for p in (wheels / "dm_control").rglob("*") if p.suffix.lower() in (".stl", ".obj"))
    for name, mesh in shapes.corpus(procedural, seed=0):
        path = output / "procedural" / f"{name}.ply"
        path.parent.mkdir(parents=True, exist_ok=True)
        geometry.save(mesh, path)
        found.append(path)
    seen, kept = set(), []
    for path in found:
        try:
            key = signature(geometry.load(path))
        except ValueError as error:
            print(f"left out: {error}")
            continue
        if key not in seen:
            seen.add(key)
            kept.append(path)
    return kept


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("wheels", type=Path, help="the folder with pybullet_data/ and dm_control/")
    parser.add_argument("output", type=Path)
    parser.add_argument("--procedural", type=int, default=900, help="solids to make; default: 900")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    paths = find(options.wheels.resolve(), options.output.resolve(), options.procedural)
    for name, part in (
        ("training", [p for i, p in enumerate(paths) if i % HELD_OUT]),
        ("validation", paths[::HELD_OUT]),
    ):
        (options.output / f"{name}.txt").write_text("".join(f"{path}\n" for path in part))
        print(f"{name}: {len(part)} meshes")
    # Of the box the Dora and VecSet models, of the ball LaGeM; distances serve all of them.
    shared = {
        "num_surface": 16384,
        "num_sharp": 8192,
        "num_volume": 30_000,
        "num_near": 40_000,
        "near_sigmas": (0.005, 0.02, 0.05),
        "num_sharp_near": 20_000,
        "sharp_sigmas": (0.005, 0.02),
        "watertight": "doubt",
        "resolution": 128,
        "labels": "sdf",
    }
    box = PrepareSpec(name="box", normalization="box", volume_bound=1.05, **shared)
    ball = PrepareSpec(name="ball", normalization="sphere", extent=0.999, volume_bound=1.0, **shared)
    for spec in (box, ball):
        (options.output / f"{spec.name}.json").write_text(spec.to_json() + "\n")


if __name__ == "__main__":
    main()
