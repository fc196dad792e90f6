"""The simulator of CUDA itself: every mistake of csrc/cuda/sim/selftest/broken.cu is reported as
what it is, its correct twin is not, and the wrappers of ptx.cuh do what their lane maps say."""

import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from tests.reference import ptx
from tests.write_golden import GOLDEN

lib = pytest.importorskip("convgrad._cuda_sim_selftest", reason="needs the simulator: make sim")

SEEDS = (0, 1, 2, 3)  # ascending, descending, and two at random
RACE = {"race", "uninitialised"}  # whichever comes first in the order of the threads
KINDS = {
    "barrier_before_read": RACE,
    "barrier_before_overwrite": {"race"},
    "barrier_in_branch": {"divergent barrier"},
    "return_before_barrier": {"divergent barrier"},
    "warp_waits_for_block": {"divergent barrier", "deadlock"},
    "exchange_in_warp": RACE,
    "sum_in_warp": {"race"},
    "shuffle_from_absent": {"absent lane"},
    "mask_of_ended_lanes": {"absent lane"},
    "different_operations": {"divergent warp"},
    "load_matrix_of_others": RACE,
    "copy_no_wait": {"asynchronous copy"},
    "copy_wait_one_group_short": {"asynchronous copy"},
    "copy_no_commit": {"asynchronous copy"},
    "copy_no_barrier": RACE | {"asynchronous copy"},
    "copy_into_stage_in_use": {"race", "asynchronous copy"},
    "copy_never_waited_for": {"asynchronous copy"},
    "read_global_beyond": {"out of bounds"},
    "write_global_before": {"out of bounds"},
    "write_tile_beyond": {"out of bounds"},
    "read_shared_beyond": {"out of bounds"},
    "misaligned_vector": {"misaligned"},
    "misaligned_copy": {"misaligned"},
    "uninitialised_shared": {"uninitialised"},
    "uninitialised_global": {"uninitialised"},
    "blocks_write_one_place": {"race"},
    "count_without_atomic": {"race"},
    "stencil_in_place": {"race"},
    "last_block_sums": RACE,
    "neighbouring_bytes": {"race"},
    "read_of_atomic": {"race"},
    "wait_in_a_loop": {"endless"},
    "too_much_shared": {"bad launch"},
    "host_pointer": {"host pointer"},
    "use_after_free": {"use after free"},
    "other_device": {"other device"},
}


@pytest.fixture(autouse=True)
def restored_simulator():
    seed, check = lib.seed(), lib.check()
    lib.set_check(True)
    yield
    lib.set_seed(seed)
    lib.set_check(check)


def report(name, seed):
    lib.set_seed(seed)
    with pytest.raises(RuntimeError, match="CUDA simulator") as error:
        lib.run_case(name, True)
    return str(error.value)


def test_every_case_is_tested():
    assert {*KINDS, "lane_map"} == set(lib.case_names())


@pytest.mark.quick
@pytest.mark.parametrize("name", lib.case_names())
def test_correct_kernels_pass_in_every_order(name):
    outputs = []
    for seed in SEEDS:
        lib.set_seed(seed)
        outputs.append(lib.run_case(name, False))
    assert all(y == outputs[0] for y in outputs)


@pytest.mark.parametrize("name", KINDS)
def test_broken_kernels_are_reported(name):
    for seed in SEEDS:
        text = report(name, seed)
        kind = re.match(r"\[selftest\] CUDA simulator: ([a-z ]+): ", text)
        assert kind, text
        assert kind[1] in KINDS[name], text
    lib.run_case(name, False)  # nothing of the error is left


def test_a_wrong_lane_map_gives_wrong_values():
    x = np.arange(256, dtype=np.float64)
    expected = x[:128].reshape(16, 8) @ x[128:192].reshape(8, 8)
    np.testing.assert_allclose(lib.run_case("lane_map", False), expected.ravel(), rtol=1e-6)
    assert not np.allclose(lib.run_case("lane_map", True), expected.ravel(), rtol=0.01)


def test_a_report_names_all_that_is_needed_to_find_the_mistake():
    pattern = (
        r"\[selftest\] CUDA simulator: race: read of 4 bytes at shared memory \+ \d+, "
        r"which thread \(\d+,0,0\) wrote with no synchronisation between\. "
        r"block \(0,0,0\), thread \(\d+,0,0\), csrc/cuda/sim/selftest/broken\.cu:\d+, "
        r"kernel selftest::barrier_before_overwrite<true>, "
        r"grid \(1,1,1\), block of \(64,1,1\), CONVGRAD_SIM_SEED=5\."
    )
    assert re.fullmatch(pattern, report("barrier_before_overwrite", 5))
    assert " 0 bytes after a block of 1024 bytes" in report("read_global_beyond", 5)
    assert " 4 bytes before a block of 512 bytes" in report("write_global_before", 5)


def test_a_seed_replays():
    assert report("copy_no_barrier", 3) == report("copy_no_barrier", 3)


def test_without_checks_a_missing_barrier_shows_in_the_values():
    right = lib.run_case("barrier_before_overwrite", False)
    lib.set_check(False)
    for seed in SEEDS[2:]:
        lib.set_seed(seed)
        assert lib.run_case("barrier_before_overwrite", True) != right
        assert lib.run_case("barrier_before_overwrite", False) == right
    assert "divergent barrier" in report("return_before_barrier", 2)  # rules hold all the same


def test_threads_of_the_host_may_launch_at_once():
    names = [name for name in lib.case_names() for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda name: lib.run_case(name, False), names))
    for i in range(0, len(names), 4):
        assert all(y == results[i] for y in results[i : i + 4])


# ---- wrappers ----

WRAPPERS = {name: words_in for name, words_in, _ in lib.wrappers()}


def check_results(name, x, y, mma_error):
    """`mma_error`: the bound of |error| / (|C| + |A| |B|)."""
    expected = ptx.EXPECTED[name](x)
    if name.startswith("mma"):
        value, magnitude = expected
        assert (abs(y.view(np.float32) - value) <= mma_error * magnitude).all()
    elif name == "convert":
        np.testing.assert_array_equal(y[..., :3], expected[..., :3])
        # Half to float: a NaN may be any.
        np.testing.assert_array_equal(y[..., 3].view(np.float32), expected[..., 3].view(np.float32))
    else:
        np.testing.assert_array_equal(y, expected)


def test_every_wrapper_is_tested():
    assert set(WRAPPERS) == set(ptx.EXPECTED)


@pytest.mark.quick
@pytest.mark.parametrize("name", WRAPPERS)
def test_wrappers_follow_their_lane_maps(name):
    x = ptx.inputs(name, WRAPPERS[name])
    # Each of 9 or 17 terms, and their sum, is cut off at a unit of the largest's last place.
    check_results(name, x, lib.run_wrapper(name, x), mma_error=18 * 2.0**-23)


SMALL = 2.0**-12  # as a word of each type, both halves of it for 16 bits
SMALL_WORDS = {
    "mma_tf32": (0x39800000, 8),
    "mma_bf16": (0x39803980, 16),
    "mma_f16": (0x0C000C00, 16),
}


@pytest.mark.parametrize("name", SMALL_WORDS)
def test_tensor_cores_round_towards_zero(name):
    """Products of +-2^-24, half a unit in the last place of 1, vanish beside it."""
    word, terms = SMALL_WORDS[name]
    x = np.full((2, 32, 10), word, np.uint32)
    x[1, :, 4:8] |= np.uint32(0x80008000 if terms == 16 else 0x80000000)
    for c, expected in ((0, [[[terms * SMALL**2]], [[-terms * SMALL**2]]]), (1, 1)):
        x[..., :4] = np.float32(c).view(np.uint32)
        y = lib.run_wrapper(name, x).view(np.float32)
        np.testing.assert_array_equal(y, np.broadcast_to(expected, y.shape))


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("ptx_*.npz")), ids=lambda path: path.stem)
def test_wrappers_do_what_a_card_does(path):
    name = path.stem.removeprefix("ptx_")
    with np.load(path) as golden:
        x, y = golden["input"], golden["output"]
    # Tensor cores cut off low bits as they align the terms: a few units in the last place.
    check_results(name, x, y, mma_error=2.0**-20)
    if not name.startswith("mma"):
        np.testing.assert_array_equal(lib.run_wrapper(name, x), y)
