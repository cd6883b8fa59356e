"""The paper's claims as experiments: configurations of one network, compared by cost and accuracy."""

from .catalogue import EXPERIMENTS, Configuration, Experiment
from .cost import CostOptions
from .run import run_experiment
from .settings import ExperimentConfig

__all__ = ["EXPERIMENTS", "Configuration", "CostOptions", "Experiment", "ExperimentConfig", "run_experiment"]
