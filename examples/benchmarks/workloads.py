"""The benchmark's eight workloads: each one model three times over, and the matrix products that it can't do without.

>>> WORKLOADS["tiny_vae"].batch()[0].shape
torch.Size([64, 64])
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple

import pyro.infer
import torch
from torch import Tensor, nn

import pyrovae as pv
from examples.benchmarks import handwritten, pairs
from pyrovae import nets

PIXELS = 784
LATENT_DIMS, HIDDEN = (64, 32, 16, 8, 4), (512, 256, 128, 64, 32)  # of the hierarchy
VADE = (500, 500, 2000)
CLASSES = 10
STATES, STEPS, EMISSION = 16, 100, 4  # of the HMM


class Product(NamedTuple):
    """A product (m, k) x (k, n) of the forward pass.

    Backward adds two of the same cost, for inputs and weights; one where the inputs are data, which no library
    differentiates.
    """

    m: int
    k: int
    n: int
    of_data: bool = False


@dataclass(frozen=True, kw_only=True)
class Workload:
    """One model and batch, for every contender.

    Attributes:
        batch: the tensors of one step, made from a fixed seed.
        pair: the model as a pair of this library.
        objective: what it is trained with here.
        stock: the same objective among Pyro's own.
        stock_pair: the pair that stock Pyro trains; `pair` where there is no reason for another.
        handwritten: a plain module, and the loss (mean per datum, nats) as a function of module and batch.
        products: those of one forward pass.
        dtype: of parameters and data.
        notes: what a reader of the table should know.
    """

    name: str
    batch: Callable[[], tuple[Tensor, ...]]
    pair: Callable[[], pv.Pair]
    objective: Callable[[], pyro.infer.ELBO]
    stock: Callable[[], pyro.infer.ELBO]
    handwritten: Callable[[], tuple[nn.Module, Callable[..., Tensor]]]
    products: Sequence[Product]
    stock_pair: Callable[[], pv.Pair] = field(default=None)  # type: ignore[assignment]
    dtype: torch.dtype = torch.float32
    notes: str = ""

    def __post_init__(self) -> None:
        if self.stock_pair is None:
            object.__setattr__(self, "stock_pair", self.pair)


def binary(*shape: int) -> tuple[Tensor, ...]:
    """Pixels that are on with a probability of their own each, about a fifth of them on, as in MNIST."""
    generator = torch.Generator().manual_seed(0)
    rates = torch.rand(shape[1:], generator=generator) ** 4
    return (torch.bernoulli(rates.expand(shape), generator=generator),)


def normal(*shape: int) -> tuple[Tensor, ...]:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)


def chain(m: int, *sizes: int, of_data: bool = False) -> list[Product]:
    """The products of dense layers for m rows; the first may be of data."""
    return [Product(m, k, n, of_data and i == 0) for i, (k, n) in enumerate(pairwise(sizes))]


def dense(m: int, data_dim: int, hidden: tuple[int, ...], latent_dim: int, particles: int = 1) -> list[Product]:
    encoder = chain(m, data_dim, *hidden, 2 * latent_dim, of_data=True)
    return encoder + chain(particles * m, latent_dim, *hidden[::-1], data_dim)


def logsumexp_products(batch: int) -> list[Product]:
    """The scan's batched products, as one of as many rows each."""
    products, steps = [], STEPS
    while steps > 1:
        products.append(Product(batch * (steps // 2) * STATES, STATES, STATES))
        steps = math.ceil(steps / 2)
    return products


def convolutions(m: int, latent_dim: int) -> list[Product]:
    """Each convolution as a product of unfolded patches."""
    return [
        Product(m * 14 * 14, 9, 32, of_data=True),
        Product(m * 7 * 7, 32 * 9, 64),
        Product(m, 64 * 7 * 7, 2 * latent_dim),
        Product(m, latent_dim, 64 * 7 * 7),
        Product(m * 7 * 7, 64, 32 * 9),
        Product(m * 14 * 14, 32, 32 * 9),
        Product(m * 28 * 28, 32, 1),
    ]


def hierarchy_products(m: int) -> list[Product]:
    up = [
        product
        for i, (n, h, latent) in enumerate(zip((PIXELS, *LATENT_DIMS), HIDDEN, LATENT_DIMS, strict=False))
        for product in chain(m, n, h, 2 * latent, of_data=i == 0)
    ]
    outputs = (PIXELS, *(2 * n for n in LATENT_DIMS))
    down = [product for n, h, out in zip(LATENT_DIMS, HIDDEN, outputs, strict=False) for product in chain(m, n, h, out)]
    return up + down


def m2_products(m: int) -> list[Product]:
    """With the x half of the encoder once, and the rows of y, which are looked up, not at all."""
    classifier = chain(m, PIXELS, 500, CLASSES, of_data=True)
    encoder = [Product(m, PIXELS, 500, of_data=True), Product(CLASSES * m, 500, 100)]
    return classifier + encoder + chain(CLASSES * m, 50, 500, PIXELS)


def vae(event_shape: int | tuple[int, ...], latent_dim: int, **options: Any) -> Callable[[], pv.Pair]:
    return partial(pv.VAE, event_shape, latent_dim, posterior=pairs.Normal, **options)


def by_hand(
    module: Callable[..., nn.Module], loss: Callable[..., Tensor], *arguments: Any
) -> Callable[[], tuple[nn.Module, Callable[..., Tensor]]]:
    return lambda: (module(*arguments), loss)


def enumerating() -> pyro.infer.ELBO:
    return pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)


_all = [
    Workload(
        name="tiny_vae",
        batch=partial(binary, 64, 64),
        pair=vae(64, 8, hidden=(64,)),
        objective=pv.ELBO,
        stock=pyro.infer.Trace_ELBO,
        handwritten=by_hand(handwritten.dense_vae, handwritten.vae_loss, 64, (64,), 8),
        products=dense(64, 64, (64,), 8),
        notes="64-64-8, tanh, batch 64",
    ),
    Workload(
        name="mlp_vae",
        batch=partial(binary, 128, PIXELS),
        pair=vae(PIXELS, 50, hidden=(400,)),
        objective=pv.ELBO,
        stock=pyro.infer.Trace_ELBO,
        handwritten=by_hand(handwritten.dense_vae, handwritten.vae_loss, PIXELS, (400,), 50),
        products=dense(128, PIXELS, (400,), 50),
        notes="784-400-50, tanh, batch 128",
    ),
    Workload(
        name="conv_vae",
        batch=partial(binary, 128, 1, 28, 28),
        pair=vae((1, 28, 28), 20, encoder=nets.ConvEncoder, decoder=nets.ConvDecoder),
        objective=pv.ELBO,
        stock=pyro.infer.Trace_ELBO,
        handwritten=by_hand(handwritten.conv_vae, handwritten.vae_loss, 20),
        products=convolutions(128, 20),
        notes="28 x 28, channels 32-64 and back, 20 latents, relu, batch 128; products of unfolded patches",
    ),
    Workload(
        name="iwae",
        batch=partial(binary, 20, PIXELS),
        pair=vae(PIXELS, 50, hidden=(200, 200)),
        objective=partial(pv.IWAE, 50),
        stock=partial(pyro.infer.RenyiELBO, alpha=0, num_particles=50, vectorize_particles=True, max_plate_nesting=1),
        handwritten=by_hand(handwritten.dense_vae, handwritten.iwae_loss, PIXELS, (200, 200), 50),
        products=dense(20, PIXELS, (200, 200), 50, particles=50),
        notes="784-200-200-50, tanh, 50 particles, batch 20",
    ),
    Workload(
        name="hierarchy",
        batch=partial(binary, 128, PIXELS),
        pair=partial(pairs.Hierarchy, PIXELS, LATENT_DIMS, HIDDEN),
        objective=pv.ELBO,
        stock=pyro.infer.Trace_ELBO,
        handwritten=by_hand(handwritten.Hierarchy, handwritten.hierarchy_loss, PIXELS, LATENT_DIMS, HIDDEN),
        products=hierarchy_products(128),
        notes="latents 64-32-16-8-4, one hidden layer 512-256-128-64-32 each way, tanh, batch 128",
    ),
    Workload(
        name="vade",
        batch=partial(binary, 100, PIXELS),
        pair=partial(pairs.VaDE, PIXELS, 10, CLASSES, VADE),
        objective=pv.ELBO,
        stock=enumerating,
        handwritten=by_hand(handwritten.VaDE, handwritten.vade_loss, PIXELS, 10, CLASSES, VADE),
        products=dense(100, PIXELS, VADE, 10),
        notes="784-500-500-2000-10, relu, 10 components summed out, batch 100",
    ),
    Workload(
        name="m2",
        batch=partial(binary, 100, PIXELS),
        pair=partial(pairs.M2, PIXELS, 50, CLASSES, 500, nets.MultiLinear),
        stock_pair=partial(pairs.M2, PIXELS, 50, CLASSES, 500, pairs.Concatenated),
        objective=pv.ELBO,
        stock=enumerating,
        handwritten=by_hand(handwritten.M2, handwritten.m2_loss, PIXELS, 50, CLASSES, 500),
        products=m2_products(100),
        notes="784-500-50, softplus, 10 labels enumerated, batch 100, no labels given; the pair uses nets.MultiLinear, "
        "stock and hand-written code concatenate as is usual",
    ),
    Workload(
        name="hmm",
        batch=partial(normal, 32, STEPS, EMISSION),
        pair=partial(pairs.HMM, STATES, EMISSION),
        objective=pv.ELBO,
        stock=pyro.infer.Trace_ELBO,
        handwritten=by_hand(handwritten.HMM, handwritten.hmm_loss, STATES, EMISSION),
        products=logsumexp_products(32),
        notes="16 states, 100 steps, 4 Gaussian emissions a step, 32 sequences, parallel scan",
    ),
]
WORKLOADS: dict[str, Workload] = {workload.name: workload for workload in _all}
