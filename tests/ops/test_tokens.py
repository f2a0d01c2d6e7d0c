import pytest
import torch

from fastshape import ops, testing
from fastshape.ops.tokens import PRESETS


def tokens(scales, num_codes, seed=0):
    return torch.randint(0, num_codes, (sum(scales),), generator=testing.generator(seed))


CASES = [((3,), 1), ((1, 4, 9), 2), ((5, 2), 3), ((1, 4, 9, 16), 300), ((7, 1), 2**24 - 1), (PRESETS[1], 256)]


def test_by_hand():
    """Two codes of two bits each, lowest bit first: 1 + 4 * 3 and, on the next scale, 2."""
    data = ops.pack_tokens(torch.tensor([1, 3, 2]), scales=(2, 1), num_codes=4)
    assert data[:5] == b"FQT\x01\x00"
    assert data[5:8] == b"\x04\x00\x00"
    assert data[8:16] == b"\x02\x00\x02\x00\x00\x01\x00\x00"
    assert data[18] == 1 + 4 * 3
    assert data[21] == 2
    assert len(data) == 24


@pytest.mark.parametrize(("scales", "num_codes"), CASES)
def test_there_and_back(scales, num_codes):
    codes = tokens(scales, num_codes)
    data = ops.pack_tokens(codes, scales=scales, num_codes=num_codes)
    result = ops.unpack_tokens(data)
    assert torch.equal(result.codes, codes)
    assert result[1:] == (scales, num_codes, len(scales))
    assert ops.unpack_tokens(bytearray(data)).codes.tolist() == codes.tolist()
    assert ops.pack_tokens(codes.to(torch.int32), scales=scales, num_codes=num_codes) == data


def test_sizes():
    """Close to the bits themselves: 3990 bytes of them for the largest preset with 16384 codes."""
    for preset, tokens_of_it in ((1, 155), (2, 680), (3, 1256), (4, 2280)):
        scales = PRESETS[preset]
        assert sum(scales) == tokens_of_it
        for num_codes, bits in ((256, 8), (2048, 11), (16384, 14), (65536, 16)):
            data = ops.pack_tokens(tokens(scales, num_codes), scales=scales, num_codes=num_codes)
            assert len(data) <= (tokens_of_it * bits + 7) // 8 + 10 + 3 * len(scales)
    assert len(ops.pack_tokens(tokens(PRESETS[4], 16384), scales=PRESETS[4], num_codes=16384)) == 4025


def test_the_beginning_is_a_coarser_shape():
    scales, num_codes = (1, 4, 9, 16), 300
    codes = tokens(scales, num_codes)
    data = ops.pack_tokens(codes, scales=scales, num_codes=num_codes)
    header = 12 + 3 * len(scales)
    seen = set()
    for length in range(len(data)):
        if length < header:
            with pytest.raises(ValueError, match="ends within its header"):
                ops.unpack_tokens(data[:length], partial=True)
            continue
        result = ops.unpack_tokens(data[:length], partial=True)
        assert result.scales == scales
        assert torch.equal(result.codes, codes[: sum(scales[: result.num_scales])])
        seen.add(result.num_scales)
        with pytest.raises(ValueError, match=f"ends within scale {result.num_scales} of 4.*partial=True"):
            ops.unpack_tokens(data[:length])
        if result.num_scales == 2:
            again = ops.pack_tokens(result.codes, scales=scales, num_codes=num_codes)
            assert data.startswith(again)
    assert seen == {0, 1, 2, 3}


@pytest.mark.parametrize(("scales", "num_codes"), [((1, 4, 9), 300), ((1, 3), 4)])
def test_every_flipped_bit_is_refused(scales, num_codes):
    data = ops.pack_tokens(tokens(scales, num_codes), scales=scales, num_codes=num_codes)
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        for partial in (False, True):
            try:
                ops.unpack_tokens(bytes(damaged), partial=partial)
            except ValueError:
                continue
            raise AssertionError(f"bit {bit} was flipped and nobody noticed")


def test_foreign_bytes_are_refused():
    scales, num_codes = PRESETS[1], 256
    data = ops.pack_tokens(tokens(scales, num_codes), scales=scales, num_codes=num_codes)
    with pytest.raises(ValueError, match="ends within its header, after 0 bytes"):
        ops.unpack_tokens(b"")
    with pytest.raises(ValueError, match="this is no stream of tokens"):
        ops.unpack_tokens(b"\x89PNG" + bytes(100))
    with pytest.raises(ValueError, match="of version 2; this reads version 1"):
        ops.unpack_tokens(data[:3] + b"\x02" + data[4:])
    with pytest.raises(ValueError, match="header of the stream of tokens is damaged"):
        ops.unpack_tokens(data[:4] + b"\x02" + data[5:])
    with pytest.raises(ValueError, match="5 bytes follow"):
        ops.unpack_tokens(data + bytes(5))
    with pytest.raises(TypeError, match="`data` must be bytes, got str"):
        ops.unpack_tokens("FQT")
    # Two scales of the same size that changed places.
    swapped = ops.pack_tokens(torch.arange(8), scales=(4, 4), num_codes=256)
    begin = len(swapped) - 12
    with pytest.raises(ValueError, match=r"scale 0 .* damaged"):
        ops.unpack_tokens(swapped[:begin] + swapped[begin + 6 :] + swapped[begin : begin + 6])


def test_wrong_input():
    codes = torch.arange(5)
    with pytest.raises(
        ValueError, match=r"T the tokens of all or of the first of `scales`, \(1, 3\); got \(5,\)"
    ):
        ops.pack_tokens(codes, scales=(1, 3), num_codes=8)
    with pytest.raises(ValueError, match=r"`codes` must be in \[0, 4\), got 0 to 4"):
        ops.pack_tokens(codes, scales=(1, 4), num_codes=4)
    with pytest.raises(ValueError, match="`num_codes` must be in"):
        ops.pack_tokens(codes, scales=(1, 4), num_codes=0)
    with pytest.raises(ValueError, match="`scales` must be 1 to 65535 sizes"):
        ops.pack_tokens(codes, scales=(0, 5), num_codes=8)
    with pytest.raises(TypeError, match="`codes` must be integers, got float32"):
        ops.pack_tokens(codes.float(), scales=(1, 4), num_codes=8)
