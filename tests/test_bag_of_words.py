import math
from itertools import product

import pytest
import torch
from torch.distributions import Multinomial

from pyrovae import conditionals as c
from pyrovae.conditionals.topics import ShiftedBatchNorm
from pyrovae.distributions import BagOfWords, log_coefficient


@pytest.fixture(autouse=True)
def _seeded_float64():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


def documents(length):
    """All counts of `length` words among three."""
    return torch.tensor([x for x in product(range(length + 1), repeat=3) if sum(x) == length]).double()


# the distribution


def test_density_is_torchs_multinomial_row_by_row():
    logits = torch.randn(4, 3, 7)
    x = torch.poisson(torch.full((3, 7), 1.5))
    x[0] = 0
    got = BagOfWords(x.sum(-1), logits=logits).log_prob(x)
    assert got.shape == (4, 3)
    for k, row in product(range(4), range(3)):
        length = int(x[row].sum())
        want = Multinomial(length, logits=logits[k, row]).log_prob(x[row]) if length else torch.tensor(0.0)
        torch.testing.assert_close(got[k, row], want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(BagOfWords(logits=logits).log_prob(x), got, rtol=0, atol=0)
    torch.testing.assert_close(BagOfWords(x.sum(-1), 3 * logits.exp()).log_prob(x), got, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("length", [0, 1, 4])
def test_masses_of_one_length_sum_to_one_and_of_others_to_zero(length):
    d = BagOfWords(torch.tensor(float(length)), torch.tensor([0.2, 0.5, 0.3]))
    torch.testing.assert_close(d.log_prob(documents(length)).exp().sum(), torch.tensor(1.0))
    assert (d.log_prob(documents(length + 1)) == -math.inf).all()
    if length:
        assert (d.log_prob(documents(length - 1)) == -math.inf).all()


def test_words_in_one_order_have_no_coefficient():
    p, order = torch.tensor([0.2, 0.5, 0.3]), [0, 2, 2, 1, 2]
    x = torch.bincount(torch.tensor(order), minlength=3).double()
    d = BagOfWords(probs=p)
    torch.testing.assert_close(d.word_log_prob(x), p[order].log().sum())
    torch.testing.assert_close(log_coefficient(x), torch.tensor(20.0).log())  # 5! / (1! 1! 3!)
    torch.testing.assert_close(d.log_prob(x) - d.word_log_prob(x), log_coefficient(x))


def test_words_without_probability():
    probs = torch.tensor([0.0, 0.4, 0.6], requires_grad=True)
    d = BagOfWords(torch.tensor(2.0), probs)
    log_prob = d.log_prob(torch.tensor([0.0, 1.0, 1.0]))
    torch.testing.assert_close(log_prob.exp(), torch.tensor(0.48))
    assert d.log_prob(torch.tensor([1.0, 1.0, 0.0])) == -math.inf
    log_prob.backward()
    assert probs.grad.isfinite().all()


def test_gradients():
    x = torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    for name in ("probs", "logits"):
        value = torch.rand(2, 3).requires_grad_()
        assert torch.autograd.gradcheck(lambda v, n=name: BagOfWords(x.sum(-1), **{n: v}).log_prob(x), [value])


@pytest.mark.parametrize("words", [1, 2, 3, 7, 8])
def test_replicates_keep_each_documents_length(words):
    lengths = torch.tensor([0.0, 1.0, 5.0, 300.0])
    x = BagOfWords(lengths, logits=torch.randn(2, 1, words)).sample((50,))
    assert x.shape == (50, 2, 4, words)
    assert torch.equal(x.sum(-1), lengths.expand(50, 2, 4))
    assert (x >= 0).all()
    assert torch.equal(x, x.round())


def test_frequencies_of_samples_are_the_masses():
    """All documents of three words among three, and the moments of long ones."""
    n, p = 40_000, torch.tensor([0.2, 0.5, 0.3])
    d = BagOfWords(torch.tensor(3.0), p)
    x, values = d.sample((n,)), documents(3)
    frequencies = (x[:, None] == values).all(-1).double().mean(0)
    mass = d.log_prob(values).exp()
    z = (frequencies - mass) / (mass * (1 - mass) / n).sqrt()
    torch.testing.assert_close(z, torch.zeros(len(values)), atol=4, rtol=0)
    d = BagOfWords(torch.tensor(40.0), torch.tensor([0.1, 0.05, 0.5, 0.0, 0.35]))
    x = d.sample((n,))
    some = d.variance > 0
    assert some.tolist() == [True, True, True, False, True]
    assert (x[:, 3] == 0).all()
    error = ((x.mean(0) - d.mean)[some] / (d.variance[some] / n).sqrt()).abs()
    assert (error < 4).all()
    squares = (x - d.mean)[:, some] ** 2
    assert ((squares.mean(0) - d.variance[some]).abs() < 4 * squares.std(0) / math.sqrt(n)).all()
    covariance = ((x - d.mean)[:, 0] * (x - d.mean)[:, 2]).mean()
    assert abs(covariance + 40 * 0.1 * 0.5) < 4 * 10 / math.sqrt(n)


def test_expansion_and_shapes():
    d = BagOfWords(torch.tensor([1.0, 2.0]), logits=torch.randn(3))
    assert (d.batch_shape, d.event_shape) == ((2,), (3,))
    e = d.expand((4, 2))
    x = e.sample()
    assert x.shape == (4, 2, 3)
    assert torch.equal(e.log_prob(x), d.log_prob(x))
    assert torch.equal(e.mean, d.mean.expand(4, 2, 3))
    assert d.support.check(x).all()
    assert not e.has_rsample
    assert not e.has_enumerate_support
    assert BagOfWords(logits=torch.randn(3)).expand((2,)).log_prob(x[0]).shape == (2,)


def test_bad_values_are_refused():
    p = torch.tensor([0.5, 0.5])
    for wrong in ([-1.0, 2.0], [0.5, 0.5], [math.nan, 1.0]):
        with pytest.raises(ValueError, match="support"):
            BagOfWords(probs=p).log_prob(torch.tensor(wrong))
    for wrong in (-1.0, 1.5):
        with pytest.raises(ValueError, match=f"total_count has {wrong:g}, whole numbers"):
            BagOfWords(torch.tensor([1.0, wrong]), probs=p).sample()
    with pytest.raises(ValueError, match="one is wanted; pass logits="):
        BagOfWords(probs=p, logits=p)
    with pytest.raises(ValueError, match="one is wanted; pass logits="):
        BagOfWords()
    for asked in (lambda d: d.sample(), lambda d: d.mean, lambda d: d.variance):
        with pytest.raises(ValueError, match=r"pass x\.sum\(-1\)"):
            asked(BagOfWords(probs=p))


# the conditionals


def test_softmax_decoder_by_hand():
    likelihood, h = c.BagOfWords(2, 5), torch.randn(3, 4, 2)
    weight, bias = likelihood.head.layer.weight, likelihood.head.layer.bias
    want = torch.softmax(torch.einsum("kbl,vl->kbv", h, weight) + bias, -1)
    torch.testing.assert_close(likelihood(h).probs, want)
    assert torch.equal(likelihood.topics, weight.T)
    assert likelihood(h, torch.tensor([1.0, 2, 3, 4])).sample().sum(-1).tolist() == [[1, 2, 3, 4]] * 3


def test_mixture_sums_the_words_topics():
    likelihood, h = c.TopicMixture(2, 5), torch.randn(3, 2)
    theta, beta = h.softmax(-1), likelihood.topics.exp()
    torch.testing.assert_close(beta.sum(-1), torch.ones(2))
    want = theta[:, :1] * beta[0] + theta[:, 1:] * beta[1]
    torch.testing.assert_close(likelihood(h).probs, want)
    noisy = c.TopicMixture(2, 5, dropout=0.9)
    torch.testing.assert_close(noisy(h).probs.sum(-1), torch.ones(3))  # with all topics dropped too
    assert noisy(h).log_prob(torch.ones(5)).isfinite().all()


def test_product_of_experts_in_training_and_in_evaluation():
    likelihood, h = c.ProductOfExperts(2, 5, dropout=0.0), torch.randn(3, 4, 2)
    with torch.no_grad():
        likelihood.norm.shift.copy_(torch.randn(5))
    logits = h.softmax(-1) @ likelihood.topics
    mean, variance = logits.mean((0, 1)), logits.var((0, 1), correction=0)
    want = (logits - mean) / (variance + 1e-3).sqrt() + likelihood.norm.shift
    torch.testing.assert_close(likelihood(h).probs, want.softmax(-1))
    # once: a tenth of the batch's statistics in the running ones
    mean, variance = 0.1 * mean, 0.9 + 0.1 * logits.var((0, 1))
    want = (logits - mean) / (variance + 1e-3).sqrt() + likelihood.norm.shift
    torch.testing.assert_close(likelihood.eval()(h).probs, want.softmax(-1))


def test_word_frequencies_need_the_shift_of_batch_norm():
    """Log-odds without it have mean 0 for every word; the shift alone can give any frequencies, whatever theta."""
    likelihood, h = c.ProductOfExperts(2, 3, dropout=0.0), torch.randn(1000, 2)
    torch.testing.assert_close(likelihood.log_odds(h).mean(0), torch.zeros(3), atol=1e-12, rtol=0)
    with torch.no_grad():
        likelihood.norm.shift.copy_(torch.tensor([0.7, 0.2, 0.1]).log())
    assert "weight" not in dict(likelihood.norm.named_parameters())  # no learned scale
    torch.testing.assert_close(likelihood.log_odds(h).mean(0).exp(), torch.tensor([0.7, 0.2, 0.1]))


def test_normalised_posterior():
    posterior, h = c.NormalisedNormal(6, 2), torch.randn(500, 6)
    with torch.no_grad():
        posterior.norm[0].shift.fill_(0.5)
        posterior.norm[1].shift.fill_(-2.0)
    q = posterior(h)
    loc, scale = q.base_dist.loc, q.base_dist.scale
    torch.testing.assert_close(loc.mean(0), torch.full((2,), 0.5))
    torch.testing.assert_close(scale.log().mean(0), torch.full((2,), -1.0))
    raw = h @ posterior.head.layer.weight.T
    torch.testing.assert_close(
        (loc - 0.5) * (raw[:, :2].var(0, correction=0) + 1e-3).sqrt(), raw[:, :2] - raw[:, :2].mean(0)
    )
    log_variance = (raw[:, 2:] - raw[:, 2:].mean(0)) / (raw[:, 2:].var(0, correction=0) + 1e-3).sqrt() - 2
    torch.testing.assert_close(scale, (log_variance / 2).exp())
    assert c.NormalisedNormal(6, (2, 3))(h).rsample().shape == (500, 2, 3)


def test_batch_norm_of_a_single_row_uses_the_running_statistics():
    norm, x = ShiftedBatchNorm(3), torch.randn(1, 3)
    torch.testing.assert_close(norm(x), x / math.sqrt(1 + 1e-3))
    assert torch.equal(norm.running_mean, torch.zeros(3))


@pytest.mark.parametrize("kind", [c.BagOfWords, c.ProductOfExperts, c.TopicMixture])
def test_bad_shapes_and_rates_are_refused(kind):
    with pytest.raises(ValueError, match=r"event_shape is \(2, 3\) and feature_shape \(4,\), vectors are wanted"):
        kind(4, (2, 3))
    if kind is not c.BagOfWords:
        with pytest.raises(ValueError, match=r"dropout is 1.0, expected at least 0 and below 1"):
            kind(4, 3, dropout=1.0)
