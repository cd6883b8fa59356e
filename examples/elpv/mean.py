"""Print the test accuracy of runs that differ in their seed, in one view and in eight, its mean and std."""

import json
import statistics
import sys
from pathlib import Path


def main(runs: list[str]) -> None:
    """Print a line for each run directory, and the mean."""
    for title, folder in (("one view", "evaluation-test"), ("TTA, 8 views", "evaluation-test-tta8")):
        accuracies = []
        for run in runs:
            metrics = json.loads((Path(run) / folder / "metrics.json").read_text(encoding="utf-8"))
            accuracies.append(100 * metrics["top1"])
            print(f"{run}, {title}: {accuracies[-1]:.2f} % of {metrics['images']} images")
        print(f"{title}: mean {statistics.mean(accuracies):.2f} %, std {statistics.stdev(accuracies):.2f} %")


if __name__ == "__main__":
    main(sys.argv[1:])
