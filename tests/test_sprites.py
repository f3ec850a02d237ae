"""The rendered factor data set, against geometry: areas, centroids, directions, symmetries, and an independent fill."""

import itertools
import math

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Outline
from torch.utils.data import DataLoader

import pyrovae as pv
from pyrovae.data import Sprites, Stream
from pyrovae.evaluation.disentanglement import mig

GREY = Sprites(64, num_scales=3, num_orientations=24, num_positions=4, grey=True)
SMALL = Sprites(16, num_scales=2, num_orientations=4, num_positions=2)
D = 0.7614  # the heart's half diagonal, by hand: 1 / (1 + (pi/4 + 1/3) / (2 + pi/2))
AREAS = [2.0, math.pi / 2, (2 + math.pi / 2) * D**2]


def drawn(sprites, *factors):
    """(B, size, size) float64 of the product of some values of each factor."""
    table = torch.cartesian_prod(*(torch.tensor(value).reshape(-1) for value in factors))
    return sprites.images(sprites.index(table))[:, 0].double()


def moments(x):
    """Mass, centroid (to the right and downwards, from the corner) and covariance of images (B, S, S)."""
    at = torch.arange(x.size(-1)) + 0.5
    mass = x.sum((1, 2))
    right, down = ((weighed * at).sum(1) / mass for weighed in (x.sum(1), x.sum(2)))
    u, v = at - right[:, None], at - down[:, None]
    one = torch.ones_like(u)
    products = [(v**2, one), (v, u), (one, u**2)]
    return mass, right, down, [(x * a[:, :, None] * b[:, None, :]).sum((1, 2)) / mass for a, b in products]


@pytest.mark.parametrize("shape", range(3))
def test_areas_are_those_of_the_formulas(shape):
    """Edges, less than 6 r long, are off by at most half the distance of points: all alike where they follow pixels."""
    for scale, value in enumerate([0.5, 0.75, 1.0]):
        mass = drawn(GREY, shape, scale, list(range(24)), 0, 0).sum((1, 2))
        want = AREAS[shape] * (value * 64 / 4) ** 2
        print(mass.min(), mass.max(), want)
        assert (mass - want).abs().max() < 6 * value * 16 / 16
        assert (mass - want).abs().median() < 0.002 * want
        assert abs(mass.mean() - want) < 0.005 * want


@pytest.mark.parametrize("shape", range(3))
def test_the_centroid_is_the_position_whatever_turns(shape):
    """Positions are 8 pixels apart, symmetric about the middle of 64."""
    for x, y in itertools.product(range(4), range(4)):
        _, right, down, _ = moments(drawn(GREY, shape, [0, 2], list(range(24)), x, y))
        assert (right - (20 + 8 * x)).abs().max() < 0.03
        assert (down - (20 + 8 * y)).abs().max() < 0.03


def test_the_ellipse_lies_along_its_orientation():
    """Its covariance has eigenvalues a^2/4 and b^2/4, the first along (cos, sin), up is minus a row."""
    x = drawn(GREY, 1, 2, list(range(24)), 1, 1)
    _, _, _, (vv, vu, uu) = moments(x)
    angle = torch.atan2(-2 * vu, uu - vv) / 2
    want = GREY.orientations.double()
    assert torch.sin(angle - want).abs().max() < 0.01
    assert uu[0] == pytest.approx(16**2 / 4, rel=0.01)
    assert vv[0] == pytest.approx(8**2 / 4, rel=0.01)


def test_the_heart_is_upright_and_turns_counterclockwise():
    """It reaches r to its tip and 0.894 d to the other side: downwards, then to the right, after a quarter turn."""
    quarter = [0, 6, 12, 18]
    x = drawn(GREY, 2, 2, quarter, 1, 1) > 0
    for image, (axis, sign) in zip(x, [(0, 1), (1, 1), (0, -1), (1, -1)], strict=True):
        at = sign * (image.nonzero()[:, axis] + 0.5 - 28)
        assert at.max() == pytest.approx(16, abs=0.6)
        assert at.min() == pytest.approx(-0.894 * D * 16, abs=0.6)
    assert torch.equal(x[0], x[0].flip(1).roll(-8, 1))  # left and right alike: the middle is at 28 of 64


@pytest.mark.parametrize("sprites", [GREY, SMALL], ids=["grey", "bits"])
@pytest.mark.parametrize(("shape", "turns"), [(0, 4), (1, 2), (2, 1)], ids=["square", "ellipse", "heart"])
def test_symmetries(sprites, shape, turns):
    count = sprites.sizes[2]
    x = drawn(sprites, shape, [0, 1], list(range(count)), 0, 1).unflatten(0, (2, count))
    for turn in range(1, 4):
        same = torch.equal(x, x.roll(turn * count // 4, 1))
        assert same == (turn * turns % 4 == 0)


def test_an_independent_fill_draws_the_same_squares_and_hearts():
    """matplotlib's test of points in polygons, of corners that are turned and moved by hand."""
    d, steps = D, np.linspace(0, math.pi, 400)
    arc = np.stack([np.cos(steps - math.pi / 4), np.sin(steps - math.pi / 4)], 1) * d / math.sqrt(2) + d / 2
    heart = np.concatenate([[[0, -d]], arc, arc[::-1] * [-1, 1]]) - [0, 0.3133 * d]
    corners = {0: np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * math.sqrt(0.5), 2: heart}
    points = (np.stack(np.meshgrid(np.arange(512), np.arange(512)), -1) + 0.5) / 8  # (row, column, (right, down))
    for shape, (scale, value), turn, (x, y) in itertools.product(
        corners, [(0, 0.5), (2, 1.0)], [1, 17], [(0, 3), (2, 1)]
    ):
        angle = 2 * math.pi * turn / 24
        turned = corners[shape] @ np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])
        outline = np.array([20 + 8 * x, 20 + 8 * y]) + 16 * value * turned * [1, -1]
        share = Outline(outline).contains_points(points.reshape(-1, 2)).reshape(64, 8, 64, 8).mean((1, 3))
        assert np.abs(share - drawn(GREY, shape, scale, turn, x, y)[0].numpy()).sum() < 0.3  # of 100 to 500 pixels


def test_positions_move_whole_pixels():
    for sprites in (GREY, SMALL):
        first = drawn(sprites, 2, 1, 1, 0, 0)[0]
        assert first.sum() > 0
        for x, y in itertools.product(range(sprites.sizes[3]), range(sprites.sizes[4])):
            moved = drawn(sprites, 2, 1, 1, x, y)[0]
            assert torch.equal(moved, first.roll((sprites.step * y, sprites.step * x), (0, 1)))
    border = Sprites(64, num_scales=1, num_orientations=8, num_positions=32, grey=True)
    x = drawn(border, [0, 1, 2], 0, list(range(8)), [0, 31], [0, 31])
    assert torch.allclose(x.sum((1, 2)), x.sum((1, 2)).unflatten(0, (-1, 4))[:, :1].expand(-1, 4).flatten())


def test_rows_are_the_product_of_the_factors_in_order():
    assert SMALL.sizes == (3, 2, 4, 2, 2)
    assert SMALL.factors.tolist() == [list(row) for row in itertools.product(*map(range, SMALL.sizes))]
    assert torch.equal(SMALL.index(SMALL.factors), torch.arange(len(SMALL)))
    full = Sprites()  # dSprites has as many
    assert len(full) == 737_280
    assert full.factors_of(torch.tensor(737_279)).tolist() == [2, 5, 39, 31, 31]
    assert full.index(torch.tensor([1, 2, 3, 4, 5])) == 6 * 40 * 32 * 32 + 2 * 40 * 32 * 32 + 3 * 32 * 32 + 4 * 32 + 5


def test_every_row_is_the_image_of_its_factors():
    tensors = SMALL.tensors()
    for row, factors in enumerate(itertools.product(*map(range, SMALL.sizes))):
        item = SMALL[row]
        assert torch.equal(item["x"][0].double(), drawn(SMALL, *factors)[0])
        assert torch.equal(item["x"], tensors["x"][row])
        assert item["factors"].tolist() == tensors["factors"][row].tolist() == list(factors)
        assert item["y"] == tensors["y"][row] == factors[0]
    assert torch.equal(SMALL[-1]["x"], tensors["x"][-1])
    assert set(tensors["x"].unique().tolist()) == {0.0, 1.0}


def test_bits_are_half_covered_pixels():
    grey = Sprites(16, num_scales=2, num_orientations=4, num_positions=2, grey=True).tensors()["x"]
    assert torch.equal(SMALL.tensors()["x"], (grey >= 0.5).float())
    assert torch.equal(grey * 64, (grey * 64).round())
    assert 0 < grey[grey > 0].min() < 0.5


def test_they_stream_a_batch_at_a_time():
    stream = Stream(SMALL)
    assert (stream.fields, stream.event_shape) == (("x", "y", "factors"), (1, 16, 16))
    x, y, factors = (torch.cat(column) for column in zip(*stream.sequential(40), strict=True))
    assert torch.equal(x, SMALL.tensors()["x"])
    assert torch.equal(factors, SMALL.factors)
    assert torch.equal(y, factors[:, 0])
    assert next(iter(DataLoader(SMALL, batch_size=7)))["x"].shape == (7, 1, 16, 16)


def test_load():
    data = pv.data.load("sprites")
    sprites = Sprites(32, num_orientations=20, num_positions=8)
    assert (data.name, data.levels, data.event_shape, data.train.transform) == ("sprites", 2, (1, 32, 32), None)
    assert sum(len(split) for split in data.splits.values()) == len(sprites) == 23_040
    for split in data.splits.values():
        assert torch.equal(split["x"], sprites.images(sprites.index(split["factors"])))
        assert torch.equal(split["y"], split["factors"][:, 0])
    whole = pv.data.load("sprites", validation=0, test=0)
    assert mig(whole.train["factors"], whole.train["factors"]) == pytest.approx(1.0)  # independent over all rows
    assert len(torch.unique(whole.train["x"].flatten(1), dim=0)) == 13_248  # of 13,440 without the symmetries


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size": 31}, ValueError, "size is 31 and num_positions 15"),
        ({"size": 32, "num_positions": 6}, ValueError, "num_positions 6, which does not divide"),
        ({"num_scales": 0}, ValueError, "num_scales is 0"),
        ({"num_orientations": 2.0}, TypeError, "num_orientations is 2.0"),
        ({"num_positions": True}, TypeError, "num_positions is True"),
    ],
)
def test_it_refuses(options, error, message):
    with pytest.raises(error, match=message):
        Sprites(**options)


def test_it_refuses_rows_and_factors_that_it_does_not_have():
    with pytest.raises(IndexError, match="row is 96 of 96"):
        SMALL[96]
    for factors in ([0, 0, 0, 2, 0], [0, -1, 0, 0, 0], [0, 0, 0]):
        with pytest.raises(ValueError, match="not all in the table"):
            SMALL.index(torch.tensor(factors))
