"""The README's picture: a two-dimensional latent space while it learns handwritten digits.

    python -m examples.manifold

The decoded manifold after 1, 25, 125 and 625 steps, and the training points in z after the last.
"""

import torch
from matplotlib.figure import Figure

import pyrovae as pv
from pyrovae.evaluation import encode, manifold

STEPS = (1, 25, 125, 625)


class Panels(pv.Callback):
    """Draws into one figure what `reports.LatentSpace` writes to files."""

    def __init__(self, data: pv.data.Data, axes):
        self.data, self.axes = data, dict(zip(STEPS, axes, strict=True))

    def on_step(self, run: pv.Run) -> None:
        if run.step in self.axes:
            like = self.data.train.rows(slice(1))[:1]
            images, extent = manifold(run.pair, n=14, like=like)
            ax = pv.plots.manifold(images, extent, ax=self.axes[run.step])
            ax.set_title(f"step {run.step}", fontsize=10)


def main() -> None:
    data = pv.data.load("digits")
    figure = Figure(figsize=(15, 3.2), layout="constrained")
    *panels, last = figure.subplots(1, 5)
    torch.manual_seed(0)
    vae = pv.VAE(data.event_shape, latent_dim=2)
    callback = Panels(data, panels)
    run = pv.fit(vae, data, max_epochs=53, seed=0, callbacks=[callback], progress=False)
    pv.plots.latent_scatter(encode(vae, data.train.select("x")), data.train["y"], ax=last)
    last.set_title(f"training points, step {run.step}", fontsize=10)
    print(pv.plots.save(last, "examples/results/manifold.png"))


if __name__ == "__main__":
    main()
