"""Imputation on linear-Gaussian models, where p(x_mis | x_obs) is a Gaussian that algebra gives."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import GaussianMixture, LinearGaussian, LooseLinearGaussian

import pyrovae as pv
from pyrovae.evaluation import impute, impute_by_gibbs, missing_log_likelihood

MASK = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 1, 0, 0], [1, 1, 0, 1, 1]], dtype=torch.bool)
DRAWS = 3000


class Masked(LinearGaussian):
    """The linear-Gaussian model with p(z | x_obs) as guide, shifted and widened if it is to be wrong."""

    def __init__(self, shift: float = 0.0, widen: float = 1.0):
        super().__init__()
        self.shift, self.widen = shift, widen

    def model(self, x, mask):
        super().model(x)

    def guide(self, x, mask):
        weight = self.weight * mask[:, :, None]  # (B, D, L)
        precision = torch.eye(2, dtype=x.dtype) + weight.mT @ weight / self.scale**2
        covariance = torch.linalg.inv(precision)
        seen = torch.where(mask, x - self.bias, 0.0)
        loc = (covariance @ weight.mT @ seen[:, :, None])[..., 0] / self.scale**2
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc + self.shift, self.widen * covariance))


def conditional(pair: LinearGaussian, x, seen):
    """Mean and covariance of x_mis given x_obs."""
    covariance = (pair.weight @ pair.weight.T + pair.scale**2 * torch.eye(5, dtype=x.dtype)).detach()
    gain = covariance[~seen][:, seen] @ torch.linalg.inv(covariance[seen][:, seen])
    mean = pair.bias.detach()[~seen] + gain @ (x[seen] - pair.bias.detach()[seen])
    return mean, covariance[~seen][:, ~seen] - gain @ covariance[seen][:, ~seen]


def errors_in_standard_errors(pair, x, found, draws):
    """The largest deviation of the imputations' means, and of their covariances, from the exact ones."""
    worst_mean = worst_covariance = 0.0
    for row, seen in enumerate(MASK):
        mean, covariance = conditional(pair, x[row], seen)
        drawn = found.x[:, row, ~seen]
        variance = covariance.diagonal()
        off = (drawn.mean(0) - mean).abs() / (variance / draws[row]).sqrt()
        error = ((variance[:, None] * variance + covariance**2) / draws[row]).sqrt()
        sample = torch.cov(drawn.T).reshape(covariance.shape)
        worst_mean = max(worst_mean, off.max().item())
        worst_covariance = max(worst_covariance, ((sample - covariance).abs() / error).max().item())
    print(f"{worst_mean:.2f} and {worst_covariance:.2f} standard errors off")
    return worst_mean, worst_covariance


def mean_off(pair, x, found):
    """The largest deviation of `mean` from the exact one, in sd of x_mis."""
    offs = []
    for row, seen in enumerate(MASK):
        mean, covariance = conditional(pair, x[row], seen)
        offs.append(((found.mean[row, ~seen] - mean).abs() / covariance.diagonal().sqrt()).max().item())
    return max(offs)


def data(pair):
    return {"x": pair.sample(3), "mask": MASK}


def test_imputation_from_the_exact_guide_is_the_conditional_gaussian():
    pair = Masked()
    found = impute(pair, x := data(pair), num_imputations=DRAWS)
    assert max(errors_in_standard_errors(pair, x["x"], found, [DRAWS] * 3)) < 4
    assert mean_off(pair, x["x"], found) < 4 / math.sqrt(DRAWS)
    assert found.x.shape == (DRAWS, 3, 5)
    assert torch.equal(found.x[:, MASK], x["x"][MASK].expand(DRAWS, -1))
    assert torch.equal(found.mean[MASK], x["x"][MASK])
    assert found.ess is None


def test_importance_resampling_corrects_a_wrong_guide():
    pair = Masked(shift=0.5, widen=2.0)
    plain = impute(pair, x := data(pair), num_imputations=DRAWS)
    assert min(errors_in_standard_errors(pair, x["x"], plain, [DRAWS] * 3)) > 6
    found = impute(pair, x, num_imputations=DRAWS, num_samples=5 * DRAWS)
    draws = [1 / (1 / DRAWS + 1 / ess) for ess in found.ess.tolist()]
    assert max(errors_in_standard_errors(pair, x["x"], found, draws)) < 4
    assert mean_off(pair, x["x"], found) < 4 / math.sqrt(found.ess.min())
    assert (found.ess < 0.9 * 5 * DRAWS).all()
    exact = impute(Masked(), x, num_imputations=2, num_samples=50)
    torch.testing.assert_close(exact.ess, torch.full((3,), 50.0, dtype=torch.float64))


def test_gibbs_with_the_exact_posterior_of_complete_data():
    """A guide that knows no masks: the chain is Gibbs sampling, and each proposal is taken."""
    pair = LinearGaussian(scale=2.0)  # a vague likelihood: the chain forgets its start in a few steps
    found = impute_by_gibbs(pair, x := data(pair), num_imputations=DRAWS, num_steps=10, num_warmup=10)
    assert found.acceptance == 1
    assert max(errors_in_standard_errors(pair, x["x"], found, [DRAWS] * 3)) < 4
    assert mean_off(pair, x["x"], found) < 4 / math.sqrt(DRAWS)
    assert torch.equal(found.x[:, MASK], x["x"][MASK].expand(DRAWS, -1))


def test_metropolis_corrects_pseudo_gibbs_with_a_wrong_guide():
    pair = LooseLinearGaussian(scale=2.0)
    x, chains = data(pair), {"num_imputations": DRAWS, "num_warmup": 10}
    pseudo = impute_by_gibbs(pair, x, num_steps=10, metropolis=False, **chains)
    assert min(errors_in_standard_errors(pair, x["x"], pseudo, [DRAWS] * 3)) > 6
    found = impute_by_gibbs(pair, x, num_steps=30, **chains)
    assert 0.5 < found.acceptance < 0.95
    assert max(errors_in_standard_errors(pair, x["x"], found, [DRAWS] * 3)) < 4
    assert mean_off(pair, x["x"], found) < 0.1  # an average over steps, of which the first still forget


def test_gibbs_of_a_pair_that_takes_the_mask():
    pair = Masked(shift=0.3, widen=1.5)
    found = impute_by_gibbs(pair, x := data(pair), num_imputations=DRAWS, num_steps=25, num_warmup=0)
    assert 0.4 < found.acceptance < 0.95
    assert max(errors_in_standard_errors(pair, x["x"], found, [DRAWS] * 3)) < 4


class Heedless(LinearGaussian):
    """Takes a mask and heeds none: its guide is the posterior of complete data, and reads all of x."""

    def model(self, x, mask):
        super().model(x)

    def guide(self, x, mask):
        super().guide(x)


def test_gibbs_of_a_guide_that_takes_the_mask_and_reads_what_is_missing():
    """Gibbs sampling, each proposal of which is taken, also where the first batch is of complete rows."""
    pair = Heedless(scale=2.0)
    x, first = data(pair), pair.sample(3)
    rows = {"x": torch.cat([first, x["x"]]), "mask": torch.cat([torch.ones_like(MASK), MASK])}
    found = impute_by_gibbs(pair, rows, num_imputations=DRAWS, num_steps=10, num_warmup=10, batch_size=3)
    assert found.acceptance == 1
    found.x, found.mean = found.x[:, 3:], found.mean[3:]
    assert max(errors_in_standard_errors(pair, x["x"], found, [DRAWS] * 3)) < 4
    assert mean_off(pair, x["x"], found) < 4 / math.sqrt(DRAWS)


@pytest.mark.parametrize("incomplete_first", [True, False])
@pytest.mark.parametrize("call", [impute, missing_log_likelihood])
def test_a_guide_that_reads_what_is_missing_is_refused_wherever_that_is(call, incomplete_first):
    pair, masks = Heedless(), [MASK, torch.ones_like(MASK)]
    rows = {"x": pair.sample(6), "mask": torch.cat(masks if incomplete_first else masks[::-1])}
    with pytest.raises(ValueError, match="the guide reads x where the mask says that it is missing"):
        call(pair, rows, batch_size=3)


@pytest.mark.parametrize(("shift", "widen"), [(0.0, 1.0), (0.5, 2.0)])
def test_log_likelihood_of_what_is_missing_is_the_conditional_density(shift, widen):
    pair = Masked(shift, widen)
    found = missing_log_likelihood(pair, x := data(pair), num_samples=20_000)
    want = [
        dist.MultivariateNormal(*conditional(pair, x["x"][row], seen)).log_prob(x["x"][row, ~seen])
        for row, seen in enumerate(MASK)
    ]
    print(f"{found.per_datum.tolist()} +- {found.standard_error}, exact {[w.item() for w in want]}")
    assert abs(found.value - torch.stack(want).mean()) < 4 * found.standard_error
    assert found.standard_error < 0.02


def test_the_error_of_few_samples_is_their_spread():
    """One datum many times: its variance over them is N times that of the mean, whose weights hardly differ."""
    pair = Masked()
    pair.scale = 10.0
    x, mask = pair.sample(1).expand(4000, -1), MASK[:1].expand(4000, -1)
    for count in (2, 3, 10):
        found = missing_log_likelihood(pair, {"x": x, "mask": mask}, num_samples=count)
        ratio = len(x) * found.standard_error**2 / found.per_datum.var().item()
        print(f"{count} samples: estimated over observed variance {ratio:.3f}")
        assert abs(ratio - 1) < 0.1  # of a variance of 4000 values, near to normal: sd of 2 %; of 2 samples 4 %
    assert math.isnan(missing_log_likelihood(pair, {"x": x[:5], "mask": mask[:5]}, num_samples=1).standard_error)


class SharedMean(torch.nn.Module):
    """mu ~ N(0, 100) for all data, z ~ N(0, 1), x_d ~ N(mu + z, 1); the guide is the posterior given the first column.

    Of N first columns y: p(mu | y) is N(M, V) with 1/V = 1/100 + N/2, M = V sum y / 2; E[x_mis | y] = M + (y - M)/2.
    """

    def model(self, x, mask):
        mu = pyro.sample("mu", dist.Normal(x.new_zeros(()), 10.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            loc = (mu + z)[..., None].expand(*torch.broadcast_shapes(mu.shape, z.shape), 2)
            pyro.sample("x", dist.Normal(loc, 1.0).mask(mask).to_event(1), obs=x)

    def guide(self, x, mask):
        mean, variance = self.of_all(x)
        mu = pyro.sample("mu", dist.Normal(mean, variance**0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((x[:, 0] - mu) / 2, 0.5**0.5))

    def of_all(self, x):
        variance = 1 / (1 / 100 + len(x) / 2)
        return variance * x[:, 0].sum() / 2, variance


def test_a_latent_that_all_data_share_is_imputed_from_the_guide_but_has_no_weights():
    pair, x = SharedMean(), torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rows = {"x": x, "mask": torch.tensor([True, False]).expand(6, 2)}
    found = impute(pair, rows, num_imputations=DRAWS)
    mean, variance = pair.of_all(x)
    want, error = mean + (x[:, 0] - mean) / 2, math.sqrt((1.5 + variance / 4) / DRAWS)
    print(f"{found.mean[:, 1].tolist()}, exact {want.tolist()} +- {error}")
    assert (found.mean[:, 1] - want).abs().max() < 4 * error
    for call in (partial(impute, num_samples=10), impute_by_gibbs, missing_log_likelihood):
        with pytest.raises(ValueError, match=r"latent sites \['mu'\] lie outside the plate 'data'"):
            call(pair, rows)


class Whole(torch.nn.Module):
    """z ~ N(0, 1/4), of which the first column knows nothing; counts or classes in two columns. The guide is exact."""

    counts = True

    def model(self, x, mask):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 0.5))
            rates = torch.stack([torch.ones_like(z), z.exp()], -1)
            classes = torch.stack([rates, torch.ones_like(rates)], -1)
            each = dist.Poisson(rates) if self.counts else dist.Categorical(classes / classes.sum(-1, keepdim=True))
            pyro.sample("x", each.to_event(1), obs=x)

    def guide(self, x, mask):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(0.0, 0.5))


WHOLE = {
    "impute": partial(impute, num_imputations=DRAWS),
    "impute with weights": partial(impute, num_imputations=DRAWS, num_samples=2 * DRAWS),
    "Gibbs": partial(impute_by_gibbs, num_imputations=DRAWS, num_steps=2, num_warmup=0),
}


@pytest.mark.parametrize("by", WHOLE)
def test_means_of_whole_numbers_are_fractions(by):
    """x_2 has mean E[exp(z)] = exp(1/8) and variance exp(1/8) + exp(1/2) - exp(1/4)."""
    x, mask = torch.tensor([[3, 9], [0, 9]]), torch.tensor([[True, False]] * 2)
    found = WHOLE[by](Whole(), {"x": x, "mask": mask})
    assert (found.x.dtype, found.mean.dtype) == (torch.int64, torch.float32)
    want, variance = math.exp(1 / 8), math.exp(1 / 8) + math.exp(1 / 2) - math.exp(1 / 4)
    error = math.sqrt(variance / DRAWS)
    drawn = found.x[:, :, 1].double().mean(0)
    print(f"{found.mean[:, 1].tolist()} and {drawn.tolist()} of draws, exact {want} +- {error}")
    assert (found.mean[:, 1] - want).abs().max() < 4 * error
    assert (drawn - want).abs().max() < 4 * error
    assert torch.equal(found.mean[:, 0], x[:, 0].float())


@pytest.mark.parametrize("by", WHOLE)
def test_classes_that_are_whole_numbers_have_no_mean(by):
    pair = Whole()
    pair.counts = False
    found = WHOLE[by](pair, {"x": torch.tensor([[1, 0], [0, 0]]), "mask": torch.tensor([[True, False]] * 2)})
    assert found.mean[:, 1].isnan().all()
    assert found.x[:, :, 1].double().mean() == pytest.approx(0.5, abs=0.1)


def test_the_hidden_values_are_not_read():
    """Whatever the data hold where x is missing, every imputation is the same to the last bit."""
    torch.manual_seed(0)
    x = torch.rand(4, 6).round()
    mask = torch.rand(4, 6) < 0.5
    mask[:, 0] = True
    other = torch.where(mask, x, 1 - x)
    plain, partial = pv.VAE(6, 2, hidden=(5,)), pv.PartialVAE(6, 2, hidden=(5,))
    with torch.no_grad():
        for parameter in plain.parameters():
            parameter.mul_(5)  # so that x matters to z, and z to x
    for call in (
        lambda x: impute(partial, {"x": x, "mask": mask}),
        lambda x: impute(partial, {"x": x, "mask": mask}, num_samples=20),
        lambda x: impute_by_gibbs(plain, {"x": x, "mask": mask}, num_steps=1, num_warmup=0),
        lambda x: impute_by_gibbs(partial, {"x": x, "mask": mask}, num_steps=3),
    ):
        before = torch.get_rng_state()
        one, two = call(x), call(other)
        assert torch.equal(one.x, two.x)
        assert torch.equal(one.mean, two.mean)
        assert torch.equal(before, torch.get_rng_state())
        assert set(one.x.unique().tolist()) == {0, 1}
        assert len(one.x.unique(dim=0)) > 1


@pytest.mark.parametrize(
    "call",
    [impute, partial(impute, num_samples=5), impute_by_gibbs, missing_log_likelihood],
    ids=["impute", "with weights", "Gibbs", "missing"],
)
def test_observed_values_that_the_likelihood_can_not_give_are_refused(call):
    x, mask = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([[True, False]] * 2)
    with pytest.raises(ValueError, match=r"^x has values that the likelihood at site 'x' cannot give: .*\[0, 3\]"):
        call(pv.PartialVAE(2, 2, hidden=(8,)), {"x": x, "mask": mask})


@pytest.mark.parametrize("placeholder", [-1.0, 999.0])
def test_placeholders_that_the_likelihood_can_not_give_are_not_scored(placeholder):
    torch.manual_seed(0)
    mask = torch.rand(6, 4) > 0.4
    mask[:, 0] = True
    pair, x = pv.PartialVAE(4, 2, hidden=(8,)), torch.rand(6, 4).round()
    want, got = (
        impute(pair, {"x": torch.where(mask, x, elsewhere), "mask": mask}, num_samples=5)
        for elsewhere in (0.0, placeholder)
    )
    assert torch.equal(want.x, got.x)
    assert torch.equal(want.mean, got.mean)
    assert torch.equal(want.ess, got.ess)


def test_the_weights_of_what_is_missing_do_not_read_it():
    """Of the true values of x only the density of what is missing may depend on them: exactly one factor each."""
    x, mask = torch.tensor([[1.0, 3.0], [0.0, 3.0]]), torch.tensor([[True, False]] * 2)
    given = []

    class Watched(dist.Poisson):
        def log_prob(self, value):
            given.append(value)
            return super().log_prob(value)

    class Pair(Whole):
        def model(self, x, mask):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(0.0, 0.5))
                each = Watched(torch.stack([torch.ones_like(z), z.exp()], -1))
                pyro.sample("x", each.to_event(1), obs=x)

    missing_log_likelihood(Pair(), {"x": x, "mask": mask}, num_samples=3)
    assert sum(torch.equal(value, x) for value in given) == 1
    with pytest.raises(ValueError, match=r"x has values that the likelihood at site 'x' cannot give.*\[-1, 1\]"):
        missing_log_likelihood(Pair(), {"x": torch.where(mask, x, -1.0), "mask": mask})


def test_batches_are_joined_in_order():
    pair = Masked()
    rows = {name: value.repeat(3, 1) for name, value in data(pair).items()}
    for found in (
        impute(pair, rows, num_imputations=2, num_samples=2000, batch_size=4),
        impute_by_gibbs(pair, rows, num_imputations=2, num_steps=2, batch_size=4),
    ):
        assert found.x.shape == (2, 9, 5)
        assert torch.equal(found.x[0][rows["mask"]], rows["x"][rows["mask"]])
        assert torch.equal(found.mask, rows["mask"])


def bad():
    pair, plain = Masked(), LinearGaussian()
    x = pair.sample(3)
    nothing = MASK.clone()
    nothing[[0, 2]] = False
    mixture = GaussianMixture(torch.ones(2) / 2, torch.zeros(2, 5), torch.ones(2, 5)).double()
    return {
        "no mask in the data": (lambda: impute(plain, {"x": x}), "data hold x and the model takes x; both need x"),
        "no mask in the pair": (lambda: impute(plain, {"x": x, "mask": MASK}), "the model takes no mask.*by_gibbs"),
        "a guide that knows": (
            lambda: impute(pv.PosteriorMatching(pv.VAE(5, 2)), {"x": x.float().sigmoid().round(), "mask": MASK}),
            r"the guide reads x where the mask says that it is missing.*partial_vae\(\)",
        ),
        "nothing observed": (
            lambda: impute(pair, {"x": x, "mask": nothing}),
            r"rows 0, 2 \(2 in all\) of x have no observed value",
        ),
        "another shape": (
            lambda: impute_by_gibbs(plain, {"x": x, "mask": MASK[:, :4]}),
            r"mask has shape \(3, 4\), x \(3, 5\)",
        ),
        "half observed": (
            lambda: impute_by_gibbs(plain, {"x": x, "mask": MASK / 2}),
            r"mask has values beside 0 and 1 in rows 0, 1, 2 \(3 in all\); pass booleans",
        ),
        "enumerated": (lambda: impute_by_gibbs(mixture, {"x": x, "mask": MASK}), "the pair enumerates sites"),
        "warm-up": (lambda: impute_by_gibbs(plain, {"x": x, "mask": MASK}, num_warmup=-1), "num_warmup is -1"),
        "nan": (lambda: impute(pair, {"x": x / 0.0 * 0, "mask": MASK}), r"x has 15 NaN.*incomplete\(x\)"),
    }


@pytest.mark.parametrize("case", list(bad()))
def test_refused(case):
    call, message = bad()[case]
    with pytest.raises(ValueError, match=message):
        call()
