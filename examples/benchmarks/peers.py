"""The benchmark's peers: training steps of the same models in NumPyro and in pythae, by the names of `WORKLOADS`.

    python -m examples.benchmarks.peers        # compares their losses with the hand-written ones, at equal weights

Importing this imports neither; each function raises an ImportError of one line where its library is absent.
"""

import importlib
from collections.abc import Callable
from types import ModuleType


def numpyro_step(name: str) -> Callable[[int], None]:
    """A function that runs n steps of NumPyro's SVI, one jitted call each; the first call compiles."""
    return _module("numpyro").numpyro_step(name)


def numpyro_epoch(name: str) -> Callable[[int], None]:
    """A function that runs n steps of NumPyro's SVI, n a multiple of 100, scanned over 100 batches at a time."""
    return _module("numpyro").numpyro_epoch(name)


def pythae_step(name: str) -> Callable[[int], None] | None:
    """A function that runs n training steps of pythae's model, or None where it has no such model."""
    return _module("pythae").pythae_step(name)


def _module(library: str) -> ModuleType:
    try:
        return importlib.import_module(f"examples.benchmarks.peers_{library}")
    except ImportError as error:
        raise ImportError(f"{library} can't be imported ({error}); pip install 'pyrovae[bench]'") from error


def _agree(name: str, draws: int = 100) -> None:
    """Print the mean loss of each, nats per datum with its standard error, at weights away from the start."""
    import jax
    import torch

    from examples.benchmarks.workloads import WORKLOADS

    torch.manual_seed(0)
    module, loss = WORKLOADS[name].handwritten()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2).add_(0.01 * torch.randn_like(parameter))
    batch = WORKLOADS[name].batch()
    svi, state, x = _module("numpyro").prepared(name, module)
    evaluate = jax.jit(lambda state, key: svi.evaluate(state._replace(rng_key=key), x) / len(x))
    values = {
        "by hand": [float(loss(module, *batch).detach()) for _ in range(draws)],
        "numpyro": [float(evaluate(state, key)) for key in jax.random.split(jax.random.key(0), draws)],
    }
    if name in _module("pythae").MODELS:
        model, inputs = _module("pythae").prepared(WORKLOADS[name], module)
        values["pythae"] = [float(model(inputs).loss.detach()) for _ in range(draws)]
    estimates = {key: torch.tensor(value, dtype=torch.float64) for key, value in values.items()}
    print(name, *(f"  {key} {v.mean():.4f} ± {v.std() / draws**0.5:.4f}" for key, v in estimates.items()))
    hand, numpyro = estimates["by hand"], estimates["numpyro"]
    error = torch.hypot(hand.std(), numpyro.std()) / draws**0.5
    if (hand.mean() - numpyro.mean()).abs() > 4 * error + 1e-5 * hand.mean().abs():
        raise SystemExit(f"{name}: NumPyro computes another loss")


if __name__ == "__main__":
    for each in _module("numpyro").PEERS:
        _agree(each)
