"""What one memory cell does: its profile, and the physics of programming, drift and read."""

from analognoise.devices.catalog import list_profiles, load_profile
from analognoise.devices.profile import DeviceProfile

__all__ = ["DeviceProfile", "list_profiles", "load_profile"]
