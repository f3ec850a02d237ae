"""Print the README's figures from the JSON in examples/results alone: `python -m examples.figures`."""

import json
import statistics
from pathlib import Path

from examples.reproduce.__main__ import NAMES
from examples.reproduce.tables import table

RESULTS = Path(__file__).parent / "results"


def seeds(folder: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((RESULTS / folder).glob("*.json"))]


def spread(values: list[float], *, unit: str = "nats") -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} {unit}, {len(values)} seeds"


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.2f}" if seconds < 0.01 else f"{1e3 * seconds:.1f}"


def steps() -> None:
    """The README's table of training steps, in ms."""
    records = [json.loads(path.read_text()) for path in sorted((RESULTS / "benchmarks").glob("steps*.json"))]
    medians = {k: v for record in records for k, v in record["summary"]["seconds_per_step"].items()}
    columns = ["stock", "torch eager", "torch compiled", "numpyro epoch", "pythae", "pyrovae eager", "pyrovae compiled"]
    print("|", " | ".join(["step of", *columns, "products"]), "|")
    print("|---" * (len(columns) + 2) + "|")
    for workload, cells in medians.items():
        row = [milliseconds(cells.get(name)) for name in (*columns, "products")]
        print("|", " | ".join([workload.replace("_", " "), *row]), "|")
    for name in ("stock", "torch compiled", "numpyro epoch"):
        ratios = [cells[name] / cells["pyrovae compiled"] for cells in medians.values() if "pyrovae compiled" in cells]
        print(f"{name} / pyrovae compiled, geometric mean of {len(ratios)}: {statistics.geometric_mean(ratios):.2f}")


def main() -> None:
    print("digits, log-likelihood:", spread([run["log_likelihood"] for run in seeds("digits")]))
    inpainting = [run["nll_per_hidden_pixel"] for run in seeds("inpainting")]
    for name in inpainting[0]:
        values = [run[name] for run in inpainting]
        deviation = f"± {statistics.stdev(values):.3f} nats, {len(values)} seeds"
        print(f"digits, a hidden pixel, {name}: {statistics.mean(values):.3f} {deviation}")
    autoencoders = [run for run in seeds("autoencoders") if run["data"] == "digits"]
    for name in autoencoders[0]["errors_at_100_labels"]:
        values = [statistics.mean(run["errors_at_100_labels"][name]) for run in autoencoders]
        print(f"digits, 100 labels, {name}: {spread(values, unit='% errors')}")
    for name in autoencoders[0]["denoising"]:
        for kind in ("plain", "denoising"):
            values = [run["denoising"][name][kind]["cross_entropy"] for run in autoencoders]
            print(f"digits, {name}, {kind}: {spread(values)} of the clean image")
    for run in seeds("semi_supervised"):
        errors = ", ".join(f"{name} {value:.1f} %" for name, value in run["error"].items())
        print(f"digits, {run['labels']} labels, seed {run['seed']}, test errors: {errors}")
    for run in seeds("vq"):
        for name in [key for key in run["mean"] if key.startswith(("perplexity", "bound"))]:
            levels = run["setting"].get("levels", 1)
            values = [one[name] for one in run["seeds"].values()]
            print(f"digits, VQ-VAE of {levels} level(s), {name}: {spread(values, unit='')}")
    discrete = json.loads((RESULTS / "discrete_latents.json").read_text())
    for name in [key for key in discrete if "seeds" in discrete[key]]:
        values = [run["log_likelihood"] for run in discrete[name]["seeds"].values()]
        print(f"digits, categorical latents by {name}, exact log-likelihood: {spread(values)}")
    for run in seeds("chorales"):
        each = ", ".join(f"{one['states']}: {one['test_log_likelihood_per_step']:.3f}" for one in run["all"])
        print(f"chorales, nats per step on the test set by number of states: {each}")
    for run in seeds("clusters"):
        each = ", ".join(f"{key} {value['accuracy']:.0%}" for key, value in run.items() if key.startswith("epoch"))
        print(f"digits, VaDE of {run['num_components']} clusters, accuracy after {each}")
    capacity = json.loads((RESULTS / "capacity.json").read_text())
    for split in ("train", "test"):
        values = [100 * seed["off"][split]["mean"] for seed in capacity["seeds"]]
        print(f"capacity, |KL - C| / C, {split}: {spread(values, unit='%')}")
    for name, found in json.loads((RESULTS / "mixtures.json").read_text())["table"].items():
        print(f"digits in 10 dimensions, {name}: {found['log_likelihood']:.3f} nats")
    epoch = json.loads((RESULTS / "mnist_epoch.json").read_text())["seconds"]
    medians = ", ".join(f"{name} {statistics.median(values):.1f} s" for name, values in epoch.items())
    print("MNIST, one epoch:", medians)
    steps()
    for name, result in NAMES.items():
        print("", table(name, result), sep="\n")


if __name__ == "__main__":
    main()
