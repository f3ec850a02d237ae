"""Several stochastic layers against joint Gaussians: the merge, both guides' bounds, the exact posterior of a chain."""

from __future__ import annotations

import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceMeanField_ELBO

import pyrovae as pv
from pyrovae.evaluation import generate
from pyrovae.models.base import structure
from pyrovae.models.hierarchical import merge
from pyrovae.objectives import ELBO, IWAE, DReG, ledger, log_weights
from pyrovae.training.step import Step

NOISE = 0.6
LINEAR = {"hidden": (), "likelihood": partial(pv.conditionals.FixedNormal, scale=NOISE)}
PAIRS = {"bottom up": pv.HierarchicalVAE, "ladder": pv.LadderVAE}


def linear(cls: type, seed: int = 0) -> pv.Pair:
    """Linear maps z2 -> z1 -> x of 2, 2 and 3 numbers, and variances that depend on nothing."""
    torch.manual_seed(seed)
    pair = cls(3, (2, 2), **LINEAR).double()
    with torch.no_grad():
        for conditional in (*pair.posteriors, *pair.conditionals):
            conditional.head.layer.weight[2:] = 0
    return pair


def data(rows: int = 3) -> torch.Tensor:
    return torch.randn(rows, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def at(program, site: str, given: dict, x: torch.Tensor) -> dist.Distribution:
    return poutine.trace(poutine.condition(program, data=given)).get_trace(x).nodes[site]["fn"].base_dist


def joint(program, first: str, second: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and covariance of two sites (of 2 numbers, then of any) of an affine Gaussian program, for one row x."""
    q = at(program, first, {}, x)
    offset = at(program, second, {first: torch.zeros(1, 2, dtype=x.dtype)}, x)
    units = torch.eye(2, dtype=x.dtype)
    slope = torch.cat([at(program, second, {first: unit[None]}, x).loc - offset.loc for unit in units]).T
    mean = torch.cat([q.loc[0], slope @ q.loc[0] + offset.loc[0]])
    s = q.variance[0].diag()
    below = slope @ s
    return mean, torch.cat(
        [torch.cat([s, below.T], 1), torch.cat([below, below @ slope.T + offset.variance[0].diag()], 1)]
    )


def exact(pair: pv.Pair, x: torch.Tensor) -> tuple[float, float]:
    """log p(x) of one row, and the ELBO log p(x) - KL(q(z1, z2 | x) || p(z1, z2 | x)), from Gaussian algebra alone."""
    with torch.no_grad():
        prior, covariance = joint(pair.model, "z2", "z1", x)
        weight, bias = pair.likelihood.head.layer.weight, pair.likelihood.head.layer.bias
        map_ = torch.cat([torch.zeros_like(weight), weight], 1)  # x depends on z1 alone
        of_x = map_ @ covariance @ map_.T + NOISE**2 * torch.eye(3, dtype=x.dtype)
        gain = covariance @ map_.T @ torch.linalg.inv(of_x)
        posterior = dist.MultivariateNormal(
            prior + gain @ (x[0] - map_ @ prior - bias), covariance - gain @ map_ @ covariance
        )
        log_p = dist.MultivariateNormal(map_ @ prior + bias, of_x).log_prob(x[0])
        first, second = ("z1", "z2") if isinstance(pair, pv.HierarchicalVAE) else ("z2", "z1")
        mean, cov = joint(pair.guide, first, second, x)
        if first == "z1":
            order = torch.tensor([2, 3, 0, 1])
            mean, cov = mean[order], cov[order][:, order]
        kl = torch.distributions.kl_divergence(dist.MultivariateNormal(mean, (cov + cov.T) / 2), posterior)
        return log_p.item(), (log_p - kl).item()


# The merge ------------------------------------------------------------------------------------------------------------


def test_merge_is_the_normalised_product_of_gaussians():
    torch.manual_seed(0)
    loc1, loc2 = torch.randn(2, 5, 3, dtype=torch.float64)
    scale1, scale2 = torch.rand(2, 5, 3, dtype=torch.float64) + 0.1
    merged = dist.Normal(*merge(loc1, scale1, loc2, scale2))
    z = torch.randn(7, 5, 3, dtype=torch.float64)
    rest = dist.Normal(loc1, scale1).log_prob(z) + dist.Normal(loc2, scale2).log_prob(z) - merged.log_prob(z)
    overlap = dist.Normal(loc1, (scale1**2 + scale2**2).sqrt()).log_prob(loc2)  # the product's integral, in closed form
    torch.testing.assert_close(rest, overlap.expand_as(rest))


def test_merge_stays_finite_where_precisions_would_not():
    given = [torch.tensor(v, requires_grad=True) for v in (2.0, 1e-25, -1.0, 1e12)]
    loc, scale = merge(*given)
    assert loc.item() == 2
    assert scale.item() == pytest.approx(1e-25)
    gradients = torch.autograd.grad(loc + scale, given)
    assert [gradient.item() for gradient in gradients] == [1.0, 1.0, 0.0, 0.0]


# The bounds -----------------------------------------------------------------------------------------------------------


def value_and_error(pair, objective, x, draws=100_000):
    pyro.set_rng_seed(0)
    rows = x.expand(draws, -1)
    with torch.no_grad():
        values = objective.per_datum(objective.draw(pair, rows, known=structure(pair, rows)))
    return values.mean().item(), values.std().item() / math.sqrt(draws)


@pytest.mark.parametrize("closed_form", [True, False])
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("name", PAIRS)
def test_the_elbo_is_the_exact_one(name, row, closed_form):
    pair, x = linear(PAIRS[name]), data()[row : row + 1]
    log_p, want = exact(pair, x)
    value, error = value_and_error(pair, ELBO(closed_form=closed_form), x)
    print(f"{value} +- {error}, exact {want}, log p(x) {log_p}")
    assert abs(value - want) < 4 * error
    assert want < log_p - 0.05
    assert error < 0.02


def test_closed_form_kls_are_those_that_are_valid():
    """Bottom up, z1 is drawn before z2, on which it depends in the model."""
    found = {name: set(ledger(linear(cls), data()).closed_form_kl()) for name, cls in PAIRS.items()}
    assert found == {"bottom up": {"z2"}, "ladder": {"z1", "z2"}}


@pytest.mark.filterwarnings("ignore:Failed to verify mean field restriction")
def test_the_mean_field_elbo_of_pyro_is_wrong_bottom_up_and_right_for_the_ladder():
    for name, cls in PAIRS.items():
        pair, x = linear(cls), data(1)
        rows = x.expand(20_000, -1)
        step = Step(pair, TraceMeanField_ELBO(), structure(pair, rows))
        pyro.set_rng_seed(0)
        with torch.no_grad():
            values = -torch.stack([step(rows) for _ in range(5)])
        error = values.std().item() / math.sqrt(5) + 1e-3
        print(name, values, exact(pair, x))
        assert (abs(values.mean().item() - exact(pair, x)[1]) < 4 * error) == (name == "ladder")


def test_the_mean_field_elbo_of_pyro_warns_bottom_up():
    pair = linear(pv.HierarchicalVAE)
    with pytest.raises(UserWarning, match="Failed to verify mean field restriction"):  # warnings are errors here
        TraceMeanField_ELBO().loss(pair.model, pair.guide, data())


# The exact posterior --------------------------------------------------------------------------------------------------


def softplus_inverse(variance: torch.Tensor) -> torch.Tensor:
    return torch.expm1(variance - 1e-8).log()


def set_gaussian_(conditional, weight, bias, variance) -> None:
    with torch.no_grad():
        conditional.head.layer.weight.copy_(torch.cat([weight, torch.zeros_like(weight)]))
        conditional.head.layer.bias.copy_(torch.cat([bias, softplus_inverse(variance)]))


def test_the_ladder_holds_the_exact_posterior_of_a_linear_gaussian_chain():
    """z2 -> z1 -> x with orthogonal loadings: every log-weight is log p(x), whatever is drawn."""
    pair, x = linear(pv.LadderVAE), data(4)
    generator = torch.Generator().manual_seed(2)
    a = torch.tensor([0.8, -1.4], dtype=torch.float64)  # z1 = a z2 + m + noise of variance v
    m, v = torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.5, 0.9], dtype=torch.float64)
    loading = torch.linalg.qr(torch.randn(3, 2, dtype=torch.float64, generator=generator))[0]
    loading = loading * torch.tensor([1.5, 0.7], dtype=torch.float64)
    bias = torch.tensor([0.1, -0.3, 0.2], dtype=torch.float64)
    with torch.no_grad():
        pair.likelihood.head.layer.weight.copy_(loading)
        pair.likelihood.head.layer.bias.copy_(bias)
    set_gaussian_(pair.conditionals[0], a.diag(), m, v)

    square = (loading**2).sum(0)  # x says of z1: N(loading^T (x - bias) / square, NOISE^2 / square)
    projection = loading.T / square[:, None]
    set_gaussian_(pair.posteriors[0], projection, -projection @ bias, NOISE**2 / square)
    told = v + NOISE**2 / square  # and of a z2 + m the same with that variance
    variance = 1 / (1 + a**2 / told)
    gain = variance * a / told
    set_gaussian_(pair.posteriors[1], gain[:, None] * projection, -gain * (projection @ bias + m), variance)

    covariance = loading @ (a**2 + v).diag() @ loading.T + NOISE**2 * torch.eye(3, dtype=torch.float64)
    want = dist.MultivariateNormal(loading @ m + bias, covariance).log_prob(x)
    torch.testing.assert_close(log_weights(pair, x, num_particles=5), want.expand(5, 4), rtol=0, atol=1e-9)
    for row in x.split(1):
        log_p, elbo = exact(pair, row)
        assert log_p - elbo == pytest.approx(0.0, abs=1e-9)


# One layer, shared networks, gradients --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "posterior"),
    [(pv.HierarchicalVAE, pv.conditionals.DiagonalNormal), (pv.LadderVAE, pv.conditionals.SoftplusNormal)],
)
def test_one_layer_is_the_vae(cls, posterior):
    pairs = []
    for make in (partial(pv.VAE, latent_dim=3, posterior=posterior), partial(cls, latent_dims=(3,))):
        torch.manual_seed(0)
        pairs.append(make((6,), hidden=(7, 5)).double())
    vae, pair = pairs
    renamed = {
        name.replace("encoder.", "encoders.0.")
        .replace("decoder.", "decoders.0.")
        .replace("posterior.", "posteriors.0."): value
        for name, value in vae.state_dict().items()
    }
    assert list(renamed) == list(pair.state_dict())
    x = torch.rand(4, 6, dtype=torch.float64).round()
    results = []
    for one in pairs:
        for objective in (ELBO(), IWAE(3)):
            pyro.set_rng_seed(1)
            step = Step(one, objective, structure(one, x))
            results += [step.backward(x), *(p.grad.clone() for p in one.parameters())]
            one.zero_grad()
    half = len(results) // 2
    for mine, others in zip(results[:half], results[half:], strict=True):
        assert torch.equal(mine, others)


def test_model_and_guide_share_the_networks_downwards():
    """Where x says nothing of z1, the ladder's q(z1 | x, z2) is the model's p(z1 | z2), whatever its parameters."""
    pair, x = linear(pv.LadderVAE), data()
    with torch.no_grad():
        pair.posteriors[0].head.layer.bias[2:] = 1e12
        pair.conditionals[0].head.layer.bias += 1.0
    kl = ledger(pair, x).closed_form_kl()
    assert kl["z1"].abs().max() < 1e-9
    assert kl["z2"].min() > 1e-3


@pytest.mark.parametrize("batch_norm", [False, True])
@pytest.mark.parametrize("name", PAIRS)
def test_gradients_are_finite_differences(name, batch_norm):
    torch.manual_seed(0)
    pair = PAIRS[name](4, (2, 2, 1), hidden=(3,), batch_norm=batch_norm).double()
    x = torch.rand(5, 4, dtype=torch.float64).round()
    step = Step(pair, ELBO(2), structure(pair, x))

    def loss():
        pyro.set_rng_seed(7)
        return step(x)

    loss().backward()
    parameters = list(pair.parameters())
    for parameter in parameters:
        direction = torch.randn_like(parameter)
        want = (parameter.grad * direction).sum().item()
        values = []
        with torch.no_grad():
            for shift in (1e-5, -2e-5):
                parameter += shift * direction
                values.append(loss().item())
            parameter += 1e-5 * direction
        assert (values[0] - values[1]) / 2e-5 == pytest.approx(want, rel=1e-5, abs=1e-8)


def test_the_doubly_reparametrised_gradient_of_shared_networks_has_no_bias():
    """The networks of p(z1 | z2) move log p, log q and the samples."""
    pair, x = linear(pv.LadderVAE), data(2).repeat(300, 1)
    shared = [*pair.conditionals[0].parameters()]
    gradients = []
    for objective in (IWAE(3), DReG(3)):
        step = Step(pair, objective, structure(pair, x))
        pyro.set_rng_seed(0)
        draws = []
        for _ in range(60):
            pair.zero_grad()
            step.backward(x)
            draws.append(torch.cat([p.grad.flatten() for p in shared]))
        gradients.append(torch.stack(draws))
    means, errors = zip(*((g.mean(0), g.std(0) / math.sqrt(len(g))) for g in gradients), strict=True)
    print(means, errors)
    assert ((means[0] - means[1]).abs() < 4 * (errors[0] ** 2 + errors[1] ** 2).sqrt()).all()
    assert (means[0].abs() > 8 * errors[0]).any()


# Evaluation by layer --------------------------------------------------------------------------------------------------


def test_samples_with_a_higher_layer_fixed_are_those_of_the_chain_below():
    """x | z2 is N(W (A z2 + a) + b, W S W^T) but for the likelihood's noise, which the mean leaves out."""
    pair, x = linear(pv.LadderVAE), data(1)
    z2 = torch.tensor([[1.5, -0.7]], dtype=torch.float64)
    samples = generate(pair, 20_000, like=x, fixed={"z2": z2})
    with torch.no_grad():
        p = pair.conditional(1, z2).base_dist
        weight, bias = pair.likelihood.head.layer.weight, pair.likelihood.head.layer.bias
        mean, covariance = weight @ p.loc[0] + bias, weight @ p.variance[0].diag() @ weight.T
    error = (covariance.diagonal() / len(samples)).sqrt()
    assert ((samples.mean(0) - mean).abs() < 4 * error).all()
    torch.testing.assert_close(samples.T.cov(), covariance, rtol=0.05, atol=0.01)


def test_every_row_has_its_own_fixed_layer():
    pair, x = linear(pv.LadderVAE), data(1)
    z1 = torch.randn(5, 2, dtype=torch.float64)
    want = pair.likelihood(pair.decoders[0](z1)).mean
    torch.testing.assert_close(generate(pair, 5, like=x, fixed={"z1": z1}, batch_size=2), want.detach())
    both = generate(pair, 5, like=x, fixed={"z1": z1, "z2": z1[:1]})
    torch.testing.assert_close(both, want.detach())


@pytest.mark.parametrize(
    ("fixed", "message"),
    [
        ({"z3": torch.zeros(1, 2)}, r"fixed has 'z3', which is no latent of each datum; name among \('z2', 'z1'\)"),
        ({"z2": torch.zeros(1, 3)}, r"fixed\['z2'\] has shape \(1, 3\), latent 'z2' \(4, 2\); pass that shape"),
        ({"z2": torch.zeros(2, 2)}, r"fixed\['z2'\] has shape \(2, 2\)"),
        ({"z2": [0.0, 1.0]}, r"fixed\['z2'\] has shape \[0.0, 1.0\]"),
    ],
)
def test_what_cannot_be_fixed_is_named(fixed, message):
    with pytest.raises(ValueError, match=message):
        generate(linear(pv.LadderVAE), 4, like=data(1), fixed=fixed)


def test_active_units_by_layer_are_known():
    """z1 follows x in its first unit alone, z2 nothing: the model's z1 does not depend on z2."""
    pair = linear(pv.LadderVAE)
    with torch.no_grad():
        for conditional in (*pair.posteriors, *pair.conditionals):
            conditional.head.layer.weight.zero_()
            conditional.head.layer.bias.zero_()
        pair.posteriors[0].head.layer.weight[0, 0] = 3.0
    x = data(200)
    found = pv.active_layers(pair, x)
    assert {site: units.count for site, units in found.items()} == {"z1": 1, "z2": 0}
    # q(z1 | x, z2) is the product of N(3 x, v) and N(0, v): N(3 x / 2, v / 2).
    torch.testing.assert_close(found["z1"].variance[0], 2.25 * x[:, 0].var(), rtol=1e-6, atol=0)
    v = math.log(2) + 1e-8
    kl = 0.5 * (0.5 + (1.5 * x[:, 0]).square().mean().item() / v - 1 + math.log(2))
    assert found["z1"].kl[0].item() == pytest.approx(kl)
    assert pv.elbo(pair, x).kl["z1"] == pytest.approx(found["z1"].kl.sum().item())


@pytest.mark.parametrize("cls", PAIRS.values())
def test_active_units_of_all_layers_are_those_of_each(cls):
    """From as many runs of the guide for all layers together as for the deepest of them."""
    pair, x = linear(cls), data(50)
    calls = []
    guide = pair.guide
    pair.guide = lambda *batch: calls.append(len(batch[0])) or guide(*batch)
    found = pv.active_layers(pair, x, num_samples=7, seed=3, batch_size=30)
    together, counts = calls.count(20), []
    for site, units in found.items():
        calls.clear()
        alone = pv.active_units(pair, x, site=site, num_samples=7, seed=3, batch_size=30)
        assert torch.equal(units.variance, alone.variance)
        assert units.kl is alone.kl is None or torch.equal(units.kl, alone.kl)
        counts.append(calls.count(20))
    assert (sorted(counts), together) == ([1, 7], 7)  # the first latent that the guide samples has an exact mean


# Sizes ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", PAIRS.values())
def test_any_number_of_layers(cls):
    for dims in ((2,), (4, 3, 2, 1)):
        pair = cls((1, 3, 2), dims, hidden=(5,))
        drawn = ledger(pair, torch.ones(4, 1, 3, 2), num_particles=3)
        assert {name: value.shape for name, value in drawn.values.items()} == {
            f"z{layer}": (3, 4, dim) for layer, dim in enumerate(dims, 1)
        }
        top_down = list(structure(pair, torch.ones(4, 1, 3, 2)).latent)
        assert top_down == [f"z{layer}" for layer in range(len(dims), 0, -1)]


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: pv.LadderVAE(4, (2, 0)), ValueError, r"latent_dims is \(2, 0\)"),
        (lambda: pv.LadderVAE(4, ()), ValueError, r"latent_dims is \(\)"),
        (lambda: pv.LadderVAE(4, (2, 1), hidden=((3,),)), ValueError, r"hidden is \(\(3,\),\) for 2 layers"),
        (lambda: pv.LadderVAE(4, (2, 1), hidden=((3,), 2)), ValueError, r"hidden is \(\(3,\), 2\) for 2 layers"),
        (lambda: pv.LadderVAE(4, (2, 1), decoder=pv.nets.MLP), TypeError, "decoder is MLP"),
        (
            lambda: pv.HierarchicalVAE(4, (2, 1), posterior=pv.conditionals.DiagonalNormal(3, 2)),
            TypeError,
            "posterior is one DiagonalNormal for 2 layers",
        ),
    ],
)
def test_bad_sizes_and_slots_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
