"""Pictures of a pair and of its run: every function takes numbers, draws on a matplotlib Axes and returns it.

Nothing here knows a pair, an objective or a data set: arguments are tensors, arrays and plain mappings. Common to all:

* `ax=` is the Axes to draw on. Without it a figure is made outside pyplot: no window, no backend, no global list of
  figures. `save` writes it as PNG.
* An image is (C, H, W) with C = 1 (grey) or 3 (RGB), or (H, W), or flat with `image_shape=` (C, H, W) or (H, W). It is
  clipped to [0, 1] for display only, 0 black and 1 white. Any other event is a vector (D,), drawn as a line over its
  D entries. Below, *event is an image or a vector.
* z[0], z[1], ... are the dimensions of a latent, counted from 0 as in the tensor.
* A shape that does not fit, an empty array, a NaN or an infinity is a ValueError.

    >>> import torch
    >>> ax = image_grid(torch.rand(6, 1, 8, 8), columns=3)
    >>> ax.images[0].get_array().shape  # 2 x 3 images of 8 x 8 pixels, one white pixel between them
    (17, 26)
"""

from pyrovae.plots.checks import predictive_check, predictive_checks
from pyrovae.plots.components import component_ellipses
from pyrovae.plots.curves import training_curves
from pyrovae.plots.figures import save
from pyrovae.plots.images import completions, image_grid, interpolation, reconstructions, rows, samples
from pyrovae.plots.latents import (
    capacity_curves,
    clusters,
    latent_densities,
    latent_kl,
    latent_scatter,
    layers,
    manifold,
    traversals,
)
from pyrovae.plots.topics import topic_words

__all__ = [
    "capacity_curves",
    "clusters",
    "completions",
    "component_ellipses",
    "image_grid",
    "interpolation",
    "latent_densities",
    "latent_kl",
    "latent_scatter",
    "layers",
    "manifold",
    "predictive_check",
    "predictive_checks",
    "reconstructions",
    "rows",
    "samples",
    "save",
    "topic_words",
    "training_curves",
    "traversals",
]
