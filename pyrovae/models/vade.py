"""Variational deep embedding: a VAE whose prior's component is a cluster."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.conditionals import Bernoulli, DiagonalNormal
from pyrovae.models.base import evaluation_mode, isolated_random_state
from pyrovae.models.vae import VAE
from pyrovae.nets import MLP, as_shape, as_size
from pyrovae.priors import GaussianMixture
from pyrovae.priors.covariances import Covariance, DiagonalCovariance

if TYPE_CHECKING:
    from sklearn import mixture

__all__ = ["MeanFieldVaDE", "VaDE"]

ROWS = 1000  # encoded at once by `initialise_`
FRACTIONS = (1.0, 0.5, 0.25, 0.1, 0.05, 0.025)  # of the components' scale, for the posterior's


class VaDE(VAE):
    r"""Variational deep embedding: clusters are the components of a mixture of Normals in the latent space.

        c ~ Cat(pi)        z | c ~ N(mu_c, Sigma_c)        x | z ~ p(x | z)        q(z | x)

    c is enumerated in the model: `TraceEnum_ELBO` and this library's objectives sum it out for each sampled z, which is
    the paper's bound with q(c | x) at its best, p(c | z). x does not depend on c, so that decoder and likelihood run
    once for each z. The value is that of a VAE whose prior is `priors.GaussianMixture`; here c is a site, for
    `responsibilities`, `assign_clusters` and samples of one cluster.

    Trained from random weights, few components win at once and keep all data. So start from codes that are clustered
    already: `pyrovae.pretrain_clusters(vade, data)` fits `vade.vae()` with a KL of little weight and calls
    `initialise_`; the paper's start is an auto-encoder (`pyrovae.pretrain_stacked`), then `initialise_`.

    Args:
        event_shape: shape of one x.
        latent_dim: L, length of z.
        num_components: C, clusters.
        hidden: sizes of the hidden layers of the default networks (MLPs of ReLU), from x to z; the decoder has them
            reversed.
        encoder, decoder, posterior, likelihood: as for `VAE`.
        covariance: Sigma of the clusters; made by `covariance(num_components, latent_dim)`: `DiagonalCovariance`, the
            paper's, or `FullCovariance`, `TiedCovariance` (`pyrovae.priors.covariances`). Its floor is `min_scale`,
            0.01 in the default here and 0.001 in theirs: the bound has none of a mixture's infinities, because q(z | x)
            would have to shrink with its component; but gradients for mu grow as 1 / sigma, and a component that few
            data hold shrinks until one step throws it away.
        spread: standard deviation of the initial mu, see `priors.GaussianMixture`.

    Raises:
        TypeError, ValueError: as for `VAE`, and for num_components, spread and the covariance.

    Shapes: x (B, *event_shape), c (B,), z (B, L).
    Source: Jiang et al. 2017, https://arxiv.org/abs/1611.05148, section 3; networks: section 4.2.

    >>> vade = VaDE((1, 8, 8), latent_dim=2, num_components=3, hidden=(16,))
    >>> vade.prior.given(torch.tensor([0, 2])).sample().shape
    torch.Size([2, 2])
    """

    prior: GaussianMixture
    started_by = "pretrain_clusters"

    def __init__(
        self,
        event_shape: int | Sequence[int],
        latent_dim: int = 10,
        num_components: int = 10,
        *,
        hidden: Sequence[int] = (500, 500, 2000),
        encoder: nn.Module | Callable[..., nn.Module] | None = None,
        decoder: nn.Module | Callable[..., nn.Module] | None = None,
        posterior: nn.Module | Callable[..., nn.Module] = DiagonalNormal,
        likelihood: nn.Module | Callable[..., nn.Module] = Bernoulli,
        covariance: Covariance | Callable[..., Covariance] = partial(DiagonalCovariance, min_scale=0.01),  # noqa: B008
        spread: float = 0.9,
    ) -> None:
        latent_dim = as_size(latent_dim, "latent_dim")
        relu = partial(MLP, activation=nn.ReLU)
        super().__init__(
            event_shape,
            latent_dim,
            encoder=partial(relu, hidden=hidden) if encoder is None else encoder,
            decoder=relu(latent_dim, as_shape(hidden, "hidden")[::-1]) if decoder is None else decoder,
            prior=partial(GaussianMixture, num_components=num_components, covariance=covariance, spread=spread),
            posterior=posterior,
            likelihood=likelihood,
        )

    def model(self, x: Tensor) -> None:
        """c ~ Cat(pi), z ~ N(mu_c, Sigma_c), x ~ p(x | z), for each row of x."""
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", self.prior.component(), infer={"enumerate": "parallel"})
            z = pyro.sample("z", self.prior.given(c))
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def vae(self) -> VAE:
        """A VAE of the same networks, posterior and likelihood under N(0, I): what it learns, this pair has learned."""
        modules = {name: getattr(self, name) for name in ("encoder", "decoder", "posterior", "likelihood")}
        return VAE(self.event_shape, self.latent_dim, **modules)

    def initialise_(
        self,
        x: Tensor,
        *,
        seed: int = 0,
        num_restarts: int = 10,
        balanced: bool = False,
        posterior_scale: bool = True,
    ) -> mixture.GaussianMixture:
        """Set pi, mu and Sigma to a mixture fitted to the codes of x, and the posterior's scale to fit it.

        The codes are the means of q(z | x); scikit-learn's EM fits them from `num_restarts` k-means starts, of which it
        keeps the likeliest, with covariances of the prior's shape. A thousandth of the codes' variance is added to each
        variance, which is then at least that of the covariances' floor.

        Pretraining without noise says nothing of the posterior's scale. Where `posterior_scale` is True, that becomes
        one fraction of the components' average sigma, the same for all x: the one of FRACTIONS with the highest bound
        on the first rows of x.

        Args:
            x: data, (N, *event_shape), of at least as many rows as there are components.
            seed: of the starts, and of the noise in the bound.
            num_restarts: k-means starts.
            balanced: whether the likeliest one is the likeliest with equal weights, for clusters that are known to be
                about as large: a mixture that merges two and splits a third often is as likely, and less often so then.
            posterior_scale: False leaves q(z | x) as it is: after pretraining with noise, such as a VAE.

        Returns:
            The fitted scikit-learn mixture.

        Raises:
            ValueError: for too few rows, no restart, a posterior without a mean, or codes that are not finite or all
                alike.
            TypeError: if the posterior is to be set and is no `DiagonalNormal`.

        Source: Jiang et al. 2017, section 4.2 (mixture on codes); the rest is this library's.
        """
        self.check_size(len(x))
        if num_restarts < 1:
            raise ValueError(f"num_restarts is {num_restarts}, one at least is wanted; pass num_restarts=10")
        if posterior_scale and type(self.posterior) is not DiagonalNormal:
            raise TypeError(
                f"the posterior is {type(self.posterior).__name__}, whose scale initialise_ can't set; "
                "pass posterior_scale=False"
            )
        codes = self.codes(x).double()
        variance = codes.var(0, correction=0)
        if not torch.isfinite(codes).all() or not (variance > 0).any():
            raise ValueError("the codes of x are not finite, or all alike; pretrain the networks before initialise_")
        floor = 1e-3 * float(variance.mean())
        fitted = self._likeliest(codes.numpy(force=True), seed, num_restarts, floor=floor, balanced=balanced)
        prior = self.prior
        with torch.no_grad():
            prior.logits.copy_(prior.loc.new_tensor(fitted.weights_).log())
            prior.loc.copy_(prior.loc.new_tensor(fitted.means_))
            prior.covariance.set_(prior.loc.new_tensor(fitted.covariances_))
        if posterior_scale:
            self._scale_posterior(x[: 2 * ROWS], seed)
        return fitted

    def _likeliest(
        self, codes: np.ndarray, seed: int, num_restarts: int, *, floor: float, balanced: bool
    ) -> mixture.GaussianMixture:
        """The likeliest of some mixtures, those that scikit-learn's `n_init` would fit."""
        from sklearn import mixture  # it takes half a second, and few use it
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.utils import check_random_state

        components, generator = self.prior.num_components, check_random_state(seed)
        equal = np.full(components, 1 / components)
        found = []
        for _ in range(num_restarts):
            kind = self.prior.covariance.covariance_type
            one = mixture.GaussianMixture(components, covariance_type=kind, reg_covar=floor, random_state=generator)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ConvergenceWarning)  # the ELBO goes on from there
                one.fit(codes)
            value = one.lower_bound_
            if balanced:
                weights, one.weights_ = one.weights_, equal
                value, one.weights_ = one.score(codes), weights
            found.append((value, one))
        return max(found, key=lambda pair: pair[0])[1]

    def check_size(self, rows: int) -> None:
        """Refuse fewer rows than components.

        Raises:
            ValueError: naming both.
        """
        components = self.prior.num_components
        if rows < components:
            raise ValueError(f"the data have {rows} rows for {components} components; pass at least {components} rows")

    def codes(self, x: Tensor) -> Tensor:
        """The means of q(z | x), (N, L), in evaluation mode and without gradients.

        Raises:
            ValueError: for a posterior without a mean.
        """
        like = self.prior.loc
        with torch.no_grad(), evaluation_mode(self):
            posteriors = (self.posterior_of(part.to(like.device, like.dtype)) for part in x.split(ROWS))
            try:
                return torch.cat([posterior.mean for posterior in posteriors])
            except NotImplementedError as error:
                raise ValueError(
                    f"the posterior {type(self.posterior).__name__} has no mean in closed form; use DiagonalNormal"
                ) from error

    def _scale_posterior(self, x: Tensor, seed: int) -> None:
        """The posterior's scale: a fraction of the components', the one with the highest bound on x."""
        posterior: Any = self.posterior
        head, floor = posterior.head.layer, posterior.min_scale
        x = x.to(self.prior.loc.device, self.prior.loc.dtype)
        with torch.no_grad(), evaluation_mode(self), isolated_random_state(seed):
            within = (self.prior.logits.softmax(0) @ self.prior.scale**2).sqrt()  # (L,)
            codes, noise = self.codes(x), torch.randn(len(x), self.latent_dim).to(x)
            bounds = []
            for fraction in FRACTIONS:
                q = dist.Normal(codes, fraction * within).to_event(1)
                z = codes + fraction * within * noise
                log_p = self.likelihood(self.decoder(z)).log_prob(x) + self.prior().log_prob(z)
                bounds.append(float((log_p - q.log_prob(z)).mean()))
            best = FRACTIONS[bounds.index(max(bounds))]
            weight, bias = (parameter[self.latent_dim :] for parameter in (head.weight, head.bias))
            weight.zero_()
            bias.copy_(2 * (best * within - floor).clamp_min(1e-6).log())


class MeanFieldVaDE(VaDE):
    r"""VaDE with the factorised guide, which is a looser bound of the same model.

        q(z, c | x) = q(z | x) q(c | x),    q(c | x) proportional to pi_c exp E_q(z|x) [log N(z; mu_c, Sigma_c)]

    c is enumerated in the guide. This q(c | x) is the best one for the bound among those that do not see z, and needs
    no network. The bound lies E_q(z|x) KL(q(c | x) || p(c | z)) below that of `VaDE`, and with diagonal covariances
    both parts of its KL have a closed form, E_q(c|x) KL(q(z | x) || p(z | c)) + KL(q(c | x) || pi), which `ELBO` takes.

    The paper has q(c | x) = E_q(z|x) p(c | z), and its code p(c | z) at the sampled z, which is `VaDE`'s own bound.

    Args:
        event_shape, latent_dim, num_components and the rest: as for `VaDE`; the posterior needs a mean and variances,
            and where the clusters' covariances are not diagonal, no correlations.

    Source: Jiang et al. 2017, https://arxiv.org/abs/1611.05148, eq. 7 and 12; q(c | x): Bishop 2006, eq. 10.9.

    >>> MeanFieldVaDE(6, latent_dim=2, num_components=3, hidden=(5,)).cluster_given(torch.zeros(4, 6)).probs.shape
    torch.Size([4, 3])
    """

    def guide(self, x: Tensor) -> None:
        """q(c | x) q(z | x), for each row of x."""
        with pyro.plate("data", len(x)):
            q_z = self.posterior_of(x)
            pyro.sample("c", self._best_given(q_z), infer={"enumerate": "parallel"})
            pyro.sample("z", q_z)

    def cluster_given(self, x: Tensor) -> dist.TorchDistribution:
        """q(c | x), a Categorical of batch shape (...) for x (..., *event_shape)."""
        return self._best_given(self.posterior_of(x))

    def _best_given(self, q_z: dist.TorchDistribution) -> dist.TorchDistribution:
        try:
            mean, variance = q_z.mean.unsqueeze(-2), q_z.variance.unsqueeze(-2)  # (..., 1, L)
        except NotImplementedError as error:
            raise ValueError(
                f"the posterior {type(self.posterior).__name__} has no mean and variance in closed form, of which "
                "q(c | x) is made; use DiagonalNormal, or VaDE"
            ) from error
        covariance = self.prior.covariance
        if not isinstance(covariance, DiagonalCovariance) and not isinstance(
            getattr(q_z, "base_dist", q_z), dist.Normal
        ):
            raise ValueError(
                f"the posterior {type(self.posterior).__name__} may have correlations, which this q(c | x) leaves out "
                f"beside a {type(covariance).__name__}; use DiagonalNormal, DiagonalCovariance, or VaDE"
            )
        at_mean = self.prior.components().log_prob(mean)
        spread = (variance * covariance.precisions()).sum(-1)
        return dist.Categorical(logits=self.prior.logits.log_softmax(-1) + at_mean - spread / 2)  # (..., C)
