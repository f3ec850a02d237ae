"""A VAE with a few categorical latents."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import pyro
import torch
from torch import Tensor, nn

from pyrovae.conditionals import Bernoulli, OneHotCategorical
from pyrovae.distributions import LinearOneHot
from pyrovae.models.base import Pair
from pyrovae.models.vae import feature_shape, filled
from pyrovae.nets import MLP, MultiMLP, as_shape, as_size

__all__ = ["CategoricalVAE"]

LARGEST = 4096  # values of all latents together


class CategoricalVAE(Pair):
    r"""VAE whose latents are N categories of C classes each, independent in prior and guide.

        y_n ~ Categorical(softmax(l_n)),  n = 1..N        x | y ~ p(x | y_1, ..., y_N)        q(y_n | x) = Categorical

    One model, trained in ways that differ in the gradient for the guide:

        CategoricalVAE(..., enumerate=True), ELBO()             exact: all C^N values
        CategoricalVAE(..., posterior=GumbelSoftmax), ELBO()    relaxed samples' gradient; the value is the same bound
        CategoricalVAE(..., posterior=GumbelSoftmax), IWAE(K)   the same, of log p(y) - log q(y) too: a larger bias
        CategoricalVAE(...), VIMCO(K) or ReweightedWakeSleep(K) scores of samples

    `exact()` is a copy that enumerates: its `log_weights` are log p(x) itself, however the pair was trained.

    Args:
        event_shape: shape of one x.
        num_latents: N.
        num_classes: C.
        hidden: sizes of the hidden layers of the networks, from x to y; the decoder has them reversed.
        enumerate: whether the guide enumerates its latents, at most 4096 values of all together.
        posterior: q(y_n | x) of the encoder's features; made by `posterior(feature_shape, num_classes)` for each n.
        likelihood: p(x | y) of the decoder's features; made by `likelihood(feature_shape, event_shape)`.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, and too many values to enumerate.

    Shapes: x (B, *event_shape), y1 ... yN (B, C) one-hot.
    Source: Jang, Gu & Poole 2017, https://arxiv.org/abs/1611.01144, section 4.2; Mnih & Rezende 2016.

    >>> from pyrovae.objectives import log_weights
    >>> vae, x = CategoricalVAE(5, num_latents=2, num_classes=3), torch.ones(4, 5)
    >>> first, second = log_weights(vae.exact(), x, num_particles=2)
    >>> torch.equal(first, second), torch.equal(*log_weights(vae, x, num_particles=2))
    (True, False)
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        num_latents: int = 2,
        num_classes: int = 10,
        hidden: Sequence[int] = (200, 200),
        enumerate: bool = False,
        posterior: Callable[..., nn.Module] = OneHotCategorical,
        likelihood: nn.Module | Callable[..., nn.Module] = Bernoulli,
    ) -> None:
        super().__init__()
        self.event_shape = as_shape(event_shape)
        num_latents = as_size(num_latents, "num_latents")
        num_classes = as_size(num_classes, "num_classes")
        self.encoder = MLP(self.event_shape, hidden)
        self.decoder = MultiMLP([num_classes] * num_latents, as_shape(hidden, "hidden")[::-1])
        shape = self.encoder.feature_shape
        self.posteriors = nn.ModuleList(filled("posterior", posterior, shape, num_classes) for _ in range(num_latents))
        self.likelihood = filled("likelihood", likelihood, feature_shape(self.decoder), self.event_shape)
        self.prior_logits = nn.Parameter(torch.zeros(num_latents, num_classes))
        self.enumerate = enumerate
        self._check()

    def model(self, x: Tensor) -> None:
        """y_n ~ Categorical, x | y, for each row of x."""
        with pyro.plate("data", len(x)):
            # Unchecked: relaxed values of training are no one-hot vectors.
            priors = [LinearOneHot(logits=logits, validate_args=False) for logits in self.prior_logits]
            y = [pyro.sample(f"y{n}", prior) for n, prior in enumerate(priors, 1)]
            pyro.sample("x", self.likelihood(self.decoder(*y)), obs=x)

    def guide(self, x: Tensor) -> None:
        """q(y_n | x), for each row of x."""
        with pyro.plate("data", len(x)):
            features = self.encoder(x)
            for n, posterior in enumerate(self.posteriors, 1):
                infer = {"enumerate": "parallel"} if self.enumerate else {}
                pyro.sample(f"y{n}", posterior(features), infer=infer)

    def exact(self) -> CategoricalVAE:
        """A copy in evaluation mode whose guide enumerates: its `log_weights` are log p(x), its `ELBO` has no noise."""
        same = copy.deepcopy(self).eval()
        same.enumerate = same.arguments["enumerate"] = True
        same._check()
        return same

    def _check(self) -> None:
        num_latents, num_classes = self.prior_logits.shape
        if self.enumerate and num_classes**num_latents > LARGEST:
            raise ValueError(
                f"{num_latents} latents of {num_classes} classes have {num_classes**num_latents} values, at most "
                f"{LARGEST} can be enumerated; pass enumerate=False, and VIMCO(5) to fit, or fewer latents"
            )
