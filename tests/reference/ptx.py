"""What the wrappers of csrc/cuda/ptx.cuh mean, from their documented lane maps, in float64.

Each function takes the words that the lanes of a warp bring, (n, 32, inputs) uint32, and returns
what they get; csrc/cuda/sim/selftest/wrappers.cu runs the same on the device.
"""

import numpy as np

LANE = np.arange(32)


def copy_async(x, words):
    groups = x.reshape(len(x), 32, 3, words)
    source = (LANE + 1) % 32  # each lane reads what the next one copied
    out = groups[:, source].copy()
    for g in range(3):
        out[:, (source + g) % 5 == 0, g] = 0
    return out.reshape(len(x), 32, -1)


@np.errstate(over="ignore", invalid="ignore")
def rounded(x, bits, lowest, ties_away):
    """Bits of float32 x rounded to `bits` significant bits, or to multiples of 2^lowest where that
    is coarser."""
    x = x.astype(np.float64)
    _, exponent = np.frexp(x)
    unit = np.ldexp(1.0, np.maximum(exponent - bits, lowest))
    units = x / unit
    whole = np.trunc(units + np.copysign(0.5, units)) if ties_away else np.rint(units)
    return np.copysign(whole * unit, x).astype(np.float32).view(np.uint32)


def to_tf32(x):
    return rounded(x.view(np.float32), 11, -136, ties_away=True)


def tf32_values(words):
    """A tensor core ignores the lower 13 bits."""
    return (words & np.uint32(0xFFFFE000)).view(np.float32).astype(np.float64)[..., None]


def halves(words):
    return np.stack([words & 0xFFFF, words >> 16], axis=-1)


def bf16_values(words):
    return (halves(words).astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def f16_values(words):
    return halves(words).astype(np.uint16).view(np.float16).astype(np.float64)


def fragments(x, values, packed):
    """The matrices C, A and B of (n, 32, 10) words: d, a and b of each lane."""
    group, member = LANE // 4, LANE % 4
    c = np.empty((len(x), 16, 8))
    a, b = np.empty((len(x), 16, 8 * packed)), np.empty((len(x), 8 * packed, 8))
    for i in range(4):
        c[:, group + 8 * (i // 2), 2 * member + i % 2] = x[:, :, i].view(np.float32)
        for e in range(packed):
            column = packed * member + 4 * packed * (i // 2) + e
            a[:, group + 8 * (i % 2), column] = values(x[:, :, 4 + i])[..., e]
    for i in range(2):
        for e in range(packed):
            row = packed * member + 4 * packed * i + e
            b[:, row, group] = values(x[:, :, 8 + i])[..., e]
    return c, a, b


def mma(x, values, packed):
    """D = C + A B as each lane's four elements, in float64; and |C| + |A| |B|."""
    c, a, b = fragments(x, values, packed)
    group, member = LANE // 4, LANE % 4
    results = []
    for d in (c + a @ b, abs(c) + abs(a) @ abs(b)):
        per_lane = [d[:, group + 8 * (i // 2), 2 * member + i % 2] for i in range(4)]
        results.append(np.stack(per_lane, axis=-1))
    return results


def load_matrix_x4(x, transposed):
    # Matrix i's row r, of 8 elements of 16 bits, comes from lane 8 i + r.
    elements = np.ascontiguousarray(x).view(np.uint16).reshape(len(x), 4, 8, 8)
    if transposed:
        elements = elements.swapaxes(2, 3)
    group, member = LANE // 4, LANE % 4
    pairs = [elements[:, :, group, 2 * member + e].astype(np.uint32) for e in range(2)]
    return (pairs[0] | pairs[1] << 16).transpose(0, 2, 1)


def shuffles(x):
    """CUDA's warp operations, on (n, 32, 1); a lane whose source is not in its segment keeps its
    own value."""
    v = x[:, :, 0]

    def from_lane(source, width=32, first=0, last=None):
        base = LANE // width * width
        source = np.asarray(source)
        valid = (source >= base) & (source < base + width)
        return v[:, np.where(valid, source, LANE)]

    columns = [
        from_lane((LANE * 7 + 3) % 32),
        from_lane(LANE // 8 * 8 + LANE % 3, 8),
        from_lane(LANE - 3),
        from_lane(LANE - 5, 16),
        from_lane(LANE + 9),
        from_lane(LANE + 2, 4),
        from_lane(LANE ^ 21),
        from_lane(LANE ^ 5, 8),
    ]
    ballot = (v % 3 == 0).astype(np.uint64) @ (np.uint64(1) << LANE.astype(np.uint64))
    votes = (v == 0).any(axis=1) + 2 * (v > 0).all(axis=1)
    columns += [np.repeat(each[:, None], 32, axis=1) for each in (ballot, votes)]
    return np.stack(columns, axis=-1).astype(np.uint32)


@np.errstate(over="ignore", invalid="ignore")
def convert(x):
    """Words as float32 -> bfloat16 and float16 bits; their lower halves back to float32 bits."""
    word = x[:, :, 0]
    values = word.view(np.float32)
    low = (word & 0xFFFF).astype(np.uint16)
    columns = [
        np.where(np.isnan(values), 0x7FFF, rounded(values, 8, -133, ties_away=False) >> 16),
        np.where(np.isnan(values), 0x7FFF, values.astype(np.float16).view(np.uint16)),
        low.astype(np.uint32) << 16,
        low.view(np.float16).astype(np.float32).view(np.uint32),
    ]
    return np.stack(columns, axis=-1).astype(np.uint32)


EXPECTED = {
    "copy_async_4": lambda x: copy_async(x, 1),
    "copy_async_8": lambda x: copy_async(x, 2),
    "copy_async_16": lambda x: copy_async(x, 4),
    "to_tf32": to_tf32,
    "mma_tf32": lambda x: mma(x, tf32_values, 1),
    "mma_bf16": lambda x: mma(x, bf16_values, 2),
    "mma_f16": lambda x: mma(x, f16_values, 2),
    "load_matrix_x4": lambda x: load_matrix_x4(x, False),
    "load_matrix_x4_transposed": lambda x: load_matrix_x4(x, True),
    "shuffles": shuffles,
    "convert": convert,
}


def inputs(name, words):
    """Words for one wrapper, always the same: (n, 32, words)."""
    rng = np.random.default_rng(7)
    if name == "convert":  # every 16-bit pattern in the lower half; upper halves at random
        low = np.arange(65536, dtype=np.uint32)
        high = rng.integers(0, 65536, 65536).astype(np.uint32)
        return (low | high << np.uint32(16)).reshape(-1, 32, 1)
    if name == "to_tf32":
        x = rng.integers(0, 2**32, (64, 32, words)).astype(np.uint32)
        x[0] &= np.uint32(0x807FFFFF)  # subnormal numbers
        x[1] = x[1] & np.uint32(0xFFFFE000) | np.uint32(0x1000)  # ties
        special = [0, 0x80000000, 0x7F7FFFFF, 0x7F800000, 0xFF800000, 0x7F7FF000, 1, 0x00800000]
        x[2, 0] = np.array(special, np.uint32)
        x[np.isnan(x.view(np.float32))] = 0x3F800000
        return x
    x = rng.integers(0, 2**32, (16, 32, words)).astype(np.uint32)
    if name == "shuffles":
        x %= 7
        x[0] = 1
        x[1] = 3
    if name.startswith("mma"):
        values = rng.standard_normal((16, 32, words)).astype(np.float32)
        x = values.view(np.uint32).copy()  # with lower bits that TF32 has not
        packed = rng.standard_normal((16, 32, 6, 2)).astype(np.float32)
        if name == "mma_bf16":
            bits = packed.view(np.uint32) >> 16
            x[..., 4:] = bits[..., 0] | bits[..., 1] << 16
        if name == "mma_f16":
            x[..., 4:] = packed.astype(np.float16).view(np.uint32)[..., 0]
    return x
