"""Measuring a converted model on many chips over drift time, and what can be said from it."""

from analognoise.evaluation.lifetime import Lifetime, lifetime
from analognoise.evaluation.montecarlo import evaluate_drift
from analognoise.evaluation.report import DriftReport, DriftSummary
from analognoise.evaluation.sensitivity import layer_sensitivity
from analognoise.evaluation.sensitivity_report import SensitivityReport, SensitivitySummary
from analognoise.evaluation.statistics import mean_interval, summarise_methods
from analognoise.evaluation.store import ResultStore, Row, read_results, rows_to_frame

__all__ = [
    "DriftReport",
    "DriftSummary",
    "Lifetime",
    "ResultStore",
    "Row",
    "SensitivityReport",
    "SensitivitySummary",
    "evaluate_drift",
    "layer_sensitivity",
    "lifetime",
    "mean_interval",
    "read_results",
    "rows_to_frame",
    "summarise_methods",
]
