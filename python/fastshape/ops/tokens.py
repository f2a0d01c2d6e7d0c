"""Codes as bytes: a shape's tokens, coarse scales first, in a stream whose beginning is a coarser shape.

The stream, with integers of several bytes in little-endian order::

    b"FQT", version 1      4 bytes
    preset                 1 byte: which of PRESETS the scales are; 0: they follow
    number of codes        3 bytes
    [count, sizes          2 bytes, 3 bytes a scale; preset 0 only]
    checksum               2 bytes
    and for each scale
      codes                ceil(log2(number of codes)) bits each, the lowest bit first, filled up to a byte
      checksum             2 bytes

A checksum is CRC-16-CCITT over everything before it, the earlier checksums left out: it sees every error of
up to 16 neighboring bits, and scales that changed places. The stream may end behind any scale.
"""

from __future__ import annotations

import binascii
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_MAGIC = b"FQT\x01"
_SIDES = (1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 24, 32)
_MAX_COUNT = 2**24 - 1

# Tokens of each scale of the square grids of VAT (2024), appendix; 256 where its list prints 196 (see
# `multiscale_sides`).
PRESETS: dict[int, tuple[int, ...]] = {
    number: tuple(side**2 for side in _SIDES[:length])
    for number, length in ((1, 7), (2, 10), (3, 11), (4, 12))
}


class Tokens(NamedTuple):
    """What :func:`unpack_tokens` gives."""

    codes: Tensor  # (T,) int64, of the scales that are there, coarse to fine
    scales: tuple[int, ...]  # tokens of each scale that the whole stream has
    num_codes: int
    num_scales: int  # how many of the scales are there


def _bits(num_codes: int) -> int:
    return max((num_codes - 1).bit_length(), 1)


def _scale_bytes(size: int, num_codes: int) -> int:
    return (size * _bits(num_codes) + 7) // 8


def _checksum(data: bytes, before: int) -> tuple[bytes, int]:
    value = binascii.crc_hqx(data, before)
    return value.to_bytes(2, "little"), value


def pack_tokens(codes: Tensor, *, scales: Sequence[int], num_codes: int) -> bytes:
    """The codes of one shape as bytes.

    Args:
        codes: (T,) integers in [0, num_codes), the scales one after the other, coarse to fine; on any device.
        scales: tokens of each scale, each positive; their sum is T, or that of the first of them is: then
            only these are written.
        num_codes: K of the codebook, in [1, 2^24).

    Returns:
        The stream that this module describes: ``ceil(log2(num_codes))`` bits a token, 10 bytes, and for each
        scale 2 bytes and the rest of the last byte. 4025 bytes for the 2280 tokens of 12 scales up to 32 x 32
        with 16384 codes.

    Raises:
        TypeError: codes that are no integers.
        ValueError: codes out of range, scales that do not fit.

    Device: any; waits for the device.
    """
    scales = tuple(int(size) for size in scales)
    if codes.dtype.is_floating_point or codes.dtype.is_complex or codes.dtype == torch.bool:
        raise TypeError(f"`codes` must be integers, got {str(codes.dtype).removeprefix('torch.')}")
    if not 1 <= num_codes <= _MAX_COUNT:
        raise ValueError(f"`num_codes` must be in [1, {_MAX_COUNT}], got {num_codes}")
    if not 1 <= len(scales) < 2**16 or not all(1 <= size <= _MAX_COUNT for size in scales):
        raise ValueError(f"`scales` must be 1 to 65535 sizes in [1, {_MAX_COUNT}], got {scales}")
    ends = [0, *np.cumsum(scales).tolist()]
    if codes.ndim != 1 or len(codes) not in ends:
        raise ValueError(
            f"`codes` must have shape (T,), T the tokens of all or of the first of `scales`, {scales}; "
            f"got {tuple(codes.shape)}"
        )
    values = codes.cpu().numpy().astype(np.int64)
    if len(values) and not (values.min() >= 0 and values.max() < num_codes):
        raise ValueError(
            f"`codes` must be in [0, {num_codes}), got {int(values.min())} to {int(values.max())}"
        )
    preset = next((number for number, sizes in PRESETS.items() if sizes == scales), 0)
    header = _MAGIC + bytes([preset]) + num_codes.to_bytes(3, "little")
    if preset == 0:
        header += len(scales).to_bytes(2, "little") + b"".join(size.to_bytes(3, "little") for size in scales)
    mark, state = _checksum(header, 0xFFFF)
    parts = [header, mark]
    shifts = np.arange(_bits(num_codes))
    for begin, end in pairwise(ends):
        if end > len(values):
            break
        bits = (values[begin:end, None] >> shifts & 1).astype(np.uint8)
        part = np.packbits(bits, bitorder="little").tobytes()
        mark, state = _checksum(part, state)
        parts += [part, mark]
    return b"".join(parts)


def unpack_tokens(data: bytes, *, partial: bool = False) -> Tokens:
    """The codes that :func:`pack_tokens` wrote; nothing that it did not write.

    Args:
        data: the stream.
        partial: take a stream that ends early, as the scales that are there whole; an error otherwise.

    Returns:
        :class:`Tokens`.

    Raises:
        TypeError: not bytes.
        ValueError: not such a stream, another version, damaged, too short or too long.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise TypeError(f"`data` must be bytes, got {type(data).__name__}")
    data = bytes(data)
    position = 0

    def take(count: int, what: str) -> bytes:
        nonlocal position
        part = data[position : position + count]
        if len(part) < count:
            raise ValueError(f"the stream of tokens ends within its {what}, after {len(data)} bytes")
        position += count
        return part

    magic = take(4, "header")
    if magic[:3] != _MAGIC[:3]:
        raise ValueError(f"this is no stream of tokens: it begins with {magic[:3]!r}, not {_MAGIC[:3]!r}")
    if magic != _MAGIC:
        raise ValueError(f"the stream of tokens is of version {magic[3]}; this reads version {_MAGIC[3]}")
    preset = take(1, "header")[0]
    num_codes = int.from_bytes(take(3, "header"), "little")
    if preset == 0:
        count = int.from_bytes(take(2, "header"), "little")
        scales = tuple(int.from_bytes(take(3, "header"), "little") for _ in range(count))
    else:
        scales = PRESETS.get(preset, ())
    expected, state = _checksum(data[:position], 0xFFFF)
    if take(2, "header") != expected:
        raise ValueError("the header of the stream of tokens is damaged: its checksum differs")
    if num_codes < 1 or not scales or min(scales) < 1:
        raise ValueError(f"the stream of tokens has preset {preset}, which is unknown here")

    found = []
    weights = 1 << np.arange(_bits(num_codes), dtype=np.int64)
    for number, size in enumerate(scales):
        length = _scale_bytes(size, num_codes)
        if len(data) - position < length + 2:
            if partial:
                break
            raise ValueError(
                f"the stream of tokens ends within scale {number} of {len(scales)}, after {len(data)} bytes; "
                f"`partial=True` takes the {number} scales before it"
            )
        part = take(length, "codes")
        expected, state = _checksum(part, state)
        if take(2, "codes") != expected:
            raise ValueError(f"scale {number} of the stream of tokens is damaged: its checksum differs")
        bits = np.unpackbits(np.frombuffer(part, np.uint8), bitorder="little")
        codes = bits[: size * len(weights)].reshape(size, -1).astype(np.int64) @ weights
        if codes.max() >= num_codes or bits[size * len(weights) :].any():
            raise ValueError(f"scale {number} of the stream of tokens has codes that are not there")
        found.append(codes)
    if len(found) == len(scales) and position < len(data):
        raise ValueError(f"{len(data) - position} bytes follow the stream of tokens")
    codes = np.concatenate([np.zeros(0, np.int64), *found])
    return Tokens(torch.from_numpy(codes), scales, num_codes, len(found))
