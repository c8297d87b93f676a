"""A chip whose weights have changed is noticed, however they were written; an error changes nothing."""

from __future__ import annotations

import copy
import pickle
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import analognoise as an
from analognoise.conversion import analog_layers
from analognoise.errors import ChipError, ConversionError, ModelError, NotProgrammedError, StaleChipWarning
from analognoise.layers.written import checksum, checksums

X = torch.ones(2, 4)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def chip(profile: str = "pcm-ibm") -> nn.Module:
    return an.program_(an.convert_to_analog(net(), profile)).eval()


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model[0].weight.mul_(2)


def fused(model: nn.Module) -> None:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    model(X).sum().backward()
    optimizer.step()
    model.eval()


SEEN_IN_A_FORWARD: dict[str, Callable[[nn.Module], object]] = {
    "in place": in_place,
    "new data": lambda model: setattr(model[0].weight, "data", torch.zeros(5, 4)),
    "new Parameter": lambda model: setattr(model[0], "weight", nn.Parameter(torch.zeros(5, 4))),
    "load_state_dict": lambda model: model.load_state_dict({k: v + 1 for k, v in net().state_dict().items()}),
    "vector_to_parameters": lambda model: nn.utils.vector_to_parameters(torch.zeros(43), model.parameters()),
    "fused optimizer": fused,
}


@pytest.mark.parametrize("change", SEEN_IN_A_FORWARD)
@pytest.mark.parametrize(
    "twin", [lambda model: model, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_changed_weights_are_noticed_in_a_forward(
    change: str, twin: Callable[[nn.Module], nn.Module]
) -> None:
    model = twin(chip())
    with quiet():
        model(X)
    SEEN_IN_A_FORWARD[change](model)
    with pytest.warns(StaleChipWarning, match="layer '0': its weights have changed"):
        model(X)
    with quiet():  # once is enough
        model(X)
    with pytest.warns(StaleChipWarning, match="layer '0'"):
        copy.deepcopy(model)(X)
    with quiet():
        an.program_(model)(X)


def test_writes_past_autograd_are_noticed_when_a_chip_is_used() -> None:
    for use in (lambda model: an.drift_to_(model, "1d"), lambda model: model.train().eval()(X)):
        model = chip()
        with quiet():
            use(model)
        model[0].weight.data.mul_(2)
        with pytest.warns(StaleChipWarning, match="layer '0'"):
            use(model)


def test_writing_the_same_values_makes_no_chip_stale() -> None:
    model = chip()
    model.load_state_dict(net().state_dict())
    with quiet():
        model(X)
        an.drift_to_(model, "1d")
        model.double().float()
        model(X.clone())


LOSING: dict[str, Callable[[nn.Module], object]] = {
    "half and back": lambda model: model.half().float(),
    "bfloat16 and back": lambda model: model.bfloat16().to(torch.float32),
    "float64 by way of half": lambda model: model.half().double().float(),
    "to_empty": lambda model: model.to_empty(device="cpu"),
}


@pytest.mark.parametrize("how", LOSING)
def test_weights_that_lose_values_or_precision_make_a_chip_stale(how: str, tmp_path: Path) -> None:
    model = chip()
    LOSING[how](model)
    with pytest.warns(StaleChipWarning, match="layer '0'"):
        model(X)
    with pytest.raises(ChipError, match="have changed since the chip was programmed"):
        an.save_chip(model, tmp_path / "chip")
    model.load_state_dict(net().state_dict())
    an.save_chip(model, tmp_path / "chip")


def test_a_cast_alone_makes_no_chip_stale() -> None:
    for cast in (torch.float16, torch.bfloat16, torch.float64):
        model = chip().to(cast)
        with quiet():
            model(X.to(cast))
            an.drift_to_(model, "1d")
    model = an.program_(chip().half())
    with quiet():  # programmed from half precision
        model.float().half().float()
        model(X)


def test_an_evaluation_leaves_the_watch_on() -> None:
    model = chip()
    with quiet():
        an.evaluate_drift(model, [(X, torch.zeros(2).long())], times=["1s"], chips=2)
        model(X)
    model[0].weight.data.mul_(2)
    with pytest.warns(StaleChipWarning):
        an.drift_to_(model, "1d")


@pytest.mark.parametrize("count", [0, 1, 7, 8192, 1 << 16, (1 << 16) + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_checksum(count: int, dtype: torch.dtype) -> None:
    weights = torch.randn(count, generator=torch.Generator().manual_seed(count)).to(dtype)
    same = checksum(weights)
    assert checksum(weights.clone()) == same
    signs = weights.clone()
    signs[1:5:2] *= -1
    others = [-weights, signs, 2 * weights, weights.flip(0), torch.zeros_like(weights)] if count > 1 else []
    if count:
        one = weights.clone()
        one[count // 2] = torch.nextafter(one[count // 2].float(), torch.tensor(9.0)) + 1
        others.append(one)
        shifted = torch.cat((weights[:1], weights))[1:]  # a view that starts within a word
        assert checksum(shifted) == same
    assert all(checksum(other) != same for other in others)


def test_a_copy_of_a_chip_drifts_by_itself() -> None:
    model = chip()
    before = [layer.analog.copy_weights() for layer in analog_layers(model).values()]
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        an.drift_to_(twin, "1y")
        for layer, other, kept in zip(
            analog_layers(model).values(), analog_layers(twin).values(), before, strict=True
        ):
            assert torch.equal(layer.analog.weights["weight"], kept["weight"])
            assert not torch.equal(other.analog.weights["weight"], kept["weight"])


def test_checksums_together_are_those_of_each():
    draw = torch.Generator().manual_seed(0)
    sizes = (0, 2, 7, 432, 1 << 15, (1 << 16) - 2, 1 << 16, (1 << 16) + 2, 64)
    weights = [torch.randn(size, generator=draw) for size in sizes]
    weights += [weights[4].view(32, -1).t(), weights[3].half(), weights[4].double(), weights[3][::4]]
    assert checksums(weights) == [checksum(tensor) for tensor in weights]


def test_a_compiled_model_is_not_compiled_anew_when_it_is_trained_and_programmed() -> None:
    torch.compiler.reset()
    counter = CompileCounter()
    model = an.program_(an.convert_to_analog(nn.Sequential(nn.Linear(4, 4)), "pcm-ibm")).eval()
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    with torch.no_grad():
        for number in range(8):
            model[0].weight.add_(0.01)
            an.program_(model, seed=number)
            assert torch.equal(compiled(X), model(X))
    assert counter.frame_count == 1
    torch.compiler.reset()


def weights_of(model: nn.Module) -> list[Tensor]:
    return [w.clone() for layer in analog_layers(model).values() for w in layer.analog.weights.values()]


def test_an_error_while_programming_leaves_the_chip_as_it_was() -> None:
    model = chip()
    before = weights_of(model)
    with torch.no_grad():
        model[2].weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match="layer '2'"):
        an.program_(model, seed=1)
    assert all(map(torch.equal, weights_of(model), before))


def test_an_error_while_drifting_leaves_the_chip_as_it_was() -> None:
    model = an.convert_to_analog(net(), "pcm-ibm")
    an.program_(model[0])
    before = weights_of(model)
    with pytest.raises(NotProgrammedError, match="layer '2' cannot drift"):
        an.drift_to_(model, "1y")
    assert all(map(torch.equal, weights_of(model), before))


def test_a_weight_of_another_shape_is_refused() -> None:
    model = chip()
    model[0].weight = nn.Parameter(torch.randn(7, 4))
    words = r"layer '0' .* 'weight' of shape \[7, 4\] is not what went on tiles, .* \[1, 5, 4\]: convert"
    for size in (5, 7):
        model[0].out_features = size
        with pytest.raises(ModelError, match=words):
            an.program_(model)
    with pytest.warns(StaleChipWarning):
        model(X)


def test_a_model_that_shares_moved_weights_says_so() -> None:
    digital = net()
    model = an.program_(an.convert_to_analog(digital, "ideal")).eval()
    digital.double()
    with pytest.raises(
        ConversionError, match=r"torch.float64 on cpu now, but torch.float32 .* move this model"
    ):
        model(X.double())
    torch.testing.assert_close(model.double()(X.double()), digital(X.double()), rtol=1e-5, atol=1e-6)


def test_a_stale_chip_is_not_saved(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = chip()
    model[2].weight.data.mul_(2)
    with pytest.raises(ChipError, match="layer '2' have changed since the chip was programmed"):
        an.save_chip(model, tmp_path / "chip")
    assert list(tmp_path.iterdir()) == []


class Keeping(nn.Linear):
    """Refers to itself, and has its own way of being pickled."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.register_forward_pre_hook(types.MethodType(Keeping.note, self))
        self.calls = 0

    def note(self, module: nn.Module, args: object) -> None:
        self.calls += 1

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "calls": -1}

    def __setstate__(self, state: dict[str, object]) -> None:
        super().__setstate__(state)
        self.restored = True


def test_subclasses_that_refer_to_themselves_can_be_copied() -> None:
    model = an.program_(an.convert_to_analog(nn.Sequential(Keeping(4, 3)), "pcm-ibm")).eval()
    expected = model(X)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert twin[0].restored
        assert twin[0].calls == -1
        assert torch.equal(twin(X), expected)
        assert twin[0].calls == 0
        assert type(twin[0]) is type(model[0])
    assert model[0].calls == 0
    assert type(an.convert_to_digital(model)[0]) is Keeping


@pytest.mark.parametrize("part", ["linear1", "linear2", "self_attn"])
@pytest.mark.parametrize("moved", ["before", "after"])
def test_a_child_that_was_converted_elsewhere_keeps_its_new_parent_out_of_the_fused_path(
    part: str, moved: str
) -> None:
    torch.manual_seed(0)
    new = nn.TransformerEncoder(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), 2).eval()
    old = an.convert_to_analog(nn.TransformerEncoderLayer(6, 2, 8, batch_first=True), "ideal")
    child = getattr(old, part)
    if moved == "after":
        an.program_(old).eval()
    setattr(new.layers[1], part, child)
    if moved == "before":
        an.program_(new).eval()
    x = torch.randn(3, 4, 6)
    for model in (new, copy.deepcopy(new), pickle.loads(pickle.dumps(new))):
        with torch.inference_mode():
            before = model(x)
            for weights in getattr(model.layers[1], part).analog.weights.values():
                weights.zero_()
            assert not torch.equal(model(x), before)
    assert all(not module._forward_pre_hooks for module in an.convert_to_digital(new).modules())


@pytest.mark.parametrize("part", ["linear1", "self_attn"])
def test_a_child_converted_by_itself_keeps_its_parent_out_of_the_fused_path(part: str) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 2).eval()
    x = torch.randn(3, 4, 6)
    padding = torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1], [0, 0, 0, 0]]).bool()
    with torch.inference_mode():
        expected = encoder(x), encoder(x, src_key_padding_mask=padding)
        first = encoder.layers[0]
        setattr(first, part, an.program_(an.convert_to_analog(getattr(first, part), "ideal")).eval())
        found = encoder(x), encoder(x, src_key_padding_mask=padding)
        for a, b in zip(found, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        for weights in getattr(first, part).analog.weights.values():
            weights.zero_()
        assert not torch.equal(encoder(x), found[0])
        assert not torch.equal(encoder(x, src_key_padding_mask=padding), found[1])
    child = an.convert_to_digital(getattr(first, part))
    assert not child._forward_pre_hooks


def test_what_is_no_model() -> None:
    calls = (
        an.find_problems,
        an.program_,
        an.describe,
        an.convert_to_digital,
        lambda m: an.save_chip(m, "x"),
    )
    for call in calls:
        with pytest.raises(ConversionError, match=r"torch.nn.Module.*found int"):
            call(3)
    with pytest.raises(ConversionError, match=r"filter_fn is called as filter_fn\(module, name\)"):
        an.convert_to_analog(net(), "ideal", filter_fn=lambda module: True)  # type: ignore[misc, arg-type]
