"""Layers of bits: a sigmoid belief net and its recognition net."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn

from pyrovae.conditionals import Bernoulli
from pyrovae.models.hierarchical import HierarchicalVAE
from pyrovae.priors import FactorisedBernoulli

__all__ = ["SigmoidBeliefNet"]


class SigmoidBeliefNet(HierarchicalVAE):
    r"""Sigmoid belief net of L layers of bits, recognised by another one from the data up (a Helmholtz machine).

        zL ~ Bernoulli(sigmoid(a))    z_l | z_{l+1} ~ Bernoulli(sigmoid(W_l z_{l+1} + b_l))    x | z1 ~ p(x | z1)
        q(z1 | x) q(z2 | z1) ... q(zL | z_{L-1})    q(z_l | z_{l-1}) = Bernoulli(sigmoid(V_l z_{l-1} + c_l))

    Samples of bits let no gradient by, and 2^(sum of latent_dims) states are not enumerated: it is trained by
    `ReweightedWakeSleep`, `WakeSleep` or `VIMCO`, and evaluated by `log_likelihood`.

    Args:
        event_shape: shape of one x.
        latent_dims: lengths of z1, ..., zL, from the data up.
        hidden: sizes of the deterministic layers between the bits, tanh; as in `HierarchicalVAE`. () is the belief net.
        encoder: x (..., *event_shape) to the features of q(z1 | x); as in `VAE`.
        decoder: z1 (..., latent_dims[0]) to the features of p(x | z1); as in `VAE`.
        prior: p(zL), of zeros and ones; made by `prior(latent_dims[-1])`.
        likelihood: p(x | z1); made by `likelihood(feature_shape, event_shape)`.

    Raises:
        TypeError, ValueError: as in `HierarchicalVAE`.

    Shapes: x (B, *event_shape), z_l (B, latent_dims[l]) of zeros and ones.
    Source: Bornschein & Bengio 2015, https://arxiv.org/abs/1406.2751; Dayan et al. 1995. All of the latents' logits
    start with a bias of -1, as in https://github.com/jbornschein/reweighted-ws. The authors' best nets have
    autoregressive layers (NADE, DARN), which these are not.

    >>> import torch
    >>> pair = SigmoidBeliefNet((1, 8, 8), latent_dims=(20, 10))
    >>> pair.conditional(1, torch.zeros(3, 10)).mean[:, 0] < 0.5
    tensor([True, True, True])
    """

    trained_by = "ReweightedWakeSleep"

    def __init__(
        self,
        event_shape: int | Sequence[int],
        latent_dims: Sequence[int] = (200, 200),
        *,
        hidden: Sequence[int] | Sequence[Sequence[int]] = (),
        encoder: nn.Module | Callable[..., nn.Module] | None = None,
        decoder: nn.Module | Callable[..., nn.Module] | None = None,
        prior: nn.Module | Callable[..., nn.Module] = FactorisedBernoulli,
        likelihood: nn.Module | Callable[..., nn.Module] = Bernoulli,
    ) -> None:
        super().__init__(
            event_shape,
            latent_dims,
            hidden=hidden,
            encoder=encoder,
            decoder=decoder,
            prior=prior,
            conditional=Bernoulli,
            posterior=Bernoulli,
            likelihood=likelihood,
        )
        for layer in (*self.conditionals, *self.posteriors):
            nn.init.constant_(layer.head.layer.bias, -1.0)
