"""Codes as words of bits: tables checked by hand, and every word of every size."""

from __future__ import annotations

import pytest
import torch

from analognoise.errors import FaultError
from analognoise.memory.words import ENCODINGS, bit_positions, code_range, decode, encode

TWOS, SIGN = ENCODINGS


@pytest.mark.parametrize(
    ("bits", "encoding", "code", "word"),
    [
        (2, TWOS, -2, 0b10),
        (2, TWOS, -1, 0b11),
        (2, TWOS, 1, 0b01),
        (2, SIGN, -1, 0b11),
        (2, SIGN, 1, 0b01),
        (4, TWOS, 7, 0b0111),
        (4, TWOS, -7, 0b1001),
        (4, TWOS, -8, 0b1000),
        (4, SIGN, 7, 0b0111),
        (4, SIGN, -7, 0b1111),
        (4, SIGN, 0, 0b0000),
        (5, TWOS, -3, 0b11101),
        (5, SIGN, -3, 0b10011),
        (8, TWOS, 127, 0b01111111),
        (8, TWOS, -127, 0b10000001),
        (8, TWOS, -128, 0b10000000),
        (8, SIGN, -127, 0b11111111),
        (8, SIGN, -1, 0b10000001),
    ],
)
def test_table(bits: int, encoding: str, code: int, word: int) -> None:
    assert encode(torch.tensor([code]), bits, encoding).tolist() == [word]
    assert decode(torch.tensor([word], dtype=torch.uint8), bits, encoding).tolist() == [code]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_every_code_comes_back_and_every_word_reads_by_the_formula(bits: int, encoding: str) -> None:
    low, high = code_range(bits, encoding)
    codes = torch.arange(low, high + 1, dtype=torch.int32).reshape(1, -1)
    words = encode(codes, bits, encoding)
    assert words.shape == codes.shape
    assert int(words.max()) < 1 << bits
    assert len(words.unique()) == codes.numel()
    assert torch.equal(decode(words, bits, encoding).int(), codes)
    for word in range(1 << bits):
        c = [word >> i & 1 for i in range(bits)]
        magnitude = sum(c[i] << i for i in range(bits - 1))
        value = magnitude - (c[-1] << (bits - 1)) if encoding == TWOS else (-1) ** c[-1] * magnitude
        assert decode(torch.tensor(word, dtype=torch.uint8), bits, encoding).item() == value


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_minus_zero_reads_as_zero(bits: int) -> None:
    word = torch.tensor([1 << (bits - 1)], dtype=torch.uint8)
    assert decode(word, bits, SIGN).tolist() == [0]
    assert decode(word, bits, TWOS).tolist() == [-(1 << (bits - 1))]


@pytest.mark.parametrize(
    ("codes", "bits", "encoding", "said"),
    [
        (
            [0, 8],
            4,
            TWOS,
            "code 8 does not fit into a word of 4 bits in twos-complement, which",
        ),
        ([-9], 4, TWOS, "code -9 "),
        ([-8], 4, SIGN, "holds -7 to 7"),
        ([300], 8, TWOS, "code 300 "),
        ([0.5], 4, TWOS, "torch.float32"),
        ([0], 1, TWOS, "bits is 1: words have a whole number of 2 to 8 bits"),
        ([0], 9, TWOS, "bits is 9"),
        ([0], 4.5, TWOS, "bits is 4.5"),
        ([0], True, TWOS, "bits is True"),
        ([0], 4, "twos-compliment", "did you mean 'twos-complement'"),
        ([0], 4, None, "unknown encoding None"),
    ],
)
def test_what_cannot_be_encoded_is_named(codes: list, bits: int, encoding: str, said: str) -> None:
    with pytest.raises(FaultError, match=said.replace("(", r"\(")):
        encode(torch.tensor(codes), bits, encoding)


def test_words_are_bytes() -> None:
    with pytest.raises(FaultError, match=r"words are torch\.int64"):
        decode(torch.tensor([1]), 4, TWOS)
    assert encode(torch.zeros(0, 3, dtype=torch.int8), 4, TWOS).shape == (0, 3)


def test_positions() -> None:
    assert bit_positions(None, 4) == (0, 1, 2, 3)
    assert bit_positions(("msb", 0, "lsb", "sign", 2), 8) == (0, 2, 7)
    assert bit_positions("sign", 4) == (3,)
    for wrong in (4, -1, "top", 1.5, True):
        with pytest.raises(FaultError, match="outside a word of 4 bits"):
            bit_positions([wrong], 4)  # type: ignore[list-item]
    with pytest.raises(FaultError, match="names no bit"):
        bit_positions([], 4)
