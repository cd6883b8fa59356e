"""What an experiment came to: accuracies, differences, and how sure they are."""

from typing import Any

from .catalogue import experiment
from .folder import ExperimentFolder
from .settings import ExperimentConfig
from .statistics import CONFIDENCE, difference, holm, mean

__all__ = ["summarise"]

# What a reader wants to know of the settings; all of them are in `experiment.yaml`.
SHOWN = ("data", "model", "model_args", "size", "in_chans", "epochs", "batch_size", "lr", "seed", "seeds", "views")


def summarise(folder: ExperimentFolder, split: str | None, command: str = "") -> dict[str, Any]:
    """All numbers of an experiment, as far as there are any.

    Args:
        folder: Of the experiment.
        split: On which runs were tested; None where only costs were measured.
        command: That led here.

    Returns:
        What `results.json` holds. Accuracies and differences are shares in [0, 1]; a difference is a configuration's
        less that of `against` with the same seed, and counts the seeds that both have; `p_corrected` is for all of
        them, and `paper` is what the paper says of the two, if anything.
    """
    config = ExperimentConfig.read(folder.settings)
    described = experiment(config.experiment)
    names = [c.name for c in described.configurations]
    seeds = list(config.all_seeds)
    runs: list[dict[str, Any]] = []
    for name in names if split else []:
        for seed in seeds:
            summary, tested = folder.summary(name, seed), folder.tested(name, seed, split or "")
            state = "finished" if tested else summary.state if summary and summary.epochs else "not begun"
            runs.append(
                {
                    "configuration": name,
                    "seed": seed,
                    "state": "untested" if summary and summary.state == "finished" and not tested else state,
                    "top1": tested["top1"] if tested else None,
                    "epochs": summary.epochs if summary else 0,
                    "training_s": summary.seconds if summary else None,
                    "folder": str(folder.run(name, seed).relative_to(folder.path)),
                }
            )
            if tested:
                runs[-1]["pictures"] = tested["pictures"]
    found: dict[str, dict[int, float]] = {name: {} for name in names}
    for r in runs:
        if r["top1"] is not None:
            found[r["configuration"]][r["seed"]] = r["top1"]
    accuracies = [{"configuration": n, **mean(list(found[n].values()))._asdict()} for n in names if found[n]]
    for row in accuracies:
        del row["p"]  # that an accuracy is not 0 needs no test
    differences: list[dict[str, Any]] = []
    paper = {(c.configuration, c.against): c.paper for c in described.comparisons}
    for name, against in dict.fromkeys([*((name, described.baseline) for name in names), *paper]):
        shared = [seed for seed in found[name] if seed in found[against]]
        if name != against and shared:
            ours, theirs = ([found[each][seed] for seed in shared] for each in (name, against))
            row = {"configuration": name, "against": against, **difference(ours, theirs)._asdict()}
            row["pairs"] = [round(a - b, 6) for a, b in zip(ours, theirs, strict=True)]
            differences.append({**row, "paper": paper.get((name, against))})
    for row, p in zip(differences, holm([row["p"] for row in differences]), strict=True):
        row["p_corrected"] = p
    return {
        "experiment": config.experiment,
        "claim": described.claim,
        "baseline": described.baseline,
        "complete": bool(runs) and all(r["top1"] is not None for r in runs),
        "command": command,
        "settings": {name: getattr(config, name) for name in SHOWN},
        "configurations": names,
        "seeds": seeds,
        "split": split,
        "pictures": next((r["pictures"] for r in runs if r["top1"] is not None), None),
        "confidence": CONFIDENCE,
        "runs": runs,
        "accuracies": accuracies,
        "differences": differences,
        "costs": folder.read_costs(),
        "matched": described.matched,
        "finding": "",
        "analysis": [],
    }
