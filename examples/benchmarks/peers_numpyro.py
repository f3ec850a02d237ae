"""The benchmark's models in NumPyro, as its users write them: plain functions with `numpyro.param`, trained by its SVI.

Names, sizes and starting weights are those of the hand-written modules (`handwritten.py`); dense weights are transposed
once, at the start. The loss is NumPyro's own, minus the bound summed over the batch (a mean elsewhere, which Adam does
not see). Random numbers are JAX's default, threefry.
"""

import math
import os
from collections.abc import Callable
from typing import NamedTuple

import torch

# XLA takes all cores whatever torch does. It reads this when it makes its thread pool, before the first array.
os.environ.setdefault("NPROC", str(torch.get_num_threads()))

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from jax import Array, lax
from jax.nn import log_softmax, relu, softplus
from jax.scipy.special import logsumexp
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO, TraceMeanField_ELBO
from numpyro.infer.elbo import ELBO
from numpyro.infer.svi import SVIState
from torch import nn

from examples.benchmarks.workloads import WORKLOADS

SCAN = 100  # batches of an epoch


class Peer(NamedTuple):
    model: Callable[[Array], None]
    guide: Callable[[Array], None]
    loss: ELBO


def numpyro_step(name: str) -> Callable[[int], None]:
    """A function that runs n jitted `SVI.update`s, one call each, and waits for the last; its first call compiles."""
    svi, state, x = prepared(name)
    update = jax.jit(svi.update)

    def run(n: int) -> None:
        nonlocal state
        for _ in range(n):
            state, _ = update(state, x)
        jax.block_until_ready(state)

    return run


def numpyro_epoch(name: str) -> Callable[[int], None]:
    """A function that runs n steps in scans over 100 batches on the device; its first call compiles.

    Raises:
        ValueError: there, for an n that is no multiple of 100.
    """
    svi, state, x = prepared(name)
    # Rows drawn anew for each batch: the values make no difference to the time, the reads from memory do.
    batches = x[jax.random.randint(jax.random.key(1), (SCAN, len(x)), 0, len(x))]  # (100, B, *event)
    epoch = jax.jit(lambda state, batches: lax.scan(svi.update, state, batches))

    def run(n: int) -> None:
        nonlocal state
        if n % SCAN:
            raise ValueError(f"n is {n}, an epoch has {SCAN} steps; pass a multiple of {SCAN}")
        for _ in range(n // SCAN):
            state, _ = epoch(state, batches)
        jax.block_until_ready(state)

    return run


def prepared(name: str, module: nn.Module | None = None) -> tuple[SVI, SVIState, Array]:
    """SVI, its state with the weights of the hand-written module, and a batch."""
    workload, peer = WORKLOADS[name], PEERS[name]
    module = workload.handwritten()[0] if module is None else module
    (x,) = workload.batch()
    if x.dim() == 4:
        x = x.movedim(1, -1)
    svi = SVI(peer.model, peer.guide, numpyro.optim.Adam(1e-3), peer.loss)
    batch = jnp.asarray(x.numpy())
    return svi, svi.init(jax.random.key(0), batch, init_params=weights(module)), batch


def weights(module: nn.Module) -> dict[str, Array]:
    """The module's parameters by their names; matrices (in, out), convolutions (H, W, in, out), channels last."""
    arrays = {}
    for name, layer in module.named_modules():
        for key, value in layer.named_parameters(prefix=name, recurse=False):
            value = value.detach()
            if isinstance(layer, nn.Linear) and value.dim() == 2:
                value = value.T
            elif isinstance(layer, nn.Conv2d) and value.dim() == 4:
                value = value.permute(2, 3, 1, 0)
            elif isinstance(layer, nn.ConvTranspose2d) and value.dim() == 4:
                value = value.permute(2, 3, 0, 1)
            arrays[key] = value
    if any(isinstance(layer, nn.Conv2d) for layer in module.modules()):
        # The dense layers that meet an image of (64, 7, 7) number its values channels last.
        arrays["posterior.weight"] = arrays["posterior.weight"].unflatten(0, (64, 49)).transpose(0, 1).flatten(0, 1)
        for key in ("decoder.0.weight", "decoder.0.bias"):
            arrays[key] = arrays[key].unflatten(-1, (64, 49)).transpose(-1, -2).flatten(-2)
    return {key: jnp.array(value.contiguous().numpy()) for key, value in arrays.items()}


def dense(name: str, x: Array) -> Array:
    return x @ numpyro.param(f"{name}.weight") + numpyro.param(f"{name}.bias")


def mlp(name: str, x: Array, depth: int, activation: Callable[[Array], Array]) -> Array:
    for layer in range(depth):
        x = activation(dense(f"{name}.{2 * layer}", x))  # in between are torch's activations
    return x


def normal(name: str, features: Array) -> dist.Distribution:
    """z of features, from one layer that gives mean and log-variance."""
    mean, log_variance = jnp.split(dense(name, features), 2, -1)
    return dist.Normal(mean, jnp.exp(0.5 * log_variance)).to_event(1)


def standard(latent_dim: int) -> dist.Distribution:
    return dist.Normal(jnp.zeros(latent_dim), 1.0).to_event(1)


def vae(
    encoder: Callable[[Array], Array],
    logits: Callable[[Array], Array],
    loss: ELBO,
    prior: Callable[[], dist.Distribution] = lambda: standard(numpyro.param("decoder.0.weight").shape[0]),
) -> Peer:
    def model(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", prior())
            numpyro.sample("x", dist.Bernoulli(logits=logits(z)).to_event(x.ndim - 1), obs=x)

    def guide(x: Array) -> None:
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", normal("posterior", encoder(x)))

    return Peer(model, guide, loss)


def dense_vae(depth: int, loss: ELBO, activation: Callable[[Array], Array] = jnp.tanh, **options: Callable) -> Peer:
    return vae(
        lambda x: mlp("encoder", x, depth, activation),
        lambda z: dense("likelihood", mlp("decoder", z, depth, activation)),
        loss,
        **options,
    )


def convolution(name: str, x: Array) -> Array:
    """3 x 3, stride 2, padding 1, of x (B, H, W, C), H and W even, as a product with all patches.

    `lax.conv_general_dilated` is what one writes first: with it, a step of the whole model took 3 times as long on a
    CPU, and 15 times in a scan.
    """
    weight, bias = numpyro.param(f"{name}.weight"), numpyro.param(f"{name}.bias")
    _, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = [x[:, i : i + height : 2, j : j + width : 2] for i in range(3) for j in range(3)]
    return jnp.concatenate(patches, -1) @ weight.reshape(-1, weight.shape[-1]) + bias  # (B, H / 2, W / 2, C')


def transposed_convolution(name: str, x: Array) -> Array:
    """3 x 3, stride 2, padding 1, output padding 1, of x (B, H, W, C), as one product that gives 2 x 2 pixels at once.

    Input i adds weight k to output 2 i - 1 + k: an even output reads its own input (k = 1), an odd one its own (k = 2)
    and the next (k = 0). Of the 16 blocks of the product 7 are zero.
    """
    weight, bias = numpyro.param(f"{name}.weight"), numpyro.param(f"{name}.bias")
    batch, height, width, _ = x.shape
    x = jnp.pad(x, ((0, 0), (0, 1), (0, 1), (0, 0)))
    both = [(i, j) for i in range(2) for j in range(2)]
    patches = jnp.concatenate([x[:, i : i + height, j : j + width] for i, j in both], -1)  # (B, H, W, 4 C)
    zeros, k = jnp.zeros_like(weight[0, 0]), {(0, 0): 1, (0, 1): 2, (1, 1): 0}  # (input's offset, output's parity)
    blocks = [[weight[k[i, r], k[j, s]] if (i, r) in k and (j, s) in k else zeros for r, s in both] for i, j in both]
    out = patches @ jnp.block(blocks)
    out = out.reshape(batch, height, width, 2, 2, -1).swapaxes(2, 3)  # (B, H, 2, W, 2, C')
    return out.reshape(batch, 2 * height, 2 * width, -1) + bias


def conv_encoder(x: Array) -> Array:
    for name in ("encoder.0", "encoder.2"):
        x = relu(convolution(name, x))
    return x.reshape(len(x), -1)


def conv_logits(z: Array) -> Array:
    x = relu(dense("decoder.0", z)).reshape(-1, 7, 7, 64)
    for name in ("decoder.3", "decoder.5"):
        x = relu(transposed_convolution(name, x))
    return x @ numpyro.param("likelihood.weight")[0, 0] + numpyro.param("likelihood.bias")  # a 1 x 1 convolution


def mixture() -> dist.Distribution:
    """VaDE's p(z), c summed out: what TraceEnum_ELBO would compute, had we funsor."""
    scale = jnp.exp(0.5 * numpyro.param("log_variance"))
    components = dist.Normal(numpyro.param("loc"), scale).to_event(1)
    return dist.MixtureSameFamily(dist.Categorical(logits=numpyro.param("logits")), components)


def hierarchy_model(x: Array) -> None:
    with numpyro.plate("data", len(x)):
        z = numpyro.sample("z5", standard(numpyro.param("decoders.4.0.weight").shape[0]))
        for layer in range(4, 0, -1):
            features = jnp.tanh(dense(f"decoders.{layer}.0", z))
            z = numpyro.sample(f"z{layer}", normal(f"priors.{layer - 1}", features))
        logits = dense("likelihood", jnp.tanh(dense("decoders.0.0", z)))
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def hierarchy_guide(x: Array) -> None:
    with numpyro.plate("data", len(x)):
        for layer in range(5):
            features = jnp.tanh(dense(f"encoders.{layer}.0", x))
            x = numpyro.sample(f"z{layer + 1}", normal(f"posteriors.{layer}", features))


def log_q_of_y(x: Array) -> Array:
    """log q(y | x), (C, B)."""
    return log_softmax(dense("classifier.2", softplus(dense("classifier.0", x)))).T


def with_label(name: str, x: Array) -> Array:
    """The layer that reads x (B, D) or (C, B, D) and a label, for each label, (C, B, H).

    The label picks a row of the weight. The product with x comes before the labels' axis, as it would under vmap.
    """
    weight, bias = numpyro.param(f"{name}.weight"), numpyro.param(f"{name}.bias")
    columns = x.shape[-1]
    return x @ weight[:columns] + (weight[columns:] + bias)[:, None]


def m2_model(x: Array) -> None:
    """y summed out by hand: every term for every label, scaled by q(y | x)."""
    log_q = log_q_of_y(x)
    scale = numpyro.handlers.scale(scale=jnp.exp(log_q))
    with numpyro.plate("label", len(log_q), dim=-2), numpyro.plate("data", len(x), dim=-1), scale:
        numpyro.factor("y", -math.log(len(log_q)) - log_q)
        z = numpyro.sample("z", standard(numpyro.param("decoder.weight").shape[0] - len(log_q)))
        logits = dense("likelihood", softplus(with_label("decoder", z)))
        numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


def m2_guide(x: Array) -> None:
    log_q = log_q_of_y(x)
    scale = numpyro.handlers.scale(scale=jnp.exp(log_q))
    with numpyro.plate("label", len(log_q), dim=-2), numpyro.plate("data", len(x), dim=-1), scale:
        numpyro.sample("z", normal("posterior", softplus(with_label("encoder", x))))


def hmm_model(x: Array) -> None:
    """The forward algorithm, one step of all sequences at a time.

    On two cores it took 1.1 to 1.6 ms a training step with a product of shifted exponentials in each step, 3.3 with
    logsumexp, and 30 to 38 as a parallel scan (`associative_scan`, or pairs by hand), which does 16 times the products.
    """
    scale = jnp.exp(numpyro.param("log_scale"))
    emission = dist.Normal(numpyro.param("loc"), scale).to_event(1).log_prob(x[:, :, None])  # (B, T, S)
    transition = jnp.exp(log_softmax(numpyro.param("transition")))

    def step(log_p: Array, emission: Array) -> tuple[Array, None]:
        shift = lax.stop_gradient(log_p.max(-1, keepdims=True))
        return jnp.log(jnp.exp(log_p - shift) @ transition) + shift + emission, None

    with numpyro.plate("data", len(x)):
        initial = jnp.broadcast_to(log_softmax(numpyro.param("initial")), emission[:, 0].shape)
        log_p, _ = lax.scan(step, initial, emission.swapaxes(0, 1))
        numpyro.factor("x", logsumexp(log_p, -1))


def hmm_guide(x: Array) -> None:
    """No latent site."""


PEERS = {
    "tiny_vae": dense_vae(1, TraceMeanField_ELBO()),
    "mlp_vae": dense_vae(1, TraceMeanField_ELBO()),
    "conv_vae": vae(conv_encoder, conv_logits, TraceMeanField_ELBO()),
    "iwae": dense_vae(2, RenyiELBO(alpha=0, num_particles=50)),  # its bound is per datum of the plate, as ours is
    "hierarchy": Peer(hierarchy_model, hierarchy_guide, Trace_ELBO()),
    "vade": dense_vae(3, Trace_ELBO(), relu, prior=mixture),
    "m2": Peer(m2_model, m2_guide, TraceMeanField_ELBO()),
    "hmm": Peer(hmm_model, hmm_guide, Trace_ELBO()),
}
