"""Integer codes as the words of bits that a digital memory holds, and back.

A word of b bits lies in the low b bits of a ``uint8``; bit 0 is the least significant one.

==================  ==========================================================  =========================
encoding            value of the bits c_(b-1) … c_0                             range
==================  ==========================================================  =========================
twos-complement     −c_(b-1)·2^(b-1) + Σ_(i<b-1) c_i·2^i                        −2^(b-1) … 2^(b-1) − 1
sign-magnitude      (−1)^c_(b-1) · Σ_(i<b-1) c_i·2^i; −0 reads as 0             ± (2^(b-1) − 1)
==================  ==========================================================  =========================
"""

from __future__ import annotations

import operator
from collections.abc import Iterable

import torch
from torch import Tensor

from analognoise.errors import FaultError, nearest

ENCODINGS = ("twos-complement", "sign-magnitude")
LEAST_BITS, MOST_BITS = 2, 8
# Names of single bits; in both encodings the most significant bit of a word is the one that holds the sign.
_NAMED = {"lsb": 0, "msb": -1, "sign": -1}


def check_encoding(encoding: object) -> str:
    """The encoding itself.

    Raises:
        FaultError: when it is unknown.
    """
    if not isinstance(encoding, str) or encoding not in ENCODINGS:
        hint = nearest(encoding, ENCODINGS) if isinstance(encoding, str) else ""
        raise FaultError(f"unknown encoding {encoding!r}{hint}: known are {', '.join(ENCODINGS)}")
    return encoding


def check_bits(bits: object) -> int:
    """The number of bits of a word as an int.

    Raises:
        FaultError: when it is no whole number from 2 to 8.
    """
    try:
        number = None if isinstance(bits, bool) else operator.index(bits)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or not LEAST_BITS <= number <= MOST_BITS:
        raise FaultError(f"bits is {bits!r}: words have a whole number of {LEAST_BITS} to {MOST_BITS} bits")
    return number


def bit_positions(positions: Iterable[int | str] | int | str | None, bits: int) -> tuple[int, ...]:
    """The bits of a word that are meant, each once, from the least significant one.

    Args:
        positions: numbers from 0 (least significant), ``"lsb"``, ``"msb"`` or ``"sign"`` (the same bit in
            both encodings), one or several; None for all.
        bits: of the word.

    Raises:
        FaultError: when one is not a bit of the word, or none is named.
    """
    bits = check_bits(bits)
    if positions is None:
        return tuple(range(bits))
    if isinstance(positions, str) or not isinstance(positions, Iterable):
        positions = [positions]
    given = list(positions)
    if not given:
        raise FaultError(f"positions names no bit: give some of 0 to {bits - 1}, or None for all")
    return tuple(sorted({_position(item, bits) for item in given}))


def _position(given: int | str, bits: int) -> int:
    if isinstance(given, str) and given in _NAMED:
        return _NAMED[given] % bits
    try:
        number = None if isinstance(given, (bool, str)) else operator.index(given)
    except TypeError:
        number = None
    if number is None or not 0 <= number < bits:
        raise FaultError(
            f"bit position {given!r} is outside a word of {bits} bits: give 0 (least significant) to "
            f"{bits - 1}, or {', '.join(map(repr, _NAMED))}"
        )
    return number


def code_range(bits: int, encoding: str) -> tuple[int, int]:
    """The smallest and the largest code that a word can hold.

    Raises:
        FaultError: for an impossible number of bits or an unknown encoding.
    """
    top = 1 << (check_bits(bits) - 1)
    return (-top if check_encoding(encoding) == "twos-complement" else 1 - top), top - 1


def encode(codes: Tensor, bits: int, encoding: str) -> Tensor:
    """The words that hold integer codes.

    Args:
        codes: whole numbers, of any shape, integer type and device.
        bits: of a word, 2 to 8.
        encoding: "twos-complement" or "sign-magnitude".

    Returns:
        ``uint8`` words of the same shape.

    Raises:
        FaultError: when codes are no integers, or one does not fit into a word.
    """
    low, high = code_range(bits, encoding)
    if codes.is_floating_point() or codes.is_complex() or codes.dtype == torch.bool:
        raise FaultError(f"codes are {codes.dtype}: give whole numbers in an integer type")
    if codes.numel():
        least, most = (int(end) for end in torch.aminmax(codes))
        if least < low or most > high:
            wrong = least if least < low else most
            raise FaultError(
                f"code {wrong} does not fit into a word of {bits} bits in {encoding}, which holds {low} to "
                f"{high}"
            )
    small = codes.to(torch.int8)
    if encoding == "twos-complement":
        return small.view(torch.uint8).bitwise_and((1 << bits) - 1)
    sign = (small < 0).to(torch.uint8).bitwise_left_shift_(bits - 1)
    return small.abs().view(torch.uint8).bitwise_or_(sign)


def decode(words: Tensor, bits: int, encoding: str) -> Tensor:
    """The codes that words hold; bits above the word are ignored.

    Args:
        words: ``uint8``, of any shape and device.
        bits: of a word, 2 to 8.
        encoding: as for :func:`encode`.

    Returns:
        ``int8`` codes of the same shape.

    Raises:
        FaultError: when the words are not ``uint8``.
    """
    code_range(bits, encoding)
    check_words(words)
    if encoding == "twos-complement":
        # The sign bit goes to the top, and an arithmetic shift back copies it into the bits above the word.
        above = 8 - bits
        return words.bitwise_left_shift(above).view(torch.int8).bitwise_right_shift_(above)
    top = 1 << (bits - 1)
    magnitude = words.bitwise_and(top - 1).view(torch.int8)
    return torch.where(words.bitwise_and(top) != 0, -magnitude, magnitude)


def check_words(words: Tensor) -> None:
    """Raise unless these are words.

    Raises:
        FaultError: when they are not ``uint8``.
    """
    if words.dtype != torch.uint8:
        raise FaultError(f"words are {words.dtype}: give torch.uint8, as encode does")
