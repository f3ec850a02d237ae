"""The decomposition of the KL by the aggregate posterior, and its mini-batch estimators, against sums by hand."""

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian, Mixture
from pyro import poutine
from pyro.poutine.trace_struct import Trace
from torch import Tensor, nn

from pyrovae.models.base import Functions, Pair, structure
from pyrovae.objectives import ELBO, TotalCorrelation, decomposition, ledger
from pyrovae.objectives.total_correlation import stratified, weighted
from pyrovae.training.schedules import Linear
from pyrovae.training.step import Step


class Codes(Pair):
    """z ~ N(0.2, 1.3^2)^3, x | z ~ N(A z, 1); q(z | x) is diagonal."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.decoder = nn.Parameter(torch.randn(3, 2, generator=generator, dtype=torch.float64))
        self.encoder = nn.Parameter(torch.randn(2, 3, generator=generator, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor([-0.5, 0.1, -1.0], dtype=torch.float64))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_full((3,), 0.2), 1.3).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.decoder, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.encoder, self.log_scale.exp()).to_event(1))


X = torch.tensor([[0.5, 1.0], [-1.0, 0.2], [0.3, -0.7], [2.0, 0.1], [-0.4, 1.5]], dtype=torch.float64)


def by_hand(pair: Codes, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The three parts at z (K, B, 3), all data being the batch: one datum, one particle, one sum at a time."""
    parts = torch.zeros(3, *z.shape[:2], dtype=torch.float64)
    prior = dist.Normal(x.new_tensor(0.2), 1.3)
    q = [dist.Normal(row @ pair.encoder, pair.log_scale.exp()) for row in x]
    for k, i in itertools.product(range(len(z)), range(len(x))):
        each = torch.stack([q_j.log_prob(z[k, i]).exp() for q_j in q])  # (N, 3)
        log_q_z, log_product = each.prod(1).mean().log(), each.mean(0).log().sum()
        parts[0, k, i] = q[i].log_prob(z[k, i]).sum() - log_q_z
        parts[1, k, i] = log_q_z - log_product
        parts[2, k, i] = log_product - prior.log_prob(z[k, i]).sum()
    return parts.unbind(0)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_all_data_at_once_is_exact(num_particles):
    pair = Codes()
    drawn = ledger(pair, X, num_particles=num_particles)
    z = drawn.values["z"].reshape(num_particles, 5, 3)
    for got, want in zip(decomposition(drawn), by_hand(pair, X, z), strict=True):
        assert got.shape == (num_particles, 5)
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)
    mi, tc, kl = decomposition(drawn, estimator=weighted)
    offset, (want_mi, want_tc, want_kl) = math.log(5), by_hand(pair, X, z)
    torch.testing.assert_close(mi, want_mi + offset, rtol=0, atol=1e-10)  # known, and said so
    torch.testing.assert_close(tc, want_tc + 2 * offset, rtol=0, atol=1e-10)
    torch.testing.assert_close(kl, want_kl - 3 * offset, rtol=0, atol=1e-10)


def test_a_pair_that_loops_over_particles_has_the_same_parts():
    pair = Codes()
    known = structure(pair, X)
    known.vectorises = False
    drawn = ledger(pair, X, num_particles=3, known=known)
    for got, want in zip(decomposition(drawn), by_hand(pair, X, drawn.values["z"]), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-10)


def test_mean_parts_are_information_and_divergences_by_enumeration():
    """z of two bits: mutual information, total correlation and dimension-wise KL from the table of q(x, z)."""
    q = torch.tensor([[0.9, 0.2], [0.3, 0.6], [0.7, 0.8]], dtype=torch.float64)  # q(z_j = 1 | x)
    prior = torch.tensor([0.4, 0.7], dtype=torch.float64)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(prior).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(q).to_event(1))

    x = torch.zeros(3, dtype=torch.float64)
    known = structure((model, guide), x)
    total = torch.zeros(3, dtype=torch.float64)
    table = {}
    for bits in itertools.product((0.0, 1.0), repeat=2):
        z = torch.tensor(bits, dtype=torch.float64).expand(3, 2)
        chosen = Trace()
        chosen.add_node("z", name="z", type="sample", value=z, is_observed=False, infer={})
        parts = decomposition(ledger(Functions(model, poutine.replay(guide, trace=chosen)), x, known=known))
        table[bits] = dist.Bernoulli(q).log_prob(z).sum(1).exp()  # q(z | x), (3,)
        total += torch.stack([(table[bits] * part[0]).sum() / 3 for part in parts])
    joint = torch.stack([table[b] for b in sorted(table)]) / 3  # (4, 3), q(z, x)
    q_z = joint.sum(1)
    bit = q.mean(0)
    product = torch.stack([torch.where(torch.tensor(b) > 0, bit, 1 - bit).prod() for b in sorted(table)])
    information = (joint * (joint / (q_z[:, None] * joint.sum(0))).log()).sum()
    dependence = (q_z * (q_z / product).log()).sum()
    kl = torch.distributions.kl_divergence(dist.Bernoulli(bit), dist.Bernoulli(prior)).sum()
    torch.testing.assert_close(total, torch.stack([information, dependence, kl]), rtol=0, atol=1e-12)
    assert dependence > 1e-3


def test_a_mean_field_aggregate_has_no_total_correlation():
    """Where q(z | x) is the same for all data, q(z) is that: I and TC are 0 at each sample."""
    pair = Codes()
    pair.encoder.data.zero_()
    mi, tc, kl = decomposition(ledger(pair, X, num_particles=4))
    torch.testing.assert_close(mi, torch.zeros_like(mi), rtol=0, atol=1e-12)
    torch.testing.assert_close(tc, torch.zeros_like(tc), rtol=0, atol=1e-12)
    assert kl.abs().min() > 0


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize("estimator", [stratified, weighted])
def test_all_weights_one_are_the_elbo(estimator, num_particles):
    pair, values = Codes(), []
    of_tc = TotalCorrelation(num_particles, beta=1.0, estimator=estimator, data_size=40)
    assert of_tc.is_bound
    assert not TotalCorrelation().is_bound
    for objective in (of_tc, ELBO(num_particles, closed_form=False)):
        step = Step(pair, objective, structure(pair, X))
        pyro.set_rng_seed(0)
        loss = step(X)
        values.append([loss, *torch.autograd.grad(loss, list(pair.parameters()))])
    for a, b in zip(*values, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)


def test_weights_are_on_their_parts():
    pair = Codes()
    drawn = ledger(pair, X)
    mi, tc, kl = by_hand(pair, X, drawn.values["z"][None])
    log_x = dist.Normal(drawn.values["z"] @ pair.decoder, 1.0).log_prob(X).sum(-1)
    got = TotalCorrelation(alpha=0.3, beta=6.0, gamma=2.0).per_datum(drawn)
    torch.testing.assert_close(got, (log_x - 0.3 * mi - 6 * tc - 2 * kl)[0], rtol=0, atol=1e-10)
    warm = TotalCorrelation(beta=Linear(0.0, 6.0, epochs=4).double())
    torch.testing.assert_close(warm.per_datum(drawn), (log_x - mi - kl)[0], rtol=0, atol=1e-10)
    torch.testing.assert_close(
        warm.for_validation().per_datum(drawn), (log_x - mi - 6 * tc - kl)[0], rtol=0, atol=1e-10
    )


def test_the_size_is_that_of_a_plate_that_subsamples():
    class Inside(Codes):
        def model(self, x):
            with pyro.plate("data", 40, subsample=torch.arange(len(x))):
                z = pyro.sample("z", dist.Normal(x.new_full((3,), 0.2), 1.3).to_event(1))
                pyro.sample("x", dist.Normal(z @ self.decoder, 1.0).to_event(1), obs=x)

        def guide(self, x):
            with pyro.plate("data", 40, subsample=torch.arange(len(x))):
                pyro.sample("z", dist.Normal(x @ self.encoder, self.log_scale.exp()).to_event(1))

    values = []
    for each, objective in ((Inside(), TotalCorrelation()), (Codes(), TotalCorrelation(data_size=40))):
        pyro.set_rng_seed(0)
        values.append(objective.per_datum(ledger(each, X, known=structure(each, X))))
    torch.testing.assert_close(*values, rtol=1e-14, atol=0)


# Estimators -----------------------------------------------------------------------------------------------------------


def densities() -> Tensor:
    """q(z_i | x_j) of five data, for z drawn at each."""
    drawn = ledger(Codes(), X)
    z, base = drawn.values["z"], drawn.terms[-1].site["fn"]
    return base.log_prob(z[:, None]).detach()


def batches(rows: int):
    """Every batch of that many of the five data that has datum 0, which comes first."""
    for others in itertools.combinations(range(1, 5), rows - 1):
        yield [0, *others]


@pytest.mark.parametrize("rows", [2, 3, 4])
def test_stratified_is_unbiased_before_the_log_and_low_after(rows):
    log_q = densities()
    exact = log_q[0].exp().mean()
    estimates = torch.stack([stratified(log_q[b][:, b], 5)[0] for b in batches(rows)])
    torch.testing.assert_close(estimates.exp().mean(), exact, rtol=1e-12, atol=0)
    assert estimates.mean() < exact.log() - 1e-4
    assert estimates.exp().std() > 1e-4 * exact


def test_stratified_is_the_papers_estimator_averaged_over_orders():
    """q(z | n*) / N + 1/M sum_{m < M} q(z | n_m) + (N - M) / (N M) q(z | n_M), for a batch of M + 1."""
    log_q, size, m = densities()[:4, :4], 5, 3
    q = log_q[0].exp()
    papers = [
        q[0] / size + (q[i] + q[j]) / m + (size - m) / (size * m) * q[last]
        for i, j, last in itertools.permutations((1, 2, 3))
    ]
    torch.testing.assert_close(stratified(log_q, size)[0].exp(), torch.stack(papers).mean(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("rows", [2, 3])
def test_weighted_is_a_lower_bound(rows):
    """Over all batches that have datum 0 and others drawn with replacement, as the paper's argument takes them.

    The bound is on the mean over z too: E log 1/(N B) sum_j q(z | x_j) <= E log q(z).
    """
    log_q, exact, estimates = densities(), [], []
    for own in range(5):
        exact.append(log_q[own].logsumexp(0) - math.log(5))
        for others in itertools.product(range(5), repeat=rows - 1):
            b = [own, *others]
            estimates.append(weighted(log_q[own][b].expand(rows, rows), 5)[0])
    gap = torch.stack(exact).mean() - torch.stack(estimates).mean()
    assert gap > 0.05
    torch.testing.assert_close(weighted(log_q, 5), log_q.logsumexp(1) - 2 * math.log(5), rtol=1e-12, atol=0)


def test_one_row_of_many_is_refused():
    with pytest.raises(ValueError, match="the batch has one of 7 data, of which no aggregate posterior can be told"):
        stratified(torch.zeros(1, 1), 7)
    assert stratified(torch.zeros(1, 1), 1).item() == 0


# Refusals -------------------------------------------------------------------------------------------------------------


def nested(x):
    with pyro.plate("data", len(x), dim=-1), pyro.plate("words", 2, dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)


def nested_guide(x):
    with pyro.plate("data", len(x), dim=-1), pyro.plate("words", 2, dim=-2):
        pyro.sample("z", dist.Normal(0.0, 1.0))


def masked(pair: Codes) -> Functions:
    mask = torch.tensor([True, False, True, True, True])
    return Functions(*(poutine.mask(f, mask=mask) for f in (pair.model, pair.guide)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: (Mixture(), X[:, 0]), r"latent sites \['c', 'z'\], of which \[\] are global and \['c'\] enumerated"),
        (lambda: (LinearGaussian(2), X), "latent site 'z' is MultivariateNormal, whose dims depend on each other"),
        (lambda: ((nested, nested_guide), X), r"latent site 'z' lies inside the plates \['words'\] too"),
        (lambda: (masked(Codes()), X), "latent site 'z' is under poutine.mask"),
    ],
)
def test_other_latents_are_refused_by_name(make, message):
    pair, x = make()
    with pytest.raises(ValueError, match=message):
        TotalCorrelation().per_datum(ledger(pair, x))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match="gamma is -1, a number of at least 0"):
        TotalCorrelation(gamma=-1)
    with pytest.raises(ValueError, match="data_size is -4; pass a whole number of at least 1"):
        TotalCorrelation(data_size=-4)
    with pytest.raises(ValueError, match="data_size is 3, the batch alone has 5 rows; pass the size of the data set"):
        TotalCorrelation(data_size=3).per_datum(ledger(Codes(), X))


def test_discrete_codes_are_refused_in_training_by_name():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=x * pyro.param("slope", torch.tensor(1.0))).to_event(1))

    with pytest.raises(ValueError, match=r"guide site 'z' .* has no reparametrised samples"):
        Step((model, guide), TotalCorrelation(), structure((model, guide), X))(X)
