"""Semi-supervised learning: labels that some of the data have, as observed or latent y."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor, nn

from pyrovae.conditionals import Bernoulli, DiagonalNormal
from pyrovae.models.base import Pair
from pyrovae.models.vae import VAE, feature_shape, filled
from pyrovae.nets import MLP, Frozen, Head, MultiMLP, as_shape, as_size
from pyrovae.priors import StandardNormal

__all__ = ["M2", "FactoredM2", "StackedM2"]


class M2(Pair):
    r"""Kingma's M2: a label y that some of the data have, of a batch that mixes both kinds.

        y ~ Cat(1/C)        z ~ p(z)        x | y, z ~ p(x | y, z)        q(y | x) q(z | x, y)

    Labels are whole numbers, -1 where unknown. Known ones are observed (Pyro's `obs_mask`): the ELBO bounds log p(x, y)
    there. Unknown ones are latent, and the guide enumerates them: the ELBO bounds log p(x),

        labelled      E_q(z|x,y) [log p(x | y, z) + log p(y) + log p(z) - log q(z | x, y)]           = -L(x, y)
        unlabelled    sum_y q(y | x) (-L(x, y)) + H[q(y | x)]                                        = -U(x)

    Known labels teach q(y | x) nothing in these: `SemiSupervised` adds its cross-entropy, as the paper does. The sites
    are `y_observed` (known labels), `y_unobserved` (unknown ones), z and x.

    One graph serves each mixture of rows, since labelled rows pass through it as the others do: C draws of z of their
    own, whose mean their bound is. x meets its weights once, whatever C.

    Args:
        event_shape: shape of one x.
        latent_dim: L, length of z.
        num_classes: C.
        hidden: sizes of the hidden layers of the default networks, softplus; the decoder has them reversed.
        classifier: x (..., *event_shape) to the features of q(y | x); made by `classifier(event_shape)`.
        encoder: x and y (..., C), one-hot, to the features of q(z | x, y); made by `encoder([event_shape, (C,)])`.
        decoder: z (..., L) and y to features; made by `decoder([(L,), (C,)])`.
        prior: p(z), called without arguments; made by `prior(latent_dim)`.
        posterior: q(z | x, y) of the encoder's features; made by `posterior(feature_shape, latent_dim)`.
        likelihood: p(x | y, z) of the decoder's features; made by `likelihood(feature_shape, event_shape)`.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, or a slot that is neither module nor maker.

    Shapes: x (B, *event_shape), y (B,) int64, z (B, L).
    Source: Kingma, Rezende, Mohamed & Welling 2014, https://arxiv.org/abs/1406.5298, eqs. 6 and 7; networks of one
    hidden layer of 500 softplus units are theirs.

    >>> pair = M2((1, 8, 8), latent_dim=2, hidden=(50,))
    >>> pair.label_posterior(torch.zeros(3, 1, 8, 8)).probs.shape
    torch.Size([3, 10])
    """

    trained_by = "SemiSupervised"

    def __init__(
        self,
        event_shape: int | Sequence[int],
        latent_dim: int,
        *,
        num_classes: int = 10,
        hidden: Sequence[int] = (500,),
        classifier: nn.Module | Callable[..., nn.Module] | None = None,
        encoder: nn.Module | Callable[..., nn.Module] | None = None,
        decoder: nn.Module | Callable[..., nn.Module] | None = None,
        prior: nn.Module | Callable[..., nn.Module] = StandardNormal,
        posterior: nn.Module | Callable[..., nn.Module] = DiagonalNormal,
        likelihood: nn.Module | Callable[..., nn.Module] = Bernoulli,
    ) -> None:
        super().__init__()
        self.event_shape, hidden = as_shape(event_shape), as_shape(hidden, "hidden")
        self.latent_dim = as_size(latent_dim, "latent_dim")
        self.num_classes = as_size(num_classes, "num_classes")
        labels, latent = (self.num_classes,), (self.latent_dim,)
        made = MLP(self.event_shape, hidden, activation=nn.Softplus) if classifier is None else classifier
        self.classifier = filled("classifier", made, self.event_shape)
        self.label_head = Head(feature_shape(self.classifier, self.event_shape), labels)
        made = self._default_encoder(hidden) if encoder is None else encoder
        inputs = (self.event_shape, labels) if self.encodes_labels else (self.event_shape,)
        self.encoder = filled("encoder", made, list(inputs) if self.encodes_labels else self.event_shape)
        made = MultiMLP([latent, labels], hidden[::-1], activation=nn.Softplus) if decoder is None else decoder
        self.decoder = filled("decoder", made, [latent, labels])
        self.prior = filled("prior", prior, self.latent_dim)
        self.posterior = filled("posterior", posterior, feature_shape(self.encoder, *inputs), self.latent_dim)
        self.likelihood = filled(
            "likelihood", likelihood, feature_shape(self.decoder, latent, labels), self.event_shape
        )

    encodes_labels: ClassVar[bool] = True

    def _default_encoder(self, hidden: Sequence[int]) -> nn.Module:
        if self.encodes_labels:
            return MultiMLP([self.event_shape, (self.num_classes,)], hidden, activation=nn.Softplus)
        return MLP(self.event_shape, hidden, activation=nn.Softplus)

    def model(self, x: Tensor, y: Tensor) -> None:
        """y ~ Cat(1/C), z ~ p(z), x | y, z ~ p(x | y, z), for each row of x; y is observed where it is known."""
        with pyro.plate("data", len(x)):
            label = self.sample_label(x, y)
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood_of(z, label), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """q(y | x) where y is unknown, q(z | x, y), for each row of x."""
        with pyro.plate("data", len(x)):
            label = self.infer_label(x, y)
            pyro.sample("z", self.posterior_of(x, label))

    def sample_label(self, x: Tensor, y: Tensor) -> Tensor:
        """The model's y, inside its plate: uniform, and observed where it is known."""
        prior = dist.Categorical(logits=x.new_zeros(self.num_classes))
        return pyro.sample("y", prior, obs=y.clamp(min=0), obs_mask=y >= 0)

    def infer_label(self, x: Tensor, y: Tensor) -> Tensor:
        """The guide's y, inside its plate: q(y | x), enumerated, unless it is known."""
        known = y >= 0
        with poutine.mask(mask=~known):
            enumerated = pyro.sample("y_unobserved", self.label_posterior(x), infer={"enumerate": "parallel"})
        return torch.where(known, y, enumerated)  # (C, 1.., B)

    def label_posterior(self, x: Tensor) -> dist.Categorical:
        """q(y | x) as a distribution, for x (..., *event_shape)."""
        (logits,) = self.label_head(self.classifier(x))
        return dist.Categorical(logits=logits)

    def posterior_of(self, x: Tensor, y: Tensor) -> dist.TorchDistribution:
        """q(z | x, y) as a distribution, for x (..., *event_shape) and labels y (...), whose leading dims broadcast."""
        return self.posterior(self.encoder(x, self._one_hot(y, x.dtype)))

    def likelihood_of(self, z: Tensor, y: Tensor) -> dist.TorchDistribution:
        """p(x | y, z) as a distribution, for z (..., L) and labels y (...), whose leading dims broadcast."""
        return self.likelihood(self.decoder(z, self._one_hot(y, z.dtype)))

    def check_batch(self, x: Tensor, y: Tensor) -> None:
        """Refuse labels that are none of -1, 0, ..., C - 1, before `fit` starts.

        Raises:
            ValueError: with their number, and the first one's row.
        """
        if y.is_floating_point() or y.shape != x.shape[:1]:
            raise ValueError(
                f"y is {str(y.dtype).removeprefix('torch.')} of shape {tuple(y.shape)}, labels are int64 of shape "
                f"({len(x)},), one for each row of x; pass y.long(), with -1 where the label is unknown"
            )
        wrong = (y < -1) | (y >= self.num_classes)
        if wrong.any():
            row = int(wrong.nonzero()[0, 0])
            raise ValueError(
                f"y has {int(wrong.sum())} labels that are none of 0, ..., {self.num_classes - 1}, nor -1 for unknown, "
                f"the first in row {row} ({int(y[row])}); number the classes from 0, mark missing ones by -1, or pass "
                "num_classes="
            )

    def _one_hot(self, y: Tensor, dtype: torch.dtype) -> Tensor:
        return (y[..., None] == torch.arange(self.num_classes, device=y.device)).to(dtype)


class FactoredM2(M2):
    r"""M2 whose guide infers z from x alone: the lecture notes' form.

        y ~ Cat(1/C)        z ~ p(z)        x | y, z ~ p(x | y, z)        q(y | x) q(z | x)

    For unlabelled rows one z serves all labels,

        -U(x) = E_q(z|x) [sum_y q(y | x) log p(x | y, z)] - KL(q(z | x) || p(z)) - KL(q(y | x) || p(y))

    and the notes' loss J = L^l + beta L^u is `SemiSupervised(beta=)`. It is cheaper than `M2`, and its bound looser
    where z depends on the label given x.

    Args:
        encoder: x (..., *event_shape) to the features of q(z | x); made by `encoder(event_shape)`.
        event_shape, latent_dim, num_classes, hidden, classifier, decoder, prior, posterior, likelihood: as in `M2`.

    Raises, Shapes: as in `M2`.

    Source: the lecture notes ("Semi-supervised learning": q(z, y | x) = q(z | x) q(y | x)).

    >>> FactoredM2(8, latent_dim=2, hidden=(50,)).encoder.event_shape
    (8,)
    """

    encodes_labels: ClassVar[bool] = False

    def posterior_of(self, x: Tensor, y: Tensor) -> dist.TorchDistribution:
        """q(z | x) as a distribution, for x (..., *event_shape), whatever y."""
        return self.posterior(self.encoder(x))


class StackedM2(Pair):
    r"""M1+M2: an M2 of the latents of a fitted VAE (M1), as one pair of x and y.

        y ~ Cat(1/C)    z2 ~ p(z2)    z1 | y, z2 ~ M2's likelihood    x | z1 ~ M1's    q(z1 | x) q(y | z1) q(z2 | z1, y)

    M1 stays as it is (`Frozen`). Its terms do not depend on what is trained, so that the gradient is that of M2 on
    features z1 ~ q(z1 | x) drawn anew for each batch: the paper's way. `pyrovae.latent_data` saves M1's passes: fit M2
    on these features and stack it here afterwards, or train the stack itself.

    Args:
        fitted: a VAE with a `DiagonalNormal` posterior, or another whose z is a vector; its modules are copied.
        m2: an `M2` or `FactoredM2` of real vectors, the latents that are kept.
        kept: which of M1's latents these are, their numbers in order. Default: all, and M2 stands for M1's prior. The
            others stay N(0, 1), which M1's prior has to be, and M2's likelihood a Normal.

    Raises:
        ValueError: where M2 is of vectors of another length than what is kept.
        TypeError: where some are left out and M1's prior is no `StandardNormal`; at the call, where M2's likelihood is
            no Normal then.

    Shapes: x (B, *event_shape), y (B,) int64, z1 (B, L1), z2 (B, L2).
    Source: Kingma et al. 2014, https://arxiv.org/abs/1406.5298, section 2.3.

    >>> pair = StackedM2(VAE((1, 8, 8), 5), M2(3, 2, likelihood=DiagonalNormal), kept=(0, 2, 4))
    >>> pair.latent_dim
    5
    """

    trained_by = "SemiSupervised"

    def __init__(self, fitted: VAE, m2: M2, *, kept: Sequence[int] | None = None) -> None:
        super().__init__()
        self.event_shape, self.latent_dim = fitted.event_shape, fitted.latent_dim
        kept = tuple(range(fitted.latent_dim)) if kept is None else tuple(int(dim) for dim in kept)
        if sorted(set(kept)) != list(kept) or (kept and not 0 <= kept[0] <= kept[-1] < fitted.latent_dim):
            raise ValueError(f"kept is {kept}; pass numbers of the {fitted.latent_dim} latents, each once and in order")
        if m2.event_shape != (len(kept),):
            raise ValueError(
                f"m2 has event shape {m2.event_shape}, {len(kept)} latents are kept; pass M2({len(kept)}, ...)"
            )
        if len(kept) < fitted.latent_dim and type(fitted.prior) is not StandardNormal:
            raise TypeError(
                f"the prior of fitted is {type(fitted.prior).__name__}, {fitted.latent_dim - len(kept)} of its latents "
                "are left out, and these have to be N(0, 1); keep all, or fit a VAE with a StandardNormal"
            )
        self.num_classes = m2.num_classes
        self.m1 = Frozen(fitted)
        self.m2 = m2
        self.register_buffer("kept", torch.tensor(kept))

    def model(self, x: Tensor, y: Tensor) -> None:
        """y, z2 and z1 as in M2, x | z1 as in M1, for each row of x; y is observed where it is known."""
        m1: Any = self.m1.module
        with pyro.plate("data", len(x)):
            label = self.m2.sample_label(x, y)
            z2 = pyro.sample("z2", self.m2.prior())
            z1 = pyro.sample("z1", self._with_the_others(self.m2.likelihood_of(z2, label)))
            pyro.sample("x", m1.likelihood(m1.decoder(z1)), obs=x)

    def guide(self, x: Tensor, y: Tensor) -> None:
        """q(z1 | x) as in M1, q(y | z1) and q(z2 | z1, y) as in M2, for each row of x."""
        m1: Any = self.m1.module
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", m1.posterior_of(x))
            features = z1[..., self.kept]
            label = self.m2.infer_label(features, y)
            pyro.sample("z2", self.m2.posterior_of(features, label))

    def check_batch(self, x: Tensor, y: Tensor) -> None:
        """Refuse labels that are no labels, as M2 does."""
        self.m2.check_batch(x, y)

    def _with_the_others(self, features: dist.TorchDistribution) -> dist.TorchDistribution:
        """p(z1 | y, z2): M2's Normal for the latents kept, N(0, 1) for the rest."""
        if len(self.kept) == self.latent_dim:
            return features
        normal = getattr(features, "base_dist", features)
        if not isinstance(normal, dist.Normal):
            raise TypeError(
                f"m2's likelihood gives {type(normal).__name__}, a Normal is wanted where latents are left out; pass "
                "M2(..., likelihood=DiagonalNormal), or keep all"
            )
        shape = (*normal.loc.shape[:-1], self.latent_dim)
        loc = normal.loc.new_zeros(shape).index_copy(-1, self.kept, normal.loc)
        scale = normal.scale.new_ones(shape).index_copy(-1, self.kept, normal.scale.expand_as(normal.loc))
        return dist.Normal(loc, scale).to_event(1)
