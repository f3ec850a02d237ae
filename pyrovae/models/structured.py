r"""Structured variational auto-encoders: discrete structure with conjugate Gaussians behind a neural emission.

The recognition network gives each z a Gaussian potential, psi(z; x) = exp(h(x) z - J(x) z^2 / 2), dimension by
dimension, and the guide is what these make of the prior, exactly:

    q(s, z | x) = p(s) p(z | s) psi(z; x) / Z(x)

so that KL(q || p) = E_q log psi - log Z. Where p(x | z) is such a potential itself, the bound is log p(x).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor, nn
from torch.nn.functional import softplus

from pyrovae.conditionals import Bernoulli
from pyrovae.distributions import MarkovChain, masked
from pyrovae.models.base import Pair
from pyrovae.models.hmm import check_sequences
from pyrovae.models.vae import feature_shape, filled
from pyrovae.nets import MLP, Head, as_shape, as_size

__all__ = ["GaussianPotential", "StructuredHMM", "StructuredVAE"]

Slot = nn.Module | Callable[..., nn.Module]


class GaussianPotential(nn.Module):
    """The natural parameters of psi(z; x) = exp(h z - J z^2 / 2): h and J >= 0, each (..., L), of features.

    J is a softplus: a potential that says nothing, J = 0, is its limit.

    Args:
        feature_shape: shape of one datum's features.
        latent_dim: L.
    """

    def __init__(self, feature_shape: int | Sequence[int], latent_dim: int) -> None:
        super().__init__()
        self.head = Head(feature_shape, latent_dim, 2)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """h and J."""
        h, j = self.head(features)
        return h, softplus(j)


class _Switching(Pair):
    """z | s ~ N(m_s, v_s) for one of S states, and p(x | z) and psi(z; x) by networks."""

    def __init__(
        self,
        event_shape: tuple[int, ...],
        latent_dim: int,
        num_states: int,
        *,
        hidden: Sequence[int],
        encoder: Slot | None,
        decoder: Slot | None,
        potential: Slot,
        likelihood: Slot,
    ) -> None:
        super().__init__()
        self.latent_dim = as_size(latent_dim, "latent_dim")
        self.num_states = as_size(num_states, "num_states")
        self.encoder = filled("encoder", MLP(event_shape, hidden) if encoder is None else encoder, event_shape)
        made = MLP(self.latent_dim, as_shape(hidden, "hidden")[::-1]) if decoder is None else decoder
        self.decoder = filled("decoder", made, self.latent_dim, event_shape)
        self.potential = filled("potential", potential, feature_shape(self.encoder, event_shape), self.latent_dim)
        features = feature_shape(self.decoder, (self.latent_dim,))
        self.likelihood = filled("likelihood", likelihood, features, event_shape)
        self.initial_logits = nn.Parameter(torch.zeros(self.num_states))
        self.loc = nn.Parameter(torch.randn(self.num_states, self.latent_dim))  # apart, or all states stay alike
        self.log_scale = nn.Parameter(torch.zeros(self.num_states, self.latent_dim))

    def given_state(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""What psi makes of each state: log int p(z | s) psi(z; x) dz, and location and scale of q(z | s, x).

        Args:
            x: (..., \*event_shape).

        Returns:
            (..., S), (..., S, L), (..., S, L).
        """
        return self.given_potential(*self.potential(self.encoder(x)))

    def given_potential(self, h: Tensor, j: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What `given_state` says, of the numbers (..., L) of psi.

        Dropout gives other numbers at each call: what is to be of one psi has to be made of one call of the networks.
        """
        h, j = h[..., None, :], j[..., None, :]
        before = torch.exp(-2 * self.log_scale)  # precisions
        after = before + j
        loc = (before * self.loc + h) / after
        evidence = (before / after).log() + after * loc**2 - before * self.loc**2
        return evidence.sum(-1) / 2, loc, after.rsqrt()

    def prior_given(self, s: Tensor) -> dist.Normal:
        """p(z | s), one by one."""
        return dist.Normal(self.loc[s], self.log_scale.exp()[s])


class StructuredVAE(_Switching):
    r"""A mixture behind a neural emission, with a conjugate recognition potential.

        s ~ Cat(pi)    z | s ~ N(m_s, diag v_s)    x | z ~ p(x | z)        q(s | x) q(z | s, x), from psi(z; x)

    q(s | x) and q(z | s, x) are closed forms of one potential (see the module), and s is enumerated in the guide: the
    ELBO sums it. The differences to VaDE: there the network gives q(z | x), and q(c | x) is made from a sample of it.

    Args:
        event_shape: shape of one x.
        latent_dim: L, length of z.
        num_states: S.
        hidden: sizes of the hidden layers of the default networks, from x to z; the decoder has them reversed.
        encoder, decoder, likelihood: slots of `VAE`.
        potential: h and J of psi, of the encoder's features; made by `potential(feature_shape, latent_dim)`.

    Raises:
        TypeError, ValueError: as in `VAE`.

    Shapes: x (B, \*event_shape), s (B,), z (B, L).
    Source: Johnson et al. 2016, https://arxiv.org/abs/1603.06277, with point estimates of the global parameters.

    >>> pair = StructuredVAE(6, latent_dim=2, num_states=3, hidden=(5,))
    >>> logits, loc, scale = pair.given_state(torch.ones(4, 6))
    >>> logits.shape, loc.shape
    (torch.Size([4, 3]), torch.Size([4, 3, 2]))
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        latent_dim: int,
        num_states: int = 10,
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Slot | None = None,
        decoder: Slot | None = None,
        potential: Slot = GaussianPotential,
        likelihood: Slot = Bernoulli,
    ) -> None:
        shape = as_shape(event_shape)
        super().__init__(
            shape,
            latent_dim,
            num_states,
            hidden=hidden,
            encoder=encoder,
            decoder=decoder,
            potential=potential,
            likelihood=likelihood,
        )
        self.event_shape = shape

    def model(self, x: Tensor) -> None:
        """s ~ Cat(pi), z | s, x | z, for each row of x."""
        with pyro.plate("data", len(x)):
            s = pyro.sample("s", dist.Categorical(logits=self.initial_logits))
            z = pyro.sample("z", self.prior_given(s).to_event(1))
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(s | x), enumerated, and q(z | s, x)."""
        evidence, loc, scale = self.given_state(x)
        with pyro.plate("data", len(x)):
            logits = self.initial_logits.log_softmax(-1) + evidence
            s = pyro.sample("s", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})
            pyro.sample("z", dist.Normal(Vindex(loc)[..., s, :], Vindex(scale)[..., s, :]).to_event(1))


class StructuredHMM(_Switching):
    r"""A hidden Markov model behind a neural emission, with conjugate recognition potentials.

        s ~ MarkovChain    z_t | s_t ~ N(m_{s_t}, diag v_{s_t})    x_t | z_t ~ p(x_t | z_t)        t = 1 ... l_n

        q(s | x) prop. to p(s) prod_t int p(z_t | s_t) psi(z_t; x_t) dz_t, a chain too    q(z_t | s_t, x_t)

    Given the path, steps are independent, so that message passing over s is all that the guide takes. Its samples of s
    have no gradient: train it with `pyrovae.StatesSummed()`, in which s is summed exactly,

        log Z(x) + sum_t sum_s q(s_t = s | x) E_q(z | s, x_t) [log p(x_t | z) - log psi(z; x_t)].

    Args:
        event_shape: (T, \*shape of one step).
        latent_dim: L, length of z_t.
        num_states: S.
        hidden, encoder, decoder, potential, likelihood: of one step, as in `StructuredVAE`.

    Raises:
        TypeError, ValueError: as in `VAE`; at the call for a likelihood that is no product over its elements.

    Shapes: x (B, T, \*step), lengths (B,) as in `HMM`; s (B, T), z (B, T, L), of which steps after the end count for
    nothing.
    Source: Johnson et al. 2016, https://arxiv.org/abs/1603.06277, with point estimates of the global parameters and no
    dynamics of z but those of s.
    """

    trained_by = "StatesSummed"

    def __init__(
        self,
        event_shape: int | Sequence[int],
        latent_dim: int,
        num_states: int = 10,
        *,
        hidden: Sequence[int] = (200, 200),
        encoder: Slot | None = None,
        decoder: Slot | None = None,
        potential: Slot = GaussianPotential,
        likelihood: Slot = Bernoulli,
    ) -> None:
        shape = as_shape(event_shape)
        super().__init__(
            shape[1:],
            latent_dim,
            num_states,
            hidden=hidden,
            encoder=encoder,
            decoder=decoder,
            potential=potential,
            likelihood=likelihood,
        )
        self.event_shape = shape
        self.transition_logits = nn.Parameter(torch.randn(self.num_states, self.num_states))

    def model(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """s, z | s, x | z, for each row of x."""
        chain = self.chain(x, lengths)
        with pyro.plate("data", len(x)):
            s = pyro.sample("s", chain)
            z = pyro.sample("z", self.prior_given(s).mask(chain.valid[..., None]).to_event(2))
            within = chain.valid.reshape(*chain.valid.shape, *[1] * (x.dim() - 2))
            pyro.sample("x", masked(self.likelihood(self.decoder(z)), within).to_event(1), obs=x)

    def guide(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """q(s | x), a chain, and q(z | s, x)."""
        chain = self.chain(x, lengths)
        evidence, loc, scale = self.given_state(x)
        with pyro.plate("data", len(x)):
            s = pyro.sample("s", chain.tilted(evidence)[0])
            z = dist.Normal(Vindex(loc)[..., s, :], Vindex(scale)[..., s, :])
            pyro.sample("z", z.mask(chain.valid[..., None]).to_event(2))

    def check_batch(self, x: Tensor, lengths: Tensor | None = None) -> None:
        """Refuse sequences of another shape, and lengths outside 1 ... T, before `fit` starts."""
        check_sequences(x, lengths, self.event_shape[1:])

    def chain(self, x: Tensor, lengths: Tensor | None = None) -> MarkovChain:
        """p(s) of sequences as long as these."""
        return MarkovChain(self.initial_logits, self.transition_logits[None], duration=x.shape[1], lengths=lengths)

    def states_summed(self, x: Tensor, lengths: Tensor | None = None, *, num_particles: int = 1) -> Tensor:
        """The ELBO with s summed exactly and K draws of z in each state, (B,) nats, for `pyrovae.StatesSummed`."""
        chain = self.chain(x, lengths)
        h, j = self.potential(self.encoder(x))
        evidence, loc, scale = self.given_potential(h, j)
        q, log_z = chain.tilted(evidence)
        z = dist.Normal(loc, scale).rsample((num_particles,))  # (K, B, T, S, L)
        h, j = h[..., None, :], j[..., None, :]
        # At the samples, not in closed form: where psi is p(x | z) up to a constant, no noise is left.
        log_psi = (h * z - j * z**2 / 2).sum(-1)
        log_p = self.likelihood(self.decoder(z)).log_prob(x.unsqueeze(2))  # (K, B, T, S)
        return log_z + (q.marginals * (log_p - log_psi).mean(0)).sum((-2, -1))
