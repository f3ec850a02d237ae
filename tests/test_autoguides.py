"""Pyro's autoguides: their bounds are Pyro's, and what they leave without a weight is refused."""

from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO
from pyro.infer.autoguide import AutoDiagonalNormal, AutoNormal

import pyrovae as pv
from pyrovae.objectives import ledger

X = torch.tensor([0.01, 0.02, 0.03])


def rates(x):
    """A latent that AutoNormal transforms: z = exp(u), whose log-Jacobian is the log-density of its Delta."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(2.0, 100.0))
        pyro.sample("x", dist.Normal(z, 0.01), obs=x)


def normals(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def log_p(x):
    """By the trapezoidal rule."""
    z = torch.linspace(1e-6, 0.3, 100_001)
    joint = dist.Gamma(2.0, 100.0).log_prob(z) + dist.Normal(z, 0.01).log_prob(x[:, None])
    return torch.trapezoid(joint.exp(), z).log()


@pytest.mark.parametrize("closed_form", [True, False])
def test_the_log_jacobian_counts(closed_form):
    """Pyro's KL of a Delta leaves out its log-density: the bound was 4 nats above log p(x)."""
    pyro.set_rng_seed(0)
    guide = AutoNormal(rates, init_loc_fn=pyro.infer.autoguide.init_to_median)
    guide(X)
    with torch.no_grad():
        guide.locs.z.fill_(-4.2)
    stock = -Trace_ELBO(40_000, vectorize_particles=True, max_plate_nesting=1).loss(rates, guide, X) / 3
    objective = -pv.ELBO(40_000, closed_form=closed_form).loss(rates, guide, X) / 3
    assert objective == pytest.approx(stock, abs=0.02)
    parts = pv.elbo((rates, guide), X, num_particles=40_000)
    assert parts.elbo.value == pytest.approx(stock, abs=0.02)
    assert parts.elbo.value == pytest.approx(sum(parts.reconstruction.values()) - sum(parts.kl.values()), abs=1e-4)
    assert parts.elbo.value < log_p(X).mean()


def test_a_step_is_that_of_stock_pyro():
    """Same seed, same gradient, with the closed form where there is one."""
    gradients = []
    for objective in (pv.ELBO(), Trace_ELBO()):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        guide = AutoNormal(rates)
        guide(X)
        pyro.set_rng_seed(1)
        objective.loss_and_grads(rates, guide, X)
        gradients.append(torch.stack([p.grad for p in guide.parameters()]))
    torch.testing.assert_close(*gradients)


def test_a_joint_guide_has_an_elbo_and_no_weights():
    """AutoDiagonalNormal draws all rows' z as one vector outside the plate; weights without it were p(x, z)."""
    x = torch.tensor([0.5, -1.0, 2.0])
    pyro.set_rng_seed(0)
    guide = AutoDiagonalNormal(normals, init_scale=0.5**0.5)
    guide(x)
    with torch.no_grad():
        guide.loc.copy_(x / 2)
    exact = dist.Normal(0.0, 2**0.5).log_prob(x).mean().item()
    bound = pv.elbo((normals, guide), x, num_particles=2000)
    assert bound.elbo.value == pytest.approx(exact, abs=1e-4)
    assert bound.elbo.standard_error < 1e-4  # at the posterior: z of all rows come from one draw, whose parts make up
    for refused in (
        lambda: pv.log_likelihood((normals, guide), x),
        lambda: pv.log_weights((normals, guide), x, num_particles=2),
        lambda: pv.expectation((normals, guide), x, lambda latents: latents["z"]),
        lambda: pv.IWAE(3).loss(normals, guide, x),
        lambda: pv.DReG(3).loss(normals, guide, x),
        lambda: pv.VIMCO(3).loss(normals, guide, x),
        lambda: pv.ReweightedWakeSleep(3).loss(normals, guide, x),
        lambda: ledger((normals, guide), x).log_q(),
    ):
        with pytest.raises(ValueError, match=r"the guide draws the latents of all data at once, at .*_latent"):
            refused()


@pytest.mark.parametrize("family", [AutoNormal, AutoDiagonalNormal])
@pytest.mark.parametrize("batch_size", [None, 3])
def test_fit_gives_each_row_its_own_posterior(family, batch_size):
    """Rows in another order at each step would give all rows the mean."""
    x = torch.tensor([0.5, -1.0, 2.0])
    pyro.set_rng_seed(0)
    guide = family(normals)
    decay = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.997)
    options = {"max_epochs": 1500, "lr": 0.05, "schedule": decay, "batch_size": batch_size}
    pv.fit((normals, guide), x, **options, seed=0, compile=False, progress=False)
    torch.testing.assert_close(guide.median(x)["z"].detach(), x / 2, atol=0.1, rtol=0)
