"""The contractive penalty against the Jacobian in closed form, by torch.func, and by finite differences."""

import math
from contextlib import nullcontext

import pyro
import pytest
import torch
from exact import LinearGaussian
from pyro import poutine
from torch import nn

import pyrovae as pv
from pyrovae.conditionals import CrossEntropy
from pyrovae.models import VAE, VQVAE, Autoencoder
from pyrovae.models.base import structure
from pyrovae.nets import GaussianNoise, Masking
from pyrovae.training.step import Step

X = torch.rand(4, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def small(**options):
    pyro.set_rng_seed(0)
    return Autoencoder((2, 3), 3, **{"hidden": (5,), "likelihood": CrossEntropy, **options}).double()


class Sigmoid(nn.Module):
    """The code is sigmoid(W x), as in the paper."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(6, 3)

    def forward(self, x):
        return self.linear(x.flatten(1)).sigmoid()


def as_it_is(feature_shape, latent_dim):
    """A posterior whose mean is the features."""

    class Mean(nn.Module):
        def forward(self, features):
            return pyro.distributions.Normal(features, 1.0).to_event(1)

    return Mean()


def penalty(pair, x, projections=4000):
    """The objective's, (B,), from how it lowers the ELBO."""
    pyro.set_rng_seed(1)
    objective = pv.Contractive(1.0, num_projections=projections)
    drawn = objective.draw(pair, x, known=structure(pair, x))
    return drawn.elbo().mean(0) - objective.per_datum(drawn)


def assert_close(found, want):
    """Within five standard deviations of the mean of 4000 projections."""
    assert ((found - want).abs() < 5 * math.sqrt(2 / 4000) * want).all()
    assert (want > 1e-3).all()


def test_the_penalty_of_a_sigmoid_layer_is_the_papers():
    pyro.set_rng_seed(0)
    encoder = Sigmoid().double()
    pair = small(encoder=encoder, posterior=as_it_is)
    h = encoder(X)
    want = ((h * (1 - h)) ** 2 @ (encoder.linear.weight**2).sum(1)).detach()  # eq. 3
    assert_close(penalty(pair, X), want)


def test_the_penalty_is_the_jacobian_of_any_encoder_by_finite_differences():
    pair, step = small(), 1e-5

    def code(x):
        return pair.posterior_of(x).mean.detach()

    columns = []
    for index in range(6):
        shift = torch.zeros(6, dtype=X.dtype).index_fill(0, torch.tensor(index), step).view(2, 3)
        columns.append((code(X + shift) - code(X - shift)) / (2 * step))
    assert_close(penalty(pair, X), torch.stack(columns).square().sum((0, 2)))


def test_the_gradient_is_that_of_the_exact_penalty():
    pair = small()
    names = [name for name, _ in pair.named_parameters()]

    def exact():
        jacobian = torch.func.vmap(torch.func.jacrev(lambda x: pair.posterior_of(x[None]).mean[0]))(X)
        size = jacobian.flatten(1).square().sum(1)
        return -(pv.log_weights(pair, X)[0] - 0.7 * size).mean()

    pyro.set_rng_seed(2)
    found = -pv.Contractive(0.7, num_projections=4000).mean(pv.Contractive(0.7).draw(pair, X, known=structure(pair, X)))
    found = torch.autograd.grad(found, list(pair.parameters()))
    want = torch.autograd.grad(exact(), list(pair.parameters()))
    plain = torch.autograd.grad(-pv.log_weights(pair, X)[0].mean(), list(pair.parameters()))
    for name, one, other, without in zip(names, found, want, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=0.1, atol=0.02 * other.abs().max(), msg=name)
        if name.startswith("encoder"):
            assert (other - without).norm() > 0.3 * without.norm()  # the penalty has a say
        else:
            assert name.startswith("posterior") or torch.allclose(one, without)


def test_values_are_the_same_without_gradients_and_scale_with_the_weight():
    pair, known = small(), structure(small(), X)
    losses = []
    for gradients in (True, False):
        pyro.set_rng_seed(3)
        with torch.set_grad_enabled(gradients):
            losses.append(-pv.Contractive(0.3).mean(pv.Contractive().draw(pair, X, known=known)).item())
    assert losses[0] == losses[1]
    values = []
    for beta in (0.0, 1.0, 2.0):
        pyro.set_rng_seed(3)
        values.append(pv.Contractive(beta).loss(pair.model, pair.guide, X))
    assert values[0] == pytest.approx(pv.ELBO().loss(pair.model, pair.guide, X), abs=1e-12)
    assert values[2] - values[1] == pytest.approx(values[1] - values[0], rel=1e-9)
    assert values[1] > values[0]
    assert not X.requires_grad


def test_training_contracts_the_code_and_validation_is_without_the_penalty():
    x = pv.data.load("digits", binarize=None).train["x"][:300]
    sizes = []
    for beta in (0.0, 1.0):
        torch.manual_seed(0)
        pair = Autoencoder(x.shape[1:], 4, hidden=(32,), likelihood=CrossEntropy)
        options = {"max_epochs": 10, "batch_size": 60, "lr": 5e-3, "seed": 0, "progress": False}
        pv.fit(pair, x, objective=pv.Contractive(beta), **options)
        sizes.append(penalty(pair.double(), x[:20].double(), 200).mean())
    assert sizes[1] < 0.5 * sizes[0]
    assert type(pv.Contractive().for_validation()) is pv.ELBO


def test_a_fixed_corruption_is_part_of_the_encoder():
    """Additive noise leaves the Jacobian that of the encoder at x~; masks remove what they hide."""
    noisy, masked = (small(corruption=part).train() for part in (GaussianNoise(1e-9), Masking(1 - 1e-12)))
    assert_close(penalty(noisy, X), penalty(small(), X, 20_000))
    assert (penalty(masked, X, 10) == 0).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pv.Contractive(-1.0), "beta is -1.0"),
        (lambda: pv.Contractive(num_projections=0), "num_projections is 0"),
        (lambda: pv.Contractive(num_projections=True), "num_projections is True"),
        (
            lambda: penalty(VAE((2, 3), 2, hidden=(), likelihood=CrossEntropy).double(), X, 1),
            r"guide's sites \['z'\] none is a point",
        ),
        (lambda: penalty(small(encoder=lambda shape: Blind()), X, 1), "nothing to contract"),
    ],
)
def test_bad_input_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


class Blind(nn.Module):
    """It does not look."""

    feature_shape = (3,)

    def forward(self, x):
        return x.new_zeros(len(x), 3)


def test_a_step_leaves_the_data_as_they_are_and_the_linear_pair_is_refused():
    pair = small()
    Step(pair, pv.Contractive(), structure(pair, X)).backward(X)
    assert not X.requires_grad
    assert X.grad is None
    linear = LinearGaussian()
    with pytest.raises(ValueError, match="is a point"):
        pv.Contractive().loss(linear.model, linear.guide, torch.zeros(3, 5, dtype=torch.float64))


def test_poutine_scale_is_one_of_the_penalty_too():
    pair, losses = small(), []
    for scale in (1.0, 3.0):
        pyro.set_rng_seed(0)
        scaled = [poutine.scale(part, scale) for part in (pair.model, pair.guide)]
        losses.append(pv.Contractive(2.0).loss(*scaled, X))
    assert losses[1] == pytest.approx(3 * losses[0], rel=1e-9)


def test_of_points_that_are_codes_and_vectors_the_vectors_are_contracted():
    """A VQ-VAE's guide puts points on whole numbers too, which have no derivative."""
    pair, x = VQVAE((1, 8, 8), num_codes=4).double(), torch.zeros(3, 1, 8, 8, dtype=torch.float64)
    assert (penalty(pair, x, 1) > 0).all()


@pytest.mark.parametrize("parts", [0, 3])
def test_the_penalty_of_single_numbers_and_of_numbers_in_a_nested_plate(parts):
    """z = (sin x, x^2), x one number of each datum; z_m = (sin x_m, x_m^2) of each number in a nested plate."""

    def sites(x, code):
        with pyro.plate("data", x.size(-1)), pyro.plate("parts", parts, dim=-2) if parts else nullcontext():
            code(x)

    def model(x):
        def code(x):
            z = pyro.sample("z", pyro.distributions.Normal(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", pyro.distributions.Normal(z.sum(-1), 1.0), obs=x)

        sites(x, code)

    def guide(x):
        sites(x, lambda x: pyro.sample("z", pyro.distributions.Delta(torch.stack([x.sin(), x**2], -1), event_dim=1)))

    x = torch.tensor([0.5, -0.3, 0.9, 1.4], dtype=torch.float64)
    x = torch.stack([x, x + 1, x - 1]) if parts else x
    want = x.cos() ** 2 + (2 * x) ** 2
    assert_close(penalty((model, guide), x), want.sum(0) if parts else want)
