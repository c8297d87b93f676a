"""Every error that wrong input can cause, and the words they share.

Each message is one sentence that says what is wrong, where, what was found and what would be right. The
command line prints it as it is and exits with status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass


class AnalogNoiseError(Exception):
    """Base of all errors that analognoise raises about its input."""


class UnitError(AnalogNoiseError, ValueError):
    """A time or a unit that cannot be read."""


@dataclass(frozen=True)
class Finding:
    """One thing wrong in a device profile.

    Attributes:
        path: dotted path of the field, as in ``read.t_read`` or ``programming.sigma.pieces[0].below``; empty
            where it is no field's.
        text: a sentence that names the field, the value found and what would be right.
        line: line of the file, counted from 1; None where the profile did not come from a file, or where
            something as a whole is missing from it.
        column: character in the line, counted from 1; None where ``line`` is.
    """

    path: str
    text: str
    line: int | None = None
    column: int | None = None


class ProfileError(AnalogNoiseError, ValueError):
    """A device profile that does not exist, does not parse, or describes an impossible device.

    Attributes:
        findings: everything that is wrong in the profile, in the order of its file; the message tells one of
            them. Empty where there was no profile to look into.
    """

    def __init__(self, message: str, findings: Iterable[Finding] = ()) -> None:
        super().__init__(message)
        self.findings = tuple(findings)


class ConversionError(AnalogNoiseError, ValueError):
    """A model that cannot be put on tiles as asked."""


class MissingPackageError(AnalogNoiseError, ImportError):
    """A package of an optional extra that is not installed, or does not load."""


class QuantizationError(AnalogNoiseError, ValueError):
    """A model that cannot be quantized as asked, or codes that do not fit it."""


class NotProgrammedError(AnalogNoiseError, RuntimeError):
    """A converted layer was run in eval mode before a chip was programmed."""


class CalibrationError(AnalogNoiseError, RuntimeError):
    """A converter whose range is to come from data has none, or the data give none."""


class StaleChipWarning(UserWarning):
    """Weights have changed since the chip was programmed with them."""


class ChipError(AnalogNoiseError, ValueError):
    """A file with a chip that cannot be read, or is of another model or device."""


class ModelError(AnalogNoiseError, ValueError):
    """Weights that do not fit the model, or that hold NaN or inf."""


class FaultError(AnalogNoiseError, ValueError):
    """Faults of a memory that are impossible, or words and codes that do not fit."""


class NoiseError(AnalogNoiseError, ValueError):
    """A noise on computations that is none, or that the model has no layers for."""


class SparsityError(AnalogNoiseError, ValueError):
    """Activation sparsity that is impossible, or for which a model has no layer."""


class MethodError(AnalogNoiseError, ValueError):
    """An unknown training method or hyperparameter."""


class TrainingError(AnalogNoiseError, RuntimeError):
    """A training run that broke down (the loss became NaN or infinite)."""


class DataError(AnalogNoiseError, ValueError):
    """Data, a loader, a metric or a user's callable that is not what the work needs."""


class ResultsError(AnalogNoiseError, ValueError):
    """An output folder or results file that cannot be used."""


class WriteError(ResultsError):
    """A file that cannot be written: no permission, no room, a read-only file system."""


class WorkerError(AnalogNoiseError, RuntimeError):
    """Work that could not be shared: workers that die or differ, an executor that is shut down, a silent
    scheduler.
    """


def nearest(found: str, known: Iterable[str]) -> str:
    """The clause that suggests the name closest to ``found``, or an empty string when none is close."""
    # Capitals are the likeliest slip of all: they must not hide a name that is otherwise right.
    names = {name.casefold(): name for name in reversed([*known])}
    match = difflib.get_close_matches(found.casefold(), list(names), n=1, cutoff=0.5)
    return f" (did you mean {names[match[0]]!r}?)" if match else ""
