"""Categorical latents: relaxed samples, and bounds against sums over all values."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pytest
import torch
from test_capture import captured
from torch.distributions import kl_divergence

import pyrovae as pv
from pyrovae.conditionals import GumbelSoftmax
from pyrovae.distributions import GumbelOneHot, LinearOneHot
from pyrovae.models import CategoricalVAE
from pyrovae.models.base import structure
from pyrovae.training.step import Step

LOGITS = torch.tensor([0.3, -1.0, 1.2], dtype=torch.float64)


@pytest.fixture(autouse=True)
def seeded():
    pyro.set_rng_seed(0)


def bits(*shape):
    return (torch.rand(*shape, dtype=torch.float64) < 0.4).double()


def tiny(**options):
    return CategoricalVAE(5, num_latents=2, num_classes=3, hidden=(6,), **options).double()


def evidence(vae, x):
    """log sum_y p(y) p(x | y), and the ELBO E_q [log p(x, y) - log q(y | x)], over the nine values in a loop."""
    log_p, log_q = [], []
    q = [posterior(vae.encoder(x)).logits for posterior in vae.posteriors]
    for a in range(3):
        for b in range(3):
            y = torch.eye(3, dtype=torch.float64)[[a, b]]
            prior = vae.prior_logits.log_softmax(-1)[[0, 1], [a, b]].sum()
            log_p.append(prior + vae.likelihood(vae.decoder(y[0], y[1])).log_prob(x))
            log_q.append(q[0][:, a] + q[1][:, b])
    log_p, log_q = torch.stack(log_p), torch.stack(log_q)
    return log_p.logsumexp(0), (log_q.exp() * (log_p - log_q)).sum(0)


def test_the_enumerated_bound_and_weights_are_the_sums():
    vae, x = tiny(enumerate=True).eval(), bits(4, 5)
    log_p, elbo = evidence(vae, x)
    assert torch.allclose(pv.log_weights(vae, x)[0], log_p, rtol=1e-12)
    assert -Step(vae, pv.ELBO(), structure(vae, x))(x).item() == pytest.approx(elbo.mean().item(), rel=1e-12)
    assert (elbo < log_p - 1e-3).all()


@pytest.mark.parametrize("options", [{}, {"posterior": partial(GumbelSoftmax, temperature=0.7)}])
def test_sampled_bounds_have_the_enumerated_value_in_the_mean(options):
    """Straight-through samples too, in training mode: only their gradient is relaxed."""
    vae, x = tiny(**options).train(), bits(1, 5)
    log_p, elbo = evidence(vae.exact(), x)
    with torch.no_grad():
        found = pv.log_weights(vae, x, num_particles=40_000)[:, 0]
    error = found.std() / 200
    print(found.mean(), error, elbo)
    assert abs(found.mean() - elbo[0]) < 4 * error
    importance = (found - log_p[0]).exp()
    assert abs(importance.mean() - 1) < 4 * importance.std() / 200
    assert torch.allclose(pv.log_weights(vae.exact(), x)[0], log_p, rtol=1e-12)


def test_hard_samples_are_the_categorical_at_any_temperature_and_its_mass():
    for temperature in (0.1, 5.0):
        d = GumbelOneHot(temperature, LOGITS)
        y = d.rsample((20_000,))
        p = LOGITS.softmax(-1)
        assert set(y.unique().tolist()) == {0.0, 1.0}
        assert ((y.mean(0) - p).abs() < 4 * (p * (1 - p) / 20_000).sqrt()).all()
        assert torch.allclose(d.log_prob(torch.eye(3).double()), LOGITS.log_softmax(-1))
        other = torch.distributions.OneHotCategorical(logits=torch.zeros(3).double())
        assert kl_divergence(d, other).item() == pytest.approx((p * (p.log() + math.log(3))).sum().item())


def test_relaxed_samples_approach_the_categorical_at_low_temperature():
    p, far = LOGITS.softmax(-1), []
    for temperature in (1.0, 0.1, 0.01):
        s = GumbelOneHot(temperature, LOGITS, hard=False).rsample((20_000,))
        assert torch.allclose(s.sum(-1), torch.ones(()).double())
        far.append((1 - s.max(-1).values).mean().item())
    assert far[0] > 0.1
    assert far[0] > 5 * far[1] > 25 * far[2]
    assert far[2] < 0.01
    assert ((s.mean(0) - p).abs() < 4 * (p * (1 - p) / 20_000).sqrt() + 0.01).all()


def test_the_relaxed_gradient_is_that_of_the_softmax_of_the_same_noise():
    """ds_c / dl_j = s_c (1{c = j} - s_j) / temperature, by hand."""
    weights, temperature = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64), 0.6
    gradients = []
    for hard in (True, False):
        torch.manual_seed(3)
        logits = LOGITS.clone().requires_grad_()
        value = GumbelOneHot(temperature, logits, hard=hard).rsample()
        (value @ weights).backward()
        gradients.append(logits.grad)
    s = value.detach()
    by_hand = s * (weights - (s * weights).sum()) / temperature
    for gradient in gradients:
        assert torch.allclose(gradient, by_hand, rtol=1e-10)


def test_the_relaxed_objective_is_the_papers():
    """log p(x | s) at the relaxed s, less the categories' KL in closed form, which has no relaxation."""
    vae, x = tiny(posterior=partial(GumbelSoftmax, hard=False)).train(), bits(3, 5)
    drawn = pv.ledger(vae, x)
    s = [drawn.values[name] for name in ("y1", "y2")]
    assert 0 < s[0].min() < s[0].max() < 1
    log_x = vae.likelihood(vae.decoder(*s)).log_prob(x)
    q = [posterior(vae.encoder(x)).logits.log_softmax(-1) for posterior in vae.posteriors]
    p = vae.prior_logits.log_softmax(-1)
    kl = sum((log_q.exp() * (log_q - log_p)).sum(-1) for log_q, log_p in zip(q, p, strict=True))
    assert torch.allclose(drawn.elbo()[0], log_x - kl, rtol=1e-12)


def test_sampled_bounds_tell_the_guide_of_its_prior():
    """A decoder that ignores y: what is left is -KL(q || p), and of IWAE(5) the sum over all 3^5 draws."""
    x, gradients = bits(1, 5), {}
    vae = CategoricalVAE(
        5, num_latents=1, num_classes=3, hidden=(6,), posterior=partial(GumbelSoftmax, temperature=0.3)
    )
    vae = vae.double().train()
    bias = vae.posteriors[0].head.layer.bias
    with torch.no_grad():
        vae.prior_logits.copy_(torch.tensor([[1.0, 0.0, -1.0]]))
        bias.copy_(torch.tensor([-0.5, 0.2, 0.6]))
        vae.likelihood.head.layer.weight.zero_()
    log_p, log_q = vae.prior_logits.log_softmax(-1)[0], vae.posteriors[0](vae.encoder(x)).logits[0]
    draws = torch.cartesian_prod(*[torch.arange(3)] * 5)
    bounds = (log_p - log_q)[draws].logsumexp(1) - math.log(5)
    wanted = {
        "elbo": (log_q.exp() * (log_p - log_q)).sum(),
        "iwae": (log_q[draws].sum(1).exp() * bounds).sum(),
    }
    wanted = {name: torch.autograd.grad(value, bias, retain_graph=True)[0] for name, value in wanted.items()}
    many = x.expand(40_000, 5)
    objectives = {"elbo": pv.ELBO(), "plain": pv.ELBO(closed_form=False), "one": pv.IWAE(1), "iwae": pv.IWAE(5)}
    for name, objective in objectives.items():
        vae.zero_grad()
        Step(vae, objective, structure(vae, many)).backward(many)
        gradients[name] = -bias.grad
    print(gradients, wanted)
    assert torch.allclose(gradients["elbo"], wanted["elbo"])
    # What the relaxation's bias leaves at this temperature.
    assert torch.allclose(gradients["plain"], wanted["elbo"], atol=0.06)
    assert torch.allclose(gradients["one"], wanted["elbo"], atol=0.06)
    assert torch.allclose(gradients["iwae"], wanted["iwae"], atol=0.06)
    assert wanted["elbo"].abs().min() > 0.15
    assert wanted["iwae"][[0, 2]].abs().min() > 0.15


def test_linear_masses_are_those_of_the_categorical():
    """Impossible categories too, whose zeros cost nothing."""
    for logits in (LOGITS.expand(2, 3), torch.tensor([[0.0, -torch.inf, 1.0]])):
        d, y = LinearOneHot(logits=logits), torch.eye(3).to(logits)[[0, 2]]
        assert torch.allclose(d.log_prob(y), pyro.distributions.OneHotCategorical(logits=logits).log_prob(y))
        assert d.expand((4, 2)).log_prob(y).shape == (4, 2)
        assert d.enumerate_support().shape[0] == 3
    with pytest.raises(ValueError, match="within the support"):
        LinearOneHot(logits=LOGITS).log_prob(torch.ones(3).double())


def test_evaluation_is_of_the_hard_model():
    posterior = GumbelSoftmax(4, 3, hard=False)
    assert not set(posterior(torch.randn(9, 4)).rsample().flatten().tolist()) <= {0.0, 1.0}
    assert set(posterior.eval()(torch.randn(9, 4)).sample().flatten().tolist()) == {0.0, 1.0}


def test_scores_of_samples_have_the_enumerated_gradient_in_the_mean():
    """VIMCO's bound is that of K samples; with K large its gradient is that of log p(x), by enumeration."""
    vae, x = tiny(), bits(1, 5)
    with torch.no_grad():
        for parameter in (*vae.decoder.parameters(), *vae.likelihood.parameters()):
            parameter.mul_(3)
    log_p, _ = evidence(vae, x)
    wanted = torch.autograd.grad(log_p.sum(), vae.prior_logits)[0]
    step, found = Step(vae, pv.VIMCO(200), structure(vae, x)), []
    for _ in range(100):
        vae.zero_grad()
        step.backward(x)
        assert vae.prior_logits.grad is not None
        found.append(-vae.prior_logits.grad.clone())
    mean, error = torch.stack(found).mean(0), torch.stack(found).std(0) / 10
    print(mean, error, wanted)
    assert ((mean - wanted).abs() < 4 * error + 0.005).all()  # and a bias of order 1 / K
    assert error.max() < 0.02
    assert wanted.abs().max() > 0.1
    assert all(parameter.grad.any() for parameter in vae.parameters())


def test_too_many_values_are_named():
    with pytest.raises(ValueError, match=r"10 latents of 10 classes have 10000000000 values"):
        CategoricalVAE(5, num_latents=10, enumerate=True)
    with pytest.raises(ValueError, match="temperature is 0"):
        CategoricalVAE(5, posterior=partial(GumbelSoftmax, temperature=0.0))


def test_a_temperature_that_a_callback_lowers_reaches_the_captured_step():
    """It is an input of the graph: a step at another temperature than at capture is the eager one."""
    pair = CategoricalVAE(5, num_latents=2, num_classes=3, hidden=(6,), posterior=partial(GumbelSoftmax, temperature=2))
    x = torch.rand(4, 5).round()
    step = Step(pair, pv.ELBO(), structure(pair, x))
    graph = captured(step, x)
    parameters, buffers = [*step.known.parameters.values()], [*step.known.buffers.values()]
    found_at = []
    for temperature in (2.0, 0.3):
        for posterior in pair.posteriors:
            posterior.temperature.fill_(temperature)
        found = graph.inputs[len(parameters) + len(buffers) + 1 :]
        torch.manual_seed(3)
        with torch.no_grad():
            _, *replayed = graph.module(*parameters, *buffers, x, *found)
        torch.manual_seed(3)
        pair.zero_grad()
        step.backward(x)
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        torch.testing.assert_close(replayed, gradients, rtol=1e-5, atol=1e-7)
        found_at.append(torch.cat([gradient.flatten() for gradient in gradients]))
    assert not torch.allclose(*found_at, rtol=1e-3, atol=1e-5)
    again = CategoricalVAE(5, num_latents=2, num_classes=3, hidden=(6,), posterior=GumbelSoftmax)
    again.load_state_dict(pair.state_dict())
    assert again.posteriors[0].temperature == torch.tensor(0.3)
