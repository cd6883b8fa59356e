"""Training, evaluation and prediction."""

from .config import TrainConfig
from .evaluate import evaluate
from .fit import Fitted, Interrupted, fit
from .predict import predict

__all__ = ["Fitted", "Interrupted", "TrainConfig", "evaluate", "fit", "predict"]
