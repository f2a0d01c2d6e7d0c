"""The file of an encoded shape: what goes in comes out; what is wrong with another is said in one line."""

from __future__ import annotations

import binascii
import dataclasses
import struct

import pytest
import torch
from tiny_models import ball, tiny

from fastshape import ops, pipelines
from fastshape.geometry import Mesh, Normalization, shapes
from fastshape.models import MODELS, TripoSFConfig, TripoSFVAE
from fastshape.nn import SparseTensor
from fastshape.ops.tokens import PRESETS, Tokens
from fastshape.pipelines import Encoded, LatentsError, decode_latents, encode_mesh, load_latents, save_latents
from fastshape.pipelines.latents import short_frame
from fastshape.pipelines.shape_file import shape_bytes, shape_from_bytes
from fastshape.testing import generator

FRAME = Normalization((0.5, -2.0, 100.25), 0.75)


@pytest.fixture(scope="module")
def torus() -> Mesh:
    mesh = shapes.torus(segments=24)
    return Mesh(mesh.vertices.double() / 3 + 100, mesh.faces)


def coded(scales: tuple[int, ...] = (1, 4, 9), num_codes: int = 300, there: int | None = None) -> Encoded:
    """Random codes of the first scales."""
    there = len(scales) if there is None else there
    codes = torch.randint(num_codes, (sum(scales[:there]),), generator=generator(0))
    return Encoded(
        (), FRAME, "VAT", "vat-tiny", "0123456789abcdef", codes=Tokens(codes, scales, num_codes, there)
    )


def latent(dtype: torch.dtype = torch.float16) -> Encoded:
    """Random latents of two levels."""
    levels = tuple(torch.randn(1, m, c, generator=generator(1)).to(dtype) for m, c in ((3, 2), (1, 3)))
    return Encoded(levels, FRAME, "LaGeM", "owner/name", seed=-3, sampled=True)


def sparse() -> Encoded:
    """Latents of voxels."""
    coords = torch.tensor([[0, 1, 2], [7, 0, 5]], dtype=torch.int32)
    return dataclasses.replace(latent(), latents=(torch.ones(1, 2, 3),), coords=coords, resolution=8)


def assert_same(mine: Encoded, theirs: Encoded) -> None:
    for field in dataclasses.fields(Encoded):
        a, b = getattr(mine, field.name), getattr(theirs, field.name)
        if field.name == "codes" and a is not None:
            assert torch.equal(a.codes, b.codes)
            assert a[1:] == b[1:]
        elif field.name == "coords" and a is not None:
            assert torch.equal(a, b)
            assert a.dtype == b.dtype
        elif field.name == "latents":
            assert len(a) == len(b)
            assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(a, b, strict=True))
        elif field.compare:
            assert a == b, field.name


# ---- There and back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", MODELS)
def test_what_was_saved_is_loaded_to_the_last_bit(tmp_path, torus, family) -> None:
    model = ball(family)
    encoded = encode_mesh(torus, model, seed=7, sample_posterior=True)
    path = tmp_path / "new" / "a.fsh"
    save_latents(encoded, path)
    loaded = load_latents(path)
    assert_same(encoded, loaded)
    first, second = (decode_latents(e, model, resolution=16) for e in (encoded, loaded))
    assert torch.equal(first.vertices, second.vertices)
    save_latents(loaded, tmp_path / "b.fsh")
    assert (tmp_path / "b.fsh").read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    "encoded", [coded(), coded(there=2), coded((5,), 1), latent(), latent(torch.float32), sparse()]
)
@pytest.mark.parametrize(
    "frame", [FRAME, Normalization((0.1, 1e300, 3.0), 1e-9), Normalization((0.0, 0.0, 0.0), 2.0**-149)]
)
def test_every_kind_comes_back(encoded, frame) -> None:
    encoded = dataclasses.replace(
        encoded, normalization=frame, weights="Stühle/\udcff" + "x" * 200, seed=2**63
    )
    data = shape_bytes(encoded)
    assert_same(encoded, shape_from_bytes(data))
    assert shape_bytes(shape_from_bytes(data)) == data


def test_by_hand() -> None:
    """The layout that the module describes, byte by byte."""
    data = shape_bytes(dataclasses.replace(latent(), latents=(torch.tensor([[[1.0, -2.0]]]),)))
    header = b"FSH\x01" + bytes([2 | 8]) + bytes(8) + struct.pack("<4f", 0.5, -2.0, 100.25, 0.75)
    header += b"\x05" + b"\x01" + b"\x05LaGeM" + b"\x0aowner/name"
    header += struct.pack("<I", binascii.crc32(header))
    body = header + b"\x01\x02" + struct.pack("<2f", 1.0, -2.0)
    assert data == body + struct.pack("<I", binascii.crc32(body))
    data = shape_bytes(sparse())
    begin = data.index(b"owner/name") + 14
    assert data[begin : begin + 26] == b"\x02\x03" + struct.pack("<6f", *[1.0] * 6)
    # Coordinates of 3 bits: 0 1 2 7 0 5 = 000 100 010 111 000 101, the lowest bit first.
    assert data[begin + 26 : -4] == bytes([8, 0b10001000, 0b10001110, 0b10])


def test_the_header_is_small() -> None:
    encoded = coded(PRESETS[2], 2048)
    data = shape_bytes(encoded)
    assert encoded.num_bytes == 935
    assert len(data) == 1017  # as the module says
    stream = ops.pack_tokens(encoded.codes.codes, scales=PRESETS[2], num_codes=2048)
    assert data.endswith(stream)
    assert len(data) - len(stream) == 48


def test_half_precision(tmp_path, torus) -> None:
    model = ball("LaGeM")
    encoded = encode_mesh(torus, model)
    save_latents(encoded, tmp_path / "half.fsh", dtype=torch.float16)
    loaded = load_latents(tmp_path / "half.fsh")
    assert {level.dtype for level in loaded.latents} == {torch.float16}
    assert loaded.num_bytes * 2 == encoded.num_bytes
    decode_latents(loaded, model, resolution=16)
    with pytest.raises(ValueError, match=r"must be torch\.float32 or torch\.float16, got torch\.int32"):
        save_latents(encoded, tmp_path / "no.fsh", dtype=torch.int32)
    large = encoded.to(torch.float32)
    large.latents[0].fill_(1e6)
    with pytest.raises(ValueError, match=r"float16 cannot hold these latents"):
        save_latents(large, tmp_path / "no.fsh", dtype=torch.float16)
    assert not (tmp_path / "no.fsh").exists()


def test_latents_of_voxels(tmp_path) -> None:
    """TripoSF's, from the model to a file and back."""
    torch.manual_seed(0)
    sizes = {"resolution": 16, "point_hidden": 4, "point_depth": 2, "feature_dim": 8, "dim": 64, "depth": 1}
    model = TripoSFVAE(TripoSFConfig(**sizes, heads=2, ratio=1.0, latent_channels=4, groups=8)).eval()
    inputs = pipelines.sparse_inputs(shapes.torus(), model, num_points=2000)
    with torch.no_grad():
        latents = model.encode(inputs.points, inputs.voxels).mode()
    encoded = Encoded(
        (latents.feats[None],),
        inputs.normalization,
        "TripoSFVAE",
        model.title,
        model.fingerprint(),
        coords=latents.coords[:, 1:],
        resolution=16,
    )
    save_latents(encoded, tmp_path / "a.fsh")
    loaded = load_latents(tmp_path / "a.fsh")
    coords, (feats,) = loaded.coords, loaded.latents
    again = SparseTensor(torch.nn.functional.pad(coords, (1, 0)), feats[0])
    assert torch.equal(again.coords, latents.coords)
    assert torch.equal(again.feats, latents.feats)
    floats, bits = 4 * feats.numel(), 12 * len(coords)  # 16 voxels along an axis
    assert (tmp_path / "a.fsh").stat().st_size < floats + bits // 8 + 100


def test_frames_are_short_where_that_moves_nothing() -> None:
    frame = Normalization((0.1, -7.3, 0.25), 1.7)
    short = short_frame(frame)
    assert short != frame
    points = torch.rand(100, 3, dtype=torch.float64) * 2 - 1
    moved = (short.undo(points) - frame.undo(points)).abs().max() * frame.scale
    assert 0 < float(moved) < 1e-6
    assert short_frame(short) == short
    for exact in (Normalization((1e6 + 0.1, 0.0, 0.0), 1000.0), Normalization((0.0, 0.0, 0.0), 1e-320)):
        assert short_frame(exact) == exact


# ---- Scales ------------------------------------------------------------------------------------------------


def test_the_first_scales_are_a_coarser_shape(tmp_path) -> None:
    encoded, path = coded((1, 4, 9, 16), 300), tmp_path / "a.fsh"
    save_latents(encoded, path)
    data, lengths = path.read_bytes(), []
    for scales in range(1, 5):
        coarse = load_latents(path, scales=scales)
        assert coarse.tokens == (1, 4, 9, 16)[:scales]
        assert torch.equal(coarse.codes.codes, encoded.codes.codes[: sum(coarse.tokens)])
        lengths.append(len(shape_bytes(coarse)))
        assert_same(coarse, shape_from_bytes(shape_bytes(coarse)))
    for scales, length in enumerate(lengths[:-1], start=1):  # only the number of scales differs
        path.write_bytes(data[:length])
        assert load_latents(path, scales=scales).tokens == (1, 4, 9, 16)[:scales]
        wanted = rf"ends within scale {scales + 1} of 4; the first {scales} are whole: .*--scales {scales}$"
        with pytest.raises(LatentsError, match=wanted):
            load_latents(path)
        with pytest.raises(LatentsError, match=wanted):
            load_latents(path, scales=scales + 1)
    with pytest.raises(LatentsError, match="there are 1 to 4 scales to decode, got 5"):
        shape_from_bytes(data, scales=5)
    with pytest.raises(LatentsError, match=r"latents of owner/name \(LaGeM\) have no scales to choose from"):
        shape_from_bytes(shape_bytes(latent()), scales=1)


# ---- Bad files ---------------------------------------------------------------------------------------------

SMALL = {"codes": coded(), "some codes": coded(there=2), "latents": latent(), "voxels": sparse()}


@pytest.mark.parametrize("kind", SMALL)
def test_every_flipped_bit_and_every_cut_is_refused(kind) -> None:
    data = shape_bytes(SMALL[kind])
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(LatentsError):
            shape_from_bytes(bytes(damaged))
    for byte in range(len(data)):
        damaged = bytearray(data)
        damaged[byte] ^= 0xFF
        with pytest.raises(LatentsError):
            shape_from_bytes(bytes(damaged))
        with pytest.raises(LatentsError):
            shape_from_bytes(data[:byte])
    for count in (1, 2, 50):
        with pytest.raises(LatentsError, match=r"follow|damaged"):
            shape_from_bytes(data + bytes(count))


def _header(flags: int, frame: tuple[float, ...] = (0, 0, 0, 1), count: int = 1) -> bytes:
    """A header whose checksum is right."""
    data = b"FSH\x01" + bytes([flags]) + bytes(8) + struct.pack("<4f", *frame) + bytes([0, count, 1])
    data += b"M\x01w"
    return data + struct.pack("<I", binascii.crc32(data))


def _whole(data: bytes) -> bytes:
    return data + struct.pack("<I", binascii.crc32(data))


BAD_FILES = {
    "empty": (b"", r"expected latents .* \(\*\.fsh\), got a file that begins with b''"),
    "a mesh": (b"v 0 0 0\n", "begins with b'v 0'"),
    "short": (b"FSH", "ends within its header, after 3 bytes"),
    "newer": (b"FSH\x02" + bytes(50), "format version 2; this release reads 1"),
    "endless": (_header(1)[:29] + b"\xff" * 20, "header is damaged: a number has no end"),
    "flags": (_header(32), "flags 0x20, which this release does not know"),
    "kind": (_header(3), "flags 0x3"),
    "voxels of codes": (_header(4), "flags 0x4"),
    "scale 0": (_header(1, (0, 0, 0, 0)), "scale 0.0"),
    "nan": (_header(1, (0, float("nan"), 0, 1)), "center"),
    "nothing": (_header(1, count=0), "nothing in it"),
    "huge": (_header(1) + b"\xff\xff\xff\xff\xff\xff\xff\x7f\x7f", "ends within its latents"),
    "no tokens": (_whole(_header(1) + b"\x00\x01"), "0 tokens of 1 channels"),
    "infinite": (_whole(_header(1) + b"\x01\x01\x00\x7c"), "must be finite"),
    "many": (_header(5) + b"\xff\xff\xff\xff\x7f\x00\x01", "34359738367 tokens of 0 channels"),
    "no grid": (_header(5) + b"\x01\x01" + bytes(2) + b"\x00", "a grid of 0 along an axis"),
    "twice": (_whole(_header(5) + b"\x02\x01" + bytes(4) + b"\x01"), "a voxel is there twice"),
    "outside": (_whole(_header(5) + b"\x01\x01" + bytes(2) + b"\x03\x03"), r"must be in \[0, 3\)"),
    "foreign codes": (_header(0) + b"FQX\x01", "this is no stream of tokens"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_named(tmp_path, case) -> None:
    path = tmp_path / "a.fsh"
    data, message = BAD_FILES[case]
    path.write_bytes(data)
    with pytest.raises(LatentsError, match=message) as caught:
        load_latents(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_missing_files_are_named(tmp_path) -> None:
    for path in (tmp_path / "none.fsh", tmp_path):
        with pytest.raises(LatentsError, match=f"{path}: no such file of latents"):
            load_latents(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latents": ()}, "either codes or latents"),
        ({"codes": coded().codes}, "either codes or latents"),
        (
            {"latents": (torch.zeros(1, 2, 3), torch.zeros(1, 2, 3).half())},
            r"all in float16 or all in float32",
        ),
        ({"latents": (torch.zeros(1, 2, 3).double(),)}, r"got \(1, 2, 3\) in float64"),
        ({"latents": (torch.zeros(2, 3),)}, r"got \(2, 3\) in float32"),
        ({"latents": (torch.full((1, 1, 1), torch.nan),)}, "must be finite"),
        ({"coords": torch.zeros(3, 3, dtype=torch.int32)}, "must be one level, got 2"),
        ({"latents": (torch.zeros(1, 2, 3),), "coords": torch.zeros(2, 3)}, "must be int32 of shape"),
        ({"normalization": Normalization((0.0, 0.0, 0.0), 0.0)}, "positive scale"),
        ({"fingerprint": "abc"}, "16 hexadecimal digits, got 'abc'"),
    ],
)
def test_what_cannot_be_written(tmp_path, changes, message) -> None:
    with pytest.raises(ValueError, match=message):
        save_latents(dataclasses.replace(latent(), **changes), tmp_path / "a.fsh")
    assert not list(tmp_path.iterdir())


def test_another_model_is_refused(torus) -> None:
    encoded = encode_mesh(torus, tiny("VecSetVAE"))
    with pytest.raises(LatentsError, match=r"made by VecSetVAE \(VecSetVAE\), the model is DoraVAE"):
        decode_latents(encoded, tiny("DoraVAE"))
    with pytest.raises(LatentsError, match="weights"):
        decode_latents(encoded, tiny("VecSetVAE", seed=1))
