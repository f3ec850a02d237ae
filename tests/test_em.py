"""EM and its relatives, against scikit-learn, each other and closed forms."""

import itertools
import math
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import GaussianMixture, LinearGaussian, LooseLinearGaussian
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer.autoguide import AutoDelta, AutoNormal
from pyro.nn import PyroModule, PyroSample, pyro_method
from sklearn.mixture import GaussianMixture as Reference
from test_classical import Factorial, blobs, mixture

from pyrovae import ELBO, MeanField, fit, fit_em, log_marginal, mean_field_posterior
from pyrovae.models.base import Functions, structure
from pyrovae.objectives import ledger
from pyrovae.objectives.hmc import Chains
from pyrovae.training.em import Ascent, CoordinateAscent, Exact, MonteCarlo

NEWTON = partial(
    torch.optim.LBFGS, max_iter=60, tolerance_grad=1e-11, tolerance_change=1e-14, line_search_fn="strong_wolfe"
)
SGD = torch.optim.SGD


class Recorder:
    """A callback that keeps copies of parameters after each epoch."""

    def __init__(self, *parameters):
        self.parameters, self.kept = parameters, []

    def __call__(self, run):
        self.kept.append([p.detach().clone() for p in self.parameters])


def recorded(pair, *data, parameters=None, **options):
    recorder = Recorder(*(pair.parameters() if parameters is None else parameters))
    run = fit_em(pair, data, callbacks=[recorder], seed=0, **options)
    return run.history["train_loss"], recorder.kept


def assert_rises(losses, slack=1e-12):
    assert all(b <= a + slack for a, b in itertools.pairwise(losses)), losses


def assert_equal(first, second, tolerance):
    for mine, wanted in zip(first, second, strict=True):
        for a, b in zip(mine, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


# EM -------------------------------------------------------------------------------------------------------------------


def test_em_is_scikit_learns_iterate_by_iterate():
    x = blobs(90)
    pair = mixture(x)
    start = [p.detach().clone() for p in pair.parameters()]
    losses, kept = recorded(pair, x, e_step=Exact(), m_step=pair.maximize, max_epochs=12)
    for epochs, (log_weights, locs, log_scales) in enumerate(kept, 1):
        reference = Reference(
            3, covariance_type="diag", reg_covar=0.0, tol=0.0, max_iter=epochs, weights_init=start[0].exp().numpy(),
            means_init=start[1].numpy(), precisions_init=(-2 * start[2]).exp().numpy(), random_state=0,
        )  # fmt: skip
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it has not converged
            reference.fit(x.numpy())
        assert abs(log_weights.exp() - torch.from_numpy(reference.weights_)).max() < 1e-6
        assert abs(locs - torch.from_numpy(reference.means_)).max() < 1e-6
        assert abs((2 * log_scales).exp() - torch.from_numpy(reference.covariances_)).max() < 1e-6
        assert losses[epochs - 1] == pytest.approx(-reference.lower_bound_, abs=1e-6)
    assert_rises(losses)
    assert losses[0] - losses[-1] > 0.3
    restored = GaussianMixture(start[0].exp(), start[1], start[2].exp())
    assert losses[0] == pytest.approx(-restored.log_prob(x).mean().item(), abs=1e-10)


@pytest.mark.parametrize(("optimizer", "lr", "steps"), [(SGD, 0.05, 5), (NEWTON, 1.0, 1)])
def test_generalised_em_never_falls(optimizer, lr, steps):
    x = blobs(90)
    pair = mixture(x)
    losses, _ = recorded(pair, x, m_step=Ascent(steps, lr=lr, optimizer=optimizer), max_epochs=12)
    assert_rises(losses)
    assert losses[0] - losses[-1] > 0.3
    assert -log_marginal(pair, x).mean() < losses[-1]


def test_a_maximum_found_by_gradients_is_the_closed_form():
    x = blobs(90)
    closed, climbed = mixture(x), mixture(x)
    _, wanted = recorded(closed, x, m_step=closed.maximize, max_epochs=4)
    _, got = recorded(climbed, x, m_step=Ascent(3, lr=1.0, optimizer=NEWTON), max_epochs=4)
    for mine in got:
        mine[0] = mine[0].log_softmax(0)
    assert_equal(got, wanted, 1e-5)


def test_it_ends_within_the_tolerance():
    x = blobs(90)
    pair = mixture(x)
    losses, _ = recorded(pair, x, m_step=pair.maximize, max_epochs=1000, tolerance=1e-6)
    assert len(losses) < 1000
    assert abs(losses[-1] - losses[-2]) < 1e-6 < abs(losses[-2] - losses[-3])


# Variational EM -------------------------------------------------------------------------------------------------------


def overlapping(rows=30):
    """Data whose responsibilities are far from 0 and 1, where the gradient of a logit would vanish."""
    return torch.randn(rows, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


class Unsummed(GaussianMixture):
    """The same mixture, with c left for a guide."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=self.log_weights))
            pyro.sample("x", dist.Normal(self.locs[c], self.log_scales[c].exp()).to_event(1), obs=x)


def unsummed(x):
    start = mixture(x)
    return Unsummed(start.log_weights.exp().detach(), start.locs.detach(), start.log_scales.exp().detach())


def test_variational_em_is_em_where_the_family_contains_the_posterior():
    x = overlapping()
    rows = torch.arange(len(x))
    exact, coordinate, local = mixture(x), mixture(x), unsummed(x)
    losses, wanted = recorded(exact, x, m_step=exact.maximize, max_epochs=4)
    same, got = recorded(coordinate, x, e_step=CoordinateAscent(1), m_step=coordinate.maximize, max_epochs=4)
    assert_equal(got, wanted, 1e-10)
    assert same == pytest.approx(losses, abs=1e-10)

    def maximize(responsibilities, x, rows):
        local.maximize(responsibilities, x)

    pair = MeanField(local.model, x)
    climbed, got = recorded(
        pair, x, rows, parameters=list(local.parameters()), e_step=Ascent(3, lr=1.0, optimizer=NEWTON),
        m_step=maximize, max_epochs=4,
    )  # fmt: skip
    assert_equal(got, wanted, 3e-5)  # as near as the optimizer came
    assert climbed == pytest.approx(losses, abs=1e-6)


class Learned(Factorial):
    """Its levels are a parameter."""

    def model(self, x, words):
        self.loc = pyro.param("loc", torch.tensor([[0.0, 1.0], [-1.0, 2.5]], dtype=torch.float64))
        super().model(x, words.T)


def test_mean_field_em_never_falls_and_stays_below():
    x, words = Factorial.data(12)
    losses = {}
    for e_step in (Exact(), CoordinateAscent(1)):
        pyro.clear_param_store()
        m_step = Ascent(1, lr=1.0, optimizer=NEWTON)
        losses[type(e_step)], _ = recorded(
            Learned(), x, words.T, parameters=[], e_step=e_step, m_step=m_step, max_epochs=6
        )
        assert_rises(losses[type(e_step)])
    assert losses[CoordinateAscent][0] > losses[Exact][0] + 1e-3  # F < log p(x) at the same parameters
    assert losses[Exact][0] - losses[Exact][-1] > 0.1
    assert losses[CoordinateAscent][-1] > -log_marginal(Learned(), x, words.T).mean()


def test_svi_as_in_the_notes_is_mini_batch_em_where_the_inner_steps_converge():
    """Per mini-batch: initialise the local parameters, climb, one model step."""
    x = overlapping()
    summed, local = mixture(x), unsummed(x)
    _, wanted = recorded(
        summed, x, e_step=Exact(), m_step=Ascent(1, lr=0.05, optimizer=SGD), batch_size=8, max_epochs=2
    )
    pair = MeanField(local.model, x)
    e_step = Ascent(3, lr=1.0, optimizer=NEWTON, start=pair.restart)
    _, got = recorded(
        pair, x, torch.arange(30), parameters=list(local.parameters()), e_step=e_step,
        m_step=Ascent(1, lr=0.05, optimizer=SGD), batch_size=8, max_epochs=2,
    )  # fmt: skip
    assert_equal(got, wanted, 1e-6)
    assert len(got) == 2


def test_each_batch_starts_from_where_it_is_initialised():
    x, ends = overlapping(8), []
    for before in (0.0, 3.0):
        pair = MeanField(unsummed(x).model, x)
        (logits,) = pair.factors.parameters()
        torch.nn.init.normal_(logits, std=before)
        climb = Ascent(1, lr=0.5, optimizer=SGD, start=pair.restart)
        fit_em(pair, (x, torch.arange(8)), e_step=climb, m_step=lambda *_: None, batch_size=4, max_epochs=1)
        ends.append(logits.detach().clone())
    assert ends[0].abs().max() > 0
    torch.testing.assert_close(*ends)


def test_coordinate_ascent_goes_on_from_the_last_q():
    x, words = Factorial.data(5)
    run = fit_em(Learned(), (x, words.T), e_step=CoordinateAscent(1), m_step=lambda *_: None, max_epochs=3)
    want = [-mean_field_posterior(Learned(), x, words.T, sweeps=sweeps).mean().item() for sweeps in (1, 2, 3)]
    assert run.history["train_loss"] == pytest.approx(want, abs=1e-12)
    assert want[0] > want[1] + 1e-4


# Guides by turns ------------------------------------------------------------------------------------------------------


class Slope:
    """z ~ N(0, 1), x | z ~ N(w z, s^2), whose p(x) is N(0, w^2 + s^2): maximum likelihood has w^2 = mean x^2 - s^2."""

    scale = 0.5

    def __init__(self, weight=0.5):
        self.weight = torch.tensor(weight, dtype=torch.float64)

    def model(self, x):
        weight = pyro.param("weight", self.weight)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(weight * z, self.scale), obs=x)

    def posterior(self, x, weight):
        variance = 1 / (1 + weight**2 / self.scale**2)
        return variance * weight * x / self.scale**2, variance

    def guide(self, x):
        slope = pyro.param("slope", torch.tensor(0.1, dtype=torch.float64))
        width = pyro.param("width", torch.tensor(1.0, dtype=torch.float64), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, width))

    @staticmethod
    def data(rows=200):
        x = torch.randn(rows, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
        return 1.5 * x / x.pow(2).mean().sqrt()  # mean of x^2 is 2.25, the best w is sqrt 2


def test_one_turn_is_two_gradient_steps():
    """First the guide at the old model, then the model at the new guide."""
    x, pair = Slope.data(20), Slope()
    structure(pair, x)
    store = pyro.get_param_store()
    noise_free = Deterministic(pair)
    fit_em(
        noise_free, x, e_step=Ascent(1, lr=0.1, optimizer=SGD), m_step=Ascent(1, lr=0.2, optimizer=SGD), max_epochs=1
    )
    slope = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    (gradient,) = torch.autograd.grad(noise_free.bound(x, slope, weight), slope)
    moved = (slope + 0.1 * gradient).detach()
    (gradient,) = torch.autograd.grad(noise_free.bound(x, moved, weight), weight)
    torch.testing.assert_close(store["slope"].detach(), moved, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(store["weight"].detach(), (weight + 0.2 * gradient).detach(), rtol=1e-10, atol=1e-10)


class Deterministic:
    """A guide that is a point, slope * x: the bound has no noise."""

    def __init__(self, pair):
        self.pair, self.model = pair, pair.model

    def guide(self, x):
        slope = pyro.param("slope", torch.tensor(0.1, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Delta(slope * x))

    def bound(self, x, slope, weight):
        log_p = dist.Normal(0.0, 1.0).log_prob(slope * x) + dist.Normal(weight * slope * x, Slope.scale).log_prob(x)
        return log_p.mean()


def test_turns_and_joint_training_reach_the_same_optimum():
    x, ends = Slope.data(), []
    for turns in (True, False):
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        if turns:
            run = fit_em(
                Slope(), x, e_step=Ascent(3, lr=0.02), m_step=Ascent(1, lr=0.02), objective=ELBO(10), max_epochs=300,
                seed=0,
            )  # fmt: skip
        else:
            run = fit(
                Slope(), x, objective=ELBO(10), lr=0.02, max_epochs=400, batch_size=200, seed=0, compile=False,
                progress=False,
            )  # fmt: skip
        ends.append(pyro.param("weight").item())
        assert run.history["train_loss"][-1] == pytest.approx(
            -dist.Normal(0.0, 1.5).log_prob(x).mean().item(), abs=0.03
        )
    assert ends == pytest.approx([math.sqrt(2)] * 2, abs=0.05)


def test_local_parameters_with_mini_batches_of_fit_find_the_posterior():
    x, truth = Slope.data(40), Slope(1.2)
    pair = MeanField(poutine.block(truth.model, hide_types=["param"]), x)
    run = fit(
        pair, (x, torch.arange(40)), objective=ELBO(20, closed_form=False), batch_size=20, lr=0.03,
        max_epochs=400, seed=0, compile=False, progress=False,
        schedule=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 400),
    )  # fmt: skip
    q = pair.factor("z", torch.arange(40))
    loc, variance = truth.posterior(x, truth.weight)
    assert (q.mean - loc).abs().max() < 0.05
    assert (q.stddev - variance.sqrt()).abs().max() < 0.05
    log_p = dist.Normal(0.0, math.hypot(1.2, 0.5)).log_prob(x).mean().item()
    assert run.history["train_loss"][-1] == pytest.approx(-log_p, abs=0.01)


# Monte Carlo EM -------------------------------------------------------------------------------------------------------


def chains(model, *batch, count=500, moves=60):
    prior = poutine.block(model, hide_fn=lambda site: bool(site.get("is_observed")))
    found = Chains(model, *batch, chains=count, known=structure(Functions(model, prior), *batch))
    found.move(moves)
    return found


def assert_mean(draws, mean, variance):
    """Within 4 standard errors: draws (K, B) of chains that are independent."""
    error = (variance / len(draws)).sqrt()
    print((draws.mean(0) - mean) / error)
    assert ((draws.mean(0) - mean).abs() < 4 * error).all()


def test_hmc_draws_from_a_gaussian_posterior():
    pair = LinearGaussian()
    x = pair.sample(4)
    pyro.set_rng_seed(0)
    found = chains(pair.model, x)
    loc, covariance = pair.posterior(x)
    z = found.values["z"]
    assert z.shape == (500, 4, 2)
    for i in range(2):
        assert_mean(z[..., i], loc[:, i], covariance[i, i])
    centred = z - loc
    products = centred[..., 0] * centred[..., 1]
    variance = covariance[0, 0] * covariance[1, 1] + covariance[0, 1] ** 2
    assert_mean(products, covariance[0, 1].expand(4), variance.expand(4))
    assert_mean(centred[..., 0] ** 2, covariance[0, 0].expand(4), (2 * covariance[0, 0] ** 2).expand(4))
    assert ((found.acceptance > 0.6) & (found.acceptance < 0.99)).all()
    torch.testing.assert_close(
        found.log_joint(),
        dist.Normal(z * 0, 1.0).to_event(1).log_prob(z)
        + dist.Normal(z @ pair.weight.T + pair.bias, pair.scale).to_event(1).log_prob(x),
    )


def test_hmc_on_positive_and_nested_sites_with_a_discrete_one_summed():
    """Rates ~ Gamma with Poisson counts; two words each have a rate, scaled by 1 or 3 as a switch says."""

    def model(counts):  # (2, B)
        with pyro.plate("data", counts.size(-1), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(counts.new_tensor(0.4)))
            with pyro.plate("words", 2, dim=-2):
                rate = pyro.sample("rate", dist.Gamma(counts.new_tensor(2.0), counts.new_tensor(1.0)))
                pyro.sample("n", dist.Poisson(rate * (1 + 2 * c)), obs=counts)

    counts = torch.tensor([[0.0, 3.0], [2.0, 7.0]], dtype=torch.float64)
    pyro.set_rng_seed(1)

    prior = poutine.block(model, hide_fn=lambda site: bool(site.get("is_observed")))
    found = Chains(model, counts, chains=500, known=structure(Functions(model, prior), counts))
    found.move(60)
    rate = found.values["rate"]  # (K, 2, B)
    scales = torch.tensor([1.0, 3.0], dtype=torch.float64)
    # n | c is negative binomial, rate | n, c is Gamma(2 + n, 1 + scale)
    evidence = (
        torch.lgamma(counts + 2) - torch.lgamma(counts + 1) - (counts + 2) * (1 + scales[:, None, None]).log()
        + counts * scales[:, None, None].log()
    ).sum(1) + torch.tensor([0.6, 0.4], dtype=torch.float64).log()[:, None]  # fmt: skip
    q = evidence.softmax(0)[:, None]  # (2 switches, 1, B)
    mean = (q * (counts + 2) / (1 + scales[:, None, None])).sum(0)
    square = (q * (counts + 2) * (counts + 3) / (1 + scales[:, None, None]) ** 2).sum(0)
    for word in range(2):
        assert_mean(rate[:, word], mean[word], square[word] - mean[word] ** 2)


def test_monte_carlo_em_reaches_maximum_likelihood():
    x = Slope.data()
    m_step = Ascent(1, lr=1.0, optimizer=NEWTON)
    run = fit_em(
        Functions(Slope().model, lambda x: None),
        x,
        e_step=MonteCarlo(50, transitions=6, leapfrog=5),
        m_step=m_step,
        max_epochs=40,
        seed=0,
    )
    assert pyro.param("weight").item() == pytest.approx(math.sqrt(2), abs=0.05)
    assert len(run.history["train_loss"]) == 40


def test_monte_carlo_m_steps_have_the_priors_of_parameters():
    """log p(m) counts once for all N data: the gradient of F by m is mean_kb d log p(x, z) + d log p(m) / N."""
    m = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)

    def model(x):
        pyro.factor("prior of m", dist.Normal(0.0, 0.1).log_prob(m))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(m, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    x = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    prior = poutine.block(model, hide_fn=lambda site: bool(site.get("is_observed")))
    found = Chains(model, x, chains=20, known=structure(Functions(model, prior), x))
    z = found.values["z"].detach()
    joint = dist.Normal(m.detach(), 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(x)
    torch.testing.assert_close(found.mean(), joint.mean() + dist.Normal(0.0, 0.1).log_prob(m) / 3)
    (gradient,) = torch.autograd.grad(found.mean(), m)
    torch.testing.assert_close(gradient, (z - m.detach()).mean() - m.detach() / 0.01 / 3)


# Parameters with priors, by Pyro's own modules and fit ----------------------------------------------------------------


class Bayesian(PyroModule):
    """y = w x + noise with a prior on w, by Pyro's own random parameters."""

    def __init__(self):
        super().__init__("bayesian")
        self.weight = PyroSample(dist.Normal(torch.tensor(0.0, dtype=torch.float64), 2.0))

    @pyro_method
    def model(self, x, y):
        weight = self.weight
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(weight * x, 0.5), obs=y)


@pytest.mark.parametrize("autoguide", [AutoDelta, AutoNormal])
def test_map_and_a_posterior_over_the_models_own_parameters_by_fit(autoguide):
    x = torch.linspace(-1, 1, 30, dtype=torch.float64)
    y = 1.3 * x + 0.4 * torch.sin(9 * x)
    module = Bayesian()
    guide = autoguide(module.model)
    fit(
        (module.model, guide), (x, y), objective=ELBO(10), batch_size=30, max_epochs=600, lr=0.02, seed=0,
        compile=False, progress=False, schedule=lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 600),
    )  # fmt: skip
    precision = 1 / 2.0**2 + (x**2).sum() / 0.5**2
    mean = (x * y).sum() / 0.5**2 / precision
    assert guide.median()["bayesian.weight"].item() == pytest.approx(mean.item(), abs=0.01)
    if autoguide is AutoNormal:
        low, high = guide.quantiles([0.1587, 0.8413])["bayesian.weight"]
        assert (high - low).item() / 2 == pytest.approx(precision.rsqrt().item(), rel=0.05)


# What can't work ------------------------------------------------------------------------------------------------------


def test_bad_steps_are_refused_by_name():
    pair = LooseLinearGaussian()
    x = pair.sample(6)
    with pytest.raises(ValueError, match=r"model and guide share the parameters \['weight'"):
        fit_em(pair, x, e_step=Ascent(3))
    with pytest.raises(ValueError, match=r"latent site 'z' .* has no finite list of values"):
        fit_em(pair, x)
    with pytest.raises(ValueError, match="the guide has no parameters"):
        fit_em(mixture(blobs()), blobs(), e_step=Ascent())
    with pytest.raises(ValueError, match="no continuous latent site"):
        fit_em(mixture(blobs()), blobs(), e_step=MonteCarlo())
    for bad in (partial(Ascent, 0), partial(MonteCarlo, 1)):
        with pytest.raises(ValueError, match="pass a whole number"):
            bad()
    with pytest.raises(ValueError, match="site 'n' is Poisson"):
        MeanField(counting, torch.zeros(3))


def counting(x):
    with pyro.plate("data", len(x)):
        n = pyro.sample("n", dist.Poisson(torch.ones(())))
        pyro.sample("x", dist.Normal(n, 1.0), obs=x)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_epochs": 0}, ValueError, "max_epochs is 0, it must be positive"),
        ({"max_epochs": 2.5}, TypeError, "max_epochs is 2.5, a whole number"),
        ({"batch_size": -1}, ValueError, "batch_size is -1, it must be positive"),
        ({"tolerance": "small"}, TypeError, "tolerance is 'small', a number"),
        ({"tolerance": -1.0}, ValueError, "tolerance is -1.0, it must be positive"),
        ({"callbacks": print}, TypeError, "callbacks is <built-in function print>, a list"),
    ],
)
def test_odd_arguments_are_refused_before_anything_moves(options, error, message):
    with pytest.raises(error, match=message):
        fit_em((lambda x: pytest.fail("it ran"), lambda x: None), torch.zeros(4), **options)


def test_steps_are_left_as_they_were_and_random_states_too(untouched):
    x = blobs(30)
    m_step = Ascent(2, lr=0.05)
    ends = []
    for _ in range(2):
        pair = mixture(x)
        fit_em(pair, x, m_step=m_step, max_epochs=3, batch_size=10, seed=5)
        ends.append([p.detach().clone() for p in pair.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
    e_step = CoordinateAscent(1)
    fit_em(mixture(x), x, e_step=e_step, m_step=m_step, max_epochs=1, seed=5)
    assert vars(e_step) == vars(CoordinateAscent(1))


def test_restart_puts_back_the_rows_of_a_batch_only():
    x = blobs(6)
    pair = MeanField(unsummed(x).model, x)
    (logits,) = pair.factors.parameters()
    torch.nn.init.ones_(logits)
    pair.restart(x[:2], torch.tensor([4, 1]))
    assert logits.sum(1).tolist() == [3.0, 0.0, 3.0, 3.0, 0.0, 3.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_local_parameters_of_whole_numbers_alone_have_the_dtype_of_the_latents(dtype):
    def counts(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros((), dtype=dtype), 1.0))
            pyro.sample("x", dist.Poisson(z.exp()), obs=x)

    x = torch.tensor([0, 3, 1])
    pair = MeanField(counts, x)
    assert {p.dtype for p in pair.parameters()} == {dtype}
    z = pair.factor("z", torch.tensor([0, 2])).sample()
    q = dist.Normal(torch.zeros(2, dtype=dtype), 1.0)
    assert torch.equal(pair.factor("z", torch.tensor([0, 2])).log_prob(z), q.log_prob(z))


def test_local_parameters_of_whole_numbers_and_labels_have_the_default_dtype():
    def labels(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Poisson(torch.tensor([1.0, 4.0])[c]), obs=x)

    (logits,) = MeanField(labels, torch.tensor([0, 3, 1])).parameters()
    torch.testing.assert_close(logits, torch.zeros(3, 2), rtol=0, atol=0)  # the dtype too


def test_chains_reject_what_leaves_the_numbers():
    """log p(r | x) of a Gamma is minus infinity far out, where Pyro's checks raised."""

    def counts(x):
        rate = pyro.param("rate", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            r = pyro.sample("r", dist.Gamma(2.0, rate))
            pyro.sample("x", dist.Poisson(r), obs=x)

    x = torch.poisson(torch.distributions.Gamma(2.0, 0.5).sample((60,)))
    with pyro.validation_enabled(True):
        fit_em((counts, lambda x: None), x, e_step=MonteCarlo(), max_epochs=30, seed=0)
    # E r = 2 / rate = the mean of x at the maximum: x is negative binomial of 2 successes
    assert pyro.param("rate").item() == pytest.approx(2.0 / x.mean().item(), rel=0.1)


# Supports that are not the same for all data --------------------------------------------------------------------------


def bounded(x, hi):
    """b ~ Uniform(0, hi), x ~ N(b, hi), with hi of each datum's own."""
    with pyro.plate("data", len(x)):
        b = pyro.sample("b", dist.Uniform(torch.zeros_like(hi), hi))
        pyro.sample("x", dist.Normal(b, hi), obs=x)


def bounded_mixture(x, hi):
    """The same, as a mixture of two."""
    high = hi[:, None].expand(-1, 2)
    with pyro.plate("data", len(x)):
        components = dist.Uniform(torch.zeros_like(high), high)
        b = pyro.sample("b", dist.MixtureSameFamily(dist.Categorical(torch.ones_like(high)), components))
        pyro.sample("x", dist.Normal(b, hi), obs=x)


@pytest.mark.parametrize("model", [bounded, bounded_mixture])
def test_local_parameters_have_the_bounds_of_their_rows(model):
    hi = torch.tensor([1.0, 10.0, 100.0, 1000.0])
    pair = MeanField(model, 0.7 * hi, hi)
    rows = torch.tensor([3, 1])
    pyro.set_rng_seed(0)
    found = pair.factor("b", rows).sample((4000,)).max(0).values
    assert ((found > 0.8 * hi[rows]) & (found < hi[rows])).all()
    drawn = poutine.trace(pair.guide).get_trace(0.7 * hi[rows], hi[rows], rows)
    drawn.compute_log_prob()
    b = drawn.nodes["b"]["value"]
    normal = torch.distributions.Normal(0.0, 1.0)
    u = (b / hi[rows]).logit()
    want = normal.log_prob(u) - (b * (1 - b / hi[rows])).log()  # db / du = b (1 - b / hi)
    torch.testing.assert_close(drawn.nodes["b"]["log_prob"], want, rtol=1e-4, atol=1e-4)
    fit(pair, (0.7 * hi, hi, torch.arange(4)), batch_size=2, max_epochs=2, lr=0.1, seed=0, progress=False)


def test_local_parameters_of_a_unit_interval_are_those_of_a_scaled_one():
    """x / hi has the same posterior for all data, whatever their bounds."""
    hi = torch.tensor([1.0, 10.0, 100.0], dtype=torch.float64)
    ends = []
    for scale in (hi, torch.ones_like(hi)):
        x = 0.7 * scale
        pair = MeanField(bounded, x, scale)
        batch = x, scale, torch.arange(3)
        fit(pair, batch, batch_size=2, max_epochs=20, lr=0.1, seed=0, progress=False)
        ends.append(torch.stack([p.detach() for p in pair.factors.parameters()]))
    torch.testing.assert_close(*ends)


def below(x):
    """a ~ Gamma(2, 1), b | a ~ Uniform(0, a), so that b ~ Exponential(1) and a - b too; x ~ N(b, 1/2)."""
    with pyro.plate("data", len(x)):
        a = pyro.sample("a", dist.Gamma(x.new_tensor(2.0), 1.0))
        b = pyro.sample("b", dist.Uniform(torch.zeros_like(a), a))
        pyro.sample("x", dist.Normal(b, 0.5), obs=x)


def moments_below(x):
    """Means and variances of a and b given x, by a sum over a grid of b."""
    b = torch.linspace(0.0005, 30.0, 60000, dtype=torch.float64)[:, None]
    log_p = -b + dist.Normal(b, 0.5).log_prob(x)
    q = log_p.softmax(0)
    mean = (q * b).sum(0)
    variance = (q * b**2).sum(0) - mean**2
    return mean + 1, variance + 1, mean, variance


def test_chains_on_a_support_that_depends_on_another_latent():
    x = torch.tensor([0.3, 2.0, 5.0], dtype=torch.float64)
    pyro.set_rng_seed(0)
    found = chains(below, x, count=1000, moves=100)
    values = found.values
    assert (values["b"] < values["a"]).all()
    a, a_variance, b, b_variance = moments_below(x)
    assert_mean(values["a"], a, a_variance)
    assert_mean(values["b"], b, b_variance)
    want = (
        dist.Gamma(x.new_tensor(2.0), 1.0).log_prob(values["a"]) - values["a"].log()
        + dist.Normal(values["b"], 0.5).log_prob(x)
    )  # fmt: skip
    torch.testing.assert_close(found.log_joint(), want)


def test_local_parameters_on_a_support_that_depends_on_another_latent():
    x = torch.tensor([0.3, 2.0, 5.0], dtype=torch.float64)
    pair = MeanField(below, x)
    batch = x, torch.arange(3)
    normal = torch.distributions.Normal(0.0, 1.0)
    for num_particles in (1, 3):
        drawn = ledger(pair, *batch, num_particles=num_particles)
        a, b = drawn.values["a"], drawn.values["b"]
        log_q = normal.log_prob(a.log()) - a.log() + normal.log_prob((b / a).logit()) - (b * (1 - b / a)).log()
        log_p = dist.Gamma(2.0, 1.0).log_prob(a) - a.log() + dist.Normal(b, 0.5).log_prob(x)
        torch.testing.assert_close(drawn.log_weights(), (log_p - log_q).reshape(num_particles, 3))
    fit(pair, batch, batch_size=2, max_epochs=2, lr=0.1, seed=0, progress=False)
    with pytest.raises(ValueError, match="the support of site 'b' depends on other latents, which rows do not tell"):
        pair.factor("b", torch.arange(3))


def test_chains_keep_their_draws_while_learned_bounds_move():
    """F is of fixed draws: its gradient by the bound is that of -log(high), not of where the draws would move."""
    high = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)

    def model(x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Uniform(torch.zeros_like(high), high))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    x = torch.tensor([0.5, 1.0], dtype=torch.float64)
    found = chains(model, x, count=20, moves=4)
    (gradient,) = torch.autograd.grad(found.mean(), high)
    torch.testing.assert_close(gradient, -1 / high.detach())


def test_chains_on_a_mixture_and_a_support_of_a_switch():
    def model(x):
        weights = dist.Categorical(x.new_tensor([0.4, 0.6]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.MixtureSameFamily(weights, dist.Normal(x.new_tensor([-0.5, 0.8]), 0.9)))
            pyro.sample("x", dist.Normal(z, pyro.param("scale", x.new_tensor(0.7))), obs=x)

    x = torch.tensor([-0.4, 1.5], dtype=torch.float64)
    pyro.set_rng_seed(0)
    found = chains(model, x, count=1000)
    locs, precision = x.new_tensor([[-0.5], [0.8]]), 1 / 0.81 + 1 / 0.49
    q = (x.new_tensor([[0.4], [0.6]]).log() + dist.Normal(locs, math.hypot(0.9, 0.7)).log_prob(x)).softmax(0)
    means = (locs / 0.81 + x / 0.49) / precision
    mean = (q * means).sum(0)
    assert_mean(found.values["z"], mean, (q * means**2).sum(0) - mean**2 + 1 / precision)
    fit_em((model, lambda x: None), x, e_step=MonteCarlo(4), max_epochs=1, seed=0)

    def switched(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.5)))
            b = pyro.sample("b", dist.Uniform(torch.zeros_like(c), 1 + c))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    with pytest.raises(ValueError, match="the support of site 'b' depends on a discrete site, which is summed"):
        chains(switched, torch.zeros(20))
