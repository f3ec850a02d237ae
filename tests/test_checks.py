"""Predictive checks: p-values against the distributions they must have, replicates against closed forms."""

import json
import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian, Mixture
from pyro import poutine
from pyro.distributions import constraints
from scipy import stats
from torch import nn

from pyrovae.checks import STATISTICS, Check, check, p_value, replicate
from pyrovae.data import Split, bernoulli, incomplete, load
from pyrovae.evaluation import generate
from pyrovae.models import VAE, GaussianMixture, PartialVAE
from pyrovae.models.base import Pair

DATA_SETS, REPLICATES = 300, 19  # p-values are exactly uniform at any number of replicates


class Bits(Pair):
    """z ~ N(0, 1), x | z ~ Bernoulli(sigmoid(z w)): few and discrete data, so that most replicates tie."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.5, -0.5, 0.3]))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Bernoulli(logits=z[..., None] * self.weight).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x.sum(-1) - 1.5, 0.8))

    def sample(self, rows, seed):
        generator = torch.Generator().manual_seed(seed)
        z = torch.randn(rows, 1, generator=generator)
        return torch.rand(rows, 3, generator=generator).lt(torch.sigmoid(z * self.weight)).float()


def total(x):
    return x.sum()


def simulated(pair, rows, statistics, source):
    """p-values of DATA_SETS data sets that the pair's model itself made, by statistic."""
    p_values = {}
    for seed in range(DATA_SETS):
        x = pair.sample(rows, seed=1000 + seed)
        checked = check(pair, x, statistics, sources=source, num_replicates=REPLICATES, seed=seed)
        assert not checked.constant
        for row in checked.rows:
            p_values.setdefault(row.statistic, []).append(row.p_value)
    return {name: np.array(values) for name, values in p_values.items()}


@pytest.mark.parametrize("pair", [LinearGaussian(), Bits()], ids=["gaussian", "bits"])
def test_prior_predictive_p_values_are_uniform(pair):
    # 6 rows of 3 bits: the total has 19 values, so that about one replicate in ten ties
    statistics = [total, "sd", "neighbour_correlation"]
    for name, p in simulated(pair, 6, statistics, "prior").items():
        counts = np.histogram(p, 10, (0, 1))[0]
        ks, chi_square = stats.kstest(p, "uniform").pvalue, stats.chisquare(counts).pvalue
        print(f"{type(pair).__name__} {name}: mean {p.mean():.3f}, KS {ks:.3f}, chi-square {chi_square:.3f}, {counts}")
        assert len(p) == DATA_SETS
        assert ks > 0.01
        assert chi_square > 0.01


def test_posterior_predictive_p_values_are_conservative_by_as_much_as_they_must():
    """The p-value of a linear statistic a'x is Phi(rho Z), Z ~ N(0, 1), in closed form.

    With C = WW' + s^2 I, x - E[x_rep | x] = s^2 C^-1 (x - b) and cov(x_rep | x) = 2 s^2 I - s^4 C^-1, so that
    rho^2 = a' s^4 C^-1 a / a' (2 s^2 I - s^4 C^-1) a, and the variance is arcsin(rho^2 / (1 + rho^2)) / (2 pi).
    R replicates add the noise of their ranks.
    """
    pair = LinearGaussian()
    weight, noise = pair.weight.detach(), pair.scale**2 * torch.eye(5, dtype=torch.float64)
    fitted = torch.linalg.svd(weight).U[:, 0]  # where z accounts for most of x
    directions = {"total": torch.ones(5, dtype=torch.float64), "fitted": fitted}
    statistics = {"total": total, "fitted": lambda x: (x @ fitted).sum(), "sd": "sd", "max": "max"}
    squared = noise @ torch.linalg.inv(weight @ weight.T + noise) @ noise
    for name, p in simulated(pair, 6, statistics, "posterior").items():
        error = p.std(ddof=1) / math.sqrt(len(p))
        error_of_variance = ((p - p.mean()) ** 2).std() / math.sqrt(len(p))
        print(f"{name}: mean {p.mean():.3f} +- {error:.3f}, variance {p.var():.4f} +- {error_of_variance:.4f}")
        assert abs(p.mean() - 0.5) < 4 * error
        assert p.var() < 1 / 12 + 4 * error_of_variance
        if name in directions:
            a = directions[name]
            ratio = (a @ squared @ a / (a @ (2 * noise - squared) @ a)).item()
            exact = math.asin(ratio / (1 + ratio)) / (2 * math.pi)
            exact = (REPLICATES * (0.25 - exact) + 1 / 12 + REPLICATES**2 * exact) / (REPLICATES + 1) ** 2
            print(f"{name}: exact variance {exact:.4f}, of a uniform one {1 / 12:.4f}")
            assert abs(p.var() - exact) < 4 * error_of_variance
        if name == "fitted":
            assert p.var() < 0.3 / 12


def tails(checked):
    return {(row.statistic, row.source): row.p_value for row in checked.rows}


def test_both_kinds_see_overdispersed_and_heavy_tailed_data():
    pair = LinearGaussian()
    generator = torch.Generator().manual_seed(5)
    fair = tails(check(pair, pair.sample(60)))
    assert all(0.01 < p < 0.99 for p in fair.values())
    wide = pair.sample(60) + 2 * torch.randn(60, 5, generator=generator, dtype=torch.float64)
    heavy = pair.sample(60)
    heavy[::20] += 15 * torch.randn(3, 5, generator=generator, dtype=torch.float64)
    for x in (wide, heavy):
        p = tails(check(pair, x))
        for source in ("posterior", "prior"):
            assert p["sd", source] < 0.01  # the data's value is beyond all replicates: P(T_rep >= T) is small
            assert p["spread_of_totals", source] < 0.01
    for source in ("posterior", "prior"):  # of the heavy-tailed ones
        assert p["max", source] < 0.01
        assert p["min", source] > 0.99


def test_both_kinds_see_correlation_that_the_model_lacks():
    pair = LinearGaussian(data_dim=4, latent_dim=1, scale=1.0)
    with torch.no_grad():
        pair.weight.zero_()
        pair.bias.zero_()
    generator = torch.Generator().manual_seed(6)
    z, noise = (torch.randn(100, n, generator=generator, dtype=torch.float64) for n in (1, 4))
    p = tails(check(pair, 0.5**0.5 * (z + noise)))  # entries are N(0, 1) with correlation 1/2
    for source in ("posterior", "prior"):
        assert p["neighbour_correlation", source] < 0.01
        assert p["spread_of_totals", source] < 0.01
        assert 0.01 < p["sd", source] < 0.99


def test_ties_by_hand():
    replicated = torch.tensor([1.0, 2.0, 2.0, 3.0, 5.0])
    # above 2: two; equal: two, and the data themselves; R + 1 = 6
    assert p_value(2.0, replicated, uniform=0.0) == pytest.approx(2 / 6)
    assert p_value(2.0, replicated, uniform=0.5) == pytest.approx(3.5 / 6)
    assert p_value(2.0, replicated, uniform=1.0) == pytest.approx(5 / 6)
    assert p_value(9.0, replicated, uniform=1.0) == pytest.approx(1 / 6)
    assert p_value(0.0, replicated, uniform=0.0) == pytest.approx(5 / 6)
    # a discrepancy T(x, z) has a value of its own for each replicate
    assert p_value(torch.tensor([0.0, 3.0, 2.0, 2.0, 9.0]), replicated, uniform=0.5) == pytest.approx(3 / 6)


def z_scores(draws, loc, covariance):
    """Standardised differences of draws (R, D) from a mean and a covariance, of every entry."""
    count = len(draws)
    centred = draws - loc
    found = centred.T @ centred / count
    variance = covariance.diagonal()
    error = ((variance[:, None] * variance + covariance**2) / count).sqrt()
    return torch.cat([centred.mean(0) / (variance / count).sqrt(), ((found - covariance) / error).flatten()])


class Looped(LinearGaussian):
    """The same with code that knows no particles."""

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1)).view(len(x), 2)
            pyro.sample("x", dist.Normal(z @ self.weight.T + self.bias, self.scale).to_event(1), obs=x)


@pytest.mark.parametrize("pair_type", [LinearGaussian, Looped])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_replicates_have_the_moments_of_the_closed_form(pair_type, batch_size):
    pair = pair_type()
    x = pair.sample(3)
    count = 1500 if batch_size is None else 400
    weight, bias, noise = pair.weight.detach(), pair.bias.detach(), pair.scale**2 * torch.eye(5, dtype=torch.float64)
    loc, covariance = (tensor.detach() for tensor in pair.posterior(x))
    if pair_type is Looped and batch_size is None:  # else there is one replicate at a time anyway
        with pytest.warns(UserWarning, match="does not vectorise"):
            posterior = torch.stack(list(replicate(pair, x, num_replicates=count)))
        with pytest.warns(UserWarning, match="does not vectorise"):
            prior = torch.stack(list(replicate(pair, x, source="prior", num_replicates=count)))
    else:
        posterior = torch.stack(list(replicate(pair, x, num_replicates=count, batch_size=batch_size)))
        prior = torch.stack(list(replicate(pair, x, source="prior", num_replicates=count, batch_size=batch_size)))
    assert posterior.shape == prior.shape == (count, 3, 5)
    assert not posterior.requires_grad
    for draws in (posterior, prior):
        assert not (draws == x).any()
        assert len(draws.unique()) == draws.numel()
    scores = [z_scores(prior[:, row], bias, weight @ weight.T + noise) for row in range(3)]
    for row in range(3):
        scores.append(z_scores(posterior[:, row], weight @ loc[row] + bias, weight @ covariance @ weight.T + noise))
    print("largest z-score", torch.cat(scores).abs().max())
    assert torch.cat(scores).abs().max() < 4
    for draws in (posterior, prior):  # rows of a replicate are independent given the data, and replicates too
        first, second = draws[:, 0] - draws[:, 0].mean(0), draws[:, 1] - draws[:, 1].mean(0)
        across = (first.T @ second / count) / (first.std(0)[:, None] * second.std(0))
        following = (first[1:] * first[:-1]).mean(0) / first.var(0)
        assert across.abs().max() < 4 / math.sqrt(count)
        assert following.abs().max() < 4 / math.sqrt(count)


def test_summed_sites_are_drawn_given_the_data():
    """x_rep = z + c + noise, z from the guide, c from its posterior given z and x: moments by quadrature."""
    pair = Mixture()
    x = torch.tensor([-2.0, 1.0, 6.0], dtype=torch.float64)
    z = torch.linspace(-12, 14, 4001, dtype=torch.float64)[:, None, None]  # (Z, 1, 1)
    c = torch.arange(3.0, dtype=torch.float64)
    loc, logits = pair.loc.detach(), pair.logits.detach()
    log_joint = logits + dist.Normal(loc, 1.0).log_prob(z) + dist.Normal(z + c, 1.0).log_prob(x[:, None])
    q = dist.Normal(0.5 * x, 1.2).log_prob(z[:, 0]).exp()[..., None] * torch.softmax(log_joint, -1)  # (Z, B, C)
    q = q / q.sum((0, 2), keepdim=True)
    mean = (q * (z + c)).sum((0, 2))
    second = (q * ((z + c) ** 2 + 1)).sum((0, 2))
    for batch_size, count in ((2, 400), (None, 4000)):
        draws = torch.stack(list(replicate(pair, x, num_replicates=count, batch_size=batch_size)))
        error = (second - mean**2).sqrt() / math.sqrt(count)
        print("by quadrature", mean, "replicated", draws.mean(0), "standard error", error)
        assert ((draws.mean(0) - mean) / error).abs().max() < 4
        assert ((draws**2).mean(0) - second).abs().max() < 4 * (draws**2).std(0).max() / math.sqrt(count)
    prior = torch.stack(list(replicate(pair, x, source="prior", num_replicates=count))).flatten()
    expected = (torch.softmax(logits, -1) * (loc + c)).sum()
    assert (prior.mean() - expected).abs() < 4 * prior.std() / math.sqrt(3 * count)


@pytest.mark.parametrize("batch_size", [None, 5])  # several replicates at once, one by one
def test_a_summed_site_of_one_value_leaves_no_dim(batch_size):
    pair, x = GaussianMixture(6, 1), torch.zeros(5, 6)
    draws = torch.stack(list(replicate(pair, x, num_replicates=400, batch_size=batch_size)))
    assert draws.shape == (400, 5, 6)
    scale = draws.std((0, 1))
    off = (draws.mean((0, 1)) - pair.component_means[0].detach()) / scale * math.sqrt(2000)
    assert off.abs().max() < 4
    assert check(pair, x + draws[0], ["mean"], num_replicates=5, batch_size=batch_size).rows


def global_model(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x)):
        pyro.sample("x", dist.Normal(loc, 0.1), obs=x)


def global_guide(x):
    pyro.sample("loc", dist.Normal(x.mean(), 0.1 / len(x) ** 0.5))


@pytest.mark.parametrize("batch_size", [2, 1024])
def test_latents_outside_the_plate_are_shared_by_all_rows_of_a_replicate(batch_size):
    x = torch.tensor([1.9, 2.0, 2.0, 2.1])
    pair = (global_model, global_guide)
    prior = torch.stack(list(replicate(pair, x, source="prior", num_replicates=400, batch_size=batch_size)))
    assert prior.shape == (400, 4)
    assert prior.std(1).max() < 0.4
    assert abs(prior.mean(1).var() / (9 + 0.01 / 4) - 1) < 4 * math.sqrt(2 / 400)
    posterior = torch.stack(list(replicate(pair, x, num_replicates=400, batch_size=batch_size)))
    assert abs(posterior.mean(1).var() / (2 * 0.01 / 4) - 1) < 4 * math.sqrt(2 / 400)


def test_a_model_that_subsamples_by_itself_is_shown_every_row():
    def model(x):
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.01), obs=x[rows])

    def guide(x):
        with pyro.plate("data", len(x), subsample_size=4) as rows:
            pyro.sample("z", dist.Normal(x[rows], 0.01))

    x = torch.arange(10.0)
    for batch_size in (None, 5):
        draws = torch.stack(list(replicate((model, guide), x, num_replicates=30, batch_size=batch_size)))
        assert draws.shape == (30, 10)
        assert (draws - x).abs().max() < 0.1
        assert len(draws.unique()) > 250


def test_masked_entries_stay_as_they_are():
    def model(x, kept):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            with pyro.plate("steps", x.size(1), dim=-2), poutine.mask(mask=kept.T):
                pyro.sample("x", dist.Normal(z, 1.0).mask(True), obs=x.T)

    def guide(x, kept):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    x, kept = torch.arange(6.0).reshape(2, 3), torch.tensor([[True, True, False], [True, False, False]])
    for source in ("posterior", "prior"):
        draws = torch.stack(list(replicate((model, guide), (x, kept), source=source, num_replicates=5)))
        assert draws.shape == (5, 2, 3)  # rows first, then the nested plate
        assert ((draws == x) == ~kept).all()


@pytest.mark.parametrize("source", ["posterior", "prior"])
@pytest.mark.parametrize("batch_size", [None, 2])
def test_what_a_distribution_masks_stays_as_it_is(source, batch_size):
    """Elements under the mask of a distribution, rows under one around the event, and all under both."""
    seen = torch.tensor([[True, True, False], [True, False, False], [True, True, True]])
    rows = torch.tensor([True, True, False])

    def model(x, seen, rows):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.expand(*z.shape[:-1], 3), 1.0).mask(seen).to_event(1).mask(rows), obs=x)

    def guide(x, seen, rows):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))

    x = torch.arange(9.0).reshape(3, 3)
    data = (x, seen, rows)
    found = replicate((model, guide), data, source=source, num_replicates=5, batch_size=batch_size)
    assert ((torch.stack(list(found)) == x) == ~(seen & rows[:, None])).all()


def test_a_site_that_is_masked_as_a_whole_is_no_data():
    def model(x):
        with pyro.plate("data", len(x)), poutine.mask(mask=False):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    assert all(torch.equal(rep, torch.arange(4.0)) for rep in replicate((model, guide), torch.arange(4.0)))


def test_p_values_of_incomplete_data_are_uniform():
    """Data of the pair itself, many of them missing: the zeros in their place are not compared."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pair = PartialVAE(3, 1, hidden=(4,))
        p_values = []
        for seed in range(DATA_SETS):
            like = {"x": torch.zeros(1, 3), "mask": torch.ones(1, 3, dtype=torch.bool)}
            x = generate(pair, 8, like=like, sample=True, seed=1000 + seed)
            hidden = torch.rand(8, 3) < 2 / 3
            hidden[:, 0] = False  # a row with nothing observed is refused
            x[hidden] = float("nan")
            checked = check(pair, incomplete(x), total, sources="prior", num_replicates=REPLICATES, seed=seed)
            p_values += [row.p_value for row in checked.rows]
    print(len(p_values), np.histogram(p_values, 10, (0, 1))[0])
    assert len(p_values) > 0.9 * DATA_SETS
    assert stats.kstest(p_values, "uniform").pvalue > 0.01


def image_model(x):
    weight = pyro.param("weight", lambda: 0.1 * torch.randn(2, 16))
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("pixels", dist.Bernoulli(logits=z @ weight).to_event(1), obs=x.reshape(-1, 16))


def image_guide(x):
    scale = pyro.param("scale", torch.ones(2), constraint=constraints.positive)
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(x.reshape(-1, 16)[:, :2], scale).to_event(1))


@pytest.fixture
def own_pair():
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    yield image_model, image_guide
    pyro.clear_param_store()


def test_a_pair_of_functions_with_parameters_of_the_store(own_pair):
    x = (torch.rand(8, 1, 4, 4) < 0.5).float()
    checked = check(own_pair, x, ["mean", "max"], num_replicates=20)
    assert [(row.statistic, row.source) for row in checked.rows] == [("mean", "posterior"), ("mean", "prior")]
    assert checked.constant == ("max (posterior)", "max (prior)")
    assert checked.examples["prior"].shape == (8, 16)  # the site's shape, not the batch's
    assert torch.equal(checked.examples["data"], x.reshape(8, 16))
    before = {name: value.clone() for name, value in pyro.get_param_store().named_parameters()}
    check(own_pair, x, "mean", num_replicates=3)
    for name, value in pyro.get_param_store().named_parameters():
        assert torch.equal(value, before[name])


def test_statistics_by_hand():
    x = torch.tensor([[0.0, 1.0, 5.0], [2.0, 0.0, 5.0], [4.0, 2.0, 5.0]], dtype=torch.float64)
    got = {name: float(statistic(x)) for name, statistic in STATISTICS.items()}
    correlation = 1 / math.sqrt(8 / 3 * 2 / 3)  # of the first pair: covariance 2/3; in the second nothing varies
    covariance = ((x[:, 0] - 2) * (x[:, 1] - 1)).mean().item()
    assert got == pytest.approx(
        {
            "mean": 24 / 9,
            "sd": math.sqrt((8 / 3 + 2 / 3 + 0) / 3),
            "min": 0.0,
            "max": 5.0,
            "zeros": 2 / 9,
            "spread_of_totals": np.std([6, 7, 11]),
            "neighbour_correlation": abs(covariance) * correlation,
        }
    )
    image = torch.randn(50, 1, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    image[:, 0, 1] = image[:, 0, 0]  # two of three rows alike
    found = np.cov(image.reshape(50, 12).numpy(), rowvar=False, ddof=0)
    pairs = [(4 * i + j, 4 * i + j + 1) for i in range(3) for j in range(3)]
    pairs += [(4 * i + j, 4 * i + j + 4) for i in range(2) for j in range(4)]
    want = math.sqrt(sum(found[a, b] ** 2 for a, b in pairs) / sum(found[a, a] * found[b, b] for a, b in pairs))
    assert float(STATISTICS["neighbour_correlation"](image)) == pytest.approx(want, rel=1e-12)
    for scalar in (torch.arange(4.0), torch.ones(4, 3), torch.arange(4)):
        assert float(STATISTICS["neighbour_correlation"](scalar)) == 0
    assert float(STATISTICS["mean"](torch.tensor([1, 2]))) == 1.5


def test_counts_are_compared_as_numbers():
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros((), dtype=torch.float), 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.5 * x, 1.0))

    (draws,) = replicate((model, guide), torch.arange(5), num_replicates=1)
    assert (draws != draws.round()).any()


def test_the_result_as_table_json_and_picture():
    pair = LinearGaussian()
    x = pair.sample(20)
    checked = check(pair, x, {"average": "mean", "middle": torch.median, "one": lambda x: 1.0}, num_replicates=30)
    assert isinstance(checked, Check)
    assert (checked.num_rows, checked.num_replicates) == (20, 30)
    for row in checked.rows:
        assert row.replicated.shape == (30,)
        assert row.tail == 2 * min(row.p_value, 1 - row.p_value)
        want = "posterior predictive, conservative", "prior predictive, uniform under the model"
        assert row.label == want[row.source == "prior"]
        statistic = {"average": torch.mean, "middle": torch.median}[row.statistic]
        assert row.observed == statistic(x).item()
    posterior = torch.stack(list(replicate(pair, x, num_replicates=30)))
    torch.testing.assert_close(checked.rows[0].replicated, posterior.mean((1, 2)), rtol=1e-12, atol=1e-12)
    assert torch.equal(checked.examples["posterior"], posterior[0, :16])
    assert torch.equal(checked.examples["data"], x[:16])
    lines = str(checked).splitlines()
    assert len({len(line) for line in lines if line.startswith("  ")}) == 1  # aligned
    assert (
        sum("conservative" in line for line in lines) == sum("uniform under the model" in line for line in lines) == 1
    )
    assert "one (posterior), one (prior)" in lines[-1]
    found = json.loads(json.dumps(checked.to_dict(), allow_nan=False))
    assert [row["p_value"] for row in found["rows"]] == [row.p_value for row in checked.rows]
    assert found["rows"][0]["replicated_mean"] == pytest.approx(posterior.mean().item())
    assert found["constant"] == ["one (posterior)", "one (prior)"]
    axes = checked.plot()
    assert [ax.get_title(loc="left").split("\n")[0] for ax in axes] == [
        "average, posterior",
        "middle, posterior",
        "average, prior",
        "middle, prior",
    ]
    assert checked.plot(axes)[0] is axes[0]


def test_a_seed_gives_the_same_check_and_nothing_else_changes():
    vae = VAE(
        (1, 4, 4), latent_dim=2, hidden=(8,), encoder=nn.Sequential(nn.Flatten(-3), nn.Linear(16, 8), nn.Dropout())
    )
    x = (torch.rand(30, 1, 4, 4) < 0.3).float()
    torch.manual_seed(1)
    states, modes = torch.get_rng_state(), [module.training for module in vae.modules()]
    parameters = [parameter.clone() for parameter in vae.parameters()]
    first, second = (check(vae, x, num_replicates=40, seed=3) for _ in range(2))
    assert str(first) == str(second)
    iterator = replicate(vae, x, num_replicates=100)
    next(iterator)
    assert torch.equal(torch.get_rng_state(), states)  # between two replicates as well
    assert [module.training for module in vae.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(parameters, vae.parameters(), strict=True))
    assert all(parameter.grad is None for parameter in vae.parameters())
    assert str(check(vae, x, num_replicates=40, seed=4)) != str(first)
    prior, posterior = (next(iter(replicate(vae, x, source=source))) for source in ("prior", "posterior"))
    assert not torch.equal(prior, posterior)


def test_dropout_is_off():
    class Noisy(LinearGaussian):
        def posterior(self, x):
            return super().posterior(self.dropout(x))

    pair = Noisy(scale=1e-3)
    pair.dropout = nn.Dropout(0.5)
    x = pair.sample(4)
    (draws,) = replicate(pair, x, num_replicates=1)
    assert (draws - x).abs().max() < 0.02  # a datum of another place would be far away
    assert pair.dropout.training


def test_rows_transforms_and_dtypes():
    digits = load("digits")
    vae = VAE(digits.event_shape, latent_dim=2, hidden=(8,)).double()  # float32 data follow the pair
    checked = check(vae, digits, ["mean", "zeros"], num_replicates=5)  # of the test split
    assert str(checked) == str(check(vae, digits.test, ["mean", "zeros"], num_replicates=5))
    assert checked.num_rows == 180
    assert checked.examples["data"].dtype == torch.float64
    # the data's own bits are drawn once: they stay bits, and the grey levels do not show
    grey = Split({"x": torch.full((50, 3), 0.5)}, transform=bernoulli)
    bits = Bits()
    state = torch.get_rng_state()
    some = check(bits, grey, "mean", num_replicates=5, max_rows=20)
    assert torch.equal(torch.get_rng_state(), state)
    assert some.num_rows == 20
    assert set(some.examples["data"].unique().tolist()) == {0.0, 1.0}
    rows = torch.arange(40.0)[:, None].expand(40, 3)
    picked = [
        check(bits, rows, "mean", num_replicates=2, max_rows=10, seed=seed).rows[0].observed for seed in (0, 0, 1)
    ]
    assert picked[0] == picked[1] != picked[2]


def test_grey_data_against_a_model_of_bits_are_compared_without_complaint():
    p = tails(check(Bits(), torch.full((20, 3), 0.5), num_replicates=99))
    assert p["sd", "prior"] > 0.99
    assert p["zeros", "posterior"] > 0.99


def two_sites(x, y):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("left", dist.Normal(z, 1.0), obs=x)
        pyro.sample("right", dist.Normal(z + 5, 1.0), obs=y)


def two_sites_guide(x, y):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal((x + y - 5) / 3, 3**-0.5))


def test_a_site_among_several():
    x = (torch.zeros(20), torch.full((20,), 5.0))
    pair = (two_sites, two_sites_guide)
    (right,) = replicate(pair, x, site="right", num_replicates=1)
    assert abs(right.mean() - 5) < 2
    with pytest.raises(ValueError, match=r"several sites; pass site= with one of \['left', 'right'\]"):
        check(pair, x)
    with pytest.raises(ValueError, match="site='z' is no observed site"):
        check(pair, x, site="z")


def test_bad_arguments_say_what_to_pass():
    pair = LinearGaussian()
    x = pair.sample(4)
    for arguments, message in [
        ({"statistics": "neighbor_correlation"}, "did you mean neighbour_correlation"),
        ({"statistics": ["mean", "frobnicate"]}, "there is no statistic 'frobnicate'; pass one of mean, sd"),
        ({"statistics": []}, "statistics is empty"),
        ({"statistics": [lambda x: 0.0, lambda x: 1.0]}, "pass a mapping with a name for each"),
        ({"statistics": {"rows": lambda x: x[0]}}, r"'rows' returns shape \(5,\)"),
        ({"statistics": {"ratio": lambda x: 0 * x.sum() / 0}}, "'ratio' is nan"),
        ({"sources": "postrior"}, "the source of replicates is 'postrior'; pass 'posterior' or 'prior'"),
        ({"sources": ()}, "the source of replicates is empty"),
        ({"num_replicates": 0}, "num_replicates is 0"),
        ({"max_rows": 2.5}, "max_rows is 2.5"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"site": "y"}, r"site='y' is no observed site; pass site= with one of \['x'\]"),
        ({"plate": "rows"}, "plate='rows' is no plate"),
    ]:
        with pytest.raises(ValueError, match=message):
            check(pair, x, **arguments)
    with pytest.raises(TypeError, match="'3' is 3; pass a name"):
        check(pair, x, [3])
    with pytest.raises(ValueError, match="source of replicates is 'x'"):
        replicate(pair, x, source="x")  # at the call, not at the first replicate


def test_a_site_without_rows_is_refused():
    def model(x):
        pyro.sample("total", dist.Normal(0.0, 1.0), obs=x.sum())
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="site 'total' is outside the plate 'data'"):
        check((model, guide), torch.ones(3))


def test_data_of_one_number_each():
    """Of shape (N,), as a regression's are: their totals are themselves."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, 0.5**0.5))

    found = check((model, guide), 2**0.5 * torch.randn(50, generator=torch.Generator().manual_seed(0)))
    assert "spread_of_totals" in str(found)
    x = torch.tensor([1.0, 2.0, 4.0])
    assert STATISTICS["spread_of_totals"](x) == STATISTICS["spread_of_totals"](x[:, None]) == x.std(correction=0)
    assert STATISTICS["neighbour_correlation"](x) == 0
