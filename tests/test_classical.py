"""Exact marginal likelihood and posteriors by enumeration, and mean field, against sums by hand."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import GaussianMixture, LinearGaussian, Mixture
from pyro.infer import TraceEnum_ELBO

from pyrovae.objectives import (
    ELBO,
    MarginalLikelihood,
    exact_posterior,
    log_marginal,
    mean_field_posterior,
)

TIGHT = {"rtol": 1e-10, "atol": 1e-10}


def blobs(rows: int = 60, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.tensor([[-2.0, 0.0], [1.0, 1.5], [2.0, -1.0]], dtype=torch.float64)
    noise = torch.randn(rows, 2, generator=generator, dtype=torch.float64)
    return centres[torch.arange(rows) % 3] + noise * torch.tensor([0.8, 0.5], dtype=torch.float64)


def mixture(x: torch.Tensor, components: int = 3) -> GaussianMixture:
    weights = torch.arange(1.0, components + 1, dtype=x.dtype)
    return GaussianMixture(weights / weights.sum(), x[:components], torch.ones(components, 2, dtype=x.dtype))


class Factorial:
    """Two switches a, b explain x together, b also depends on a; three noisy words each have a state s below b."""

    p_a = torch.tensor([0.3, 0.7], dtype=torch.float64)
    p_b = torch.tensor([[0.9, 0.1], [0.2, 0.8]], dtype=torch.float64)
    p_s = torch.tensor([[0.6, 0.3, 0.1], [0.1, 0.2, 0.7]], dtype=torch.float64)
    levels = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)

    def __init__(self):
        self.loc = torch.tensor([[0.0, 1.0], [-1.0, 2.5]], dtype=torch.float64, requires_grad=True)

    def model(self, x, words):  # x (B,), words (3, B)
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Categorical(self.p_a))
            b = pyro.sample("b", dist.Categorical(self.p_b[a]))
            pyro.sample("x", dist.Normal(self.loc[a, b], 0.9), obs=x)
            with pyro.plate("words", 3, dim=-2):
                s = pyro.sample("s", dist.Categorical(self.p_s[b]))
                pyro.sample("w", dist.Normal(self.levels[s], 1.1), obs=words)

    def guide(self, x, words):
        raise AssertionError("not wanted")

    def joint(self, x, words):
        """log p(x, words, a, b, s) of one datum for every (a, b, s1, s2, s3)."""
        table = {}
        for a, b, *s in itertools.product(range(2), range(2), range(3), range(3), range(3)):
            value = self.p_a[a].log() + self.p_b[a, b].log() + dist.Normal(self.loc[a, b], 0.9).log_prob(x)
            for word, state in zip(words, s, strict=True):
                value = value + self.p_s[b, state].log() + dist.Normal(self.levels[state], 1.1).log_prob(word)
            table[(a, b, *s)] = value
        return table

    @staticmethod
    def data(rows=4):
        generator = torch.Generator().manual_seed(2)
        draw = torch.randn(4, rows, generator=generator, dtype=torch.float64)
        return 1.5 * draw[0], draw[1:] + 0.5


def test_log_marginal_and_its_gradient_are_the_sums_by_hand():
    pair, (x, words) = Factorial(), Factorial.data()
    got = log_marginal(pair, x, words)
    want = torch.stack([torch.stack(list(pair.joint(x[n], words[:, n]).values())).logsumexp(0) for n in range(len(x))])
    torch.testing.assert_close(got, want, **TIGHT)
    (got_gradient,) = torch.autograd.grad(got.sum(), pair.loc)
    (want_gradient,) = torch.autograd.grad(want.sum(), pair.loc)
    torch.testing.assert_close(got_gradient, want_gradient, **TIGHT)


def test_the_objective_is_the_log_likelihood_with_its_gradient():
    x = blobs()
    pair = mixture(x)
    loss = MarginalLikelihood().differentiable_loss(pair.model, pair.guide, x)
    want = -pair.log_prob(x).sum()
    torch.testing.assert_close(loss, want, **TIGHT)
    stock = TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(pair.model, pair.guide, x)
    torch.testing.assert_close(loss, stock, **TIGHT)
    parameters = list(pair.parameters())
    for a, b in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(want, parameters), strict=True):
        torch.testing.assert_close(a, b, **TIGHT)
    torch.testing.assert_close(log_marginal(pair, x), pair.log_prob(x), **TIGHT)


def test_masks_scales_and_subsampling_of_the_marginal_likelihood():
    x, seen = torch.tensor([0.3, 2.0, -1.0], dtype=torch.float64), torch.tensor([True, False, True])

    def model(x):
        with pyro.plate("data", 12, subsample=torch.arange(3)), pyro.poutine.scale(scale=0.5):
            c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.3)), infer={"enumerate": "parallel"})
            with pyro.poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(2 * c, 1.0), obs=x)

    each = torch.stack(
        [
            dist.Normal(2.0, 1.0).log_prob(x) + x.new_tensor(0.3).log(),
            dist.Normal(0.0, 1.0).log_prob(x) + x.new_tensor(0.7).log(),
        ]
    )
    want = torch.where(seen, each.logsumexp(0), 0.0)
    guide = lambda x: None  # noqa: E731
    torch.testing.assert_close(log_marginal((model, guide), x), want, **TIGHT)  # densities per datum
    loss = MarginalLikelihood().differentiable_loss(model, guide, x)
    torch.testing.assert_close(loss, -0.5 * 12 / 3 * want.sum(), **TIGHT)
    posterior = exact_posterior((model, guide), x)
    torch.testing.assert_close(posterior.mean(), 0.5 * want.mean(), **TIGHT)
    torch.testing.assert_close(posterior.responsibilities["c"][1], x.new_tensor([0.7, 0.3]), **TIGHT)  # the prior
    torch.testing.assert_close(mean_field_posterior((model, guide), x).mean(), posterior.mean(), **TIGHT)


def test_the_exact_posterior_is_the_normalised_joint():
    pair, (x, words) = Factorial(), Factorial.data()
    posterior = exact_posterior(pair, x, words)
    assert {name: tuple(p.shape) for name, p in posterior.responsibilities.items()} == {
        "a": (4, 2),
        "b": (4, 2),
        "s": (3, 4, 3),
    }
    for n in range(len(x)):
        table = pair.joint(x[n], words[:, n])
        weights = torch.stack(list(table.values())).softmax(0).detach()
        for position, (name, index) in enumerate([("a", (n,)), ("b", (n,)), *(("s", (w, n)) for w in range(3))]):
            for value in range(3 if name == "s" else 2):
                want = sum(w for w, key in zip(weights, table, strict=True) if key[position] == value)
                torch.testing.assert_close(posterior.responsibilities[name][index][value], want, **TIGHT)
    torch.testing.assert_close(posterior.per_datum(), log_marginal(pair, x, words), **TIGHT)  # F = log p(x) here


def test_responsibilities_are_pyros_marginals():
    x = blobs(7)
    pair = mixture(x)
    want = TraceEnum_ELBO(max_plate_nesting=1).compute_marginals(pair.model, pair.guide, x)["c"].probs
    torch.testing.assert_close(exact_posterior(pair, x).responsibilities["c"], want.detach(), **TIGHT)


@pytest.mark.parametrize("make", [exact_posterior, mean_field_posterior])
def test_the_expected_complete_likelihood_moves_with_the_model_and_q_does_not(make):
    """F(q, theta') = E_q [log p(x, c; theta')] + H[q], by hand, and its gradient at theta is that of log p(x)."""
    x = blobs(9)
    pair = mixture(x)
    posterior = make(pair, x)
    q = posterior.responsibilities["c"]
    parameters = list(pair.parameters())
    got, want = (torch.autograd.grad(v.sum(), parameters) for v in (posterior.per_datum(), pair.log_prob(x)))
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, **TIGHT)  # Fisher's identity
    with torch.no_grad():
        pair.locs += 0.3
        pair.log_weights += torch.tensor([0.2, 0.0, -0.5])
    each = dist.Normal(pair.locs, pair.log_scales.exp()).to_event(1).log_prob(x[:, None])
    complete = (q * (pair.log_weights.log_softmax(-1) + each)).sum(-1) - (q * q.log()).sum(-1)
    torch.testing.assert_close(posterior.per_datum(), complete, **TIGHT)
    assert (complete < pair.log_prob(x)).all()
    torch.testing.assert_close(posterior.responsibilities["c"], q)


def free_energy(table, factors):
    """E_q [log joint] + H[q] of one datum by brute force."""
    total = 0.0
    for key, value in table.items():
        q = torch.stack([factor[k] for factor, k in zip(factors, key, strict=True)]).prod()
        total = total + q * (value - q.log())
    return total


def test_mean_field_is_coordinate_ascent_by_brute_force():
    pair, (x, words) = Factorial(), Factorial.data()
    exact = log_marginal(pair, x, words).detach()
    got = {sweeps: mean_field_posterior(pair, x, words, sweeps=sweeps) for sweeps in (1, 2, 30)}
    for n in range(len(x)):
        table = {key: value.detach() for key, value in pair.joint(x[n], words[:, n]).items()}
        factors = [torch.full((c,), 1 / c, dtype=torch.float64) for c in (2, 2, 3, 3, 3)]
        values = []
        for sweep in range(1, 3):
            for i, factor in enumerate(factors):
                expected = torch.zeros_like(factor)
                for key, value in table.items():
                    others = [f[k] for j, (f, k) in enumerate(zip(factors, key, strict=True)) if j != i]
                    expected[key[i]] += torch.stack(others).prod() * value
                factors[i] = expected.softmax(0)
                values.append(free_energy(table, factors))
            q = got[sweep].responsibilities
            for mine, want in zip([q["a"][n], q["b"][n], *q["s"][:, n]], factors, strict=True):
                torch.testing.assert_close(mine, want, **TIGHT)
            torch.testing.assert_close(got[sweep].per_datum()[n], values[-1], **TIGHT)
        assert all(b >= a - 1e-12 for a, b in itertools.pairwise(values))
        assert got[30].per_datum()[n] < exact[n]
    again = mean_field_posterior(pair, x, words, sweeps=1, start=got[30].responsibilities)
    torch.testing.assert_close(again.per_datum(), got[30].per_datum(), rtol=0, atol=1e-9)  # a fixed point


def test_impossible_values_get_no_probability():
    x = torch.tensor([0.1, 0.9], dtype=torch.float64)
    given_c = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6], [0.0, 0.0, 1.0]], dtype=x.dtype)

    def model(x):
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(logits=x.new_tensor([0.5, 0.5, 0.0]).log()))
            d = pyro.sample("d", dist.Categorical(logits=given_c.log()[c]))
            pyro.sample("x", dist.Normal(1.0 * c + d, 1.0), obs=x)

    pair = (model, lambda x: None)
    exact, factorised = exact_posterior(pair, x), mean_field_posterior(pair, x)
    for posterior in (exact, factorised):
        assert torch.isfinite(posterior.per_datum()).all()
        assert (posterior.responsibilities["c"][:, 2] == 0).all()
    assert (factorised.per_datum() < exact.per_datum()).all()


@pytest.mark.parametrize("make", [exact_posterior, mean_field_posterior])
def test_one_datum(make):
    x = blobs(3)
    pair = mixture(x)
    want = make(pair, x).responsibilities["c"][:1]
    torch.testing.assert_close(make(pair, x[:1]).responsibilities["c"], want, **TIGHT)


def test_what_cannot_be_summed_is_refused_by_name():
    x = LinearGaussian().sample(3)
    with pytest.raises(ValueError, match=r"latent site 'z' \(.*\) has no finite list of values"):
        log_marginal(LinearGaussian(), x)
    with pytest.raises(ValueError, match=r"the guide samples \['z'\], so that log p\(x\) is not"):
        MarginalLikelihood().differentiable_loss(Mixture().model, Mixture().guide, x[:, 0])
    with pytest.raises(ValueError, match="sweeps is 0"):
        mean_field_posterior(mixture(blobs()), blobs(), sweeps=0)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.3)))
            with pyro.plate("words", 6, subsample_size=2, dim=-2):
                pyro.sample("x", dist.Normal(c, 1.0), obs=x.expand(2, -1))

    with pytest.raises(ValueError, match="lies in plate 'words', which subsamples"):
        mean_field_posterior((model, lambda x: None), x[:, 0])


def test_a_log_prior_outside_the_plate_counts_once():
    def model(x):
        pyro.sample("prior", dist.Normal(0.0, 1.0), obs=x.new_tensor(2.0))
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Bernoulli(x.new_tensor(0.3)))
            pyro.sample("x", dist.Normal(c, 1.0), obs=x)

    x = torch.tensor([0.3, 2.0], dtype=torch.float64)
    pair = (model, lambda x: None)
    want = log_marginal(pair, x).mean() + dist.Normal(0.0, 1.0).log_prob(x.new_tensor(2.0)) / 2
    torch.testing.assert_close(exact_posterior(pair, x).mean(), want, **TIGHT)


def test_elbo_is_the_same_function_here():
    x = blobs()
    pair = mixture(x)
    values = [objective.loss(pair.model, pair.guide, x) for objective in (ELBO(), MarginalLikelihood())]
    assert values[0] == pytest.approx(values[1], rel=1e-12)
