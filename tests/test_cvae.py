"""The conditional VAE: a constant condition is a VAE, log p(x | y) is an integral, labels have a range."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn

import pyrovae as pv
from pyrovae.evaluation import decode, generate, reconstruct
from pyrovae.graphs.backends import interpreted
from pyrovae.models.base import structure
from pyrovae.objectives import ELBO, IWAE
from pyrovae.training.compiled import CompiledUpdate
from pyrovae.training.step import Step


class Conditioned(nn.Module):
    """p(z | y) = N(W y, 0.5^2)."""

    def __init__(self, latent_dim, length):
        super().__init__()
        self.layer = nn.Linear(length, latent_dim)

    def forward(self, context=None):
        return dist.Normal(self.layer(context), context.new_tensor(0.5)).to_event(1)


def made(**options):
    torch.manual_seed(0)
    return pv.CVAE(6, 2, num_classes=3, **{"hidden": (7, 5), **options}).double()


def bits(rows=4):
    return torch.rand(rows, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).round()


def of_label(pair, label):
    """The VAE that a CVAE is for one label: the first layers' weights of y are part of their biases."""
    vae = pv.VAE(6, 2, hidden=(7, 5)).double()
    state = pair.state_dict()
    for net, length in (("encoder", 6), ("decoder", 2)):
        weight = state.pop(f"{net}.layers.0.weight")
        state[f"{net}.layers.0.weight"] = weight[:, :length]
        state[f"{net}.layers.0.bias"] = state[f"{net}.layers.0.bias"] + weight[:, length + label]
    vae.load_state_dict(state)
    return vae


@pytest.mark.parametrize("label", [0, 2])
def test_a_constant_condition_is_a_vae(label):
    pair, x = made(), bits()
    vae, y = of_label(pair, label), torch.full((4,), label)
    for objective in (ELBO(2), IWAE(3)):
        values, gradients = [], []
        for one, batch in ((pair, (x, y)), (vae, (x,))):
            one.zero_grad()
            pyro.set_rng_seed(1)
            values.append(Step(one, objective, structure(one, *batch)).backward(*batch))
            gradients.append({name: p.grad for name, p in one.named_parameters()})
        torch.testing.assert_close(*values, rtol=1e-12, atol=0)
        of_y = gradients[0]["encoder.layers.0.weight"][:, 6:]
        torch.testing.assert_close(of_y[:, label], gradients[1]["encoder.layers.0.bias"])
        assert of_y.any(0).tolist() == [k == label for k in range(3)]
    wrong = of_label(pair, 1)
    pyro.set_rng_seed(1)
    assert not torch.isclose(values[0], Step(wrong, objective, structure(wrong, x))(x), rtol=1e-6)


@pytest.mark.parametrize("prior", [pv.priors.StandardNormal, partial(Conditioned, length=3)])
def test_the_log_likelihood_is_that_of_x_given_y(prior):
    """Against the integral over z on a grid, one y and one x for each of the 64 values of x: they sum to 1 too."""
    pair = made(prior=prior)
    with torch.no_grad():
        for parameter in [*pair.decoder.parameters(), *pair.prior.parameters()]:
            parameter.mul_(3)  # so that z and y matter
    x = torch.cartesian_prod(*[torch.arange(2.0)] * 6).double()
    y = torch.zeros(64, dtype=torch.long)
    estimate = pv.log_likelihood(pair, (x, y), num_samples=2000)
    grid = torch.linspace(-7, 7, 141, dtype=torch.float64)
    z = torch.cartesian_prod(grid, grid)
    with torch.no_grad():
        given = pair.condition(y[:1])
        p_x = pair.likelihood(pair.decoder(z[:, None], given)).log_prob(x)  # (grid, 64)
        weight = pair.prior(given).log_prob(z[:, None]) + 2 * math.log(14 / 140)
    want = (p_x + weight).logsumexp(0)
    assert want.exp().sum().item() == pytest.approx(1.0, abs=1e-4)
    print(estimate, want.mean(), (estimate.per_datum - want).abs().max())
    assert abs(estimate.value - want.mean().item()) < 4 * estimate.standard_error + 1e-4
    error = estimate.standard_error * 8  # of one of the 64
    assert (estimate.per_datum - want).square().mean().sqrt() < 2 * error
    others = pair.likelihood(pair.decoder(z[:, None], pair.condition(torch.tensor([2])))).log_prob(x)
    assert ((others + weight).logsumexp(0) - want).abs().mean() > 0.1  # y matters


def test_samples_and_reconstructions_keep_the_label():
    """A likelihood that is the label, whatever z: generate, decode and reconstruct give it back, row by row."""
    pair = made()
    with torch.no_grad():
        for parameter in [*pair.decoder.parameters(), *pair.likelihood.parameters()]:
            parameter.zero_()
        pair.decoder.layers[0].weight[0, 2:] = torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64)
        pair.decoder.layers[2].weight[0, 0] = 1.0
        pair.likelihood.head.layer.weight[:, 0] = 1.0
    want = torch.tanh(torch.tanh(torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64))).sigmoid()
    y = torch.tensor([2, 0, 1])
    x = generate(pair, 6, like=(bits(3), y))
    torch.testing.assert_close(x, want[y.repeat(2)][:, None].expand(6, 6))
    torch.testing.assert_close(reconstruct(pair, (bits(3), y)), want[y][:, None].expand(3, 6))
    same_z = torch.zeros(3, 2, dtype=torch.float64)
    torch.testing.assert_close(decode(pair, same_z, like=(bits(3), y)), want[y][:, None].expand(3, 6))


# Labels ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.long, torch.int32, torch.float64, torch.uint8])
def test_labels_of_any_type_are_one_hot(dtype):
    y = torch.tensor([[0, 2, 1], [1, 1, 0]], dtype=dtype)
    assert torch.equal(made().condition(y), nn.functional.one_hot(y.long(), 3).double())


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 1, 3, 2], r"y has 1 labels that are none of 0, ..., 2, the first in row 2 \(3\)"),
        ([0, -1, -1, 2], r"y has 2 labels that are none of 0, ..., 2, the first in row 1 \(-1\)"),
        ([0.0, 1.0, 0.5, 2.0], r"the first in row 2 \(0.5\)"),
    ],
)
def test_labels_out_of_range_are_named(y, message):
    with pytest.raises(ValueError, match=message):
        pv.fit(made(), (bits(), torch.tensor(y)), max_epochs=1, progress=False)
    for evaluate in (pv.elbo, reconstruct):
        with pytest.raises(ValueError, match=message):
            evaluate(made(), (bits(), torch.tensor(y)))


def test_labels_out_of_range_are_named_in_later_rows():
    y = torch.tensor([0, 1, 2, 3])
    for run in (partial(pv.fit, max_epochs=1, batch_size=3, progress=False), partial(pv.elbo, batch_size=3)):
        with pytest.raises(ValueError, match=r"y has 1 labels that are none of 0, ..., 2, the first in row [03] \(3\)"):
            run(made(), (bits(), y))


def test_a_condition_is_made_without_a_look_at_its_values():
    want = nn.functional.one_hot(torch.tensor([0, 2, 0]), 3).double()
    want[2] = math.nan
    y = torch.tensor([0, 2, 5])
    torch.testing.assert_close(made().condition(y), want, equal_nan=True)
    torch.testing.assert_close(torch.func.vmap(made().condition)(y), want, equal_nan=True)  # which can't branch


def test_labels_that_are_one_hot_already_are_named():
    with pytest.raises(ValueError, match=r"y has shape \(4, 3\), labels have shape \(4,\)"):
        pv.elbo(made(), (bits(), torch.eye(3)[[0, 1, 2, 0]]))


def test_a_bad_label_that_a_captured_step_meets_later_makes_the_loss_nan():
    """Graphs read no values: the loss is NaN, at which fit stops, instead of that of another label."""
    pair, x, y = made(), bits(), torch.tensor([0, 1, 2, 1])
    step = Step(pair, ELBO(), structure(pair, x, y))
    update = CompiledUpdate(step, torch.optim.Adam(pair.parameters()), backend=interpreted)
    losses = [update(x, y) for _ in range(3)]
    assert all(math.isfinite(loss) for loss in losses)
    assert math.isnan(update(x, torch.tensor([0, 1, 3, 1])))
    assert update.failure is None
    assert len(update.graphs) == 1


def test_a_condition_of_another_shape_is_named():
    pair = pv.CVAE(6, 2, condition_shape=(1, 3), hidden=(7,))
    with pytest.raises(ValueError, match=r"y has event shape \(3, 1\), the network expects \(1, 3\)"):
        pv.fit(pair, (torch.ones(4, 6), torch.ones(4, 3, 1)), max_epochs=1, progress=False)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pv.CVAE(4, 2, num_classes=0), ValueError, "num_classes is 0"),
        (lambda: pv.CVAE(4, 2, condition_shape=2.5), TypeError, "condition_shape is 2.5"),
        (lambda: pv.CVAE(4, 2, hidden=()), ValueError, "hidden is empty"),
        (lambda: pv.CVAE(4, 2, encoder=3), TypeError, "encoder is 3, not a module"),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
