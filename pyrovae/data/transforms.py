"""Transforms of a batch's tensors: binarisation, dequantisation, and the bits per dimension that go with it."""

import math
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

__all__ = ["Transform", "bernoulli", "bits_per_dimension", "dequantize", "join_quadrants", "quadrants"]

Transform = Callable[[dict[str, Tensor]], dict[str, Tensor]]
Nats = TypeVar("Nats", float, Tensor)


def bernoulli(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Transform for dynamic binarisation: new bits x ~ Bernoulli(x) from x in [0, 1] at each call.

    Source: Burda et al. 2016, https://arxiv.org/abs/1509.00519
    """
    x = tensors["x"]
    return {**tensors, "x": torch.rand_like(x).lt_(x)}  # 4 times faster than torch.bernoulli on a CPU


def dequantize(levels: int = 256) -> Transform:
    r"""Transform for uniform dequantisation: x = k / (levels - 1) becomes (k + u) / levels.

    The noise u ~ U[0, 1)^D is new at each call. For a density p on [0, 1]^D, Jensen's inequality gives

        log P(k) >= E_u log p((k + u) / levels) - D log(levels),    P(k) = integral of p over the bin of k.

    Args:
        levels: number of grey levels L of x.

    Returns:
        transform for a `Split`, which changes "x" only and keeps it in [0, 1).

    Source: Uria et al. 2013, https://arxiv.org/abs/1306.0186; Theis et al. 2016, https://arxiv.org/abs/1511.01844

    >>> transform = dequantize(4)
    >>> (transform({"x": torch.tensor([0.0, 1 / 3, 2 / 3, 1.0])})["x"] * 4).floor()
    tensor([0., 1., 2., 3.])
    """
    _check_levels(levels)

    def transform(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        k = (tensors["x"] * (levels - 1)).round()
        # k + u can round up to k + 1, the next bin, and to x = 1, where a density on [0, 1) may be infinite
        y = torch.minimum(k + torch.rand_like(k), torch.nextafter(k + 1, k))
        return {**tensors, "x": y / levels}

    return transform


def quadrants(x: Tensor, hidden: int) -> tuple[Tensor, Tensor]:
    r"""The visible pixels y of images with hidden quadrants, and the hidden ones, which are to be completed.

    Hidden are, in this order: bottom right, top right, top left; bottom left is always seen. Rows and columns in the
    middle of odd sizes go to the bottom and to the right.

    Args:
        x: images (..., C, H, W).
        hidden: 1, 2 or 3 quadrants.

    Returns:
        y (..., V) and x (..., D), V + D = C H W, each in the order of the image; `join_quadrants` puts them together.

    Raises:
        ValueError: for another number, or x that are no images of 2 x 2 pixels at least.

    Source: Sohn, Lee & Yan 2015, and Pyro's example (examples/cvae), whose quadrants these are.

    >>> image = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    >>> quadrants(image, hidden=1)
    (tensor([1., 2., 3.]), tensor([4.]))
    """
    if x.dim() < 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, wanted images (..., C, H, W); pass x.unsqueeze(-3), say")
    mask, flat = _hidden_pixels(x.shape[-3:], hidden), x.flatten(-3)
    seen, unseen = (m.nonzero()[:, 0].to(x.device) for m in (~mask, mask))
    return flat.index_select(-1, seen), flat.index_select(-1, unseen)


def join_quadrants(y: Tensor, x: Tensor, image_shape: Sequence[int]) -> Tensor:
    """The images of which `quadrants` made the visible pixels y and the hidden ones x, or completions of these.

    Args:
        y: visible pixels (..., V).
        x: hidden pixels (..., D), leading dims as those of y.
        image_shape: (C, H, W).

    Returns:
        images (..., C, H, W).

    Raises:
        ValueError: if y and x are not so many pixels as quadrants of such an image have.

    >>> join_quadrants(torch.tensor([1.0, 3.0]), torch.tensor([2.0, 4.0]), (1, 2, 2))
    tensor([[[1., 2.],
             [3., 4.]]])
    """
    shape = tuple(image_shape)
    for hidden in (1, 2, 3):
        mask = _hidden_pixels(shape, hidden)
        if (y.size(-1), x.size(-1)) == (int((~mask).sum()), int(mask.sum())):
            order = torch.cat([(~mask).nonzero()[:, 0], mask.nonzero()[:, 0]]).argsort().to(x.device)
            return torch.cat([y, x], -1).index_select(-1, order).unflatten(-1, shape)
    raise ValueError(
        f"y and x have {y.size(-1)} and {x.size(-1)} pixels, which are no quadrants of an image {shape}; pass what "
        "quadrants(images, hidden) gave, and the images' shape"
    )


def _hidden_pixels(image_shape: Sequence[int], hidden: int) -> Tensor:
    """Which pixels of a flattened image are hidden, (C H W,)."""
    channels, height, width = image_shape
    if hidden not in (1, 2, 3) or height < 2 or width < 2:
        raise ValueError(
            f"hidden is {hidden!r} of images {tuple(image_shape)}, wanted 1, 2 or 3 quadrants of 2 x 2 pixels at "
            "least; pass hidden=1"
        )
    mask = torch.zeros(channels, height, width, dtype=torch.bool)
    mask[:, height // 2 :, width // 2 :] = True
    if hidden > 1:
        mask[:, : height // 2, width // 2 :] = True
    if hidden > 2:
        mask[:, : height // 2, : width // 2] = True
    return mask.flatten()


def bits_per_dimension(
    log_likelihood_nats: Nats, event_shape: int | Sequence[int], *, levels: int | None = None
) -> Nats:
    r"""Minus the log-likelihood in bits per dimension, -log p / (D log 2), plus log2(levels) if these are given.

    Args:
        log_likelihood_nats: nats per datum, any shape.
        event_shape: shape of a datum; D is its product.
        levels: for a density on [0, 1] of data from `dequantize(levels)`: its nats minus D log(levels) are those of the
            discrete datum. None: log_likelihood_nats are those of the discrete datum already.

    Returns:
        bits per dimension, in the shape of log_likelihood_nats.

    Source: Theis et al. 2016, https://arxiv.org/abs/1511.01844

    >>> bits_per_dimension(0.0, (3, 32, 32), levels=256)  # the uniform density
    8.0
    """
    dimensions = event_shape if isinstance(event_shape, int) else math.prod(event_shape)
    if dimensions < 1:
        raise ValueError(f"event_shape is {event_shape}, without a dimension; pass the shape of one datum")
    offset = 0.0 if levels is None else math.log2(_check_levels(levels))
    return offset - log_likelihood_nats / (dimensions * math.log(2))


def _check_levels(levels: int) -> int:
    if not isinstance(levels, int) or levels < 2:
        raise ValueError(f"levels is {levels!r}, an integer of at least 2 is wanted; pass 256 for bytes")
    return levels
