import math

import numpy as np
import pytest
import torch
from torch import nn

from pyrovae.priors import LaplaceDirichlet, StandardNormal

PRIORS = {  # name: (prior, event shape)
    "standard normal, int": (lambda: StandardNormal(3), (3,)),
    "standard normal, shape": (lambda: StandardNormal((2, 3)), (2, 3)),
    "Laplace Dirichlet": (lambda: LaplaceDirichlet(3, concentration=0.5), (3,)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", PRIORS)
def test_contract(name, dtype):
    build, event_shape = PRIORS[name]
    torch.manual_seed(0)
    prior = build().to(dtype)
    assert isinstance(prior, nn.Module)
    d = prior()
    assert (d.batch_shape, d.event_shape) == ((), event_shape)
    z = d.expand((5,)).rsample((2,))
    assert (z.shape, z.dtype) == ((2, 5, *event_shape), dtype)
    assert (d.log_prob(z).shape, d.log_prob(z).dtype) == ((2, 5), dtype)
    assert d.has_rsample


def test_standard_normal_density():
    torch.manual_seed(0)
    z = torch.randn(7, 2, 3, dtype=torch.float64)
    log_prob = StandardNormal((2, 3)).double()().log_prob(z)
    torch.testing.assert_close(log_prob, -0.5 * z.square().sum((1, 2)) - 3 * math.log(2 * math.pi))


def test_standard_normal_moments():
    torch.manual_seed(0)
    n = 40_000
    z = StandardNormal(2).double()().sample((n,))
    assert (z.mean(0).abs() < 4 / math.sqrt(n)).all()
    covariance = z.T @ z / n - torch.eye(2, dtype=torch.float64)
    # Standard errors: sqrt(2 / n) on the diagonal, 1 / sqrt(n) off it.
    assert (covariance.abs() < 4 * math.sqrt(2 / n)).all()


def test_standard_normal_ignores_a_context_and_has_no_state():
    prior = StandardNormal(np.int64(2))
    assert torch.equal(prior(torch.randn(5, 4)).mean, prior().mean)
    assert prior(torch.randn(5, 4)).batch_shape == ()
    assert not list(prior.parameters())
    assert not prior.state_dict()


@pytest.mark.parametrize(
    ("event_shape", "error", "message"),
    [
        (0, ValueError, r"event_shape is 0, expected sizes of at least 1; pass a positive event_shape"),
        ((2, -1), ValueError, r"event_shape is \(2, -1\), expected"),
        (2.0, TypeError, r"event_shape is 2.0, expected an int or a sequence of ints"),
    ],
)
def test_bad_event_shapes_are_refused(event_shape, error, message):
    with pytest.raises(error, match=message):
        StandardNormal(event_shape)


@pytest.mark.parametrize("alpha", [0.02, 1.0, 7.0])
@pytest.mark.parametrize("size", [2, 3, 50])
def test_laplace_dirichlet_has_the_mode_and_the_curvature_of_the_dirichlet(size, alpha):
    """Of log Dirichlet(softmax(z)) with the change of variables, z summing to 0: sum_k alpha_k log softmax(z)_k."""
    mode = torch.zeros(size, dtype=torch.float64)

    def log_density(z):
        return alpha * z.log_softmax(-1).sum()

    d = LaplaceDirichlet(size, concentration=alpha).double()()
    torch.testing.assert_close(torch.autograd.functional.jacobian(log_density, d.mean), mode, atol=1e-8, rtol=0)
    curvature = -torch.autograd.functional.hessian(log_density, mode)
    covariance = torch.linalg.pinv(curvature, rtol=1e-8, hermitian=True)  # the direction of all ones is not in theta
    torch.testing.assert_close(d.variance, covariance.diagonal(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((1,), "event_shape is 1, a Dirichlet"), (((2, 3),), "event_shape is"), ((3, 0.0), "concentration is 0.0")],
)
def test_bad_laplace_dirichlets_are_refused(arguments, message):
    size, *alpha = arguments
    with pytest.raises(ValueError, match=message):
        LaplaceDirichlet(size, **({"concentration": alpha[0]} if alpha else {}))
