"""Mixtures against scikit-learn, brute force, closed forms and each other."""

import itertools
import math
import warnings
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import TraceEnum_ELBO
from sklearn.datasets import load_digits
from sklearn.mixture import BayesianGaussianMixture as BayesianReference
from sklearn.mixture import GaussianMixture as Reference
from torch.distributions import StudentT, kl_divergence

import pyrovae as pv
from pyrovae import distributions, reports
from pyrovae.evaluation import generate
from pyrovae.models import BayesianCategoricalMixture, BayesianGaussianMixture, CategoricalMixture, GaussianMixture
from pyrovae.models.conjugate import DirichletClasses, NormalGamma, NormalWishart
from pyrovae.priors.covariances import DiagonalCovariance, FullCovariance, TiedCovariance
from pyrovae.training.step import Step

EXACT = {"min_scale": 0.0}
COVARIANCES = {"diag": DiagonalCovariance, "full": FullCovariance, "tied": TiedCovariance}


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    yield
    torch.set_default_dtype(torch.float32)


def blobs(rows=90, dim=2):
    """Three overlapping clusters of different shapes."""
    generator = torch.Generator().manual_seed(0)
    locs = torch.tensor([[-1.5, 0.0, 0.5], [1.0, 1.5, -0.5], [0.5, -2.0, 1.0]])[:, None, :dim]
    shapes = torch.randn(3, dim, dim, generator=generator) / 2
    x = locs + torch.randn(3, rows // 3, dim, generator=generator) @ (shapes + torch.eye(dim))
    return x.flatten(0, 1)


def bits(rows=40, dim=3, classes=2):
    return (classes * torch.rand(rows, dim, generator=torch.Generator().manual_seed(1))).floor()


def shares(rows, count, seed=0):
    return (6 * torch.rand(rows, count, generator=torch.Generator().manual_seed(seed))).softmax(-1)


def assert_rises(losses, slack=1e-11):
    assert all(b <= a + slack for a, b in itertools.pairwise(losses)), losses
    assert losses[0] - losses[-1] > 1e-3


# Gaussian mixtures ----------------------------------------------------------------------------------------------------


def gaussian(kind, x, start):
    return GaussianMixture(2, 3, covariance=partial(COVARIANCES[kind], **EXACT)).initialise_(x, start)


def reference(kind, pair, epochs):
    """scikit-learn's after some epochs of EM from where a pair is."""
    covariances = pair.component_covariances.detach()
    precisions = {
        "diag": lambda: 1 / covariances.diagonal(dim1=-2, dim2=-1),
        "full": lambda: torch.linalg.inv(covariances),
        "tied": lambda: torch.linalg.inv(covariances[0]),
    }
    found = Reference(
        3, covariance_type=kind, reg_covar=0.0, tol=0.0, max_iter=epochs, weights_init=pair.component_weights.detach(),
        means_init=pair.component_means.detach(), precisions_init=precisions[kind]().numpy(), random_state=0,
    )  # fmt: skip
    return found


def fitted(reference, x):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it has not converged
        return reference.fit(x.numpy())


@pytest.mark.parametrize("kind", COVARIANCES)
def test_em_is_scikit_learns(kind):
    x = blobs()
    pair = gaussian(kind, x, shares(90, 3))
    wanted = fitted(reference(kind, pair, 7), x)
    run = pv.fit_em(pair, x, m_step=pair.maximize, max_epochs=7)
    torch.testing.assert_close(pair.component_weights, torch.from_numpy(wanted.weights_))
    torch.testing.assert_close(pair.component_means.detach(), torch.from_numpy(wanted.means_))
    covariances = {
        "diag": pair.component_covariances.diagonal(dim1=-2, dim2=-1),
        "full": pair.component_covariances,
        "tied": pair.component_covariances[0],
    }[kind]
    torch.testing.assert_close(covariances.detach(), torch.from_numpy(wanted.covariances_))
    each = pv.log_weights(pair, x)[0].detach()
    torch.testing.assert_close(each, torch.from_numpy(wanted.score_samples(x.numpy())))
    responsibilities = pv.exact_posterior(pair, x).responsibilities["c"]
    torch.testing.assert_close(responsibilities, torch.from_numpy(wanted.predict_proba(x.numpy())))
    assert run.history["train_loss"][-1] == pytest.approx(-wanted.lower_bound_, abs=1e-10)
    assert_rises(run.history["train_loss"])


@pytest.mark.parametrize("kind", COVARIANCES)
def test_log_p_by_hand_and_the_elbo_is_it(kind):
    x = blobs()
    pair = gaussian(kind, x, shares(90, 3))
    joint = [
        weight.log() + dist.MultivariateNormal(loc, covariance).log_prob(x)
        for weight, loc, covariance in zip(
            pair.component_weights, pair.component_means, pair.component_covariances, strict=True
        )
    ]
    by_hand = torch.stack(joint).exp().sum(0).log()
    torch.testing.assert_close(pv.log_weights(pair, x, num_particles=2), by_hand.expand(2, -1))
    torch.testing.assert_close(pv.log_marginal(pair, x), by_hand)
    assert pv.elbo(pair, x).elbo.value == pytest.approx(by_hand.mean().item(), abs=1e-12)
    assert -TraceEnum_ELBO().loss(pair.model, pair.guide, x) == pytest.approx(by_hand.sum().item(), abs=1e-9)


def climb(pair, x):
    """Maximum likelihood by gradients alone, which Newton-like steps bring near the maximum."""
    optimizer = torch.optim.LBFGS(
        list(pair.parameters()), max_iter=150, tolerance_grad=1e-9, tolerance_change=0.0, line_search_fn="strong_wolfe"
    )
    step = Step(pair, pv.ELBO(), pv.structure(pair, x))
    optimizer.step(lambda: (optimizer.zero_grad(), step.backward(x))[1])


@pytest.mark.parametrize("kind", COVARIANCES)
def test_gradients_find_what_em_finds(kind):
    """From one start, both at the same maximum: equal log-likelihoods and parameters."""
    x = blobs()
    pairs = [gaussian(kind, x, torch.eye(3).repeat_interleave(30, 0)) for _ in range(2)]
    pv.fit_em(pairs[0], x, m_step=pairs[0].maximize, max_epochs=250)
    climb(pairs[1], x)
    wanted = fitted(reference(kind, gaussian(kind, x, torch.eye(3).repeat_interleave(30, 0)), 250), x)
    found = [pv.log_marginal(pair, x).mean().item() for pair in pairs]
    print(found, wanted.score(x.numpy()))
    assert found == pytest.approx([wanted.score(x.numpy())] * 2, abs=1e-7)
    torch.testing.assert_close(pairs[0].component_covariances, pairs[1].component_covariances, atol=1e-3, rtol=0)
    gradient = torch.autograd.grad(pv.log_marginal(pairs[0], x).mean(), list(pairs[0].parameters()))
    assert max(g.abs().max() for g in gradient) < 1e-4  # what EM stops at is a maximum


def test_fit_trains_it_by_mini_batches():
    x = blobs(600)
    pair = GaussianMixture(2, 3, covariance=FullCovariance).initialise_(x, torch.eye(3).repeat_interleave(200, 0))
    em = GaussianMixture(2, 3, covariance=FullCovariance).initialise_(x, torch.eye(3).repeat_interleave(200, 0))
    before = pv.log_marginal(pair, x).mean().item()
    pv.fit(pair, x, max_epochs=40, lr=1e-2, seed=0, compile=False, progress=False)
    pv.fit_em(em, x, m_step=em.maximize, max_epochs=60)
    values = [pv.log_marginal(one, x).mean().item() for one in (pair, em)]
    print(before, values)
    assert before + 0.003 < values[0]
    assert values[0] == pytest.approx(values[1], abs=0.002)  # nats; noise of the last mini-batches


def test_the_floor_bounds_the_density():
    x = torch.cat([blobs(30), torch.full((5, 2), 7.0)])  # five equal rows
    start = torch.eye(3).repeat_interleave(torch.tensor([15, 15, 5]), 0)
    for covariance in (DiagonalCovariance, FullCovariance):
        pair = GaussianMixture(2, 3, covariance=partial(covariance, min_scale=0.1)).initialise_(x, start)
        run = pv.fit_em(pair, x, m_step=pair.maximize, max_epochs=10)
        assert_rises(run.history["train_loss"], slack=1e-6)
        smallest = torch.linalg.eigvalsh(pair.component_covariances).amin().item()
        assert smallest == pytest.approx(0.01, rel=1e-4)
        near = pair.initialise_(x, start).component_covariances[0].diagonal().detach()  # where it is above the floor
        torch.testing.assert_close(near, x[:15].var(0, correction=0))
        with pytest.raises(ValueError, match=r"no variance left .* min_scale"):
            GaussianMixture(2, 3, covariance=partial(covariance, **EXACT)).initialise_(x, start)


@pytest.mark.parametrize("kind", ["full", "tied"])
@pytest.mark.parametrize(("dtype", "close"), [(torch.float32, 1e-2), (torch.float64, 1e-6)])
@pytest.mark.parametrize("scale", [1e-2, 1.0, 100.0, 1e4, 1e6])
def test_data_in_a_subspace_have_the_floor_across_it(kind, dtype, close, scale):
    """Two lines of data in 20 dimensions; along each they have their own variance, however long it is."""
    along = torch.randn(2, 20).to(dtype)
    length = scale * torch.randn(2, 50, 1).to(dtype)
    if kind == "tied":
        along[1] = along[0]
    x = (length * along[:, None] + scale * torch.tensor([0.0, 3.0])[:, None, None].to(dtype)).flatten(0, 1)
    start = torch.eye(2, dtype=dtype).repeat_interleave(50, 0)
    made = partial(COVARIANCES[kind], min_scale=1e-3)
    pair = GaussianMixture(20, 2, covariance=made).to(dtype).initialise_(x, start)
    tril = pair.component(torch.arange(2)).scale_tril.detach().double()
    found = torch.linalg.eigvalsh(tril @ tril.mT)
    variance = length.double().var(1, correction=0) * along.double().square().sum(1, keepdim=True)
    want = variance[:, 0] if kind == "full" else variance.mean(0).expand(2)
    torch.testing.assert_close(found[:, -1], want, rtol=close, atol=0)
    most = 1e-6 + 20 * torch.finfo(dtype).eps * want  # the floor, or what rounding the data leaves
    assert (found[:, 0] > 0).all(), found
    assert (found[:, :-1].amax(1) < 2 * most).all(), found
    run = pv.fit_em(pair, x, m_step=pair.maximize, max_epochs=3)
    assert all(map(math.isfinite, run.history["train_loss"]))


@pytest.mark.parametrize("covariance", [FullCovariance, TiedCovariance])
def test_dead_pixels_in_single_precision_are_no_trouble(covariance):
    x = torch.from_numpy(load_digits().data[:600] / 16).float()
    pair = GaussianMixture(64, 3, covariance=covariance).float().initialise_(x)
    assert all(map(math.isfinite, pv.fit_em(pair, x, m_step=pair.maximize, max_epochs=3).history["train_loss"]))


@pytest.mark.parametrize("covariance", [DiagonalCovariance, FullCovariance])
@pytest.mark.parametrize("min_scale", [1e-3, 0.0])
def test_a_component_without_data_keeps_its_place(covariance, min_scale):
    """And its covariance, whose floor it would fall to; its weight is 0, the maximum."""
    x = blobs(30)
    start = torch.eye(3)[:2].repeat_interleave(15, 0)
    pair = GaussianMixture(2, 3, covariance=partial(covariance, min_scale=min_scale))
    pair.covariance.set_(
        torch.tensor([4.0, 0.5]).expand(3, 2).diag_embed()
        if covariance is FullCovariance
        else torch.tensor([4.0, 0.5]).expand(3, 2)
    )
    before = pair.component_means[2].detach().clone(), pair.component_covariances[2].detach().clone()
    pair.initialise_(x, start)
    assert torch.equal(pair.component_means[2], before[0])
    torch.testing.assert_close(pair.component_covariances[2], before[1], rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(pair.component_means[:2], x.reshape(2, 15, 2).mean(1))
    assert torch.isfinite(pv.log_marginal(pair, x)).all()
    assert pair.component_weights[2] < 1e-300


def test_k_means_starts_at_the_clusters():
    centers = torch.tensor([[0.0, 0.0], [9.0, 0.0], [0.0, 9.0]])
    x = (centers[:, None] + torch.randn(3, 20, 2)).flatten(0, 1)
    pair = GaussianMixture(2, 3).initialise_(x, seed=1)
    found = pair.component_means.detach()
    wanted = x.reshape(3, 20, 2).mean(1)
    assert (torch.cdist(found, wanted).min(1).values < 1e-10).all()
    torch.testing.assert_close(pair.component_weights, torch.full((3,), 1 / 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.int64])
@pytest.mark.parametrize("make", [GaussianMixture, BayesianGaussianMixture, CategoricalMixture])
def test_data_of_another_dtype_take_the_pairs(make, dtype):
    x = bits().to(dtype) if make is CategoricalMixture or dtype == torch.int64 else blobs(dim=3)
    found = []
    for data in (x, x.float()):
        torch.manual_seed(1)
        pair = make(3, 2).float().initialise_(data, shares(len(x), 2))
        before = [value.clone() for value in pair.parameters()]
        pair.maximize({"c": shares(len(x), 2, seed=2)}, data)
        found.append([*before, *pair.parameters()])
    assert all(torch.equal(a, b) and a.dtype == torch.float32 for a, b in zip(*found, strict=True))


@pytest.mark.parametrize("covariance", COVARIANCES.values())
def test_em_takes_data_of_another_dtype_as_the_pairs(covariance):
    losses = []
    for x in (blobs(), blobs().float()):
        pair = GaussianMixture(2, 3, covariance=covariance).float().initialise_(x)
        losses.append(pv.fit_em(pair, x, m_step=pair.maximize, max_epochs=3).history["train_loss"])
    assert losses[0] == losses[1]


def test_samples_have_the_mixtures_moments():
    x = blobs()
    pair = gaussian("full", x, torch.eye(3).repeat_interleave(30, 0))
    drawn = generate(pair, 20000, like=x, sample=True, seed=1)
    weights, means = pair.component_weights, pair.component_means
    mean = weights @ means
    error = drawn.std(0) / math.sqrt(len(drawn))
    print(drawn.mean(0), mean, error)
    assert ((drawn.mean(0) - mean).abs() < 4 * error).all()
    second = torch.einsum("k,kij->ij", weights, pair.component_covariances + means[:, :, None] * means[:, None])
    products = drawn[:, :, None] * drawn[:, None]
    assert ((products.mean(0) - second).abs() < 4 * products.std(0) / math.sqrt(len(drawn))).all()


def test_images_have_diagonal_covariances():
    x = torch.randn(20, 1, 2, 3)
    pair = GaussianMixture((1, 2, 3), 2).initialise_(x)
    assert pair.component_means.shape == (2, 1, 2, 3)
    assert pair.component_covariances.shape == (2, 6, 6)
    flat = GaussianMixture(6, 2).initialise_(x.flatten(1))
    torch.testing.assert_close(pv.log_marginal(pair, x), pv.log_marginal(flat, x.flatten(1)))


# Categorical mixtures -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [2, 3])
def test_all_values_of_x_have_the_brute_force_probability_and_sum_to_one(classes):
    pair = CategoricalMixture(3, 4, num_classes=classes)
    every = torch.tensor(list(itertools.product(range(classes), repeat=3)), dtype=torch.float64)
    weights, theta = pair.logits.softmax(-1), pair.class_logits.softmax(-1)
    by_hand = [
        sum(weights[c] * math.prod(float(theta[c, d, int(v)].detach()) for d, v in enumerate(row)) for c in range(4))
        for row in every
    ]
    found = pv.log_marginal(pair, every).exp()
    torch.testing.assert_close(found, torch.stack(by_hand))
    assert found.sum().item() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("make", [CategoricalMixture, BayesianCategoricalMixture])
def test_bits_may_be_whole_numbers(make):
    pair, x = make(3, 4), bits()
    bound = TraceEnum_ELBO(max_plate_nesting=1)
    losses = []
    for each in (x, x.long(), x.bool()):
        torch.manual_seed(0)
        losses.append(bound.loss(pair.model, pair.guide, each))
    assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("classes", [2, 3])
def test_em_of_classes_is_the_m_step_by_hand_and_ends_at_a_maximum(classes):
    x = bits(classes=classes)
    pair = CategoricalMixture(3, 2, num_classes=classes).initialise_(x, shares(40, 2))
    q = pv.exact_posterior(pair, x).responsibilities["c"]
    run = pv.fit_em(pair, x, m_step=pair.maximize, max_epochs=1)
    for c, d, v in itertools.product(range(2), range(3), range(classes)):
        wanted = sum(float(q[n, c]) for n in range(40) if x[n, d] == v) / float(q[:, c].sum())
        assert pair.class_logits.softmax(-1)[c, d, v].item() == pytest.approx(wanted, abs=1e-12)
    run = pv.fit_em(pair, x, m_step=pair.maximize, max_epochs=20)
    assert_rises(run.history["train_loss"])


def test_gradients_find_the_classes_that_em_finds():
    x = bits(classes=3)
    pairs = [CategoricalMixture(3, 2, num_classes=3).initialise_(x, shares(40, 2)) for _ in range(2)]
    pv.fit_em(pairs[0], x, m_step=pairs[0].maximize, max_epochs=300)
    climb(pairs[1], x)
    found = [pv.log_marginal(pair, x).mean().item() for pair in pairs]
    assert found[0] == pytest.approx(found[1], abs=1e-5)  # EM is slow at the end
    assert found[1] > found[0] - 1e-9


# Bayesian mixtures ----------------------------------------------------------------------------------------------------


def gaussian_evidence(x, prior):
    """log p(x) of Normal data under Normal-Wishart, by Student predictives one after the other."""
    loc, strength, df = prior.loc[0], prior.strength[0], prior.df[0]
    scatter = torch.cholesky_inverse(prior.scale_tril[0])
    dim, total = x.size(1), 0.0
    for row in x:
        nu = df - dim + 1
        shape = scatter * (strength + 1) / (strength * nu)
        apart = row - loc
        distance = apart @ torch.linalg.solve(shape, apart)
        total = total + (
            torch.lgamma((nu + dim) / 2) - torch.lgamma(nu / 2) - dim / 2 * (nu * math.pi).log()
            - torch.logdet(shape) / 2 - (nu + dim) / 2 * (1 + distance / nu).log()
        )  # fmt: skip
        scatter = scatter + strength / (strength + 1) * apart[:, None] * apart
        loc = (strength * loc + row) / (strength + 1)
        strength, df = strength + 1, df + 1
    return total


def gamma_evidence(x, prior):
    """The same for Normal-Gamma, each number of x on its own, with torch's Student density."""
    loc, strength, df, scatter = prior.loc[0], prior.strength[0], prior.df[0], prior.scatter[0]
    total = 0.0
    for row in x:
        scale = (scatter * (strength + 1) / (strength * df)).sqrt()
        total = total + StudentT(df, loc, scale).log_prob(row).sum()
        scatter = scatter + strength / (strength + 1) * (row - loc) ** 2
        loc = (strength * loc + row) / (strength + 1)
        strength, df = strength + 1, df + 1
    return total


def class_evidence(x, prior):
    """Polya's urn, one number after the other."""
    counts, total = prior.concentration[0].clone(), 0.0
    for row in x.long():
        for d, v in enumerate(row):
            total = total + (counts[d, v] / counts[d].sum()).log()
            counts[d, v] += 1
    return total


def bayesian(kind, count, **options):
    if kind == "classes":
        part = partial(DirichletClasses, num_classes=3, concentration=0.7)
        return BayesianCategoricalMixture(3, count, components=part, **options), bits(24, classes=3)
    part = {"gamma": NormalGamma, "wishart": NormalWishart}[kind]
    part = partial(part, loc=0.4, strength=1.7, df=3.5, scale=1.3)
    return BayesianGaussianMixture(3, count, components=part, **options), blobs(24, 3)


EVIDENCE = {"wishart": gaussian_evidence, "gamma": gamma_evidence, "classes": class_evidence}


@pytest.mark.parametrize("kind", EVIDENCE)
def test_one_component_has_the_conjugate_evidence(kind):
    """At the posterior the closed-form bound is log p(x), and so is log p - log q at every draw."""
    pair, x = bayesian(kind, 1)
    want = EVIDENCE[kind](x, pair.components.prior).item()
    run = pv.fit_em(pair.expected(), x, m_step=pair.maximize, max_epochs=2)
    before, after = (-len(x) * loss for loss in run.history["train_loss"])
    assert after == pytest.approx(want, abs=1e-9)
    assert before < want - 0.1
    for seed in range(3):
        torch.manual_seed(seed)
        assert -TraceEnum_ELBO().loss(pair.model, pair.guide, x) == pytest.approx(want, abs=1e-8)
        elbo = pv.ELBO(2, closed_form=False)
        assert -elbo.loss(pair.model, pair.guide, x) == pytest.approx(want, abs=1e-8)


def test_one_component_has_all_responsibility():
    """A site of one value has no dim of its own."""
    for pair in (GaussianMixture(2, 1), BayesianGaussianMixture(2, 1).expected()):
        found = pv.exact_posterior(pair, blobs(6))
        assert torch.equal(found.responsibilities["c"], torch.ones(6, 1))


@pytest.mark.parametrize("kind", EVIDENCE)
def test_expectations_and_kl_in_closed_form_are_those_of_draws(kind):
    pair, x = bayesian(kind, 2)
    pair.maximize({"c": shares(len(x), 2, seed=3)}, x)  # a q that is not the prior
    part, x = pair.components, x[:5]
    with torch.no_grad(), pyro.plate("draws", 4000, dim=-2):
        with poutine.trace() as q:
            drawn = part.draw(part.posterior)
        with poutine.trace() as p, poutine.condition(data=q.trace):
            part.draw(part.prior)
        each = part.likelihood(drawn, torch.arange(2)[:, None, None]).log_prob(x)  # (2, 4000, 5)
    for trace in (q.trace, p.trace):
        trace.compute_log_prob()
    names = [name for name in ("precision", "loc", "probs") if name in q.trace]
    kl = [sum(trace.nodes[name]["log_prob"] for name in names) for trace in (q.trace, p.trace)]
    for got, want in ((each.permute(1, 2, 0), part.expected_log_prob(x)), ((kl[0] - kl[1])[:, 0], part.kl())):
        error = got.std(0) / math.sqrt(len(got))
        print(got.mean(0), want, error)
        assert ((got.mean(0) - want).abs() < 4 * error).all()
        assert (error < 0.1).all()


@pytest.mark.parametrize("kind", EVIDENCE)
def test_coordinate_ascent_never_falls_and_lies_below_the_summed_bound(kind):
    pair, x = bayesian(kind, 3, concentration=0.5)
    pair.initialise_(x, shares(24, 3))
    run = pv.fit_em(pair.expected(), x, m_step=pair.maximize, max_epochs=30)
    assert_rises(run.history["train_loss"])
    bound = pv.exact_posterior(pair.expected(), x).mean().item()
    values = torch.tensor([-pv.ELBO(8).loss(pair.model, pair.guide, x) / len(x) for _ in range(20)])
    error = values.std().item() / math.sqrt(20)
    print(values.mean(), error, bound)
    assert values.mean().item() > bound - 4 * error


def resampled(seed, rows, count):
    """scikit-learn's responsibilities of init_params="random"."""
    from sklearn.utils import check_random_state

    given = torch.from_numpy(check_random_state(seed).uniform(size=(rows, count)))
    return given / given.sum(1, keepdim=True)


def test_coordinate_ascent_is_scikit_learns():
    """Parameters iterate by iterate; its lower_bound_ lacks a constant, which is that of the priors and the data."""
    x, constants = blobs(90), []
    for epochs in (1, 2, 5):
        wanted = fitted(
            BayesianReference(
                n_components=3,
                weight_concentration_prior_type="dirichlet_distribution", weight_concentration_prior=0.4,
                mean_precision_prior=1.5, mean_prior=torch.zeros(2).numpy(), degrees_of_freedom_prior=3.5,
                covariance_prior=3.5 * torch.eye(2).numpy(), reg_covar=0.0, tol=0.0, max_iter=epochs,
                init_params="random", random_state=4,
            ),
            x,
        )  # fmt: skip
        part = partial(NormalWishart, strength=1.5, df=3.5)
        pair = BayesianGaussianMixture(2, 3, components=part, concentration=0.4)
        pair.initialise_(x, resampled(4, 90, 3))
        q = pv.exact_posterior(pair.expected(), x)
        for _ in range(epochs):
            q = pv.exact_posterior(pair.expected(), x)
            pair.maximize(q.responsibilities, x)
        torch.testing.assert_close(pair.component_means, torch.from_numpy(wanted.means_))
        torch.testing.assert_close(pair.component_covariances.detach(), torch.from_numpy(wanted.covariances_))
        torch.testing.assert_close(pair.concentration, torch.from_numpy(wanted.weight_concentration_))
        torch.testing.assert_close(pair.components.posterior.df, torch.from_numpy(wanted.degrees_of_freedom_))
        responsibilities = pv.exact_posterior(pair.expected(), x).responsibilities["c"]
        torch.testing.assert_close(responsibilities, torch.from_numpy(wanted.predict_proba(x.numpy())))
        constants.append(len(x) * q.mean().item() - wanted.lower_bound_)
    print(constants)
    assert constants == pytest.approx([constants[0]] * 3, abs=1e-7)
    assert abs(constants[0]) > 1


def test_normal_gamma_is_normal_wishart_in_one_dimension():
    x = blobs(30, 1)
    pairs = [
        BayesianGaussianMixture(1, 2, components=partial(part, loc=0.2, strength=1.3, df=2.5, scale=0.8))
        for part in (NormalGamma, NormalWishart)
    ]
    losses = []
    for pair in pairs:
        pair.initialise_(x, shares(30, 2))
        losses.append(pv.fit_em(pair.expected(), x, m_step=pair.maximize, max_epochs=5).history["train_loss"])
    assert losses[0] == pytest.approx(losses[1], abs=1e-10)
    torch.testing.assert_close(pairs[0].component_covariances, pairs[1].component_covariances)


def test_components_that_the_data_do_not_need_go_back_to_the_prior():
    start = torch.tensor([0.98, 0.01, 0.01]).expand(60, 3)
    x = torch.randn(60, 2)
    pair = BayesianGaussianMixture(2, 3, components=NormalWishart, concentration=1e-3).initialise_(x, start)
    assert pair.components.posterior.strength[1].item() == pytest.approx(1.6)
    pv.fit_em(pair.expected(), x, m_step=pair.maximize, max_epochs=5)
    assert pair.component_weights[0] > 0.999
    for name, value in vars(pair.components.posterior).items():
        torch.testing.assert_close(value[1:], getattr(pair.components.prior, name)[1:])


def test_svi_on_mini_batches_climbs_to_coordinate_ascent():
    x = blobs(90)
    pairs = [
        BayesianGaussianMixture(2, 3, components=NormalWishart, data_size=90).initialise_(x, shares(90, 3))
        for _ in range(2)
    ]
    before = pv.exact_posterior(pairs[1].expected(), x).mean().item()
    pv.fit_em(pairs[0].expected(), x, m_step=pairs[0].maximize, max_epochs=100)
    pv.fit(
        pairs[1], x, objective=pv.ELBO(2), batch_size=45, max_epochs=60, lr=5e-2, seed=0, compile=False, progress=False
    )
    after = pv.exact_posterior(pairs[1].expected(), x).mean().item()
    values = []
    for pair in pairs:
        torch.manual_seed(1)
        values.append(-pv.ELBO(400).loss(pair.model, pair.guide, x) / 90)
    print(before, after, values)
    assert before < after - 0.1
    assert values[1] == pytest.approx(values[0], abs=0.05)  # nats; noise of the last mini-batches


@pytest.mark.parametrize("kind", EVIDENCE)
def test_the_plain_mixture_is_at_the_means_of_q(kind):
    pair, x = bayesian(kind, 2)
    pair.maximize({"c": shares(len(x), 2, seed=3)}, x)
    state = torch.get_rng_state()
    plain = pair.plain()
    if kind != "classes":
        assert torch.equal(pair.component_covariances, plain.component_covariances)
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(plain.component_weights, pair.component_weights)
    torch.testing.assert_close(plain.component_means, pair.component_means)
    if kind == "classes":
        concentration = pair.components.posterior.concentration
        torch.testing.assert_close(plain.class_logits.softmax(-1), concentration / concentration.sum(-1, keepdim=True))
    else:
        with torch.no_grad(), pyro.plate("draws", 4000):
            precision = pair.components.draw(pair.components.posterior)[1]
        precision = precision if kind == "wishart" else precision.diag_embed()
        error = precision.std(0) / math.sqrt(len(precision))
        want = torch.linalg.inv(plain.component_covariances)
        assert ((precision.mean(0) - want).abs() < 4 * error + 1e-9).all()
    assert torch.isfinite(pv.log_marginal(plain, x)).all()


def test_a_report_of_global_latents_has_no_log_likelihood():
    x = blobs(30)
    pair = BayesianGaussianMixture(2, 2).initialise_(x)
    figures, _ = reports.evaluate(pair, x, num_replicates=20)
    assert figures["log_likelihood"] is None
    assert set(figures["kl"]) == {"c", "weights", "precision", "loc"}
    text = reports.table(figures)
    assert "KL precision" in text
    assert "log-likelihood" not in text
    plain, _ = reports.evaluate(pair.plain(), x, num_replicates=20, num_samples=5)
    assert plain["log_likelihood"] == pytest.approx(plain["elbo"], abs=1e-10)


# The Wishart distribution ---------------------------------------------------------------------------------------------


def wishart(seed=0, df=(4.5, 6.0)):
    numbers = torch.randn(2, 3, 3, generator=torch.Generator().manual_seed(seed))
    tril = numbers.tril(-1) + (0.5 + numbers.diagonal(dim1=-2, dim2=-1).abs()).diag_embed()
    return distributions.Wishart(torch.tensor(df), tril)


def test_wishart_has_torchs_density_and_moments():
    mine = wishart()
    theirs = torch.distributions.Wishart(mine.df, scale_tril=mine.scale_tril)
    x = mine.sample((4,))
    torch.testing.assert_close(mine.log_prob(x), theirs.log_prob(x))
    torch.testing.assert_close(mine.mean, theirs.mean)
    torch.testing.assert_close(mine.variance, theirs.variance)
    torch.testing.assert_close(mine.expand((5, 2)).log_prob(x[:, None]), theirs.log_prob(x)[:, None].expand(4, 5, 2))


def test_wishart_draws_have_the_moments():
    mine = wishart()
    for drawn in (mine.sample((20000,)), mine.expand((3, 2)).sample((20000,))[:, 1]):
        error = drawn.std(0) / math.sqrt(len(drawn))
        assert ((drawn.mean(0) - mine.mean).abs() < 4 * error).all()
        torch.testing.assert_close(drawn.var(0), mine.variance, rtol=0.1, atol=0.0)


def test_kl_of_wisharts():
    q, p = wishart(), wishart(1, (3.7, 9.0))
    x = q.sample((20000,))
    ratio = q.log_prob(x) - p.log_prob(x)
    got, error = kl_divergence(q, p), ratio.std(0) / math.sqrt(len(x))
    print(got, ratio.mean(0), error)
    assert ((got - ratio.mean(0)).abs() < 4 * error).all()
    torch.testing.assert_close(kl_divergence(q, q), torch.zeros(2))


# What is refused ------------------------------------------------------------------------------------------------------


def all_pairs(count):
    return [GaussianMixture(2, count), BayesianGaussianMixture(2, count), CategoricalMixture(2, count)]


@pytest.mark.parametrize(
    "make",
    [
        partial(BayesianGaussianMixture, 5, 2),
        partial(BayesianCategoricalMixture, 5, 2),
        partial(pv.BayesianHMM, (5,), 2),
    ],
)
def test_fewer_data_than_rows_are_refused(make):
    """The global latents would weigh as much as for three data, and the rows half."""
    x = bits(6, 5)
    for size in (2, 6):
        pair = make(data_size=3)
        before = [p.clone() for p in pair.parameters()]
        with pytest.raises(ValueError, match=r"size 3, fewer than the 6 data"):
            pv.fit(pair, x, batch_size=size, max_epochs=1, validation=None, progress=False)
        assert all(torch.equal(a, b) for a, b in zip(before, pair.parameters(), strict=True))
    assert math.isfinite(pv.elbo(make(data_size=3), x).elbo.value), "other data than those of training may be more"
    whole, part = (pv.structure(make(data_size=size), x) for size in (6, 60))
    assert (whole.size, whole.subsampled, part.size, part.subsampled) == (6, False, 60, True)


def test_more_components_than_data_are_refused():
    for pair in all_pairs(5):
        with pytest.raises(ValueError, match="num_components is 5 and the data have 4 rows; pass num_components<=4"):
            pair.initialise_(bits(4, 2))
    with pytest.raises(ValueError, match="num_components is 5 and the data have 4 rows"):
        pv.fit(GaussianMixture(2, 5), blobs(4 * 3)[:4], progress=False)
    pair = GaussianMixture(2, 5)
    with pytest.raises(ValueError, match="num_components is 5 and the data have 4 rows"):
        pv.fit_em(pair, blobs(12)[:4], m_step=pair.maximize)


def test_data_of_another_shape_are_refused():
    for pair in all_pairs(2):
        for wrong in (torch.zeros(6, 3), torch.zeros(6, 1), torch.zeros(6)):
            with pytest.raises(ValueError, match=r"event shape .* expects \(2,\)"):
                pv.fit(pair, wrong, progress=False)
            with pytest.raises(ValueError, match=r"event shape .* expects \(2,\)"):
                pair.initialise_(wrong)
        with pytest.raises(ValueError, match="wanted one dim before its event"):
            pair.initialise_(torch.zeros(6, 4, 2))
        with pytest.raises(ValueError, match=r"responsibilities have shape \(6, 3\), wanted are \(6, 2\)"):
            pair.initialise_(torch.zeros(6, 2), shares(6, 3))
        with pytest.raises(ValueError, match="each row of sum 1"):
            pair.initialise_(torch.zeros(6, 2), torch.ones(6, 2))


@pytest.mark.parametrize("wrong", [2.0, -1.0, 0.5])
def test_categories_out_of_range_are_refused(wrong):
    x = bits(6, 2)
    x[4, 1] = wrong
    for pair in (CategoricalMixture(2, 2), BayesianCategoricalMixture(2, 2)):
        with pytest.raises(ValueError, match="row 4"):
            pair.initialise_(x)
        with pytest.raises(ValueError, match="cannot give: row 4"):
            pv.fit(pair, x, progress=False)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GaussianMixture(2, 0), "num_components"),
        (lambda: GaussianMixture((1, 2, 2), 2, covariance=FullCovariance), "FullCovariance is over vectors"),
        (lambda: GaussianMixture(2, 2, covariance=partial(FullCovariance, min_scale=-1.0)), "min_scale is -1.0"),
        (lambda: CategoricalMixture(2, 2, num_classes=1), "num_classes is 1, expected at least 2"),
        (lambda: BayesianGaussianMixture(2, 2, concentration=0.0), "concentration is 0.0"),
        (lambda: BayesianGaussianMixture(2, 2, components=partial(NormalWishart, df=1.0)), "greater than D - 1 = 1"),
        (lambda: BayesianGaussianMixture(2, 2, components=partial(NormalGamma, strength=0.0)), "strength is 0.0"),
        (lambda: BayesianCategoricalMixture(2, 2, data_size=0), "data_size"),
    ],
)
def test_numbers_without_sense_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
