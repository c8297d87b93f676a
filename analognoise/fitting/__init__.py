"""From measurements of one's own device to its profile."""

from analognoise.fitting.fit import fit_profile
from analognoise.fitting.result import Estimate, FittedCurve, Kept, Level, ProfileFit

__all__ = ["Estimate", "FittedCurve", "Kept", "Level", "ProfileFit", "fit_profile"]
