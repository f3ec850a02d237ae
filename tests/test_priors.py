"""Priors against what is known of them: integrals, samples, reductions, and the pair that they refer to."""

import copy
import math
import re
from functools import partial

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import transforms as pyro_transforms
from safetensors.torch import load_file, save_file
from scipy import stats
from test_capture import compare
from test_laws import trained
from torch import nn

from pyrovae import VAE, Pair, fit, ledger, load, log_weights, structure
from pyrovae.conditionals import IAF, Conditional, DiagonalNormal, FullNormal, PlanarFlow
from pyrovae.models.base import evaluation_mode
from pyrovae.objectives import IWAE
from pyrovae.priors import (
    AggregatedPosterior,
    ClassConditional,
    ConditionalNormal,
    Flow,
    GaussianMixture,
    LaplaceDirichlet,
    RealNVP,
    SplineFlow,
    StandardNormal,
    VampPrior,
)
from pyrovae.priors.covariances import DiagonalCovariance, FullCovariance
from pyrovae.training.step import Step


def points(rows=5, seed=3):
    return torch.rand(rows, 4, generator=torch.Generator().manual_seed(seed))


class FlowPosterior(Conditional):
    """Somebody's posterior whose density needs every point at the batch shape of the features."""

    def __init__(self, feature_shape, event_shape):
        super().__init__(feature_shape, event_shape, num_parameters=2)
        (size,) = self.event_shape
        self.flow = pyro_transforms.conditional_affine_autoregressive(size, self.head.feature_shape[0], [8])

    def forward(self, features):
        loc, log_scale = self.head(features)
        base = dist.Normal(loc, log_scale.exp()).to_event(1)
        return dist.ConditionalTransformedDistribution(base, [self.flow]).condition(features)


POSTERIORS = {
    "diagonal": DiagonalNormal,
    "full": FullNormal,
    "planar": partial(PlanarFlow, num_steps=2),
    "IAF": partial(IAF, num_steps=2),
    "somebody's flow": FlowPosterior,
}


def pair_with(prior, posterior=DiagonalNormal, latent_dim=2):
    """A pair whose posteriors differ visibly from datum to datum."""
    vae = VAE(4, latent_dim, hidden=(5,), prior=prior, posterior=posterior)
    with torch.no_grad():
        for parameter in vae.posterior.parameters():
            parameter.mul_(2)
    return vae


def of_pair(prior, **options):
    """A prior made of the posteriors of a pair; the pair lives as long as the reference to it."""
    return lambda event_shape: pair_with(partial(prior, **options), latent_dim=event_shape).prior


PRIORS = {  # each made by its event shape
    "standard": StandardNormal,
    "mixture": partial(GaussianMixture, num_components=3, spread=0.9),
    "mixture, full": partial(GaussianMixture, num_components=3, spread=0.9, covariance=FullCovariance),
    "Vamp": of_pair(VampPrior, num_components=3, data=points()),
    "Vamp with learned weights": of_pair(VampPrior, num_components=3, data=points(), learn_weights=True),
    "aggregated": of_pair(AggregatedPosterior, points=points()),
    "RealNVP": trained(RealNVP, 0.2, num_layers=3, hidden=(8,)),
    "spline": trained(SplineFlow, 0.2, num_layers=3, hidden=(8,)),
    "Pyro's transforms": lambda event_shape: Flow(
        event_shape, transforms=lambda n: [pyro_transforms.affine_coupling(n), pyro_transforms.Permute(torch.arange(n))]
    ),
    "Laplace-Dirichlet": partial(LaplaceDirichlet, concentration=0.7),
}
REPARAMETRISED = {"standard", "RealNVP", "spline", "Pyro's transforms", "Laplace-Dirichlet"}


def made(name, event_shape=2, seed=0):
    pyro.set_rng_seed(seed)
    prior = PRIORS[name](event_shape)
    if getattr(prior, "posterior_of", None) is not None:
        prior.posterior_of.__self__.double()
    return prior.double()


# Every prior ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PRIORS)
def test_contract(name):
    d = made(name)()
    assert (d.batch_shape, d.event_shape) == ((), (2,))
    expanded = d.expand((5,))
    assert expanded.batch_shape == (5,)
    z = expanded.sample((3,))
    assert (z.shape, z.dtype) == ((3, 5, 2), torch.float64)
    assert expanded.log_prob(z).shape == (3, 5)
    assert torch.allclose(expanded.log_prob(z), d.log_prob(z))
    assert expanded.log_prob(z[0, 0]).shape == (5,)
    assert d.has_rsample is (name in REPARAMETRISED)
    assert d.sample().shape == (2,)
    assert not d.sample().requires_grad
    assert d.support.check(z).all()


@pytest.mark.parametrize("name", [*PRIORS])
def test_float32_agrees_with_float64(name):
    prior = made(name)
    z = prior().sample((20,))
    want = prior().log_prob(z)
    if getattr(prior, "posterior_of", None) is not None:
        prior.posterior_of.__self__.float()
    got = prior.float()().log_prob(z.float())
    assert got.dtype == torch.float32
    assert torch.allclose(got.double(), want, atol=1e-3)


@pytest.mark.parametrize("event_shape", [(2, 3), (1, 2, 2)])
@pytest.mark.parametrize("name", ["standard", "mixture", "RealNVP", "spline"])
def test_events_of_more_dims(name, event_shape):
    d = made(name, event_shape)()
    z = d.sample((7,))
    assert z.shape == (7, *event_shape)
    assert d.log_prob(z).shape == (7,)
    flat = made(name, math.prod(event_shape))().log_prob(z.flatten(1))  # the same parameters, from the same seed
    assert torch.allclose(d.log_prob(z), flat)


def density_on_a_grid(d, half=10.0, cells=500):
    """Log-density at the centres of a square grid, and the area of a cell."""
    step = 2 * half / cells
    centres = -half + step * (torch.arange(cells, dtype=torch.float64) + 0.5)
    grid = torch.cartesian_prod(centres, centres)
    with torch.no_grad():
        return grid, torch.cat([d.log_prob(part) for part in grid.split(50_000)]), step**2


@pytest.mark.parametrize("name", PRIORS)
def test_density_integrates_to_one_and_samples_follow_it(name):
    """The grid's own mass in 36 regions against the counts of 20,000 samples: a chi-square."""
    d = made(name)()
    grid, log_prob, area = density_on_a_grid(d)
    step = math.sqrt(area)
    mass = log_prob.exp() * area
    assert mass.sum().item() == pytest.approx(1, abs=2e-4)
    edges = torch.tensor([-1.5, -0.6, 0.0, 0.6, 1.5], dtype=torch.float64) + (mass[:, None] * grid).sum(0)[:, None]
    edges = (edges / step).round() * step  # between cells

    def region(z):
        first, second = (torch.bucketize(z[:, j].contiguous(), edges[j]) for j in (0, 1))
        return 6 * first + second

    expected = torch.zeros(36, dtype=torch.float64).index_add(0, region(grid), mass)
    counts = torch.bincount(region(d.sample((20_000,))), minlength=36)
    wide = expected * 20_000 > 5
    rest = 20_000 - counts[wide].sum()
    observed = [*counts[wide].tolist(), rest.item()]
    predicted = [*(20_000 * expected[wide]).tolist(), max(1e-9, 20_000 * (1 - expected[wide].sum().item()))]
    if predicted[-1] < 5:
        observed, predicted = observed[:-1], predicted[:-1]
    predicted = np.array(predicted) * sum(observed) / sum(predicted)
    p_value = stats.chisquare(observed, predicted).pvalue
    print(f"p-value {p_value} of {len(observed)} regions")
    assert p_value > 1e-3
    assert len(observed) > 8


@pytest.mark.parametrize("name", PRIORS)
def test_density_integrates_to_one_in_five_dims(name):
    """By importance sampling from a wide normal and from the samples' own mean and covariance."""
    d = made(name, 5)()
    z = d.sample((4000,))
    proposal = dist.MultivariateNormal(z.mean(0), 2 * z.T.cov())
    with torch.no_grad():
        draws = proposal.sample((40_000,))
        ratio = (d.log_prob(draws) - proposal.log_prob(draws)).exp()
    mean, error = ratio.mean().item(), ratio.std().item() / 200
    print(f"{mean} +- {error}")
    assert abs(mean - 1) < 4 * error
    assert error < 0.05


@pytest.mark.parametrize("name", sorted(REPARAMETRISED))
def test_a_reparametrised_sample_is_the_sample(name):
    d = made(name)()
    draws = []
    for draw in (d.sample, d.rsample):
        torch.manual_seed(1)
        draws.append(draw((4,)))
    assert torch.equal(*draws)


# Standard, mixture ----------------------------------------------------------------------------------------------------


def test_standard_normal_density_and_state():
    z = torch.randn(7, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    prior = StandardNormal((2, 3)).double()
    torch.testing.assert_close(prior().log_prob(z), -0.5 * z.square().sum((1, 2)) - 3 * math.log(2 * math.pi))
    assert not prior.state_dict()
    assert prior(torch.randn(5, 4)).batch_shape == ()


@pytest.mark.parametrize(
    ("event_shape", "error", "message"),
    [
        (0, ValueError, r"event_shape is 0, expected sizes of at least 1; pass a positive event_shape"),
        ((2, -1), ValueError, r"event_shape is \(2, -1\), expected"),
        (2.0, TypeError, r"event_shape is 2.0, expected an int or a sequence of ints"),
    ],
)
def test_bad_event_shapes_are_refused(event_shape, error, message):
    for prior in (StandardNormal, partial(GaussianMixture, num_components=2), RealNVP):
        with pytest.raises(error, match=message):
            prior(event_shape)


def test_one_component_is_a_normal():
    without_floor = partial(DiagonalCovariance, min_scale=0.0)
    prior = GaussianMixture(3, num_components=1, covariance=without_floor).double()
    z = torch.randn(6, 3, dtype=torch.float64)
    normal = dist.Normal(prior.loc[0], prior.covariance.log_scale[0].exp()).to_event(1)
    assert torch.allclose(prior().log_prob(z), normal.log_prob(z), atol=1e-14)
    fixed = GaussianMixture(3, num_components=1, spread=0.0, covariance=without_floor).double()
    assert torch.allclose(fixed().log_prob(z), StandardNormal(3).double()().log_prob(z), atol=1e-14)


def test_mixture_density_by_hand():
    torch.manual_seed(0)
    prior = GaussianMixture(2, num_components=3).double()
    with torch.no_grad():
        prior.logits.copy_(torch.tensor([0.3, -1.0, 0.5]))
        prior.covariance.log_scale.copy_(torch.randn(3, 2))
    z = torch.randn(4, 2, dtype=torch.float64)
    weights = prior.logits.exp() / prior.logits.exp().sum()
    total = sum(
        w * torch.exp(-0.5 * ((z - m) / s) ** 2).prod(-1) / (2 * math.pi * s.prod())
        for w, m, s in zip(weights, prior.loc, prior.scale, strict=True)
    )
    assert torch.allclose(prior().log_prob(z), total.log(), atol=1e-12)


def test_a_new_mixture_has_the_moments_of_a_standard_normal():
    torch.manual_seed(0)
    d = GaussianMixture(2, num_components=40_000, spread=0.8)()
    assert torch.allclose(d.mean, torch.zeros(2), atol=4 * 0.8 / 200)
    assert torch.allclose(d.variance, torch.ones(2), atol=4 * 0.64 * math.sqrt(2) / 200)


@pytest.mark.parametrize("spread", [-0.1, 1.0])
def test_spread_has_a_range(spread):
    with pytest.raises(ValueError, match=f"spread is {spread}, expected at least 0 and less than 1"):
        GaussianMixture(2, num_components=2, spread=spread)


# Mixtures of posteriors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_one_input_is_its_posterior(posterior):
    vae = pair_with(partial(VampPrior, num_components=1), POSTERIORS[posterior]).double()
    z = torch.randn(3, 6, 2, dtype=torch.float64)
    want = vae.posterior_of(vae.prior.inputs()[0]).log_prob(z.reshape(18, 2)[:, None, :]).reshape(3, 6)
    assert torch.allclose(vae.prior().log_prob(z), want, atol=1e-12)


@pytest.mark.parametrize("posterior", POSTERIORS)
def test_the_density_is_the_mean_of_the_posteriors(posterior):
    torch.manual_seed(0)
    x = 3 * points(5).double()
    vae = pair_with(partial(AggregatedPosterior, points=x), POSTERIORS[posterior]).double()
    z = torch.randn(3, 2, dtype=torch.float64)
    each = torch.stack([torch.stack([vae.posterior_of(row[None]).log_prob(one[None])[0] for row in x]) for one in z])
    assert torch.allclose(vae.prior().log_prob(z), each.exp().mean(1).log(), atol=1e-12)
    assert each.std(1).max() > 0.1, "the posteriors are too alike to tell"


@pytest.mark.parametrize("posterior", ["planar", "IAF"])
def test_a_vamp_prior_of_flows_in_a_captured_step_and_in_a_copy(posterior):
    """The prior asks each component for its density at the draws of the others, and that takes inverses."""
    torch.manual_seed(0)
    vae, x = pair_with(partial(VampPrior, num_components=3), POSTERIORS[posterior]), points().round()
    compare(Step(vae, IWAE(3), structure(vae, x)), x)
    z = torch.randn(6, 2)
    before, twin = vae.prior().log_prob(z), copy.deepcopy(vae)
    with torch.no_grad():
        for parameter in vae.posterior.parameters():
            parameter.mul_(1.5)
    assert torch.equal(twin.prior().log_prob(z), before)
    assert not torch.allclose(vae.prior().log_prob(z), before)
    run = fit(vae, x, max_epochs=60, lr=1e-2, seed=0, progress=False, compile=False)
    losses = run.history["train_loss"]
    assert sum(losses[-10:]) / 10 < sum(losses[:10]) / 10 - 0.1


def test_pseudo_inputs_that_are_the_data_are_the_aggregate():
    x = points(6)
    torch.manual_seed(0)
    vamp = pair_with(partial(VampPrior, num_components=6, data=x))
    torch.manual_seed(0)
    torch.randperm(6)
    aggregated = pair_with(partial(AggregatedPosterior, points=x))
    for mine, other in zip(vamp.encoder.parameters(), aggregated.encoder.parameters(), strict=True):
        other.data.copy_(mine.data)
    aggregated.posterior.load_state_dict(vamp.posterior.state_dict())
    z = torch.randn(8, 2)
    assert torch.allclose(vamp.prior().log_prob(z), aggregated.prior().log_prob(z), atol=1e-5)


def test_learned_weights_weigh_the_components():
    vae = pair_with(partial(VampPrior, num_components=3, data=points(), learn_weights=True)).double()
    with torch.no_grad():
        vae.prior.logits.copy_(torch.tensor([0.5, -1.0, 2.0]))
    z = torch.randn(4, 2, dtype=torch.float64)
    log_q = vae.posterior_of(vae.prior.inputs()).log_prob(z[:, None])
    want = (log_q.exp() * vae.prior.logits.softmax(0)).sum(1).log()
    assert torch.allclose(vae.prior().log_prob(z), want, atol=1e-12)
    assert not any("logits" in name for name in pair_with(VampPrior).state_dict())


@pytest.mark.parametrize("posterior", ["diagonal", "planar", "IAF"])
@pytest.mark.parametrize("which", ["encoder.layers.0.weight", "prior.pseudo_inputs"])
def test_the_gradient_of_a_vamp_prior_is_a_finite_difference(which, posterior):
    torch.manual_seed(0)
    vae = pair_with(partial(VampPrior, num_components=3, data=points()), POSTERIORS[posterior]).double()
    z = torch.randn(2, dtype=torch.float64)
    parameter = dict(vae.named_parameters())[which]
    (gradient,) = torch.autograd.grad(vae.prior().log_prob(z), parameter)
    direction = torch.randn_like(parameter)
    values = []
    with torch.no_grad():
        for step in (1e-5, -2e-5):
            parameter.add_(step * direction)
            values.append(vae.prior().log_prob(z).item())
    assert (values[0] - values[1]) / 2e-5 == pytest.approx((gradient * direction).sum().item(), rel=1e-5)


def test_pseudo_inputs_stay_in_the_range_of_the_data():
    torch.manual_seed(0)
    noise = pair_with(partial(VampPrior, num_components=200, mean=0.4, std=0.05)).prior
    assert noise.pseudo_inputs.mean().item() == pytest.approx(0.4, abs=4 * 0.05 / math.sqrt(800))
    assert noise.pseudo_inputs.std().item() == pytest.approx(0.05, rel=0.1)
    x = points().round()
    vae = pair_with(partial(VampPrior, num_components=3, data=x))
    prior = vae.prior
    assert all(any(torch.equal(u, row) for row in x) for u in prior.inputs())
    assert torch.autograd.grad(prior.inputs().sum(), prior.pseudo_inputs)[0].all(), "binary rows would not learn"
    with torch.no_grad():
        prior.pseudo_inputs.add_(3.0)
    assert (prior.inputs() == 1).all()
    with torch.no_grad():
        prior.pseudo_inputs.sub_(6.0)
    assert (prior.inputs() == 0).all()
    free = pair_with(partial(VampPrior, num_components=3, data=5 * points(), bounds=None)).prior
    assert torch.equal(free.inputs(), free.pseudo_inputs)
    assert free.inputs().max() > 1


def test_the_encoder_is_registered_once_and_saved_once(tmp_path):
    vae = pair_with(partial(VampPrior, num_components=3))
    names = list(vae.state_dict())
    assert [name for name in names if name.startswith("prior")] == ["prior.pseudo_inputs"]
    assert len({id(p) for p in vae.parameters()}) == len(list(vae.named_parameters(remove_duplicate=False)))
    save_file(vae.state_dict(), tmp_path / "state.safetensors")
    other = pair_with(partial(VampPrior, num_components=3))
    other.load_state_dict(load_file(tmp_path / "state.safetensors"))
    z = torch.randn(4, 2)
    assert torch.equal(vae.prior().log_prob(z), other.prior().log_prob(z))
    assert "prior.points" in pair_with(partial(AggregatedPosterior, points=points())).state_dict()


@pytest.mark.parametrize("prior", [partial(VampPrior, num_components=3), partial(AggregatedPosterior, points=points())])
def test_a_copy_refers_to_the_encoder_of_the_copy(prior):
    vae = pair_with(prior)
    x, z = points().round(), torch.randn(4, 2)
    log_weights(vae, x)
    other = copy.deepcopy(vae)
    before = vae.prior().log_prob(z)
    with torch.no_grad():
        for parameter in other.encoder.parameters():
            parameter.add_(1.0)
    assert torch.equal(vae.prior().log_prob(z), before)
    assert not torch.allclose(other.prior().log_prob(z), before)
    assert other.prior.posterior_of.__self__ is other
    assert other.double().prior().log_prob(z.double()).dtype == torch.float64


def test_the_mode_of_the_pair_is_that_of_its_prior():
    encoder = nn.Sequential(nn.Linear(4, 5), nn.Dropout(0.5))
    vae = VAE(4, 2, encoder=encoder, prior=partial(AggregatedPosterior, points=points()))
    z = torch.zeros(2)
    assert vae.prior().log_prob(z) != vae.prior().log_prob(z)
    with evaluation_mode(vae):
        assert vae.prior().log_prob(z) == vae.prior().log_prob(z)


def test_the_components_are_computed_once_for_all_particles():
    vae = pair_with(partial(VampPrior, num_components=3))
    x = points().round()
    known = structure(vae, x)
    assert {name for name in known.parameters if name.startswith("prior")} == {"prior.pseudo_inputs"}
    ledger(vae, x, num_particles=2, known=known)  # compares particles in a plate with a loop, once
    seen = []
    vae.encoder.register_forward_hook(lambda module, args, out: seen.append(tuple(args[0].shape)))
    ledger(vae, x, num_particles=5, known=known)
    assert seen == [(5, 4), (3, 4)]


@pytest.mark.parametrize("prior", [partial(VampPrior, num_components=3), partial(SplineFlow, num_layers=2)])
def test_a_run_is_loaded_with_its_prior(prior, tmp_path):
    vae, x = pair_with(prior), points(6).round()
    fit(vae, x, max_epochs=1, batch_size=3, seed=0, out=tmp_path / "run", progress=False, compile=False)
    again = load(tmp_path / "run").pair
    assert again is not vae
    z = torch.randn(4, 2)
    assert torch.equal(again.prior().log_prob(z), vae.prior().log_prob(z))


class Own(Pair):
    """Somebody's pair with a Vamp prior."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 2), nn.Linear(2, 4)
        self.prior = VampPrior(2, num_components=3).bind(self.code, 4)

    def code(self, x):
        return dist.Normal(self.encoder(x), 0.5).to_event(1)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", dist.Bernoulli(logits=self.decoder(z)).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.code(x))


def test_a_pair_of_ones_own_binds_its_prior():
    pair, x = Own(), points().round()
    pyro.set_rng_seed(0)
    svi = pyro.infer.SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.1}), pyro.infer.Trace_ELBO(num_particles=4))
    before = {name: value.clone() for name, value in pair.state_dict().items()}
    for _ in range(3):
        svi.step(x)
    assert not any(torch.equal(value, before[name]) for name, value in pair.state_dict().items())
    pyro.clear_param_store()


def test_what_a_mixture_of_posteriors_refuses():
    with pytest.raises(
        ValueError, match=r"VampPrior is a mixture of posteriors .* knows none, bound to no pair; .* call prior.bind"
    ):
        VampPrior(2)()
    with pytest.raises(ValueError, match=r"num_components is 6, but data has 5 rows .* pass num_components=5 or fewer"):
        VampPrior(2, num_components=6, data=points(5))
    with pytest.raises(ValueError, match=r"inputs of AggregatedPosterior have event shape \(4,\), one x has \(3,\)"):
        VAE(3, 2, prior=partial(AggregatedPosterior, points=points()))
    with pytest.raises(ValueError, match=r"inputs of VampPrior have event shape \(4,\), one x has \(3,\)"):
        VAE(3, 2, prior=partial(VampPrior, num_components=2, data=points()))
    with pytest.raises(ValueError, match=r"points has shape \(0, 4\), expected at least one row"):
        AggregatedPosterior(2, points=points()[:0])
    with pytest.raises(ValueError, match=r"bounds is .*, expected the smallest and the largest value"):
        VampPrior(2, bounds=(1.0, 0.0))
    prior = VampPrior(3, num_components=2).bind(VAE(4, 2).posterior_of, 4)
    with pytest.raises(ValueError, match=r"event shape \(2,\), the prior needs \(2,\) and \(3,\); make .*=\(2,\)"):
        prior()
    with pytest.raises(ValueError, match="VampPrior is bound to the posterior of a pair already"):
        VAE(4, 3, prior=prior)


def test_the_aggregate_leaves_no_marginal_kl():
    """The ELBO over the data with the aggregate for a prior is that of any other prior plus its KL(q(z) || p(z))."""
    x = points(5).double()
    pyro.set_rng_seed(0)
    vae = pair_with(partial(AggregatedPosterior, points=x)).double()
    grid, log_aggregate, area = density_on_a_grid(vae.prior())
    for prior in (StandardNormal(2), GaussianMixture(2, num_components=3), trained(RealNVP, hidden=(5,))(2)):
        log_p = prior.double()().log_prob(grid).detach()
        log_q = vae.posterior_of(x).log_prob(grid[:, None]).detach()  # (G, N)
        kl = [(log_q.exp() * (log_q - p[:, None])).sum(0).mean() * area for p in (log_p, log_aggregate)]
        marginal = (log_aggregate.exp() * (log_aggregate - log_p)).sum() * area
        assert marginal > 0.01
        assert (kl[0] - kl[1]).item() == pytest.approx(marginal.item(), rel=1e-9)


# Flows ----------------------------------------------------------------------------------------------------------------

FLOWS = {"RealNVP": RealNVP, "spline": SplineFlow}


@pytest.mark.parametrize("length", [2, 5])
@pytest.mark.parametrize("name", FLOWS)
def test_a_new_flow_is_the_standard_normal(name, length):
    flow = FLOWS[name](length).double()
    z = 2 * torch.randn(50, length, dtype=torch.float64)
    normal = StandardNormal(length).double()()
    assert torch.allclose(flow().log_prob(z), normal.log_prob(z), atol=1e-12)
    draws = []
    for d in (flow(), normal):
        torch.manual_seed(1)
        draws.append(d.sample((50,)))
    assert torch.allclose(*draws, atol=1e-12)


@pytest.mark.parametrize("length", [2, 5])
@pytest.mark.parametrize("name", FLOWS)
def test_inverses_and_jacobians_of_flows(name, length):
    torch.manual_seed(0)
    flow = trained(FLOWS[name], num_layers=4, hidden=(8,))(length).double()
    d = flow()
    e = 2 * torch.randn(20, length, dtype=torch.float64)
    for transform in d.transforms:
        z = transform(e)
        assert not torch.allclose(z, e)
        assert torch.allclose(transform.inv(z.clone()), e, atol=1e-10)  # a copy, of which it remembers nothing
        assert torch.allclose(transform(transform.inv(e).clone()), e, atol=1e-10)
        jacobian = torch.stack([torch.autograd.functional.jacobian(transform, one) for one in e])
        want = torch.linalg.slogdet(jacobian).logabsdet
        assert torch.allclose(transform.log_abs_det_jacobian(e, z), want, atol=1e-10)
        transform.inv(z + 1)  # what it remembers of an inverse belongs to that point alone
        assert torch.allclose(transform.log_abs_det_jacobian(e, z), want, atol=1e-10)
        e = z.detach()


@pytest.mark.parametrize("name", FLOWS)
def test_every_latent_depends_on_every_other(name):
    torch.manual_seed(0)
    flow = trained(FLOWS[name], num_layers=4, hidden=(8,))(5).double()
    d = flow()

    def through(e):
        for transform in d.transforms:
            e = transform(e)
        return e

    points = torch.randn(10, 5, dtype=torch.float64)
    assert sum(torch.autograd.functional.jacobian(through, e).abs() for e in points).all()


@pytest.mark.parametrize("name", FLOWS)
def test_the_density_runs_each_network_once(name):
    flow = FLOWS[name](4, num_layers=3)
    seen = []
    for layer in flow.learned:
        if hasattr(layer, "features"):
            layer.features.register_forward_hook(lambda *_: seen.append(1))
    flow().log_prob(torch.randn(6, 4))
    assert len(seen) == 3


@pytest.mark.parametrize("name", FLOWS)
def test_a_flow_that_has_run_is_copied(name):
    flow = FLOWS[name](3)
    flow().log_prob(flow().rsample((4,))).sum().backward()
    other = copy.deepcopy(flow)
    z = torch.randn(4, 3)
    assert torch.equal(flow().log_prob(z), other().log_prob(z))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.3)
    assert not torch.allclose(flow().log_prob(z), other().log_prob(z))


@pytest.mark.parametrize("name", ["Planar", "Radial", "Sylvester"])
def test_a_flow_without_an_inverse_is_refused_by_name(name):
    make = getattr(pyro_transforms, name.lower())
    with pytest.raises(ValueError, match=f"{name} has no inverse, which a prior's log_prob needs; pass a transform"):
        VAE(4, 2, prior=partial(Flow, transforms=lambda n: [pyro_transforms.affine_coupling(n), make(n)]))


@pytest.mark.parametrize("flow", FLOWS.values())
def test_one_latent_has_no_halves(flow):
    with pytest.raises(ValueError, match="event_shape has one number, which has no halves to couple"):
        flow(1)


def test_a_spline_has_a_bound():
    with pytest.raises(ValueError, match=r"bound is 0.0, expected a positive number"):
        SplineFlow(2, bound=0.0)


# Laplace-Dirichlet ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [(0.1, 0.7, 2.0, 5.0), (3.0, 3.0), (0.02,) * 6])
def test_laplace_dirichlet_is_the_laplace_approximation(alpha):
    """Mode and Hessian of the Dirichlet's log-density in the softmax basis, by autograd, on the plane sum z = 0."""
    a = torch.tensor(alpha, dtype=torch.float64)
    size = len(a)

    def log_density(z):
        """sum_k alpha_k log softmax(z)_k, up to a constant: the simplex's measure is that of the softmax basis."""
        theta = z.softmax(-1)
        # Density of theta times the Jacobian of z -> theta on the plane, which is prod theta up to a constant.
        return dist.Dirichlet(a).log_prob(theta) + theta.log().sum()

    prior = LaplaceDirichlet(size, concentration=alpha).double()
    d = LaplaceDirichlet(size, concentration=alpha)()
    loc = a.log() - a.log().mean()
    gradient = torch.autograd.functional.jacobian(log_density, loc)
    assert gradient.abs().max() < 1e-10, "not the mode"
    covariance = torch.linalg.pinv(-torch.autograd.functional.hessian(log_density, loc), rtol=1e-8)
    assert torch.allclose(d.mean.double(), loc, atol=1e-5)
    assert torch.allclose(prior().variance, covariance.diagonal(), rtol=1e-5)


def test_laplace_dirichlet_of_equal_concentrations():
    d = LaplaceDirichlet(50, concentration=0.02)()
    assert not d.mean.any()
    assert torch.allclose(d.variance, torch.full((50,), (1 - 1 / 50) / 0.02))
    prior = LaplaceDirichlet(50, concentration=0.02)
    assert not prior.state_dict()
    assert not list(prior.parameters())


@pytest.mark.parametrize(
    ("event_shape", "concentration", "message"),
    [
        (1, 1.0, "a Dirichlet has a vector of at least 2"),
        ((2, 2), 1.0, "a Dirichlet has a vector of at least 2"),
        (3, 0.0, "concentration is 0.0, expected a positive number, or 3 of them"),
        (3, (1.0, 2.0), "expected a positive number, or 3 of them"),
    ],
)
def test_what_laplace_dirichlet_refuses(event_shape, concentration, message):
    with pytest.raises(ValueError, match=message):
        LaplaceDirichlet(event_shape, concentration=concentration)


# Priors given a context -----------------------------------------------------------------------------------------------


def test_conditional_normal_is_its_networks_normal():
    prior = ConditionalNormal(2, context_shape=3, hidden=(4,)).double()
    y = torch.randn(6, 5, 3, dtype=torch.float64)
    d = prior(y)
    assert (d.batch_shape, d.event_shape) == ((6, 5), (2,))
    layers = prior.network.layers
    loc, log_variance = prior.conditional.head.layer(layers(y)).split(2, -1)
    z = torch.randn(6, 5, 2, dtype=torch.float64)
    want = dist.Normal(loc, 1e-4 + (log_variance / 2).exp()).log_prob(z).sum(-1)
    assert torch.allclose(d.log_prob(z), want, atol=1e-12)


@pytest.mark.parametrize(
    "prior", [partial(GaussianMixture, num_components=2), trained(RealNVP, num_layers=2, hidden=(4,)), StandardNormal]
)
def test_each_class_has_its_own_prior(prior):
    torch.manual_seed(0)
    conditional = ClassConditional(2, num_classes=3, prior=prior).double()
    y = torch.tensor([[2, 0, 1, 2], [1, 1, 0, 2]])
    d = conditional(y)
    assert (d.batch_shape, d.event_shape) == ((2, 4), (2,))
    z = d.sample((5,))
    assert z.shape == (5, 2, 4, 2)
    want = torch.stack(
        [torch.stack([conditional.classes[c]().log_prob(z[:, i, j]) for j, c in enumerate(row)], -1)
         for i, row in enumerate(y.tolist())], 1
    )  # fmt: skip
    assert torch.allclose(d.log_prob(z), want)
    one_hot = conditional(torch.eye(3, dtype=torch.float64)[y])
    assert torch.equal(one_hot.log_prob(z), d.log_prob(z))
    assert d.has_rsample == conditional.classes[0]().has_rsample
    assert d.expand((7, 2, 4)).log_prob(z[0]).shape == (7, 2, 4)
    # Labels that are enumerated along a dim of their own.
    enumerated = conditional(torch.eye(3, dtype=torch.float64)[:, None])
    each = enumerated.log_prob(z[0, 0])
    assert each.shape == (3, 4)
    assert torch.allclose(each.gather(0, y[:1]).squeeze(0), d.log_prob(z)[0, 0])


def test_samples_come_from_the_class_that_the_label_picks():
    prior = ClassConditional(1, num_classes=3, prior=partial(GaussianMixture, num_components=1, spread=0.0))
    with torch.no_grad():
        for index, one in enumerate(prior.classes):
            one.loc.fill_(100.0 * index)
    y = torch.tensor([2, 0, 1, 1])
    z = prior(y).sample((50,))
    assert ((z.squeeze(-1) / 100).round() == y).all()


def test_a_context_is_asked_for():
    mixture = partial(GaussianMixture, num_components=2)
    for prior in (ConditionalNormal(2, context_shape=3), ClassConditional(2, num_classes=3, prior=mixture)):
        with pytest.raises(ValueError, match=f"{type(prior).__name__} is p.* was called without y; call prior"):
            prior()
    with pytest.raises(ValueError, match=r"one-hot labels have shape \(5, 4\), the prior has 3 classes"):
        ClassConditional(2, num_classes=3, prior=mixture)(torch.zeros(5, 4))
    for label in (-1, 3):
        with pytest.raises(ValueError, match=r"IntegerInterval\(lower_bound=0, upper_bound=2\)"):
            ClassConditional(2, num_classes=3, prior=mixture)(torch.tensor([0, label]))


# Pairs ----------------------------------------------------------------------------------------------------------------


def test_a_prior_of_another_event_shape_than_the_posteriors_is_named():
    """Where it says its event shape, when the pair is made, else when it runs."""
    with pytest.raises(ValueError, match=r"prior is a GaussianMixture of event shape \(3,\), wanted is \(2,\)"):
        VAE(4, 2, prior=GaussianMixture(3, num_components=2))

    class Unstated(nn.Module):
        def forward(self):
            return dist.Normal(torch.zeros(shape), 1.0).to_event(len(shape))

    for shape in ((3,), (1, 2)):
        message = rf"site 'z' has event shape {re.escape(str(shape))} in the model and \(2,\) in the guide; make"
        with pytest.raises(ValueError, match=message):
            structure(VAE(4, 2, prior=Unstated()), points())
