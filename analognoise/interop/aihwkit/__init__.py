"""Between analognoise and aihwkit: device profiles as noise models, RPU configurations as profiles, and
aihwkit's tiles as a second engine for the same evaluation.

aihwkit is an optional extra (``pip install 'analognoise[aihwkit]'``) and imported when a function here is
called, not before. docs/aihwkit.md has a table of names and says where the two differ.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from analognoise.devices.catalog import load_profile
from analognoise.errors import MissingPackageError
from analognoise.interop.aihwkit.findings import Import, NotCarriedOver, NotCarriedOverWarning

if TYPE_CHECKING:
    from aihwkit.simulator.configs import InferenceRPUConfig

    from analognoise.crossbar import CrossbarTile
    from analognoise.devices.profile import DeviceProfile
    from analognoise.interop.aihwkit.noise_model import ProfileNoiseModel

__all__ = [
    "Import",
    "NotCarriedOver",
    "NotCarriedOverWarning",
    "from_rpu_config",
    "read_rpu_config",
    "to_noise_model",
    "to_rpu_config",
]


def to_noise_model(
    profile: DeviceProfile | str, *, collapse_pairs: bool = False, layer_max: float | None = None
) -> ProfileNoiseModel:
    """A profile as an aihwkit noise model, for the ``noise_model`` field of any inference RPU configuration.

    It carries its own ``g_converter``, which maps weights as the profile says, and draws from torch's global
    generators as aihwkit's own models do: ``torch.manual_seed`` fixes a chip.

    Args:
        profile: a profile, the name of a shipped one, or the path of a file.
        collapse_pairs: False keeps both devices of every pair from programming to read. True does as
            aihwkit's own noise models do: the pair becomes one net weight after programming and is split
            again at drift, scaled anew to the largest net weight of the tile.
        layer_max: for a profile with ``mapping.scale = "layer"`` the weight that maps to g_max, in the units
            of the tile's weights; without it each tile counts as a layer.

    Raises:
        MissingPackageError: without aihwkit.
        ProfileError: when the profile cannot be loaded.
        ConversionError: when the profile has faults, or ``collapse_pairs`` is asked for a device that is not
            used in pairs.
    """
    return _module("noise_model").ProfileNoiseModel(load_profile(profile), collapse_pairs, layer_max)


def to_rpu_config(
    profile: DeviceProfile | str,
    *,
    compensation: str = "global",
    collapse_pairs: bool = False,
    compiled: bool = False,
) -> InferenceRPUConfig:
    """A profile as a whole aihwkit configuration: noise model, tile size, weight scaling, compensation, and
    the forward pass that its periphery describes (a perfect one without a periphery).

    Args:
        profile: as for :func:`to_noise_model`.
        compensation: ``"global"``, ``"column"`` or ``"none"``.
        collapse_pairs: as for :func:`to_noise_model`.
        compiled: False gives a ``TorchInferenceRPUConfig`` (the tile written in torch), True an
            ``InferenceRPUConfig`` (the compiled tile).

    Raises:
        MissingPackageError: without aihwkit.
        ProfileError: when the profile cannot be loaded.
        ConversionError: when there is no such compensation, aihwkit has nothing like the profile's periphery
            (the torch tile has neither read noise of a product nor IR drop), or as for
            :func:`to_noise_model`.
    """
    make = _module("export_config").make_rpu_config
    return make(load_profile(profile), compensation, collapse_pairs, compiled)


def from_rpu_config(config: InferenceRPUConfig) -> DeviceProfile:
    """The profile that an aihwkit inference configuration describes, with a warning for each part of it that
    a profile cannot hold.

    Drift compensation is no part of a profile: :func:`read_rpu_config` gives it beside the profile, and what
    could not be carried over as a list.

    Raises:
        MissingPackageError: without aihwkit.
        ProfileError: when it is no inference configuration, its noise model is unknown here, or its figures
            make no device.

    Warns:
        NotCarriedOverWarning: one for each field that was left out.
    """
    return _module("import_config").from_rpu_config(config)


def read_rpu_config(config: InferenceRPUConfig) -> Import:
    """Profile, drift compensation and what could not be carried over from an aihwkit configuration.

    Raises:
        MissingPackageError: without aihwkit.
        ProfileError: as for :func:`from_rpu_config`.
    """
    return _module("import_config").read_rpu_config(config)


def make_tile(device: Any, compensation: str, collapse_pairs: bool) -> CrossbarTile:
    """aihwkit's tiles for layers of one device; what ``convert_to_analog(..., engine="aihwkit")`` calls.

    Raises:
        MissingPackageError: without aihwkit.
    """
    return _module("engine").make_tile(device, compensation, collapse_pairs)


def require_aihwkit() -> Any:
    """The package itself.

    Raises:
        MissingPackageError: when it is not installed, or does not load.
    """
    try:
        return import_module("aihwkit")
    except ModuleNotFoundError as error:
        if error.name != "aihwkit":
            raise
        raise MissingPackageError(
            "aihwkit is not installed: install it with pip install 'analognoise[aihwkit]'"
        ) from None
    except ImportError as error:
        raise MissingPackageError(
            f"aihwkit is installed but does not load ({error}): install a version that was built for this "
            "torch"
        ) from error


def _module(name: str) -> Any:
    require_aihwkit()
    return import_module(f"{__name__}.{name}")
