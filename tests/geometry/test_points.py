"""Point clouds: read as such, checked, written, and made to the count that an encoder asks for."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mesh_files import TRIANGLE, cube, obj, off, ply, saved, write

from fastshape.geometry import MeshError, PointCloud, load_points, normalize, sample_surface, save_points
from fastshape.testing import generator, random_points

EXTENSIONS = ("ply", "obj", "off", "xyz", "txt", "pts", "npy", "npz")


def cloud(count: int = 50, dtype: torch.dtype = torch.float64) -> PointCloud:
    samples = sample_surface(cube(), count, generator(0))
    directions = torch.nn.functional.normalize(random_points(count, seed=1, dtype=torch.float64), dim=1)
    return PointCloud(samples.points.to(dtype), directions.to(dtype))


def rows(*tables) -> str:
    return "".join(" ".join(map(str, row)) + "\n" for row in np.concatenate(tables, 1).tolist())


def refused(path: Path, message: str, **options) -> None:
    with pytest.raises(MeshError) as caught:
        load_points(path, **options)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------------------------------- what is read


@pytest.mark.parametrize("extension", EXTENSIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("with_normals", [False, True])
def test_round_trip(tmp_path: Path, extension: str, dtype: torch.dtype, with_normals: bool) -> None:
    given = cloud(dtype=dtype)
    given = given if with_normals else PointCloud(given.points + (1e6 if dtype == torch.float64 else 8))
    save_points(given, tmp_path / f"a.{extension}")
    again = load_points(tmp_path / f"a.{extension}")
    assert again.points.dtype == torch.float64
    assert torch.equal(again.points.to(dtype), given.points)
    assert again.notes == ()
    if with_normals:
        torch.testing.assert_close(again.normals, given.normals.double(), atol=1e-6, rtol=0)
    else:
        assert again.normals is None


def test_ply_with_colors_and_other_elements(tmp_path: Path) -> None:
    text = (
        "ply\nformat ascii 1.0\nelement vertex 2\nproperty uchar red\nproperty float x\nproperty float y\n"
        "property float z\nproperty float nx\nproperty float ny\nproperty float nz\nelement face 0\n"
        "property list uchar int vertex_indices\nend_header\n255 0 0 0 0 0 1\n0 1 0 0 0 -1 0\n"
    )
    read = load_points(write(tmp_path, "a.ply", text))
    assert read.points.tolist() == [[0, 0, 0], [1, 0, 0]]
    assert read.normals is not None
    assert read.normals.tolist() == [[0, 0, 1], [0, -1, 0]]


@pytest.mark.parametrize("separator", [" ", ",", ", ", "\t", " , "])
def test_text_rows(tmp_path: Path, separator: str) -> None:
    text = "# x y z\n// by hand\n\n" + "".join(
        separator.join(map(str, row)) + "\n" for row in [(0, 0, 0.5), (1, -2, 3e-1), (1, 1, 1)]
    )
    read = load_points(write(tmp_path, "a.xyz", text))
    assert read.points.tolist() == [[0, 0, 0.5], [1, -2, 0.3], [1, 1, 1]]


def test_further_columns(tmp_path: Path) -> None:
    given = cloud()
    points, normals = given.points.numpy(), given.normals.numpy()
    colors = np.random.default_rng(0).integers(0, 256, (50, 3))
    for table, note in ((colors, "0 to 255"), (colors / 255, "0 to 1")):
        read = load_points(write(tmp_path, "a.xyz", rows(points, table)))
        assert read.normals is None
        assert note in read.notes[0]
    for first, second, kept in ((colors, normals, "7 to 9"), (normals, colors, "4 to 6")):
        read = load_points(write(tmp_path, "a.xyz", rows(points, first, second)))
        np.testing.assert_allclose(read.normals, normals)
        assert f"columns {kept} taken as normals" in read.notes[0]
    opacity = load_points(write(tmp_path, "a.xyz", rows(points, normals, colors, colors[:, :1])))
    np.testing.assert_allclose(opacity.normals, normals)
    refused(write(tmp_path, "a.xyz", rows(points, normals, normals)), "got 9 columns")
    refused(write(tmp_path, "a.xyz", rows(points, normals[:, :2])), "got 5 columns")
    intensity = load_points(write(tmp_path, "a.pts", "50\n" + rows(points, colors[:, :1], colors)))
    assert intensity.notes == ("columns from the fourth on left out",)
    up = np.zeros((50, 3))
    up[:, 2] = 1  # nowhere negative, but of unit length: these are normals
    assert load_points(write(tmp_path, "a.xyz", rows(points, up))).normals is not None


def test_repeated_points_are_kept_and_noted(tmp_path: Path) -> None:
    read = load_points(write(tmp_path, "a.xyz", "0 0 0\n1 0 0\n-0 0 0\n1 0 0\n"))
    assert len(read) == 4
    assert read.notes == ("2 points lie where another does",)


def test_arrays(tmp_path: Path) -> None:
    points = cloud().points.numpy()
    np.save(tmp_path / "a.npy", np.asfortranarray(points.astype(np.float16)))
    assert torch.equal(load_points(tmp_path / "a.npy").points.half(), torch.from_numpy(points).half())
    np.savez_compressed(tmp_path / "a.npz", points=points, normals=cloud().normals.numpy(), scale=3.0)
    assert load_points(tmp_path / "a.npz").normals is not None
    np.savez(tmp_path / "b.npz", points)
    assert torch.equal(load_points(tmp_path / "b.npz").points, torch.from_numpy(points))


# ------------------------------------------------------------------------------------------- normals


def test_normals_of_another_length_are_scaled(tmp_path: Path) -> None:
    given = cloud()
    length = torch.linspace(0.5, 3, 50)[:, None]
    read = load_points(write(tmp_path, "a.xyz", rows(given.points.numpy(), (given.normals * length).numpy())))
    torch.testing.assert_close(read.normals, given.normals)
    assert read.notes == ("50 normals were not of unit length: scaled",)
    tiny = load_points(write(tmp_path, "a.xyz", rows(given.points.numpy(), (given.normals * 1e-200).numpy())))
    torch.testing.assert_close(tiny.normals, given.normals)


def test_zero_and_nan_normals(tmp_path: Path) -> None:
    given = cloud()
    normals = given.normals.clone()
    normals[[3, 7]] = 0
    path = write(tmp_path, "a.xyz", rows(given.points.numpy(), normals.numpy()))
    refused(path, "2 of 50 normals are zero; `drop_invalid=True` drops such points, `normals=False` all")
    read = load_points(path, drop_invalid=True)
    assert len(read) == 48
    assert read.notes == ("2 of 50 normals are zero: points dropped",)
    assert load_points(path, normals=False).normals is None
    normals[3] = torch.nan
    path = write(tmp_path, "a.xyz", rows(given.points.numpy(), normals.numpy()))
    refused(path, "1 of 50 normals are NaN or infinite")
    assert len(load_points(path, drop_invalid=True)) == 48
    assert len(load_points(path, normals=False)) == 50
    zero = np.zeros((50, 3))
    refused(write(tmp_path, "a.xyz", rows(given.points.numpy(), zero)), "50 of 50 normals are zero")
    refused(tmp_path / "a.xyz", "50 of 50 normals are zero", drop_invalid=True)


def test_colors_in_place_of_normals_are_refused(tmp_path: Path) -> None:
    points, colors = cloud().points.numpy(), np.random.default_rng(0).integers(0, 256, (50, 3))
    for table, range_ in ((colors, "0 to 255"), (colors / 255, "0 to 1")):
        body = rows(points, table)
        header = "".join(f"property float {name}\n" for name in ("x", "y", "z", "nx", "ny", "nz"))
        text = f"ply\nformat ascii 1.0\nelement vertex 50\n{header}end_header\n{body}"
        path = write(tmp_path, "a.ply", text)
        refused(path, f"the normals look like colors ({range_}")
        assert load_points(path, normals=False).normals is None
        np.savez(tmp_path / "a.npz", points=points, normals=table)
        refused(tmp_path / "a.npz", "the normals look like colors")


# ------------------------------------------------------------------------------------------- what is refused


def pickled() -> bytes:
    file = io.BytesIO()
    np.save(file, np.array({"points": 1}, dtype=object), allow_pickle=True)
    return file.getvalue()


def npy(shape: str, data: bytes = b"") -> bytes:
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + data


def npz(name: str, data: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, data)
    return file.getvalue()


REFUSED = {
    "empty": ("a.xyz", "", "file is empty"),
    "comments": ("a.xyz", "# nothing\n", "no points"),
    "nan": ("a.xyz", "0 0 0\n1 nan 0\n0 1 0\n", "1 of 3 points are NaN or infinite; `drop_invalid=True`"),
    "all equal": ("a.xyz", "1 2 3\n1 2 3\n", "all 2 points are equal"),
    "too far apart": ("a.xyz", "-1e308 0 0\n1e308 0 0\n", "points too far apart"),
    "decimal comma": ("a.xyz", "0,5 0,5 1\n", "line 1: expected numbers, got '0,5 0,5 1' (a decimal comma?)"),
    "words": ("a.xyz", "0 0 0\nC 0 1\n", "line 2: expected numbers, got 'C 0 1'"),
    "short row": ("a.xyz", "0 0 0\n1 1\n", "line 2: expected 3 numbers as in the first row, got '1 1'"),
    "long row": ("a.xyz", "0 0 0\n1 1 1 1\n", "line 2: expected 3 numbers as in the first row"),
    "two columns": ("a.txt", "0 0\n1 1\n", "line 1: expected at least three numbers"),
    "labels": ("a.txt", "5\n7\n5\n", "line 2: expected at least three numbers, got '7'"),
    "count": ("a.pts", "3\n0 0 0\n1 1 1\n", "2 points read, line 1 says 3"),
    "binary": ("a.xyz", bytes(100), "expected rows of numbers, got binary data"),
    "mesh ply": ("a.ply", ply(TRIANGLE, [(0, 1, 2)]), "a mesh of 1 faces; read it with geometry.load"),
    "mesh obj": ("a.obj", obj(TRIANGLE, [(0, 1, 2)]), "a mesh of 1 faces; read it with geometry.load"),
    "mesh off": ("a.off", off(TRIANGLE, [(0, 1, 2)]), "a mesh of 1 faces; read it with geometry.load"),
    "stl": ("a.stl", "solid", "'.stl' files hold meshes; read it with geometry.load"),
    "glb": ("a.glb", "", "'.glb' files hold meshes"),
    "unknown": ("a.las", "x", "got the extension '.las'"),
    "off count": ("a.off", "OFF\n3 0 0\n0 0 0\n", "1 rows read, the header says 3 vertices"),
    "off normals": ("a.off", "NOFF\n1 0 0\n0 0 0\n", "line 3: expected '6 numbers'"),
    "truncated ply": ("a.ply", ply(TRIANGLE, [])[:-6], "2 of 3 'vertex' read: a truncated PLY file"),
    "pickle": ("a.npy", pickled(), "must hold numbers, got object; pickled objects are never loaded"),
    "bare pickle": ("a.npy", pickle.dumps([1]), "is not in the NPY format"),
    "shape": ("a.npy", npy("(2, 2)", bytes(32)), "expected an array of shape (N, 3) or (N, 6), got (2, 2)"),
    "truncated npy": ("a.npy", npy("(4, 3)", bytes(80)), "10 of 12 numbers of the array read: a"),
    "lying npy": ("a.npy", npy("(4000000000000, 3)"), "0 of 12000000000000 numbers of the array read"),
    "negative shape": ("a.npy", npy("(-2, -3)", bytes(48)), "the array has the shape (-2, -3)"),
    "negative length": ("a.npy", npy("(-1, 3)", bytes(48)), "the array has the shape (-1, 3)"),
    "shape of truths": ("a.npy", npy("(True, 3)", bytes(48)), "the array has the shape (True, 3)"),
    "npz without points": ("a.npz", npz("w.npy", npy("(1, 3)", bytes(24))), "named 'points', got w"),
    "npz with text": ("a.npz", npz("points.npy", b"text"), "'points' is not in the NPY format"),
    "not an npz": ("a.npz", "text", "not a readable NPZ file"),
    "bomb": ("a.npz", npz("points.npy", bytes(1 << 29)), "'points' would unpack to 536870912 bytes"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_one_error_that_names_the_file(tmp_path: Path, case: str) -> None:
    name, content, message = REFUSED[case]
    refused(write(tmp_path, name, content), message)


def test_drop_invalid_and_limit(tmp_path: Path) -> None:
    path = write(tmp_path, "a.xyz", "0 0 0\n1 inf 0\n0 1 0\n")
    read = load_points(path, drop_invalid=True)
    assert read.points.tolist() == [[0, 0, 0], [0, 1, 0]]
    assert read.notes == ("1 of 3 points are NaN or infinite: points dropped",)
    refused(path, "3 points are more than `max_points` = 2", max_points=2)
    refused(write(tmp_path, "b.xyz", "nan 0 0\n"), "no valid point is left", drop_invalid=True)


def test_normals_that_do_not_count(tmp_path: Path) -> None:
    text = "v 0 0 0\nv 1 0 0\nvn 0 0 1\n"
    assert load_points(write(tmp_path, "a.obj", text)).notes == ("1 normals for 2 points: left out",)
    np.savez(tmp_path / "a.npz", points=np.eye(3), normals=np.eye(3)[:2])
    refused(tmp_path / "a.npz", "'normals' has shape (2, 3), 'points' (3, 3)")


@pytest.mark.parametrize("extension", EXTENSIONS)
def test_damaged_files_end_in_points_or_a_mesh_error(tmp_path: Path, extension: str) -> None:
    save_points(cloud(12), tmp_path / f"a.{extension}")
    data = (tmp_path / f"a.{extension}").read_bytes()
    rng = np.random.default_rng(0)
    outcomes = set()
    for _ in range(60):
        damaged = bytearray(data[: rng.integers(len(data))] if rng.random() < 0.3 else data)
        for _ in range(rng.integers(5) if damaged else 0):
            damaged[rng.integers(min(len(damaged), 400))] = rng.integers(256)
        try:
            load_points(write(tmp_path, f"b.{extension}", bytes(damaged)))
            outcomes.add("points")
        except MeshError as error:
            assert "\n" not in str(error)  # noqa: PT017
            outcomes.add("error")
    assert "error" in outcomes


def test_save_refuses(tmp_path: Path) -> None:
    for name, message in (
        ("a.las", "got the extension"),
        ("none/a.ply", "does not exist"),
        ("d.ply", "directory"),
    ):
        (tmp_path / "d.ply").mkdir(exist_ok=True)
        with pytest.raises(MeshError, match=message):
            save_points(cloud(), tmp_path / name)
    saved(tmp_path, "mesh.ply")
    refused(tmp_path / "mesh.ply", "a mesh of 12 faces")


# ------------------------------------------------------------------------------------------- what else


@pytest.mark.parametrize(
    ("points", "normals", "error", "message"),
    [
        ([[0.0, 0, 0]], None, TypeError, "must be a torch.Tensor"),
        (torch.zeros(2, 2), None, ValueError, r"shape \(N, 3\)"),
        (torch.zeros(0, 3), None, ValueError, "at least one point"),
        (torch.zeros(2, 3).half(), None, TypeError, "float32 or float64"),
        (torch.full((2, 3), torch.nan), None, ValueError, "2 rows that are not finite"),
        (torch.zeros(2, 3), torch.ones(1, 3), ValueError, "one N for both"),
        (torch.zeros(2, 3), torch.zeros(2, 3).double(), TypeError, "one for both"),
        (torch.zeros(2, 3), torch.ones(2, 3), ValueError, "2 rows that are not of unit length"),
    ],
)
def test_wrong_clouds_are_refused(points, normals, error, message) -> None:
    with pytest.raises(error, match=message):
        PointCloud(points, normals)


def test_normalize_keeps_the_detail_of_a_small_cloud_far_away() -> None:
    given = cloud()
    far = PointCloud(given.points * 1e-3 + 1e6, given.normals)
    normalized, normalization = normalize(far)
    assert normalized.points.dtype == normalized.normals.dtype == torch.float32
    torch.testing.assert_close(normalized.points, normalize(given)[0].points, atol=1e-5, rtol=0)
    torch.testing.assert_close(normalization.undo(normalized.points.double()), far.points, atol=1e-9, rtol=0)
    ball, _ = normalize(given, fit="sphere")
    assert float(ball.points.norm(dim=1).max()) == pytest.approx(1)


def test_take_gives_exactly_so_many() -> None:
    given = cloud(500)
    chosen = given.take(100)
    assert len(chosen) == 100
    assert torch.equal(chosen.points[0], given.points[0])
    assert torch.equal(chosen.points, given.take(100).points)  # deterministic
    gap = torch.cdist(chosen.points, chosen.points).fill_diagonal_(9).min()
    random = given.take(100, method="random", generator=generator(0))
    assert torch.cdist(random.points, random.points).fill_diagonal_(9).min() < gap
    assert len(random.points.unique(dim=0)) == 100
    assert given.take(500) is given
    far = PointCloud(given.points * 1e-6 + 1e6)  # in float32 these would be one point
    assert torch.equal(far.take(100).points, PointCloud(far.points - 1e6).take(100).points + 1e6)


def test_take_repeats_points_where_there_are_too_few() -> None:
    given = cloud(50)
    more = given.take(8192, generator=generator(0))  # what LaGeM's encoder asks for
    assert more.points.shape == more.normals.shape == (8192, 3)
    assert torch.equal(more.points[:50], given.points)
    assert len(more.points.unique(dim=0)) == len(given.points.unique(dim=0))
    assert more.notes == ("8142 points repeat others: only 50 given",)
    assert torch.equal(more.points, given.take(8192, generator=generator(0)).points)
    with pytest.raises(ValueError, match="`count` must be at least 1"):
        given.take(0)
    with pytest.raises(ValueError, match='`method` must be "farthest" or "random"'):
        given.take(3, method="poisson")
