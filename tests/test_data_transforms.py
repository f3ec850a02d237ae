import math

import pytest
import torch

from pyrovae.data import bernoulli, bits_per_dimension, dequantize, join_quadrants, quadrants


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


def pyro_example(image, num_inputs, mask_with=-1.0):
    """What Pyro's examples/cvae/mnist.py makes of an image (H, W): the input and the output, hidden pixels -1."""
    out = image.clone()
    h, w = out.shape
    out[h // 2 :, : w // 2] = mask_with
    if num_inputs == 2:
        out[:, : w // 2] = mask_with
    if num_inputs == 3:
        out[: h // 2, :] = mask_with
    inp = image.clone()
    inp[out != mask_with] = mask_with
    return inp, out


@pytest.mark.parametrize("hidden", [1, 2, 3])
@pytest.mark.parametrize("size", [(8, 8), (5, 7)])
def test_quadrants_are_those_of_pyros_example(hidden, size):
    image = torch.arange(1.0, 1 + size[0] * size[1]).view(1, *size)
    y, x = quadrants(image, hidden)
    inp, out = pyro_example(image[0], 4 - hidden)
    assert y.tolist() == inp[inp != -1].tolist()
    assert x.tolist() == out[out != -1].tolist()


@pytest.mark.parametrize("hidden", [1, 2, 3])
def test_joined_quadrants_are_the_images(hidden):
    images = torch.rand(4, 2, 3, 5, 6)
    y, x = quadrants(images, hidden)
    assert torch.equal(join_quadrants(y, x, (3, 5, 6)), images)
    assert not torch.equal(join_quadrants(y, x.flip(-1), (3, 5, 6)), images)


def test_what_has_no_quadrants_is_refused():
    with pytest.raises(ValueError, match="hidden is 4 of images"):
        quadrants(torch.zeros(2, 1, 8, 8), 4)
    with pytest.raises(ValueError, match=r"x has shape \(8, 8\), wanted images"):
        quadrants(torch.zeros(8, 8), 1)
    with pytest.raises(ValueError, match=r"hidden is 1 of images \(1, 1, 8\), wanted"):
        quadrants(torch.zeros(1, 1, 8), 1)
    with pytest.raises(ValueError, match="y and x have 5 and 59 pixels, which are no quadrants"):
        join_quadrants(torch.zeros(5), torch.zeros(59), (1, 8, 8))
