"""Bijections: inverses, log-determinants and derivatives against autograd, and Pyro where it has the same map."""

import copy
import gc
import math
import weakref

import pyro.distributions as dist
import pytest
import torch
from torch import distributions as td
from torch import nn
from torch.autograd.functional import jacobian

from pyrovae.flows import (
    ActNorm,
    Affine,
    AffineCoupling,
    AffineElements,
    AsTransform,
    Autoregressive,
    Planar,
    Radial,
    SplineCoupling,
    SplineElements,
)


@pytest.fixture(autouse=True)
def _seeded_float64():
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(dtype)


def network(num_parameters, length=3):
    """Some parameters that depend on the elements before each."""
    weight = torch.randn(num_parameters, length, length).tril(-1)
    bias = torch.randn(num_parameters, length, 1)
    return lambda x: (weight @ x[..., None, :, None] + bias).squeeze(-1)  # (..., num_parameters, length)


def noisy(layer):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return layer.requires_grad_(False)


def bijections():
    v, one, spline = torch.randn(5, 3), torch.randn(5, 1), SplineElements(num_bins=4, bound=2.0)
    return {
        "affine": Affine(v, one.exp().expand(5, 3)),
        "actnorm": noisy(ActNorm(3)),
        "planar": Planar(v, torch.randn(5, 3), one),
        "planar, almost folded": Planar(v, -30 * v, one),
        "planar, steep": Planar(v, 3 * v, one),
        "radial": Radial(v, one.exp(), torch.rand(5, 1)),
        "radial, almost folded": Radial(v, one.exp(), -0.999 * one.exp()),
        "affine autoregressive": Autoregressive(network(2), AffineElements(), range(3)),
        "spline autoregressive": Autoregressive(network(spline.num_parameters), spline, range(3)),
        "affine coupling": noisy(AffineCoupling(3, hidden=(8,))),
        "spline coupling": noisy(SplineCoupling(3, hidden=(8,), num_bins=4, bound=2.0)),
        "affine coupling, second half": noisy(AffineCoupling(3, hidden=(8,), reads_second=True)),
        "spline coupling, second half": noisy(SplineCoupling(3, hidden=(8,), reads_second=True)),
    }


NAMES = tuple(bijections())


@pytest.mark.parametrize("name", NAMES)
def test_inverses_and_log_dets(name):
    f = bijections()[name]
    x = 1.5 * torch.randn(7, 5, 3)
    y, log_det = f.forward(x)
    assert not torch.allclose(x, y)
    back, at_back = f.inverse(y)
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(f.forward(f.inverse(x)[0])[0], x, rtol=1e-7, atol=1e-7)
    for at, found in ((x, log_det), (back, at_back)):
        full = jacobian(lambda z: f.forward(z)[0].sum((0, 1)), at).movedim(0, -2)  # (7, 5, 3, 3)
        want = torch.linalg.slogdet(full)
        assert (want.sign > 0).all()
        torch.testing.assert_close(found.expand(7, 5), want.logabsdet, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_the_inverse_has_the_derivatives_of_the_inverse(name):
    """By y, against the inverse of the matrix; its log|det| by y, against that of x times dx/dy."""
    f = bijections()[name]
    y = torch.randn(5, 3)
    x = f.inverse(y)[0]
    of_inverse = jacobian(lambda z: f.inverse(z)[0].sum(0), y).movedim(0, -2)
    of_forward = jacobian(lambda z: f.forward(z)[0].sum(0), x).movedim(0, -2)
    torch.testing.assert_close(of_inverse @ of_forward, torch.eye(3).expand(5, 3, 3), rtol=1e-5, atol=1e-6)
    at_inverse = jacobian(lambda z: f.inverse(z)[1].sum(), y)
    at_x = jacobian(lambda z: f.forward(z)[1].sum(), x)
    torch.testing.assert_close(at_inverse, (at_x.unsqueeze(-2) @ of_inverse).squeeze(-2), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("make", [Affine, Planar, Radial])
def test_the_inverse_has_the_derivatives_by_the_parameters(make):
    v, u, b = torch.randn(5, 3), torch.randn(5, 3), torch.rand(5, 1)
    parameters = {Affine: (v, u.exp()), Planar: (v, u, b), Radial: (v, b, 0.7 * b)}[make]
    y = torch.randn(5, 3)
    assert torch.autograd.gradcheck(
        lambda *p: make(*p).inverse(y), tuple(p.clone().requires_grad_() for p in parameters), atol=1e-4
    )


@pytest.mark.parametrize("elements", [AffineElements(), SplineElements(num_bins=4, bound=2.0)])
def test_elements_have_the_derivatives_by_the_parameters(elements):
    y, parameters = torch.randn(5, 3), torch.randn(5, elements.num_parameters, 3, requires_grad=True)
    assert torch.autograd.gradcheck(lambda p: elements.forward(y, p), parameters, atol=1e-5)
    assert torch.autograd.gradcheck(lambda p: elements.inverse(y, p), parameters, atol=1e-5)


@pytest.mark.parametrize("name", ["affine", "spline"])
@pytest.mark.parametrize("inverse", [False, True])
def test_parameters_may_have_more_leading_dims_than_the_point(name, inverse):
    """One point under each of many contexts."""
    elements = {"affine": AffineElements(), "spline": SplineElements(num_bins=4)}[name]
    of_x, of_context, x = network(elements.num_parameters), torch.randn(5, elements.num_parameters, 3), torch.randn(3)
    many = Autoregressive(lambda x: of_x(x) + of_context, elements, range(3))
    found, log_det = many.inverse(x) if inverse else many.forward(x)
    for row in range(5):
        one = Autoregressive(lambda x, row=row: of_x(x) + of_context[row], elements, range(3))
        want, want_log_det = one.inverse(x) if inverse else one.forward(x)
        torch.testing.assert_close(found[row], want)
        torch.testing.assert_close(log_det[row], want_log_det)


# As transforms --------------------------------------------------------------------------------------------------------


class Counted:
    def __init__(self, bijection):
        self.bijection, self.runs = bijection, 0

    def forward(self, x):
        self.runs += 1
        return self.bijection.forward(x)

    def inverse(self, y):
        self.runs += 1
        return self.bijection.inverse(y)


@pytest.mark.parametrize("name", NAMES)
def test_a_transform_runs_its_bijection_once_and_forgets_no_point_wrongly(name):
    counted = Counted(bijections()[name])
    f = AsTransform(counted)
    x = torch.randn(7, 5, 3)
    y = f(x)
    assert f.inv(y) is x
    log_det = f.log_abs_det_jacobian(x, y)
    assert counted.runs == 1
    back = f.inv(y.clone())
    torch.testing.assert_close(f.log_abs_det_jacobian(back, y), log_det)
    assert counted.runs == 2
    torch.testing.assert_close(back, x, rtol=1e-6, atol=1e-6)
    f.inv(y + 1)  # what it remembers belongs to that point alone
    torch.testing.assert_close(f.log_abs_det_jacobian(x, y), log_det)


@pytest.mark.parametrize("name", NAMES)
def test_a_transform_goes_with_its_graph(name):
    """No cycle that only the collector finds."""
    f = AsTransform(bijections()[name])
    gc.collect()
    gc.disable()
    try:
        x = torch.randn(5, 3, requires_grad=True)
        y = f(x)
        f.inv(y)
        held = weakref.ref(y), weakref.ref(f)
        del f, x, y
        assert [reference() for reference in held] == [None, None]
    finally:
        gc.enable()


@pytest.mark.parametrize("layer", [ActNorm, AffineCoupling, SplineCoupling])
def test_layers_that_have_run_are_copied(layer):
    module, x = layer(3), torch.randn(4, 3)
    AsTransform(module)(x).sum().backward()
    other = copy.deepcopy(module)
    assert torch.equal(module(x)[0], other(x)[0])


@pytest.mark.parametrize("name", NAMES)
def test_float32_comes_back(name):
    """As near as rounding lets it: digits are lost by the reciprocal of the slope, most at folds."""
    f = bijections()[name]
    for key, value in vars(f).items():
        if isinstance(value, torch.Tensor):
            setattr(f, key, value.float())
    if isinstance(f, nn.Module):
        f.float()
    if isinstance(f, Autoregressive):
        made = f.network
        f.network = lambda x: made(x.double()).float()
    x = torch.randn(7, 5, 3, dtype=torch.float32)
    y, log_det = f.forward(x)
    back, at_back = f.inverse(y)
    assert y.dtype == log_det.dtype == back.dtype == at_back.dtype == torch.float32
    torch.testing.assert_close(back, x, rtol=1e-4, atol=2e-2 if "folded" in name else 1e-3)


# Pyro's maps ----------------------------------------------------------------------------------------------------------


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
    y, log_det = mine.forward(x)
    torch.testing.assert_close(y, theirs(x))
    torch.testing.assert_close(log_det, theirs.log_abs_det_jacobian(x, theirs(x)))


def test_radial_is_pyros():
    centre, a, d, x = torch.randn(5, 3), torch.randn(5, 1), torch.randn(5, 1), torch.randn(5, 3)
    alpha = nn.functional.softplus(a)
    y, log_det = Radial(centre, alpha, nn.functional.softplus(a + d) - alpha).forward(x)
    theirs = dist.transforms.ConditionalRadial(lambda _: (centre, a, a + d)).condition(None)
    torch.testing.assert_close(y, theirs(x))
    torch.testing.assert_close(log_det, theirs.log_abs_det_jacobian(x, theirs(x)))


@pytest.mark.parametrize("inverse", [False, True])
def test_affine_couplings_are_pyros(inverse):
    layer, x = noisy(AffineCoupling(5, hidden=(8,))), torch.randn(7, 5)

    class Given(nn.Module):
        def forward(self, kept):
            shift, gate = layer.head(layer.features(kept))[0].unbind(-2)
            return shift, 3 * torch.tanh(gate / 3)

    theirs = dist.transforms.AffineCoupling(2, Given())
    y, log_det = layer.inverse(x) if inverse else layer(x)
    torch.testing.assert_close(y, theirs.inv(x) if inverse else theirs(x))
    torch.testing.assert_close(log_det, theirs.log_abs_det_jacobian(*((y, x) if inverse else (x, y))))


# Splines --------------------------------------------------------------------------------------------------------------


def spline_of(seed, bins=6, bound=2.0):
    """A spline, and parameters of three numbers."""
    spline = SplineElements(num_bins=bins, bound=bound)
    generator = torch.Generator().manual_seed(seed)
    return spline, torch.randn(spline.num_parameters, 3, generator=generator)


def knots(spline, parameters):
    """(K + 1, 3), by hand."""
    shares = 1e-3 + (1 - 1e-3 * spline.num_bins) * parameters[: spline.num_bins].softmax(0)
    return spline.bound * (2 * torch.cat([torch.zeros(1, 3), shares.cumsum(0)]) - 1)


def test_the_spline_is_pyros_between_its_inner_knots():
    """Pyro's slopes at both ends are 0.999; between the inner knots both are the same function."""
    spline, parameters = spline_of(0)
    theirs = dist.transforms.Spline(3, 6, bound=2.0, order="quadratic")
    with torch.no_grad():
        theirs.unnormalized_widths.copy_(parameters[:6].T)
        theirs.unnormalized_heights.copy_(parameters[6:12].T)
        theirs.unnormalized_derivatives.copy_(parameters[12:].T + math.log(math.exp(1 - 1e-3) - 1))
    inner = knots(spline, parameters)[1:-1]  # (5, 3)
    share = torch.linspace(0.001, 0.999, 50)[:, None]
    x = inner[0] + share * (inner[-1] - inner[0])
    y, log_slope = spline.forward(x, parameters)
    assert torch.allclose(y, theirs(x), atol=1e-10)
    assert torch.allclose(log_slope, theirs.log_abs_det_jacobian(x, theirs(x)), atol=1e-8)
    assert not torch.allclose(y, x, atol=0.05)


def test_the_spline_is_smooth_at_its_knots_and_the_identity_outside():
    spline, parameters = spline_of(1)
    for knot in knots(spline, parameters):
        (below, log_below), (above, log_above) = (spline.forward(knot + e, parameters) for e in (-1e-9, 1e-9))
        assert torch.allclose(below, above, atol=1e-7)
        assert torch.allclose(log_below, log_above, atol=1e-4)  # which bend by up to 1e4
    outside = torch.tensor([-30.0, 2.5, 1e4])
    for y, log_slope in (spline.forward(outside, parameters), spline.inverse(outside, parameters)):
        assert torch.equal(y, outside)
        assert not log_slope.any()


@pytest.mark.parametrize("extreme", [-50.0, 50.0])
def test_splines_of_extreme_parameters_stay_finite(extreme):
    spline, parameters = spline_of(2, bound=3.0)
    parameters = (extreme * parameters.sign()).requires_grad_()
    x = torch.linspace(-4, 4, 100)[:, None].expand(-1, 3)
    y, log_slope = spline.forward(x, parameters)
    assert (y.diff(dim=0) > 0).all()
    back, log_slope_back = spline.inverse(y, parameters)
    assert torch.allclose(back, x, atol=1e-6)
    assert torch.allclose(log_slope_back, log_slope, atol=1e-4)
    for value in (log_slope, *spline.inverse(x, parameters)):
        (gradient,) = torch.autograd.grad(value.sum(), parameters, retain_graph=True)
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("spread", [3.0, 10.0])
def test_steep_splines_are_inverted_in_float32(spread):
    """Where rounding puts the root outside [0, 1], the slope is that at the end of the bin, and dx/dy its inverse."""
    generator = torch.Generator().manual_seed(0)
    spline, parameters = SplineElements(num_bins=8, bound=3.0), spread * torch.randn(23, 100_000, generator=generator)
    y, _ = spline.forward(torch.randn(100_000, generator=generator), parameters)
    parameters, y = parameters.float().requires_grad_(), y.float().requires_grad_()
    x, log_slope = spline.inverse(y, parameters)
    assert (log_slope - spline.forward(x, parameters)[1]).abs().median() < 1e-6
    for value in (x, log_slope):
        gradients = torch.autograd.grad(value.sum(), (y, parameters), retain_graph=True)
        assert all(torch.isfinite(each).all() for each in (value, *gradients))
    if spread == 3:  # rounding makes nonsense of steeper ones' derivatives here and there
        (of_y,) = torch.autograd.grad(x.sum(), y)
        assert (of_y.log() + log_slope).abs().max() < 0.2


@pytest.mark.parametrize("inverse", [False, True])
def test_gradients_far_outside_a_spline_are_finite(inverse):
    spline, parameters = spline_of(3)
    x, parameters = torch.tensor([-1e200, 1e200, 3.0], requires_grad=True), parameters.requires_grad_()
    y, log_slope = (spline.inverse if inverse else spline.forward)(x, parameters)
    of_x, of_parameters = torch.autograd.grad((y + log_slope).sum(), (x, parameters))
    assert torch.equal(of_x, torch.ones(3))
    assert not of_parameters.any()


@pytest.mark.parametrize("inverse", [False, True])
def test_splines_are_monotone_and_their_slopes_are_autograds(inverse):
    spline = SplineElements(num_bins=4, bound=3.0)
    parameters = 2 * torch.randn(11, 1000, generator=torch.Generator().manual_seed(0))
    x = torch.linspace(-3.5, 3.5, 1000, requires_grad=True)
    there, back = (spline.inverse, spline.forward) if inverse else (spline.forward, spline.inverse)
    y, log_slope = there(x, parameters)
    (slope,) = torch.autograd.grad(y.sum(), x)
    assert torch.allclose(slope.log() * (-1 if inverse else 1), log_slope, atol=1e-8)
    assert torch.allclose(back(y, parameters)[0], x, atol=1e-9)
    assert torch.equal(y[x.abs() > 3], x[x.abs() > 3])
    assert (there(x, parameters[:, :1])[0].diff() > 0).all()
    ends = torch.tensor([-3 + 1e-9, 3 - 1e-9])
    assert there(ends, parameters[:, :2])[1].abs().max() < 1e-4  # slope 1: the density has no step
    assert torch.allclose(there(x, torch.zeros_like(parameters))[0], x, atol=1e-9)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: SplineElements(num_bins=1), r"num_bins is 1, expected 2 to 500 pieces; pass num_bins=8"),
        (lambda: SplineElements(bound=-1.0), r"bound is -1.0, expected a positive number; pass bound=3.0"),
        (lambda: AffineCoupling(1), r"dim is 1, a coupling takes two numbers at least"),
        (lambda: AffineCoupling(3, hidden=(0,)), r"hidden is \(0,\), expected sizes of at least 1"),
    ],
)
def test_wrong_arguments_are_told(make, match):
    with pytest.raises(ValueError, match=match):
        make()
