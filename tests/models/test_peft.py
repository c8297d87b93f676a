"""LoRA adapters of the peft package: digital beside layers on tiles, or on tiles themselves."""

from __future__ import annotations

import peft
import torch
import transformers
from torch import nn

import analognoise as an
from analognoise.conversion import analog_layers

IDS = torch.randint(53, (2, 9), generator=torch.Generator().manual_seed(0))


def build() -> nn.Module:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=53,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=False,
    )
    adapters = peft.LoraConfig(r=3, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
    model = peft.get_peft_model(transformers.LlamaForCausalLM(config), adapters)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # zero at first: the adapters would do nothing
                parameter.normal_(0, 0.5)
    return model.eval()


def adapterless(module: nn.Module, name: str) -> bool:
    return "lora_" not in name


def test_adapters_stay_digital_or_go_on_tiles_by_choice() -> None:
    model = build()
    assert an.find_problems(model) == []
    some = an.convert_to_analog(model, "pcm-ibm", filter_fn=adapterless)
    everything = an.convert_to_analog(model, "pcm-ibm")
    assert len(analog_layers(some)) == 7 + 1
    adapters = set(analog_layers(everything)) - set(analog_layers(some))
    assert len(adapters) == 4
    assert all("lora_A" in name or "lora_B" in name for name in adapters)
    left = {part.name: part for part in an.describe(some).digital}
    assert all(left[name].reason == "left out of the conversion" for name in adapters)
    assert sum(left[name].parameters for name in adapters) == 3 * (24 + 24) + 3 * (24 + 12)
    with torch.inference_mode():
        expected = model(IDS).logits
        for options in ({"filter_fn": adapterless}, {}):
            ideal = an.program_(an.convert_to_analog(model, "ideal", **options)).eval()
            assert (ideal(IDS).logits - expected).abs().max() <= 1e-5 * expected.abs().max()
        an.program_(everything).eval()
        before = everything(IDS).logits
        for name, layer in analog_layers(everything).items():
            kept = layer.analog.copy_weights()
            layer.analog.weights["weight"].zero_()
            assert not torch.equal(everything(IDS).logits, before), name
            layer.analog.put_weights(kept, None)


def test_only_the_adapters_are_trained_beside_the_tiles() -> None:
    model = build()
    analog = an.convert_to_analog(model, "pcm-ibm", filter_fn=adapterless).train()
    before = {name: parameter.detach().clone() for name, parameter in analog.named_parameters()}
    trained = [parameter for parameter in analog.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    analog(IDS, labels=IDS).loss.backward()
    optimizer.step()
    moved = {name for name, p in analog.named_parameters() if not torch.equal(p, before[name])}
    assert len(moved) == 4
    assert all("lora_" in name for name in moved)


def test_merged_adapters_are_programmed_with_the_layer_that_took_them() -> None:
    model = build()
    with torch.inference_mode():
        expected = model(IDS).logits
    merged = model.merge_and_unload()
    analog = an.program_(an.convert_to_analog(merged, "ideal", strict=True)).eval()
    assert len(analog_layers(analog)) == 7 + 1
    with torch.inference_mode():
        found = analog(IDS).logits
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
