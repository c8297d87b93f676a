"""Measuring a converted model on many chips over drift time, and what can be said from it."""

from analognoise.evaluation.fault_report import FaultReport, FaultRow, FaultSummary
from analognoise.evaluation.faults import evaluate_faults
from analognoise.evaluation.lifetime import Lifetime, lifetime
from analognoise.evaluation.midpoint import Midpoint, fit_midpoint
from analognoise.evaluation.montecarlo import evaluate_drift
from analognoise.evaluation.noise import evaluate_noise
from analognoise.evaluation.noise_report import NoiseReport, NoiseSummary
from analognoise.evaluation.noise_rows import NoiseRow
from analognoise.evaluation.quantiles import Quantile, Yield
from analognoise.evaluation.report import DriftReport, DriftSummary
from analognoise.evaluation.row_text import read_results
from analognoise.evaluation.rows import Row, rows_to_frame
from analognoise.evaluation.sensitivity import layer_sensitivity
from analognoise.evaluation.sensitivity_report import SensitivityReport, SensitivitySummary
from analognoise.evaluation.statistics import mean_interval, summarise_methods
from analognoise.evaluation.stopping import Precision
from analognoise.evaluation.store import ResultStore

__all__ = [
    "DriftReport",
    "DriftSummary",
    "FaultReport",
    "FaultRow",
    "FaultSummary",
    "Lifetime",
    "Midpoint",
    "NoiseReport",
    "NoiseRow",
    "NoiseSummary",
    "Precision",
    "Quantile",
    "ResultStore",
    "Row",
    "SensitivityReport",
    "SensitivitySummary",
    "Yield",
    "evaluate_drift",
    "evaluate_faults",
    "evaluate_noise",
    "fit_midpoint",
    "layer_sensitivity",
    "lifetime",
    "mean_interval",
    "read_results",
    "rows_to_frame",
    "summarise_methods",
]
