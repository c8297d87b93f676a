"""analognoise: which accuracy a PyTorch model keeps on analog in-memory chips, and how to keep more."""

from analognoise.chip import digital, drift_to_, program_
from analognoise.conversion import convert_to_analog, convert_to_digital
from analognoise.description import describe
from analognoise.devices import DeviceProfile, list_profiles, load_profile
from analognoise.errors import AnalogNoiseError

__version__ = "0.1.0"

__all__ = [
    "AnalogNoiseError",
    "DeviceProfile",
    "convert_to_analog",
    "convert_to_digital",
    "describe",
    "digital",
    "drift_to_",
    "list_profiles",
    "load_profile",
    "program_",
]
