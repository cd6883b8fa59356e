"""How long an experiment would take, from a few steps of each configuration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..train.fit import open_run_data
from ..train.plan import plan
from .catalogue import experiment
from .folder import ExperimentFolder
from .run import chosen_configurations, test_split
from .settings import ExperimentConfig, Variant

__all__ = ["ASSUMPTION", "plan_experiment"]

ASSUMPTION = (
    "One process on this machine. Validation and test pictures count as training pictures do, though they take less; "
    "measuring the costs, starting, saving and drawing are left out, and searched widths are not searched here."
)


def plan_experiment(
    config: ExperimentConfig, *, only: Sequence[str] = (), seconds: float = 6.0, console: Console | None = None
) -> dict[str, Any]:
    """Measure a few training steps of each configuration, and what they make of the runs that are still to do.

    Args:
        config: The options.
        only: Configurations; none for all.
        seconds: To measure each for.
        console: Where to show progress.

    Returns:
        `configurations` with images/s, seconds of a run and runs to do; `seconds` in all; and what was assumed.

    Raises:
        InputError: If the options or the data cannot be used.
    """
    console = console or Console()
    config.check()
    split = test_split(config)
    folder = ExperimentFolder(config.out)
    costs = folder.read_costs() if config.out else None
    variants = config.variants()
    if costs:
        variants = {name: Variant(n["model"], n["model_args"]) for name, n in costs["networks"].items()}
    tested = getattr(open_run_data(config.run_config(Variant(config.model, {}), config.seed, Path())), split)
    rows = []
    names = chosen_configurations(config, only)
    for number, name in enumerate(names, start=1):
        console.print(f"measuring {name}, {number} of {len(names)}", highlight=False)
        found = plan(config.run_config(variants[name], config.seed, Path()), seconds=seconds, console=console)
        alone = next(row for row in found["estimates"] if row["devices"] == 1)
        rate = found["phases"][-1]["together"]
        done = sum(bool(config.out and folder.tested(name, seed, split)) for seed in config.all_seeds)
        rows.append(
            {
                "configuration": name,
                "parameters": found["parameters"],
                "images_per_s": rate,
                "seconds_per_run": alone["seconds_as_measured"] + config.views * len(tested) / rate,
                "runs_to_do": config.seeds - done,
            }
        )
    return {
        "experiment": config.experiment,
        "baseline": experiment(config.experiment).baseline,
        "seeds": list(config.all_seeds),
        "epochs": config.epochs,
        "configurations": rows,
        "seconds": sum(row["seconds_per_run"] * row["runs_to_do"] for row in rows),
        "assumption": ASSUMPTION,
    }
