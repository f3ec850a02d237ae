"""One file per graph: what p and q are. `__all__` lists the library's pairs."""

from pyrovae.models.autoencoder import Autoencoder
from pyrovae.models.bayesian_mixture import BayesianCategoricalMixture, BayesianGaussianMixture
from pyrovae.models.belief_net import SigmoidBeliefNet
from pyrovae.models.cvae import CVAE
from pyrovae.models.discrete import CategoricalVAE
from pyrovae.models.flow import NormalizingFlow
from pyrovae.models.hierarchical import HierarchicalVAE, LadderVAE
from pyrovae.models.hmm import HMM, BayesianHMM
from pyrovae.models.inpainting import InpaintingVAE, PartialVAE, PosteriorMatching
from pyrovae.models.mixture import CategoricalMixture, GaussianMixture
from pyrovae.models.semisupervised import M2, FactoredM2, StackedM2
from pyrovae.models.structured import StructuredHMM, StructuredVAE
from pyrovae.models.topics import NVDM, ProdLDA
from pyrovae.models.vade import MeanFieldVaDE, VaDE
from pyrovae.models.vae import VAE
from pyrovae.models.vq import VQVAE, VQVAE2, CodeModel

__all__ = [
    "CVAE",
    "HMM",
    "M2",
    "NVDM",
    "VAE",
    "VQVAE",
    "VQVAE2",
    "Autoencoder",
    "BayesianCategoricalMixture",
    "BayesianGaussianMixture",
    "BayesianHMM",
    "CategoricalMixture",
    "CategoricalVAE",
    "CodeModel",
    "FactoredM2",
    "GaussianMixture",
    "HierarchicalVAE",
    "InpaintingVAE",
    "LadderVAE",
    "MeanFieldVaDE",
    "NormalizingFlow",
    "PartialVAE",
    "PosteriorMatching",
    "ProdLDA",
    "SigmoidBeliefNet",
    "StackedM2",
    "StructuredHMM",
    "StructuredVAE",
    "VaDE",
]
