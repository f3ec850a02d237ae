"""Data of which a part is missing: z is inferred from what is observed, and x from z."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import ClassVar

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.conditionals import DiagonalNormal
from pyrovae.data.masks import check_mask
from pyrovae.distributions import masked
from pyrovae.models.base import Pair
from pyrovae.models.vae import VAE, feature_shape, filled
from pyrovae.nets import Frozen, MaskedMLP, as_shape

__all__ = ["InpaintingVAE", "PartialVAE", "PosteriorMatching"]


class InpaintingVAE(VAE):
    r"""VAE that learns to complete x from its observed part; training data are complete, masks are random.

        z ~ p(z)        x | z ~ p(x | z)        q(z | x_obs, mask)

    The generator is the VAE's, and for every mask the ELBO is a bound on log p(x). The guide sees the observed part and
    is scored on all of x, so that it comes to explain what it did not see:

        E_x E_mask E_{q(z | x_obs, mask)} [log p(x | z)] - KL(q(z | x_obs, mask) || p(z))

    With the generator fixed its best q is not p(z | x_obs) but proportional to exp E[log p(z | x) | x_obs], which is
    narrower: imputations from q alone vary too little. Importance resampling corrects them (`evaluation.impute`), and
    `PosteriorMatching` fits a guide that is not too narrow.

    Args:
        event_shape, latent_dim, hidden, decoder, prior, posterior, likelihood: as in `VAE`.
        encoder: x and mask (..., *event_shape) to features, with an attribute `feature_shape`; made by
            `encoder(event_shape)`. Default: a `MaskedMLP`, tanh.

    Raises:
        TypeError, ValueError: as in `VAE`; when it runs, if the mask has another shape than x.

    Shapes: x (B, *event_shape), mask (B, *event_shape), True where observed; z (B, L).
    Source: the lecture notes ("Inpainting with VAE": x * mask -> z -> x, with masked convolutions).

    >>> pair = InpaintingVAE((1, 8, 8), latent_dim=2, hidden=(20,))
    >>> pair.encoder.event_shape  # x and mask
    (2, 1, 8, 8)
    """

    default_encoder: ClassVar[type[MaskedMLP]] = MaskedMLP

    def check_batch(self, x: Tensor, mask: Tensor) -> None:
        """Refuse rows with nothing observed, and masks of other values than 0 and 1, before `fit` starts."""
        check_mask(x, mask)

    def model(self, x: Tensor, mask: Tensor) -> None:  # type: ignore[override]  # a batch has a mask too
        """z ~ p(z), x | z ~ p(x | z), for each row of x, all of it observed."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x: Tensor, mask: Tensor) -> None:  # type: ignore[override]
        """q(z | x_obs, mask), for each row of x."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(self.encoder(x, mask)))

    def posterior_of(self, x: Tensor) -> dist.TorchDistribution:
        """q(z | x) of rows that are observed in full, as the pseudo-inputs of a `VampPrior` are."""
        return self.posterior(self.encoder(x, torch.ones_like(x, dtype=torch.bool)))


class PartialVAE(InpaintingVAE):
    r"""VAE of incomplete data: what is missing is unknown in training too.

        z ~ p(z)        x_obs | z ~ prod_{d observed} p(x_d | z)        q(z | x_obs, mask)

    The ELBO is a bound on log p(x_obs), right for maximum likelihood where values are missing at random; with IWAE as
    objective it is the bound of MIWAE. Its best q is p(z | x_obs). Missing elements add exactly nothing to value and
    gradient; with a full mask it is the VAE. Likelihoods have to be products over elements; `Mixed` serves tables.

    Args, Raises, Shapes: as in `InpaintingVAE`; when it runs, ValueError for a likelihood that is no such product.

    Source: Nazabal et al. 2020 (HI-VAE), https://arxiv.org/abs/1807.03653, eq. 4, here with the simple prior; Ma et al.
    2019 (Partial VAE), https://arxiv.org/abs/1809.11142; Mattei & Frellsen 2019 (MIWAE),
    https://arxiv.org/abs/1812.02633, which has the importance-weighted bound.
    """

    def model(self, x: Tensor, mask: Tensor) -> None:  # type: ignore[override]
        """z ~ p(z), x_d | z ~ p(x_d | z) for the observed elements d, for each row of x."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", masked(self.likelihood(self.decoder(z)), mask), obs=x)


class PosteriorMatching(Pair):
    r"""The masked encoder of a fitted VAE, which stays as it is: q(z | x_obs, mask) fitted to q(z | x).

        z ~ q(z | x_obs, mask)        x | z ~ p(x | z)        q(z | x)

    p(x | z) and q(z | x) are the fitted ones and fixed, so that of the ELBO only -KL(q(z | x) || q(z | x_obs, mask)) is
    trained. Its best q(z | x_obs, mask) is the mean of q(z | x) over p(x | x_obs): with an exact q(z | x) that is
    p(z | x_obs), without the narrowness of the opposite KL. `partial_vae` is the pair to impute with.

    Args:
        fitted: a `VAE`; its modules are copied.
        hidden: sizes of the hidden layers of the default encoder.
        encoder: x and mask to features, as in `InpaintingVAE`.
        posterior: q(z | x_obs, mask) of the features; made by `posterior(feature_shape, latent_dim)`.

    Raises:
        TypeError: if `fitted` is no VAE; else as in `InpaintingVAE`.

    Shapes: x (B, *event_shape), mask (B, *event_shape), True where observed; z (B, L).
    Source: Strauss & Oliva 2022, https://arxiv.org/abs/2201.12414. They train the VAE and the masked encoder together,
    the one without gradients from the other; here the VAE comes first.

    >>> matching = PosteriorMatching(VAE((1, 8, 8), latent_dim=2, hidden=(20,)), hidden=(20,))
    >>> {name.split(".")[0] for name, _ in matching.named_parameters()} == {"encoder", "posterior"}
    True
    """

    def __init__(
        self,
        fitted: VAE,
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: nn.Module | Callable[..., nn.Module] | None = None,
        posterior: nn.Module | Callable[..., nn.Module] = DiagonalNormal,
    ) -> None:
        super().__init__()
        if not isinstance(fitted, VAE) or isinstance(fitted, InpaintingVAE):
            raise TypeError(f"fitted is a {type(fitted).__name__}, a VAE of complete data is wanted; pass a fitted VAE")
        self.event_shape, self.latent_dim = as_shape(fitted.event_shape), fitted.latent_dim
        encoder = MaskedMLP(self.event_shape, hidden) if encoder is None else encoder
        self.encoder = filled("encoder", encoder, self.event_shape)
        self.posterior = filled("posterior", posterior, feature_shape(self.encoder, self.event_shape), self.latent_dim)
        self.fitted_encoder, self.fitted_posterior = Frozen(fitted.encoder), Frozen(fitted.posterior)
        # A prior made of q(z | x) is frozen with the whole pair: alone, it would take along a copy that no module has.
        self.prior = Frozen(_PriorOf(fitted) if callable(getattr(fitted.prior, "bind", None)) else fitted.prior)
        self.decoder, self.likelihood = Frozen(fitted.decoder), Frozen(fitted.likelihood)

    def model(self, x: Tensor, mask: Tensor) -> None:
        """z ~ q(z | x_obs, mask), x | z ~ p(x | z), for each row of x."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.posterior(self.encoder(x, mask)))
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x: Tensor, mask: Tensor) -> None:
        """q(z | x), for each row of x."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.fitted_posterior(self.fitted_encoder(x)))

    def partial_vae(self) -> PartialVAE:
        """The fitted p(z) and p(x | z) with q(z | x_obs, mask) as guide; it shares this pair's modules."""
        slots = {name: getattr(self, name) for name in ("encoder", "decoder", "prior", "posterior", "likelihood")}
        return PartialVAE(self.event_shape, self.latent_dim, **slots)


class _PriorOf(nn.Module):
    """p(z) of a pair, with the pair."""

    def __init__(self, pair: VAE) -> None:
        super().__init__()
        self.pair = pair

    def forward(self) -> dist.TorchDistribution:
        return self.pair.prior()
