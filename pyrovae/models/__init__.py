"""One file per graph: what p and q are. `__all__` lists the library's pairs."""

from pyrovae.models.cvae import CVAE
from pyrovae.models.hierarchical import HierarchicalVAE, LadderVAE
from pyrovae.models.vae import VAE

__all__ = ["CVAE", "NVDM", "VAE", "HierarchicalVAE", "LadderVAE", "NormalizingFlow", "ProdLDA"]
from pyrovae.models.flow import NormalizingFlow
from pyrovae.models.topics import NVDM, ProdLDA
