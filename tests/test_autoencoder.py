"""Auto-encoders against what is known of them: the PCA subspace, the best denoiser of a Gaussian, their value."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pyro
import pytest
import torch
from pyro.infer import SVI, Predictive, Trace_ELBO
from scipy.linalg import subspace_angles
from torch import nn

import pyrovae as pv
from pyrovae import conditionals, evaluation, nets, reports
from pyrovae.distributions import Flat, is_improper
from pyrovae.models import CVAE, VAE, Autoencoder, LadderVAE
from pyrovae.models.base import evaluation_mode, structure

QUIET = {"progress": False, "compile": False, "seed": 0}


def linear(dim: int, latent_dim: int, scale: float = 1.0, **options) -> Autoencoder:
    """x -> W x + b -> V z + c under half the squared error, in float64."""
    likelihood = partial(conditionals.FixedNormal, scale=scale)
    return Autoencoder(dim, latent_dim, hidden=(), likelihood=likelihood, **options).double()


def minimise(pair: Autoencoder, x: torch.Tensor, steps: int = 8) -> float:
    """To the optimum, by L-BFGS on the ELBO's own loss."""
    objective = pv.ELBO()
    optimizer = torch.optim.LBFGS(
        pair.parameters(), max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        loss = objective.differentiable_loss(pair.model, pair.guide, x) / len(x)
        loss.backward()
        return loss

    for _ in range(steps):
        loss = optimizer.step(closure)
    return float(loss.detach())


def correlated(rows: int, dim: int = 6, seed: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.diag(torch.linspace(2.5, 0.3, dim, dtype=torch.float64))
    rotation = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))[0]
    return torch.randn(rows, dim, generator=generator, dtype=torch.float64) @ spread @ rotation + 1.5


# Exact answers --------------------------------------------------------------------------------------------------------


def test_a_linear_autoencoder_spans_the_pca_subspace():
    """Baldi & Hornik 1989: its only minimum is the projection on the leading eigenvectors of the covariance."""
    torch.manual_seed(0)
    x, pair = correlated(200), linear(6, 2)
    loss = minimise(pair, x)
    centred = x - x.mean(0)
    _, singular, rows = torch.linalg.svd(centred, full_matrices=False)
    decoder = pair.likelihood.head.layer.weight.detach()  # (6, 2)
    angles = subspace_angles(decoder.numpy(), rows[:2].T.numpy())
    assert angles.max() < 1e-5
    wrong = subspace_angles(decoder.numpy(), rows[1:3].T.numpy())
    assert wrong.max() > 1.0, "any subspace would do"
    error = (singular[2:] ** 2).sum() / len(x) / 2 + 3 * math.log(2 * math.pi)  # half of what PCA leaves, and constants
    assert loss == pytest.approx(float(error), rel=1e-9)


@pytest.mark.parametrize("noise", [0.5, 1.5])
def test_the_best_denoiser_gives_the_score_of_the_noised_density(noise):
    """On x ~ N(m, S) the best r(x~) is E[x | x~], and (r(x~) - x~) / noise^2 is the gradient of log p(x~).

    Vincent 2011 and Alain & Bengio 2014. A code as long as x and linear maps hold the best denoiser. The expectation
    over x and the noise is exact: points and noises whose first two moments are those of the Gaussians, and which are
    uncorrelated, give a quadratic loss its expected value.
    """
    torch.manual_seed(0)
    loc = torch.tensor([1.0, -2.0], dtype=torch.float64)
    covariance = torch.tensor([[2.0, 0.8], [0.8, 0.5]], dtype=torch.float64)
    root = torch.linalg.cholesky(covariance)
    signs = torch.cartesian_prod(*[torch.tensor([-1.0, 1.0], dtype=torch.float64)] * 4)  # (16, 4), moments 0 and I
    x, eps = loc + signs[:, :2] @ root.T, noise * signs[:, 2:]

    class Given(nn.Module):
        """These noises, one for each x."""

        def forward(self, x):
            return x + eps if self.training else x

    pair = linear(2, 2, corruption=Given())
    minimise(pair, x)
    at = torch.randn(50, 2, dtype=torch.float64) * 3
    denoised = evaluation.reconstruct(pair, at)
    noised = torch.distributions.MultivariateNormal(loc, covariance + noise**2 * torch.eye(2, dtype=torch.float64))
    at.requires_grad_()
    (score,) = torch.autograd.grad(noised.log_prob(at).sum(), at)
    assert torch.allclose((denoised - at.detach()) / noise**2, score, atol=1e-6)
    gain = covariance @ torch.linalg.inv(noised.covariance_matrix)
    assert torch.allclose(denoised, loc + (at.detach() - loc) @ gain.T, atol=1e-6)


def test_fit_with_gaussian_noise_approaches_that_score():
    """The library's corruption and loop, on samples: the slope of the denoiser is S / (S + noise^2), within 5 %."""
    torch.manual_seed(0)
    x = 1.0 + 2.0 * torch.randn(4000, 1)
    pair = Autoencoder(1, 1, hidden=(), likelihood=conditionals.FixedNormal, corruption=nets.GaussianNoise(1.5))
    pv.fit(pair, x, max_epochs=30, lr=1e-2, batch_size=500, **QUIET)
    at = torch.tensor([[-3.0], [5.0]])
    denoised = evaluation.reconstruct(pair, at)
    slope = float(denoised[1] - denoised[0]) / 8
    variance = float(x.var())
    assert slope == pytest.approx(variance / (variance + 1.5**2), abs=0.04)


# Its value ------------------------------------------------------------------------------------------------------------


def test_the_value_is_the_reconstruction_of_the_code():
    torch.manual_seed(0)
    pair = Autoencoder((1, 2, 3), 2, hidden=(5,), likelihood=conditionals.CrossEntropy).double()
    x = torch.rand(7, 1, 2, 3, dtype=torch.float64)
    z = pair.posterior.head(pair.encoder(x))[0]
    logits = pair.likelihood.head(pair.decoder(z))[0]
    want = -nn.functional.binary_cross_entropy_with_logits(logits, x, reduction="none").sum((1, 2, 3))
    for particles in (1, 3):
        weights = pv.log_weights(pair, x, num_particles=particles)
        assert torch.allclose(weights, want.expand(particles, 7), atol=1e-12)
    parts = pv.elbo(pair, x)
    assert parts.elbo.value == pytest.approx(want.mean().item(), abs=1e-12)
    assert parts.reconstruction == {"x": parts.elbo.value}
    assert parts.kl == {}


def test_with_a_fixed_normal_it_is_half_the_squared_error_and_its_constant():
    pair = linear(3, 2, scale=0.5)
    x = torch.randn(4, 3, dtype=torch.float64)
    error = (evaluation.reconstruct(pair, x) - x).square().sum(1) / (2 * 0.25)
    want = -error - 3 * math.log(0.5 * math.sqrt(2 * math.pi))
    assert torch.allclose(pv.log_weights(pair, x)[0], want, atol=1e-12)


def test_stock_pyro_trains_it_and_predicts():
    torch.manual_seed(0)
    pair, x = Autoencoder(4, 2, hidden=(8,)), torch.rand(64, 4).round()
    svi = SVI(pair.model, pair.guide, pyro.optim.Adam({"lr": 0.02}), Trace_ELBO())
    losses = [svi.step(x) for _ in range(100)]
    assert losses[-1] < losses[0] / 2
    drawn = Predictive(pyro.poutine.uncondition(pair.model), guide=pair.guide, num_samples=200)(x)["x"]
    assert torch.allclose(drawn.mean(0), evaluation.reconstruct(pair, x), atol=5 * 0.5 / math.sqrt(200))


@pytest.mark.parametrize(
    "call",
    [
        pv.log_likelihood,
        partial(pv.log_likelihood, proposal="prior"),
        pv.ais,
        pv.bdmc,
        pv.gaps,
        pv.surgery,
        partial(pv.compare_priors, priors={}),
        partial(pv.expectation, f=lambda z: z["z"]),
        partial(pv.check, sources="prior"),
        partial(evaluation.generate, num_samples=3),
    ],
)
def test_what_needs_a_density_of_x_refuses_it(call):
    pair, x = Autoencoder(4, 2, hidden=(8,)), torch.rand(6, 4).round()
    keywords = {"like": x} if getattr(call, "func", None) is evaluation.generate else {"data": x}
    with pytest.raises(ValueError, match="flat prior"):
        call(pair, **keywords)


def test_it_is_called_a_reconstruction_wherever_it_is_shown():
    pair, x = Autoencoder(4, 2, hidden=(8,)), torch.rand(20, 4).round()
    parts = pv.elbo(pair, x)
    assert not parts.is_bound
    assert not parts.elbo.is_density
    assert "ELBO" not in str(parts)
    assert str(parts).startswith("reconstruction")
    assert "not a log-likelihood" in str(parts)
    figures, checked = reports.evaluate(pair, x, num_replicates=3)
    assert not {"elbo", "log_likelihood"} & set(figures)
    text = reports.table(figures)
    assert "ELBO" not in text
    assert "no bound" in text
    assert {row.source for row in checked.rows} == {"posterior"}
    assert pv.elbo(VAE(4, 2, hidden=(8,)), x).is_bound


def test_structure_names_the_flat_prior():
    x = torch.rand(3, 4).round()
    assert structure(Autoencoder(4, 2), x).improper == ("z",)
    assert structure(VAE(4, 2), x).improper == ()
    assert is_improper(Flat(torch.zeros(2)).mask(False).expand([3]))
    assert Flat(torch.zeros(2)).expand([3]).log_prob(torch.randn(5, 3, 2)).shape == (5, 3)
    assert Flat(torch.zeros(2, dtype=torch.float64)).log_prob(torch.randn(3, 2).double()).dtype == torch.float64


# Corruption -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("corruption", "mean", "variance"),
    [
        (nets.Masking(0.3), 0.7 * 0.4, 0.7 * 0.3 * 0.4**2),
        (nets.GaussianNoise(0.2), 0.4, 0.04),
        (nets.SaltAndPepper(0.3), 0.15 + 0.7 * 0.4, 0.15 + 0.7 * 0.4**2 - (0.15 + 0.7 * 0.4) ** 2),
        (nets.SaltAndPepper(0.2, low=-1.0, high=3.0), 0.2 + 0.8 * 0.4, 0.1 + 0.9 + 0.8 * 0.16 - (0.2 + 0.8 * 0.4) ** 2),
    ],
)
def test_corruptions_have_the_moments_of_their_definition(corruption, mean, variance):
    torch.manual_seed(0)
    x = torch.full((200_000,), 0.4, dtype=torch.float64)
    drawn = corruption(x)
    assert float(drawn.mean()) == pytest.approx(mean, abs=4 * math.sqrt(variance / len(x)))
    fourth = float((drawn - drawn.mean()).pow(4).mean())
    assert float(drawn.var()) == pytest.approx(variance, abs=4 * math.sqrt((fourth - variance**2) / len(x)) + 1e-5)
    assert corruption.eval()(x) is x


def test_corruption_is_of_the_input_alone_and_of_training_alone():
    """What is reconstructed is the clean x."""
    torch.manual_seed(0)
    pair, x = Autoencoder(4, 2, hidden=(8,), corruption=nets.Masking(0.5)), torch.rand(6, 4).round()
    clean = pair.posterior_of(x).mean
    torch.manual_seed(1)
    corrupted = pair.posterior_of(nets.Masking(0.5)(x)).mean
    torch.manual_seed(1)
    trace = pyro.poutine.trace(pair.guide).get_trace(x)
    assert torch.equal(trace.nodes["z"]["value"], corrupted)
    assert not torch.equal(clean, corrupted)
    model = pyro.poutine.trace(pyro.poutine.replay(pair.model, trace=trace)).get_trace(x)
    assert model.nodes["x"]["value"] is x
    with evaluation_mode(pair):
        assert torch.equal(pyro.poutine.trace(pair.guide).get_trace(x).nodes["z"]["value"], clean)
    assert torch.equal(evaluation.encode(pair, x), clean)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (partial(nets.Masking, 1.0), r"p is 1.0"),
        (partial(nets.Masking, -0.1), r"p is -0.1"),
        (partial(nets.SaltAndPepper, 2), r"p is 2"),
        (partial(nets.SaltAndPepper, 0.1, low=1.0), "low is 1.0, high is 1.0"),
        (partial(nets.GaussianNoise, 0.0), "scale is 0.0"),
        (partial(nets.GaussianNoise, math.inf), "scale is inf"),
        (partial(Autoencoder, 4, 2, corruption=0.3), "corruption is 0.3"),
        (partial(Autoencoder.of, LadderVAE(4, (2, 1))), "LadderVAE without"),
    ],
)
def test_bad_arguments_are_named(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


@pytest.mark.parametrize(
    "make",
    [
        partial(Autoencoder, 5, 2, posterior=conditionals.IAF),
        lambda: Autoencoder.of(VAE(5, 2, posterior=conditionals.IAF)),
    ],
)
def test_a_posterior_without_a_mean_has_no_code(make):
    with pytest.raises(TypeError, match=r"posterior is a IAF, .* has no mean to be the code; pass posterior=Point"):
        pv.elbo(make(), torch.ones(3, 5))


# A pair's own modules -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("posterior", [conditionals.DiagonalNormal, conditionals.FullNormal])
def test_of_trains_a_pair_in_place_and_leaves_its_scales_and_prior(posterior):
    torch.manual_seed(0)
    prior = partial(pv.priors.GaussianMixture, num_components=3)
    vae, x = VAE(6, 2, hidden=(5,), posterior=posterior, prior=prior), torch.rand(64, 6).round()
    before = {name: value.detach().clone() for name, value in vae.named_parameters()}
    pair = Autoencoder.of(vae)
    assert torch.equal(evaluation.encode(pair, x), evaluation.encode(vae, x))
    start = pv.elbo(pair, x).elbo.value
    pv.fit(pair, x, max_epochs=60, lr=1e-2, **QUIET)
    assert pv.elbo(pair, x).elbo.value > start + 0.5
    changed = {name for name, value in vae.named_parameters() if not torch.equal(value, before[name])}
    assert changed == {
        name for name in before if name.startswith(("encoder", "decoder", "likelihood", "posterior.head"))
    }
    scales = slice(2, None)  # rows of the head that give the log-variances
    for name in ("posterior.head.layer.weight", "posterior.head.layer.bias"):
        assert torch.equal(dict(vae.named_parameters())[name][scales], before[name][scales])
    assert math.isfinite(pv.fit(vae, x, max_epochs=1, **QUIET).history["train_loss"][0])


def test_a_vae_with_a_point_posterior_trains_as_a_deterministic_adversarial_autoencoder():
    torch.manual_seed(0)
    vae, x = VAE(6, 2, hidden=(8,), posterior=conditionals.Point), torch.rand(64, 6).round()
    run = pv.fit(vae, x, objective=pv.AdversarialAutoencoder(pv.DensityRatio(2, hidden=(8,))), max_epochs=3, **QUIET)
    assert np.isfinite(run.history["train_loss"]).all()


def test_a_conditional_pair_has_no_autoencoder_of_x_alone():
    cvae = CVAE(6, 2, num_classes=3, hidden=(7,))
    with pytest.raises((ValueError, TypeError)):
        pv.fit(Autoencoder.of(cvae), torch.rand(8, 6).round(), max_epochs=1, **QUIET)
