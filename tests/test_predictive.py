"""Codes, reconstructions, samples and walks in latent space of any pair against closed forms."""

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian, LooseLinearGaussian, Mixture
from torch import nn

from pyrovae import plots
from pyrovae.conditionals import Mixed
from pyrovae.data import Split
from pyrovae.evaluation import decode, encode, generate, interpolate, manifold, reconstruct, traverse
from pyrovae.models import VAE, GaussianMixture, HierarchicalVAE, LadderVAE
from pyrovae.models.base import Pair

FOUR = 4  # standard errors


def moments_agree(x, mean, covariance):
    """Mean and covariance of Gaussian rows are within four standard errors of the given ones, element by element."""
    n = len(x)
    variance = covariance.diagonal()
    mean_error = (variance / n).sqrt()
    error = ((variance[:, None] * variance + covariance**2) / n).sqrt()  # of a covariance of Gaussian data
    z_mean, z_covariance = (x.mean(0) - mean) / mean_error, (x.T.cov() - covariance) / error
    print(f"largest z of the mean {z_mean.abs().max():.2f}, of the covariance {z_covariance.abs().max():.2f}")
    return z_mean.abs().max() < FOUR and z_covariance.abs().max() < FOUR


@pytest.fixture
def pair():
    return LinearGaussian()


# Codes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_encode_is_the_posterior_mean(pair, batch_size, untouched):
    x = pair.sample(10)
    z = encode(pair, x, batch_size=batch_size)
    torch.testing.assert_close(z, pair.posterior(x)[0].detach(), rtol=1e-12, atol=1e-12)
    assert not z.requires_grad


def test_encode_draws_from_the_posterior(pair):
    x = pair.sample(1).repeat(20000, 1)
    z = encode(pair, x, sample=True, batch_size=5000)
    loc, covariance = (t.detach() for t in pair.posterior(x[:1]))
    assert moments_agree(z, loc[0], covariance)
    assert torch.equal(z, encode(pair, x, sample=True, batch_size=5000))
    assert not torch.equal(z, encode(pair, x, sample=True, batch_size=5000, seed=1))


def hierarchical_model(x):
    with pyro.plate("data", len(x)):
        z2 = pyro.sample("z2", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        z1 = pyro.sample("z1", dist.Normal(3.0 * z2 + 1.0, 0.1).to_event(1))
        pyro.sample("x", dist.Normal(2.0 * z1, 0.1).to_event(1), obs=x)


def bottom_up(x):
    with pyro.plate("data", len(x)):
        z1 = pyro.sample("z1", dist.Normal(0.5 * x, 0.8).to_event(1))
        pyro.sample("z2", dist.Normal(0.4 * z1, 0.6).to_event(1))


def test_a_code_that_depends_on_others_is_averaged_over_them():
    x = torch.randn(200, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pair = hierarchical_model, bottom_up
    torch.testing.assert_close(encode(pair, x, site="z1"), 0.5 * x)
    z2 = encode(pair, x)  # the first in the model
    errors = (z2 - 0.2 * x) / (0.4 * 0.8 / math.sqrt(100))  # means given z1, so without the 0.6
    print(f"variance of standardised errors {errors.var():.3f}")
    assert abs(errors.mean()) < FOUR / math.sqrt(400)
    assert abs(errors.var() - 1) < FOUR * math.sqrt(2 / 400)


def test_codes_without_a_mean():
    def model(x):
        with pyro.plate("data", len(x)):
            h = pyro.sample("h", dist.Bernoulli(x.new_full((3,), 0.5)).to_event(1))
            c = pyro.sample("c", dist.Categorical(x.new_ones(4)))
            pyro.sample("x", dist.Normal(h.sum(-1) + c, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("h", dist.Bernoulli(torch.sigmoid(x[:, None] * x.new_tensor([1.0, 2.0, 3.0]))).to_event(1))
            pyro.sample("c", dist.Categorical(x.new_tensor([0.0, 0.0, 1.0, 0.0])))

    x = torch.tensor([0.5, -1.0], dtype=torch.float64)
    torch.testing.assert_close(
        encode((model, guide), x, site="h"), torch.sigmoid(x[:, None] * x.new_tensor([1.0, 2, 3]))
    )
    assert encode((model, guide), x, site="c", sample=True).tolist() == [2, 2]
    with pytest.raises(ValueError, match="latent 'c' is discrete and has no mean; pass sample=True"):
        encode((model, guide), x, site="c")
    with pytest.raises(ValueError, match="the guide samples no continuous latent for each datum, only"):
        encode((model, guide), x)

    def seen(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(x.new_zeros(()), 1.0), obs=x)

    with pytest.raises(ValueError, match="the guide samples no continuous latent for each datum, nothing at all"):
        encode((seen, lambda x: None), x)
    with pytest.raises(ValueError, match="'nope' is no latent that the guide samples"):
        encode((model, guide), x, site="nope")


def test_nested_plates_come_after_the_rows():
    def model(x):  # (rows, words)
        with pyro.plate("data", len(x), dim=-1), pyro.plate("words", x.size(1), dim=-2):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1), pyro.plate("words", x.size(1), dim=-2):
            pyro.sample("z", dist.Normal(torch.stack([x.T, 2 * x.T], -1), 1.0).to_event(1))

    x = torch.arange(6.0, dtype=torch.float64).reshape(2, 3)
    z = encode((model, guide), x)
    torch.testing.assert_close(z, torch.stack([x, 2 * x], -1))  # (2 rows, 3 words, 2)
    torch.testing.assert_close(decode((model, guide), z, like=x), 3 * x)


# x given z -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [None, 1, 4])
def test_decode_is_the_decoder(pair, batch_size, untouched):
    x, z = pair.sample(3), torch.randn(10, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    decoded = decode(pair, z, like=x, batch_size=batch_size)
    torch.testing.assert_close(decoded, (z @ pair.weight.T + pair.bias).detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        decode(pair, encode(pair, x), like=x),
        (pair.posterior(x)[0] @ pair.weight.T + pair.bias).detach(),
        rtol=1e-12,
        atol=1e-12,
    )


def test_decode_can_draw(pair):
    z = torch.tensor([[0.3, -1.0]], dtype=torch.float64).repeat(20000, 1)
    x = decode(pair, z, like=pair.sample(2), sample=True, batch_size=5000)
    mean = (z[0] @ pair.weight.T + pair.bias).detach()
    assert moments_agree(x, mean, pair.scale**2 * torch.eye(5, dtype=torch.float64))


def test_decode_takes_any_latent_and_draws_those_after_it():
    x = torch.zeros(1, 2, dtype=torch.float64)
    pair = hierarchical_model, bottom_up
    z = torch.tensor([[1.0, -2.0], [0.5, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(decode(pair, z, like=x, latent="z1"), 2 * z)
    many = decode(pair, z[:1].repeat(10000, 1), like=x, latent="z2", batch_size=5000)
    assert moments_agree(many, 2 * (3 * z[0] + 1), 0.04 * torch.eye(2, dtype=torch.float64))


def test_reconstruct_averages_over_the_posterior(pair, untouched):
    """Rows of one datum: of mean W E[z|x] + b, and of covariance W Sigma W' / num_samples, without the noise of x."""
    x = pair.sample(1).repeat(4000, 1)
    loc, covariance = (t.detach() for t in pair.posterior(x[:1]))
    w, b = pair.weight.detach(), pair.bias.detach()
    for num_samples in (1, 5):
        r = reconstruct(pair, x, num_samples=num_samples, batch_size=2000)
        assert moments_agree(r, loc[0] @ w.T + b, w @ covariance @ w.T / num_samples)


def test_replicates_are_draws_of_x(pair):
    x = pair.sample(1).repeat(4000, 1)
    loc, covariance = (t.detach() for t in pair.posterior(x[:1]))
    w, b = pair.weight.detach(), pair.bias.detach()
    r = reconstruct(pair, x, sample=True, batch_size=2000)
    assert moments_agree(r, loc[0] @ w.T + b, w @ covariance @ w.T + pair.scale**2 * torch.eye(5, dtype=torch.float64))
    assert (r != x).all()
    with pytest.raises(ValueError, match="num_samples is 3 and sample is True"):
        reconstruct(pair, x, sample=True, num_samples=3)


def test_a_latent_of_the_model_only_is_drawn_from_its_posterior():
    """E[x_rep | x] = E_q(z|x) [z + E[c | x, z]], by quadrature; c from the prior would give another value."""
    pair = Mixture()
    x = torch.tensor([-1.0, 0.4, 2.5, 5.0], dtype=torch.float64)
    r = reconstruct(pair, x.repeat(5000), batch_size=20000).view(5000, 4)
    z = torch.linspace(-12, 12, 2401, dtype=torch.float64)[:, None]
    c = torch.arange(3.0, dtype=torch.float64)[:, None, None]
    prior = torch.log_softmax(pair.logits.detach(), -1)[:, None, None]
    joint = prior + dist.Normal(pair.loc.detach()[:, None, None], 1.0).log_prob(z) + dist.Normal(z + c, 1.0).log_prob(x)
    given_z = (torch.softmax(joint, 0) * c).sum(0)
    q = dist.Normal(0.5 * x, 1.2).log_prob(z).exp() * 0.01
    exact, error = (q * (z + given_z)).sum(0), r.std(0) / math.sqrt(5000)
    wrong = 0.5 * x + (prior.exp() * c).sum()
    print((r.mean(0) - exact) / error, (wrong - exact) / error)
    assert ((r.mean(0) - exact).abs() < FOUR * error).all()
    assert ((wrong - exact).abs() > 2 * FOUR * error).any()


def test_an_enumerated_latent_of_one_value_leaves_no_dim():
    pair, x = GaussianMixture(6, 1), torch.randn(5, 6)
    torch.testing.assert_close(reconstruct(pair, x), pair.component_means.detach().expand(5, 6))
    assert reconstruct(pair, x, sample=True).shape == (5, 6)


@pytest.mark.parametrize("make", [dist.Categorical, lambda p: dist.Cauchy(p[..., 0], 1.0)])
def test_draws_are_not_averaged(make):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(3, dtype=torch.float32), 1.0).to_event(1))
            pyro.sample("x", make(z.softmax(-1)), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    x = torch.tensor([0, 2, 1, 1, 0])
    with pytest.raises(ValueError, match="num_samples is 3 and site 'x' has no finite mean"):
        reconstruct((model, guide), x, num_samples=3)
    assert reconstruct((model, guide), x).shape == (5,)


def test_a_table_with_classes_is_not_averaged():
    pair = VAE(3, 2, hidden=(4,), likelihood=partial(Mixed, num_classes=(0, 3, 0)))
    x = torch.tensor([[0.5, 2.0, 1.0], [1.5, 0.0, 0.0]])
    assert set(reconstruct(pair, x)[:, 1].tolist()) <= {0.0, 1.0, 2.0}
    with pytest.raises(ValueError, match="num_samples is 2 and site 'x' has no finite mean, so that"):
        reconstruct(pair, x, num_samples=2)


# x from p(x) ---------------------------------------------------------------------------------------------------------


def test_generated_data_have_the_moments_of_the_model(pair, untouched):
    x = pair.sample(3)
    w, b = pair.weight.detach(), pair.bias.detach()
    drawn = generate(pair, 20000, like=x, sample=True, batch_size=5000)
    means = generate(pair, 20000, like=x, batch_size=5000)
    assert moments_agree(drawn, b, w @ w.T + pair.scale**2 * torch.eye(5, dtype=torch.float64))
    assert moments_agree(means, b, w @ w.T)
    assert not torch.isin(drawn, x).any()  # Pyro's Predictive gives x back
    assert not torch.isin(means, x).any()
    assert generate(pair, 2, like=x).shape == (2, 5)


def test_enumerated_latents_are_drawn_from_the_prior():
    pair = Mixture()
    x = generate(pair, 20000, like=torch.zeros(2, dtype=torch.float64), sample=True, batch_size=5000)
    c = torch.arange(3.0, dtype=torch.float64)
    each, weights = (pair.loc + c).detach(), torch.softmax(pair.logits, -1).detach()
    mean = (weights * each).sum()
    variance = (weights * (each - mean) ** 2).sum() + 2
    assert abs(x.mean() - mean) < FOUR * (variance / 20000).sqrt()
    assert abs(x.var() / variance - 1) < 0.05


def conditional(observe_label):
    """x | z, y with a label y that is an observed site of p(y) = 0.25, or an input only."""

    def model(x, y):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            if observe_label:
                y = pyro.sample("y", dist.Categorical(x.new_full((4,), 0.25)), obs=y)
            pyro.sample("x", dist.Normal(z + 100.0 * y[:, None], 0.1).to_event(1), obs=x)

    def guide(x, y):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x - 100.0 * y[:, None], 0.01).to_event(1))

    return model, guide


@pytest.mark.parametrize("observe_label", [False, True])
def test_labels(observe_label):
    """Inputs are used as given everywhere; an observed label is drawn anew by generate only."""
    pair = conditional(observe_label)
    y = torch.tensor([0, 3, 1])
    x = 100.0 * y[:, None] + torch.tensor([[0.5, -0.5]])
    labels = lambda images: (images.mean(-1) / 100).round().long()  # noqa: E731
    data = {"y": y, "x": x}
    torch.testing.assert_close(reconstruct(pair, data), x, rtol=0, atol=0.1)
    assert labels(decode(pair, torch.zeros(6, 2), like=data)).tolist() == [0, 3, 1, 0, 3, 1]
    generated = labels(generate(pair, 300, like=data))
    if observe_label:
        assert set(generated.tolist()) == {0, 1, 2, 3}
        assert labels(generate(pair, 300, like=data, sample=True)).unique().tolist() == [0, 1, 2, 3]
        assert set(generate(pair, 50, like=data, site="y").tolist()) == {0, 1, 2, 3}  # no mean, so draws
        with pytest.raises(ValueError, match=r"site='nope' is no observed site; pass site= with one of \['y', 'x'\]"):
            generate(pair, 3, like=data, site="nope")
    else:
        assert generated.tolist() == y.repeat(100).tolist()
    lines = interpolate(pair, (x[[1, 2]], y[[1, 2]]), steps=3)
    assert labels(lines).tolist() == [[3, 3, 3]]  # of its first row
    assert labels(traverse(pair, (x[1:2], y[1:2]))).unique().tolist() == [3]
    assert labels(manifold(pair, 3, like=(x[2:], y[2:]))[0]).unique().tolist() == [1]


def test_sites_without_a_finite_mean_give_draws():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Cauchy(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1e-6))

    x = torch.full((2000,), 5.0)
    r = reconstruct((model, guide), x)
    assert r.isfinite().all()
    assert (r != x).all()
    assert abs(r.median() - 5) < FOUR * math.pi / 2 / math.sqrt(2000)  # the error of a median of Cauchy draws


# Walks ---------------------------------------------------------------------------------------------------------------


def test_interpolations_run_between_pairs_of_rows(pair):
    x = pair.sample(5)
    lines = interpolate(pair, x, steps=4)
    assert lines.shape == (2, 4, 5)  # the fifth row is left out
    ends = decode(pair, encode(pair, x), like=x)
    torch.testing.assert_close(lines[:, 0], ends[0:4:2])
    torch.testing.assert_close(lines[:, -1], ends[1:4:2])
    torch.testing.assert_close(lines[:, 1], ends[0:4:2] * 2 / 3 + ends[1:4:2] / 3)  # the decoder is linear
    plots.interpolation(lines)
    with pytest.raises(ValueError, match="data has 1 rows and steps is 4; pass two of each"):
        interpolate(pair, x[:1], steps=4)


def test_traversals_change_one_number(pair):
    x = pair.sample(3)
    z = encode(pair, x[:1])[0]
    w, b = pair.weight.detach(), pair.bias.detach()
    values = torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64)
    images = traverse(pair, x, dims=[1, 0], values=values)
    assert images.shape == (2, 3, 5)
    for row, dim in enumerate([1, 0]):
        expected = z @ w.T + b + (values - z[dim])[:, None] * w[:, dim]
        torch.testing.assert_close(images[row], expected)
    plots.traversals(images, values=values)
    start = traverse(pair, x, z=torch.zeros(2))
    torch.testing.assert_close(start[0], torch.arange(-3.0, 4.0, dtype=torch.float64)[:, None] * w[:, 0] + b)
    with pytest.raises(ValueError, match=r"dims is \[2\] and z has shape \(2,\)"):
        traverse(pair, x, dims=[2])


def test_the_manifold_is_a_grid_of_decoded_points(pair):
    w, b = pair.weight.detach(), pair.bias.detach()
    images, extent = manifold(pair, 4, like=pair.sample(2), extent=1.5)
    assert images.shape == (4, 4, 5)
    assert extent == (-1.5, 1.5)
    z = torch.linspace(-1.5, 1.5, 4, dtype=torch.float64)
    for i in range(4):
        for j in range(4):
            torch.testing.assert_close(images[i, j], z[i] * w[:, 0] + z[j] * w[:, 1] + b)
    plots.manifold(images, extent)
    images, extent = manifold(pair, 5, like=pair.sample(2), quantiles=True)
    assert extent == (0.1, 0.9)
    u = torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9], dtype=torch.float64)
    z = torch.distributions.Normal(0.0, 1.0).icdf(u)
    torch.testing.assert_close(images[1, 4], z[1] * w[:, 0] + z[4] * w[:, 1] + b)
    plots.manifold(images, extent)
    with pytest.raises(ValueError, match=r"the latent has shape \(3,\), a grid takes \(2,\)"):
        manifold(LinearGaussian(latent_dim=3), like=pair.sample(2))
    with pytest.raises(ValueError, match="n is 1 and extent"):
        manifold(pair, 1, like=pair.sample(2))


def two_latents(x):
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        b = pyro.sample("b", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(torch.cat([a, b], -1), 0.1).to_event(1), obs=x)


def at_its_halves(x):
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.Normal(x[:, :2], 1e-6).to_event(1))
        pyro.sample("b", dist.Normal(x[:, 2:], 1e-6).to_event(1))


def test_walks_keep_the_other_latents_of_the_datum():
    """They were drawn from the prior, anew at each point."""
    pair, x = (two_latents, at_its_halves), torch.arange(1.0, 9.0, dtype=torch.float64).reshape(2, 4)
    near = partial(torch.testing.assert_close, rtol=0, atol=1e-4)
    near(traverse(pair, x, dims=[0], values=[0.0] * 4)[0], x.new_tensor([[0, 2, 3, 4]]).expand(4, 4))
    near(traverse(pair, x, latent="b", dims=[1], values=[0.0, 9.0])[0], x.new_tensor([[1, 2, 3, 0], [1, 2, 3, 9]]))
    grid, _ = manifold(pair, 2, like=x[1:], extent=1.0)
    near(grid.flatten(0, 1), x.new_tensor([[-1, -1, 7, 8], [-1, 1, 7, 8], [1, -1, 7, 8], [1, 1, 7, 8]]))
    near(interpolate(pair, x, steps=3)[0], torch.stack([x[0], x.mean(0), x[1]]))
    near(interpolate(pair, x, steps=2, latent="b")[0], x.new_tensor([[1, 2, 3, 4], [1, 2, 7, 8]]))


def test_latents_below_the_walked_one_are_drawn_with_the_same_noise():
    """z1 = 3 z2 + 1 + 0.1 e, x = 2 z1: at all points with one e, for the model of it alone."""
    pair, x = (hierarchical_model, bottom_up), torch.tensor([[1.0, -2.0], [5.0, 3.0]], dtype=torch.float64)
    same = traverse(pair, x, dims=[0], values=[0.0] * 4)[0]
    assert torch.equal(same, same[:1].expand(4, 2))
    walk = traverse(pair, x, dims=[0, 1], values=[-1.0, 0.0, 2.0], z=torch.zeros(2))
    noise = walk[0, 1] - 2
    assert (noise.abs() < 2 * FOUR * 0.1).all()
    assert (noise != 0).all()
    steps = x.new_tensor([-1, 0, 2])
    torch.testing.assert_close(walk[0], torch.stack([6 * steps, 0 * steps], 1) + 2 + noise)
    torch.testing.assert_close(walk[1], torch.stack([0 * steps, 6 * steps], 1) + 2 + noise)
    grid, _ = manifold(pair, 12, like=x, extent=1.0)  # more points than a batch has rows
    corner = grid[0, 0]
    torch.testing.assert_close(grid[11, 11], corner + 12)
    z1 = encode(pair, x, site="z1")
    torch.testing.assert_close(interpolate(pair, x, steps=2)[0], 2 * z1)  # x depends on z1 alone, which has a code


def chained(x):
    """Noise below c, which depends on z; a and what c depends on beside z are held."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Normal(x.new_zeros(()), 1.0))
        z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        c = pyro.sample("c", dist.Bernoulli((z[..., 0] > 0).to(x.dtype)))
        d = pyro.sample("d", dist.Normal(10 * c, 1e-9))
        pyro.sample("x", dist.Normal(torch.stack([a, z[..., 0], c, d], -1), 1.0).to_event(1), obs=x)


def of_chained(x):
    with pyro.plate("data", len(x)):
        pyro.sample("a", dist.Normal(x[:, 0], 1e-9))
        pyro.sample("z", dist.Normal(x[:, 1:2], 1e-9).to_event(1))
        pyro.sample("c", dist.Bernoulli(x[:, 2]))
        pyro.sample("d", dist.Normal(x[:, 3], 1e-9))


def test_what_depends_on_the_walked_latent_through_another_moves_too():
    x = torch.tensor([[7.0, 3.0, 1.0, 10.0]], dtype=torch.float64)
    walk = traverse((chained, of_chained), x, latent="z", values=[-2.0, 2.0])[0]
    torch.testing.assert_close(walk, x.new_tensor([[7, -2, 0, 0], [7, 2, 1, 10]]), rtol=0, atol=1e-6)


def test_a_latent_whose_support_the_walk_takes_away_is_drawn_anew():
    """u ~ Uniform(z, z + 1)."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            u = pyro.sample("u", dist.Uniform(z[..., 0], z[..., 0] + 1))
            pyro.sample("x", dist.Normal(u, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x[:, None], 0.1).to_event(1))
            pyro.sample("u", dist.Uniform(z[..., 0], z[..., 0] + 1))

    walk = traverse((model, guide), torch.zeros(1), values=[-50.0, 0.0, 50.0])[0]
    torch.testing.assert_close(walk - walk[1], torch.tensor([-50.0, 0.0, 50.0]), rtol=0, atol=1e-4)
    assert 0 < walk[1] < 1


@pytest.mark.parametrize("family", [LadderVAE, HierarchicalVAE])
def test_the_top_of_a_ladder_is_seen(family):
    pyro.set_rng_seed(0)
    pair, x = family(8, latent_dims=(4, 2), hidden=(16,)), torch.rand(3, 8).round()
    noise = traverse(pair, x, dims=[0], values=[0.0] * 7)[0].std(0).max()
    walk = traverse(pair, x, dims=[0])[0].std(0).max()
    assert noise == 0
    assert walk > 0.01


def test_a_latent_that_the_model_sums_is_drawn_given_the_datum():
    """c of x = 100 c, which the prior has as 0 nearly always."""

    def model(x):
        with pyro.plate("data", len(x)):
            probabilities = x.new_tensor([1 - 1e-6, 1e-6])
            c = pyro.sample("c", dist.Categorical(probabilities), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z + 100.0 * c[..., None], 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.new_zeros(2), 0.1).expand([len(x), 2]).to_event(1))

    x = torch.full((1, 2), 100.0, dtype=torch.float64)
    grid, _ = manifold((model, guide), 3, like=x, extent=1.0)
    torch.testing.assert_close(grid[1], x.new_tensor([[100, 99], [100, 100], [100, 101]]))


def test_points_without_a_mean_have_the_same_noise():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Cauchy(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0).to_event(1))

    walk = traverse((model, guide), torch.zeros(1, 2), z=torch.zeros(2), dims=[0], values=[0.0, 3.0])[0]
    torch.testing.assert_close(walk[1] - walk[0], torch.tensor([3.0, 0.0]), rtol=0, atol=1e-4)


@pytest.mark.parametrize("subsample_size", [None, 4])
def test_latents_that_all_data_share_have_one_value(subsample_size):
    """The guide's in decode and on walks, one of the prior in generate: there was another one for each batch."""

    def model(x):
        w = pyro.sample("w", dist.Normal(x.new_zeros(()), 10.0))
        with pyro.plate("data", len(x), subsample_size=subsample_size) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z * w, 0.1).to_event(1), obs=x[rows])

    def guide(x):
        pyro.sample("w", dist.Normal(x.new_tensor(2.0), 0.01))
        with pyro.plate("data", len(x), subsample_size=subsample_size) as rows:
            pyro.sample("z", dist.Normal(x[rows] / 2, 0.1).to_event(1))

    pair, x = (model, guide), torch.ones(300, 1, dtype=torch.float64)
    for batch_size in (None, 50):
        slopes = decode(pair, torch.ones(300, 1), like=x, batch_size=batch_size)
        assert (slopes == slopes[0]).all()
        assert abs(slopes[0] - 2) < FOUR * 0.01
        ones = generate(pair, 300, like=x, fixed={"z": torch.ones(1, 1)}, batch_size=batch_size)
        assert (ones == ones[0]).all()
        assert abs(ones[0] - 2) > FOUR * 0.01
    walk = traverse(pair, x, values=[0.0, 1.0, 2.0]).flatten()
    torch.testing.assert_close(walk, 2 * x.new_tensor([0, 1, 2]), rtol=FOUR * 0.005, atol=0)


# Any pair, any data --------------------------------------------------------------------------------------------------


def test_functions_with_pyro_param():
    def model(x):
        loc = pyro.param("loc", lambda: torch.tensor([1.0, 2.0]))
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(3 * z + loc, 0.5).to_event(1), obs=x)

    def guide(x):
        shift = pyro.param("shift", lambda: torch.tensor(0.25))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x / 3 + shift, 0.1).to_event(1))

    pair, x = (model, guide), torch.tensor([[3.0, 6.0], [0.0, 0.0]])
    z = encode(pair, x)
    torch.testing.assert_close(z, x / 3 + 0.25)
    torch.testing.assert_close(decode(pair, z, like=x), 3 * z + torch.tensor([1.0, 2.0]))
    assert interpolate(pair, x).shape == (1, 10, 2)
    assert moments_agree(
        generate(pair, 5000, like=x).double(), torch.tensor([1.0, 2.0]).double(), 9 * torch.eye(2).double()
    )
    assert set(pyro.get_param_store()) == {"loc", "shift"}


class Noisy(Pair):
    """Its networks behave differently in training."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.BatchNorm1d(3), nn.Dropout(0.5), nn.Linear(3, 2))
        self.decoder = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.encoder(x), 0.5).to_event(1))


@pytest.mark.parametrize("as_functions", [False, True])
def test_evaluation_mode_is_on_and_taken_back(as_functions, untouched):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pair, x = Noisy(), torch.randn(6, 3, dtype=torch.float64)
    pair.encoder[1].eval()
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    given = (lambda x: pair.model(x), lambda x: pair.guide(x)) if as_functions else pair
    x = x.float() if as_functions else x  # a module's data take its dtype
    z, scale = encode(given, x, batch_size=4), 1 / math.sqrt(1 + 1e-5)
    torch.testing.assert_close(z, pair.encoder[2](x.float() * scale).detach())
    torch.testing.assert_close(decode(given, z, like=x), (pair.decoder[0](z) * scale).detach())
    for call in (reconstruct(given, x), generate(given, 6, like=x), interpolate(given, x), traverse(given, x)):
        assert call.dtype == torch.float32
    assert [pair.training, pair.encoder[0].training, pair.encoder[1].training] == [True, True, False]
    for name, value in pair.state_dict().items():
        assert torch.equal(value, before[name])


def test_models_that_subsample_by_themselves():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(2 * z, 1.0), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            pyro.sample("z", dist.Normal(x[rows] / 2, 1e-9))

    pair, x = (model, guide), torch.arange(10.0, dtype=torch.float64)
    torch.testing.assert_close(encode(pair, x), x / 2)
    torch.testing.assert_close(decode(pair, x / 2, like=x), x)
    torch.testing.assert_close(reconstruct(pair, x), x, rtol=0, atol=1e-7)
    assert generate(pair, 11, like=x).unique().shape == (11,)


@pytest.mark.parametrize("rows", [1, 4, 7])
def test_a_plate_that_takes_several_rows_is_walked_and_decodes_fewer(rows):
    """Whatever the rows of `like`: one, as many as the plate takes, or more."""

    def model(x):
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(3 * z, 1.0).to_event(1), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            pyro.sample("z", dist.Normal(x[rows] / 2, 1e-9).to_event(1))

    pair, x = (model, guide), torch.arange(2.0 * rows).reshape(rows, 2)
    images = traverse(pair, x, values=[-1.0, 2.0])
    torch.testing.assert_close(images, torch.tensor([[[-3.0, 1.5], [6.0, 1.5]], [[0.0, -3.0], [0.0, 6.0]]]))
    grid, _ = manifold(pair, 2, like=x, extent=1.0)
    torch.testing.assert_close(grid[0, 1], torch.tensor([-3.0, 3.0]))
    for n in (1, 3, 4, 6):
        z = torch.arange(2.0 * n).reshape(n, 2)
        torch.testing.assert_close(decode(pair, z, like=x), 3 * z)
        torch.testing.assert_close(generate(pair, n, like=x, fixed={"z": z}), 3 * z)
        torch.testing.assert_close(generate(pair, n, like=x, fixed={"z": z[:1]}), 3 * z[:1].expand(n, 2))
        assert generate(pair, n, like=x).shape == (n, 2)


@pytest.mark.parametrize(("size", "rows"), [(6, 1), (6, 4), (6, 6), (300, 6)])
def test_a_plate_of_fixed_size_that_subsamples_has_its_rows(size, rows):
    """The model indexes x by rows of a plate of 6 or 300, whatever the rows of `like`."""

    def model(x):
        with pyro.plate("data", size, subsample_size=2) as chosen:
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(3 * z, 1.0).to_event(1), obs=x[chosen])

    def guide(x):
        with pyro.plate("data", size, subsample_size=2) as chosen:
            pyro.sample("z", dist.Normal(x[chosen] / 2, 1e-9).to_event(1))

    pair, x = (model, guide), torch.arange(2.0 * rows).reshape(rows, 2)
    for n in (1, 2, 3, 7):
        z = torch.arange(2.0 * n).reshape(n, 2)
        torch.testing.assert_close(decode(pair, z, like=x), 3 * z)
        torch.testing.assert_close(generate(pair, n, like=x, fixed={"z": z}), 3 * z)
        assert generate(pair, n, like=x).unique(dim=0).shape == (n, 2)
    torch.testing.assert_close(traverse(pair, x, values=[-1.0])[:, 0], torch.tensor([[-3.0, 1.5], [0.0, -3.0]]))
    torch.testing.assert_close(manifold(pair, 2, like=x, extent=1.0)[0][0, 1], torch.tensor([-3.0, 3.0]))
    if rows > 1:
        torch.testing.assert_close(interpolate(pair, x, steps=2).flatten(0, 1), 1.5 * x, rtol=0, atol=1e-5)


def test_rows_are_added_only_where_a_plate_wants_them(pair):
    seen = []

    def model(x):
        seen.append(len(x))
        pair.model(x)

    decode((model, pair.guide), torch.zeros(3, 2), like=pair.sample(10))
    assert max(seen) == 3


def test_a_start_of_whole_numbers_takes_values_that_are_none(pair):
    x = pair.sample(1)
    whole, real = (traverse(pair, x, z=z, values=[-1.5, 0.5]) for z in (torch.tensor([1, 2]), torch.tensor([1.0, 2.0])))
    torch.testing.assert_close(whole, real)
    assert not torch.equal(whole[0, 0], whole[0, 1])


def test_a_transform_is_applied_once_in_all():
    pair = LinearGaussian()
    data = Split({"x": pair.sample(6)}, transform=lambda tensors: {"x": tensors["x"] + torch.rand_like(tensors["x"])})
    z = encode(pair, data)
    assert torch.equal(z, encode(pair, data))
    first = encode(pair, data, batch_size=2)
    torch.testing.assert_close(first, z)
    images = traverse(pair, data, dims=[0], values=[0.0], seed=0)
    assert images.shape == (1, 1, 5)


def test_loose_guides_are_no_exception():
    pair = LooseLinearGaussian()
    x = pair.sample(4)
    torch.testing.assert_close(encode(pair, x), (pair.posterior(x)[0] + 0.3).detach())


def test_bad_input_is_told(pair):
    x = pair.sample(3)
    with pytest.raises(ValueError, match=r"z has shape \(4, 3\), latent 'z' \(N, 2\); pass that shape"):
        decode(pair, torch.zeros(4, 3), like=x)
    with pytest.raises(ValueError, match="a tensor with one row at least"):
        decode(pair, torch.zeros(0, 2), like=x)
    with pytest.raises(ValueError, match="num_samples is 0, at least 1"):
        generate(pair, 0, like=x)
    with pytest.raises(TypeError, match="batch_size is '7', a whole number"):
        encode(pair, x, batch_size="7")
    with pytest.raises(ValueError, match=r"site='z' is no observed site; pass site= with one of \['x'\]"):
        reconstruct(pair, x, site="z")


def test_scalars_and_unknown_classes_are_told():
    """These raised "len() of a 0-d tensor", "'int' object is not iterable" and an IndexError."""

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(x.new_ones(2)))
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + x.new_tensor([0.0, 10.0])[c], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Categorical(x.new_ones(2)))
            pyro.sample("z", dist.Normal(x, 1.0))

    scalar, x = (model, guide), torch.zeros(3)
    with pytest.raises(ValueError, match=r"latent 'z' has shape \(\), a traversal takes \(L,\)"):
        traverse(scalar, x)
    with pytest.raises(ValueError, match=r"fixed\['z'\] has shape \(\), latent 'z' \(4\); pass that shape, or one row"):
        generate(scalar, 4, like=x, fixed={"z": torch.tensor(1.0)})
    for call in (
        lambda c: generate(scalar, 1, like=x, fixed={"c": c}),
        lambda c: decode(scalar, c, like=x, latent="c"),
    ):
        with pytest.raises(ValueError, match=r"has \[7\], the classes of 'c' are 0 to 1; pass numbers of these"):
            call(torch.tensor([7]))
        assert call(torch.tensor([1])) > 5
    pair = LinearGaussian()
    with pytest.raises(TypeError, match=r"dims is 1, a sequence is wanted; pass dims=\[1\]"):
        traverse(pair, pair.sample(2), dims=1)
    with pytest.raises(ValueError, match=r"dims is \[0\] and z has shape \(3,\), latent 'z' \(2,\)"):
        traverse(pair, pair.sample(2), dims=[0], z=torch.zeros(3))
    with pytest.raises(ValueError, match=r"values is \[\], one number at least is wanted"):
        traverse(pair, pair.sample(2), values=[])
