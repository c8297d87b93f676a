"""Multi-head attention: its projections on tiles, the products of queries, keys and values digital."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from analognoise.layers.base import AnalogLayer
from analognoise.layers.geometry import Geometry
from analognoise.layers.registry import register_analog_layer

_JOINT = ("in_proj_weight",)
_SEPARATE = ("q_proj_weight", "k_proj_weight", "v_proj_weight")


@register_analog_layer(nn.MultiheadAttention)
class AnalogMultiheadAttention(AnalogLayer, nn.MultiheadAttention):
    """``torch.nn.MultiheadAttention`` with in- and out-projections on tiles.

    The output projection is a child that torch never calls, so its weight belongs to this layer's tiles.
    """

    uncalled = ("out_proj",)
    supports_periphery = True

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

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As in the digital layer, every option included."""
        options = (key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal)
        if not self.in_periphery:
            return super().forward(query, key, value, *options)
        return self._through_periphery((query, key, value), *options)

    def _through_periphery(
        self,
        inputs: tuple[Tensor, Tensor, Tensor],
        key_padding_mask: Tensor | None,
        need_weights: bool,
        attn_mask: Tensor | None,
        average_attn_weights: bool,
        is_causal: bool,
    ) -> tuple[Tensor, Tensor | None]:
        """Projections through the periphery, and between them torch's own function, projecting by one."""
        across = self.batch_first and inputs[0].dim() == 3
        query, key, value = (part.transpose(0, 1) if across else part for part in self._projected(inputs))
        one = torch.eye(self.embed_dim, dtype=query.dtype, device=query.device)
        output, weights = functional.multi_head_attention_forward(
            query,
            key,
            value,
            self.embed_dim,
            self.num_heads,
            None,
            self.in_proj_bias,
            self.bias_k,
            self.bias_v,
            self.add_zero_attn,
            self.dropout,
            one,
            None,  # torch's linear takes it, too
            training=self.training,
            key_padding_mask=key_padding_mask,
            need_weights=need_weights,
            attn_mask=attn_mask,
            use_separate_proj_weight=True,
            q_proj_weight=one,
            k_proj_weight=one,
            v_proj_weight=one,
            average_attn_weights=average_attn_weights,
            is_causal=is_causal,
        )
        if "out_proj.weight" in self.analog.parameters:
            output = self.multiply(output, "out_proj.weight")
            if self.out_proj.bias is not None:
                output = output + self.out_proj.bias
        else:
            output = self.out_proj(output)
        return output.transpose(0, 1) if across else output, weights

    def _projected(self, inputs: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
        if not self._qkv_same_embed_dim:
            return [self.multiply(part, name) for part, name in zip(inputs, _SEPARATE, strict=True)]
        query, key, value = inputs
        if query is key and key is value:  # one vector at the array's rows gives all three
            return list(self.multiply(query, _JOINT[0]).chunk(3, dim=-1))
        width = self.embed_dim
        columns = [slice(start * width, (start + 1) * width) for start in range(3)]
        return [self.multiply(part, _JOINT[0], own) for part, own in zip(inputs, columns, strict=True)]
