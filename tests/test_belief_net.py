"""The sigmoid belief net against sums over all of its states."""

import itertools
import math

import pyro
import pytest
import torch
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.nn.functional import softplus

import pyrovae as pv
from pyrovae.conditionals import Bernoulli
from pyrovae.models import HierarchicalVAE, SigmoidBeliefNet
from pyrovae.models.base import Functions, structure
from pyrovae.objectives import VIMCO, ReweightedWakeSleep, WakeSleep
from pyrovae.training.step import Step


def bits(length: int) -> Tensor:
    """All states, (2^length, length)."""
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=length)), dtype=torch.float64)


def small(seed: int = 0) -> SigmoidBeliefNet:
    """Of 4 + 3 + 2 bits, with large weights."""
    pyro.set_rng_seed(seed)
    pair = SigmoidBeliefNet(4, (3, 2)).double()
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.add_(torch.randn_like(parameter))
    return pair


def log_bernoulli(z: Tensor, logits: Tensor) -> Tensor:
    return (z * logits - softplus(logits)).sum(-1)


def affine(head, z: Tensor) -> Tensor:
    return z @ head.head.layer.weight.T + head.head.layer.bias


def log_joint(pair: SigmoidBeliefNet, x: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """log p(x, z1, z2), by hand."""
    top = log_bernoulli(z2, pair.prior.logits)
    return top + log_bernoulli(z1, affine(pair.conditionals[0], z2)) + log_bernoulli(x, affine(pair.likelihood, z1))


def log_q(pair: SigmoidBeliefNet, x: Tensor, z1: Tensor, z2: Tensor) -> Tensor:
    """log q(z1, z2 | x), by hand."""
    first, second = pair.posteriors
    return log_bernoulli(z1, affine(first, x)) + log_bernoulli(z2, affine(second, z1))


def states() -> tuple[Tensor, Tensor]:
    """z1 and z2 of all 32 states."""
    both = bits(5)
    return both[:, :3], both[:, 3:]


def log_prob(pair: SigmoidBeliefNet, x: Tensor) -> Tensor:
    """log p(x) of each row, by the sum over all states."""
    return log_joint(pair, x[:, None], *states()).logsumexp(1)


def exact_elbo(pair: SigmoidBeliefNet, x: Tensor) -> Tensor:
    q = log_q(pair, x[:, None], *states())
    return (q.exp() * (log_joint(pair, x[:, None], *states()) - q)).sum(1)


def test_log_likelihood_is_the_sum_over_all_states_and_the_elbo_is_below_it():
    pair, x = small(), bits(4)
    want, elbo = log_prob(pair, x), exact_elbo(pair, x)
    assert want.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    estimate = pv.log_likelihood(pair, x, num_samples=20_000, seed=0)
    torch.testing.assert_close(estimate.per_datum, want, rtol=0, atol=0.05)
    assert abs(estimate.value - want.mean().item()) < 4 * estimate.standard_error < 0.05
    bound = pv.elbo(pair, x, num_particles=5000, seed=0).elbo
    assert abs(bound.value - elbo.mean().item()) < 4 * bound.standard_error < 0.05
    assert (elbo < want - 0.01).all()


def replayed(pair: SigmoidBeliefNet, z1: Tensor, z2: Tensor) -> Functions:
    """The pair whose guide draws these bits, (K, B, ...), and scores them as before."""
    chosen = Trace()
    for name, z in (("z1", z1), ("z2", z2)):
        chosen.add_node(name, name=name, type="sample", value=z, is_observed=False, infer={})
    return Functions(pair.model, poutine.replay(pair.guide, trace=chosen))


@pytest.mark.parametrize("objective", [ReweightedWakeSleep(2), VIMCO(2)])
def test_the_wake_phase_is_the_sum_over_all_pairs_of_states(objective):
    """p follows E log 1/2 (w_1 + w_2); q the weighted scores of wake, or under VIMCO the same bound."""
    pair, x = small(), torch.tensor([1.0, 0.0, 1.0, 1.0], dtype=torch.float64)
    z1, z2 = states()
    k = torch.cartesian_prod(torch.arange(32), torch.arange(32)).T  # (2, 1024), every draw of two particles
    rows = x.expand(k.size(1), 4)
    known = structure(pair, rows)
    known.vectorises = True
    logs = log_q(pair, x, z1, z2)[k], log_joint(pair, x, z1, z2)[k]
    probability, log_w = logs[0].sum(0).exp(), logs[1] - logs[0]
    got = objective.per_datum(objective.draw(replayed(pair, z1[k], z2[k]), rows, known=known))

    bound = (probability * (log_w.logsumexp(0) - math.log(2))).sum()
    if isinstance(objective, ReweightedWakeSleep):
        followed = (probability.detach() * (log_w.detach().softmax(0) * logs[0]).sum(0)).sum()
    else:
        followed = bound
    of_q = {id(parameter) for parameter in pair.posteriors.parameters()}
    for parameter in pair.parameters():
        want = torch.autograd.grad(followed if id(parameter) in of_q else bound, parameter, retain_graph=True)[0]
        have = torch.autograd.grad((probability.detach() * got).sum(), parameter, retain_graph=True)[0]
        torch.testing.assert_close(have, want, rtol=0, atol=1e-12)
        assert want.abs().max() > 1e-3


@pytest.mark.parametrize("objective", [ReweightedWakeSleep(5), WakeSleep(), VIMCO(5)])
def test_a_trained_net_knows_two_patterns(objective):
    """Two patterns of four bits, each flipped with probability 0.05: all of the 1.4 nats between them and 4 coins."""
    patterns = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]], dtype=torch.float64)
    right = (bits(4)[:, None] == patterns).double()
    truth = (right * math.log(0.95) + (1 - right) * math.log(0.05)).sum(-1).logsumexp(1) - math.log(2)
    pyro.set_rng_seed(0)
    pair = SigmoidBeliefNet(4, (3, 2)).double()
    x = bits(4)[torch.multinomial(truth.exp(), 200, replacement=True)]
    step = Step(pair, objective, structure(pair, x))
    optimizer = torch.optim.Adam(pair.parameters(), lr=0.1)
    for _ in range(120):
        optimizer.zero_grad()
        step.backward(x)
        optimizer.step()
    with torch.no_grad():
        divergence = (truth.exp() * (truth - log_prob(pair, bits(4)))).sum().item()
    assert 4 * math.log(2) + (truth.exp() * truth).sum() > 1.2
    assert 0 <= divergence < 0.05


def test_latents_start_mostly_off_and_data_do_not():
    pair = SigmoidBeliefNet((1, 3, 3), (5, 4))
    assert pair.prior().mean.tolist() == pytest.approx([1 / (1 + math.e)] * 4)
    for part in (*pair.posteriors, *pair.conditionals):
        assert (part.head.layer.bias == -1).all()
    assert not (pair.likelihood.head.layer.bias == -1).any()


def test_one_conditional_is_not_shared_by_layers():
    with pytest.raises(TypeError, match="conditional is one Bernoulli for 2 layers, which each have their own"):
        HierarchicalVAE(4, (3, 3, 3), hidden=(), conditional=Bernoulli(3, 3))
    assert HierarchicalVAE(4, (3, 2), hidden=(), conditional=(given := Bernoulli(2, 3))).conditionals[0] is given
