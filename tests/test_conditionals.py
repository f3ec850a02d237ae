import math
from functools import partial
from itertools import product

import pyro.distributions as dist
import pytest
import torch
from torch import distributions as td
from torch import nn

from pyrovae import conditionals as c
from pyrovae import fit
from pyrovae.models import VAE
from pyrovae.priors import StandardNormal


@pytest.fixture(autouse=True)
def _seeded_float64():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


# Each conditional (a slot's value) and log p(x) per element by hand, from the head's outputs and x.

LAWS = {
    "diagonal normal": (
        c.DiagonalNormal,
        lambda h, x: td.Normal(h[0], 1e-4 + h[1].exp().sqrt()).log_prob(x),
    ),
    "diagonal normal without floor": (
        partial(c.DiagonalNormal, min_scale=0.0),
        lambda h, x: -0.5 * ((x - h[0]) ** 2 / h[1].exp() + h[1] + math.log(2 * math.pi)),
    ),
    "softplus normal": (
        partial(c.SoftplusNormal, min_scale=0.1),
        lambda h, x: td.Normal(h[0], (torch.log1p(h[1].exp()) + 0.01).sqrt()).log_prob(x),
    ),
    "fixed normal": (
        partial(c.FixedNormal, scale=0.1),
        lambda h, x: -0.5 * (x - h[0]) ** 2 / 0.01 - math.log(0.1) - 0.5 * math.log(2 * math.pi),
    ),
    "learned normal": (
        partial(c.LearnedNormal, initial_scale=0.5),
        lambda h, x: td.Normal(h[0], 0.5).log_prob(x),
    ),
    "Bernoulli": (
        c.Bernoulli,
        lambda h, x: torch.log(torch.where(x == 1, h[0].sigmoid(), 1 - h[0].sigmoid())),
    ),
    "continuous Bernoulli": (
        c.ContinuousBernoulli,
        lambda h, x: td.ContinuousBernoulli(logits=h[0]).log_prob(x),
    ),
    "cross-entropy": (
        c.CrossEntropy,
        lambda h, x: x * h[0].sigmoid().log() + (1 - x) * (1 - h[0].sigmoid()).log(),
    ),
    "categorical": (
        partial(c.Categorical, num_classes=3),
        lambda h, x: sum((x == k) * p.log() for k, p in enumerate(torch.stack(h).softmax(0))),
    ),
    "multinomial": (
        partial(c.Multinomial, total_count=4),
        lambda h, x: (
            x * h[0].softmax(-1).log() - torch.lgamma(x + 1) + torch.lgamma(x.sum(-1, keepdim=True) + 1) / x.shape[-1]
        ),
    ),
    "discretized logistic": (
        partial(c.DiscretizedLogistic, levels=5),
        lambda h, x: logistic_log_mass(x, (1 + h[0]) / 2, ((1 + (h[1] + 7).exp()).log() - 7).exp() / 2, 0.25),
    ),
}


def logistic_log_mass(x, loc, scale, width):
    upper = torch.where(x == 1, math.inf, x + width / 2)
    lower = torch.where(x == 0, -math.inf, x - width / 2)
    return torch.log(torch.sigmoid((upper - loc) / scale) - torch.sigmoid((lower - loc) / scale))


def support_grid(name, d):
    """All values of an event of two, or a quadrature's nodes on an event of one, with weights."""
    if name == "multinomial":
        points = torch.tensor([x for x in product(range(5), repeat=2) if sum(x) == 4], dtype=torch.float64)
    elif name in ("Bernoulli", "categorical", "discretized logistic"):
        values = {"Bernoulli": [0, 1], "categorical": [0, 1, 2], "discretized logistic": [0, 0.25, 0.5, 0.75, 1]}[name]
        points = torch.tensor(list(product(values, repeat=2)), dtype=torch.float64)
    else:  # Simpson's rule
        low, high = (0, 1) if d.support.base_constraint is dist.constraints.unit_interval else (-15, 15)
        points = torch.linspace(low, high, 4001)[:, None]
        weights = torch.full((4001,), 2.0)
        weights[1::2], weights[[0, -1]] = 4.0, 1.0
        return points, weights * (high - low) / 4000 / 3
    return points, torch.ones(len(points))


def event_size(name):
    return 2 if name in ("Bernoulli", "categorical", "multinomial", "discretized logistic") else 1


# laws


@pytest.mark.parametrize(
    ("feature_shape", "event_shape"), [(6, (5,)), (6, (1, 2, 3)), ((4, 2, 3), (2, 2, 3)), ((4, 2, 3), 5), (6, (2, 2))]
)
@pytest.mark.parametrize("name", LAWS)
def test_log_prob_by_hand_for_any_leading_dims(name, feature_shape, event_shape):
    build, by_hand = LAWS[name]
    conditional = build(feature_shape, event_shape)
    feature_shape, event_shape = conditional.head.feature_shape, conditional.event_shape
    for leading in [(), (5,), (3, 5), (3, 1, 5)]:
        features = torch.randn((*leading, *feature_shape))
        d = conditional(features)
        assert (d.batch_shape, d.event_shape) == (leading, event_shape)
        x = d.sample((2,))
        assert x.shape == (2, *leading, *event_shape)
        assert d.support.check(x).all()
        want = by_hand(conditional.head(features), x).flatten(1 + len(leading)).sum(-1)
        torch.testing.assert_close(d.log_prob(x), want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("feature_shape", [(6,), (4, 2, 3)])
@pytest.mark.parametrize("name", LAWS)
def test_under_autocast_only_the_head_computes_in_half_precision(name, feature_shape, monkeypatch):
    conditional = LAWS[name][0](feature_shape, (2, 2, 3)).float()
    features = torch.randn(5, *feature_shape, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        parameters = conditional.head(features)
        d = conditional(features)
        x = d.sample()
        values = [d.log_prob(x), *([x, d.rsample()] if d.has_rsample else [])]
        if name.endswith("normal"):
            values.append(td.kl_divergence(d, dist.Normal(torch.zeros(2, 2, 3, dtype=torch.float32), 1).to_event(3)))
    assert {value.dtype for value in (*parameters, *values)} == {torch.float32}
    assert not torch.equal(torch.stack(parameters), torch.stack(conditional.head(features)))
    monkeypatch.setattr(conditional.head, "forward", lambda _: parameters)
    assert torch.equal(conditional(features).log_prob(x), values[0])


def test_heads_in_half_precision_throughout_stay_so():
    (loc,) = c.FixedNormal(6, 2).head.bfloat16()(torch.zeros(5, 6, dtype=torch.bfloat16))
    assert loc.dtype == torch.bfloat16


@pytest.mark.parametrize("name", [name for name in LAWS if name != "cross-entropy"])
def test_likelihoods_are_normalised(name):
    conditional = LAWS[name][0](3, event_size(name))
    d = conditional(torch.randn(4, 3))
    points, weights = support_grid(name, d)
    total = (weights[:, None] * d.log_prob(points[:, None]).exp()).sum(0)
    torch.testing.assert_close(total, torch.ones(4), atol=1e-9, rtol=0)
    assert conditional.is_density


def test_cross_entropy_is_not_normalised_and_says_so():
    conditional = c.CrossEntropy(3, 1)
    d = conditional(torch.randn(4, 3))
    points, weights = support_grid("cross-entropy", d)
    assert ((weights[:, None] * d.log_prob(points[:, None]).exp()).sum(0) < 0.9).all()
    assert not conditional.is_density
    assert not d.base_dist.is_density


@pytest.mark.parametrize("name", [name for name in LAWS if name != "cross-entropy"])
def test_moments_of_samples(name):
    n, size = 20_000, event_size(name)
    d = LAWS[name][0](3, size)(torch.randn(3))
    points, weights = support_grid(name, d)
    p = (weights * d.log_prob(points).exp())[:, None]
    mean = (p * points).sum(0)
    variance = (p * (points - mean) ** 2).sum(0)
    x = d.sample((n,))
    z_mean = (x.double().mean(0) - mean) / (variance / n).sqrt()
    squares = (x - mean) ** 2
    z_variance = (squares.mean(0) - variance) / (squares.std(0) / math.sqrt(n))
    torch.testing.assert_close(z_mean, torch.zeros(size), atol=4, rtol=0)
    torch.testing.assert_close(z_variance, torch.zeros(size), atol=4, rtol=0)
    if name != "categorical":  # codes have no mean
        torch.testing.assert_close(d.mean, mean, atol=1e-9, rtol=0)
        torch.testing.assert_close(d.variance, variance, atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", LAWS)
def test_every_parameter_has_a_finite_gradient(name):
    conditional = LAWS[name][0](3, (2, 2))
    d = conditional(torch.randn(6, 3))
    d.log_prob(d.sample()).sum().backward()
    for parameter in conditional.parameters():
        assert parameter.grad.isfinite().all()
        assert parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("name", LAWS)
def test_float32_stays_float32_and_instances_share_nothing(name):
    build = LAWS[name][0]
    conditional, other = build(3, 4).float(), build(3, 4)
    d = conditional(torch.randn(6, 3, dtype=torch.float32))
    assert d.log_prob(d.sample()).dtype is torch.float32
    assert not {id(p) for p in conditional.parameters()} & {id(p) for p in other.parameters()}


# one by one


def test_kl_to_the_standard_normal_is_the_closed_form():
    q = c.DiagonalNormal(4, 3)(torch.randn(7, 4))
    kl = td.kl_divergence(q, StandardNormal(3)().expand((7,)))
    mu, var = q.base_dist.loc, q.base_dist.scale**2
    by_hand = 0.5 * (var + mu**2 - 1 - var.log()).sum(-1)
    torch.testing.assert_close(kl, by_hand, rtol=1e-12, atol=1e-12)
    assert (kl > 0).all()
    with pytest.raises(AssertionError):  # the sign of the lecture notes
        torch.testing.assert_close(kl, 0.5 * (1 + var.log() - mu**2 - var).sum(-1))
    with pytest.raises(AssertionError):  # sigma where sigma^2 belongs
        torch.testing.assert_close(kl, 0.5 * (var.sqrt() + mu**2 - 1 - var.sqrt().log()).sum(-1))


def test_kl_to_the_standard_normal_is_an_integral():
    q, p = c.DiagonalNormal(4, 1)(torch.randn(7, 4)), StandardNormal(1)()
    z = torch.linspace(-20, 20, 8001)[:, None, None]
    integrand = q.log_prob(z).exp() * (q.log_prob(z) - p.log_prob(z))
    torch.testing.assert_close(td.kl_divergence(q, p.expand((7,))), torch.trapezoid(integrand, z[:, 0], dim=0))


@pytest.mark.parametrize("conditional", [c.DiagonalNormal, c.SoftplusNormal])
def test_scale_has_a_floor_where_exp_underflows(conditional):
    q = conditional(1, 1).float()
    nn.init.zeros_(q.head.layer.weight)
    with torch.no_grad():
        q.head.layer.bias.copy_(torch.tensor([0.3, -1e4]))
    d = q(torch.zeros(1, dtype=torch.float32))
    torch.testing.assert_close(d.base_dist.scale.double(), torch.tensor([1e-4]))
    d.log_prob(torch.tensor([0.3], dtype=torch.float32)).backward()
    assert all(p.grad.isfinite().all() for p in q.parameters())


def test_learned_scale_reaches_the_residuals_root_mean_square():
    # The maximum of the likelihood in the scale alone: sigma^2 = mean (x - loc)^2.
    likelihood, features, x = c.LearnedNormal(3, 2), torch.randn(50, 3), torch.randn(50, 2)
    residual = (x - likelihood(features).mean).square().mean().sqrt().log()
    with torch.no_grad():
        likelihood.log_scale.copy_(residual)
    (gradient,) = torch.autograd.grad(likelihood(features).log_prob(x).sum(), likelihood.log_scale)
    torch.testing.assert_close(gradient, torch.tensor(0.0), atol=1e-10, rtol=0)


def test_floors_and_counts_come_from_the_options():
    d = c.DiscretizedLogistic(3, 2, levels=16, min_log_scale=-2.0)
    nn.init.zeros_(d.head.layer.weight)
    with torch.no_grad():
        d.head.layer.bias.copy_(torch.tensor([-1.0, 1.0, -1e3, -1e3]))  # black, white, at the floor
    base = d(torch.zeros(3)).base_dist
    torch.testing.assert_close(base.loc, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(base.scale, torch.full((2,), math.exp(-2) / 2))
    assert base.levels == 16
    assert c.Multinomial(3, 5, total_count=9)(torch.zeros(3)).sample().sum() == 9
    assert c.Categorical(3, 5, num_classes=4)(torch.zeros(3)).base_dist.logits.shape == (5, 4)


def test_counts_of_another_total_are_refused():
    d = c.Multinomial(3, 2, total_count=4)(torch.zeros(3))
    every = torch.tensor([[0.0, 4.0], [1.0, 3.0], [2.0, 2.0], [3.0, 1.0], [4.0, 0.0]])
    torch.testing.assert_close(d.log_prob(every).exp().sum(), torch.tensor(1.0))
    for total in (3.0, 5.0):
        x = torch.tensor([total - 2, 2.0])
        with pytest.raises(ValueError, match=r"counts that sum to 4"):
            d.log_prob(x)
        pair = VAE(2, 1, likelihood=partial(c.Multinomial, total_count=4)).float()
        with pytest.raises(ValueError, match=r"values that site 'x' cannot give: .* counts that sum to 4"):
            fit(pair, x.float().expand(6, -1), max_epochs=1, progress=False)


@pytest.mark.parametrize("conditional", [c.Bernoulli, c.CrossEntropy])
def test_initialise_starts_from_the_datas_mean(conditional):
    mean = torch.rand(2, 3, 4)
    mean[0, 0, :2] = torch.tensor([0.0, 1.0])
    dense = conditional(5, (2, 3, 4))
    nn.init.zeros_(dense.head.layer.weight)
    assert dense.initialise_(mean) is dense
    torch.testing.assert_close(dense(torch.randn(5)).mean, mean.clamp(0.001, 0.999))

    pointwise = conditional((6, 3, 4), (2, 3, 4))
    nn.init.zeros_(pointwise.head.layer.weight)
    got = pointwise.initialise_(mean)(torch.randn(6, 3, 4)).mean
    torch.testing.assert_close(got, mean.mean((1, 2), keepdim=True).expand(2, 3, 4))

    with pytest.raises(ValueError, match=r"x_mean has shape \(3, 4\), the event has \(2, 3, 4\)"):
        dense.initialise_(mean[0])


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: c.DiagonalNormal(3, 0), ValueError, r"event_shape is 0, expected sizes of at least 1"),
        (lambda: c.DiagonalNormal(3.5, 2), TypeError, r"feature_shape is 3.5, expected an int"),
        (lambda: c.DiagonalNormal(3, 2, min_scale=-1.0), ValueError, r"min_scale is -1.0, expected at least 0"),
        (lambda: c.FixedNormal(3, 2, scale=0.0), ValueError, r"scale is 0.0, expected a positive number"),
        (lambda: c.LearnedNormal(3, 2, initial_scale=math.nan), ValueError, r"initial_scale is nan, expected a"),
        (lambda: c.Categorical(3, 2, num_classes=0), ValueError, r"num_classes is 0, expected"),
        (lambda: c.Multinomial(3, 2, total_count=0), ValueError, r"total_count is 0, expected"),
        (lambda: c.Multinomial(3, (), total_count=2), ValueError, r"event_shape is \(\), a Multinomial expects"),
        (lambda: c.DiscretizedLogistic(3, 2, levels=1), ValueError, r"levels is 1, expected at least 2"),
        (
            lambda: c.Bernoulli(3, 2)(torch.zeros(4)),
            ValueError,
            r"features has event shape \(4,\), the network expects",
        ),
        (lambda: c.Conditional(3, 2), TypeError, r"abstract class Conditional"),
    ],
)
def test_bad_options_are_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()
