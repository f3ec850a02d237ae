"""Bayesian mixtures: weights and components have conjugate priors, and the data's components are summed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from pyrovae.conditionals.base import positive
from pyrovae.models.base import Functions, isolated_random_state
from pyrovae.models.batches import data_plate
from pyrovae.models.conjugate import DirichletClasses, NormalGamma
from pyrovae.models.mixture import CategoricalMixture, GaussianMixture, Mixture, floored_log
from pyrovae.models.vae import filled
from pyrovae.nets import as_size, leading_shape

__all__ = ["BayesianCategoricalMixture", "BayesianGaussianMixture"]


class _BayesianMixture(Mixture):
    """A mixture whose weights have a Dirichlet prior, and whose components have a conjugate one."""

    components: Any

    def __init__(
        self,
        event_shape: int | Sequence[int],
        num_components: int,
        components: nn.Module | Callable[..., nn.Module],
        concentration: float,
        data_size: int | None,
    ) -> None:
        super().__init__(event_shape, num_components)
        self.components = filled("components", components, self.num_components, self.event_shape)
        self.components.move_apart_()
        prior = torch.full((self.num_components,), positive("concentration", concentration))
        self.register_buffer("prior_concentration", prior)
        self.log_concentration = nn.Parameter(prior.log())
        self.data_size = None if data_size is None else as_size(data_size, "data_size")

    @property
    def concentration(self) -> Tensor:
        """Of q(pi), (C,)."""
        return self.log_concentration.exp()

    def model(self, x: Tensor) -> None:
        """pi ~ Dirichlet(a), theta_k ~ p(theta) for all data; c ~ Cat(pi), x | c ~ p(x | theta_c) for each row of x."""
        leading_shape(x, self.event_shape)
        weights = pyro.sample("weights", dist.Dirichlet(self.prior_concentration))
        drawn = self.components.draw(self.components.prior)
        with data_plate(x, self.data_size):
            c = pyro.sample("c", dist.Categorical(logits=floored_log(weights)), infer={"enumerate": "parallel"})
            pyro.sample("x", self.components.likelihood(drawn, c), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(pi) q(theta), of the priors' families; c is summed."""
        pyro.sample("weights", dist.Dirichlet(self.concentration))
        self.components.draw(self.components.posterior)

    def expected(self) -> Functions:
        r"""The mean-field bound as a model that `pyrovae.fit_em` takes: coordinate ascent with q(c) explicit.

            F = sum_n log sum_k exp(E_q [log pi_k + log p(x_n | theta_k)]) - KL(q(pi) q(theta) || p(pi) p(theta))

        With q(c_n = k) proportional to these exponentials, the best q(c) (Bishop 2006, eq. 10.46), this is the ELBO of
        q(c) q(pi) q(theta) in closed form, which neither step of `fit_em(pair.expected(), x, m_step=pair.maximize)`
        lowers. The guide of `fit` sums c given each draw of pi and theta instead, so that its ELBO is no lower.

        Returns:
            a model and an empty guide. Its x is no site, so that it is for bounds and responsibilities only:
            `pyrovae.log_marginal(pair.expected(), x)` has no KL in it, `exact_posterior(...).mean()` has.
        """
        return Functions(self._expected, _nothing)

    def _expected(self, x: Tensor) -> None:
        leading_shape(x, self.event_shape)
        weights = dist.Dirichlet(self.concentration)
        kl = kl_divergence(weights, dist.Dirichlet(self.prior_concentration)) + self.components.kl()
        pyro.factor("prior", -kl)
        log_pi = self.concentration.digamma() - self.concentration.sum().digamma()
        log_joint = log_pi + self.components.expected_log_prob(x)  # (B, C)
        with data_plate(x, self.data_size):
            pyro.sample("c", dist.Categorical(logits=log_joint), infer={"enumerate": "parallel"})
            pyro.factor("x", log_joint.logsumexp(-1))  # what Categorical takes away when it normalises its logits

    @torch.no_grad()
    def maximize(self, responsibilities: Mapping[str, Tensor], x: Tensor) -> None:
        """Make q(pi) q(theta) the posterior given q(c): the other half of coordinate ascent, see `expected`."""
        shares = responsibilities["c"].to(self.log_concentration)
        self.log_concentration.copy_((self.prior_concentration + shares.sum(0)).log())
        self.components.update_(shares, x.to(shares))

    @property
    def component_weights(self) -> Tensor:
        """E_q [pi], (C,)."""
        return self.concentration / self.concentration.sum()

    @property
    def component_means(self) -> Tensor:
        """E[x | c] at q's means, (C, *event_shape)."""
        return self.components.means


class BayesianGaussianMixture(_BayesianMixture):
    r"""Bayesian mixture of Normals.

        pi ~ Dirichlet(a, ..., a)        mu_k, Lambda_k ~ p(mu, Lambda)
        c ~ Cat(pi)                      x | c ~ N(mu_c, Lambda_c^-1)

        q(pi) q(mu, Lambda), of the priors' families

    c is summed in the model: `pyrovae.fit(pair, x)` is SVI, and with `data_size=N` on mini-batches. In closed form
    `pyrovae.fit_em(pair.expected(), x, m_step=pair.maximize)` is variational Bayesian EM. Components start apart at
    random: call `initialise_(x)` to start from k-means. The priors' defaults are for data of mean 0 and variance 1;
    components that the data don't need go back to the prior. `plain()` is the mixture at q's means.

    Args:
        event_shape: shape of one x.
        num_components: C.
        components: made by `components(num_components, event_shape)`: `NormalGamma` (diagonal covariances), or for
            vectors `NormalWishart` (full ones); their arguments are the priors' numbers.
        concentration: a.
        data_size: N, where a batch is not all the data.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, a concentration that is not positive.

    Shapes: x (B, *event_shape), c (B,); weights (C,), loc (C, *event_shape), precision as loc or (C, D, D), outside
    the data plate.
    Source: Bishop 2006, section 10.2; Attias 2000.

    >>> import pyrovae as pv
    >>> from pyrovae.models.conjugate import NormalWishart
    >>> ends = torch.tensor([[-1.0, -1.0], [1.0, 1.0]])
    >>> x = (ends[:, None] + 0.3 * torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(0))).flatten(0, 1)
    >>> pair = BayesianGaussianMixture(2, 4, components=NormalWishart, concentration=0.01).initialise_(x)
    >>> run = pv.fit_em(pair.expected(), x, m_step=pair.maximize, max_epochs=50)
    >>> (pair.component_weights > 0.05).sum()  # of four components the data keep two
    tensor(2)
    >>> pv.exact_posterior(pair.expected(), ends).responsibilities["c"].shape
    torch.Size([2, 4])
    """

    continuous = True

    def __init__(
        self,
        event_shape: int | Sequence[int],
        num_components: int,
        *,
        components: nn.Module | Callable[..., nn.Module] = NormalGamma,
        concentration: float = 1.0,
        data_size: int | None = None,
    ) -> None:
        super().__init__(event_shape, num_components, components, concentration, data_size)

    @torch.no_grad()
    def plain(self) -> GaussianMixture:
        """The mixture at q's means, of pi, mu and Lambda: a pair without global latents, which every tool takes."""
        covariance, values = self.components.plain_covariance()
        with isolated_random_state():  # it starts at means drawn at random, which a look should not move
            pair = GaussianMixture(self.event_shape, self.num_components, covariance=covariance).to(values)
        pair.logits.copy_(self.component_weights.log())
        pair.loc.copy_(self.component_means)
        made: Any = pair.covariance
        made.set_(values)
        return pair

    @property
    def component_covariances(self) -> Tensor:
        """E_q [Lambda]^-1 of each component, of x as a flat vector: (C, D, D)."""
        return self.plain().component_covariances.detach()


class BayesianCategoricalMixture(_BayesianMixture):
    r"""Bayesian mixture of products of categoricals, or of Bernoullis: the Bayesian latent class model.

        pi ~ Dirichlet(a, ..., a)        theta_kd ~ Dirichlet(b, ..., b)
        c ~ Cat(pi)                      x_d | c ~ Cat(theta_cd)

        q(pi) q(theta), both Dirichlets

    Trained as `BayesianGaussianMixture`.

    Args:
        event_shape: shape of one x.
        num_components: C.
        components: `DirichletClasses`, whose arguments are V, the number of classes (2, Bernoullis), and b.
        concentration: a.
        data_size: N, where a batch is not all the data.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, a concentration that is not positive.

    Shapes: x (B, *event_shape), c (B,); weights (C,), probs (C, *event_shape, V), outside the data plate.
    Source: Bishop 2006, section 10.2, with the conjugate prior of section 2.2.1.

    >>> import pyrovae as pv
    >>> x = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
    >>> pair = BayesianCategoricalMixture(3, 2).initialise_(x)
    >>> run = pv.fit_em(pair.expected(), x, m_step=pair.maximize, max_epochs=10)
    >>> run.history["train_loss"][-1] <= run.history["train_loss"][0]
    True
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        num_components: int,
        *,
        components: nn.Module | Callable[..., nn.Module] = DirichletClasses,
        concentration: float = 1.0,
        data_size: int | None = None,
    ) -> None:
        super().__init__(event_shape, num_components, components, concentration, data_size)

    def points(self, x: Tensor) -> Tensor:  # noqa: D102
        return self.components.points(x)

    @torch.no_grad()
    def plain(self) -> CategoricalMixture:
        """The mixture at q's means, of pi and theta: a pair without global latents, which every tool takes."""
        values = self.components.posterior.concentration
        with isolated_random_state():
            pair = CategoricalMixture(self.event_shape, self.num_components, num_classes=values.size(-1)).to(values)
        pair.logits.copy_(self.component_weights.log())
        pair.class_logits.copy_(values.log())
        return pair


def _nothing(*_: Any) -> None:
    """No guide."""
