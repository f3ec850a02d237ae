"""Maximum mean discrepancy of the aggregate posterior, against its closed form, and beside Pyro's own."""

import math

import pyro
import pyro.contrib.gp.kernels as kernels
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_MMD
from test_total_correlation import Codes, X

from pyrovae.models.base import structure
from pyrovae.objectives import MMD, ledger
from pyrovae.objectives.mmd import mean_discrepancy
from pyrovae.training.step import Step


def rbf(x, y):
    """exp(-|x - y|^2 / 2)."""
    return (-0.5 * (x[:, None] - y).square().sum(-1)).exp()


def expected_rbf(a: tuple[float, float], b: tuple[float, float]) -> float:
    """E k(x, y) of independent x ~ N(a), y ~ N(b), in one dim: mean and standard deviation each."""
    variance = 1 + a[1] ** 2 + b[1] ** 2
    return math.exp(-0.5 * (a[0] - b[0]) ** 2 / variance) / math.sqrt(variance)


def test_discrepancy_of_gaussians_is_unbiased():
    p, q = (0.0, 1.0), (0.8, 0.5)
    want = expected_rbf(p, p) + expected_rbf(q, q) - 2 * expected_rbf(p, q)
    torch.manual_seed(0)
    for samples in (2, 10):
        x, y = (loc + sd * torch.randn(4000, samples, 1, dtype=torch.float64) for loc, sd in (p, q))
        values = torch.stack([mean_discrepancy(a, b, rbf) for a, b in zip(x, y, strict=True)])
        error = values.std().item() / math.sqrt(len(values))
        print(values.mean(), want, error)
        assert abs(values.mean().item() - want) < 4 * error < 0.05


@pytest.mark.parametrize("num_particles", [1, 3])
def test_value_is_reconstruction_less_discrepancy(num_particles):
    pair = Codes()
    drawn = ledger(pair, X, num_particles=num_particles)
    z = drawn.values["z"]
    log_x = dist.Normal(z @ pair.decoder, 1.0).log_prob(X).sum(-1).reshape(num_particles, 5).mean(0)
    pyro.set_rng_seed(1)
    prior = 0.2 + 1.3 * torch.randn(num_particles * 5, 3, dtype=torch.float64)
    for kernel in (rbf, kernels.RBF(3)):
        pyro.set_rng_seed(1)
        got = MMD(num_particles, scale=7.0, kernel=kernel).per_datum(drawn)
        want = log_x - 7.0 * mean_discrepancy(z.reshape(-1, 3), prior, rbf)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-6)  # 0.2 and 1.3 in the pair, RBF's scales in float32


def test_pyros_own_holds_each_posterior_to_the_prior():
    """Narrow posteriors whose mixture is the prior: q(z) has no discrepancy, Pyro's of one datum a large one."""
    x = dist.Normal(0.0, 1.0).icdf((torch.arange(400, dtype=torch.float64) + 0.5) / 400)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 0.05))

    pyro.set_rng_seed(0)
    drawn = ledger((model, guide), x, num_particles=2)
    log_x = dist.Normal(drawn.values["z"], 1.0).log_prob(x).mean(0)
    ours = (log_x - MMD(2, scale=1.0).per_datum(drawn)).mean()
    per_row = kernels.RBF(1, lengthscale=torch.tensor(1.0, dtype=torch.float64))
    theirs = Trace_MMD(kernel=per_row, num_particles=200, max_plate_nesting=1, vectorize_particles=True)
    _, penalty = theirs._differentiable_loss_parts(model, guide, (x[:1],), {})
    print(ours, penalty)
    assert abs(ours) < 0.005
    assert penalty > 0.2


def test_refusals():
    with pytest.raises(ValueError, match="scale is -1"):
        MMD(scale=-1)
    with pytest.raises(ValueError, match="one row and one particle"):
        MMD().per_datum(ledger(Codes(), X[:1]))

    def model(x):
        with pyro.plate("data", len(x)):
            loc = pyro.param("loc", torch.zeros(3))
            prior = dist.MixtureSameFamily(dist.Categorical(torch.ones(3)), dist.Normal(loc, 1.0))
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    x = torch.zeros(4)
    with pytest.raises(ValueError, match=r"the prior of 'z' \(MixtureSameFamily\) is learned"):
        Step((model, guide), MMD(), structure((model, guide), x))(x)
