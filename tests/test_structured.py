"""Structured VAEs against a linear-Gaussian model with exact answers, and against sums over all paths."""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

from pyrovae import ELBO, IWAE, StatesSummed, StructuredHMM, StructuredVAE, conditionals, fit, log_weights, nets
from pyrovae.distributions import HiddenMarkov, MarkovChain

LENGTHS = torch.tensor([3, 1, 2, 3])
NOISE = 0.6


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


class Likelihood(nn.Module):
    """log N(x; W z + b, NOISE^2) as a function of z, up to a constant, for W with orthogonal columns."""

    def __init__(self, head):
        super().__init__()
        self.layer = head.layer

    def forward(self, x):
        weight, bias = self.layer.weight, self.layer.bias
        j = (weight**2).sum(0) / NOISE**2
        return (x - bias) @ weight / NOISE**2, j.expand(*x.shape[:-1], -1)


def linear_gaussian(cls, event_shape):
    """A pair whose recognition potentials are its likelihood; 4 numbers a step, 2 latents, 3 states."""
    pair = cls(
        event_shape, 2, 3, hidden=(), encoder=nets.MLP(4, ()), decoder=nets.MLP(2, ()),
        likelihood=partial(conditionals.FixedNormal, scale=NOISE),
    )  # fmt: skip
    layer = pair.likelihood.head.layer
    with torch.no_grad():
        layer.weight.copy_(torch.linalg.qr(torch.randn(4, 2))[0] * torch.tensor([1.5, 0.7]))
        for parameter in (pair.initial_logits, pair.log_scale):
            parameter.copy_(torch.randn_like(parameter) / 2)
    pair.potential = Likelihood(pair.likelihood.head)
    return pair


def of_states(pair):
    """p(x | s), z integrated out."""
    layer = pair.likelihood.head.layer
    loc = pair.loc @ layer.weight.T + layer.bias
    covariance = layer.weight @ torch.diag_embed(torch.exp(2 * pair.log_scale)) @ layer.weight.T
    return dist.MultivariateNormal(loc, covariance + NOISE**2 * torch.eye(4))


def test_mixture_with_exact_potentials_is_tight():
    pair = linear_gaussian(StructuredVAE, 4)
    x = 2 * torch.randn(5, 4)
    want = (of_states(pair).log_prob(x[:, None]) + pair.initial_logits.log_softmax(-1)).logsumexp(-1)
    torch.testing.assert_close(log_weights(pair, x, num_particles=3), want.expand(3, 5), rtol=1e-11, atol=1e-11)
    for objective in (ELBO(closed_form=False), IWAE(4)):
        assert -objective.loss(pair.model, pair.guide, x) == pytest.approx(want.sum().item(), abs=1e-10)
    pair.potential.layer = nn.Linear(2, 4)  # of another model
    assert -ELBO(200).loss(pair.model, pair.guide, x) < want.sum().item() - 1


def test_chain_with_exact_potentials_is_tight():
    pair = linear_gaussian(StructuredHMM, (3, 4))
    x = 2 * torch.randn(4, 3, 4)
    want = HiddenMarkov(pair.chain(x, LENGTHS), of_states(pair)).log_prob(x)
    torch.testing.assert_close(
        log_weights(pair, x, LENGTHS, num_particles=3), want.expand(3, 4), rtol=1e-11, atol=1e-11
    )
    torch.testing.assert_close(pair.states_summed(x, LENGTHS), want, rtol=1e-11, atol=1e-11)
    objective = StatesSummed()
    assert -objective.loss(pair.model, pair.guide, x, LENGTHS) == pytest.approx(want.sum().item(), abs=1e-10)
    # So the gradient is that of log p(x), but for what the guide's own parameters would do to a loose bound.
    shared = [pair.initial_logits, pair.transition_logits, pair.loc, pair.log_scale]
    mine = torch.autograd.grad(pair.states_summed(x, LENGTHS, num_particles=4000).sum(), shared)
    for one, exact in zip(mine, torch.autograd.grad(want.sum(), shared), strict=True):
        torch.testing.assert_close(one, exact, rtol=0.05, atol=0.05)


def by_paths(pair, potential, x, z, path):
    """log p(x, s, z) - log q(s, z | x) and log q(s | x) of one sequence and path, from potentials alone."""
    initial, moves = pair.initial_logits.log_softmax(-1), pair.transition_logits.log_softmax(-1)
    h, j = potential
    prior = dist.Normal(pair.loc, pair.log_scale.exp())
    log_p = initial[path[0]] + sum(moves[a, b] for a, b in itertools.pairwise(path))
    log_q, log_potential = torch.zeros(()), log_p
    for t, state in enumerate(path):
        precision = pair.log_scale[state].mul(-2).exp() + j[t]
        loc = (pair.log_scale[state].mul(-2).exp() * pair.loc[state] + h[t]) / precision
        posterior = dist.Normal(loc, precision.rsqrt())
        value = z[t, state]
        log_q = log_q + posterior.log_prob(value).sum()
        log_prior = prior.log_prob(value)[state].sum()
        # int p(z | s) psi dz is p psi / q at any z
        log_potential = (
            log_potential + log_prior + (h[t] * value - j[t] * value**2 / 2).sum() - posterior.log_prob(value).sum()
        )
        log_p = log_p + log_prior + pair.likelihood(pair.decoder(value)).log_prob(x[t])
    return log_p - log_q, log_potential


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_states_summed_is_the_sum_over_all_paths_with_its_gradients(dropout):
    """With dropout the one psi of the sum has the numbers of one call of the encoder."""
    encoder = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(dropout))
    pair = StructuredHMM((3, 4), 2, 2, hidden=(5,), encoder=encoder)
    x = torch.rand(4, 3, 4).round()
    pyro.set_rng_seed(1)
    value = pair.states_summed(x, LENGTHS)
    pyro.set_rng_seed(1)
    h, j = pair.potential(pair.encoder(x))  # the same draws, of dropout and of z
    _, loc, scale = pair.given_potential(h, j)
    z = dist.Normal(loc, scale).rsample()
    wanted = []
    for row in range(4):
        paths = list(itertools.product(range(2), repeat=int(LENGTHS[row])))
        terms = [by_paths(pair, (h[row], j[row]), x[row], z[row], path) for path in paths]
        log_q = torch.stack([q for _, q in terms]).log_softmax(0)
        weights = torch.stack([w for w, _ in terms])
        wanted.append((log_q.exp() * (weights - log_q)).sum())
    want = torch.stack(wanted)
    torch.testing.assert_close(value, want, rtol=1e-11, atol=1e-11)
    parameters = list(pair.parameters())
    mine = torch.autograd.grad(value.sum(), parameters)
    for one, exact in zip(mine, torch.autograd.grad(want.sum(), parameters), strict=True):
        torch.testing.assert_close(one, exact, rtol=1e-9, atol=1e-10)


def test_states_summed_is_the_mean_of_the_sampled_bound():
    pair = StructuredHMM((3, 4), 2, 2, hidden=(5,))
    x = torch.rand(4, 3, 4).round()
    with torch.no_grad():
        sampled = log_weights(pair, x, LENGTHS, num_particles=4000)
        summed = torch.stack([pair.states_summed(x, LENGTHS, num_particles=20) for _ in range(20)])
        closed = torch.stack([torch.as_tensor(-ELBO(20).loss(pair.model, pair.guide, x, LENGTHS)) for _ in range(20)])
    error = (sampled.var(0) / 4000 + summed.var(0) / 20).sqrt()
    print(sampled.mean(0), summed.mean(0), error)
    assert ((sampled.mean(0) - summed.mean(0)).abs() < 4 * error).all()
    assert abs(closed.mean() - sampled.mean(0).sum()) < 4 * (closed.var() / 20 + sampled.var(0).sum() / 4000).sqrt()


def test_a_chain_of_one_step_is_the_mixture():
    chain, mixture = StructuredHMM((1, 4), 2, 3, hidden=(5,)), StructuredVAE(4, 2, 3, hidden=(5,))
    mixture.load_state_dict({k: v for k, v in chain.state_dict().items() if k != "transition_logits"})
    x = torch.rand(6, 4).round()
    with torch.no_grad():
        one = torch.stack([chain.states_summed(x[:, None], num_particles=50) for _ in range(20)])
        two = torch.stack([log_weights(mixture, x, num_particles=50) for _ in range(20)])  # summed over s inside
        bound = [-ELBO(50).loss(mixture.model, mixture.guide, x) for _ in range(20)]
    error = (one.sum(1).var() / 20 + torch.tensor(bound).var() / 20).sqrt()
    assert abs(one.sum(1).mean() - torch.tensor(bound).mean()) < 4 * error
    assert (two.mean((0, 1)) > one.mean(0)).all()


def test_kl_of_chains_is_the_sum_over_all_paths():
    p, q = (
        MarkovChain(torch.randn(2, 3), torch.randn(2, moves, 3, 3), duration=4, lengths=torch.tensor([4, 2]))
        for moves in (1, 3)
    )
    value = torch.distributions.kl_divergence(q, p)
    for row, length in enumerate((4, 2)):
        paths = torch.tensor([[*s, *[0] * (4 - length)] for s in itertools.product(range(3), repeat=length)])
        log_q, log_p = (c.log_prob(paths[:, None].expand(-1, 2, -1))[:, row] for c in (q, p))
        assert log_q.exp().sum().item() == pytest.approx(1)
        assert value[row].item() == pytest.approx((log_q.exp() * (log_q - log_p)).sum().item(), abs=1e-12)


def test_training_climbs_to_log_p():
    """From another recognition network, on data of two states: the bound ends near log p(x) of the model it learned."""
    truth = linear_gaussian(StructuredHMM, (6, 4))
    with torch.no_grad():
        x = HiddenMarkov(truth.chain(torch.zeros(80, 6, 4), torch.full((80,), 6)), of_states(truth)).sample()
    pair = StructuredHMM(
        (6, 4), 2, 3, hidden=(), encoder=nets.MLP(4, ()), decoder=nets.MLP(2, ()),
        likelihood=partial(conditionals.FixedNormal, scale=NOISE),
    )  # fmt: skip
    run = fit(pair, x, objective=StatesSummed(4), batch_size=80, lr=0.05, max_epochs=150, compile=False, seed=0,
              progress=False)  # fmt: skip
    loss = run.history["train_loss"]
    log_p = HiddenMarkov(truth.chain(x), of_states(truth)).log_prob(x).mean().item()
    print(loss[0], loss[-1], -log_p)
    assert -loss[-1] > log_p - 1.5
    assert -loss[-1] < log_p + 2  # 80 sequences of 24 numbers, some 40 parameters: a quarter nat each at most


def test_what_can_not_be_done_is_said():
    pair = StructuredHMM((3, 4), 2, 2, hidden=(5,))
    x = torch.rand(4, 3, 4).round()
    with pytest.raises(ValueError, match="no reparametrised samples"):
        fit(pair, (x, LENGTHS), objective=ELBO(), max_epochs=1, batch_size=4, progress=False)
    with pytest.raises(TypeError, match="StructuredVAE has no states_summed"):
        fit(StructuredVAE(4, 2, 3, hidden=(5,)), x[:, 0], objective=StatesSummed(), max_epochs=1, progress=False)
    with pytest.raises(ValueError, match=r"lengths of 1 sequences are not in 1 ... 3, the first 0"):
        fit(pair, (x, LENGTHS - 1), objective=StatesSummed(), max_epochs=1, batch_size=4, progress=False)
    assert math.isfinite(ELBO().loss(pair.model, pair.guide, x, LENGTHS))
