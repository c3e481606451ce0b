"""What blocks of ggml's types stand for, one number after the other: the layouts that ggml-common.h publishes.

Each function gives the terms of the number at a place in a block, whose sum it is.
"""

import struct
from collections.abc import Callable

_IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _half(block: bytes, at: int) -> float:
    number: float = struct.unpack_from("<e", block, at)[0]
    return number


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def _nibble(codes: bytes, place: int) -> int:
    """Of 32 numbers in 16 bytes: the lower halves are the first 16."""
    return codes[place % 16] & 15 if place < 16 else codes[place % 16] >> 4


def _q4_0(block: bytes, place: int) -> tuple[float, ...]:
    return (_half(block, 0) * (_nibble(block[2:], place) - 8),)


def _q4_1(block: bytes, place: int) -> tuple[float, ...]:
    return _half(block, 0) * _nibble(block[4:], place), _half(block, 2)


def _fifth(block: bytes, at: int, place: int) -> int:
    return (int.from_bytes(block[at : at + 4], "little") >> place & 1) << 4


def _q5_0(block: bytes, place: int) -> tuple[float, ...]:
    return (_half(block, 0) * ((_nibble(block[6:], place) | _fifth(block, 2, place)) - 16),)


def _q5_1(block: bytes, place: int) -> tuple[float, ...]:
    return _half(block, 0) * (_nibble(block[8:], place) | _fifth(block, 4, place)), _half(block, 2)


def _q8_0(block: bytes, place: int) -> tuple[float, ...]:
    return (_half(block, 0) * _signed(block[2 + place]),)


def _q2_k(block: bytes, place: int) -> tuple[float, ...]:
    half, within = divmod(place, 128)
    quarter, lane = divmod(within, 32)
    scale = block[8 * half + 2 * quarter + lane // 16]
    code = block[16 + 32 * half + lane] >> 2 * quarter & 3
    return _half(block, 80) * (scale & 15) * code, -_half(block, 82) * (scale >> 4)


def _q3_k(block: bytes, place: int) -> tuple[float, ...]:
    half, within = divmod(place, 128)
    quarter, lane = divmod(within, 32)
    scales, number = block[96:108], 8 * half + 2 * quarter + lane // 16
    low = scales[number] & 15 if number < 8 else scales[number - 8] >> 4
    scale = (low | (scales[8 + number % 4] >> 2 * (number // 4) & 3) << 4) - 32
    code = block[32 + 32 * half + lane] >> 2 * quarter & 3
    code -= 0 if block[lane] >> 4 * half + quarter & 1 else 4
    return (_half(block, 108) * scale * code,)


def _scale_and_least(scales: bytes, number: int) -> tuple[int, int]:
    """Of eight pairs of six bits in twelve bytes."""
    if number < 4:
        return scales[number] & 63, scales[number + 4] & 63
    scale = scales[number + 4] & 15 | scales[number - 4] >> 6 << 4
    return scale, scales[number + 4] >> 4 | scales[number] >> 6 << 4


def _of_k_block(block: bytes, place: int, codes: bytes, fifth: int) -> tuple[float, ...]:
    number, lane = divmod(place, 32)
    scale, least = _scale_and_least(block[4:16], number)
    byte = codes[32 * (number // 2) + lane]
    code = (byte >> 4 if number % 2 else byte & 15) | fifth
    return _half(block, 0) * scale * code, -_half(block, 2) * least


def _q4_k(block: bytes, place: int) -> tuple[float, ...]:
    return _of_k_block(block, place, block[16:], 0)


def _q5_k(block: bytes, place: int) -> tuple[float, ...]:
    return _of_k_block(block, place, block[48:], (block[16 + place % 32] >> place // 32 & 1) << 4)


def _q6_k(block: bytes, place: int) -> tuple[float, ...]:
    half, within = divmod(place, 128)
    quarter, lane = divmod(within, 32)
    byte = block[64 * half + lane + 32 * (quarter % 2)]
    low = byte & 15 if quarter < 2 else byte >> 4
    code = (low | (block[128 + 32 * half + lane] >> 2 * quarter & 3) << 4) - 32
    return (_half(block, 208) * _signed(block[192 + 8 * half + lane // 16 + 2 * quarter]) * code,)


def _iq4_nl(block: bytes, place: int) -> tuple[float, ...]:
    return (_half(block, 0) * _IQ4[_nibble(block[2:], place)],)


def _iq4_xs(block: bytes, place: int) -> tuple[float, ...]:
    number, lane = divmod(place, 32)
    low = block[4 + number // 2] >> 4 * (number % 2) & 15
    scale = (low | (int.from_bytes(block[2:4], "little") >> 2 * number & 3) << 4) - 32
    return (_half(block, 0) * scale * _IQ4[_nibble(block[8 + 16 * number : 24 + 16 * number], lane)],)


TERMS: dict[str, Callable[[bytes, int], tuple[float, ...]]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
    "IQ4_NL": _iq4_nl,
    "IQ4_XS": _iq4_xs,
}
