"""Hidden Markov models against sums over all paths, the forward algorithm, Pyro's enumeration and closed forms."""

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import Predictive, Trace_ELBO, TraceEnum_ELBO
from torch.nn.functional import one_hot

from pyrovae import (
    ELBO,
    HMM,
    BayesianHMM,
    ForwardBackward,
    conditionals,
    elbo,
    fit,
    fit_em,
    log_weights,
    pair_marginals,
    posterior_marginals,
    state_posterior,
    viterbi,
)
from pyrovae.distributions import HiddenMarkov, MarkovChain
from pyrovae.models.base import Functions

LENGTHS = torch.tensor([4, 1, 3, 2, 4])
NEWTON = partial(
    torch.optim.LBFGS, max_iter=100, tolerance_grad=1e-10, tolerance_change=1e-14, line_search_fn="strong_wolfe"
)
EMISSIONS = {
    "Bernoulli": (conditionals.Bernoulli, lambda shape: torch.rand(shape).round()),
    "Categorical": (partial(conditionals.Categorical, num_classes=3), lambda shape: torch.randint(3, shape)),
    "DiagonalNormal": (conditionals.DiagonalNormal, lambda shape: 2 * torch.randn(shape)),
    "FixedNormal": (conditionals.FixedNormal, lambda shape: 2 * torch.randn(shape)),
}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)
    pyro.set_rng_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def made(emission="Bernoulli", num_states=3, step=(2,), spread=2.0):
    likelihood, draw = EMISSIONS[emission]
    hmm = HMM((4, *step), num_states, likelihood=likelihood)
    with torch.no_grad():
        for parameter in hmm.parameters():
            parameter.copy_(spread * torch.randn(parameter.shape) / 2)
    return hmm, (draw((len(LENGTHS), 4, *step)), LENGTHS)


def by_hand(hmm, x, lengths):
    """log p(x, s) of every path of every sequence: a list of dicts from paths to numbers."""
    initial, transition = hmm.initial_logits.log_softmax(-1), hmm.transition_logits.log_softmax(-1)
    emission = hmm.emission()
    sums = []
    for row, length in zip(x, lengths.tolist(), strict=True):
        each = {}
        for path in itertools.product(range(hmm.num_states), repeat=length):
            log_p = initial[path[0]]
            for t in range(length):
                log_p = log_p + emission.log_prob(row[t])[path[t]]
                if t:
                    log_p = log_p + transition[path[t - 1], path[t]]
            each[path] = log_p
        sums.append(each)
    return sums


def forward_algorithm(hmm, x, lengths):
    """Rabiner's, with scaled probabilities."""
    initial, transition = hmm.initial_logits.softmax(-1), hmm.transition_logits.softmax(-1)
    values = []
    for row, length in zip(x, lengths.tolist(), strict=True):
        log_p, alpha = 0.0, initial
        for t in range(length):
            alpha = (alpha if t == 0 else alpha @ transition) * hmm.emission().log_prob(row[t]).exp()
            log_p, alpha = log_p + alpha.sum().log(), alpha / alpha.sum()
        values.append(log_p)
    return torch.stack(values)


@pytest.mark.parametrize("emission", EMISSIONS)
def test_log_likelihood_is_the_sum_over_all_paths(emission):
    hmm, batch = made(emission)
    want = torch.stack([torch.stack(list(each.values())).logsumexp(0) for each in by_hand(hmm, *batch)])
    torch.testing.assert_close(log_weights(hmm, *batch)[0], want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(forward_algorithm(hmm, *batch), want, rtol=1e-12, atol=1e-12)
    gradients = [torch.autograd.grad(v.sum(), list(hmm.parameters())) for v in (log_weights(hmm, *batch), want)]
    for mine, wanted in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("emission", EMISSIONS)
def test_marginals_and_the_best_path_are_those_of_all_paths(emission):
    hmm, batch = made(emission)
    states = posterior_marginals(hmm, *batch)
    pairs = pair_marginals(hmm, *batch)
    best = viterbi(hmm, *batch)
    entropy = state_posterior(hmm, *batch).entropy()
    for row, each in enumerate(by_hand(hmm, *batch)):
        length = len(next(iter(each)))
        paths, log_p = torch.tensor(list(each)), torch.stack(list(each.values()))
        weights = log_p.softmax(0)
        hot = one_hot(paths, 3).double()  # (paths, T, S)
        want = torch.einsum("p,pts->ts", weights, hot)
        torch.testing.assert_close(states[row, :length], want, rtol=1e-11, atol=1e-12)
        want = torch.einsum("p,pts,ptu->tsu", weights, hot[:, :-1], hot[:, 1:])
        torch.testing.assert_close(pairs[row, : length - 1], want, rtol=1e-11, atol=1e-12)
        assert not states[row, length:].any()
        assert not pairs[row, length - 1 :].any()
        assert torch.equal(best[row, :length], paths[log_p.argmax()])
        assert not best[row, length:].any()
        torch.testing.assert_close(entropy[row], -(weights * weights.log()).sum(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("parallel", [True, False])
def test_marginals_are_gradients_of_the_log_normaliser(parallel):
    """Both ways of taking it; its derivative by the potentials is p(s_t | x) (Darwiche 2003)."""
    hmm, (x, lengths) = made(num_states=3)
    hidden = HiddenMarkov(hmm.chain(x, lengths), hmm.emission())
    potentials = hidden.potentials(x).detach().requires_grad_()
    log_z = hidden.chain.log_normalizer(potentials, parallel=parallel)
    (gradient,) = torch.autograd.grad(log_z.sum(), potentials)
    torch.testing.assert_close(gradient, hidden.posterior(x).marginals, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("duration", [1, 2, 7, 64, 301])
@pytest.mark.parametrize("num_states", [1, 5, 20])
def test_the_parallel_scan_is_the_recursion(num_states, duration):
    initial, moves = torch.randn(num_states), 3 * torch.randn(2, 1, num_states, num_states)
    lengths = torch.tensor([[duration], [max(1, duration // 2)], [1]])
    chain = MarkovChain(initial, moves, duration=duration, lengths=lengths)  # batch (3, 2)
    f = (5 * torch.randn(3, 2, duration, num_states)).requires_grad_()
    values = [chain.log_normalizer(f, parallel=parallel) for parallel in (True, False)]
    torch.testing.assert_close(*values, rtol=1e-10, atol=1e-9)
    gradients = [torch.autograd.grad(value.sum(), f)[0] for value in values]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-8)


def test_pyros_enumeration_is_the_same():
    """The model written with pyro.markov and summed by TraceEnum_ELBO."""
    hmm, (x, lengths) = made(num_states=3)

    def enumerated(x, lengths):
        initial, transition = hmm.initial_logits.softmax(-1), hmm.transition_logits.softmax(-1)
        probs = hmm.emission().base_dist.probs
        with pyro.plate("data", len(x), dim=-1):
            s = None
            for t in pyro.markov(range(x.size(1))):
                with poutine.mask(mask=t < lengths):
                    now = initial if s is None else transition[s]
                    s = pyro.sample(f"s_{t}", dist.Categorical(now), infer={"enumerate": "parallel"})
                    pyro.sample(f"x_{t}", dist.Bernoulli(probs[s]).to_event(1), obs=x[:, t])

    want = -TraceEnum_ELBO(max_plate_nesting=1).loss(enumerated, lambda x, lengths: None, x, lengths)
    assert log_weights(hmm, x, lengths).sum().item() == pytest.approx(want, abs=1e-10)


def test_without_lengths_and_with_scalar_steps():
    hmm, (x, _) = made(step=())
    want = torch.stack([torch.stack(list(e.values())).logsumexp(0) for e in by_hand(hmm, x, torch.full((5,), 4))])
    torch.testing.assert_close(log_weights(hmm, x)[0], want, rtol=1e-12, atol=1e-12)


def test_what_stands_after_the_end_counts_for_nothing():
    hmm, (x, lengths) = made()
    after = torch.arange(4) >= lengths[:, None]
    other = torch.where(after[..., None], 1 - x, x)
    assert not torch.equal(other, x)
    for values in (log_weights(hmm, x, lengths), log_weights(hmm, other, lengths)):
        want = [log_weights(hmm, x[i : i + 1, : lengths[i]])[0, 0] for i in range(5)]
        torch.testing.assert_close(values[0], torch.stack(want), rtol=1e-12, atol=1e-12)
    loss = log_weights(hmm, other, lengths).sum()
    gradient = torch.autograd.grad(loss, hmm.transition_logits)[0]
    want = torch.autograd.grad(torch.stack(want).sum(), hmm.transition_logits)[0]
    torch.testing.assert_close(gradient, want, rtol=1e-10, atol=1e-12)


def test_a_stationary_chain_stays():
    """Two states with rates a and b: pi = (b, a) / (a + b), and p(s_t) is pi at each t without data."""
    a, b = 0.3, 0.1
    moves = torch.tensor([[[1 - a, a], [b, 1 - b]]])
    chain = MarkovChain(torch.tensor([b, a]).log(), moves.log(), duration=6)
    torch.testing.assert_close(chain.marginals, torch.tensor([b, a]).div(a + b).expand(6, 2))
    # The rate of its entropy, plus that of the first state.
    pi = b / (a + b)
    h_pi, h_a, h_b = (-(p * math.log(p) + (1 - p) * math.log(1 - p)) for p in (pi, a, b))
    assert chain.entropy().item() == pytest.approx(h_pi + 5 * (pi * h_a + (1 - pi) * h_b), abs=1e-12)


@pytest.mark.parametrize("parallel", [True, False])
def test_impossible_moves_have_finite_gradients(parallel):
    """Left to right, and a state that nothing reaches."""
    moves = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [0.3, 0.3, 0.4]]]).log().requires_grad_()
    chain = MarkovChain(torch.tensor([1.0, 0.0, 0.0]).log(), moves, duration=4)
    f = torch.randn(2, 4, 3, requires_grad=True)
    log_z = chain.log_normalizer(f, parallel=parallel)
    paths = torch.tensor([[0] * k + [1] * (4 - k) for k in range(1, 5)])
    each = torch.stack([chain.log_prob(p) + f[:, torch.arange(4), p].sum(-1) for p in paths])
    torch.testing.assert_close(log_z, each.logsumexp(0), rtol=1e-11, atol=1e-11)
    assert all(torch.isfinite(g).all() for g in torch.autograd.grad(log_z.sum(), (f, moves)))
    posterior = chain.tilted(f)[0]
    torch.testing.assert_close(posterior.marginals[..., 2], torch.zeros(2, 4))
    torch.testing.assert_close(posterior.marginals.sum(-1), torch.ones(2, 4))
    assert torch.isfinite(posterior.entropy()).all()
    # A state that leads nowhere: it stays where it is, and can't give the last datum.
    stuck = MarkovChain(torch.zeros(2), torch.tensor([[[0.5, 0.5], [0.0, 1.0]]]).log(), duration=3)
    f = torch.zeros(3, 2)
    f[2, 1] = -torch.inf
    f.requires_grad_()
    log_z = stuck.log_normalizer(f, parallel=parallel)
    assert log_z.exp().item() == pytest.approx(0.5**3)
    assert torch.isfinite(torch.autograd.grad(log_z, f)[0]).all()
    posterior = stuck.tilted(f)[0]
    assert torch.equal(posterior.marginals, torch.tensor([[1.0, 0.0]]).expand(3, 2))
    assert posterior.mode.tolist() == [0, 0, 0]
    assert posterior.entropy().item() == 0


def sparse_chain(numbers, first, moves):
    """A chain of three steps whose possible logits are `numbers`, of states and moves that masks tell."""
    initial, transition = (
        torch.full(mask.shape, -torch.inf).masked_scatter(mask, part)
        for mask, part in zip((first, moves), numbers.split([int(first.sum()), int(moves.sum())]), strict=True)
    )
    return MarkovChain(initial, transition, duration=3, lengths=torch.tensor([3, 2]))


def test_entropy_and_kl_of_impossible_moves_have_the_gradients_of_differences():
    first = torch.tensor([True, False, True])
    few = first, torch.tensor([[[1, 1, 0], [0, 1, 1], [0, 0, 1]]]).bool()
    more = first, torch.tensor([[[1, 1, 0], [1, 1, 1], [0, 1, 1]]]).bool()
    a, b = (torch.randn(int(m[0].sum() + m[1].sum()), requires_grad=True) for m in (few, more))
    kl = torch.distributions.kl_divergence
    assert torch.autograd.gradcheck(lambda a: sparse_chain(a, *few).entropy(), a)
    assert torch.autograd.gradcheck(lambda a, b: kl(sparse_chain(a, *few), sparse_chain(b, *more)), (a, b))
    assert torch.equal(kl(sparse_chain(b, *more), sparse_chain(a, *few)), torch.full((2,), torch.inf))
    # A posterior of data that a state can't give.
    f, never = torch.randn(2, 3, 3, requires_grad=True), torch.zeros(3, 3, dtype=torch.bool)
    never[2, 2] = True
    prior = sparse_chain(a.detach(), *few)

    def posterior(f):
        return prior.tilted(f.masked_fill(never, -torch.inf))[0]

    assert torch.autograd.gradcheck(lambda f: posterior(f).entropy(), f)
    assert torch.autograd.gradcheck(lambda f: kl(posterior(f), prior), f)


def test_entropy_and_kl_of_one_step_are_those_of_a_categorical():
    """With gradients; torch's KL has none where both are impossible, so that state is left out there."""
    kl, possible = torch.distributions.kl_divergence, torch.tensor([0, 2, 3])
    logits = [torch.tensor([0.5, -torch.inf, 1.0, -0.2]), torch.tensor([-0.3, -torch.inf, 2.0, 0.0])]
    found = []
    for made in (
        lambda x: MarkovChain(x, torch.zeros(1, 4, 4), duration=1),
        lambda x: dist.Categorical(logits=x[possible]),
    ):
        q, p = (x.clone().requires_grad_() for x in logits)
        values = made(q).entropy(), kl(made(q), made(p))
        found.append([*values, *torch.autograd.grad(values[0] + 2 * values[1], (q, p))])
    torch.testing.assert_close(*found)
    even, one = (MarkovChain(x, torch.zeros(1, 4, 4), duration=1) for x in (torch.zeros(4), logits[0]))
    assert kl(even, one) == torch.inf


def test_paths_and_sequences_that_are_drawn_have_the_models_frequencies():
    hmm, _ = made(num_states=2)
    lengths = torch.tensor([4, 2])
    x = torch.zeros(2, 4, 2)
    drawn = Predictive(poutine.uncondition(hmm.with_states.model), num_samples=20_000, parallel=True)(x, lengths)
    s, sequences = drawn["s"], drawn["x"]
    assert s.shape == (20_000, 2, 4)
    assert sequences.shape == (20_000, 2, 4, 2)
    assert not s[:, 1, 2:].any()
    assert not sequences[:, 1, 2:].any()
    marginals = hmm.chain(x, lengths).marginals[..., 1]
    error = (marginals * (1 - marginals) / 20_000).sqrt()
    assert ((s.double().mean(0) - marginals).abs() <= 4 * error + 1e-12).all()
    probs = hmm.emission().base_dist.probs
    for state in range(2):
        given = sequences[:, 0][s[:, 0] == state]
        error = (probs[state] * (1 - probs[state]) / len(given)).sqrt()
        assert ((given.mean(0) - probs[state]).abs() < 4 * error).all()
    pairs = torch.stack([(s[:, 0, 1] == j)[s[:, 0, 0] == 0].double().mean() for j in range(2)])
    want = hmm.transition_logits[0].softmax(-1)
    assert (pairs - want).abs().max() < 4 * (want.prod() / (s[:, 0, 0] == 0).sum()).sqrt()
    replicates = Predictive(poutine.uncondition(hmm.model), num_samples=20_000, parallel=True)(x, lengths)["x"]
    spread = (replicates.var(0) / 20_000 + sequences.var(0) / 20_000).sqrt()
    assert ((replicates.mean(0) - sequences.mean(0)).abs() <= 4 * spread).all()
    assert not replicates[:, 1, 2:].any()


def test_batch_dims_of_the_emission_alone_are_those_of_what_is_drawn():
    """A chain, and three pairs of emissions: x_t of each has the mean of its own, and its length of the chain's."""
    chain = MarkovChain(torch.tensor([0.2, 0.8]).log(), torch.zeros(1, 2, 2), duration=2)
    probs = torch.tensor([[0.1, 0.9], [0.5, 0.5], [1.0, 0.0]])[:, None]  # (3, 1, S)
    hidden = HiddenMarkov(chain, dist.Bernoulli(probs))
    assert hidden.batch_shape == hidden.chain.batch_shape == (3,)
    x = hidden.sample((20_000,))
    assert x.shape == (20_000, 3, 2)
    want = torch.stack([probs[:, 0] @ torch.tensor([0.2, 0.8]), probs[:, 0].mean(-1)], -1)
    assert ((x.mean(0) - want).abs() <= 4 * (want * (1 - want) / 20_000).sqrt()).all()
    every = torch.cartesian_prod(*[torch.arange(2.0)] * 2)
    torch.testing.assert_close(hidden.log_prob(every[:, None]).exp().sum(0), torch.ones(3))
    assert hidden.posterior(x).sample().shape == (20_000, 3, 2)


def test_weights_with_the_path_as_a_site_are_log_p_of_x():
    """p(x, s) / p(s | x) is p(x) for any path: the posterior chain is right as a density and as a sampler."""
    hmm, batch = made()
    want = log_weights(hmm, *batch).expand(7, -1)
    torch.testing.assert_close(log_weights(hmm.with_states, *batch, num_particles=7), want, rtol=1e-11, atol=1e-11)
    paths = state_posterior(hmm, *batch).sample((4000,))
    found, want = one_hot(paths, 3).double().mean(0), posterior_marginals(hmm, *batch)
    within = torch.arange(4) < batch[1][:, None]
    error = (want * (1 - want) / 4000).sqrt()
    assert ((found - want).abs() <= 4.5 * error + 1e-12)[within].all()


def test_a_path_that_is_given_counts_for_every_particle():
    hmm, (x, lengths) = made()
    path = torch.randint(3, (len(x), 4))
    want = sum(each[tuple(s[:n].tolist())] for each, s, n in zip(by_hand(hmm, x, lengths), path, lengths, strict=True))
    given = poutine.condition(hmm.with_states.model, {"s": path})
    vectorised = Trace_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    assert vectorised.loss(given, hmm.guide, x, lengths) == pytest.approx(-want.item(), rel=1e-12)


@pytest.mark.parametrize("make", [lambda: HMM((4, 2), 3), lambda: BayesianHMM((4, 2), 3)])
def test_bits_may_be_whole_numbers(make):
    pair, x = make(), torch.rand(5, 4, 2).round()
    losses = []
    for each in (x, x.long(), x.bool()):
        pyro.set_rng_seed(0)
        losses.append(Trace_ELBO().loss(pair.model, pair.guide, each, LENGTHS))
    assert losses[0] == losses[1] == losses[2]


def test_pyros_chain_has_a_state_before_the_first_datum():
    initial, moves, locs = torch.randn(3), torch.randn(3, 3), torch.randn(3)
    x = torch.randn(5, 4)

    def model(x):
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.DiscreteHMM(initial, moves, dist.Normal(locs, 1.0), duration=4), obs=x)

    pair = Functions(model, lambda x: None)
    hmm = HMM((4,), 3, likelihood=conditionals.FixedNormal)
    with torch.no_grad():
        hmm.initial_logits.copy_((initial.softmax(-1) @ moves.softmax(-1)).log())
        hmm.transition_logits.copy_(moves)
        hmm.likelihood.head.layer.weight.copy_(locs[None])
        hmm.likelihood.head.layer.bias.zero_()
    torch.testing.assert_close(log_weights(pair, x), log_weights(hmm, x))
    torch.testing.assert_close(posterior_marginals(pair, x), posterior_marginals(hmm, x))
    assert torch.equal(viterbi(pair, x), viterbi(hmm, x))


def test_hidden_paths_leave_the_pair_as_it_is_and_run_it_in_evaluation_mode():
    """p(s_1 | x_1) by Bayes' rule, with a prior from a network whose training mode is another function."""
    net = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5))
    net.append(torch.nn.Linear(4, 3))
    locs, x, u = torch.tensor([-1.0, 0.0, 2.0]), torch.randn(5, 1), torch.randn(5, 2)
    emission = dist.Normal(locs, 1.0)

    def model(x, u):
        with pyro.plate("data", len(x)):
            chain = MarkovChain(net(u), torch.zeros(1, 3, 3), duration=1)
            pyro.sample("x", HiddenMarkov(chain, emission), obs=x)

    pair = Functions(model, lambda x, u: None)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = [posterior_marginals(pair, x, u), state_posterior(pair, x, u).marginals]
    after = net.state_dict()
    assert net.training
    assert all(torch.equal(after[name], value) for name, value in before.items())
    prior = net.eval()(u).softmax(-1)
    want = prior * emission.log_prob(x).exp()
    for marginals in found:
        assert not marginals.requires_grad
        torch.testing.assert_close(marginals[:, 0], want / want.sum(-1, keepdim=True), rtol=1e-12, atol=1e-12)
    assert torch.equal(viterbi(pair, x, u)[:, 0], want.argmax(-1))


def test_hidden_paths_take_what_other_evaluations_take():
    hmm, (x, lengths) = made()
    want = posterior_marginals(hmm, x, lengths)
    assert torch.equal(posterior_marginals(hmm, {"lengths": lengths, "x": x.numpy()}), want)
    hmm.float()
    torch.testing.assert_close(posterior_marginals(hmm, x, lengths), want.float(), rtol=0, atol=1e-5)


# EM -------------------------------------------------------------------------------------------------------------------


def expected_counts_step(hmm, x, lengths):
    """Rabiner's re-estimation from all paths: new pi, A and mean emission of each state."""
    initial, moves = torch.zeros(3), torch.zeros(3, 3)
    total, weight = torch.zeros(3, *x.shape[2:]), torch.zeros(3)
    for row, each in zip(x, by_hand(hmm, x, lengths), strict=True):
        shares = torch.stack(list(each.values())).softmax(0)
        for path, share in zip(each, shares, strict=True):
            initial[path[0]] += share
            for old, new in itertools.pairwise(path):
                moves[old, new] += share
            for t, state in enumerate(path):
                total[state] += share * row[t]
                weight[state] += share
    return initial / initial.sum(), moves / moves.sum(-1, keepdim=True), total / weight[:, None]


@torch.no_grad()
def test_one_step_of_baum_welch_is_rabiners():
    hmm, batch = made(spread=0.5)
    initial, moves, means = expected_counts_step(hmm, *batch)
    fit_em(hmm, batch, e_step=ForwardBackward(), m_step=hmm.maximize, max_epochs=1)
    torch.testing.assert_close(hmm.initial_logits.softmax(-1), initial)
    torch.testing.assert_close(hmm.transition_logits.softmax(-1), moves)
    torch.testing.assert_close(hmm.emission().base_dist.probs, means)


@pytest.mark.parametrize("emission", EMISSIONS)
def test_closed_m_steps_maximise(emission):
    """After the step no gradient of E_q log p(x, s) is left, but where a probability is at its bound."""
    hmm, batch = made(emission, spread=0.5)
    if emission == "DiagonalNormal":
        hmm.likelihood.min_scale = 0.1
    e_step = ForwardBackward().begin(hmm, batch, None, None)
    q = e_step(*batch, whole=True)
    torch.testing.assert_close(q.mean(), log_weights(hmm, *batch).mean(), rtol=1e-11, atol=1e-11)  # tight
    before = q.mean().item()
    hmm.maximize(q.responsibilities, *batch)
    assert q.mean().item() > before + 1e-3
    assert log_weights(hmm, *batch).mean().item() > q.mean().item() + 1e-6  # no longer tight: still a bound
    for gradient in torch.autograd.grad(q.mean(), list(hmm.parameters())):
        assert gradient.abs().max() < 1e-9


@torch.no_grad()
@pytest.mark.parametrize("emission", EMISSIONS)
def test_a_state_that_is_never_visited_stays_as_it_is(emission):
    """And the others move as if it were not there; a state that is visited at the end alone keeps its moves."""
    hmm, (x, lengths) = made(emission, spread=0.5)
    hmm.likelihood.head.layer.bias.normal_()
    q = ForwardBackward().begin(hmm, (x, lengths), None, None)(x, lengths, whole=True).responsibilities
    q = {name: value.clone() for name, value in q.items()}
    q["s"][..., 2], q["s_pairs"][..., 2, :], q["s_pairs"][..., 2] = 0.0, 0.0, 0.0
    q["s_pairs"][..., 1, :] = 0.0
    before = hmm.transition_logits.softmax(-1), hmm.likelihood(torch.eye(3))
    hmm.maximize(q, x, lengths)
    after = hmm.transition_logits.softmax(-1), hmm.likelihood(torch.eye(3))
    torch.testing.assert_close(after[0][1:], before[0][1:])
    of_old, of_new = (each.log_prob(x[:, :, None]) for each in (before[1], after[1]))  # (B, T, S)
    torch.testing.assert_close(of_new[..., 2], of_old[..., 2])
    assert (of_new - of_old).abs().amax((0, 1))[:2].min() > 1e-3
    want = (q["s"][..., 1, None] * x).sum((0, 1)) / q["s"][..., 1].sum()
    if emission != "Categorical":
        torch.testing.assert_close(after[1].base_dist.mean[1], want)


def sequences(emission, rows=40, duration=6):
    """Draws of two states that differ much, so that EM ends soon."""
    truth = HMM((duration, 3), 2, likelihood=EMISSIONS[emission][0])
    with torch.no_grad():
        truth.transition_logits.copy_(torch.tensor([[1.5, 0.0], [0.0, 1.0]]))
        truth.likelihood.head.layer.weight.mul_(6)
    lengths = torch.arange(rows) % 4 + 3
    x = torch.zeros(rows, duration, 3)
    return HiddenMarkov(truth.chain(x, lengths), truth.emission()).sample(), lengths


def twice(hmm):
    other = HMM(hmm.event_shape, hmm.num_states, likelihood=hmm.arguments["likelihood"])
    other.load_state_dict(hmm.state_dict())
    return hmm, other


@pytest.mark.parametrize("emission", ["Bernoulli", "Categorical", "DiagonalNormal"])
def test_em_and_gradients_end_at_one_maximum(emission):
    x, lengths = sequences(emission)
    first, second = twice(HMM((6, 3), 2, likelihood=EMISSIONS[emission][0]))
    run = fit_em(first, (x, lengths), e_step=ForwardBackward(), m_step=first.maximize, max_epochs=300, tolerance=1e-9)
    losses = run.history["train_loss"]
    assert all(b <= a + 1e-10 for a, b in itertools.pairwise(losses))
    optimizer = NEWTON(second.parameters(), lr=1.0)

    def closure():
        optimizer.zero_grad()
        loss = -log_weights(second, x, lengths).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    optimizer.step(closure)
    values = [log_weights(hmm, x, lengths).mean().item() for hmm in (first, second)]
    print(len(losses), values)
    assert values[0] == pytest.approx(values[1], abs=1e-6)
    marginals = [posterior_marginals(hmm, x, lengths) for hmm in (first, second)]
    torch.testing.assert_close(*marginals, rtol=0, atol=2e-3)


def test_fit_goes_where_em_does():
    x, lengths = sequences("FixedNormal")
    first, second = twice(HMM((6, 3), 2, likelihood=conditionals.FixedNormal))
    fit_em(first, (x, lengths), e_step=ForwardBackward(), m_step=first.maximize, max_epochs=100, tolerance=1e-9)
    fit(second, {"x": x, "lengths": lengths}, batch_size=40, lr=0.05, max_epochs=200, seed=0, progress=False,
        compile=False)  # fmt: skip
    values = [log_weights(hmm, x, lengths).mean().item() for hmm in (first, second)]
    print(values)
    assert values[0] == pytest.approx(values[1], abs=1e-3)


def test_baum_welch_says_what_it_can_not_do():
    hmm, batch = made()
    with pytest.raises(ValueError, match="samples \\['s'\\]"):
        fit_em(hmm.with_states, batch, e_step=ForwardBackward())
    odd = HMM((4, 2), 2, likelihood=conditionals.ContinuousBernoulli)
    with pytest.raises(TypeError, match=r"ContinuousBernoulli.*Ascent"):
        fit_em(odd, batch, e_step=ForwardBackward(), m_step=odd.maximize)
    with pytest.raises(ValueError, match=r"site 'y' of the model is missing.*'x'"):
        viterbi(hmm, *batch, site="y")


# Bayesian -------------------------------------------------------------------------------------------------------------


def log_beta(a):
    return torch.lgamma(a).sum(-1) - torch.lgamma(a.sum(-1))


def test_one_state_is_the_dirichlet_multinomial():
    """Nothing is hidden: q at prior + counts is the posterior, and the bound the evidence, draw by draw."""
    pair = BayesianHMM((4, 2), 1, num_classes=3, class_concentration=0.7)
    x = torch.randint(3, (5, 4, 2))
    valid = torch.arange(4) < LENGTHS[:, None]
    counts = torch.einsum("bt,btdc->dc", valid.double(), one_hot(x, 3).double())  # (2, 3)
    evidence = (log_beta(0.7 + counts) - log_beta(torch.full((2, 3), 0.7))).sum()
    with torch.no_grad():
        pair.emission.copy_((0.7 + counts).log()[None])
        pair.initial.fill_(0.0)
        pair.transition.fill_(0.0)
    elbo = ELBO(closed_form=False)
    for _ in range(3):
        assert -elbo.loss(pair.model, pair.guide, x, LENGTHS) == pytest.approx(evidence.item(), abs=1e-9)
    with torch.no_grad():
        pair.emission.add_(1.0)
    values = [-elbo.loss(pair.model, pair.guide, x, LENGTHS) for _ in range(200)]
    assert sum(values) / 200 < evidence.item() - 0.1


def test_bayesian_training_reaches_the_dirichlet_multinomial():
    pair = BayesianHMM((4, 2), 1, num_classes=3)
    x = torch.randint(3, (5, 4, 2))
    fit(pair, (x, LENGTHS), batch_size=5, lr=0.05, max_epochs=250, objective=ELBO(num_particles=10), seed=0,
        progress=False, compile=False)  # fmt: skip
    valid = torch.arange(4) < LENGTHS[:, None]
    counts = torch.einsum("bt,btdc->dc", valid.double(), one_hot(x, 3).double())
    want = 1 + counts
    assert (pair.emission.exp()[0] / want - 1).abs().max() < 0.15


def test_parts_of_the_data_count_as_all_of_them():
    """With data_size the loss of a batch is an unbiased part: the mean over both halves is that of the whole."""
    x = torch.randint(2, (8, 4, 2))
    whole = BayesianHMM((4, 2), 3, data_size=8)
    elbo = ELBO(closed_form=False)

    def loss(*rows):
        pyro.set_rng_seed(3)
        return elbo.loss(whole.model, whole.guide, *rows)

    assert (loss(x[:4]) + loss(x[4:])) / 2 == pytest.approx(loss(x), abs=1e-9)


# Errors ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [HMM, BayesianHMM])
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.ones(5, 4, 2), torch.tensor([4, 0, 3, 2, 4])), "1 sequences are not in 1 ... 4, the first 0 in row 1"),
        ((torch.ones(5, 4, 2), torch.tensor([4, 1, 3, 2, 6])), "not in 1 ... 4, the first 6 in row 4"),
        ((torch.ones(5, 4, 2), torch.ones(5)), "lengths are torch.float32 of shape \\(5,\\)"),
        ((torch.ones(5, 4, 2), torch.ones(5, 1).long()), "shape \\(5, 1\\), one whole number for each of the 5"),
        ((torch.ones(5, 4, 3), LENGTHS), "event shape|event_shape|shape"),
    ],
)
def test_wrong_sequences_are_refused_before_training(make, batch, message):
    pair = make((4, 2), 3)
    with pytest.raises(ValueError, match=message):
        fit(pair, batch, max_epochs=1, batch_size=5, progress=False)
    if len(batch) == 2 and make is HMM:
        with pytest.raises(ValueError, match=message):
            elbo(pair, batch)


@pytest.mark.parametrize("tool", [state_posterior, posterior_marginals, pair_marginals, viterbi])
@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ((torch.ones(5, 4, 2), LENGTHS - 1), "data: lengths of 1 sequences are not in 1 ... 4, the first 0 in row 1"),
        ((torch.ones(5, 4, 2), LENGTHS + 5), "data: lengths of 5 sequences are not in 1 ... 4, the first 9 in row 0"),
        ((torch.ones(5, 4, 1), LENGTHS), r"data: x has shape \(5, 4, 1\), sequences \(B, T, 2\)"),
        ((torch.full((5, 4, 2), 0.3), LENGTHS), r"x has values that the likelihood at site 'x' .* in \[0.3, 0.3\]"),
    ],
)
def test_hidden_paths_of_wrong_sequences_are_refused(tool, batch, message):
    with pytest.raises(ValueError, match=message):
        tool(HMM((4, 2), 3), *batch)


def test_the_batch_of_an_evaluation_with_wrong_lengths_is_named():
    lengths = torch.tensor([4, 1, 3, 2, 9])
    with pytest.raises(ValueError, match=r"data, rows from 4 on: lengths of 1 sequences .* the first 9 in row 0"):
        elbo(HMM((4, 2), 3), (torch.ones(5, 4, 2), lengths), batch_size=2)


def test_classes_out_of_range_are_named():
    pair = HMM((4, 2), 3, likelihood=partial(conditionals.Categorical, num_classes=3))
    x = torch.randint(3, (5, 4, 2))
    x[3, 0, 0] = 3
    with pytest.raises(ValueError, match="'x' cannot give: row 3"):
        fit(pair, (x, LENGTHS), max_epochs=1, batch_size=5, progress=False)
    with pytest.raises(ValueError, match="wanted is 0 or 1"):
        fit(HMM((4, 2), 3), (x.double(), LENGTHS), max_epochs=1, batch_size=5, progress=False)


def test_arguments_of_another_kind_are_refused():
    with pytest.raises(ValueError, match="num_states"):
        HMM((4, 2), 0)
    with pytest.raises(ValueError, match="event_shape is \\(\\)"):
        HMM((), 2)
    with pytest.raises(ValueError, match="state_concentration is -1"):
        BayesianHMM((4, 2), 2, state_concentration=-1.0)
    with pytest.raises(ValueError, match="class_concentration is inf"):
        BayesianHMM((4, 2), 2, class_concentration=math.inf)
    with pytest.raises(ValueError, match="num_classes is 1, expected at least 2"):
        BayesianHMM((4, 2), 2, num_classes=1)
    with pytest.raises(TypeError, match=r"num_classes is 2\.5"):
        BayesianHMM((4, 2), 2, num_classes=2.5)
    with pytest.raises(ValueError, match="one distribution for each state"):
        HiddenMarkov(MarkovChain(torch.zeros(2), torch.zeros(1, 2, 2), duration=3), dist.Bernoulli(torch.rand(3)))
    with pytest.raises(ValueError, match="duration 4 has 3"):
        MarkovChain(torch.zeros(2), torch.zeros(2, 2, 2), duration=4)


def test_another_e_step_is_named():
    with pytest.raises(ValueError, match=r"Baum-Welch needs s and s_pairs; pass e_step=ForwardBackward\(\) to fit_em"):
        fit_em(hmm := HMM((3, 2), 2), torch.ones(4, 3, 2), m_step=hmm.maximize)


def test_a_tuple_of_the_batch_is_the_batch():
    x, lengths, hmm = torch.ones(2, 3, 2), torch.tensor([3, 1]), HMM((3, 2), 2)
    assert torch.equal(viterbi(hmm, (x, lengths)), viterbi(hmm, x, lengths))


def test_images_taken_for_sequences_are_warned_of():
    images = (torch.rand(5, 1, 4, 3) < 0.5).float()
    with pytest.warns(UserWarning, match=r"sequences of one step each.*pass x.squeeze\(1\) and event_shape=\(H, W\)"):
        fit(HMM((1, 4, 3), 2), images, max_epochs=1, batch_size=5, progress=False)
    fit(HMM((4, 3), 2), images.squeeze(1), max_epochs=1, batch_size=5, progress=False)
