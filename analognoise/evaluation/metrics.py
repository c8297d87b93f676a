"""The names of :mod:`analognoise.metrics`, which training and evaluation share."""

from analognoise.metrics import (
    IGNORE_INDEX,
    LABELS,
    METRICS,
    Forward,
    Metric,
    MetricFunction,
    add_up,
    default_forward,
    final_value,
    labels_of,
    logits_of,
)

__all__ = [
    "IGNORE_INDEX",
    "LABELS",
    "METRICS",
    "Forward",
    "Metric",
    "MetricFunction",
    "add_up",
    "default_forward",
    "final_value",
    "labels_of",
    "logits_of",
]
