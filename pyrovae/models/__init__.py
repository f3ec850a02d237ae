"""One file per graph: what p and q are. `__all__` lists the library's pairs."""

from pyrovae.models.cvae import CVAE
from pyrovae.models.flow import NormalizingFlow
from pyrovae.models.hierarchical import HierarchicalVAE, LadderVAE
from pyrovae.models.hmm import HMM, BayesianHMM
from pyrovae.models.inpainting import InpaintingVAE, PartialVAE, PosteriorMatching
from pyrovae.models.structured import StructuredHMM, StructuredVAE
from pyrovae.models.topics import NVDM, ProdLDA
from pyrovae.models.vae import VAE

__all__ = [
    "CVAE",
    "HMM",
    "NVDM",
    "VAE",
    "BayesianHMM",
    "HierarchicalVAE",
    "InpaintingVAE",
    "LadderVAE",
    "NormalizingFlow",
    "PartialVAE",
    "PosteriorMatching",
    "ProdLDA",
    "StructuredHMM",
    "StructuredVAE",
]
