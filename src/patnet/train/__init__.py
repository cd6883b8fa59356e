"""Training, evaluation and prediction."""

from .callbacks import Interrupted
from .config import RunConfig, TrainConfig
from .data import ClassificationData, RunData, open_run_data
from .evaluate import evaluate
from .fit import RunResult, fit, train
from .module import RunModule
from .predict import predict
from .run import RunDirectory

__all__ = [
    "ClassificationData",
    "Interrupted",
    "RunConfig",
    "RunData",
    "RunDirectory",
    "RunModule",
    "RunResult",
    "TrainConfig",
    "evaluate",
    "fit",
    "open_run_data",
    "predict",
    "train",
]
