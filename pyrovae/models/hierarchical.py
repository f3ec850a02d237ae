r"""Several stochastic layers, z1 next to the data and zL on top: one model, inferred bottom up or as a ladder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyrovae.conditionals import Bernoulli, DiagonalNormal, SoftplusNormal
from pyrovae.models.base import Pair
from pyrovae.models.vae import feature_shape, filled
from pyrovae.nets import MLP, as_shape
from pyrovae.priors import StandardNormal

__all__ = ["HierarchicalVAE", "LadderVAE", "merge"]

Hidden = Sequence[int] | Sequence[Sequence[int]]
Slot = nn.Module | Callable[..., nn.Module]


class _TopDown(Pair):
    """p(zL) p(z_{L-1} | zL) ... p(x | z1) and all networks; a subclass writes the guide."""

    def __init__(
        self,
        event_shape: int | Sequence[int],
        latent_dims: Sequence[int],
        *,
        hidden: Hidden,
        batch_norm: bool,
        encoder: Slot | None,
        decoder: Slot | None,
        prior: Slot,
        conditional: Slot,
        posterior: Slot,
        likelihood: Slot,
        encodes_features: bool,
    ) -> None:
        super().__init__()
        self.event_shape, self.latent_dims = as_shape(event_shape), as_shape(latent_dims, "latent_dims")
        if not self.latent_dims:
            raise ValueError("latent_dims is (), expected the length of each latent; pass latent_dims=(64, 32), say")
        first, *above = dims = self.latent_dims
        sizes = _per_layer(hidden, len(dims))
        mlp = partial(MLP, batch_norm=batch_norm)

        made = mlp(self.event_shape, sizes[0]) if encoder is None else encoder
        self.encoders = nn.ModuleList([filled("encoder", made, self.event_shape)])
        features = [feature_shape(self.encoders[0], self.event_shape)]
        for below, widths in zip(dims, sizes[1:], strict=False):  # no layer encodes zL
            self.encoders.append(network := mlp(features[-1] if encodes_features else below, widths))
            features.append(network.feature_shape)

        made = mlp(first, sizes[0][::-1]) if decoder is None else decoder
        inner = [mlp(dim, widths[::-1]) for dim, widths in zip(above, sizes[1:], strict=True)]
        self.decoders = nn.ModuleList([filled("decoder", made, first, self.event_shape), *inner])

        self.prior = filled("prior", prior, dims[-1])
        for name, part, layers in (("posterior", posterior, len(dims)), ("conditional", conditional, len(above))):
            if layers > 1 and isinstance(part, nn.Module):
                raise TypeError(
                    f"{name} is one {type(part).__name__} for {layers} layers, which each have their own; pass a class "
                    "that makes them"
                )
        self.posteriors = nn.ModuleList(
            filled("posterior", posterior, shape, dim) for shape, dim in zip(features, dims, strict=True)
        )
        self.likelihood = filled("likelihood", likelihood, feature_shape(self.decoders[0], (first,)), self.event_shape)
        self.conditionals = nn.ModuleList(
            filled("conditional", conditional, network.feature_shape, dim)
            for network, dim in zip(inner, dims[:-1], strict=True)
        )

    def model(self, x: Tensor) -> None:
        """zL ~ p(zL), z_l ~ p(z_l | z_{l+1}) down to z1, x ~ p(x | z1), for each row of x."""
        with pyro.plate("data", len(x)):
            z = pyro.sample(f"z{len(self.latent_dims)}", self.prior())
            for layer in range(len(self.latent_dims) - 1, 0, -1):
                z = pyro.sample(f"z{layer}", self.conditional(layer, z))
            pyro.sample("x", self.likelihood(self.decoders[0](z)), obs=x)

    def conditional(self, layer: int, above: Tensor) -> dist.TorchDistribution:
        """p(z_l | z_{l+1}) of layer l, counted from 1 as the sites are, below the last."""
        return self.conditionals[layer - 1](self.decoders[layer](above))


class HierarchicalVAE(_TopDown):
    r"""VAE of L stochastic layers, inferred from the data up.

        zL ~ p(zL)    z_l | z_{l+1} ~ p(z_l | z_{l+1})    x | z1 ~ p(x | z1)
        q(z1 | x) q(z2 | z1) ... q(zL | z_{L-1})

    The guide samples z1 before z2, which z1 depends on in the model, so that only the KL of zL has a closed form:
    `ELBO` takes that one and Monte Carlo for the others; `pyro.infer.TraceMeanField_ELBO` is wrong here and only warns.
    One layer is `VAE`, its latent called z1.

    Args:
        event_shape: shape of one x.
        latent_dims: lengths of z1, ..., zL, from the data up.
        hidden: sizes of the hidden layers of each default network, upwards; those downwards have them reversed. Or such
            a sequence for each layer: ((512, 512), (256, 256)).
        batch_norm: whether the default networks have batch norm in each hidden layer.
        encoder: x (..., *event_shape) to the features of q(z1 | x); as in `VAE`. The others are MLPs of z.
        decoder: z1 (..., latent_dims[0]) to the features of p(x | z1); as in `VAE`. The others are MLPs.
        prior: p(zL); made by `prior(latent_dims[-1])`.
        conditional: makes each p(z_l | z_{l+1}): `conditional(feature_shape, latent_dims[l])`; default a diagonal
            Normal whose scale is softplus.
        posterior: makes each q(z_l | z_{l-1}): `posterior(feature_shape, latent_dims[l])`.
        likelihood: p(x | z1); made by `likelihood(feature_shape, event_shape)`.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers or not one for each layer, or a slot that is
            neither module nor maker.

    Shapes: x (B, *event_shape), z_l (B, latent_dims[l]).
    Source: Rezende et al. 2014, https://arxiv.org/abs/1401.4082; Burda et al. 2016, https://arxiv.org/abs/1509.00519
    (two layers); the latent_dims are those of Sonderby et al. 2016.

    >>> pair = HierarchicalVAE((1, 8, 8), latent_dims=(8, 4), hidden=((100, 100), (50, 50)))
    >>> pair.conditional(1, torch.zeros(3, 4)).event_shape
    torch.Size([8])
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        latent_dims: Sequence[int] = (64, 32, 16, 8, 4),
        *,
        hidden: Sequence[int] | Sequence[Sequence[int]] = (200, 200),
        batch_norm: bool = False,
        encoder: nn.Module | Callable[..., nn.Module] | None = None,
        decoder: nn.Module | Callable[..., nn.Module] | None = None,
        prior: nn.Module | Callable[..., nn.Module] = StandardNormal,
        conditional: nn.Module | Callable[..., nn.Module] = SoftplusNormal,
        posterior: nn.Module | Callable[..., nn.Module] = DiagonalNormal,
        likelihood: nn.Module | Callable[..., nn.Module] = Bernoulli,
    ) -> None:
        super().__init__(
            event_shape,
            latent_dims,
            hidden=hidden,
            batch_norm=batch_norm,
            encoder=encoder,
            decoder=decoder,
            prior=prior,
            conditional=conditional,
            posterior=posterior,
            likelihood=likelihood,
            encodes_features=False,
        )

    def guide(self, x: Tensor) -> None:
        """q(z1 | x) q(z2 | z1) ... q(zL | z_{L-1}), for each row of x."""
        with pyro.plate("data", len(x)):
            below = x
            for layer, (encoder, posterior) in enumerate(zip(self.encoders, self.posteriors, strict=True), 1):
                below = pyro.sample(f"z{layer}", posterior(encoder(below)))


class LadderVAE(_TopDown):
    r"""VAE of L stochastic layers, inferred from the top down with the model's own networks.

        zL ~ p(zL)    z_l | z_{l+1} ~ p(z_l | z_{l+1}) = N(loc_p, scale_p^2)    x | z1 ~ p(x | z1)
        d_1 = encoder(x)    d_l = MLP(d_{l-1})    N(loc_d, scale_d^2) = bottom-up Gaussian of d_l
        q(zL | x) that of d_L    q(z_l | x, z_{l+1}) = the two Gaussians merged (`merge`)

    Variances are softplus. The guide samples in the model's order, so that every KL has a closed form. The networks of
    p(z_l | z_{l+1}) are held once and used by model and guide. The warm-up of the paper is
    `ELBO(beta=schedules.Linear(0.0, 1.0, epochs=200))`. One layer is `VAE` with posterior `SoftplusNormal`, its latent
    called z1.

    Args:
        event_shape: shape of one x.
        latent_dims: lengths of z1, ..., zL, from the data up; the paper's.
        hidden: sizes of the hidden layers of each default network, upwards; those downwards have them reversed. Or such
            a sequence for each layer; the paper's are ((512, 512), (256, 256), (128, 128), (64, 64), (32, 32)).
        batch_norm: whether the default networks have batch norm in each hidden layer, as the paper's do.
        encoder: x (..., *event_shape) to d_1; as in `VAE`. The others are MLPs.
        decoder: z1 (..., latent_dims[0]) to the features of p(x | z1); as in `VAE`. The others are MLPs.
        prior: p(zL); made by `prior(latent_dims[-1])`.
        likelihood: p(x | z1); made by `likelihood(feature_shape, event_shape)`.

    Raises:
        TypeError, ValueError: as in `HierarchicalVAE`.

    Shapes: x (B, *event_shape), z_l (B, latent_dims[l]).
    Source: Sonderby et al. 2016, https://arxiv.org/abs/1602.02282, and https://github.com/casperkaae/LVAE. Activations
    are tanh where the paper has leaky rectifiers; `encoder` and `decoder` change those next to the data.

    >>> ladder = LadderVAE((1, 8, 8), latent_dims=(8, 4), hidden=(50,), batch_norm=True)
    >>> [q.event_shape for q in ladder.bottom_up(torch.zeros(3, 1, 8, 8))]
    [torch.Size([8]), torch.Size([4])]
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        latent_dims: Sequence[int] = (64, 32, 16, 8, 4),
        *,
        hidden: Sequence[int] | Sequence[Sequence[int]] = (200, 200),
        batch_norm: bool = False,
        encoder: nn.Module | Callable[..., nn.Module] | None = None,
        decoder: nn.Module | Callable[..., nn.Module] | None = None,
        prior: nn.Module | Callable[..., nn.Module] = StandardNormal,
        likelihood: nn.Module | Callable[..., nn.Module] = Bernoulli,
    ) -> None:
        super().__init__(
            event_shape,
            latent_dims,
            hidden=hidden,
            batch_norm=batch_norm,
            encoder=encoder,
            decoder=decoder,
            prior=prior,
            conditional=SoftplusNormal,
            posterior=SoftplusNormal,
            likelihood=likelihood,
            encodes_features=True,
        )

    def guide(self, x: Tensor) -> None:
        """q(zL | x), then q(z_l | x, z_{l+1}) down to z1, for each row of x."""
        with pyro.plate("data", len(x)):
            *below, top = self.bottom_up(x)
            z = pyro.sample(f"z{len(self.latent_dims)}", top)
            for layer in range(len(below), 0, -1):
                q, p = below[layer - 1].base_dist, self.conditional(layer, z).base_dist
                z = pyro.sample(f"z{layer}", dist.Normal(*merge(q.loc, q.scale, p.loc, p.scale)).to_event(1))

    def bottom_up(self, x: Tensor) -> list[dist.TorchDistribution]:
        """The Gaussians of d_1, ..., d_L, what x says of each layer: batch shape (...) for x (..., *event_shape)."""
        found, features = [], x
        for encoder, posterior in zip(self.encoders, self.posteriors, strict=True):
            features = encoder(features)
            found.append(posterior(features))
        return found


def merge(loc1: Tensor, scale1: Tensor, loc2: Tensor, scale2: Tensor) -> tuple[Tensor, Tensor]:
    r"""Location and scale of the normalised product of two Gaussians, element by element: precisions add up.

        scale^-2 = scale1^-2 + scale2^-2,    loc = scale^2 (loc1 scale1^-2 + loc2 scale2^-2)

    Args:
        loc1, scale1, loc2, scale2: of shapes that broadcast, scales above 0.

    Returns:
        loc and scale, which is a standard deviation.

    Source: Sonderby et al. 2016, https://arxiv.org/abs/1602.02282, section 2.1.

    >>> merge(torch.tensor(0.0), torch.tensor(3.0), torch.tensor(5.0), torch.tensor(4.0))
    (tensor(1.8000), tensor(2.4000))
    """
    norm = torch.hypot(scale1, scale2)
    share1, share2 = scale1 / norm, scale2 / norm  # squares add up to 1, so that no precision overflows
    return loc1 * share2**2 + loc2 * share1**2, scale1 * share2


def _per_layer(hidden: Hidden, layers: int) -> list[Sequence[int]]:
    """The hidden sizes of each layer's networks."""
    hidden = hidden if isinstance(hidden, Sequence) else as_shape(hidden, "hidden")
    each = [sizes for sizes in hidden if isinstance(sizes, Sequence)]
    if not each:
        return [hidden] * layers  # type: ignore[list-item]
    if len(each) != len(hidden) or len(each) != layers:
        raise ValueError(
            f"hidden is {hidden!r} for {layers} layers of latents; pass sizes such as (200, 200) for all layers, or "
            "one such sequence for each"
        )
    return each
