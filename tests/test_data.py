"""Data sets, samplers, the loader and its threads."""

import gc
import threading
import time
from collections import Counter, namedtuple

import numpy as np
import pytest

import convgrad as cg
from convgrad import data

pytestmark = pytest.mark.cpu("of the host's side: loaders make tensors on the CPU")


class Squares(data.Dataset):
    """Items of all kinds, made one by one, in a time that differs from item to item."""

    def __init__(self, n=20, fail_at=None, slow=False):
        self.n, self.fail_at, self.slow, self.seen, self.epochs = n, fail_at, slow, [], []

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        self.seen.append(i)
        if i == self.fail_at:
            raise LookupError(f"item {i} is damaged")
        if self.slow:
            time.sleep(0.002 * (i % 3))
        return np.full((2, 3), i, np.float32), i * i

    def set_epoch(self, epoch):
        self.epochs.append(epoch)


def order(loader):
    return [int(v) for _, squares in loader for v in squares.array]


def data_threads():
    return [t for t in threading.enumerate() if t.name.startswith("convgrad-data")]


# ---- data sets ----


@pytest.mark.quick
def test_tensor_dataset():
    x = cg.tensor(np.arange(24, dtype=np.float32).reshape(4, 2, 3))
    ds = data.TensorDataset(x, np.arange(4))
    assert len(ds) == 4 and ds[2][1].array == 2
    np.testing.assert_array_equal(ds[-1][0].array, x.array[3])
    bx, by = ds.batch([3, 0, 3])
    np.testing.assert_array_equal(bx.array, x.array[[3, 0, 3]])
    assert bx.array.strides[1] == 4 and by.array.tolist() == [3, 0, 3]
    with pytest.raises(IndexError):
        ds.batch([4])
    with pytest.raises(ValueError, match=r"same first axis. Got shapes \[\(4, 2, 3\), \(3,\)\]"):
        data.TensorDataset(x, np.zeros(3))
    with pytest.raises(ValueError, match="At least one tensor"):
        data.TensorDataset()


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.uint8])
def test_batches_have_the_rows(channels_last, dtype):
    images = np.random.default_rng(0).integers(0, 99, (5, 3, 4, 2)).astype(dtype)
    if channels_last:
        images = np.moveaxis(np.ascontiguousarray(np.moveaxis(images, 1, -1)), -1, 1)
    for source in (images, images[:, :, ::-1], images[::-1]):
        (batch,) = data.TensorDataset(source).batch([4, 1])
        np.testing.assert_array_equal(batch.array, source[[4, 1]])
        assert batch.array.dtype == dtype
        if dtype != np.uint8:
            assert batch.array.strides[1] == batch.array.itemsize


def test_subset_concat_and_split():
    ds = data.TensorDataset(np.arange(10))
    sub = data.Subset(ds, [7, 3, 5])
    assert len(sub) == 3 and sub[1][0].array == 3 and sub.batch([2, 0])[0].array.tolist() == [5, 7]
    both = ds + data.TensorDataset(np.arange(100, 103))
    assert len(both) == 13 and both[12][0].array == 102 and both[-13][0].array == 0
    assert [int(b[0].array[0]) for b in data.DataLoader(both)] == [*range(10), 100, 101, 102]
    with pytest.raises(IndexError, match="index 13 is out of 13"):
        both[13]
    parts = data.random_split(ds, [7, 3], generator=1)
    assert sorted(i for p in parts for i in p.indices) == list(range(10))
    assert parts[0].indices == data.random_split(ds, [0.7, 0.3], generator=1)[0].indices
    assert [len(p) for p in data.random_split(ds, [0.25, 0.25, 0.5])] == [3, 2, 5]
    with pytest.raises(ValueError, match=r"sum to the data set's length, 10.* Got \[7, 4\]"):
        data.random_split(ds, [7, 4])


def test_overridden_items_are_not_bypassed():
    class Doubled(data.TensorDataset):
        def __getitem__(self, i):
            return tuple(cg.tensor(2 * t.array) for t in super().__getitem__(i))

    ds = Doubled(np.arange(4))
    assert [int(v) for (b,) in data.DataLoader(ds, 2) for v in b.array] == [0, 2, 4, 6]
    sub = data.DataLoader(data.Subset(ds, [3]), 2)
    assert [int(v) for (b,) in sub for v in b.array] == [6]


# ---- collation ----


def test_default_collate():
    Pair = namedtuple("Pair", "a b")
    item = (
        1,
        2.5,
        True,
        np.float64(3),
        np.zeros((2, 3), np.float32),
        {"k": "text"},
        [1],
        Pair(1, 2),
    )
    out = data.default_collate([item, item])
    assert isinstance(out, tuple) and [t.array.dtype.name for t in out[:5]] == [
        "int64", "float32", "bool", "float64", "float32",
    ]  # fmt: skip
    assert out[4].shape == (2, 2, 3) and out[4].array.strides[1] == 4
    assert out[5] == {"k": ["text", "text"]} and isinstance(out[6], list)
    assert isinstance(out[7], Pair) and out[7].b.array.tolist() == [2, 2]
    assert data.default_collate([cg.tensor([1.0]), cg.tensor([2.0])]).shape == (2, 1)
    with pytest.raises(ValueError, match=r"must have one shape. Got \[\(1,\), \(2,\)\]"):
        data.default_collate([np.zeros(1), np.zeros(2)])
    with pytest.raises(ValueError, match=r"must have one length. Got \[1, 2\]"):
        data.default_collate([(1,), (1, 2)])
    with pytest.raises(TypeError, match="Got NoneType"):
        data.default_collate([None])


# ---- samplers ----


@pytest.mark.quick
def test_random_sampler():
    s = data.RandomSampler(range(50), seed=3)
    first = list(s)
    assert sorted(first) == list(range(50)) and list(s) == first
    s.set_epoch(1)
    assert list(s) != first and sorted(s) == list(range(50))
    assert list(data.RandomSampler(range(50), seed=3)) == first
    assert len(list(data.RandomSampler(range(3), num_samples=7, seed=0))) == 7
    drawn = list(data.RandomSampler(range(3), replacement=True, num_samples=100, seed=0))
    assert set(drawn) == {0, 1, 2} and list(data.RandomSampler([], seed=0)) == []


def test_weighted_sampler():
    s = data.WeightedRandomSampler([0, 1, 3], 4000, seed=0)
    counts = Counter(s)
    assert len(s) == 4000 and counts[0] == 0 and abs(counts[2] / counts[1] - 3) < 0.4
    assert sorted(data.WeightedRandomSampler([1, 0, 1], 2, replacement=False, seed=0)) == [0, 2]
    for weights in ([], [0, 0], [1, -1], [np.nan]):
        with pytest.raises(ValueError, match="numbers >= 0"):
            data.WeightedRandomSampler(weights, 1)
    with pytest.raises(ValueError, match=r"weights above 0, 1, can be drawn. Got 2"):
        data.WeightedRandomSampler([1, 0], 2, replacement=False)


def test_class_balanced_sampler():
    labels = np.array([0] * 90 + [1] * 9 + [2])
    s = data.ClassBalancedSampler(labels, seed=1)
    drawn = np.array(list(s))
    assert len(s) == len(drawn) == 100
    assert sorted(Counter(labels[drawn]).values()) == [33, 33, 34]
    zeros = drawn[labels[drawn] == 0]
    assert len(set(zeros.tolist())) == len(zeros), "no repetition before all were seen"
    assert set(labels[drawn[:3]]) == {0, 1, 2}
    s.set_epoch(1)
    assert list(s) != drawn.tolist()
    assert len(list(data.ClassBalancedSampler([0, 1], num_samples=5, seed=0))) == 5
    with pytest.raises(ValueError, match="one class per item"):
        data.ClassBalancedSampler([])


def test_batch_sampler():
    assert list(data.BatchSampler(range(5), 2)) == [[0, 1], [2, 3], [4]]
    dropped = data.BatchSampler(range(5), 2, drop_last=True)
    assert list(dropped) == [[0, 1], [2, 3]] and len(dropped) == 2
    for size in (0, -1, 2.0, True):
        with pytest.raises(ValueError, match="positive int"):
            data.BatchSampler(range(5), size)


# ---- the loader ----


@pytest.mark.quick
def test_batches():
    loader = data.DataLoader(Squares(7), 3)
    batches = list(loader)
    assert len(loader) == 3 and [b[0].shape for b in batches] == [(3, 2, 3), (3, 2, 3), (1, 2, 3)]
    assert batches[1][1].array.tolist() == [9, 16, 25]
    assert len(data.DataLoader(Squares(7), 3, drop_last=True)) == 2
    own = data.DataLoader(Squares(4), 2, collate_fn=len)
    assert list(own) == [2, 2]
    assert order(data.DataLoader(Squares(5), sampler=[4, 0])) == [16, 0]
    assert order(data.DataLoader(Squares(5), batch_sampler=[[1, 2], [3]])) == [1, 4, 9]
    assert list(data.DataLoader(Squares(0), 2, shuffle=True)) == []


@pytest.mark.parametrize("threads, prefetch", [(0, 0), (0, 2), (1, None), (4, 8), (3, 1)])
def test_order_follows_from_seed_and_epoch(threads, prefetch):
    def loader():
        return data.DataLoader(
            Squares(slow=True), 3, shuffle=True, seed=5, num_workers=threads, prefetch=prefetch
        )

    plain = data.DataLoader(Squares(), 3, shuffle=True, seed=5)
    mine = loader()
    first, second = order(mine), order(mine)
    assert [first, second] == [order(plain), order(plain)] and first != second
    assert sorted(first) == sorted(second) == [i * i for i in range(20)]
    again = loader()
    again.set_epoch(1)
    assert order(again) == second
    assert mine.dataset.epochs == [0, 1]


def test_seed_comes_from_the_default_generator():
    cg.manual_seed(11)
    first = order(data.DataLoader(Squares(), shuffle=True))
    cg.manual_seed(11)
    assert order(data.DataLoader(Squares(), shuffle=True)) == first
    assert order(data.DataLoader(Squares(), shuffle=True)) != first
    g = cg.Generator(4)
    assert order(data.DataLoader(Squares(), shuffle=True, generator=g)) == order(
        data.DataLoader(Squares(), shuffle=True, generator=cg.Generator(4))
    )


@pytest.mark.parametrize("prefetch", [0, 2, 5])
def test_exceptions_arrive_at_their_batch(prefetch):
    loader = data.DataLoader(Squares(20, fail_at=9), 4, prefetch=prefetch)
    got = []
    with pytest.raises(LookupError, match="item 9 is damaged"):
        for _, squares in loader:
            got.append(squares.array.tolist())
    assert got == [[0, 1, 4, 9], [16, 25, 36, 49]]
    del loader
    gc.collect()
    assert not data_threads()


@pytest.mark.parametrize("threads", [1, 3])
def test_leaving_the_loop_stops_the_threads(threads):
    ds = Squares(1000)
    loader = data.DataLoader(ds, 10, num_workers=threads, prefetch=2)
    for _ in loader:
        break
    assert not data_threads(), "no thread outlives the loop"
    seen = len(ds.seen)
    assert seen <= 40, "only what was prefetched has been made"
    time.sleep(0.02)
    assert len(ds.seen) == seen
    iterator = iter(loader)
    next(iterator)
    with pytest.raises(KeyboardInterrupt):
        iterator.throw(KeyboardInterrupt())
    assert not data_threads()


def test_prefetching_overlaps():
    ready = threading.Event()

    class Waits(Squares):
        def __getitem__(self, i):
            if i == 1:
                ready.set()
            return super().__getitem__(i)

    iterator = iter(data.DataLoader(Waits(4), prefetch=2))
    next(iterator)
    assert ready.wait(5), "the next batch is made before it is asked for"
    iterator.close()


@pytest.mark.parametrize("prefetch", [0, 2])
def test_resuming_in_the_middle(prefetch):
    def loader(seed):
        return data.DataLoader(Squares(), 3, shuffle=True, seed=seed, prefetch=prefetch)

    whole, part = loader(2), loader(2)
    expected = [order(whole), order(whole), order(whole)]
    assert order(part) == expected[0]
    got = []
    for i, (_, squares) in enumerate(part):
        got += squares.array.tolist()
        if i == 2:
            state = part.state_dict()
            break
    assert state == {"epoch": 1, "position": 3, "seed": 2}
    resumed = loader(99)
    resumed.load_state_dict(state)
    assert len(resumed) == 7 and got + order(resumed) == expected[1]
    assert resumed.epoch == 2 and order(resumed) == expected[2]
    assert order(part) == expected[2], "a loop left early is over; the next one is the next epoch"
    ended = loader(2)
    order(ended)
    assert ended.state_dict() == {"epoch": 1, "position": 0, "seed": 2}
    with pytest.raises(ValueError, match=r"must hold \['position', 'seed'\]"):
        ended.load_state_dict({"epoch": 1})


def test_two_loops_at_once():
    loader = data.DataLoader(Squares(4), 2, shuffle=True, seed=1)
    plain = data.DataLoader(Squares(4), 2, shuffle=True, seed=1)
    pairs = [(a[1].array.tolist(), b[1].array.tolist()) for a, b in zip(loader, loader)]
    for column in zip(*pairs):
        assert [v for batch in column for v in batch] == order(plain)


def test_arguments_that_exclude_each_other():
    for arguments, words in [
        (dict(sampler=[0], shuffle=True), "sampler and shuffle=True exclude"),
        (dict(batch_sampler=[[0]], batch_size=2), "batch_sampler excludes .* batch_size 2"),
        (dict(batch_size=0), "positive int. Got 0"),
        (dict(num_workers=-1), "num_workers must be at least 0. Got -1"),
        (dict(prefetch=-2), "prefetch must be at least 0. Got -2"),
    ]:
        with pytest.raises(ValueError, match=words):
            data.DataLoader(Squares(), **arguments)
