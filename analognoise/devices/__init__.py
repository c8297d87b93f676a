"""What one memory cell does: its profile, and the physics of programming, drift and read."""

from analognoise.devices.catalog import list_profiles, load_profile
from analognoise.devices.law import DeviceLaw
from analognoise.devices.profile import DeviceProfile

__all__ = ["DeviceLaw", "DeviceProfile", "list_profiles", "load_profile"]
