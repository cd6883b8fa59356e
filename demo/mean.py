"""Mean and deviation of the test accuracy of runs that differ in their seed."""

import json
import statistics
import sys
from pathlib import Path


def main(folders: list[str]) -> None:
    """Print a line for each run, and their mean."""
    accuracies = []
    for folder in folders:
        figures = json.loads((Path(folder) / "evaluation-test" / "metrics.json").read_text(encoding="utf-8"))
        accuracies.append(100 * figures["top1"])
        print(f"{folder}: {accuracies[-1]:.2f} % of {figures['pictures']}")
    print(f"mean {statistics.mean(accuracies):.2f} %, deviation {statistics.stdev(accuracies):.2f} %")


if __name__ == "__main__":
    main(sys.argv[1:])
