"""Patches drawn from volumes, and predictions put together from tiles."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import convgrad as cg
from convgrad import data, nn, train

pytestmark = pytest.mark.cpu("of the host's side: patches of NumPy arrays")


def volumes():
    """Two volumes whose voxels hold their own position, with a rare class 1 and a rarer 2."""
    out, labels = [], []
    for number, shape in enumerate(((9, 10, 8), (7, 12, 9))):
        grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij")).astype(np.float32)
        out.append(np.concatenate([grid, np.full((1, *shape), number, np.float32)]))
        label = np.zeros(shape, np.int64)
        label[3:5, 4:6, 3:5] = 1
        label[4, 5, 4] = 2
        labels.append(label)
    return out, labels


@pytest.mark.parametrize("balanced", [False, True])
def test_patches_are_cut_where_they_say(balanced):
    images, labels = volumes()
    patches = data.RandomPatches(images, labels, (4, 3, 5), 200, seed=3, balanced=balanced)
    x, t = patches.batch(range(200))
    assert x.shape == (200, 4, 4, 3, 5) and t.shape == (200, 4, 3, 5) and t.dtype == np.int64
    for patch, target in zip(x.numpy(), t.numpy()):
        corner, number = patch[:3, 0, 0, 0].astype(int), int(patch[3, 0, 0, 0])
        window = tuple(slice(c, c + n) for c, n in zip(corner, (4, 3, 5)))
        np.testing.assert_array_equal(patch, images[number][(slice(None), *window)])
        np.testing.assert_array_equal(target, labels[number][window])
    assert {int(n) for n in x.numpy()[:, 3, 0, 0, 0]} == {0, 1}
    one, its_target = patches[7]
    np.testing.assert_array_equal(one.numpy(), x.numpy()[7])
    np.testing.assert_array_equal(its_target.numpy(), t.numpy()[7])


def test_balanced_patches_have_every_class_at_their_centres_equally_often():
    patches = data.RandomPatches(*volumes(), (3, 3, 3), 99, balanced=True, centre=True)
    _, t = patches.batch(range(99))
    assert t.shape == (99,)
    np.testing.assert_array_equal(np.bincount(t.numpy()), [33, 33, 33])
    _, t = data.RandomPatches(*volumes(), (3, 3, 3), 99, centre=True).batch(range(99))
    assert np.bincount(t.numpy())[0] > 80


def test_targets_without_margins():
    whole, inner = (
        data.RandomPatches(*volumes(), (5, 4, 5), 20, seed=1, margin=margin) for margin in (0, 1)
    )
    (x, t), (y, u) = whole.batch(range(20)), inner.batch(range(20))
    np.testing.assert_array_equal(x.numpy(), y.numpy())
    np.testing.assert_array_equal(t.numpy()[:, 1:-1, 1:-1, 1:-1], u.numpy())
    with pytest.raises(ValueError, match=r"margin must .* Got 2 for size \(5, 4, 5\)"):
        data.RandomPatches(*volumes(), (5, 4, 5), 1, margin=2)


def test_draws_follow_from_seed_and_epoch():
    def drawn(seed, epoch):
        patches = data.RandomPatches(*volumes(), (3, 3, 3), 20, seed=seed, balanced=True)
        patches.set_epoch(epoch)
        return patches.drawn

    np.testing.assert_array_equal(drawn(1, 2), drawn(1, 2))
    assert (drawn(1, 2) != drawn(1, 3)).any() and (drawn(1, 2) != drawn(2, 2)).any()


def test_a_loader_takes_patches():
    loader = data.DataLoader(data.RandomPatches(*volumes(), (3, 3, 3), 10), 4, shuffle=True, seed=0)
    assert [x.shape[0] for x, _ in loader] == [4, 4, 2]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x, t: (x[:1], t), r"Got 1 and 2"),
        (lambda x, t: ([x[0][:, 1:], x[1]], t), r"Got \(4, 8, 10, 8\) and \(9, 10, 8\)"),
        (lambda x, t: ([x[0] * np.nan, x[1]], t), r"must be finite. Got 2880"),
    ],
)
def test_volumes_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=r"\[RandomPatches\].*" + message):
        data.RandomPatches(*change(*volumes()), (3, 3, 3), 1)


def test_a_patch_larger_than_a_volume():
    with pytest.raises(ValueError, match=r"Got size \(8, 3, 3\) for a volume of \(7, 12, 9\)"):
        data.RandomPatches(*volumes(), (8, 3, 3), 1)


# ---- tiles ----


@pytest.mark.parametrize(("length", "tile", "overlap"), [(10, 4, 0.5), (10, 10, 0.5), (11, 3, 0.0)])
def test_tiles_cover_the_axis(length, tile, overlap):
    starts = data.tile_starts(length, tile, overlap)
    assert starts[0] == 0 and starts[-1] == length - tile
    assert all(b - a <= max(1, tile * (1 - overlap)) for a, b in itertools.pairwise(starts))


class Local(nn.Module):
    """What a tile gives does not depend on its surroundings: every tile agrees with the whole."""

    def forward(self, x):
        return cg.cat([2 * x[:, :1], x[:, :1] - 1], 1)


@pytest.mark.parametrize("batch_size", [1, 3])
def test_tiles_of_a_pointwise_model_give_the_whole(batch_size):
    x = np.random.default_rng(0).standard_normal((1, 13, 9, 11)).astype(np.float32)
    got = train.predict_tiles(Local(), x, (5, 9, 4), 0.4, batch_size)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, np.concatenate([2 * x, x - 1]), atol=1e-5)


class Edges(nn.Module):
    """1 at the edges of a tile, 0 inside: shows how much the edges count."""

    def forward(self, x):
        y = np.zeros(x.shape, np.float32)
        y[..., 0] = y[..., -1] = 1
        return cg.tensor(y)


def test_edges_of_tiles_count_little():
    got = train.predict_tiles(Edges(), np.zeros((1, 1, 24), np.float32), (1, 8), 0.5)[0, 0]
    assert got[0] == got[-1] == 1  # nothing else covers them
    assert got[1:-1].max() < 0.25


def test_a_tile_larger_than_the_volume():
    with pytest.raises(ValueError, match=r"A tile must fit into the volume. Got 9 for 8"):
        train.predict_tiles(Local(), np.zeros((1, 8, 8), np.float32), (4, 9))
    with pytest.raises(ValueError, match=r"overlap must be in \[0, 1\). Got 1"):
        list(data.tiles((8,), (4,), 1.0))
