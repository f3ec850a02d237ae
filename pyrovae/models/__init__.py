"""One file per graph: what p and q are. `__all__` lists the library's pairs."""

from pyrovae.models.inpainting import InpaintingVAE, PartialVAE, PosteriorMatching
from pyrovae.models.vae import VAE

__all__ = ["VAE", "InpaintingVAE", "PartialVAE", "PosteriorMatching"]
