"""One file per graph: what p and q are. `__all__` lists the library's pairs."""

from pyrovae.models.topics import NVDM, ProdLDA
from pyrovae.models.vae import VAE

__all__ = ["NVDM", "VAE", "ProdLDA"]
