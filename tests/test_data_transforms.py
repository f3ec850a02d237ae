import math

import pytest
import torch

from pyrovae.data import bernoulli, bits_per_dimension, dequantize


def test_bernoulli_has_the_mean_x():
    p = torch.tensor([0.0, 0.01, 0.3, 0.5, 0.9, 1.0])
    n = 40_000
    torch.manual_seed(0)
    drawn = bernoulli({"x": p.expand(n, -1), "y": torch.arange(n)})
    assert torch.equal(drawn["y"], torch.arange(n))
    assert set(drawn["x"].unique().tolist()) == {0, 1}
    mean, error = drawn["x"].mean(0), (p * (1 - p) / n).sqrt()
    print(f"mean {mean.tolist()}, exact {p.tolist()}, standard error {error.tolist()}")
    assert ((mean - p).abs() <= 4 * error + 1e-7).all()
    assert mean[0] == 0
    assert mean[-1] == 1
    covariance = torch.cov(drawn["x"][:, 2:4].T)[0, 1]  # pixels are drawn apart: 0 with standard error sd sd / sqrt(n)
    assert covariance.abs() < 4 * math.sqrt(0.21 * 0.25 / n)


@pytest.mark.parametrize("levels", [2, 17, 50, 256])  # 49 (k / 49) is below k in floats for some k
def test_dequantize_stays_in_its_bin(levels, monkeypatch):
    k = torch.arange(levels)
    x = {"x": k / (levels - 1), "y": k}
    transform = dequantize(levels)
    torch.manual_seed(0)
    y = torch.stack([transform(x)["x"] for _ in range(4000)])
    assert torch.equal((y.double() * levels).floor().unique(dim=0), k.double()[None])
    u = (y * levels - k).mean(0)  # uniform: 1/2 with standard error sqrt(1 / 12 / 4000); 4.5 of them for 256 levels
    assert ((u - 0.5).abs() < 4.5 * math.sqrt(1 / 12 / 4000)).all()
    assert torch.equal(transform(x)["y"], k)
    monkeypatch.setattr(torch, "rand_like", lambda k: torch.full_like(k, 1 - 2**-24))  # the largest draw there is
    assert torch.equal((transform(x)["x"].double() * levels).floor(), k.double())
    monkeypatch.setattr(torch, "rand_like", torch.zeros_like)
    assert torch.equal(transform(x)["x"], k / levels)


def test_bits_of_the_uniform_density():
    assert bits_per_dimension(0.0, (3, 4), levels=256) == 8
    assert bits_per_dimension(0.0, 5, levels=2) == 1
    assert torch.equal(bits_per_dimension(torch.zeros(3), (7,), levels=4), torch.full((3,), 2.0))


def test_bits_of_a_discrete_distribution_by_hand():
    # P(k) = 1/2, 1/4, 1/8, 1/8: 1, 2, 3, 3 bits; the density is 4 P(k) all over bin k, so Jensen's bound is tight
    bits = torch.tensor([1.0, 2, 3, 3], dtype=torch.float64)
    probability = 0.5**bits
    x = torch.tensor([[0, 1], [2, 3], [3, 0]])
    discrete = probability[x].log().sum(-1)
    exact = torch.tensor([1.5, 3.0, 2.0], dtype=torch.float64)  # means of the bits of the two pixels
    assert torch.allclose(bits_per_dimension(discrete, (2,)), exact, rtol=0, atol=1e-15)
    y = dequantize(4)({"x": x.double() / 3})["x"]
    density = (4 * probability)[(4 * y).long()].log().sum(-1)
    assert torch.allclose(bits_per_dimension(density, (2,), levels=4), exact, rtol=0, atol=1e-15)


@pytest.mark.parametrize("levels", [1, 0, 2.5])
def test_levels_refused(levels):
    with pytest.raises(ValueError, match="levels is"):
        dequantize(levels)
    with pytest.raises(ValueError, match="levels is"):
        bits_per_dimension(0.0, 3, levels=levels)


def test_event_shape_refused():
    with pytest.raises(ValueError, match="event_shape is"):
        bits_per_dimension(0.0, (3, 0))
