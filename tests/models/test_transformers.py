"""Language and vision models of the transformers package, from small configs with random weights."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

import analognoise as an
from analognoise.conversion import analog_layers

VOCABULARY, WIDTH, LENGTH = 53, 24, 11
SMALL_TILES = an.load_profile("ideal").replace({"tile.rows": 17, "tile.columns": 13})


def tokens(count: int = 2) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    return {"input_ids": torch.randint(VOCABULARY, (count, LENGTH), generator=generator)}


def pixels() -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(7))}


def gpt2(**changes: Any) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_positions=16, n_embd=WIDTH, n_layer=2, n_head=3, **changes
    )
    return transformers.GPT2LMHeadModel(config)


def bert() -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        num_labels=4,
    )
    return transformers.BertForSequenceClassification(config)


def decoder(config: Any, model: Any) -> nn.Module:
    return model(
        config(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        )
    )


def llama() -> nn.Module:
    return decoder(transformers.LlamaConfig, transformers.LlamaForCausalLM)


def mistral() -> nn.Module:
    return decoder(transformers.MistralConfig, transformers.MistralForCausalLM)


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=40,
        num_labels=4,
    )
    return transformers.ViTForImageClassification(config)


# How many matrices each has: per block, and outside of the blocks (embeddings of tokens are look-ups).
MODELS = {
    "gpt2": (gpt2, tokens, 2 * 4 + 1),
    "bert": (bert, tokens, 2 * 6 + 2),
    "llama": (llama, tokens, 2 * 7 + 1),
    "mistral": (mistral, tokens, 2 * 7 + 1),
    "vit": (vit, pixels, 2 * 6 + 2),
}


def build(name: str) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    make, batch, _ = MODELS[name]
    model = make().eval()
    # As initialised the weights are so small that whole layers hardly matter in float32.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)
    return model, batch()


def on_chip(model: nn.Module, profile: Any) -> nn.Module:
    return an.drift_to_(an.program_(an.convert_to_analog(model, profile), seed=1), "1d").eval()


@pytest.mark.parametrize("name", MODELS)
def test_equals_the_digital_model_on_an_ideal_device(name: str) -> None:
    model, batch = build(name)
    analog = on_chip(model, SMALL_TILES)
    with torch.inference_mode():
        expected, found = model(**batch).logits, analog(**batch).logits
    assert len(analog_layers(analog)) == MODELS[name][2]
    assert all(
        len(layer.analog.placed) > 1 for layer in analog_layers(analog).values() if layer.weight.numel() > 221
    )
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert expected.std() > 0.1
    assert list(analog.state_dict()) == list(model.state_dict())


@pytest.mark.parametrize("name", MODELS)
def test_every_tile_is_read_and_every_device_counted(name: str) -> None:
    model, batch = build(name)
    analog = on_chip(model, "pcm-ibm")
    text = an.describe(analog, batch, forward=lambda net, given: net(**given))
    rows = {row.name: row for row in text.layers}
    layers = analog_layers(analog)
    assert set(rows) == set(layers)
    with torch.inference_mode():
        before = analog(**batch).logits
        assert not torch.equal(before, model(**batch).logits)
        for layer_name, layer in layers.items():
            state = layer.analog
            devices = sum(tile.programmed.numel() for tile in state.tiles)
            assert devices == rows[layer_name].devices == 2 * rows[layer_name].weights
            assert rows[layer_name].weights == sum(target.numel() for target in layer.targets().values())
            assert rows[layer_name].macs > 0
            kept = state.copy_weights()
            for weights in state.weights.values():
                weights.zero_()
            assert not torch.equal(analog(**batch).logits, before), layer_name
            state.put_weights(kept, state.time)
        assert torch.equal(analog(**batch).logits, before)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert (
        sum(row.weights for row in text.layers) + sum(part.parameters for part in text.digital) == parameters
    )
    assert an.find_problems(model) == []


def test_the_tied_head_is_on_tiles_and_the_embedding_named() -> None:
    model, batch = build("gpt2")
    head, table = model.lm_head, model.transformer.wte
    assert head.weight is table.weight
    analog = on_chip(model, "pcm-ibm")
    assert analog.lm_head.weight is analog.transformer.wte.weight is table.weight
    parts = {part.name: part for part in an.describe(analog).digital}
    reason = parts["transformer.wte"].reason
    assert "look-up" in reason
    assert "its weight is that of a layer on tiles" in reason
    assert parts["transformer.wte"].parameters == 0
    assert parts["transformer.wpe"].parameters == 16 * WIDTH
    assert not torch.equal(analog.lm_head.analog.weights["weight"], table.weight)
    # The look-up stays exact although the head's copy of the same weights is noisy.
    assert torch.equal(analog.transformer.wte(batch["input_ids"]), table.weight[batch["input_ids"]])
    optimizer = torch.optim.SGD(analog.parameters(), lr=0.1)
    analog.train()(**batch, labels=batch["input_ids"]).loss.backward()
    optimizer.step()
    assert model.lm_head.weight is model.transformer.wte.weight is analog.lm_head.weight


def test_share_of_the_multiply_accumulates_counted_by_hand() -> None:
    model, batch = build("gpt2")
    samples = len(batch["input_ids"])
    analog = an.convert_to_analog(model, "pcm-ibm")
    text = an.describe(analog, batch, forward=lambda net, given: net(**given))
    positions = samples * LENGTH
    block = positions * WIDTH * WIDTH * (3 + 1 + 4 + 4)
    on_tiles = 2 * block + positions * WIDTH * VOCABULARY
    # Queries with keys, and attention with values: for each of the heads LENGTH² products of its width.
    products = 2 * (2 * samples * LENGTH * LENGTH * WIDTH)
    assert sum(row.macs for row in text.layers) == on_tiles
    assert sum(part.macs for part in text.digital) == products
    assert text.mac_share == on_tiles / (on_tiles + products)
    named = [part for part in text.digital if part.macs]
    assert [part.name for part in named] == ["transformer.h.0.attn", "transformer.h.1.attn"]
    assert all("products of two activations" in part.reason for part in named)


@pytest.mark.parametrize("metric", ["perplexity", "accuracy"])
def test_drift_of_a_language_model_over_a_loader_of_dicts(metric: str) -> None:
    model, _ = build("gpt2")
    ids = tokens(6)["input_ids"]
    labels = torch.cat([ids[:, 1:], torch.full((6, 1), -100)], dim=1)
    data = [{"input_ids": i, "labels": y} for i, y in zip(ids, labels, strict=True)]
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    analog = an.convert_to_analog(model, "pcm-ibm")
    report = an.evaluate_drift(analog, loader, times=["1h", "1y"], chips=3, seed=0, metric=metric)
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[:, :-1].reshape(-1, VOCABULARY)
    if metric == "perplexity":
        expected = math.exp(functional.cross_entropy(logits.double(), ids[:, 1:].flatten()))
    else:
        expected = (logits.argmax(-1) == ids[:, 1:].flatten()).double().mean().item()
    assert report.digital == pytest.approx(expected, rel=1e-5)
    assert report.higher_is_better == (metric == "accuracy")
    assert report.values.shape == (3, 2)
    assert report.describe["not_read"] == []
    ideal = an.evaluate_drift(
        an.convert_to_analog(model, "ideal"), loader, times=["1y"], chips=1, metric=metric
    )
    assert ideal.values[0, 0] == pytest.approx(expected, rel=1e-5)
    chip = on_chip(model, "pcm-ibm")
    an.drift_to_(an.program_(chip, seed=0, chip=2), "1y")
    again = an.evaluate_drift(chip, loader, times=["1y"], chips=3, seed=0, metric=metric)
    assert again.values[:, 0].tolist() == report.values[:, 1].tolist()
    if metric == "perplexity":
        assert len(set(report.values.flatten().tolist())) == 6
        with torch.inference_mode():
            noisy = chip(input_ids=ids).logits[:, :-1].reshape(-1, VOCABULARY).double()
        by_hand = math.exp(functional.cross_entropy(noisy, ids[:, 1:].flatten()))
        assert report.values[2, 1] == pytest.approx(by_hand, rel=1e-5)


def test_generation_with_a_cache_runs_on_the_chip() -> None:
    model, batch = build("gpt2")
    ideal = on_chip(model, "ideal")
    options: Any = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 0}
    with torch.inference_mode():
        expected = model.generate(**batch, **options)
        assert torch.equal(ideal.generate(**batch, **options), expected)
        for weights in ideal.lm_head.analog.weights.values():
            weights.zero_()
        assert not torch.equal(ideal.generate(**batch, **options), expected)
