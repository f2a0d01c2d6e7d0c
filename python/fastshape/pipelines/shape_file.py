"""The file of an encoded shape, `.fsh`: the tokens or latents of any model, and what leads back to a mesh.

A file is a header and what was encoded. All numbers of several bytes are little-endian; `n` is an unsigned
integer in seven bits a byte, the lowest first, the highest bit of a byte set if another follows (LEB128); a
text is its length `n` and UTF-8::

    header
      3 bytes   "FSH"
      1         version of the format: 1
      1         flags: bits 0, 1  what follows: 0 codes, 1 latents in float16, 2 latents in float32
                       bit 2      latents of voxels, whose coordinates stand with them
                       bit 3      drawn from the posterior, not its mode
                       bit 4      the frame is in float64, else in float32
                       bits 5-7   0
      8         fingerprint of the model's configuration and weights (`model.fingerprint()`); 0: not taken
      16 or 32  the frame: center x, y, z and scale, floats; normalized = (own - center) * scale
      n         seed: 2 seed, or -2 seed - 1 if negative
      n         number of levels, or of scales that are here
      text      class of the model
      text      its weights: a name, a folder or a hub id
      4         CRC-32 of all before

    codes                the stream of `ops.pack_tokens`, coarse scales first, with its own checksums

    latents
      for each level, the finest first
        n              M, tokens
        n              C, channels
        M C numbers    token by token
        [n             R, voxels along an axis of their grid
         (3 M B + 7) / 8  x, y, z of each voxel, B = bits of R - 1 each, the lowest first, filled up with 0]
      4                CRC-32 of the whole file before

Codes that end behind a scale are a coarser shape: a file that was cut off there is refused like any other
cut, but for who asks for no more scales than are there. The 680 codes of 2048 of ten scales up to 16 x 16,
935 bytes of bits, take 1017 bytes with the weights' name `vat-tiny`: 969 of the stream, 48 of the header.
"""

from __future__ import annotations

import binascii
import os
import re
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastshape.geometry import Normalization
from fastshape.ops.tokens import pack_tokens, unpack_tokens
from fastshape.pipelines.latents import Encoded, LatentsError
from fastshape.runtime.files import atomic_path

SUFFIX = ".fsh"
_MAGIC = b"FSH"
_VERSION = 1
_CODES = 0
_DTYPES = {1: (torch.float16, "<f2"), 2: (torch.float32, "<f4")}
_VOXELS, _SAMPLED, _DOUBLE = 4, 8, 16
_KNOWN_FLAGS = 3 | _VOXELS | _SAMPLED | _DOUBLE


# ---- Files -------------------------------------------------------------------------------------------------


def save_latents(encoded: Encoded, path: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
    """Writes a `.fsh` file, atomically; equal shapes give equal bytes.

    Args:
        encoded: what to write.
        path: the file; its folder is made if need be.
        dtype: torch.float16 halves latents; None keeps their own. Codes stay what they are.

    Raises:
        ValueError: see `shape_bytes` and `Encoded.to`.
    """
    data = shape_bytes(encoded if dtype is None else encoded.to(dtype))
    with atomic_path(Path(path)) as temporary:
        temporary.write_bytes(data)


def load_latents(path: str | os.PathLike[str], *, scales: int | None = None) -> Encoded:
    """Reads what `save_latents` wrote.

    Args:
        path: the file.
        scales: take the codes of the first scales alone, a coarser shape; the file may end behind them.

    Raises:
        LatentsError: the file is missing, damaged or something else; it names the file.
    """
    path = Path(path)
    if not path.is_file():
        raise LatentsError(f"{path}: no such file of latents")
    try:
        return shape_from_bytes(path.read_bytes(), scales=scales)
    except LatentsError as error:
        raise LatentsError(f"{path}: {error}") from None


# ---- Writing -----------------------------------------------------------------------------------------------


def shape_bytes(encoded: Encoded) -> bytes:
    """An encoded shape as this module describes; the same bytes for the same shape.

    Raises:
        ValueError: neither codes nor latents, or both; latents that are not (1, M, C) in float16 or float32,
            of several dtypes, empty or not finite; voxels that do not fit them; a frame that is none.
    """
    kind = _kind(encoded)
    frame = torch.tensor([*encoded.normalization.center, encoded.normalization.scale], dtype=torch.float64)
    if not (bool(frame.isfinite().all()) and frame[3] > 0):
        raise ValueError(f"`normalization` must be finite with a positive scale, got {encoded.normalization}")
    if not re.fullmatch("([0-9a-f]{16})?", encoded.fingerprint):
        raise ValueError(f"`fingerprint` must be 16 hexadecimal digits, got {encoded.fingerprint!r}")
    double = not torch.equal(frame.float().double(), frame)
    voxels = encoded.coords is not None
    flags = kind | _SAMPLED * encoded.sampled | _VOXELS * voxels | _DOUBLE * double
    seed = 2 * encoded.seed if encoded.seed >= 0 else -2 * encoded.seed - 1
    header = b"".join(
        [
            _MAGIC,
            bytes([_VERSION, flags]),
            bytes.fromhex(encoded.fingerprint or "0" * 16),
            struct.pack("<4d" if double else "<4f", *frame.tolist()),
            _number(seed),
            _number(len(encoded.tokens)),
            _text(encoded.model),
            _text(encoded.weights),
        ]
    )
    header += _checksum(header)
    if encoded.codes is not None:
        codes, scales, num_codes, _ = encoded.codes
        return header + pack_tokens(codes, scales=scales, num_codes=num_codes)
    parts = [header]
    for level in encoded.latents:
        parts += [_number(level.shape[1]), _number(level.shape[2])]
        parts.append(level.detach().cpu().contiguous().numpy().astype(_DTYPES[kind][1]).tobytes())
        if encoded.coords is not None and encoded.resolution is not None:
            parts += [_number(encoded.resolution), _packed(encoded.coords, encoded.resolution)]
    body = b"".join(parts)
    return body + _checksum(body)


def _kind(encoded: Encoded) -> int:
    """The flags' first two bits.

    Raises:
        ValueError: see `shape_bytes`.
    """
    if (encoded.codes is not None) == bool(encoded.latents):
        raise ValueError("an encoded shape must have either codes or latents")
    if encoded.codes is not None:
        if encoded.coords is not None:
            raise ValueError("codes have no voxels")
        return _CODES
    first = encoded.latents[0].dtype
    kind = next((kind for kind, (dtype, _) in _DTYPES.items() if dtype == first), None)
    for level in encoded.latents:
        if (
            kind is None
            or level.dtype != first
            or level.dim() != 3
            or level.shape[0] != 1
            or not level.numel()
        ):
            raise ValueError(
                "`latents` must be (1, M, C), all in float16 or all in float32, "
                f"got {tuple(level.shape)} in {str(level.dtype).removeprefix('torch.')}"
            )
        if not bool(level.isfinite().all()):
            raise ValueError("`latents` must be finite")
    assert kind is not None
    if encoded.coords is not None:
        if len(encoded.latents) != 1:
            raise ValueError(f"latents of voxels must be one level, got {len(encoded.latents)}")
        _require_voxels(encoded.coords, encoded.latents[0].shape[1], encoded.resolution or 0)
    return kind


def _require_voxels(coords: Tensor, count: int, resolution: int) -> None:
    """
    Raises:
        ValueError: not a place in the grid for each of `count` tokens, or one twice.
    """
    if coords.shape != (count, 3) or coords.dtype != torch.int32:
        raise ValueError(
            f"`coords` must be int32 of shape ({count}, 3), got {coords.dtype} of shape {tuple(coords.shape)}"
        )
    if not 1 <= resolution < 2**31 or bool(((coords < 0) | (coords >= resolution)).any()):
        raise ValueError(f"`coords` must be in [0, {resolution}), the `resolution`")
    if len(coords.unique(dim=0)) != count:
        raise ValueError("`coords` must differ, a voxel is there twice")


def _number(value: int) -> bytes:
    parts = []
    while value >= 128:
        parts.append(value & 127 | 128)
        value >>= 7
    return bytes([*parts, value])


def _text(text: str) -> bytes:
    data = text.encode(errors="surrogateescape")  # a path may be no UTF-8
    return _number(len(data)) + data


def _checksum(data: bytes) -> bytes:
    return binascii.crc32(data).to_bytes(4, "little")


def _packed(coords: Tensor, resolution: int) -> bytes:
    bits = coords.cpu().numpy().reshape(-1, 1) >> np.arange((resolution - 1).bit_length()) & 1
    return np.packbits(bits.astype(np.uint8), bitorder="little").tobytes()


# ---- Reading -----------------------------------------------------------------------------------------------


def shape_from_bytes(data: bytes, *, scales: int | None = None) -> Encoded:
    """What `shape_bytes` wrote; nothing that it did not write.

    Args:
        data: the file.
        scales: as in `load_latents`.

    Raises:
        LatentsError: not such a file, another version, damaged, too short or too long; scales that are not
            there.
    """
    reader = _Reader(data)
    try:
        encoded, flags, count = _header(reader)
        if flags & 3 == _CODES:
            return _with_codes(encoded, data[reader.position :], count, scales)
        if scales is not None:
            encoded.coarser(scales)  # refuses
        return _with_latents(encoded, reader, flags, count)
    except LatentsError:
        raise
    except ValueError as error:  # of what the checksums let pass
        raise LatentsError(str(error)) from None


class _Reader:
    """Takes a file apart from front to back."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.position = 0

    def take(self, count: int, what: str) -> bytes:
        if len(self.data) - self.position < count:
            raise LatentsError(f"the file ends within its {what}, after {len(self.data):,} bytes")
        self.position += count
        return self.data[self.position - count : self.position]

    def number(self, what: str) -> int:
        value = shift = 0
        while True:
            byte = self.take(1, what)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise LatentsError(f"the {what} is damaged: a number has no end")

    def check(self, what: str) -> None:
        """Takes the checksum of all so far."""
        expected = _checksum(self.data[: self.position])
        if self.take(4, what) != expected:
            raise LatentsError(f"the {what} is damaged: its checksum differs")


def _header(reader: _Reader) -> tuple[Encoded, int, int]:
    """The shape without what was encoded; the flags; the number of levels or scales."""
    begin = reader.data[:3]
    if begin != _MAGIC[: len(begin)] or not begin:
        raise LatentsError(
            f"expected latents that `fastshape encode` wrote (*{SUFFIX}), "
            f"got a file that begins with {begin!r}"
        )
    reader.take(3, "header")
    if (version := reader.take(1, "header")[0]) != _VERSION:
        raise LatentsError(f"the latents have format version {version}; this release reads {_VERSION}")
    flags = reader.take(1, "header")[0]
    fingerprint = reader.take(8, "header")
    numbers = "<4d" if flags & _DOUBLE else "<4f"
    x, y, z, scale = struct.unpack(numbers, reader.take(struct.calcsize(numbers), "header"))
    seed = reader.number("header")
    count = reader.number("header")
    model, weights = (reader.take(reader.number("header"), "header") for _ in range(2))
    reader.check("header")
    # What the checksum has passed and no release writes.
    if flags & ~_KNOWN_FLAGS or flags & 3 == 3 or (flags & 3 == _CODES and flags & _VOXELS):
        raise LatentsError(f"the header has flags {flags:#x}, which this release does not know")
    if not (np.isfinite([x, y, z, scale]).all() and scale > 0):
        raise LatentsError(f"the header has a frame of center ({x}, {y}, {z}) and scale {scale}")
    if count < 1:
        raise LatentsError("the header says that there is nothing in it")
    encoded = Encoded(
        latents=(),
        normalization=Normalization((x, y, z), scale),
        model=model.decode(errors="surrogateescape"),
        weights=weights.decode(errors="surrogateescape"),
        fingerprint=fingerprint.hex() if any(fingerprint) else "",
        seed=seed // 2 if seed % 2 == 0 else -(seed + 1) // 2,
        sampled=bool(flags & _SAMPLED),
    )
    return encoded, flags, count


def _with_codes(encoded: Encoded, stream: bytes, count: int, scales: int | None) -> Encoded:
    """The shape with the first `scales` of `count` scales of codes; None: with all, and nothing behind."""
    tokens = unpack_tokens(stream, partial=True)
    there = tokens.num_scales
    if there < min(count, scales or count):
        hint = f"; the first {there} are whole: decode them with `scales={there}`, --scales {there}"
        raise LatentsError(f"the file ends within scale {there + 1} of {count}{hint if there else ''}")
    if scales is None:
        length = len(pack_tokens(tokens.codes, scales=tokens.scales, num_codes=tokens.num_codes))
        if there > count or len(stream) > length:
            raise LatentsError(f"something follows the {count} scales of the shape")
    found = replace(encoded, codes=tokens)
    return found if scales is None else found.coarser(scales)


def _with_latents(encoded: Encoded, reader: _Reader, flags: int, count: int) -> Encoded:
    dtype, code = _DTYPES[flags & 3]
    levels = []
    coords, resolution = None, None
    for _ in range(count):
        tokens, channels = reader.number("latents"), reader.number("latents")
        if not tokens * channels:  # so that there are never more tokens than bytes
            raise LatentsError(f"the latents are damaged: {tokens} tokens of {channels} channels")
        part = reader.take(tokens * channels * dtype.itemsize, "latents")
        values = np.frombuffer(part, code).astype(code[1:])  # a copy, in the machine's own order
        levels.append(torch.from_numpy(values).reshape(1, tokens, channels))
        if flags & _VOXELS:
            resolution = reader.number("voxels")
            coords = _unpacked(reader, tokens, resolution)
    reader.check("latents")
    if (rest := len(reader.data) - reader.position) > 0:
        raise LatentsError(f"{rest:,} bytes follow the latents")
    found = replace(encoded, latents=tuple(levels), coords=coords, resolution=resolution)
    _kind(found)  # refuses what is not written
    return found


def _unpacked(reader: _Reader, count: int, resolution: int) -> Tensor:
    width = (resolution - 1).bit_length()
    if not 1 <= resolution < 2**31:
        raise LatentsError(f"the voxels are damaged: a grid of {resolution} along an axis")
    part = np.frombuffer(reader.take((3 * count * width + 7) // 8, "voxels"), np.uint8)
    bits = np.unpackbits(part, count=3 * count * width, bitorder="little").reshape(3 * count, width)
    values = bits.astype(np.int64) @ (1 << np.arange(width, dtype=np.int64))
    return torch.from_numpy(values.astype(np.int32)).reshape(count, 3)
