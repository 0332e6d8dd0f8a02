"""Accuracy of a classifier, of a backbone's nearest neighbours, or of a linear probe."""

from spatial_ensemble.evaluation.knn import knn_accuracy, knn_predict
from spatial_ensemble.evaluation.linear import linear_accuracy, linear_probe
from spatial_ensemble.evaluation.predict import accuracy, predict

__all__ = ["accuracy", "knn_accuracy", "knn_predict", "linear_accuracy", "linear_probe", "predict"]
