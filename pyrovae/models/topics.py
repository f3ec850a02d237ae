"""Topic models: variational auto-encoders of bags of words."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import pyro
from torch import Tensor, nn

from pyrovae.conditionals import BagOfWords, DiagonalNormal, NormalisedNormal, ProductOfExperts
from pyrovae.conditionals.topics import rate
from pyrovae.data.corpora import check_counts
from pyrovae.models.vae import VAE
from pyrovae.nets import MLP
from pyrovae.priors import LaplaceDirichlet, StandardNormal

__all__ = ["NVDM", "ProdLDA"]

Slot = nn.Module | Callable[..., nn.Module]


class NVDM(VAE):
    r"""Neural variational document model: a document of n words, given n.

        z ~ N(0, I)        x | z, n ~ BagOfWords(n, softmax(z R + b))        q(z | x)

    The length n is that of the x at hand: replicates keep each document's.

    The authors train encoder and decoder by turns, ten epochs each. That is `pyrovae.fit_em(pair, x,
    e_step=Ascent(k), m_step=Ascent(k))`, with turns of k steps; `pyrovae.fit` trains them together.

    Args:
        event_shape: V, number of words in the vocabulary.
        latent_dim: L, length of z.
        hidden: sizes of the encoder's hidden layers.
        encoder, prior, posterior: slots of `VAE`. Default encoder: an MLP, tanh.
        decoder: z to the likelihood's features. Default: z itself.
        likelihood: p(x | z, n), called with the features and the lengths: `BagOfWords`, `ProductOfExperts`,
            `TopicMixture`, or somebody's own.

    Raises:
        TypeError, ValueError: as in `VAE`.

    Shapes: x (B, V) counts, as floats; z (B, L).
    Source: Miao, Yu & Blunsom 2016, https://arxiv.org/abs/1511.06038; sizes: https://github.com/ysmiao/nvdm.

    >>> import torch
    >>> nvdm = NVDM(2000)
    >>> nvdm.topics.shape
    torch.Size([50, 2000])
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        latent_dim: int = 50,
        *,
        hidden: Sequence[int] = (500,),
        encoder: Slot | None = None,
        decoder: Slot | None = None,
        prior: Slot = StandardNormal,
        posterior: Slot = DiagonalNormal,
        likelihood: Slot = BagOfWords,
    ) -> None:
        super().__init__(
            event_shape,
            latent_dim,
            hidden=hidden,
            encoder=encoder,
            decoder=MLP(latent_dim, ()) if decoder is None else decoder,
            prior=prior,
            posterior=posterior,
            likelihood=likelihood,
        )

    @property
    def topics(self) -> Tensor:
        """What each topic says about each word, (L, V): the likelihood's `topics`."""
        topics = self.likelihood.topics
        assert isinstance(topics, Tensor)
        return topics

    def check_batch(self, x: Tensor) -> None:
        """Refuse what are no counts, and documents without words, before `fit` starts."""
        check_counts(x)

    def model(self, x: Tensor) -> None:
        """z ~ p(z), x | z, n ~ p(x | z, n), for each row of x, n being its sum."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior())
            pyro.sample("x", self.likelihood(self.decoder(z), x.sum(-1)), obs=x)


class ProdLDA(NVDM):
    r"""Latent Dirichlet allocation with a product of experts instead of a mixture, and an encoder.

        z ~ LaplaceDirichlet(alpha), theta = softmax(z)        x | z, n ~ BagOfWords(n, softmax(BN(theta beta)))

        q(z | x) = N(BN(m(x)), exp(BN(v(x))))

    Batch norm as in the authors' code: a learned shift and no scale, see `ProductOfExperts`. They train by Adam with
    lr 0.002, beta1 0.99 and batches of 200, in `pyrovae.fit` optimizer=partial(torch.optim.Adam, betas=(0.99, 0.999)).

    Args:
        event_shape: V, number of words in the vocabulary.
        latent_dim: number of topics, at least 2.
        hidden: sizes of the encoder's hidden layers.
        dropout: of the encoder's features and of theta; pytorch-avitm's 0.2. With the 0.6 of the authors' code topics
            of 20 Newsgroups repeat each other (`examples/reproduce/topics.py`). For parts passed in their own counts.
        encoder: slot of `VAE`. Default: an MLP, softplus, with dropout.
        decoder: z to the likelihood's features. Default: z itself.
        prior, posterior: slots of `VAE`.
        likelihood: as in `NVDM`; default `ProductOfExperts`. With `TopicMixture` it is LDA.

    Raises:
        TypeError, ValueError: as in `VAE`; for a dropout outside [0, 1).

    Shapes: x (B, V) counts, as floats; z (B, L).
    Source: Srivastava & Sutton 2017, https://arxiv.org/abs/1703.01488;
    https://github.com/akashgit/autoencoding_vi_for_topic_models
    """

    def __init__(
        self,
        event_shape: int | Sequence[int],
        latent_dim: int = 50,
        *,
        hidden: Sequence[int] = (100, 100),
        dropout: float = 0.2,
        encoder: Slot | None = None,
        decoder: Slot | None = None,
        prior: Slot = LaplaceDirichlet,
        posterior: Slot = NormalisedNormal,
        likelihood: Slot | None = None,
    ) -> None:
        if encoder is None:
            encoder = nn.Sequential(
                MLP(event_shape, hidden, activation=nn.Softplus), nn.Dropout(rate("dropout", dropout))
            )
        super().__init__(
            event_shape,
            latent_dim,
            encoder=encoder,
            decoder=decoder,
            prior=prior,
            posterior=posterior,
            likelihood=partial(ProductOfExperts, dropout=dropout) if likelihood is None else likelihood,
        )
