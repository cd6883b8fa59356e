"""Print the test accuracy of runs that differ in their seed, its mean and standard deviation."""

import json
import statistics
import sys
from pathlib import Path


def main(runs: list[str]) -> None:
    """Print one line for each run directory, and their mean."""
    accuracies = []
    for run in runs:
        metrics = json.loads((Path(run) / "evaluation-test" / "metrics.json").read_text(encoding="utf-8"))
        accuracies.append(100 * metrics["top1"])
        print(f"{run}: {accuracies[-1]:.2f} % of {metrics['images']} images")
    print(f"mean {statistics.mean(accuracies):.2f} %, standard deviation {statistics.stdev(accuracies):.2f} %")


if __name__ == "__main__":
    main(sys.argv[1:])
