"""The arithmetic of draws: enumerated sites of one value, KLs by dimension, scales that vary inside nested plates."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import GaussianMixture
from pyro import poutine
from pyro.infer import Trace_ELBO

from pyrovae import (
    CIWAE,
    ELBO,
    IWAE,
    VAE,
    VIMCO,
    DReG,
    FactoredM2,
    FreeBits,
    ReweightedWakeSleep,
    VaDE,
    WakeSleep,
    ais,
    expectation,
    log_likelihood,
    log_weights,
)
from pyrovae.models.base import structure
from pyrovae.objectives import ledger

F64 = torch.float64


def bits(rows, seed=0):
    return (torch.rand(rows, 6, generator=torch.Generator().manual_seed(seed)) > 0.5).double()


# Enumerated sites of one value ----------------------------------------------------------------------------------------


def one_cluster():
    """A VaDE of one cluster, and the VAE of the same networks: one model, with and without c."""
    torch.manual_seed(0)
    vade = VaDE(6, 2, 1, hidden=(5,)).double()
    parts = {name: getattr(vade, name) for name in ("encoder", "decoder", "posterior", "likelihood", "prior")}
    return vade, VAE(6, 2, **parts)


def seeded(objective, pair, x):
    """The loss and its gradients, from one seed."""
    torch.manual_seed(1)
    parameters = list(structure(pair, x).parameters.values())
    found = [p for p in parameters if p.requires_grad]
    loss = objective.differentiable_loss(pair.model, pair.guide, x)
    gradients = torch.autograd.grad(loss, found, allow_unused=True, materialize_grads=True)
    return {"loss": loss.detach()} | {id(p): g for p, g in zip(found, gradients, strict=True)}


@pytest.mark.parametrize(
    "objective",
    [ELBO(3), IWAE(3), VIMCO(3), ReweightedWakeSleep(3), ReweightedWakeSleep(3, insomnia=0.0), WakeSleep(), DReG(3)],
)
def test_one_cluster_is_none(objective):
    vade, vae = one_cluster()
    x = bits(4)
    want = seeded(objective, vae, x)
    got = seeded(objective, vade, x)
    if isinstance(objective, WakeSleep) or getattr(objective, "insomnia", 1.0) < 1:
        want, got = {"loss": want["loss"]}, {"loss": got["loss"]}  # the dream of c takes a number of the generator
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-12)


def test_weights_of_one_cluster_have_no_dim_for_it():
    vade, vae = one_cluster()
    x = bits(4)
    for num_particles in (1, 3):
        torch.manual_seed(2)
        want = log_weights(vae, x, num_particles=num_particles)
        torch.manual_seed(2)
        drawn = ledger(vade, x, num_particles=num_particles)
        torch.testing.assert_close(drawn.log_weights(), want)
        assert drawn.elbo().shape == (num_particles, 4)
        assert CIWAE(num_particles).per_datum(drawn).shape == (4,)
        assert all(part.shape == (num_particles, 4) for part in drawn.parts()[1].values())
    want = log_likelihood(vae, x, num_samples=64, seed=0)
    got = log_likelihood(vade, x, num_samples=64, seed=0)
    torch.testing.assert_close(got.per_datum, want.per_datum)
    mean = [expectation(pair, x, lambda z: z["z"], num_samples=9, seed=0).value for pair in (vade, vae)]
    torch.testing.assert_close(*mean)


def test_annealing_of_one_value():
    vade, vae = one_cluster()
    x = bits(3)
    got, want = (ais(pair, x, num_temperatures=10, num_leapfrog=3, num_chains=8, seed=0) for pair in (vade, vae))
    error = math.hypot(got.standard_error, want.standard_error)
    print(f"{got.value:.4f} and {want.value:.4f}, standard error {error:.4f}")
    assert abs(got.value - want.value) < 4 * error + 0.5 * len(x) * error**2
    one = GaussianMixture(torch.ones(1, dtype=F64), torch.zeros(1, 6, dtype=F64), torch.ones(1, 6, dtype=F64))
    torch.testing.assert_close(ais(one, x).per_datum, one.log_prob(x).detach())


def test_one_class_that_the_guide_enumerates():
    """z depends on y of one value, in the model and in the guide."""

    def model(x, classes=1):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(x.new_ones(classes)))
            z = pyro.sample("z", dist.Normal(0.3 * (y + 1), 1.0))
            pyro.sample("x", dist.Normal(z, 0.8), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(x.new_ones(1)), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(0.5 * x + y, 0.9))

    x = torch.tensor([-0.5, 1.0, 3.0], dtype=F64)
    drawn = ledger((model, guide), x, num_particles=2)
    z = drawn.values["z"].reshape(2, 3)
    want = (
        dist.Normal(0.3, 1.0).log_prob(z) + dist.Normal(z, 0.8).log_prob(x) - dist.Normal(0.5 * x, 0.9).log_prob(z)
    )  # fmt: skip
    torch.testing.assert_close(drawn.log_weights(), want)
    torch.testing.assert_close(drawn.elbo(closed_form=False), want)
    torch.testing.assert_close(IWAE(2).per_datum(drawn), want.logsumexp(0) - math.log(2))


# KLs by dimension where the guide enumerates --------------------------------------------------------------------------


@pytest.mark.parametrize("num_classes", [1, 3, 4])  # of which 3 is the number of dimensions of z
def test_kl_by_dimension_where_z_does_not_depend_on_the_guides_y(num_classes):
    torch.manual_seed(0)
    pair = FactoredM2(6, 3, num_classes=num_classes, hidden=(5,)).double()
    batch = bits(4), torch.full((4,), -1)
    for num_particles in (1, 2):
        drawn = ledger(pair, *batch, num_particles=num_particles)
        for closed_form in (True, False):
            each = drawn.kl_by_dimension("z", closed_form=closed_form)
            assert each.shape == (num_particles, 4, 3)
            torch.testing.assert_close(each.sum(-1), drawn.parts(closed_form=closed_form)[1]["z"])
        q = pair.posterior(pair.encoder(batch[0])).base_dist
        torch.testing.assert_close(
            drawn.kl_by_dimension("z"),
            torch.distributions.kl_divergence(q, dist.Normal(0.0, 1.0)).expand(num_particles, 4, 3),
        )
        got = FreeBits(0.0, group_size=1).per_datum(drawn).mean()
        torch.testing.assert_close(got, ELBO().per_datum(drawn).mean())


# Scales that are tensors ----------------------------------------------------------------------------------------------


def plated(scale, where, latent="z"):
    """Three x of each datum in a nested plate, weighed by `scale` in it or around all."""

    def model(x):
        with pyro.plate("data", len(x)):
            with poutine.scale(scale=scale if where == "z" else 1.0):
                z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            with pyro.plate("parts", 3, dim=-2), poutine.scale(scale=scale if where == "parts" else 1.0):
                e = pyro.sample("e", dist.Normal(z, 1.0))
                pyro.sample("x", dist.Normal(e, 1.0), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x)):
            loc = pyro.param("loc", x.new_tensor(0.3))
            with poutine.scale(scale=scale if where == "z" else 1.0):
                pyro.sample("z", dist.Normal(loc * x.mean(1), 0.6))
            with pyro.plate("parts", 3, dim=-2), poutine.scale(scale=scale if where == "parts" else 1.0):
                pyro.sample("e", dist.Normal(loc * x.T, 0.9))

    return model, guide


SCALES = {
    "parts": torch.tensor([[0.1], [1.0], [5.0]], dtype=F64),
    "data": torch.linspace(0.5, 2.0, 5, dtype=F64),
    "parts and data": torch.linspace(0.5, 2.0, 15, dtype=F64).reshape(3, 5),
}


@pytest.mark.parametrize("name", SCALES)
def test_a_scale_inside_a_nested_plate_is_stock_pyros(name):
    model, guide = plated(SCALES[name], "parts")
    x = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    for num_particles in (1, 3):
        stock = Trace_ELBO(num_particles=num_particles, vectorize_particles=True, max_plate_nesting=2)
        found = []
        for objective in (ELBO(num_particles, closed_form=False), stock):
            pyro.clear_param_store()
            structure((model, guide), x)
            torch.manual_seed(3)
            loss = objective.differentiable_loss(model, guide, x)
            found.append((loss, *torch.autograd.grad(loss, pyro.param("loc"))))
        torch.testing.assert_close(*found)
        drawn = ledger((model, guide), x, num_particles=num_particles)
        e, z = drawn.values["e"].reshape(num_particles, 3, 5), drawn.values["z"].reshape(num_particles, 1, 5)
        kl = torch.distributions.kl_divergence(dist.Normal(0.3 * x.T, 0.9), dist.Normal(z, 1.0))
        reconstruction, parts = drawn.parts()
        torch.testing.assert_close(parts["e"], (SCALES[name] * kl).sum(-2).detach(), check_dtype=True)
        torch.testing.assert_close(reconstruction, (SCALES[name] * dist.Normal(e, 1.0).log_prob(x.T)).sum(-2))


def test_a_scale_of_shared_sites_inside_a_plate_is_stock_pyros():
    scale = torch.tensor([0.5, 2.0, 3.0], dtype=F64)

    def model(x):
        with pyro.plate("columns", 3), poutine.scale(scale=scale):
            m = pyro.sample("m", dist.Normal(x.new_zeros(()), 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(m.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("columns", 3), poutine.scale(scale=scale):
            pyro.sample("m", dist.Normal(x.new_tensor([0.1, 0.2, 0.3]), 0.5))

    x = torch.tensor([0.3, -1.0], dtype=F64)
    structure((model, guide), x)
    found = []
    for objective in (ELBO(closed_form=False), Trace_ELBO()):
        torch.manual_seed(3)
        found.append(objective.differentiable_loss(model, guide, x))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("name", ["parts", "parts and data"])
def test_a_scale_outside_the_plate_that_it_varies_in_is_refused(name):
    model, guide = plated(SCALES[name], "z")
    with pytest.raises(ValueError, match=r"poutine.scale at site 'z' has shape \(3, .\), the site only \(5,\); put it"):
        ELBO().differentiable_loss(model, guide, torch.zeros(5, 3, dtype=F64))


def test_a_bound_of_weights_refuses_a_scale_that_varies_inside_a_datum():
    scale = SCALES["parts"]

    def model(x):
        with pyro.plate("data", len(x)), pyro.plate("parts", 3, dim=-2), poutine.scale(scale=scale):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)

    def guide(x):
        with pyro.plate("data", len(x)), pyro.plate("parts", 3, dim=-2), poutine.scale(scale=scale):
            pyro.sample("z", dist.Normal(x.T, 1.0))

    with pytest.raises(ValueError, match=r"poutine.scale has shape \(3, 1\), which varies inside a datum"):
        IWAE(2).differentiable_loss(model, guide, torch.zeros(5, 3, dtype=F64))


def switched(of_switch, of_words, of_data=1.0):
    """c ~ Cat, summed, explains three words of each datum in a nested plate."""

    def model(x):
        with pyro.plate("data", len(x)), poutine.scale(scale=of_data):
            with poutine.scale(scale=of_switch):
                c = pyro.sample("c", dist.Categorical(x.new_tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            with pyro.plate("words", 3, dim=-2), poutine.scale(scale=of_words):
                pyro.sample("x", dist.Normal(1.5 * c, 1.0), obs=x.T)

    return model, lambda x: None


@pytest.mark.parametrize("of_data", [1.0, SCALES["data"]])
@pytest.mark.parametrize("name", SCALES)
def test_words_of_a_summed_switch_have_weights_of_their_own(name, of_data):
    """v log sum_c p(c) prod_m p(x_m | c)^(w_m): v the switch's weight, v w_m that of word m."""
    x = torch.randn(5, 3, dtype=F64, generator=torch.Generator().manual_seed(0))
    drawn = ledger(switched(1.0, SCALES[name], of_data), x)
    c = torch.arange(2.0, dtype=F64)[:, None, None]
    words = (SCALES[name] * dist.Normal(1.5 * c, 1.0).log_prob(x.T)).sum(1)  # (C, B)
    want = of_data * (x.new_tensor([0.3, 0.7]).log()[:, None] + words).logsumexp(0)
    torch.testing.assert_close(drawn.elbo()[0], want)


def test_a_summed_switch_inside_a_datum_has_one_weight():
    def model(x):
        with pyro.plate("data", len(x)), pyro.plate("words", 3, dim=-2), poutine.scale(scale=SCALES["parts"]):
            c = pyro.sample("c", dist.Categorical(x.new_tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(1.5 * c, 1.0), obs=x.T)

    with pytest.raises(ValueError, match=r"enumerated site 'c' has a weight of shape \(3, 1\), which varies inside a"):
        ELBO().differentiable_loss(model, lambda x: None, torch.zeros(5, 3, dtype=F64))
