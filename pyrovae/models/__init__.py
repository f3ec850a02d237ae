"""One file per graph: what p and q are. `__all__` lists the library's pairs."""

from pyrovae.models.cvae import CVAE
from pyrovae.models.discrete import CategoricalVAE
from pyrovae.models.flow import NormalizingFlow
from pyrovae.models.hierarchical import HierarchicalVAE, LadderVAE
from pyrovae.models.inpainting import InpaintingVAE, PartialVAE, PosteriorMatching
from pyrovae.models.topics import NVDM, ProdLDA
from pyrovae.models.vae import VAE
from pyrovae.models.vq import VQVAE, VQVAE2, CodeModel

__all__ = [
    "CVAE",
    "NVDM",
    "VAE",
    "VQVAE",
    "VQVAE2",
    "CategoricalVAE",
    "CodeModel",
    "HierarchicalVAE",
    "InpaintingVAE",
    "LadderVAE",
    "NormalizingFlow",
    "PartialVAE",
    "PosteriorMatching",
    "ProdLDA",
]
