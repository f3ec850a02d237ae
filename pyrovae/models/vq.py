"""Vector-quantised autoencoders: latents that are grids of codes, one grid or two, and models of such grids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Self

import pyro
import torch
from pyro.distributions import Delta
from torch import Tensor, nn

from pyrovae.conditionals import Bernoulli
from pyrovae.distributions import NearestCode
from pyrovae.models.base import Pair, evaluation_mode
from pyrovae.models.vae import feature_shape, filled
from pyrovae.nets import MLP, Codebook, EMACodebook, GridDecoder, GridEncoder, Head, as_shape, as_size
from pyrovae.priors import PixelCNN, UniformCodes

__all__ = ["VQVAE", "VQVAE2", "CodeModel"]

Maker = nn.Module | Callable[..., nn.Module]


class VQVAE(Pair):
    r"""Vector-quantised variational autoencoder: z is a grid of vectors, each one of the K of a codebook.

        k ~ p(k)        z = e_k        x | z ~ p(x | z)        q(k | x) = 1  at  k_i = argmin_j |h_i(x) - e_j|

    Its ELBO is log p(x | z_q(x)) + log p(k(x)), one term of the sum p(x) = sum_k p(k) p(x | e_k): a lower bound on
    log p(x), with the uniform prior of n codes log p(x | z_q(x)) - n log K, and more with a prior that has learned
    which codes go together. More samples are all the same one, so that IWAE is no tighter.

    A gradient for the encoder does not exist; it takes that of z for its own (straight-through). The paper stops the
    gradient of log p(x | z) at the codebook; here a `Codebook` has it, since it is the ELBO's own, and `EMACodebook`
    has none. What holds h(x) and e_k together are terms of the objective `Commitment`, for they are no part of a
    density: fit with it, and evaluation has the bare bound.

        vq = VQVAE(data.event_shape, num_codes=64).initialise_(data.train["x"][:500])
        fit(vq, data, objective=Commitment(0.25))
        codes = CodeModel(vq.grid_shape, num_codes=64)                  # stage two: a prior
        fit(codes, encode(vq, data.train, site="k", sample=True))
        vq.bind_prior(codes)

    Args:
        event_shape: shape of one x.
        num_codes: K.
        code_dim: D, length of a code's vector.
        grid_shape: the codes' grid. Default: what the encoder's convolutions leave of an image; MLPs need it.
        channels: of the default networks, convolutional where grid_shape is left out; each number halves the image.
        hidden: sizes of the hidden layers of the default networks where grid_shape is given: MLPs, tanh.
        encoder: x to features, an image (C, *grid) or flat; made by `encoder(event_shape)`.
        decoder: z (..., D, *grid) to features; made by `decoder((D, *grid), event_shape)`.
        codebook: a `Codebook`; made by `codebook(num_codes, code_dim)`.
        prior: p(k); made by `prior(grid_shape, num_codes)`.
        likelihood: p(x | z) of the decoder's features; made by `likelihood(feature_shape, event_shape)`.

    Raises:
        TypeError, ValueError: for sizes that are no positive whole numbers, a slot that is neither module nor maker,
            networks whose grids do not match, a codebook of other sizes, and features without a grid.

    Shapes: x (B, *event_shape), k (B, *grid) integers, z (B, D, *grid).
    Source: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937; the codebook's gradient: Huh et al. 2023,
    https://arxiv.org/abs/2305.08842, section 4.

    >>> vq = VQVAE((1, 8, 8), num_codes=16, channels=(32,))
    >>> vq.codes_of(torch.zeros(3, 1, 8, 8)).v.shape
    torch.Size([3, 4, 4])
    """

    trained_by = "Commitment"

    def __init__(
        self,
        event_shape: int | Sequence[int],
        *,
        num_codes: int = 64,
        code_dim: int = 16,
        grid_shape: int | Sequence[int] | None = None,
        channels: Sequence[int] = (32, 64),
        hidden: Sequence[int] = (200,),
        encoder: Maker | None = None,
        decoder: Maker | None = None,
        codebook: Maker = EMACodebook,
        prior: Maker = UniformCodes,
        likelihood: Maker = Bernoulli,
    ) -> None:
        super().__init__()
        self.event_shape, hidden = as_shape(event_shape), as_shape(hidden, "hidden")
        self.num_codes, code_dim = as_size(num_codes, "num_codes"), as_size(code_dim, "code_dim")
        flat = grid_shape is not None
        if encoder is None:
            encoder = MLP(self.event_shape, hidden) if flat else GridEncoder(self.event_shape, channels)
        self.encoder = filled("encoder", encoder, self.event_shape)
        features = feature_shape(self.encoder, self.event_shape)
        if grid_shape is None and len(features) < 2:
            raise ValueError(f"the encoder's features {features} have no grid; pass grid_shape=(4,) for 4 codes, say")
        self.grid_shape = features[1:] if grid_shape is None else as_shape(grid_shape, "grid_shape")
        code_shape = (code_dim, *self.grid_shape)
        self.head = Head(features, code_shape)
        self.codebook = _codebook(codebook, self.num_codes, code_dim)
        if decoder is None:
            decoder = (
                MLP(code_shape, hidden[::-1]) if flat else GridDecoder(code_shape, self.event_shape, channels[::-1])
            )
        self.decoder = filled("decoder", decoder, code_shape, self.event_shape)
        self.prior = filled("prior", prior, self.grid_shape, self.num_codes)
        shape = feature_shape(self.decoder, code_shape)
        self.likelihood = filled("likelihood", likelihood, shape, self.event_shape)

    def model(self, x: Tensor) -> None:
        """k ~ p(k), z = e_k, x | z ~ p(x | z), for each row of x."""
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", self.prior())
            z = pyro.sample("z", Delta(self.embed(k), event_dim=1 + len(self.grid_shape)))
            pyro.sample("x", self.likelihood(self.decoder(z)), obs=x)

    def guide(self, x: Tensor) -> None:
        """k is the nearest code, z its vector, for each row of x."""
        with pyro.plate("data", len(x)):
            nearest = self.codes_of(x)
            pyro.sample("k", nearest)
            pyro.sample("z", Delta(nearest.straight_through(), event_dim=1 + len(self.grid_shape)))

    def codes_of(self, x: Tensor) -> NearestCode:
        """q(k | x), for x (..., *event_shape)."""
        (h,) = self.head(self.encoder(x))
        return _nearest(self.codebook, h, len(self.grid_shape))

    def embed(self, k: Tensor) -> Tensor:
        """z = e_k, (..., D, *grid), of k (..., *grid)."""
        return _embedded(self.codebook, k, len(self.grid_shape))

    @torch.no_grad()
    def initialise_(self, x: Tensor) -> Self:
        """Set the codebook to encodings of data x (N, *event_shape), drawn at random.

        Returns:
            This pair.

        Raises:
            ValueError: if the encodings have fewer different vectors than there are codes.
        """
        with evaluation_mode(self):
            (h,) = self.head(self.encoder(x))
        self.codebook.initialise_(h.movedim(-1 - len(self.grid_shape), -1))
        return self

    def bind_prior(self, codes: CodeModel) -> Self:
        """Make the prior of a fitted `CodeModel` this pair's p(k), without a copy: samples and the bound use it.

        Returns:
            This pair.

        Raises:
            ValueError: if it is of another grid or number of codes.
        """
        _check_prior(codes, self.grid_shape, self.num_codes)
        self.prior = codes.prior
        self.arguments["prior"] = codes.arguments.get("prior", PixelCNN)
        return self


class CodeModel(Pair):
    r"""A model of grids of codes, without latents: what stage two of a `VQVAE` fits to the codes of data.

        x ~ p(x)    or    x | c ~ p(x | c),    x the codes

    Args:
        grid_shape: shape of one grid.
        num_codes: K.
        context_shape: of what the codes depend on besides, if anything.
        prior: p(x | c); made by `prior(grid_shape, num_codes)`, and `context_shape=` where that is given.

    Raises:
        TypeError, ValueError: as the prior raises them.

    Shapes: x (B, *grid) integers, and c (B, *context_shape) where there is a context.
    Source: van den Oord et al. 2017, https://arxiv.org/abs/1711.00937, section 3.2.

    >>> from pyrovae.objectives import log_weights
    >>> log_weights(CodeModel((2, 2), num_codes=3), torch.zeros(5, 2, 2, dtype=torch.long)).shape
    torch.Size([1, 5])
    """

    def __init__(
        self,
        grid_shape: int | Sequence[int],
        *,
        num_codes: int,
        context_shape: Sequence[int] | None = None,
        prior: Maker = PixelCNN,
    ) -> None:
        super().__init__()
        self.grid_shape = as_shape(grid_shape, "grid_shape")
        self.num_codes = as_size(num_codes, "num_codes")
        self.prior = filled("prior", _given(prior, context_shape), self.grid_shape, self.num_codes)

    def model(self, x: Tensor, *context: Tensor) -> None:
        """x ~ p(x | context), for each row of x."""
        with pyro.plate("data", len(x)):
            pyro.sample("x", self.prior(*context), obs=x)

    def guide(self, x: Tensor, *context: Tensor) -> None:
        """Nothing is latent."""


class VQVAE2(Pair):
    r"""`VQVAE` of two grids: a coarse one of what is where, and a fine one of what the coarse one leaves open.

        k2 ~ p(k2)    z2 = e2_{k2}    k1 ~ p(k1 | z2)    z1 = e1_{k1}    x | z1, z2 ~ p(x | z1, z2)

    The guide gives k2 of coarse features of x, and k1 of fine ones and z2, each the nearest code. Bound, gradients,
    objective and stage two are as in `VQVAE`, with a `CodeModel` for each grid.

    Args:
        event_shape: (C, H, W) of one x.
        num_codes: K, of each grid.
        code_dim: D.
        channels: of the convolutions from x to the fine grid; each number halves the image, and one more the grid.
        codebook, likelihood: as in `VQVAE`.
        prior: both priors; made by `prior(grid2, K)` and `prior(grid1, K, context_shape=)`.

    Raises:
        TypeError, ValueError: as in `VQVAE`.

    Shapes: x (B, C, H, W), k1 (B, H1, W1), k2 (B, H2, W2), z1 (B, D, H1, W1), z2 (B, D, H2, W2).
    Source: Razavi, van den Oord & Vinyals 2019, https://arxiv.org/abs/1906.00446, algorithms 1 and 2.

    >>> vq = VQVAE2((1, 28, 28), num_codes=16, channels=(32,))
    >>> [grid.v.shape for grid in vq.codes_of(torch.zeros(3, 1, 28, 28))]
    [torch.Size([3, 14, 14]), torch.Size([3, 7, 7])]
    """

    trained_by = "Commitment"

    def __init__(
        self,
        event_shape: Sequence[int],
        *,
        num_codes: int = 64,
        code_dim: int = 16,
        channels: Sequence[int] = (32, 64),
        codebook: Callable[..., nn.Module] = EMACodebook,
        prior: Callable[..., nn.Module] = UniformCodes,
        likelihood: Maker = Bernoulli,
    ) -> None:
        super().__init__()
        self.num_codes, code_dim = as_size(num_codes, "num_codes"), as_size(code_dim, "code_dim")
        self.encoder1 = GridEncoder(event_shape, channels)
        fine, self.event_shape = self.encoder1.feature_shape, self.encoder1.event_shape
        self.encoder2 = GridEncoder(fine, fine[:1])
        coarse = self.encoder2.feature_shape
        self.grid_shapes = (fine[1:], coarse[1:])
        code1, code2 = (code_dim, *fine[1:]), (code_dim, *coarse[1:])
        self.head2 = Head(coarse, code2)
        self.above, self.wide = GridDecoder(code2, fine, fine[:1]), GridDecoder(code2, fine, fine[:1])
        self.head1 = Head((2 * fine[0], *fine[1:]), code1)
        self.codebook1, self.codebook2 = (_codebook(codebook, self.num_codes, code_dim) for _ in range(2))
        self.prior2 = filled("prior", prior, coarse[1:], self.num_codes)
        self.prior1 = filled("prior", _given(prior, code2), fine[1:], self.num_codes)
        self.decoder = GridDecoder((code_dim + fine[0], *fine[1:]), self.event_shape, tuple(channels)[::-1])
        self.likelihood = filled("likelihood", likelihood, self.decoder.feature_shape, self.event_shape)

    def model(self, x: Tensor) -> None:
        """k2, z2 = e2, k1 | z2, z1 = e1, x | z1, z2, for each row of x."""
        with pyro.plate("data", len(x)):
            k2 = pyro.sample("k2", self.prior2())
            z2 = pyro.sample("z2", Delta(_embedded(self.codebook2, k2, 2), event_dim=3))
            k1 = pyro.sample("k1", self.prior1(z2.detach()))  # stage two does not move the codes
            z1 = pyro.sample("z1", Delta(_embedded(self.codebook1, k1, 2), event_dim=3))
            pyro.sample("x", self.likelihood(self.decoder(torch.cat([z1, self.wide(z2)], -3))), obs=x)

    def guide(self, x: Tensor) -> None:
        """Each code the nearest, the coarse ones first."""
        with pyro.plate("data", len(x)):
            fine, coarse = self.codes_of(x)
            for number, nearest in ((2, coarse), (1, fine)):
                pyro.sample(f"k{number}", nearest)
                pyro.sample(f"z{number}", Delta(nearest.straight_through(), event_dim=3))

    def codes_of(self, x: Tensor) -> tuple[NearestCode, NearestCode]:
        """q(k1 | x, z2) and q(k2 | x), for x (..., C, H, W)."""
        fine = self.encoder1(x)
        (h2,) = self.head2(self.encoder2(fine))
        coarse = _nearest(self.codebook2, h2, 2)
        (h1,) = self.head1(torch.cat([fine, self.above(coarse.straight_through())], -3))
        return _nearest(self.codebook1, h1, 2), coarse

    @torch.no_grad()
    def initialise_(self, x: Tensor) -> Self:
        """Set both codebooks to encodings of data, the coarse one first; see `VQVAE.initialise_`."""
        with evaluation_mode(self):
            for number, book in ((1, self.codebook2), (0, self.codebook1)):
                book.initialise_(self.codes_of(x)[number].encoded.movedim(-3, -1))
        return self

    def bind_priors(self, fine: CodeModel, coarse: CodeModel) -> Self:
        """Make the priors of fitted models of k1 given z2 and of k2 this pair's; see `VQVAE.bind_prior`."""
        for codes, grid in zip((fine, coarse), self.grid_shapes, strict=True):
            _check_prior(codes, grid, self.num_codes)
        self.prior1, self.prior2 = fine.prior, coarse.prior
        self.arguments["prior"] = fine.arguments.get("prior", PixelCNN)
        return self


def _given(maker: Any, context_shape: Sequence[int] | None) -> Any:
    """A maker that is told the context's shape too; a module stays as it is."""
    if context_shape is None or isinstance(maker, nn.Module) or not callable(maker):
        return maker
    return partial(maker, context_shape=tuple(context_shape))


def _codebook(codebook: Any, num_codes: int, code_dim: int) -> Codebook:
    made = filled("codebook", codebook, num_codes, code_dim)
    if not isinstance(made, Codebook):
        raise TypeError(f"codebook is {type(made).__name__}; pass a pyrovae.nets.Codebook or a class that makes one")
    if (made.num_codes, made.code_dim) != (num_codes, code_dim):
        raise ValueError(
            f"the codebook has {made.num_codes} codes of {made.code_dim} numbers, the pair {num_codes} of {code_dim}; "
            f"pass num_codes={made.num_codes}, code_dim={made.code_dim}"
        )
    return made


def _nearest(codebook: Codebook, h: Tensor, grid_dims: int) -> NearestCode:
    k = codebook(h.movedim(-1 - grid_dims, -1))
    return NearestCode(k, h, _embedded(codebook, k, grid_dims), event_dim=grid_dims)


def _embedded(codebook: Codebook, k: Tensor, grid_dims: int) -> Tensor:
    return codebook.embed(k).movedim(-1, -1 - grid_dims)


def _check_prior(codes: CodeModel, grid_shape: tuple[int, ...], num_codes: int) -> None:
    if (codes.grid_shape, codes.num_codes) != (grid_shape, num_codes):
        raise ValueError(
            f"the model of codes is of {codes.num_codes} codes on a grid {codes.grid_shape}, the pair has "
            f"{num_codes} on {grid_shape}; pass CodeModel({grid_shape}, num_codes={num_codes})"
        )
