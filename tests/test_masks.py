"""Masks as data: what they hide, how they are drawn, and data with missing values."""

import math

import numpy as np
import pytest
import torch

from pyrovae.data import Data, Split, bernoulli, half, incomplete, load, masked, one_of, pixels, rectangle

MASKS = {
    "pixels": pixels(0.6),
    "pixels at any rate": pixels((0.1, 0.8)),
    "rectangle": rectangle(),
    "half": half(),
    "one of": one_of(pixels(0.3), half(), rectangle(0.2, 0.4)),
    "own": lambda x: x > 0.5,
}


@pytest.mark.parametrize("name", [name for name in MASKS if name != "own"])
@pytest.mark.parametrize("event", [(7, 6), (1, 7, 6), (3, 7, 6)])
def test_masks_are_booleans_that_hide_whole_pixels_and_leave_something(name, event):
    torch.manual_seed(0)
    x = torch.rand(500, *event)
    mask = MASKS[name](x)
    assert mask.shape == x.shape
    assert mask.dtype == torch.bool
    assert mask.flatten(1).any(1).all()
    assert not mask.flatten(1).all(1).all()
    if len(event) == 3:
        assert torch.equal(mask, mask[:, :1].expand_as(mask))
    assert not torch.equal(mask, MASKS[name](x)), "drawn once and for all"


def test_pixels_are_missing_at_the_rate_asked():
    torch.manual_seed(0)
    n = 20_000
    seen = pixels(0.3)(torch.zeros(n, 5)).double().mean(0)
    print(f"observed {seen.tolist()}, exact 0.7")
    exact = 0.7 + 0.3**5 / 5  # a row that would lose all keeps one
    assert ((seen - exact).abs() < 4 * math.sqrt(0.21 / n)).all()
    both = pixels(0.3)(torch.zeros(n, 2)).all(1).double().mean()
    assert abs(both - 0.49) < 4 * math.sqrt(0.49 * 0.51 / n)
    assert pixels(0.999)(torch.zeros(1000, 5)).any(1).all()


def test_rates_differ_between_rows_only():
    torch.manual_seed(0)
    seen = pixels((0.2, 0.6))(torch.zeros(4000, 400)).double().mean(1)  # 1 - U(0.2, 0.6), and a binomial's noise
    assert abs(seen.mean() - 0.6) < 4 * seen.std() / math.sqrt(4000)
    assert abs(seen.var() - 0.4**2 / 12 - 0.24 / 400) < 5e-4


def test_a_rectangle_is_one_with_sides_in_range_anywhere():
    torch.manual_seed(0)
    missing = ~rectangle(0.3, 0.6)(torch.zeros(5000, 1, 10, 20))[:, 0]
    rows, columns = missing.any(2), missing.any(1)
    assert torch.equal(missing, rows[:, :, None] & columns[:, None, :])
    for side, low, high in ((rows, 3, 6), (columns, 6, 12)):
        assert side.sum(1).unique().tolist() == list(range(low, high + 1))
        assert ((side.byte().diff(dim=1) != 0).sum(1) <= 2).all()  # in one piece
        assert side[:, 0].any()
        assert side[:, -1].any()
        share = side.double().mean(0)
        torch.testing.assert_close(share, share.flip(0), rtol=0, atol=4 * math.sqrt(0.5 / 5000))


def test_halves_are_the_four():
    torch.manual_seed(0)
    mask = half()(torch.zeros(400, 5, 4))
    kinds, counts = torch.unique(mask, dim=0, return_counts=True)
    assert len(kinds) == 4
    assert (counts - 100).abs().max() < 4 * math.sqrt(400 * 0.25 * 0.75)
    top = torch.ones(5, 4, dtype=torch.bool)
    top[:2] = False
    left = torch.ones(5, 4, dtype=torch.bool)
    left[:, :2] = False
    for one in (top, top.flip(0), left, left.flip(1)):
        assert any(torch.equal(one, kind) for kind in kinds)


def test_one_of_takes_each_equally_often():
    torch.manual_seed(0)
    x = torch.zeros(3000, 4)
    first = one_of(lambda x: x == 0, lambda x: x != 0, lambda x: x == 0)(x)
    assert torch.equal(first.all(1), first.any(1))
    assert abs(first.all(1).double().mean() - 2 / 3) < 4 * math.sqrt(2 / 9 / 3000)


def test_masks_are_new_in_each_training_batch_and_fixed_elsewhere():
    x = torch.rand(40, 1, 4, 4)
    splits = {part: Split({"x": x, "y": torch.arange(40)}, transform=bernoulli) for part in ("train", "validation")}
    data = masked(Data(**splits), pixels(0.5))
    assert data.train.names == ("x", "y", "mask")
    torch.manual_seed(0)
    (one, _, first), (two, y, second) = (data.train.rows(slice(8)) for _ in range(2))
    assert not torch.equal(first, second)
    assert not torch.equal(one, two)  # the transform that was there goes on
    assert torch.equal(y, torch.arange(8))
    assert set(one.unique().tolist()) == {0, 1}
    before = torch.get_rng_state()
    held, again = (next(iter(masked(Data(**splits), pixels(0.5)).validation.sequential(40))) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(held, again, strict=True))
    assert torch.equal(before, torch.get_rng_state())
    assert abs(held[2].double().mean() - 0.5) < 0.1
    other = next(iter(masked(Data(**splits), pixels(0.5), seed=1).validation.sequential(40)))
    assert not torch.equal(held[2], other[2])


def test_the_masks_of_the_digits_are_not_their_bits():
    """Bits and masks are both thresholds of uniform draws: from one stream they would be the same draws."""
    data = masked(load("digits"), pixels(0.5))
    x, mask = data.test.select("x", "mask").rows(slice(180))
    x, mask = x.double().flatten() - x.mean(), mask.double().flatten() - 0.5
    assert abs((x * mask).mean() / x.std() / mask.std()) < 4 / math.sqrt(len(x))
    assert data.levels == 2


def test_masks_join_those_that_the_data_have():
    known = torch.tensor([[True, True, False]]).expand(5, 3)
    split = masked(
        Split({"x": torch.ones(5, 3), "mask": known}), lambda x: torch.tensor([True, False, True]).expand_as(x)
    )
    assert torch.equal(split.rows(slice(5))[1], torch.tensor([[True, False, False]]).expand(5, 3))


def test_nan_means_missing_on_request():
    x = np.array([[1.0, math.nan, 5.0], [2.0, 3.0, math.nan], [math.nan, 4.0, math.nan]])
    filled, mask, y = incomplete(x, y=np.arange(3)).rows(slice(3))
    assert torch.equal(mask, torch.from_numpy(~np.isnan(x)))
    assert filled.dtype == torch.float32
    assert torch.equal(filled, torch.tensor([[1.0, 3.0, 5.0], [2.0, 3.0, 5.0], [1.0, 4.0, 5.0]]))
    assert torch.equal(y, torch.arange(3))
    given, _ = incomplete(np.ones((2, 2)), np.array([[1, 0], [0, 1]])).rows(slice(2))
    assert torch.equal(given, torch.ones(2, 2))
    never = incomplete(np.array([[1.0, math.nan], [2.0, math.nan]]))
    assert torch.equal(never["x"][:, 1], torch.zeros(2))
    hidden = incomplete(np.array([[1.0, math.inf], [2.0, math.inf]]), np.array([[1, 0], [1, 0]]))
    assert torch.equal(hidden["x"], torch.tensor([[1.0, 0.0], [2.0, 0.0]]))


NAN = torch.tensor([[1.0, 2.0], [math.nan, math.nan], [3.0, math.nan]])
BAD = {
    "nan without a mask": (lambda: Split({"x": NAN}), ValueError, r"x has 3 NaN.*row 1; .*incomplete\(x\)"),
    "nothing observed": (lambda: incomplete(NAN), ValueError, r"rows 1 \(1 in all\) of x have no observed value; drop"),
    "another shape": (
        lambda: incomplete(torch.ones(3, 2), torch.ones(3, 1)),
        ValueError,
        r"mask has shape \(3, 1\), x \(3, 2\); pass one element",
    ),
    "no mask": (
        lambda: incomplete(torch.ones(2, 2), torch.tensor([[1.0, 0.5], [1, 0]])),
        ValueError,
        r"mask has values beside 0 and 1 in rows 0 \(1 in all\)",
    ),
    "nan observed": (
        lambda: incomplete(NAN, torch.ones(3, 2)),
        ValueError,
        r"x is NaN where the mask says observed, in rows 1, 2 \(2 in all\)",
    ),
    "infinity observed": (
        lambda: incomplete(np.array([[1.0, math.inf], [math.nan, 2.0]])),
        ValueError,
        "x has 1 NaN or infinite values, the first in row 0",
    ),
    "own mask of another shape": (
        lambda: masked(Split({"x": torch.ones(3, 2)}), lambda x: x[:, :1] > 0).rows(slice(3)),
        ValueError,
        r"mask gave bool of shape \(3, 1\) for x of shape \(3, 2\)",
    ),
    "own mask of floats": (
        lambda: masked(Split({"x": torch.ones(3, 2)}), torch.ones_like).rows(slice(3)),
        ValueError,
        r"mask gave float32",
    ),
    "a tensor for a function": (lambda: masked(Split({"x": NAN[:1]}), NAN), TypeError, r"mask is a Tensor, a function"),
    "no x": (lambda: masked(Split({"y": NAN[:1]}), half()), TypeError, r"data is a Split of y, a Data or Split with x"),
    "sparse rows": (
        lambda: masked(Data(Split({"x": torch.ones(4, 3).to_sparse()})), pixels()),
        TypeError,
        r"x is sparse, masks are for dense rows; pass Split\(\{'x': split\['x'\]\.to_dense\(\)\}\)",
    ),
    "everything": (lambda: pixels(1.0), ValueError, r"missing is 1.0, a probability of at least 0 and below 1"),
    "fractions": (lambda: rectangle(0.5, 0.2), ValueError, r"smallest is 0.5, largest 0.2"),
    "no image": (lambda: half()(torch.ones(3, 4)), ValueError, r"x has event shape \(4,\), this mask is for images"),
    "none": (one_of, ValueError, r"masks is empty"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case):
    call, error, message = BAD[case]
    with pytest.raises(error, match=message):
        call()
