"""How good a network is: its accuracy, its neighbours', or that of a linear probe."""

from spatial_ensemble.evaluation.accuracy import accuracy
from spatial_ensemble.evaluation.predict import predict

__all__ = ["accuracy", "predict"]
