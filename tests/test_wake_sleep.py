"""Wake-sleep and VIMCO: gradients against enumeration of every draw, fixed points, and what the two divergences do."""

import itertools
import math
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian, Mixture
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyrovae.models import GaussianMixture
from pyrovae.models.base import Functions, Pair, structure
from pyrovae.objectives import ELBO, IWAE, VIMCO, ReweightedWakeSleep, WakeSleep
from pyrovae.training.step import Step


class Table(Pair):
    """z ~ Cat(3), x | z ~ Cat(4), q(z | x) by a table: everything is a sum of few terms."""

    def __init__(self, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        draw = partial(torch.randn, generator=generator, dtype=torch.float64)
        self.prior, self.likelihood = nn.Parameter(draw(3)), nn.Parameter(draw(3, 4))
        self.q = nn.Parameter(draw(4, 3))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(logits=self.prior))
            pyro.sample("x", dist.Categorical(logits=self.likelihood[z]), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=self.q[x]))

    def log_joint(self) -> Tensor:
        """log p(x, z), (4, 3)."""
        return (self.prior.log_softmax(0)[:, None] + self.likelihood.log_softmax(1)).T

    def log_q(self) -> Tensor:
        """log q(z | x), (4, 3)."""
        return self.q.log_softmax(1)

    def posterior(self) -> Tensor:
        """p(z | x), (4, 3)."""
        return self.log_joint().softmax(1)


X = torch.tensor([0, 3, 1])


def gradients(value: Tensor, pair: nn.Module) -> list[Tensor]:
    return list(torch.autograd.grad(value, list(pair.parameters()), retain_graph=True, materialize_grads=True))


def at(pair: Table, z: Tensor) -> Functions:
    """The pair whose guide draws these z, (K, B), and scores them as before."""
    chosen = Trace()
    chosen.add_node("z", name="z", type="sample", value=z, is_observed=False, infer={})
    return Functions(pair.model, poutine.replay(pair.guide, trace=chosen))


def all_draws(pair: Table, objective, x: Tensor):
    """For every tuple of K draws, the same at each datum: q of it at each datum (B,), and the objective there (B,)."""
    known = structure(pair, x)
    known.vectorises = True
    for z in itertools.product(range(3), repeat=objective.num_particles):
        drawn = torch.tensor(z)[:, None].expand(-1, len(x))
        yield pair.log_q()[x][:, z].sum(1).exp(), objective.per_datum(objective.draw(at(pair, drawn), x, known=known))


def exact_bound(pair: Table, num_particles: int, x: Tensor) -> Tensor:
    """E log 1/K sum_k w_k, by the sum over all draws; differentiable in everything."""
    log_w = pair.log_joint()[x] - pair.log_q()[x]
    total = x.new_zeros(len(x), dtype=torch.float64)
    for z in itertools.product(range(3), repeat=num_particles):
        log_mean = log_w[:, z].logsumexp(1) - math.log(num_particles)
        total = total + pair.log_q()[x][:, z].sum(1).exp() * log_mean
    return total


def expected_gradients(pair: Table, objective, x: Tensor) -> list[Tensor]:
    total = [torch.zeros_like(p) for p in pair.parameters()]
    for probability, value in all_draws(pair, objective, x):
        for sum_, part in zip(total, gradients((probability.detach() * value).sum(), pair), strict=True):
            sum_ += part
    return total


# Gradients, summed over every possible draw ---------------------------------------------------------------------------


@pytest.mark.parametrize("num_particles", [2, 3])
def test_vimco_is_unbiased_for_model_and_guide(num_particles):
    pair = Table()
    got = expected_gradients(pair, VIMCO(num_particles), X)
    want = gradients(exact_bound(pair, num_particles, X).sum(), pair)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


@pytest.mark.parametrize("objective", [VIMCO(3), ReweightedWakeSleep(3), ReweightedWakeSleep(3, insomnia=0.0)])
def test_the_value_is_the_bound(objective):
    pair = Table()
    got = sum(probability * value for probability, value in all_draws(pair, objective, X))
    torch.testing.assert_close(got, exact_bound(pair, 3, X), rtol=1e-12, atol=0)


def test_the_value_of_wake_sleep_is_the_elbo():
    pair = Table()
    got = sum(probability * value for probability, value in all_draws(pair, WakeSleep(2), X))
    torch.testing.assert_close(got, exact_bound(pair, 1, X), rtol=1e-12, atol=0)


def test_the_model_of_reweighted_wake_sleep_follows_the_bound_and_its_guide_the_weights():
    pair = Table()
    got = expected_gradients(pair, ReweightedWakeSleep(3), X)
    want = gradients(exact_bound(pair, 3, X).sum(), pair)
    for a, b in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    log_q, followed = pair.log_q()[X], torch.zeros((), dtype=torch.float64)
    log_w = (pair.log_joint()[X] - log_q).detach()
    for z in itertools.product(range(3), repeat=3):
        weighted = (log_w[:, z].softmax(1) * log_q[:, z]).sum(1)
        followed = followed + (log_q[:, z].sum(1).exp().detach() * weighted).sum()
    torch.testing.assert_close(got[2], gradients(followed, pair)[2], rtol=0, atol=1e-12)


def test_the_model_of_wake_sleep_follows_the_elbo():
    pair = Table()
    got = expected_gradients(pair, WakeSleep(1), X)
    want = gradients(exact_bound(pair, 1, X).sum(), pair)
    for a, b in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_one_particle_without_insomnia_is_wake_sleep():
    pair = Table()
    x = torch.arange(4)
    losses = [Step(pair, o, structure(pair, x)) for o in (WakeSleep(), ReweightedWakeSleep(1, insomnia=0.0))]
    values = []
    for step in losses:
        pyro.set_rng_seed(0)
        loss = step(x)
        values.append([loss, *gradients(loss, pair)])
    for a, b in zip(*values, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


def mean_and_error(draws: Tensor) -> tuple[Tensor, Tensor]:
    return draws.mean(0), draws.std(0) / math.sqrt(len(draws))


def guide_gradients(pair: Table, objective, x: Tensor, repeats: int = 60) -> Tensor:
    """Independent gradients of the table of q, mean over rows."""
    step = Step(pair, objective, structure(pair, x))
    pyro.set_rng_seed(1)
    return torch.stack([gradients(-step(x), pair)[2] for _ in range(repeats)])


def test_sleep_is_unbiased():
    """It does not depend on the data: only on how many there are."""
    pair = Table()
    want = gradients((pair.log_joint().exp().detach() * pair.log_q()).sum(), pair)[2]
    for objective in (WakeSleep(), ReweightedWakeSleep(3, insomnia=0.0)):
        mean, error = mean_and_error(guide_gradients(pair, objective, torch.zeros(1000, dtype=torch.long)))
        print(mean, want, error)
        assert ((mean - want).abs() < 4 * error).all()
        assert error.max() < 0.01 * want.abs().max()


def test_wake_approaches_the_forward_divergence_as_fast_as_theory_says():
    """The bias of the self-normalised gradient falls like 1/K."""
    pair = Table()
    pair.q.data *= 0.5  # further from the posterior, the expansion in 1/K takes more particles to hold
    x = X.repeat(700)
    want = gradients((pair.posterior().detach() * pair.log_q())[X].sum() / 3, pair)[2]
    biases = []
    for num_particles in (32, 128):
        mean, error = mean_and_error(guide_gradients(pair, ReweightedWakeSleep(num_particles), x))
        biases.append((mean - want).norm().item())
        print(num_particles, biases[-1], error.norm())
        assert biases[-1] > 8 * error.norm()
    assert 3 < biases[0] / biases[1] < 5


def test_half_awake_is_half_of_each():
    pair = Table()
    x = X.repeat(2000)
    means = [
        mean_and_error(guide_gradients(pair, ReweightedWakeSleep(2, insomnia=share), x, 40)) for share in (0, 0.25, 1)
    ]
    (asleep, e0), (mixed, e1), (awake, e2) = means
    assert ((mixed - 0.75 * asleep - 0.25 * awake).abs() < 4 * (e0 + e1 + e2)).all()
    assert (asleep - awake).norm() > 20 * (e0 + e2).norm()


def test_vimco_varies_less_than_reinforce():
    """Exactly, over all draws: the trace of the covariance of the guide's gradient at one datum."""
    pair, x = Table(), X[:1]

    class Reinforce(VIMCO):
        def _signal(self, log_weights):
            return (log_weights.logsumexp(0) - math.log(self.num_particles)).expand_as(log_weights)

    variances = []
    for objective in (VIMCO(3), Reinforce(3)):
        first, second = 0.0, 0.0
        for probability, value in all_draws(pair, objective, x):
            gradient = gradients(value.sum(), pair)[2]
            first, second = first + probability * gradient, second + probability * (gradient**2).sum()
        variances.append((second - (first**2).sum()).item())
    print(variances)
    assert variances[0] < 0.2 * variances[1]


def test_vimco_of_a_reparametrised_guide_is_iwae():
    pair = LinearGaussian()
    x = pair.sample(4) + 1.0
    pair.bias.data += 0.3
    values = []
    for objective in (VIMCO(4), IWAE(4)):
        step = Step(pair, objective, structure(pair, x))
        pyro.set_rng_seed(0)
        loss = step(x)
        values.append([loss, *gradients(loss, pair)])
    for a, b in zip(*values, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-14, atol=1e-14)


def test_the_control_variate_has_the_geometric_mean_of_the_others():
    """L - L_-k, particle by particle, as the paper writes it."""
    log_w = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    got = VIMCO(4)._signal(log_w)
    for k, b in itertools.product(range(4), range(2)):
        others = [log_w[j, b].item() for j in range(4) if j != k]
        mean = sum(map(math.exp, log_w[:, b].tolist())) / 4
        without = (sum(map(math.exp, others)) + math.exp(sum(others) / 3)) / 4
        assert got[k, b].item() == pytest.approx(math.log(mean) - math.log(without), abs=1e-14)


class Switch(Pair):
    """b ~ Bernoulli, z ~ N(b, 1), x | z ~ N(z, 1): a discrete and a continuous latent, in the guide one after another.

    `first` is the site that the guide draws first; the other one's distribution depends on it.
    """

    def __init__(self, first: str):
        super().__init__()
        self.first = first
        self.phi = nn.Parameter(torch.tensor([0.3, -0.4, 0.6, 0.2], dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(x.new_tensor(0.4)))
            z = pyro.sample("z", dist.Normal(2 * b, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            if self.first == "b":
                b = pyro.sample("b", dist.Bernoulli(logits=self.phi[0] + self.phi[1] * x))
                pyro.sample("z", dist.Normal(self.phi[2] * x + b, self.phi[3].exp()))
            else:
                z = pyro.sample("z", dist.Normal(self.phi[2] * x, self.phi[3].exp()))
                pyro.sample("b", dist.Bernoulli(logits=self.phi[0] + self.phi[1] * z))

    def bound_of_two(self, x: Tensor) -> Tensor:
        """E log 1/2 (w_1 + w_2) at each datum: b by its sum, z by Gauss-Hermite nodes."""
        nodes, weights = (torch.as_tensor(part) for part in np.polynomial.hermite_e.hermegauss(40))
        weights = weights / weights.sum()
        probs, log_ws = [], []
        for b in (x.new_tensor(0.0), x.new_tensor(1.0)):
            loc = self.phi[2] * x[:, None] + (b if self.first == "b" else 0)
            z = loc + self.phi[3].exp() * nodes  # (B, nodes)
            given = x[:, None] if self.first == "b" else z
            log_q_b = dist.Bernoulli(logits=self.phi[0] + self.phi[1] * given).log_prob(b)
            log_p = dist.Bernoulli(x.new_tensor(0.4)).log_prob(b) + dist.Normal(2 * b, 1.0).log_prob(z)
            log_p = log_p + dist.Normal(z, 1.0).log_prob(x[:, None])
            log_ws.append(log_p - log_q_b - dist.Normal(loc, self.phi[3].exp()).log_prob(z))
            probs.append((weights * log_q_b.exp()).expand_as(z))
        prob, log_w = torch.cat(probs, 1), torch.cat(log_ws, 1)  # (B, states of one particle)
        log_mean = torch.logaddexp(log_w[:, :, None], log_w[:, None]) - math.log(2)
        return (prob[:, :, None] * prob[:, None] * log_mean).sum((1, 2))


@pytest.mark.parametrize("first", ["b", "z"])
def test_vimco_of_mixed_latents_is_unbiased(first):
    """The score of b and the path through z, whichever depends on the other."""
    pair, x = Switch(first), torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    bound = pair.bound_of_two(x).mean()
    want = torch.autograd.grad(bound, pair.phi)[0]
    rows = x.repeat(2000)
    step = Step(pair, VIMCO(2), structure(pair, rows))
    pyro.set_rng_seed(3)
    losses = [step(rows) for _ in range(60)]
    mean, error = mean_and_error(torch.stack([torch.autograd.grad(-loss, pair.phi)[0] for loss in losses]))
    print(mean, want, error)
    assert ((mean - want).abs() < 4 * error).all()
    assert error.max() < 0.01
    value, value_error = mean_and_error(-torch.stack(losses).detach())
    assert abs(value - bound) < 4 * value_error < 0.02


# Fixed points ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_particles", [2, 3])
def test_the_exact_posterior_is_the_fixed_point_of_reweighted_wake(num_particles):
    pair = Table()
    pair.q.data = pair.posterior().log().detach()
    gradient = expected_gradients(pair, ReweightedWakeSleep(num_particles), X)[2]
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-14)


@pytest.mark.parametrize("objective", [ReweightedWakeSleep(8), ReweightedWakeSleep(8, insomnia=0.5), WakeSleep()])
def test_a_guide_that_can_reach_the_posterior_does(objective):
    """The model stays: 400 steps, the last half averaged, end within 0.02 of each probability."""
    pair = Table()
    x = torch.arange(4).repeat(150)
    step = Step(pair, objective, structure(pair, x))
    optimizer = torch.optim.Adam([pair.q], lr=0.03)
    pyro.set_rng_seed(0)
    mean = torch.zeros_like(pair.q)
    for index in range(400):
        optimizer.zero_grad()
        step.backward(x)
        optimizer.step()
        if index >= 200:
            mean += pair.q.detach() / 200
    torch.testing.assert_close(mean.softmax(1), pair.posterior().detach(), rtol=0, atol=0.02)


# Reverse against forward ----------------------------------------------------------------------------------------------


class TwoModes(Pair):
    """z ~ N(0.1, 1), x | z ~ N(z^2, 0.3^2): of z, x tells all but the sign; q(z | x) is one Gaussian."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor(0.0, dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_tensor(0.1), 1.0))
            pyro.sample("x", dist.Normal(z**2, 0.3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.loc, self.log_scale.exp()).expand([len(x)]))


def trained(objective, steps: int = 400) -> TwoModes:
    pair, x = TwoModes(), torch.full((100,), 2.0, dtype=torch.float64)
    step = Step(pair, objective, structure(pair, x))
    optimizer = torch.optim.Adam(pair.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    pyro.set_rng_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        step.backward(x)
        optimizer.step()
        schedule.step()
    return pair


def posterior_moments() -> tuple[Tensor, Tensor, Tensor]:
    """Mean and standard deviation of p(z | x = 2), and the width of its right mode, on a grid."""
    z = torch.linspace(-6, 6, 20001, dtype=torch.float64)
    p = (dist.Normal(0.1, 1.0).log_prob(z) + dist.Normal(z**2, 0.3).log_prob(torch.tensor(2.0))).softmax(0)
    mean = (p * z).sum()
    right = p * (z > 0) / p[z > 0].sum()
    return mean, (p * (z - mean) ** 2).sum().sqrt(), (right * (z - (right * z).sum()) ** 2).sum().sqrt()


def test_reverse_divergence_keeps_one_mode_and_forward_matches_the_moments():
    mean, sd, width = posterior_moments()
    reverse, forward = trained(ELBO(5), 800), trained(ReweightedWakeSleep(100))
    print([(p.loc.item(), p.log_scale.exp().item()) for p in (reverse, forward)], mean, sd, width)
    assert reverse.loc.item() == pytest.approx(math.sqrt(2), abs=0.05)  # one of the two
    assert reverse.log_scale.exp().item() == pytest.approx(width.item(), rel=0.1)
    assert forward.loc.item() == pytest.approx(mean.item(), abs=0.03)
    assert forward.log_scale.exp().item() == pytest.approx(sd.item(), rel=0.03)
    assert sd > 10 * width


# Pairs of other kinds -------------------------------------------------------------------------------------------------


def test_a_site_that_the_model_enumerates_is_summed():
    """The weights are those of log_weights: with the guide's samples fixed, model gradients equal IWAE's."""
    pair, x = Mixture(), torch.tensor([-1.0, 0.4, 2.5], dtype=torch.float64)
    values = []
    for objective in (ReweightedWakeSleep(3), VIMCO(3), IWAE(3)):
        step = Step(pair, objective, structure(pair, x))
        pyro.set_rng_seed(0)
        loss = step(x)
        values.append([loss, *gradients(loss, pair)])
    for value in values[:2]:
        for a, b in zip(value, values[2], strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


class Sleeper(Pair):
    """The model enumerates c; the guide learns E[z | x] from dreams in which c is drawn."""

    def __init__(self):
        super().__init__()
        self.mixture = Mixture()
        self.slope = nn.Parameter(torch.tensor([0.2, 0.1], dtype=torch.float64))

    def model(self, x):
        self.mixture.model(x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope[0] * x + self.slope[1], 1.0))


def test_dreams_of_an_enumerated_site_are_drawn():
    """The gradient vanishes at the linear regression of z on x under the model's joint, from its moments."""
    pair, x = Sleeper(), torch.zeros(40000, dtype=torch.float64)
    p, m = pair.mixture.logits.softmax(0).detach(), pair.mixture.loc.detach()
    c = torch.arange(3.0, dtype=torch.float64)
    mean_z, mean_x = (p * m).sum(), (p * (m + c)).sum()
    covariance = (p * (1 + m * (m + c))).sum() - mean_z * mean_x
    variance = (p * (2 + (m + c) ** 2)).sum() - mean_x**2
    pair.slope.data = torch.stack([covariance / variance, mean_z - covariance / variance * mean_x])
    step = Step(pair, WakeSleep(), structure(pair, x))
    pyro.set_rng_seed(0)
    draws = torch.stack([torch.autograd.grad(step(x), pair.slope)[0] for _ in range(30)])
    mean, error = mean_and_error(draws)
    print(mean, error)
    assert (mean.abs() < 4 * error).all()
    assert error.max() < 0.01


def test_dreams_fill_a_view_of_the_batch_as_the_site_sees_it():
    """The guide sees, at row b, what the model dreamt at b, though the site observes the transpose."""
    seen = {}

    def model(x, y):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(100.0 * torch.arange(len(x)), 0.01))
            with pyro.plate("words", x.size(1), dim=-2):
                pyro.sample("x", dist.Normal(z + torch.arange(x.size(1))[:, None], 0.01), obs=x.T)

    def guide(x, y):
        seen["x"], seen["y"] = x, y
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(())).expand(len(x)), 1.0))

    x, y = torch.zeros(4, 3), torch.ones(4)
    pair = Functions(model, guide)
    known = structure(pair, x, y)
    Step(pair, WakeSleep(), known)(x, y)
    want = 100.0 * torch.arange(4)[:, None] + torch.arange(3)
    torch.testing.assert_close(seen["x"], want, rtol=0, atol=0.2)
    assert seen["y"] is y
    assert not x.any(), "the batch itself is as before"


def test_weights_are_those_of_each_datum():
    """A datum's gradient does not depend on what it is batched with; Pyro's has one weight for the batch."""
    pair = Table()
    known = structure(pair, X)
    known.vectorises = True
    z = torch.tensor([[0, 1, 2], [1, 1, 0], [2, 0, 0]])
    objective = ReweightedWakeSleep(3)
    together = objective.per_datum(objective.draw(at(pair, z), X, known=known))
    for row in range(3):
        alone = objective.per_datum(objective.draw(at(pair, z[:, [row]]), X[[row]], known=known))
        for a, b in zip(gradients(together[row], pair), gradients(alone.sum(), pair), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)


def test_a_scaled_pair_is_scaled_once():
    pair, x = Table(), torch.arange(4)
    scaled = Functions(*(poutine.scale(f, scale=2.5) for f in (pair.model, pair.guide)))
    for objective in (VIMCO(3), ReweightedWakeSleep(3, insomnia=0.5), WakeSleep()):
        values = []
        for each in (pair, scaled):
            step = Step(each, objective, structure(each, x))
            pyro.set_rng_seed(0)
            loss = step(x)
            values.append([loss, *gradients(loss, pair)])
        for a, b in zip(*values, strict=True):
            torch.testing.assert_close(2.5 * a, b, rtol=1e-12, atol=1e-14)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ReweightedWakeSleep(1), "num_particles is 1, whose weight is always 1; pass num_particles=5"),
        (lambda: ReweightedWakeSleep(insomnia=1.5), r"insomnia is 1.5; .* pass a number in \[0, 1\]"),
        (lambda: VIMCO(1), "num_particles is 1, which leaves nothing out of one"),
        (lambda: WakeSleep(0), "num_particles is 0"),
    ],
)
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def one_site(obs=lambda x: x, factor=False, twice=False, enumerate_guide=False, auxiliary=False):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=obs(x))
            if twice:
                pyro.sample("again", dist.Normal(z, 1.0), obs=x)
            if factor:
                pyro.factor("bonus", z)

    def guide(x):
        with pyro.plate("data", len(x)):
            infer = {"enumerate": "parallel"} if enumerate_guide else {}
            logits = pyro.param("slope", torch.tensor(0.3)) * x
            if auxiliary:
                noise = pyro.sample("noise", dist.Normal(logits, 1.0), infer={"is_auxiliary": True})
                pyro.sample("z", dist.Delta((noise > 0).to(x)))
            else:
                pyro.sample("z", dist.Bernoulli(logits=logits), infer=infer)

    return Functions(model, guide)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"obs": lambda x: x + 1}, r"observed sites \['x'\] are no tensors of the batch of their own"),
        ({"obs": lambda x: x + 1, "twice": True}, r"observed sites \['x'\] are no tensors"),
        ({"twice": True}, r"observed sites \['x', 'again'\] are no tensors"),
        ({"factor": True}, r"factors \['bonus'\], which can't be drawn from"),
        ({"auxiliary": True}, r"the guide samples \['noise'\], which the model does not"),
    ],
)
def test_what_can_not_be_dreamt_is_refused_by_name(options, message):
    pair, x = one_site(**options), torch.tensor([0.3, -1.0])
    for objective in (WakeSleep(), ReweightedWakeSleep(2, insomnia=0.5)):
        with pytest.raises(ValueError, match=message):
            Step(pair, objective, structure(pair, x))(x)
    assert math.isfinite(ReweightedWakeSleep(2).loss_and_grads(pair.model, pair.guide, x))
    assert math.isfinite(WakeSleep().loss(pair.model, pair.guide, x)), "values need no dreams"


@pytest.mark.parametrize("objective", [WakeSleep(), ReweightedWakeSleep(2), VIMCO(2)])
def test_a_guide_that_enumerates_is_refused_by_name(objective):
    pair, x = one_site(enumerate_guide=True), torch.tensor([0.3, -1.0])
    with pytest.raises(ValueError, match=r"the guide enumerates \['z'\], and this objective takes samples"):
        Step(pair, objective, structure(pair, x))(x)


@pytest.mark.parametrize("objective", [WakeSleep(), ReweightedWakeSleep(2, insomnia=0.5)])
def test_a_guide_that_samples_nothing_has_no_dreams(objective):
    torch.manual_seed(0)
    pair = GaussianMixture(6, 2)
    x = torch.randn(4, 6)
    with pytest.raises(ValueError, match=r"the guide samples none of the latents \['c'\], .* of dreams; use ELBO\(\)"):
        objective.differentiable_loss(pair.model, pair.guide, x)
    assert objective.loss(pair.model, pair.guide, x) == pytest.approx(ELBO().loss(pair.model, pair.guide, x))
