"""Multi-head attention: its projections on tiles, the products of queries, keys and values digital."""

from __future__ import annotations

from typing import Any

from torch import nn

from analognoise.layers.base import AnalogLayer, Geometry
from analognoise.layers.registry import register_analog_layer

_JOINT = ("in_proj_weight",)
_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


@register_analog_layer(nn.MultiheadAttention)
class AnalogMultiheadAttention(AnalogLayer, nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` with in- and out-projections on tiles.

    The output projection is a child that torch never calls, so its weight belongs to this layer's tiles.
    """

    uncalled = ("out_proj",)

    @staticmethod
    def geometries(module: nn.Module) -> dict[str, Geometry]:
        """The joint in-projection (or one each for queries, keys and values) and the out-projection."""
        assert isinstance(module, nn.MultiheadAttention)
        names = _JOINT if module._qkv_same_embed_dim else _SEPARATE
        found = {name: Geometry(1, *module.get_parameter(name).shape) for name in names}
        out = module.out_proj._parameters.get("weight")  # not one where something else computes it
        if out is not None:
            found["out_proj.weight"] = Geometry(1, *out.shape)
        return found

    @classmethod
    def vectors(cls, module: nn.Module, args: tuple[Any, ...], output: Any) -> dict[str, int]:
        """One per query, key or value; the joint projection counts a third of its columns for each."""
        query, key, value = (part[..., 0].numel() for part in args[:3])
        counts = {
            "in_proj_weight": (query + key + value) // 3,
            "q_proj_weight": query,
            "k_proj_weight": key,
            "v_proj_weight": value,
            "out_proj.weight": query,
        }
        return {name: counts[name] for name in cls.geometries(module)}
