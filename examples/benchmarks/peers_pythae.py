"""The benchmark's models in pythae, trained by its trainer's step: forward, backward, Adam.

Encoder and decoder are the hand-written networks (`handwritten.py`) behind pythae's interface, one head for mean and
log-variance included. pythae clamps its log-probabilities, as F.binary_cross_entropy of a sigmoid does. Its IWAE
reports the weighted mean of the log-weights, without constants; the gradient is that of the bound.
"""

from collections.abc import Callable

import torch
from pythae.models import IWAE, VAE, IWAEConfig, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from torch import Tensor, nn

from examples.benchmarks.workloads import WORKLOADS, Workload

MODELS = {"tiny_vae": VAE, "mlp_vae": VAE, "conv_vae": VAE, "iwae": IWAE}


class Encoder(BaseEncoder):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.features, self.posterior = net.encoder, net.posterior

    def forward(self, x: Tensor) -> ModelOutput:
        mean, log_variance = self.posterior(self.features(x)).chunk(2, -1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class Decoder(BaseDecoder):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.features, self.likelihood = net.decoder, net.likelihood

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=torch.sigmoid(self.likelihood(self.features(z))))


def prepared(workload: Workload, module: nn.Module | None = None) -> tuple[VAE, dict[str, Tensor]]:
    """pythae's model around the hand-written networks, and a batch."""
    module = workload.handwritten()[0] if module is None else module
    (x,) = workload.batch()
    sizes = {"input_dim": tuple(x.shape[1:]), "latent_dim": module.posterior.out_features // 2}
    if MODELS[workload.name] is IWAE:
        config = IWAEConfig(**sizes, reconstruction_loss="bce", number_samples=50)
    else:
        config = VAEConfig(**sizes, reconstruction_loss="bce")
    return MODELS[workload.name](config, Encoder(module), Decoder(module)), {"data": x}


def pythae_step(name: str) -> Callable[[int], None] | None:
    """A function that runs n training steps; None where pythae has no such model."""
    if name not in MODELS:
        return None
    model, batch = prepared(WORKLOADS[name])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)

    def run(n: int) -> None:
        model.train()
        for _ in range(n):
            loss = model(batch).loss
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return run
