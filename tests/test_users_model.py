"""A converted model is still the user's model: whatever torch does with a model goes on working."""

import copy
import io
import math
import pickle

import pytest
import torch
import torch._dynamo.testing
from safetensors.torch import load_model, save_model
from torch import nn
from torch.func import functional_call
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import analognoise as an
from analognoise.compiled import eager
from analognoise.conversion import analog_layers
from analognoise.errors import ConversionError
from tests.gloo import in_two_processes


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4 * 36, 5)

    def forward(self, x):
        return self.fc(self.norm(self.conv(x)).relu().flatten(1))


def build(seed=0):
    torch.manual_seed(seed)
    return Net()


def chip(model, profile="pcm-ibm"):
    return an.drift_to_(an.program_(an.convert_to_analog(model, profile)), "1h").eval()


X = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_gradients_in_training_are_the_digital_ones_to_the_last_bit():
    net = build()
    net(X).square().sum().backward()
    expected = {name: parameter.grad.clone() for name, parameter in net.named_parameters()}
    twin = an.convert_to_analog(build(), "pcm-ibm")
    twin(X).square().sum().backward()
    for name, parameter in twin.named_parameters():
        assert torch.equal(parameter.grad, expected[name]), name


def test_files_both_ways(tmp_path):
    net = build()
    analog = chip(net)
    assert list(analog.state_dict()) == list(net.state_dict())
    buffer = io.BytesIO()
    torch.save(analog.state_dict(), buffer)
    buffer.seek(0)
    other = build(1)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    save_model(analog, tmp_path / "model.safetensors")
    third = an.convert_to_analog(build(2), "ideal")
    load_model(third, tmp_path / "model.safetensors")
    for a, b, c in zip(
        net.state_dict().values(), other.state_dict().values(), third.state_dict().values(), strict=True
    ):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_looks_at_a_model_that_overlap_in_threads_leave_compilation_on():
    torch.compiler.reset()
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(build(), backend=counter)
    one, other = eager(), eager()
    one.__enter__()
    other.__enter__()
    one.__exit__(None, None, None)
    compiled(X)
    assert counter.frame_count == 0
    other.__exit__(None, None, None)
    compiled(X)
    assert counter.frame_count == 1
    torch.compiler.reset()


def test_compiled_whole_and_reprogrammed_without_recompiling():
    torch.compiler.reset()
    analog = chip(build())
    counter = torch._dynamo.testing.CompileCounter()
    compiled = torch.compile(analog, fullgraph=True, backend=counter)
    with torch.inference_mode():
        seen = []
        for number in range(7):
            an.drift_to_(an.program_(analog, seed=number), 86400.0 * (number + 1))
            out = compiled(X)
            assert torch.equal(out, analog(X))
            assert all(not torch.equal(out, before) for before in seen)
            seen.append(out)
    assert counter.frame_count == 1
    torch.compiler.reset()


def test_autocast_and_half_precision():
    net = build().eval()
    analog = chip(net, "ideal")
    with torch.autocast("cpu", torch.bfloat16):
        out = analog(X)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out, net(X), rtol=2e-2, atol=2e-2)
    twin = copy.deepcopy(analog).bfloat16()
    assert twin.fc.analog.tiles[0].programmed.dtype == torch.float32
    assert twin(X.bfloat16()).dtype == torch.bfloat16
    torch.testing.assert_close(twin(X.bfloat16()).float(), net(X), rtol=5e-2, atol=5e-2)


def test_checkpointing_functional_call_and_hooks():
    analog = an.convert_to_analog(build(), "pcm-ibm").train()
    plain = analog(X)
    again = checkpoint(analog, X, use_reentrant=False)
    again.sum().backward()
    torch.testing.assert_close(again, plain)
    assert analog.fc.weight.grad is not None
    doubled = {name: 2 * parameter for name, parameter in analog.named_parameters()}
    twin = build()
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.mul_(2)
    torch.testing.assert_close(functional_call(analog, doubled, (X,)), twin(X))
    shapes = []
    analog.fc.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape))
    analog(X)
    assert shapes == [(3, 144)]


def test_transforms_of_torch_func_over_parameters_of_a_chip():
    analog = chip(build())
    expected = analog(X)
    own = {name: parameter.detach() for name, parameter in analog.named_parameters()}
    on_tiles = {"conv.weight", "fc.weight"}

    def run(parameters):
        return functional_call(analog, parameters, (X,))

    gradients = torch.func.grad(lambda parameters: run(parameters).sum())(own)
    assert {name for name, value in gradients.items() if not value.any()} >= on_tiles & set(own)
    assert gradients["fc.bias"].eq(len(X)).all()
    found, tangent = torch.func.jvp(run, (own,), ({n: torch.ones_like(p) for n, p in own.items()},))
    assert torch.equal(found, expected)
    assert tangent.any()
    both = torch.func.vmap(run)({name: torch.stack([p, p]) for name, p in own.items()})
    torch.testing.assert_close(both, torch.stack([expected, expected]))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torch_jit_script_is_refused_in_words():
    analog = chip(nn.Sequential(nn.Linear(4, 2)))
    for part in (analog, analog[0]):
        with pytest.raises(ConversionError, match=r"layer '0' is on tiles, and torch\.jit\.script cannot"):
            torch.jit.script(part)
    x = torch.ones(1, 4)
    assert torch.equal(torch.jit.trace(analog, x)(x), analog(x))
    torch.jit.script(an.convert_to_digital(analog))


def test_an_optimizer_and_a_chip_survive_copies():
    analog = chip(build())
    for twin in (copy.deepcopy(analog), pickle.loads(pickle.dumps(analog))):
        assert torch.equal(twin(X), analog(X))
        assert twin.fc.weight is not analog.fc.weight


def test_lora_adapters_beside_a_layer_on_tiles():
    """A wrapper that calls the layer and adds a low-rank product of its own, as peft does."""

    class Lora(nn.Module):
        def __init__(self, base):
            super().__init__()
            self.base = base
            self.down = nn.Linear(base.in_features, 2, bias=False)
            self.up = nn.Linear(2, base.out_features, bias=False)

        def forward(self, x):
            return self.base(x) + self.up(self.down(x))

    net = build()
    net.fc = Lora(net.fc)
    analog = an.convert_to_analog(
        net, "ideal", filter_fn=lambda module, name: ".down" not in name and ".up" not in name
    )
    assert list(analog_layers(analog)) == ["conv", "fc.base"]
    assert {part.name for part in an.describe(analog).digital} >= {"fc.down", "fc.up"}
    everything = an.convert_to_analog(net, "ideal")
    assert list(analog_layers(everything)) == ["conv", "fc.base", "fc.down", "fc.up"]
    an.program_(everything).eval()
    torch.testing.assert_close(everything(X), net.eval()(X), rtol=1e-5, atol=1e-5)


def _worker(rank, folder):
    analog = an.convert_to_analog(build(), "pcm-ibm")
    parallel = DistributedDataParallel(analog)
    optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(5))[rank * 4 : rank * 4 + 4]
    analog.norm.eval()  # local statistics would differ from those of the joint batch
    parallel(x).square().mean().backward()
    optimizer.step()
    an.drift_to_(an.program_(analog, seed=3), "1d")
    analog.eval()
    torch.save((analog.fc.weight.detach(), parallel(X)), f"{folder}/{rank}.pt")


def test_distributed_data_parallel(tmp_path):
    in_two_processes(_worker, tmp_path)
    (weight, out), (weight1, out1) = (
        torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)
    )
    assert torch.equal(weight, weight1)
    assert torch.equal(out, out1)
    net = build()
    net.norm.eval()
    x = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(5))
    net(x).square().mean().backward()
    torch.testing.assert_close(
        weight, (net.fc.weight - 0.1 * net.fc.weight.grad).detach(), rtol=1e-5, atol=1e-6
    )


def test_a_billion_weights_on_the_meta_device_convert_without_memory():
    with torch.device("meta"):
        net = nn.Sequential(*(nn.Linear(8192, 8192) for _ in range(16)))
    analog = an.convert_to_analog(net, "pcm-ibm")
    text = an.describe(analog)
    assert text.devices == 2 * 16 * 8192**2
    assert text.tiles == 16 * math.ceil(8192 / 512) ** 2
    with pytest.raises(
        an.AnalogNoiseError, match="layer '0' cannot be programmed: its weight is on the 'meta' device"
    ):
        an.program_(analog)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda():
    analog = chip(build().cuda())
    assert analog.fc.analog.weights["weight"].is_cuda
    x = X.cuda()
    out = analog(x)
    an.drift_to_(analog, "1y")
    an.drift_to_(analog, "1h")
    assert torch.equal(analog(x), out)
    moved = copy.deepcopy(analog).cpu()
    torch.testing.assert_close(moved(X), out.cpu(), rtol=1e-3, atol=1e-3)
