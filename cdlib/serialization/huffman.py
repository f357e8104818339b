"""Huffman codes: symbols that are frequent take few bits, and the file holds only how long each code is.

Codes are canonical: of the same length they count up in the order of symbols, so that lengths say everything.
"""

from __future__ import annotations

import heapq
from itertools import count

import numpy as np

from cdlib.errors import CdlibError

Bytes = np.ndarray


def lengths_of(symbols: Bytes) -> Bytes:
    """Return how many bits the code of each of the 256 bytes has, uint8 [256]; 0 for those that do not occur."""
    counts, order = np.bincount(symbols, minlength=256), count()
    heap = [(int(n), next(order), [symbol]) for symbol, n in enumerate(counts) if n]
    lengths = np.zeros(256, dtype=np.uint8)
    if len(heap) == 1:
        lengths[heap[0][2]] = 1
    heapq.heapify(heap)
    while len(heap) > 1:
        one, two = heapq.heappop(heap), heapq.heappop(heap)
        lengths[one[2] + two[2]] += 1
        heapq.heappush(heap, (one[0] + two[0], next(order), one[2] + two[2]))
    return lengths


def codes_of(lengths: Bytes) -> list[tuple[int, int, int]]:
    """Return length, code and symbol of all symbols that have a code, in the order of codes."""
    found: list[tuple[int, int, int]] = []
    code = last = 0
    for length, symbol in sorted((int(n), symbol) for symbol, n in enumerate(lengths) if n):
        code <<= length - last
        found.append((length, code, symbol))
        code, last = code + 1, length
    return found


def coded(symbols: Bytes) -> tuple[Bytes, Bytes]:
    """Return the stream of bits of bytes, uint8, the highest bit first, and the lengths that say how to read it.

    Lengths end with that of the largest byte that occurs.
    """
    lengths = lengths_of(symbols)
    words = {symbol: f"{code:0{length}b}" for length, code, symbol in codes_of(lengths)}
    bits = "".join(map(words.__getitem__, symbols.tolist()))
    used = lengths[: int(symbols.max(initial=0)) + 1]
    return np.packbits(np.frombuffer(bits.encode(), dtype=np.uint8) - ord("0")), used


def decoded(stream: Bytes, lengths: Bytes, number: int) -> Bytes:
    """Return so many symbols of a stream, uint8; a CdlibError if it holds fewer, or the lengths are no code's."""
    codes = codes_of(lengths)
    if sum(2.0**-length for length, _, _ in codes) > 1:
        raise CdlibError("these are no lengths of a Huffman code: the file is damaged.")
    table = {(length, code): symbol for length, code, symbol in codes}
    found: list[int] = []
    code = length = 0
    for bit in np.unpackbits(stream).tolist():
        if len(found) == number:
            break
        code, length = code << 1 | bit, length + 1
        if (symbol := table.get((length, code))) is not None:
            found.append(symbol)
            code, length = 0, 0
    if len(found) != number:
        raise CdlibError(f"the stream holds {len(found)} symbols and not {number}: the file is damaged.")
    return np.array(found, dtype=np.uint8)


def entropy(symbols: Bytes) -> float:
    """Return the bits a symbol that no code for single symbols can go below (Shannon 1948)."""
    shares = np.bincount(symbols, minlength=1) / max(len(symbols), 1)
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())
