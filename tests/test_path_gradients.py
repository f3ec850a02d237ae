"""Importance-weighted bounds and their gradient estimators against formulas written out, and against each other."""

import contextlib
import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import LinearGaussian, LooseLinearGaussian, Mixture
from pyro.distributions import transforms
from torch import nn
from torch.autograd import grad

from pyrovae.models.base import Functions, Pair, structure
from pyrovae.objectives import CIWAE, ELBO, IWAE, MIWAE, PIWAE, STL, DReG, Renyi, ledger
from pyrovae.training.schedules import Linear
from pyrovae.training.step import Step

F64 = torch.float64


def numbers(*values):
    return nn.Parameter(torch.tensor(values, dtype=F64).squeeze())


class Scalar(Pair):
    """z ~ N(prior, 1), x | z ~ N(z, s^2); the guide N(a x + b, e^r) has parameters of its own, one for each row."""

    def __init__(self, rows=1, slope=0.4, shift=0.3, log_scale=-0.2, prior=0.5, scale=0.8):
        super().__init__()
        self.slope, self.shift, self.log_scale, self.prior = (
            nn.Parameter(torch.full((rows,), value, dtype=F64)) for value in (slope, shift, log_scale, prior)
        )
        self.scale = scale

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.prior, 1.0).expand([len(x)]))
            pyro.sample("x", dist.Normal(z, self.scale), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x + self.shift, self.log_scale.exp()))

    def log_prob(self, x):
        return dist.Normal(self.prior, math.sqrt(1 + self.scale**2)).log_prob(x)

    def at_posterior(self):
        variance = self.scale**2 / (1 + self.scale**2)
        with torch.no_grad():
            self.slope.fill_(variance / self.scale**2)
            self.shift.copy_(variance * self.prior)
            self.log_scale.fill_(math.log(variance) / 2)
        return self


class TopDown(Pair):
    """z1 -> z2 -> x; the guide draws z1, then z2 given z1 through a flow: three paths to its first parameters."""

    def __init__(self):
        super().__init__()
        self.model_slope, self.guide1, self.guide2 = numbers(0.7), numbers(0.5, -0.1), numbers(0.3, 0.4, -0.2)
        self.bend = numbers(0.6)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(x.new_zeros(len(x)), 1.0))
            z2 = pyro.sample("z2", dist.Normal(self.model_slope * z1, 0.9))
            pyro.sample("x", dist.Normal(z2 + 0.3 * z1, 0.6), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(self.guide1[0] * x, self.guide1[1].exp()))
            pyro.sample("z2", self.flow(x, z1))

    def flow(self, x, z1):
        base = dist.Normal(self.guide2[0] * x + self.guide2[1] * z1, (self.guide2[2] + 0.1 * z1).exp())
        return dist.TransformedDistribution(base, [transforms.AffineTransform(self.bend, 1 + self.bend**2)])


def step(pair, objective, *batch, seed=5):
    """The value per datum from a seed, its gradients left in the parameters."""
    made = Step(pair, objective, structure(pair, *batch))
    for parameter in made.known.parameters.values():
        parameter.grad = None
    pyro.set_rng_seed(seed)
    return -made.backward(*batch)


def gradients(pair, objective, *batch, seed=5):
    """Minus the gradients of the loss, that is those of the mean per datum, by name."""
    step(pair, objective, *batch, seed=seed)
    return {name: -p.grad for name, p in pair.named_parameters() if p.grad is not None}


X = torch.tensor([-1.0, 0.4, 2.5, 0.9], dtype=F64)


# The gradient of the IWAE ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [Mixture, partial(Scalar, 4), TopDown])
def test_iwae_has_the_gradient_of_normalised_weights(make):
    pair = make()
    parameters = list(pair.parameters())
    pyro.set_rng_seed(5)
    drawn = ledger(pair, X, num_particles=5)
    weights, log_weights = drawn.normalized_weights(), drawn.log_weights()
    torch.testing.assert_close(weights, log_weights.exp() / log_weights.exp().sum(0), rtol=1e-12, atol=1e-15)
    each = [
        [weights[k, b].item() * g for g in grad(log_weights[k, b], parameters, retain_graph=True)]
        for k in range(5)
        for b in range(4)
    ]
    want = [sum(terms) / 4 for terms in zip(*each, strict=True)]
    got = gradients(pair, IWAE(5), X)
    for (name, value), expected in zip(got.items(), want, strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-10, msg=name)


def test_normalised_weights_are_those_of_hand_written_densities():
    pair = Mixture()
    drawn = ledger(pair, X, num_particles=3)
    z, c = drawn.values["z"], torch.arange(3, dtype=F64)
    given_c = dist.Normal(pair.loc, 1.0).log_prob(z[..., None]) + dist.Normal(z[..., None] + c, 1.0).log_prob(
        X[:, None]
    )
    p = (pair.logits.softmax(-1) * given_c.exp()).sum(-1) / dist.Normal(0.5 * X, 1.2).log_prob(z).exp()
    torch.testing.assert_close(drawn.normalized_weights(), p / p.sum(0), rtol=1e-12, atol=0)


# Bounds ---------------------------------------------------------------------------------------------------------------


def drawn_by_both(objective, particles=6):
    pair = LooseLinearGaussian()
    drawn = ledger(pair, pair.sample(4), num_particles=particles)
    return objective.per_datum(drawn), drawn.log_weights()


def test_renyi_reduces_to_iwae_and_elbo_and_falls_with_alpha():
    pair = LooseLinearGaussian()
    drawn = ledger(pair, pair.sample(4), num_particles=6)
    bounds = [Renyi(alpha, 6).per_datum(drawn) for alpha in (-2.0, 0.0, 0.5, 0.999999, 1.0, 1.000001, 3.0)]
    torch.testing.assert_close(bounds[1], IWAE(6).per_datum(drawn), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(bounds[4], drawn.log_weights().mean(0), rtol=1e-13, atol=1e-13)
    for near in (3, 5):
        torch.testing.assert_close(bounds[near], bounds[4], rtol=0, atol=1e-4)
    assert all((high > low).all() for high, low in itertools.pairwise(bounds))


@pytest.mark.parametrize("alpha", [0.999999, 1.000001, 0.9999, 1.01, 0.95])
@pytest.mark.parametrize("objective", [Renyi, DReG])
def test_orders_near_one_in_float32_are_those_of_float64(objective, alpha):
    """Near 1 the bound is sum log w / K + (1 - alpha) / 2 Var log w, with (1 - alpha)^2 left out."""
    log_w = -200 + 3 * torch.randn(8, 50, dtype=F64, generator=torch.Generator().manual_seed(0))
    log_w = log_w.float().requires_grad_()
    bound = objective(num_particles=8, alpha=alpha)
    found = bound.reduce(log_w)
    assert found.dtype == torch.float32
    want = bound.reduce(log_w.double())
    torch.testing.assert_close(found, want.float(), rtol=0, atol=1e-3)
    if abs(1 - alpha) < 1e-3:
        near = log_w.double().mean(0) + (1 - alpha) / 2 * log_w.double().var(0, unbiased=False)
        torch.testing.assert_close(found[0].double(), near, rtol=0, atol=1e-3)
    (gradient,), (exact,) = grad(found.sum(), log_w), grad(want.sum(), log_w)
    torch.testing.assert_close(gradient, exact, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("alpha", [-1.0, 0.5, 2.0])
def test_renyi_of_many_particles_is_log_p_less_the_renyi_divergence(alpha):
    """D_alpha of two normals of variances v and w: with u = alpha w + (1 - alpha) v, see Gil et al. 2013."""
    pair, x = Scalar(1, slope=0.3, log_scale=-0.5), torch.tensor([0.9], dtype=F64)
    w = pair.scale**2 / (1 + pair.scale**2)
    m = w * (pair.prior + x / pair.scale**2)
    v = (2 * pair.log_scale).exp()
    u = alpha * w + (1 - alpha) * v
    divergence = alpha / 2 * (pair.slope * x + pair.shift - m) ** 2 / u + (
        u.log() - (1 - alpha) * v.log() - alpha * torch.tensor(w).log()
    ) / (2 * (1 - alpha))
    want = (pair.log_prob(x) - divergence).item()
    pyro.set_rng_seed(1)
    with torch.no_grad():
        log_weights = ledger(pair, x, num_particles=400_000).log_weights()
        got = Renyi(alpha, 400_000).reduce(log_weights).item()
    powers = ((1 - alpha) * (log_weights - log_weights.max())).exp()
    error = (powers.std() / powers.mean() / math.sqrt(400_000) / abs(1 - alpha)).item()
    print(f"{got:.5f} +- {error:.5f}, exact {want:.5f}, log p(x) {pair.log_prob(x).item():.5f}")
    assert abs(got - want) < 4 * error
    assert (got < pair.log_prob(x).item()) == Renyi(alpha).is_bound == DReG(alpha=alpha).is_bound


def test_groups_and_combinations_by_hand():
    got, log_weights = drawn_by_both(MIWAE(6, num_groups=2))
    groups = [log_weights[:3].exp().mean(0).log(), log_weights[3:].exp().mean(0).log()]
    torch.testing.assert_close(got, (groups[0] + groups[1]) / 2)
    got, log_weights = drawn_by_both(MIWAE(6, num_groups=6))
    torch.testing.assert_close(got, log_weights.mean(0))
    got, log_weights = drawn_by_both(CIWAE(6, beta=0.25))
    torch.testing.assert_close(got, 0.25 * log_weights.mean(0) + 0.75 * log_weights.exp().mean(0).log())


@pytest.mark.parametrize("objective", [Renyi(0.5, 4), MIWAE(4, num_groups=2), CIWAE(4)])
def test_labels_that_the_guide_enumerates_are_averaged_outside(objective):
    """E_q(y|x) [f(log w(x, y)) - log q(y | x)], with f by the definition and each y on its own."""
    loc, prior = torch.tensor([-2.0, 0.5, 3.0], dtype=F64), torch.tensor([0.2, 0.5, 0.3], dtype=F64)

    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(prior))
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z + loc[y], 0.8), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Categorical(logits=x[:, None] * loc), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(0.4 * (x - y), 0.7))

    drawn = ledger((model, guide), X, num_particles=4)
    want = torch.zeros(4, dtype=F64)
    log_q_y = (X[:, None] * loc).log_softmax(-1)
    for y in range(3):
        z = drawn.values["z"].reshape(3, 4, 4)[y]
        log_w = prior[y].log() + dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z + loc[y], 0.8).log_prob(X)
        w = (log_w - dist.Normal(0.4 * (X - y), 0.7).log_prob(z)).exp()
        value = {
            Renyi: 2 * w.sqrt().mean(0).log(),
            MIWAE: (w[:2].mean(0).log() + w[2:].mean(0).log()) / 2,
            CIWAE: (w.log().mean(0) + w.mean(0).log()) / 2,
        }[type(objective)]
        want += log_q_y[:, y].exp() * (value - log_q_y[:, y])
    torch.testing.assert_close(objective.per_datum(drawn), want, rtol=1e-11, atol=1e-11)


# Estimators: each one's formula written out ---------------------------------------------------------------------------


def formula(pair, x, path, model, particles, seed=5):
    """sum_k model_k d log p + path_k (d log w_k / dz) dz, with the parameters of log q detached by hand."""
    pyro.set_rng_seed(seed)
    e1 = torch.distributions.utils._standard_normal((particles, len(x)), F64, "cpu")
    e2 = torch.distributions.utils._standard_normal((particles, len(x)), F64, "cpu")
    z1 = pair.guide1[0] * x + pair.guide1[1].exp() * e1
    base = pair.guide2[0] * x + pair.guide2[1] * z1 + (pair.guide2[2] + 0.1 * z1).exp() * e2
    z2 = pair.bend + (1 + pair.bend**2) * base

    def log_w(z1, z2, slope, guide1, guide2, bend):
        log_p = dist.Normal(x * 0, 1.0).log_prob(z1) + dist.Normal(slope * z1, 0.9).log_prob(z2)
        log_p = log_p + dist.Normal(z2 + 0.3 * z1, 0.6).log_prob(x)
        loc, scale = guide2[0] * x + guide2[1] * z1, (guide2[2] + 0.1 * z1).exp()
        log_q = dist.Normal(guide1[0] * x, guide1[1].exp()).log_prob(z1)
        u = (z2 - bend) / (1 + bend**2)
        return log_p - log_q - dist.Normal(loc, scale).log_prob(u) + (1 + bend**2).log()

    fixed = [p.detach() for p in (pair.guide1, pair.guide2, pair.bend)]
    moved = log_w(z1, z2, pair.model_slope.detach(), *fixed)
    at = log_w(z1.detach(), z2.detach(), pair.model_slope, *fixed)
    total = (path(moved.detach()) * moved + model(moved.detach()) * at).sum(0).mean()
    return dict(zip(dict(pair.named_parameters()), grad(total, list(pair.parameters())), strict=True))


def softmax(log_w):
    return log_w.exp() / log_w.exp().sum(0)


def tempered(log_w):
    return softmax(0.5 * log_w)


FORMULAS = {
    "STL": (STL(3), lambda w: w * 0 + 1 / 3, lambda w: w * 0 + 1 / 3),
    "DReG": (DReG(3), lambda w: softmax(w) ** 2, softmax),
    "DReG of one particle is STL": (DReG(1), lambda w: w * 0 + 1, lambda w: w * 0 + 1),
    "DReG of Renyi's bound": (DReG(3, alpha=0.5), lambda w: 0.5 * tempered(w) + 0.5 * tempered(w) ** 2, tempered),
    "DReG with alpha 1 is STL": (DReG(3, alpha=1.0), lambda w: w * 0 + 1 / 3, lambda w: w * 0 + 1 / 3),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_estimators_are_their_formulas(name):
    objective, path, model = FORMULAS[name]
    pair = TopDown()
    want = formula(pair, X, path, model, objective.num_particles)
    got = gradients(pair, objective, X)
    for parameter in want:
        torch.testing.assert_close(got[parameter], want[parameter], rtol=1e-10, atol=1e-10, msg=parameter)


def test_values_are_those_of_the_bounds():
    for objective, bound in [
        (DReG(4), IWAE(4)), (PIWAE(4, num_groups=2), IWAE(4)), (STL(4), ELBO(4, closed_form=False)),
        (DReG(4, alpha=0.5), Renyi(0.5, 4)),
    ]:  # fmt: skip
        values = [step(TopDown(), one, X) for one in (objective, bound)]
        torch.testing.assert_close(values[0], values[1], rtol=1e-12, atol=0)


def test_piwae_takes_the_models_gradient_of_iwae_and_the_guides_of_miwae():
    pair = TopDown()
    got, iwae, miwae = (gradients(pair, o, X) for o in (PIWAE(6, num_groups=3), IWAE(6), MIWAE(6, num_groups=3)))
    for name in got:
        want = iwae if name == "model_slope" else miwae
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-12, msg=name)
    assert not torch.allclose(iwae["guide1"], miwae["guide1"])


def test_particles_in_a_loop_have_the_same_estimator():
    """A pair that does not vectorise: the estimator by the oracle for one particle, weighed by hand."""

    class Flattening(Scalar):
        def model(self, x):
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(self.prior, 1.0).expand([len(x)]))
                pyro.sample("x", dist.Normal(z.view(len(x)), self.scale), obs=x)

    pair = Flattening(4)
    with pytest.warns(UserWarning, match="does not vectorise"):
        got = gradients(pair, DReG(3), X)
    pyro.set_rng_seed(5)
    e = torch.stack([torch.distributions.utils._standard_normal((4,), F64, "cpu") for _ in range(3)])
    z = pair.slope * X + pair.shift + pair.log_scale.exp() * e
    log_q = dist.Normal((pair.slope * X + pair.shift).detach(), pair.log_scale.detach().exp()).log_prob(z)
    log_w = dist.Normal(pair.prior.detach(), 1.0).log_prob(z) + dist.Normal(z, pair.scale).log_prob(X) - log_q
    want = grad((softmax(log_w.detach()) ** 2 * log_w).sum(0).mean(), [pair.slope, pair.shift, pair.log_scale])
    for name, value in zip(("slope", "shift", "log_scale"), want, strict=True):
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-12)


def test_masks_scales_and_nested_plates_keep_their_meaning():
    """A masked row has no gradient, a scale multiplies all of it, and a path in a nested plate is summed over it."""
    mask = torch.tensor([True, False, True, True])

    class Words(Pair):
        def __init__(self):
            super().__init__()
            self.loc = nn.Parameter(torch.full((4,), 0.3, dtype=F64))

        def model(self, x):
            with self.plates():
                z = pyro.sample("z", dist.Normal(x * 0, 1.0).expand([2, 4]))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x.expand(2, 4))

        def guide(self, x):
            with self.plates():
                pyro.sample("z", dist.Normal(self.loc, 0.5).expand([2, 4]))

        def plates(self):
            """Two words stand for six."""
            stack = contextlib.ExitStack()
            stack.enter_context(pyro.plate("data", 12, subsample=torch.arange(4), dim=-1))
            stack.enter_context(pyro.poutine.mask(mask=mask))
            stack.enter_context(pyro.plate("words", 6, subsample=torch.arange(2), dim=-2))
            stack.enter_context(pyro.poutine.scale(scale=0.5))
            return stack

    pair = Words()
    got = gradients(pair, DReG(3), X)["loc"]
    pyro.set_rng_seed(5)
    e = torch.distributions.utils._standard_normal((3, 2, 4), F64, "cpu")
    z = pair.loc + 0.5 * e
    log_w = dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(z, 1.0).log_prob(X)
    log_w = 3 * ((log_w - dist.Normal(pair.loc.detach(), 0.5).log_prob(z)) * mask).sum(1)
    (want,) = grad(0.5 * (softmax(log_w.detach()) ** 2 * log_w).sum(0).mean(), pair.loc)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
    assert want[1] == 0
    assert (want[[0, 2, 3]] != 0).all()


# Means and noise ------------------------------------------------------------------------------------------------------


def noisy(pair, objective, x, seed=1):
    """Gradients of each row's own parameters: as many draws of the estimator as there are rows."""
    return {name: len(x) * value for name, value in gradients(pair, objective, x, seed=seed).items()}


ROWS = 40_000


@pytest.mark.parametrize(
    ("estimator", "plain"),
    [(DReG(4), IWAE(4)), (DReG(4, alpha=0.5), Renyi(0.5, 4)), (DReG(4, alpha=-1.0), Renyi(-1.0, 4))],
)
def test_doubly_reparametrised_gradients_have_the_mean_of_the_plain_ones(estimator, plain):
    x = torch.full((ROWS,), 1.2, dtype=F64)
    ours, theirs = noisy(Scalar(ROWS), estimator, x), noisy(Scalar(ROWS), plain, x, seed=2)
    for name in ours:
        difference = (ours[name].mean() - theirs[name].mean()).item()
        error = math.sqrt((ours[name].var() + theirs[name].var()) / ROWS)
        print(f"{name}: {ours[name].mean():.5f}, plain {theirs[name].mean():.5f}, standard error {error:.5f}")
        assert abs(difference) < 4 * error
        assert abs(theirs[name].mean()) > 8 * error, "zero would pass"


@pytest.mark.parametrize("make", [LooseLinearGaussian, LinearGaussian])
def test_stl_has_the_exact_gradient_of_the_elbo_where_model_and_guide_share_parameters(make):
    pair = make()
    x = pair.sample(3)
    exact = pair.elbo(x) if make is LooseLinearGaussian else pair.log_prob(x)
    want = dict(zip(("weight", "bias"), grad(exact.mean(), [pair.weight, pair.bias]), strict=True))
    draws = [gradients(pair, STL(200), x, seed=seed) for seed in range(40)]
    for name, value in want.items():
        values = torch.stack([draw[name] for draw in draws])
        error = values.std(0) / math.sqrt(len(draws))
        print(name, values.mean(0), value, error)
        assert ((values.mean(0) - value).abs() < 4 * error + 1e-12).all()


@pytest.mark.parametrize("objective", [STL(1), STL(3), DReG(3), DReG(3, alpha=0.5)])
def test_noise_vanishes_at_the_exact_posterior(objective):
    x = torch.linspace(-2, 2, 50, dtype=F64)
    pair = Scalar(50).at_posterior()
    got = noisy(pair, objective, x)
    plain = noisy(pair, ELBO(closed_form=False), x)
    for name in ("slope", "shift", "log_scale"):
        assert got[name].abs().max() < 1e-11
        assert plain[name].abs().mean() > 0.05


def test_signal_to_noise_falls_for_iwae_and_rises_for_dreg():
    """Rainforth et al. 2018 and Tucker et al. 2019: like K^(-1/2) and K^(1/2)."""
    x = torch.full((ROWS,), 1.2, dtype=F64)
    particles = [4, 16, 64]

    def slope(make):
        ratios = []
        for k in particles:
            value = noisy(Scalar(ROWS), make(k), x)["shift"]
            ratios.append((value.mean().abs() / value.std()).item())
        print(make, [f"{ratio:.4f}" for ratio in ratios])
        return (math.log(ratios[-1]) - math.log(ratios[0])) / math.log(particles[-1] / particles[0])

    assert slope(IWAE) == pytest.approx(-0.5, abs=0.1)
    assert slope(DReG) == pytest.approx(0.5, abs=0.1)


# Refusals -------------------------------------------------------------------------------------------------------------


def normal_model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)


@pytest.mark.parametrize("objective", [STL(2), DReG(2), PIWAE(2, num_groups=1)])
def test_guides_without_a_path_are_refused_by_name(objective):
    def model(x):
        with pyro.plate("data", len(x)):
            y = pyro.sample("y", dist.Bernoulli(x.new_tensor(0.3)))
            pyro.sample("x", dist.Normal(y, 1.0), obs=x)

    def guide(x, infer=None):
        logit = pyro.param("logit", torch.zeros((), dtype=F64))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Bernoulli(logits=logit + x), infer=infer)

    with pytest.raises(ValueError, match=r"the guide enumerates \['y'\], and (STL|DReG|PIWAE) has no gradient"):
        objective.loss(model, partial(guide, infer={"enumerate": "parallel"}), X)
    with pytest.raises(ValueError, match=r"guide site 'y' \(Bernoulli\) has no reparametrised samples"):
        objective.differentiable_loss(model, guide, X)


def test_a_flow_without_an_inverse_is_refused_by_name():
    planar = transforms.Planar(2).double()

    def guide(x):
        pyro.module("planar", planar)
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.stack([x, x], -1), 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [planar]))

    pair = Functions(normal_model, guide)
    step(pair, ELBO(closed_form=False), X)
    with pytest.raises(ValueError, match=r"the density of site 'z' \(TransformedDist.* can't be computed at a value"):
        step(pair, STL(1), X)


def test_a_ledger_that_is_not_cut_is_refused():
    with pytest.raises(ValueError, match=r"the values of \['z'\] still have their path"):
        STL().per_datum(ledger(Scalar(4), X))
    with torch.no_grad():
        assert STL().per_datum(ledger(Scalar(4), X)).shape == (4,)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Renyi(math.nan), "alpha is nan"),
        (lambda: DReG(2, alpha="1"), "alpha is '1'"),
        (lambda: MIWAE(6, num_groups=4), "num_groups is 4 for 6 particles"),
        (lambda: PIWAE(6, num_groups=0), "num_groups is 0 for 6 particles"),
        (lambda: CIWAE(6, beta=1.5), "beta is 1.5"),
        (lambda: CIWAE(6, beta=True), "beta is True, a number of at least 0"),
        (lambda: CIWAE(6, beta=Linear(0, 1, epochs=3)), r"beta is Linear\(.*\), a number of at least 0 is wanted"),
        (lambda: STL(0), "num_particles is 0"),
    ],
)
def test_bad_arguments_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        make()
