"""Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), in ints."""

import numpy as np


def philox(counter, key):
    """The four words of one block: counter of four, key of two 32-bit words."""
    c, k = list(counter), list(key)
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [b >> 32 ^ c[1] ^ k[0], b & 0xFFFFFFFF, a >> 32 ^ c[3] ^ k[1], a & 0xFFFFFFFF]
        k = [(k[0] + 0x9E3779B9) & 0xFFFFFFFF, (k[1] + 0xBB67AE85) & 0xFFFFFFFF]
    return c


def mask(seed, offset, count, p):
    """What dropout multiplies its first `count` elements by."""
    words = []
    for i in range(-(-count // 4)):
        at = (offset + i) % 2**64
        counter = (at & 0xFFFFFFFF, at >> 32, 0, 0)
        words += philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    scale = 1 / (1 - p) if p < 1 else 0.0
    return np.array([0.0 if w < int(p * 2**32) else scale for w in words[:count]])
