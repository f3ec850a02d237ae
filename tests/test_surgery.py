"""The KL of an ELBO in its parts, against enumeration and quadrature."""

import importlib
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian, Mixture
from pyro import poutine
from test_annealing import coin_guide, coin_model
from test_likelihood import TwoDead, global_guide, global_model
from torch.distributions import kl_divergence
from torch.utils._python_dispatch import TorchDispatchMode

from pyrovae.evaluation.likelihood import elbo
from pyrovae.evaluation.optimal_prior import compare_priors
from pyrovae.evaluation.surgery import surgery

module = importlib.import_module("pyrovae.evaluation.surgery")  # the package has the function by this name

FOUR = 4


def bits_model(x):
    """Three bits, of which the guide knows much and the prior is uneven."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(x.new_tensor([0.3, 0.5, 0.8])).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x[:, :1])


def bits_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=2 * torch.cat([x, x[:, :1] - 1, 0 * x[:, :1]], 1)[:, :3]).to_event(1))


def rows(count=9):
    return torch.randn(count, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def bits_by_hand(x):
    """Each term as a plain sum over data and over the eight codes."""
    probs = torch.sigmoid(2 * torch.stack([x[:, 0], x[:, 1], x[:, 0] - 1], 1)).tolist()
    prior = [0.3, 0.5, 0.8]
    codes = [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)]

    def mass(p, code):
        return math.prod(each if bit else 1 - each for each, bit in zip(p, code, strict=True))

    q = {code: sum(mass(p, code) for p in probs) / len(probs) for code in codes}
    single = [sum(p[j] for p in probs) / len(probs) for j in range(3)]
    kl = sum(mass(p, c) * math.log(mass(p, c) / mass(prior, c)) for p in probs for c in codes) / len(probs)
    marginal = sum(q[c] * math.log(q[c] / mass(prior, c)) for c in codes)
    correlation = sum(q[c] * math.log(q[c] / mass(single, c)) for c in codes)
    dimension = [
        sum(v * math.log(v / w) for v, w in ((s, p), (1 - s, 1 - p))) for s, p in zip(single, prior, strict=True)
    ]
    return kl, marginal, correlation, dimension


def test_discrete_codes_are_summed():
    x = rows()
    kl, marginal, correlation, dimension = bits_by_hand(x)
    parts = surgery((bits_model, bits_guide), x, batch_size=4)
    assert parts.kl == pytest.approx(kl, abs=1e-9)
    assert parts.marginal_kl == pytest.approx(marginal, abs=1e-9)
    assert parts.information == pytest.approx(kl - marginal, abs=1e-9)
    assert parts.total_correlation == pytest.approx(correlation, abs=1e-9)
    assert parts.dimension_kl.tolist() == pytest.approx(dimension, abs=1e-9)
    assert marginal == pytest.approx(correlation + sum(dimension), abs=1e-9)
    assert parts.standard_errors["kl"] == parts.standard_errors["total_correlation"] == 0
    assert (parts.site, parts.rows, parts.units) == ("z", 9, None)


def test_draws_agree_with_sums(monkeypatch):
    x = rows()
    kl, marginal, correlation, dimension = bits_by_hand(x)
    monkeypatch.setattr(module, "TABLE", 1)
    parts = surgery((bits_model, bits_guide), x, batch_size=4, num_samples=20000)
    found = {"kl": kl, "marginal_kl": marginal, "information": kl - marginal, "total_correlation": correlation}
    for name, exact in found.items():
        error = parts.standard_errors[name]
        print(f"{name} {getattr(parts, name):.4f} +- {error:.4f}, exact {exact:.4f}")
        assert abs(getattr(parts, name) - exact) < FOUR * error < 0.05
    assert ((parts.dimension_kl - torch.tensor(dimension)).abs() < FOUR * parts.standard_errors["dimension_kl"]).all()


def test_one_categorical():
    x = torch.tensor([-1.0, 0.0, 2.0, 3.0], dtype=torch.float64)

    def guide(x):
        with pyro.plate("data", len(x)):
            logits = torch.stack([-x, 0.3 * x, x], -1)
            pyro.sample("y", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})

    p = torch.softmax(torch.stack([-x, 0.3 * x, x], -1), -1)
    prior, q = x.new_tensor([0.2, 0.5, 0.3]), p.mean(0)
    parts = surgery((coin_model, guide), x)
    assert parts.kl == pytest.approx((p * (p / prior).log()).sum(1).mean().item(), abs=1e-7)  # logs in float32 there
    assert parts.information == pytest.approx((p * (p / q).log()).sum(1).mean().item(), abs=1e-9)
    assert (parts.total_correlation, parts.dimension_kl) == (None, None)
    flat = surgery((coin_model, coin_guide), x)
    assert abs(flat.information) < 1e-12


@pytest.mark.parametrize("classes", [2, 3])
def test_a_one_hot_latent_is_that_of_its_classes(classes):
    x = rows()
    prior = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)[:classes]
    prior = prior / prior.sum()

    def logits(x):
        return torch.stack([-x[:, 0], 0.3 * x[:, 1], x[:, 0]], -1)[:, :classes]

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.OneHotCategorical(prior))
            pyro.sample("x", dist.Normal(z @ torch.arange(1.0, classes + 1).double(), 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.OneHotCategorical(logits=logits(x)))

    kl = information = 0.0
    each = logits(x).softmax(-1).tolist()
    q = [sum(row[c] for row in each) / len(x) for c in range(classes)]
    for row in each:
        kl += sum(p * math.log(p / prior[c].item()) for c, p in enumerate(row)) / len(x)
        information += sum(p * math.log(p / q[c]) for c, p in enumerate(row)) / len(x)
    parts = surgery((model, guide), x, batch_size=4)
    assert parts.kl == pytest.approx(kl, abs=1e-9)
    assert parts.information == pytest.approx(information, abs=1e-9)
    assert parts.marginal_kl == pytest.approx(kl - information, abs=1e-9)
    assert parts.standard_errors["kl"] == 0
    assert (parts.total_correlation, parts.dimension_kl) == (None, None)


class Aggregate(LinearGaussian):
    """A guide of its own, with another sd for each datum and dimension."""

    full = False

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, scale = self.of(x)
            if self.full:
                pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=self.tril(scale)))
            else:
                pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def of(self, x):
        return torch.stack([x[:, 0], 0.7 * x[:, 0] - 0.5 * x[:, 1]], -1) / 2, 0.4 + 0.2 * torch.sigmoid(x[:, :2])

    def tril(self, scale):
        return torch.diag_embed(scale) + torch.tensor([[0, 0], [0.3, 0]]).double()


@pytest.mark.parametrize("full", [False, True])
def test_a_gaussian_aggregate_by_quadrature(full, untouched):
    """The mixture of 12 posteriors on a grid of 0.03 in two dimensions: sums are integrals to 1e-8."""
    pair = Aggregate()
    pair.full = full
    x = pair.sample(12)
    loc, scale = pair.of(x)
    tril = pair.tril(scale) if full else torch.diag_embed(scale)
    q = dist.MultivariateNormal(loc, scale_tril=tril)
    prior = dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    kl = kl_divergence(q, prior.expand([12])).mean().item()
    axis = torch.arange(-9, 9, 0.03, dtype=torch.float64)
    log_q = torch.stack(
        [torch.logsumexp(q.log_prob(torch.stack([a.expand(len(axis)), axis], -1)[:, None]), 1) for a in axis]
    ) - math.log(12)
    mass = log_q.exp() * 0.03**2
    assert mass.sum().item() == pytest.approx(1, abs=1e-7)
    single = [torch.log(mass.sum(1 - j) / 0.03) for j in (0, 1)]
    p = dist.Normal(0.0, 1.0).log_prob(axis)
    marginal = (mass * (log_q - p[:, None] - p)).sum().item()
    correlation = (mass * (log_q - single[0][:, None] - single[1])).sum().item()
    dimension = [(mass.sum(1 - j) * (single[j] - p)).sum().item() for j in (0, 1)]
    parts = surgery(pair, x, num_samples=20000, batch_size=5)
    found = {"kl": kl, "marginal_kl": marginal, "information": kl - marginal, "total_correlation": correlation}
    for name, exact in found.items():
        error = parts.standard_errors[name]
        print(f"{name} {getattr(parts, name):.4f} +- {error:.4f}, exact {exact:.4f}")
        assert abs(getattr(parts, name) - exact) < FOUR * error < 0.06
    assert ((parts.dimension_kl - torch.tensor(dimension)).abs() < FOUR * parts.standard_errors["dimension_kl"]).all()
    assert parts.kl == pytest.approx(parts.information + parts.marginal_kl, abs=1e-9)
    assert parts.marginal_kl == pytest.approx(parts.total_correlation + parts.dimension_kl.sum().item(), abs=1e-9)
    assert parts.kl == pytest.approx(elbo(pair, x, num_particles=4000).kl["z"], abs=FOUR * 0.02)


def test_collapsed_dimensions_are_named():
    pair = TwoDead()
    parts = surgery(pair, pair.sample(50), num_samples=500)
    assert parts.inactive == [1, 3]
    assert parts.dimension_kl[[1, 3]].abs().max() < 1e-12
    assert "2 of 4 units of z active; collapsed: [1, 3]" in str(parts)
    assert "log N = 3.91" in str(parts)


def test_what_has_no_surgery_is_told():
    with pytest.raises(ValueError, match=r"the guide samples \['z'\] and the model \['c', 'z'\]"):
        surgery(Mixture(), torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"the guide samples \['w', 'z'\]"):
        surgery((global_model, global_guide), torch.zeros(3, dtype=torch.float64))

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match="the prior of 'z' depends on the datum"):
        surgery((model, guide), torch.arange(3.0))


@pytest.mark.parametrize("where", ["model", "guide", "distribution"])
def test_a_masked_latent_is_told(where):
    """A row whose prior or posterior counts for nothing has no part in q(z) or KL(q(z) || p(z))."""
    pair = LinearGaussian()

    def masked(program, mask, name):
        return poutine.mask(program, mask=mask) if name == where else program

    def model(x, mask):
        with pyro.plate("data", len(x)):
            prior = dist.Normal(x.new_zeros(2), 1.0).to_event(1)
            hidden = prior.expand([len(x)]).mask(mask) if where == "distribution" else prior
            z = masked(pyro.sample, mask, "model")("z", hidden)
            pyro.sample("x", dist.Normal(z @ pair.weight.T + pair.bias, pair.scale).to_event(1), obs=x)

    def guide(x, mask):
        masked(pair.guide, mask, "guide")(x)

    x = pair.sample(12)
    every, some = torch.ones(12, dtype=torch.bool), torch.arange(12) < 9  # the mask begins in the last batch
    assert surgery((model, guide), (x, every), num_samples=50).kl == surgery(pair, x, num_samples=50).kl
    for of in (surgery, compare_priors):
        with pytest.raises(ValueError, match="a mask hides latent 'z' in some rows, which then have no KL"):
            of((model, guide), (x, some), batch_size=4)


def test_a_prior_that_differs_between_batches_is_told():
    """One row a batch: within each, nothing depends on the datum."""

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ValueError, match="the prior of 'z' depends on the datum"):
        surgery((model, guide), torch.arange(3.0), batch_size=1)


class Largest(TorchDispatchMode):
    """Notes how many numbers the largest tensor has that anything computes."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for value in made if isinstance(made, tuple | list) else [made]:
            if isinstance(value, torch.Tensor):
                self.numbers = max(self.numbers, value.untyped_storage().nbytes() // value.element_size())
        return made


@pytest.mark.parametrize("full", [False, True])
def test_no_tensor_is_larger_than_the_budget(full, monkeypatch):
    """Of 300 rows in batches of 20 with two latent numbers, and 200 draws: 120,000 of q(z_j | x_n) together."""
    pair, budget = Aggregate(), 3000
    pair.full = full
    x = pair.sample(300)
    want = surgery(pair, x, num_samples=200, batch_size=20)
    monkeypatch.setattr(module, "BUDGET", budget)
    with Largest() as largest:
        found = surgery(pair, x, num_samples=200, batch_size=20)
    assert largest.numbers <= budget
    for name in ("kl", "information", "marginal_kl", "total_correlation"):
        assert getattr(found, name) == pytest.approx(getattr(want, name), abs=1e-12)
    torch.testing.assert_close(found.dimension_kl, want.dimension_kl, atol=1e-12, rtol=0)


def test_a_prior_scores_each_draw_once(monkeypatch):
    """Not at each row of the first batch, for which a prior of many components has no memory."""
    pair, scored = LinearGaussian(), []
    x = pair.sample(40)

    class Counted(dist.Normal):
        def log_prob(self, value):
            scored.append(value.numel() // 2)
            return super().log_prob(value)

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Counted(x.new_zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ pair.weight.T + pair.bias, pair.scale).to_event(1), obs=x)

    monkeypatch.setattr(Counted, "expand", lambda self, shape, _instance=None: Counted(self.loc.expand(shape), 1.0))
    parts = surgery((model, pair.guide), x, num_samples=500)
    assert parts.marginal_kl == pytest.approx(surgery(pair, x, num_samples=500).marginal_kl, abs=1e-9)
    assert max(scored) <= 520


def test_a_guide_without_density_at_other_points_is_told():
    pair = LinearGaussian()
    planar = dist.transforms.Planar(2).double()

    def guide(x):
        with pyro.plate("data", len(x)):
            loc, _ = pair.posterior(x)
            pyro.sample("z", dist.TransformedDistribution(dist.Normal(loc, 1.0).to_event(1), [planar]))

    with pytest.raises(
        ValueError, match=r"the density of site 'z' .* can't be computed at a value that was not just drawn"
    ):
        surgery((pair.model, guide), pair.sample(5))
