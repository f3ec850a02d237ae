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


if __name__ == "__main__":
    main()
