"""Print the README's figures from the JSON in examples/results alone: `python -m examples.figures`."""

import json
import statistics
from collections import defaultdict
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def seeds(folder: str) -> list[dict]:
    return [json.loads(path.read_text()) for path in sorted((RESULTS / folder).glob("*.json"))]


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} nats, {len(values)} seeds"


def milliseconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{1e3 * seconds:.2f}" if seconds < 0.01 else f"{1e3 * seconds:.1f}"


def steps() -> None:
    """The README's table of training steps, in ms."""
    record = json.loads((RESULTS / "benchmarks" / "steps.json").read_text())
    medians = record["summary"]["seconds_per_step"]
    columns = ["stock", "torch eager", "torch compiled", "numpyro epoch", "pythae", "pyrovae eager", "pyrovae compiled"]
    print("|", " | ".join(["step of", *columns, "products"]), "|")
    print("|---" * (len(columns) + 2) + "|")
    for workload, cells in medians.items():
        row = [milliseconds(cells.get(name)) for name in (*columns, "products")]
        print("|", " | ".join([workload.replace("_", " "), *row]), "|")
    print("stock / compiled, geometric mean:", round(record["summary"]["geometric_mean_speedup_over_stock"], 2))
    for target in record["summary"]["targets"]:
        print(target["met"] + ":", target["target"])


def main() -> None:
    print("digits, log-likelihood:", spread([run["log_likelihood"] for run in seeds("digits")]))
    settings = defaultdict(list)
    for run in seeds("mnist_vae"):
        settings[run["epochs"], run["batch_size"]].append(run["nll"])
    for (epochs, batch_size), values in settings.items():
        print(f"MNIST, test NLL, {epochs} epochs, batches of {batch_size}:", spread(values))
    epoch = json.loads((RESULTS / "mnist_epoch.json").read_text())["seconds"]
    medians = ", ".join(f"{name} {statistics.median(values):.1f} s" for name, values in epoch.items())
    print("MNIST, one epoch:", medians)
    steps()


if __name__ == "__main__":
    main()
