"""The directory of an experiment: options, costs, runs, results."""

import json
from collections.abc import Mapping
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from catalogue import Experiment, find
from config import ExperimentConfig
from cost import create
from paired import difference, holm, mean
from torch import Tensor, nn

from patnet import InputError
from patnet.data import DATA_SETS
from patnet.files import write_text
from patnet.train import TrainConfig
from patnet.train.summary import summarise_run

# Options that a report states; all are in the directory.
STATED = ("data", "model", "model_kwargs", "img_size", "in_chans", "epochs", "batch_size", "lr", "seed", "seeds", "tta")
MOVED = 0.01  # RMS change from which on a component is trained: gates that moved less scale a map by less than 1 %


class Study:
    """An experiment with its options and its directory.

    `NAME.yaml` holds the options, `costs.json` the costs, `runs/CONFIGURATION/seed-N` the runs, `results.json` and
    `analysis.json` all numbers, `report.md` and PNG files the report.
    """

    def __init__(self, name: str, config: ExperimentConfig) -> None:
        self.name, self.experiment, self.config = name, find(name), config
        self.path = Path(config.out or f"runs/experiments/{name}")
        self.options = self.path / f"{name}.yaml"
        self.costs = self.path / "costs.json"
        self.runs = self.path / "runs"
        self.seeds = range(config.seed, config.seed + config.seeds)
        # Arguments of the model by configuration.
        self.networks = {name: {**config.model_kwargs, **c} for name, c in self.experiment.configurations.items()}

    def check(self) -> None:
        """Raises `InputError` if an option cannot be used or a network cannot be built."""
        self.config.check()
        for configuration in self.networks:
            try:
                create(self.config.model, self.networks[configuration])
            except InputError as error:
                raise InputError(f"configuration {configuration}: {error}") from error

    @cached_property
    def shared(self) -> set[str]:
        """The classes of modules that all networks have."""
        networks = (create(self.config.model, model_kwargs) for model_kwargs in self.networks.values())
        return set.intersection(*({type(module).__name__ for module in network.modules()} for network in networks))

    def run(self, configuration: str, seed: int) -> Path:
        """The run directory of a configuration and seed."""
        return self.runs / configuration / f"seed-{seed}"

    def run_config(self, configuration: str, seed: int) -> TrainConfig:
        """The options of a run."""
        options = {f.name: getattr(self.config, f.name) for f in fields(TrainConfig)}
        if self.config.cache_size is None and self.config.data in DATA_SETS:
            options["cache_size"] = max(self.config.img_size, self.config.progressive_size or 0)
        options |= {"model_kwargs": self.measured_networks()[configuration], "seed": seed}
        return TrainConfig(**options | {"out": str(self.run(configuration, seed))})

    def start(self) -> "Study":
        """Make the directory, or join the study in it; options may change until the first run starts.

        Returns:
            The study with as many seeds as it ever had.
        """
        try:
            found = [file for file in self.path.glob("[!.]*") if file != self.runs]
            earlier = [file for file in found if file.suffix == ".yaml"]
            if found and earlier != [self.options]:
                holds = f"the experiment {earlier[0].stem}" if earlier else "no experiment, and is not empty"
                raise InputError(f"{self.path}: holds {holds}; change --out")
            self.runs.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"{self.path}: cannot be written ({error.strerror or error}); change --out") from error
        config = self.config
        if self.options.exists():
            before = ExperimentConfig.read(self.options)
            changed = before.differences(config)
            if changed and any(self.runs.glob("*/*/config.yaml")):
                raise InputError(
                    f"{self.path}: holds this experiment with other options ({'; '.join(changed)}); "
                    "give the same, or change --out"
                )
            if changed:
                self.costs.unlink(missing_ok=True)
            else:
                config = replace(config, seeds=max(config.seeds, before.seeds))
        write_text(self.options, config.to_yaml())
        return Study(self.name, config)

    def read_costs(self) -> dict[str, Any] | None:
        """The content of `costs.json`; None if nothing was measured, `InputError` if the file is damaged."""
        if not self.costs.exists():
            return None
        found = read_json(self.costs, "machine", "networks", "rows")
        if found is None:
            raise InputError(f"{self.costs}: is damaged; remove it to measure again")
        return found

    def measured_networks(self) -> dict[str, dict[str, Any]]:
        """The networks whose costs were measured, which may have searched widths; all others if none were."""
        costs = self.read_costs() or {"networks": {name: {"model_kwargs": c} for name, c in self.networks.items()}}
        return {name: network["model_kwargs"] for name, network in costs["networks"].items()}

    def tested(self, configuration: str, seed: int) -> dict[str, Any] | None:
        """The result of a run's test and how far its components moved; None before the test."""
        return read_json(self.run(configuration, seed) / "tested.json", "split", "images", "top1", "moved")

    def components(self, configuration: str, network: nn.Module) -> dict[str, float]:
        """How far the components of a trained network moved from their initial values, by their class in `patnet.nn`.

        That is the RMS of the changes, without zeros, of the parameter that moved most of those that start from
        constants, such as the gates of `GCT`, because every step changes random weights.
        """
        with torch.random.fork_rng(devices=[]):
            initial = []
            for seed in (0, 1):
                torch.manual_seed(seed)
                fresh = create(self.config.model, self.measured_networks()[configuration])
                initial.append(dict(fresh.named_parameters()))
        changes: dict[tuple[str, str], list[Tensor]] = {}
        ours = [(p, m) for p, m in network.named_modules() if type(m).__module__.startswith("patnet.nn.")]
        for path, module in ours:
            for name, value in module.named_parameters(path, recurse=False):
                if torch.equal(initial[0][name], initial[1][name]):
                    change = (value.cpu() - initial[0][name]).detach()
                    parameter = type(module).__name__, name.rpartition(".")[2]
                    changes.setdefault(parameter, [torch.zeros(1)]).append(change[change != 0])
        moved: dict[str, float] = {}
        for (component, _), parts in changes.items():
            squares = torch.cat(parts).square()
            moved[component] = max(moved.get(component, 0.0), (squares.sum() / max(1, len(squares) - 1)).sqrt().item())
        return moved

    def results(self, command: str = "") -> dict[str, Any]:
        """The content of `results.json`: all numbers, as far as there are any.

        Accuracies and differences are in [0, 1]. A difference is taken over the seeds that both configurations have;
        `p_corrected` is corrected for all differences, and `expected` is what the paper states, if anything. `unmoved`
        names components that only some configurations have, and that training did not move.
        """
        tested = {(name, seed): self.tested(name, seed) or {} for name in self.networks for seed in self.seeds}
        runs = []
        for (name, seed), result in tested.items():
            moved = {c: rms for c, rms in result.get("moved", {}).items() if c not in self.shared and rms < MOVED}
            run: dict[str, Any] = {"configuration": name, "seed": seed, "top1": result.get("top1"), "unmoved": moved}
            if (self.run(name, seed) / "config.yaml").exists():
                summary = summarise_run(self.run(name, seed))
                run |= {"state": summary.state, "epochs": summary.epochs, "training_s": summary.seconds}
            runs.append({"state": "not started", "epochs": 0, "training_s": 0.0} | run)
        accuracies: dict[str, dict[int, float]] = {name: {} for name in self.networks}
        for (name, seed), result in tested.items():
            if result:
                accuracies[name][seed] = result["top1"]
        first = next(filter(None, tested.values()), {})
        return {
            "experiment": self.name,
            "baseline": self.experiment.baseline,
            "command": command,
            "settings": {name: getattr(self.config, name) for name in STATED},
            "configurations": list(self.networks),
            "seeds": list(self.seeds),
            "split": first.get("split"),
            "images": first.get("images"),
            "runs": runs if any(run["state"] != "not started" for run in runs) else [],
            "accuracies": [
                {"configuration": n, **mean(list(a.values()))._asdict()} for n, a in accuracies.items() if a
            ],
            "differences": differences(self.experiment, accuracies),
            "costs": self.read_costs(),
        }


def read_json(file: Path, *keys: str) -> dict[str, Any] | None:
    """The content of a JSON file that has these keys; None if there is no such file, or it is damaged."""
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found if all(key in found for key in keys) else None
    except (OSError, ValueError, TypeError):
        return None


def differences(experiment: Experiment, accuracies: Mapping[str, Mapping[int, float]]) -> list[dict[str, Any]]:
    """Each configuration compared with the baseline, and those of the paper; accuracies by configuration and seed."""
    expected = {(c.configuration, c.baseline): c.expected for c in experiment.comparisons}
    rows = []
    for name, baseline in dict.fromkeys([*((name, experiment.baseline) for name in accuracies), *expected]):
        seeds = [seed for seed in accuracies[name] if seed in accuracies[baseline]]
        if name == baseline or not seeds:
            continue
        first, second = ([accuracies[n][seed] for seed in seeds] for n in (name, baseline))
        pairs = [round(a - b, 6) for a, b in zip(first, second, strict=True)]
        row = {"configuration": name, "baseline": baseline, **difference(first, second)._asdict(), "pairs": pairs}
        rows.append({**row, "expected": expected.get((name, baseline))})
    for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True):
        row["p_corrected"] = p
    return rows
