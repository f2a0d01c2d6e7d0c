"""Thirty ways in which an input can be bad, each with the one answer it gets.

An error is a `MeshError` (for checkpoints a `CheckpointError`) that names the file; what is no error comes
out as is said here, with a note of what was changed or found.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mesh_files import CUBE_QUADS, CUBE_VERTICES, TRIANGLE, cube, obj, off, ply, refused, saved, write
from safetensors.torch import load_file, save_file

from fastshape import geometry
from fastshape.checkpoints.reading import read_state
from fastshape.geometry import Mesh, MeshError, load, normalize, save, signed_distance
from fastshape.geometry.maps import surface_maps
from fastshape.models import CheckpointError, VecSetVAE

ROWS: dict[int, tuple[str, Callable[[Path], None]]] = {}


def row(number: int, name: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    def add(check: Callable[[Path], None]) -> Callable[[Path], None]:
        assert number not in ROWS
        ROWS[number] = name, check
        return check

    return add


def distance(mesh: Mesh, *points: tuple[float, float, float]) -> list[float]:
    return signed_distance(mesh, torch.tensor(points, dtype=torch.float64)).tolist()


def moved(vertices, shift) -> list[tuple[float, ...]]:
    return [tuple(np.add(vertex, shift)) for vertex in vertices]


def two_cubes(shift, scale=1.0, turned=False) -> str:
    second = moved(np.multiply(CUBE_VERTICES, scale), shift)
    quads = [[i + 8 for i in (reversed(quad) if turned else quad)] for quad in CUBE_QUADS]
    return obj([*CUBE_VERTICES, *second], [*CUBE_QUADS, *quads])


# --------------------------------------------------------------------------------------------- files


@row(1, "empty file")
def _(folder: Path) -> None:
    for extension in ("obj", "ply", "stl", "off", "glb", "gltf", "3mf"):
        refused(write(folder, f"a.{extension}", ""), "file is empty")
        refused(write(folder, f"a.{extension}", " \n\n"), "file is empty")
    refused(write(folder, "a.obj", "# nothing\n"), "no vertices and no faces")
    refused(write(folder, "a.off", "OFF\n0 0 0\n"), "no vertices and no faces")


@row(2, "NaN or infinite vertex")
def _(folder: Path) -> None:
    for value in ("nan", "inf", "-inf", "1e999"):
        path = write(folder, "a.obj", obj([*TRIANGLE, (value, 0, 0)], [(0, 1, 2), (1, 2, 3)]))
        refused(path, "1 vertices of 1 faces are NaN or infinite; `drop_invalid=True` drops those faces")
        mesh = load(path, drop_invalid=True)
        assert mesh.num_faces == 1
        assert mesh.notes[0] == "1 vertices of 1 faces are NaN or infinite: faces dropped"
    for encoding in ("ascii", "binary_little_endian"):
        path = write(folder, "a.ply", ply([*TRIANGLE[:2], (0, float("nan"), 0)], [(0, 1, 2)], encoding))
        refused(path, "1 vertices of 1 faces are NaN or infinite")
        refused(path, "no valid face is left", drop_invalid=True)
    mesh = load(write(folder, "b.obj", obj([*TRIANGLE, ("nan", 0, 0)], [(0, 1, 2)])))
    assert mesh.notes[0] == "1 unused vertices dropped"


@row(3, "face index out of range")
def _(folder: Path) -> None:
    message = "face 1 has the vertex index 7, expected 0 to 2"
    faces = [(0, 1, 2), (0, 1, 7)]
    refused(write(folder, "a.obj", obj(TRIANGLE, faces)), message)
    refused(write(folder, "a.off", off(TRIANGLE, faces)), message)
    for encoding in ("ascii", "binary_little_endian", "binary_big_endian"):
        refused(write(folder, "a.ply", ply(TRIANGLE, faces, encoding)), message)
    many = "f 1 2 99999999999999999999\n"
    refused(write(folder, "b.obj", obj(TRIANGLE, []) + many), "line 4: expected integers")


@row(4, "negative index")
def _(folder: Path) -> None:
    for encoding in ("ascii", "binary_little_endian"):
        path = write(folder, "a.ply", ply(TRIANGLE, [(0, 1, -1)], encoding))
        refused(path, "face 0 has the vertex index -1, expected 0 to 2")
    refused(write(folder, "a.off", off(TRIANGLE, [(0, 1, -1)])), "face 0 has the vertex index -1")
    refused(write(folder, "a.obj", obj(TRIANGLE, []) + "f 0 1 2\n"), "line 4: vertices are counted from 1")
    refused(write(folder, "a.obj", obj(TRIANGLE, []) + "f 1 2 -4\n"), "face 0 has the vertex index -1")
    mesh = load(write(folder, "b.obj", obj(TRIANGLE, []) + "f -3 -2 -1\nv 9 9 9\n"))  # legal in OBJ
    assert mesh.faces.tolist() == [[0, 1, 2]]


@row(5, "single triangle, plane")
def _(folder: Path) -> None:
    mesh = load(write(folder, "a.obj", obj(TRIANGLE, [(0, 1, 2)])))
    assert mesh.notes == ("3 edges of one face only: the surface is open",)
    assert (mesh.area, mesh.volume) == (0.5, 0.0)
    normalized, _ = normalize(mesh)
    assert normalized.bounds.tolist() == [[-1, -1, 0], [1, 1, 0]]
    assert geometry.sample_surface(normalized, 10).normals.tolist() == [[0, 0, 1]] * 10
    assert distance(mesh, (0.2, 0.2, 0.5), (0.2, 0.2, -0.5)) == [0.5, 0.5]
    both = load(write(folder, "b.obj", obj(TRIANGLE, [(0, 1, 2), (0, 2, 1)])))  # seen from both sides
    assert (both.num_faces, both.notes) == (2, ())


@row(6, "no area, all points equal")
def _(folder: Path) -> None:
    refused(write(folder, "a.obj", obj([(1, 2, 3)] * 3, [(0, 1, 2)])), "no surface area")
    line = [(0, 0, 0), (1, 1, 1), (2, 2, 2)]
    refused(write(folder, "a.ply", ply(line, [(0, 1, 2)])), "no surface area")
    wide = [(-1.7e308, 0, 0), (1.7e308, 0, 0), (0, 1e308, 0)]
    refused(write(folder, "b.obj", obj(wide, [(0, 1, 2)])), "no surface area")


@row(7, "soup of triangles")
def _(folder: Path) -> None:
    corners = cube().triangles.reshape(-1, 3).tolist()
    mesh = load(write(folder, "a.obj", obj(corners, np.arange(36).reshape(12, 3))))
    assert (mesh.num_vertices, mesh.num_faces, mesh.is_watertight) == (8, 12, True)
    assert mesh.notes == ("28 repeated vertices merged",)
    assert load(write(folder, "a.stl", saved(folder, "b.stl"))).notes == ()  # nothing else is possible there
    zeros = obj([*TRIANGLE, ("-0.0", "-0", 0), (1, 0, 0), (0, 0, 1)], [(0, 1, 2), (3, 5, 4)])
    assert load(write(folder, "c.obj", zeros)).notes[0] == "2 repeated vertices merged"  # -0 is 0


@row(8, "duplicated faces")
def _(folder: Path) -> None:
    mesh = load(write(folder, "a.obj", obj(CUBE_VERTICES, [*CUBE_QUADS, *CUBE_QUADS])))
    assert (mesh.num_faces, mesh.volume, mesh.is_watertight) == (12, pytest.approx(1), True)
    assert mesh.notes == ("12 duplicate faces dropped",)
    turned = load(write(folder, "b.obj", obj(TRIANGLE, [(0, 1, 2), (1, 2, 0)])))
    assert (turned.num_faces, turned.notes[0]) == (1, "1 duplicate faces dropped")


def scene(folder: Path, *matrices: np.ndarray) -> Path:
    trimesh = pytest.importorskip("trimesh")
    made = trimesh.Scene()
    for matrix in matrices:
        made.add_geometry(
            trimesh.Trimesh(cube().vertices.numpy(), cube().faces.numpy(), process=False), transform=matrix
        )
    return write(folder, "scene.glb", made.export(file_type="glb"))


@row(9, "scene with transforms")
def _(folder: Path) -> None:
    turn = np.array([[0, -2.0, 0, 5], [2, 0, 0, 0], [0, 0, 2, 0], [0, 0, 0, 1]])
    mesh = load(scene(folder, np.eye(4), turn))
    assert mesh.volume == pytest.approx(1 + 8)
    torch.testing.assert_close(mesh.bounds, torch.tensor([[0, 0, 0], [5, 2, 2]], dtype=torch.float64))


def any_unit(folder: Path, scale: float) -> None:
    vertices = np.array(CUBE_VERTICES) * scale
    files = [
        write(folder, "a.obj", obj(vertices, CUBE_QUADS)),
        write(folder, "a.off", off(vertices, CUBE_QUADS)),
    ]
    files.append(write(folder, "a.ply", ply(vertices, CUBE_QUADS, "binary_little_endian")))
    for name in ("b.stl", "b.glb", "b.ply", "b.3mf"):
        saved(folder, name, Mesh(cube().vertices * scale, cube().faces))
        files.append(folder / name)
    for path in files:
        mesh = load(path)
        assert mesh.is_watertight
        assert mesh.notes == ()
        normalized, normalization = normalize(mesh)
        assert normalized.volume == pytest.approx(8)
        torch.testing.assert_close(normalization.undo_mesh(normalized).vertices, mesh.vertices)


@row(10, "coordinates of 1e20")
def _(folder: Path) -> None:
    any_unit(folder, 1e20)


@row(11, "coordinates of 1e-12")
def _(folder: Path) -> None:
    any_unit(folder, 1e-12)
    any_unit(folder, 1e-30)


@row(12, "a small object far away")
def _(folder: Path) -> None:
    mesh = Mesh(cube().vertices * 1e-3 + 1e6, cube().faces)
    for name in ("a.obj", "a.ply", "a.off", "a.3mf"):
        save(mesh, folder / name)
        read = load(folder / name)
        assert torch.equal(read.triangles, mesh.triangles)
        normalized, _ = normalize(read)
        assert normalized.vertices.dtype == torch.float32
        torch.testing.assert_close(normalized.triangles, cube().triangles.float() * 2 - 1, atol=1e-6, rtol=0)


@row(13, "millimeters or meters")
def _(folder: Path) -> None:
    solid = Mesh(torch.tensor([[0.0, 0, 0], [3, 0, 0], [0, 2, 0], [0, 0, 1]]).double(), cube().faces[:0])
    solid = Mesh(solid.vertices, torch.tensor([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))
    reference, _ = normalize(solid)
    for scale in (1e-3, 1.0, 1e3):
        mesh = Mesh(solid.vertices * scale + 10 * scale, solid.faces)
        normalized, normalization = normalize(mesh)
        torch.testing.assert_close(normalized.vertices, reference.vertices, atol=1e-6, rtol=0)
        for extension in ("obj", "ply", "stl", "off", "glb", "3mf"):
            save(normalization.undo_mesh(normalized), folder / f"a.{extension}")
            torch.testing.assert_close(
                load(folder / f"a.{extension}").triangles, mesh.triangles, rtol=0, atol=1e-5 * scale
            )


@row(14, "points or lines only")
def _(folder: Path) -> None:
    message = "a point cloud of 3 points; read it with geometry.load_points"
    for encoding in ("ascii", "binary_little_endian"):
        refused(write(folder, "a.ply", ply(TRIANGLE, [], encoding)), message)
    refused(write(folder, "a.obj", obj(TRIANGLE, [])), message)
    refused(write(folder, "a.off", off(TRIANGLE, [])), message)
    refused(write(folder, "b.obj", obj(TRIANGLE, []) + "l 1 2\nl 2 3\n"), "got 3 points and 2 lines")
    empty = {"asset": {"version": "2.0"}, "scenes": [{"nodes": []}], "scene": 0, "nodes": [], "meshes": []}
    refused(write(folder, "a.gltf", json.dumps(empty)), "expected triangles, got an empty scene")


@row(15, "not the STL file it says it is")
def _(folder: Path) -> None:
    whole = saved(folder, "cube.stl")
    refused(write(folder, "a.stl", whole[:-60]), "10 triangles read, file says 12: truncated")
    lying = bytes(80) + struct.pack("<I", 4_000_000_000)
    refused(write(folder, "a.stl", lying), "0 triangles read, file says 4000000000")
    refused(write(folder, "a.stl", lying + whole[84:]), "12 triangles read, file says 4000000000")
    less = whole[:80] + struct.pack("<I", 5) + whole[84:]
    refused(write(folder, "a.stl", less), "12 triangles read, file says 5: a wrong count")
    refused(write(folder, "a.stl", bytes(84)), "0 triangles read, file says 0")
    refused(write(folder, "a.stl", bytes(50)), "0 triangles read, file says 0")
    refused(write(folder, "a.stl", b"\x89PNG\r\n" + bytes(range(256)) * 2), "not STL at all")
    refused(write(folder, "a.stl", "solid a\nendsolid a\n"), "ASCII STL file without a facet")
    begun = "solid a\nfacet normal 0 0 1\nouter loop\nvertex 0 0 0\n"
    refused(write(folder, "a.stl", begun), "0 triangles read, 1 begun")


@row(16, "truncated PLY or GLB")
def _(folder: Path) -> None:
    binary, text = saved(folder, "cube.ply"), ply(CUBE_VERTICES, CUBE_QUADS)
    refused(write(folder, "a.ply", binary[:-20]), "10 of 12 'face' read: a truncated PLY file")
    refused(write(folder, "a.ply", binary[:-200]), "6 of 8 'vertex' read: a truncated PLY file")
    refused(write(folder, "a.ply", text[:-12]), "5 of 6 'face' read: a truncated PLY file")
    refused(write(folder, "a.ply", text[:-3]), "line 23: too few numbers for an element 'face'")
    refused(write(folder, "a.ply", text[:100]), "expected a PLY header from 'ply' to 'end_header'")
    assert load(write(folder, "a.ply", binary + b"extra")).notes == (
        "5 bytes after the last element ignored",
    )
    glb = saved(folder, "cube.glb")
    for size in (4, 11, 12, 30, len(glb) // 2, len(glb) - 1):
        refused(
            write(folder, "a.glb", glb[:size]),
            "GLB" if size > 11 else "expected a file that starts with glTF",
        )
    garbage = b"glTF" + struct.pack("<II", 2, 40) + struct.pack("<I", 20) + b"JSON" + b"{not json at all    "
    refused(write(folder, "a.glb", garbage), "not a readable GLB file")
    refused(write(folder, "a.gltf", "{}"), "")


@row(17, "quads and concave polygons")
def _(folder: Path) -> None:
    quads = load(write(folder, "cube.obj", obj(CUBE_VERTICES, CUBE_QUADS)))
    assert (quads.num_faces, quads.volume, quads.notes) == (12, pytest.approx(1), ())
    pentagon = [(0, 0, 0), (2, 0, 0), (2, 2, 0), (1, 0.5, 0), (0, 2, 0)]
    for turn in range(5):
        corners = pentagon[turn:] + pentagon[:turn]
        for name, content in (("a.obj", obj(corners, [range(5)])), ("a.ply", ply(corners, [range(5)]))):
            mesh = load(write(folder, name, content))
            assert mesh.area == pytest.approx(2.5)
            assert mesh.notes[0] == "1 concave polygons cut by ear clipping"
    dart = [(0, 0, 0), (2, 1, 0), (0, 2, 0), (0.5, 1, 0)]
    for turn in range(4):
        mesh = load(write(folder, "b.obj", obj(dart[turn:] + dart[:turn], [range(4)])))
        assert mesh.area == pytest.approx(1.5)


@row(18, "OFF with faces of more than four vertices")
def _(folder: Path) -> None:
    angle = np.arange(7) * (2 * np.pi / 7)
    ring = np.stack([np.cos(angle), np.sin(angle), 0 * angle], 1).tolist()
    mesh = load(write(folder, "a.off", off([*ring, (0, 0, 1)], [range(6, -1, -1), (0, 1, 7), (1, 2, 7)])))
    assert mesh.num_faces == 5 + 2
    assert mesh.area > 3.5 * np.sin(2 * np.pi / 7)


@row(19, "edge of three faces")
def _(folder: Path) -> None:
    fins = obj([*TRIANGLE, (0, 0, 1), (0, 0, -1)], [(0, 1, 2), (0, 1, 3), (0, 1, 4)])
    mesh = load(write(folder, "a.obj", fins))
    assert mesh.num_faces == 3
    assert mesh.notes == ("6 edges of one face only: the surface is open", "1 edges of more than two faces")
    assert distance(mesh, (0.5, -1, 0)) == [1]
    tent = obj([*CUBE_VERTICES, (0.5, 0.5, 2)], [*CUBE_QUADS, (1, 7, 8)])
    mesh = load(write(folder, "b.obj", tent))
    assert distance(mesh, (0.5, 0.5, 0.5)) == [-0.5]


@row(20, "all faces inside out")
def _(folder: Path) -> None:
    mesh = load(write(folder, "a.obj", obj(CUBE_VERTICES, [quad[::-1] for quad in CUBE_QUADS])))
    assert mesh.notes == ("inside out: the closed surface has a negative volume",)
    assert mesh.volume == pytest.approx(-1)  # as in the file
    assert distance(mesh, (0.5, 0.5, 0.5), (2, 0.5, 0.5)) == [-0.5, 1]
    turned = geometry.orient(mesh)
    assert turned.volume == pytest.approx(1)
    assert turned.notes[-1] == "12 faces turned over"
    assert geometry.orient(cube()) is not None
    assert geometry.orient(cube()).notes == ()


@row(21, "mixed winding")
def _(folder: Path) -> None:
    quads = [CUBE_QUADS[0][::-1], *CUBE_QUADS[1:5], CUBE_QUADS[5][::-1]]
    mesh = load(write(folder, "a.obj", obj(CUBE_VERTICES, quads)))
    assert mesh.notes == ("6 edges whose two faces are turned differently",)
    assert not mesh.is_watertight
    assert distance(mesh, (0.5, 0.5, 0.5), (2, 0.5, 0.5)) == [-0.5, 1]
    turned = geometry.orient(mesh)
    assert (turned.is_watertight, turned.volume) == (True, pytest.approx(1))
    assert turned.notes[-1] == "4 faces turned over"


@row(22, "overlapping and nested parts")
def _(folder: Path) -> None:
    overlap = load(write(folder, "a.obj", two_cubes((0.5, 0.5, 0.5))))  # counts as the union
    points = [(0.25, 0.25, 0.25), (0.75, 0.75, 0.75), (1.25, 1.25, 1.25), (1.25, 0.25, 0.25)]
    assert [value < 0 for value in distance(overlap, *points)] == [True, True, True, False]
    middle, wall = (0.5, 0.5, 0.5), (0.1, 0.5, 0.5)
    solid = load(write(folder, "b.obj", two_cubes((0.25, 0.25, 0.25), 0.5)))  # turned alike: solid
    assert [value < 0 for value in distance(solid, middle, wall)] == [True, True]
    hollow = load(write(folder, "c.obj", two_cubes((0.25, 0.25, 0.25), 0.5, turned=True)))  # a cavity
    assert [value < 0 for value in distance(hollow, middle, wall)] == [False, True]


@row(23, "open box")
def _(folder: Path) -> None:
    mesh = load(write(folder, "a.obj", obj(CUBE_VERTICES, CUBE_QUADS[:5])))
    assert mesh.notes == ("4 edges of one face only: the surface is open",)
    result, doubt = signed_distance(mesh, torch.rand(2000, 3).double(), return_quality=True)
    assert doubt > 0.01  # the sign that an open surface has no clear inside
    assert distance(mesh, (0.5, 0.5, 0.3), (0.5, 0.5, -2)) == [-0.3, 2]
    assert result.isfinite().all()


@row(24, "stray vertex far away")
def _(folder: Path) -> None:
    vertices = [*CUBE_VERTICES, (1e6, 0, 0), (5, 5, 5)]
    for name, content in (("a.obj", obj(vertices, CUBE_QUADS)), ("a.ply", ply(vertices, CUBE_QUADS))):
        mesh = load(write(folder, name, content))
        assert mesh.notes == ("2 unused vertices dropped",)
        assert mesh.bounds.tolist() == [[0, 0, 0], [1, 1, 1]]
    solid = Mesh(cube().vertices, cube().faces.contiguous())
    stray = Mesh(torch.tensor(vertices, dtype=torch.float64), solid.faces)  # not from a file
    assert normalize(stray)[1].scale == 2
    assert stray.bounds.tolist() == [[0, 0, 0], [1, 1, 1]]
    for draw in (
        lambda mesh: geometry.render(mesh, size=16, occlusion=0),
        lambda mesh: geometry.orbit(mesh, frames=1, size=16, elevation=20.0).pictures,
        lambda mesh: surface_maps(mesh, size=16).normals,
    ):
        assert torch.equal(draw(stray), draw(solid))
    assert geometry.sharp_normal_error(solid, stray, views=2, size=32) == 0


@row(25, "wrong or unknown extension, no file, a directory")
def _(folder: Path) -> None:
    refused(write(folder, "a.fbx", "0 0 0"), "got the extension '.fbx'")
    refused(write(folder, "mesh", "0 0 0"), "got the extension ''")
    refused(folder / "none.obj", "no such file")
    refused(folder / "none" / "none.obj", "no such file")
    (folder / "folder.obj").mkdir()
    refused(folder / "folder.obj", "got a directory")
    stl, text = saved(folder, "cube.stl"), obj(CUBE_VERTICES, CUBE_QUADS)
    refused(write(folder, "a.obj", stl), "expected the text of an OBJ file, got binary data")
    refused(write(folder, "a.ply", stl), "expected a PLY header")
    refused(write(folder, "a.off", text), "expected a file that starts with OFF, got 'v'")
    refused(write(folder, "a.glb", stl), "expected a file that starts with glTF")
    refused(write(folder, "a.stl", text), "not STL at all")
    if hasattr(os, "mkfifo"):
        os.mkfifo(folder / "pipe.obj")
        refused(folder / "pipe.obj", "got a device or pipe")


@row(26, "mirrored or singular scene transform")
def _(folder: Path) -> None:
    mirror = np.diag([-1.0, 1, 1, 1])
    mirror[0, 3] = 9
    mirrored = load(scene(folder, np.eye(4), mirror))
    assert mirrored.volume == pytest.approx(2)
    assert mirrored.notes == ()
    refused(scene(folder, np.eye(4), np.diag([1.0, 1, 0, 1])), "has determinant 0: it flattens the mesh")
    small = load(scene(folder, np.diag([1e-12, 1e-12, 1e-12, 1])))  # small is not singular
    assert small.is_watertight


@row(27, "degenerate faces")
def _(folder: Path) -> None:
    mesh = load(write(folder, "a.obj", obj(CUBE_VERTICES, [*CUBE_QUADS, (0, 0, 1), (2, 2, 2)])))
    assert mesh.notes == ("2 degenerate faces dropped",)
    assert mesh.is_watertight
    same = load(write(folder, "b.obj", obj([*CUBE_VERTICES, (0, 0, 0)], [*CUBE_QUADS, (0, 8, 1)])))
    assert same.notes == ("1 repeated vertices merged", "1 degenerate faces dropped")
    refused(write(folder, "c.obj", obj(TRIANGLE, [(0, 1)])), "line 4: a face needs three vertices")
    refused(write(folder, "c.ply", ply(TRIANGLE, [(0, 1)])), "no valid face is left")
    mixed = load(write(folder, "d.ply", ply(TRIANGLE, [(0, 1), (0, 1, 2)])))
    assert mixed.notes[0] == "1 faces with fewer than three corners dropped"


STL_TEXT = "solid a\nfacet normal 0 0 1\nouter loop\n{}endloop\nendfacet\nendsolid"


@row(28, "numbers that are none, counts that are wrong")
def _(folder: Path) -> None:
    comma = "expected numbers, got '0,5 0 0' (a decimal comma?)"
    refused(write(folder, "a.obj", "v 0,5 0 0\n"), f"line 1: {comma}")
    refused(write(folder, "a.off", "OFF\n1 0 0\n\n0,5 0 0\n"), f"line 4: {comma}")
    refused(
        write(folder, "a.ply", ply([("0,5", 0, 0)], [])),
        "line 10: expected numbers, got '0,5' (a decimal comma?)",
    )
    refused(
        write(folder, "a.stl", STL_TEXT.format("vertex 0 0 0\n" * 2 + "vertex 0,5 0 0\n")), f"line 6: {comma}"
    )
    refused(write(folder, "a.obj", "v 0 1\n"), "line 1: expected 'v x y z'")
    refused(write(folder, "a.obj", "v 1_0 0 0\n"), "line 1: expected numbers")
    counts = "the header says 3 vertices and {} faces"
    triangle = "0 0 0\n1 0 0\n0 1 0\n3 0 1 2\n"
    refused(write(folder, "a.off", f"OFF\n3 2 0\n{triangle}"), f"4 rows read, {counts.format(2)}")
    refused(write(folder, "a.off", f"OFF\n3 0 0\n{triangle}"), f"line 6: 4 rows read, {counts.format(0)}")
    refused(write(folder, "a.off", f"OFF\n-3 1 0\n{triangle}"), "the header says -3 vertices")
    refused(write(folder, "a.off", "OFF\nmany 1 0\n"), "line 2: expected integers, got 'many 1'")
    refused(write(folder, "a.off", "OFF"), "expected the numbers of vertices and faces after OFF")
    refused(write(folder, "a.off", "OFF BINARY\n"), "binary OFF files are not supported")
    refused(write(folder, "a.off", triangle), "expected a file that starts with OFF, got '0'")
    short = "OFF\n3 1 0\n0 0 0\n1 0 0\n0 1 0\n3 0 1\n"
    refused(write(folder, "a.off", short), "line 6: expected a count and so many indices")
    more = ply(TRIANGLE, [(0, 1, 2)]) + b"3 0 1 2\n"
    refused(write(folder, "a.ply", more), "line 14: more rows than the header's 3 'vertex' and 1 'face'")
    refused(write(folder, "a.ply", ply(TRIANGLE, []).replace(b"ascii", b"roman")), "expected a PLY format")
    many = b"ply\nformat ascii 1.0\nelement vertex many\nend_header\n"
    refused(write(folder, "a.ply", many), "line 3: not a PLY header line")
    refused(write(folder, "a.ply", b"ply\nformat ascii 1.0\nend_header\n"), "expected an element 'vertex'")


@row(29, "ten million faces")
def _(folder: Path) -> None:
    for extension in ("obj", "ply", "stl", "off", "glb", "3mf"):
        path = folder / f"cube.{extension}"
        save(cube(), path)
        refused(path, "are more than `max_faces` = 11; simplify the mesh", max_faces=11)
        assert load(path, max_faces=12).num_faces == 12
    # What the header says decides before anything else is read: these bodies would be refused for themselves.
    header = ply(TRIANGLE, []).replace(b"element face 0", b"element face 10000000")
    refused(write(folder, "a.ply", header), "10000000 faces in its header are more", max_faces=10**6)
    refused(write(folder, "a.ply", header), "0 of 10000000 'face' read")
    binary = header.replace(b"ascii", b"binary_little_endian")
    refused(write(folder, "a.ply", binary), "10000000 faces in its header are more", max_faces=10**6)
    stl = bytes(80) + struct.pack("<I", 10**7) + bytes(50)
    refused(write(folder, "a.stl", stl), "10000000 faces in its header are more", max_faces=10**6)
    refused(write(folder, "a.off", "OFF # c\n# c\n3 10000000 0\n"), "10000000 faces in its", max_faces=10**6)
    # A header that says less than there is does not help either.
    fan = [(np.cos(i), np.sin(i), 0) for i in range(200)]
    refused(write(folder, "b.ply", ply(fan, [range(200)])), "198 triangles are more", max_faces=100)
    facets = STL_TEXT.format("vertex 0 0 0\nvertex 1 0 0\nvertex 0 1 0\n")
    assert load(write(folder, "c.stl", facets), max_faces=1).num_faces == 1


# --------------------------------------------------------------------------------------- checkpoints


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("executed",)


@row(30, "checkpoints")
def _(folder: Path) -> None:
    torch.manual_seed(0)
    config = VecSetVAE.Config(dim=32, depth=1, heads=2, head_dim=16, num_latents=8, latent_dim=4)
    model = VecSetVAE(config).eval()
    weights, description = folder / "model.safetensors", folder / "config.json"
    model.save_pretrained(folder)
    good = load_file(weights)
    name = "layers.0.attention.norm.weight"

    def rejected(state: dict[str, torch.Tensor], *messages: str) -> None:
        save_file(state, weights)
        with pytest.raises(CheckpointError) as caught:
            VecSetVAE.from_pretrained(folder)
        for message in (str(weights), *messages):
            assert message in str(caught.value)

    # Missing, extra and misshapen keys: all of them listed, nothing loaded in part.
    rejected({k: v for k, v in good.items() if k != name}, f"missing    {name} (32,)", "nothing was loaded")
    rejected(good | {"extra": torch.zeros(2)}, "extra      extra (2,)")
    rejected(good | {name: torch.zeros(31)}, f"misshapen  {name}: expected (32,), found (31,)")
    rejected({k: v for k, v in good.items() if k != name} | {"extra": torch.zeros(2)}, "1 missing, 1 extra")
    rejected({f"ema.{k}": v for k, v in good.items()}, f"{len(good)} missing, {len(good)} extra")

    # Other number types: halves are widened, integers are no weights.
    save_file({k: v.half() for k, v in good.items()}, weights)
    loaded = VecSetVAE.from_pretrained(folder).state_dict()
    assert all(torch.equal(loaded[k], v.half().float()) for k, v in good.items())
    rejected(good | {name: torch.ones(32, dtype=torch.int64)}, f"mistyped   {name}: torch.int64")

    # Truncated, or something else.
    model.save_pretrained(folder)
    data = weights.read_bytes()
    for damaged in (b"", data[:7], data[:200], data[:-1], b"\xff" * 400, data + b"x"):
        weights.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=f"{weights} is damaged"):
            VecSetVAE.from_pretrained(folder)
    model.save_pretrained(folder)
    for changes, message in (
        ({"format_version": 99}, "format version 99; this release reads 1 to"),
        ({"format_version": 0}, "format version 0; this release reads"),
        ({"model": "Other"}, "describes a Other, not a VecSetVAE"),
        ({"config": {"width": 1}}, "has no field width"),
        ({"config": [1]}, "bad configuration"),
    ):
        about = json.loads(description.read_text())
        description.write_text(json.dumps(about | changes))
        with pytest.raises(CheckpointError, match=message):
            VecSetVAE.from_pretrained(folder)
        description.write_text(json.dumps(about))
    older = json.loads(description.read_text())
    del older["config"]["drop_path"]  # a field that came later has its default
    description.write_text(json.dumps(older))
    assert VecSetVAE.from_pretrained(folder).config == config

    # Other repositories' files: no code is run; wrappers and the prefix of data parallel come off.
    state = {"a.weight": torch.ones(2)}
    for content in (state, {"model": state}, {"module.a.weight": torch.ones(2)}, {"state_dict": state}):
        torch.save(content, folder / "a.pth")
        assert list(read_state(folder / "a.pth")[0]) == ["a.weight"]
    torch.save({"model": state, "args": argparse.Namespace(lr=1)}, folder / "a.pth")
    assert list(read_state(folder / "a.pth")[0]) == ["a.weight"]
    bombs = (pickle.dumps(Bomb(), 2), pickle.dumps({"model": state, "x": Bomb()}, 2), b"", b"not a pickle")
    for bomb in bombs:
        (folder / "a.pth").write_bytes(bomb)
        with pytest.raises(CheckpointError, match=r"a\.pth is damaged or not a torch checkpoint"):
            read_state(folder / "a.pth")
    torch.save({"model": Bomb()}, folder / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth is damaged or not a torch checkpoint"):
        read_state(folder / "a.pth")
    assert not Path("executed").exists()
    torch.save({"ema": state, "step": 3}, folder / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth holds no parameters: .* pass one of 'ema'"):
        read_state(folder / "a.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        read_state(folder / "none.pth")


def test_all_thirty_are_here() -> None:
    assert sorted(ROWS) == list(range(1, 31))


@pytest.mark.parametrize("number", sorted(ROWS), ids=lambda n: f"{n:02d} {ROWS[n][0]}")
def test_bad_input(number: int, tmp_path: Path) -> None:
    ROWS[number][1](tmp_path)


# ------------------------------------------------------------------------------------------- damage by chance


@pytest.mark.parametrize("extension", ["obj", "ply", "stl", "off", "glb", "3mf"])
def test_damaged_files_end_in_a_mesh_or_a_mesh_error(tmp_path: Path, extension: str) -> None:
    data = saved(tmp_path, f"a.{extension}")
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(data[: rng.integers(len(data))] if rng.random() < 0.3 else data)
        for _ in range(rng.integers(5) if damaged else 0):
            damaged[rng.integers(min(len(damaged), 400))] = rng.integers(256)
        try:
            load(write(tmp_path, f"b.{extension}", bytes(damaged)))
            outcomes.add("mesh")
        except MeshError as error:
            assert "\n" not in str(error)  # noqa: PT017
            outcomes.add("error")
    assert "error" in outcomes
