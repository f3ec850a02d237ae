"""Posteriors with correlations, modes and flows: exact densities, inverses, gradients, and what they reduce to."""

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from torch import distributions as td
from torch import nn
from torch.autograd.functional import jacobian

from pyrovae import conditionals as c
from pyrovae.conditionals.transforms import (
    Affine,
    AffineElements,
    Autoregressive,
    Planar,
    Radial,
    SplineElements,
)


@pytest.fixture(autouse=True)
def _seeded_float64():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


POSTERIORS = {
    "low rank": partial(c.LowRankNormal, rank=1),
    "full": c.FullNormal,
    "mixture": partial(c.NormalMixture, num_components=3),
    "planar": partial(c.PlanarFlow, num_steps=3),
    "radial": partial(c.RadialFlow, num_steps=3),
    "IAF": partial(c.IAF, num_steps=2),
    "spline": partial(c.SplineFlow, num_steps=2, num_bins=4, bound=3.0),
}
FLOWS = ["planar", "radial", "IAF", "spline"]


def far_from_the_start(name, length, features=3):
    """A posterior whose every part is at work."""
    conditional = POSTERIORS[name](features, length)
    with torch.no_grad():
        for parameter in conditional.parameters():
            parameter.copy_(0.7 * torch.randn_like(parameter))
        conditional.head.layer.weight.mul_(0.3)
        for network in getattr(conditional, "networks", ()):
            network.layers[-1].weight.mul_(0.1)
            network.layers[-1].bias.mul_(0.3)
            network.skip_layer.weight.mul_(0.2)
    return conditional


def grid(low, high, points, length):
    """Points (N, length) and their share of the volume, for functions that vanish at the border."""
    axis = torch.linspace(low, high, points)
    return torch.cartesian_prod(*[axis] * length).reshape(-1, length), (axis[1] - axis[0]) ** length


# Densities ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2])
@pytest.mark.parametrize("name", POSTERIORS)
def test_densities_integrate_to_one(name, length):
    q = far_from_the_start(name, length)(0.5 * torch.randn(2, 3))
    points, volume = grid(-25, 25, 10_001, 1) if length == 1 else grid(-9, 9, 301, 2)
    total = (q.log_prob(points.unsqueeze(1)).exp() * volume).sum(0)
    torch.testing.assert_close(total, torch.ones(2), atol=2e-3 if length == 2 else 1e-4, rtol=0)


@pytest.mark.parametrize("name", POSTERIORS)
def test_densities_of_five_dims_integrate_to_one(name):
    q = far_from_the_start(name, 5)(0.5 * torch.randn(3))
    with torch.no_grad():
        pilot = q.sample((5000,))
        proposal = dist.MultivariateStudentT(torch.tensor(5.0), pilot.mean(0), torch.linalg.cholesky(2 * pilot.T.cov()))
        x = proposal.sample((20_000,))
        weights = (q.log_prob(x) - proposal.log_prob(x)).exp()
    error = weights.std() / math.sqrt(len(weights))
    print(weights.mean(), error)
    assert abs(weights.mean() - 1) < 4 * error
    assert error < 0.1


@pytest.mark.parametrize("name", POSTERIORS)
def test_samples_match_the_density(name):
    n = 20_000
    q = far_from_the_start(name, 2)(0.5 * torch.randn(3))
    points, volume = grid(-9, 9, 301, 2)
    p = q.log_prob(points).exp() * volume
    x = q.rsample((n,)).detach()
    for f in (lambda z: z[:, 0], lambda z: z[:, 1], lambda z: z.tanh().prod(-1), lambda z: (z[:, 0] - z[:, 1]).cos()):
        mean = (p * f(points)).sum()
        error = f(x).std() / math.sqrt(n)
        print(mean, f(x).mean(), error)
        assert abs(f(x).mean() - mean) < 4 * error + 1e-3


@pytest.mark.parametrize("name", POSTERIORS)
def test_density_of_a_draw_is_the_density_of_the_point(name):
    """With the transforms' memory and without."""
    q = far_from_the_start(name, 4)(torch.randn(5, 3))
    x = q.rsample((3,))
    torch.testing.assert_close(q.log_prob(x), q.log_prob(x.clone()), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", POSTERIORS)
def test_any_leading_dims(name):
    conditional = far_from_the_start(name, 4, features=(2, 3))
    for leading in [(), (5,), (3, 5), (3, 1, 5)]:
        features = torch.randn(*leading, 2, 3)
        q = conditional(features)
        assert (q.batch_shape, q.event_shape) == (torch.Size(leading), torch.Size([4]))
        assert q.has_rsample
        x = torch.randn(2, *leading, 4)
        assert q.log_prob(x).shape == (2, *leading)
        flat = conditional(features.reshape(-1, 2, 3)).log_prob(x.reshape(2, -1, 4))
        torch.testing.assert_close(q.log_prob(x).reshape(2, -1), flat)
        wide = q.expand((2, *leading))
        drawn = wide.rsample()
        torch.testing.assert_close(wide.log_prob(drawn), q.log_prob(drawn.clone()), rtol=1e-8, atol=1e-8)


# Transforms -----------------------------------------------------------------------------------------------------------


def network(param_dims, length=3):
    """Some parameters that depend on the elements before each, and how to hold them fixed."""
    weights = [torch.randn(p, length, length).tril(-1) for p in param_dims]
    biases = [torch.randn(p, length, 1) for p in param_dims]

    def parameters(x):
        found = [(w @ x[..., None, :, None] + b).squeeze(-1) for w, b in zip(weights, biases, strict=True)]
        return [f.squeeze(-2) if f.size(-2) == 1 else f for f in found]

    return parameters


def transforms():
    v, one = torch.randn(5, 3), torch.randn(5, 1)
    return {
        "affine": Affine(v, one.exp().expand(5, 3)),
        "planar": Planar(v, torch.randn(5, 3), one),
        "planar, almost folded": Planar(v, -30 * v, one),
        "planar, steep": Planar(v, 3 * v, one),
        "radial": Radial(v, one.exp(), torch.rand(5, 1)),
        "radial, almost folded": Radial(v, one.exp(), -0.999 * one.exp()),
        "autoregressive": Autoregressive(network([1, 1]), AffineElements(), range(3)),
        "spline": Autoregressive(network([4, 4, 3]), SplineElements(2.0), range(3)),
    }


@pytest.mark.parametrize("name", transforms())
def test_inverse_and_log_det_of_each_transform(name):
    f = transforms()[name]
    x = 1.5 * torch.randn(7, 5, 3)
    y = f(x)
    assert f.inv(y) is x
    back = f._inverse(y)
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(f._call(f._inverse(x)), x, rtol=1e-7, atol=1e-7)
    for at, log_det in ((x, f.log_abs_det_jacobian(x, y)), (back, f.log_abs_det_jacobian(back, y))):
        full = jacobian(lambda z: f._call(z).sum((0, 1)), at).movedim(0, -2)  # (7, 5, 3, 3)
        want = torch.linalg.slogdet(full)
        assert (want.sign > 0).all()
        torch.testing.assert_close(log_det.expand(7, 5), want.logabsdet, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", transforms())
def test_the_inverse_has_the_derivatives_of_the_inverse(name):
    """By y, against the inverse of the matrix; by the parameters, against finite differences."""
    f = transforms()[name]
    y = torch.randn(5, 3)
    x = f._inverse(y)
    of_inverse = jacobian(lambda z: f._inverse(z).sum(0), y).movedim(0, -2)
    of_forward = jacobian(lambda z: f._call(z).sum(0), x).movedim(0, -2)
    torch.testing.assert_close(of_inverse @ of_forward, torch.eye(3).expand(5, 3, 3), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [Planar, Radial])
def test_the_inverse_has_the_derivatives_by_the_parameters(make):
    v, u, b = torch.randn(5, 3), torch.randn(5, 3), torch.rand(5, 1)
    parameters = (v, u, b) if make is Planar else (v, b, 0.7 * b)
    y = torch.randn(5, 3)
    assert torch.autograd.gradcheck(
        lambda *p: make(*p)._inverse(y), tuple(p.clone().requires_grad_() for p in parameters), atol=1e-4
    )


def test_planar_is_the_papers_where_the_shift_of_softplus_is_taken_back():
    """Pyro's, with u along w as much shorter as its softplus is."""
    w, u, b, x = torch.randn(5, 3), torch.randn(5, 3), torch.randn(5, 1), torch.randn(5, 3)
    mine = Planar(w, u, b)
    along = (w * u).sum(-1, keepdim=True)
    shorter = u + math.log(math.e - 1) * w / (w * w).sum(-1, keepdim=True)
    theirs = dist.transforms.ConditionalPlanar(lambda _: (b, shorter, w)).condition(None)
    # u^ along w is m(w.u), and across w what u has.
    torch.testing.assert_close(
        (mine.u * w).sum(-1, keepdim=True), td.transforms.SoftplusTransform()(along + math.log(math.e - 1)) - 1
    )
    torch.testing.assert_close(mine(x), theirs(x))
    torch.testing.assert_close(mine.log_abs_det_jacobian(x, mine(x)), theirs.log_abs_det_jacobian(x, theirs(x)))


def test_radial_is_pyros():
    centre, a, d, x = torch.randn(5, 3), torch.randn(5, 1), torch.randn(5, 1), torch.randn(5, 3)
    alpha = nn.functional.softplus(a)
    mine = Radial(centre, alpha, nn.functional.softplus(a + d) - alpha)
    theirs = dist.transforms.ConditionalRadial(lambda _: (centre, a, a + d)).condition(None)
    torch.testing.assert_close(mine(x), theirs(x))
    torch.testing.assert_close(mine.log_abs_det_jacobian(x, mine(x)), theirs.log_abs_det_jacobian(x, theirs(x)))


def test_splines_are_pyros_inside_their_bound():
    from pyro.distributions.transforms.spline import _monotonic_rational_spline

    x = torch.linspace(-2.5, 2.5, 41).unsqueeze(-1)
    w, h, d = torch.randn(41, 4, 1), torch.randn(41, 4, 1), torch.randn(41, 3, 1)
    y, log_slope = SplineElements(2.0).forward(x, w, h, d)
    slopes = nn.functional.softplus(d + math.log(math.expm1(0.999)))
    theirs, theirs_log = _monotonic_rational_spline(
        x, w.softmax(-2).mT, h.softmax(-2).mT, slopes.mT, bound=2.0, eps=0.0
    )
    knots = 4 * (1e-3 + 0.996 * w.softmax(-2)).cumsum(-2) - 2
    inner = (x > knots[:, 0]) & (x < knots[:, 2])  # at the ends Pyro's slope is 0.999, which is not that outside
    assert inner.sum() > 10
    torch.testing.assert_close(y[inner], theirs[inner])
    torch.testing.assert_close(log_slope[inner], theirs_log[inner])
    assert torch.equal(y[x.abs() > 2], x[x.abs() > 2])


# What they reduce to --------------------------------------------------------------------------------------------------


def diagonal(conditional, length):
    base = c.DiagonalNormal(3, length)
    base.load_state_dict({n: v for n, v in conditional.state_dict().items() if n.startswith("head.")})
    return base


@pytest.mark.parametrize("name", [*FLOWS, "full", "low rank"])
def test_with_the_rest_at_zero_it_is_the_diagonal_normal(name):
    conditional = POSTERIORS[name](3, 4)
    features, x = torch.randn(5, 3), torch.randn(5, 4)
    base = diagonal(conditional, 4)(features)
    start = conditional(features).log_prob(x)
    torch.testing.assert_close(start, base.log_prob(x), atol=0.3 if name != "low rank" else 1.0, rtol=0)
    assert not torch.equal(start, base.log_prob(x))
    with torch.no_grad():
        if name in ("IAF", "spline"):
            for made in conditional.networks:
                made.layers[-1].weight.zero_()
                made.skip_layer.weight.zero_()
        elif name in ("full", "low rank"):
            rest = conditional.below if name == "full" else conditional.factors
            rest.layer.weight.zero_()
            rest.layer.bias.zero_()
        else:
            identity = slice(3 * 4) if name == "planar" else slice(3)
            conditional.steps.layer.weight[identity] = 0.0
    q = conditional(features)
    torch.testing.assert_close(q.log_prob(x), base.log_prob(x), rtol=1e-10, atol=1e-10)
    torch.manual_seed(1)
    drawn = q.rsample()
    torch.manual_seed(1)
    if name != "low rank":  # which draws noise of its factors too
        torch.testing.assert_close(drawn, base.rsample(), rtol=1e-10, atol=1e-10)


def test_a_mixture_of_one_is_the_diagonal_normal():
    conditional = c.NormalMixture(3, 4, num_components=1)
    features = torch.randn(5, 3)
    q, base = conditional(features), diagonal(conditional, 4)(features)
    x = q.rsample()
    torch.testing.assert_close(q.log_prob(x), base.log_prob(x))
    noise = ((x - base.base_dist.loc) / base.base_dist.scale).detach()
    torch.testing.assert_close(x, base.base_dist.loc + noise * base.base_dist.scale)
    got = torch.autograd.grad(x.square().sum(), tuple(conditional.head.parameters()))
    moved = conditional.head(features)
    again = moved[0] + noise * (1e-4 + (moved[1] / 2).exp())
    for a, b in zip(got, torch.autograd.grad(again.square().sum(), tuple(conditional.head.parameters())), strict=True):
        torch.testing.assert_close(a, b)


def test_low_rank_at_the_full_rank_is_full():
    low, full = far_from_the_start("low rank", 4), c.FullNormal(3, 4)
    low = c.LowRankNormal(3, 4, rank=4)
    features, x = torch.randn(3), torch.randn(7, 4)
    q = low(features)
    loc, scale = low.moments(features)
    factors = torch.stack(low.factors(features), -1)
    covariance = factors @ factors.T + scale.diag() ** 2
    tril = torch.linalg.cholesky(covariance)
    with torch.no_grad():
        for layer in (full.head.layer, full.below.layer):
            layer.weight.zero_()
        full.head.layer.bias.copy_(torch.cat([loc, 2 * (tril.diagonal() - 1e-4).log()]))
        full.below.layer.bias.copy_(tril[*torch.tril_indices(4, 4, -1)])
    torch.testing.assert_close(q.log_prob(x), full(features).log_prob(x))
    torch.testing.assert_close(q.log_prob(x), td.MultivariateNormal(loc, covariance).log_prob(x))


def test_scales_of_full_and_low_rank_have_a_floor():
    for name in ("full", "low rank", "mixture"):
        conditional = POSTERIORS[name](1, 2, min_scale=0.1)
        with torch.no_grad():
            for parameter in conditional.parameters():
                parameter.zero_()
            conditional.head.layer.bias[-len(conditional.head.layer.bias) // 2 :] = -1e4
        q = conditional(torch.zeros(1))
        torch.testing.assert_close(
            q.log_prob(torch.zeros(2)), dist.Normal(torch.zeros(2), 0.1).to_event(1).log_prob(torch.zeros(2))
        )


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2])
def test_gradient_of_a_mixtures_samples(length):
    """Against moments in closed form, weights, means and scales; Pyro's MixtureOfDiagNormals fails for the weights."""
    loc = torch.tensor([[0.5, -1.0], [2.0, 0.3], [-1.0, 1.5]])[:, :length].requires_grad_()
    scale = torch.tensor([[0.4, 1.3], [0.8, 0.3], [1.5, 0.7]])[:, :length].requires_grad_()
    logits = torch.tensor([0.3, -0.2, 0.1]).requires_grad_()
    leaves = (loc, scale, logits)
    p = logits.softmax(-1)
    first, last = (loc[:, 0], scale[:, 0]), (loc[:, -1], scale[:, -1])
    cross = first[0] * last[0] if length == 2 else loc[:, 0] ** 2 + scale[:, 0] ** 2
    exact = (p * (first[0] ** 2 + first[1] ** 2 + cross + last[0].sin() * (-(last[1] ** 2) / 2).exp())).sum()
    want = torch.autograd.grad(exact, leaves)
    from pyrovae.conditionals.mixture import _MixtureOfDiagonalNormals

    gradients = []
    for _ in range(20):
        q = _MixtureOfDiagonalNormals(dist.Categorical(logits=logits), dist.Normal(loc, scale).to_event(1))
        z = q.rsample((5000,))
        value = (z[:, 0] ** 2 + z[:, 0] * z[:, -1] + z[:, -1].sin()).mean()
        gradients.append(torch.autograd.grad(value, leaves))
    for each, exactly in zip(zip(*gradients, strict=True), want, strict=True):
        mean, error = torch.stack(each).mean(0), torch.stack(each).std(0) / math.sqrt(20)
        print(mean, error, exactly)
        assert ((mean - exactly).abs() < 5 * error + 1e-12).all()
        assert (error < 0.02).all()
