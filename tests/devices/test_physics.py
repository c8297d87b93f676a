"""Programming, drift and read of single devices: golden values, limits, and what callers may rely on."""

import math
from itertools import pairwise

import pytest
import torch

from analognoise.devices import load_profile, physics

PCM, IDEAL, GAUSSIAN = (load_profile(name) for name in ("pcm-ibm", "ideal", "gaussian"))
TIMES = [0.0, 1.0, 3600.0, 86400.0, 31536000.0]


def draws(*shape, count=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(count)]


def targets(*shape, dtype=torch.float32):
    return 25 * torch.rand(shape, generator=torch.Generator().manual_seed(2), dtype=dtype)


def history(profile, target, normals, seconds):
    """Programmed conductances, exponents, drifted and read conductances."""
    programmed = physics.program(target, profile, normals[0])
    nu = physics.drift_coefficients(target, profile, normals[1])
    drifted = physics.drift(programmed, nu, seconds, profile)
    return programmed, nu, drifted, physics.read(drifted, programmed, seconds, profile, normals[2])


def test_golden_values():
    target = torch.tensor(12.5, dtype=torch.float64)
    assert physics.programming_sigma(target, PCM).item() == pytest.approx(0.953, abs=5e-4)
    mean, std = physics.drift_moments(target, PCM)
    assert (mean.item(), std.item()) == (pytest.approx(0.049, abs=1e-12), pytest.approx(0.008, abs=1e-12))
    drifted = physics.drift(target, mean, 86400.0, PCM)
    assert drifted.item() / 12.5 == pytest.approx(0.664, abs=5e-4)
    one = torch.tensor(1.0, dtype=torch.float64)
    noisy = physics.read(drifted, target, 86400.0, PCM, one)
    assert noisy.item() / drifted.item() - 1 == pytest.approx(0.070, abs=5e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seconds", TIMES)
def test_every_device_follows_the_formulas(dtype, seconds):
    """Against the formulas of REFERENCE.md, device by device, in plain Python."""
    target, normals = targets(200, dtype=dtype), draws(200, dtype=dtype)
    target[:3] = torch.tensor([0.0, 1e-6, 25.0])
    result = history(PCM, target, normals, seconds)
    tolerance = 1e-12 if dtype == torch.float64 else 2e-6
    for index in range(200):
        g, n, m, k = (float(tensor[index]) for tensor in (target, *normals))
        x = g / 25
        programmed = max(0.0, g + (0.26348 + 1.9650 * x - 1.1731 * x * x) * n)
        log = math.log(max(x, 1e-7))
        mean = min(max(-0.0155 * log + 0.0244, 0.049), 0.1)
        std = min(max(-0.0125 * log - 0.0059, 0.008), 0.045)
        nu = abs(mean + std * m)
        t = seconds + 20
        drifted = programmed * (t / 20) ** -nu
        q = min(0.0088 / max((programmed / 25) ** 0.65, 1e-3), 0.2)
        noisy = max(0.0, drifted * (1 + q * math.sqrt(math.log((t + 250e-9) / (2 * 250e-9))) * k))
        for found, expected in zip(result, (programmed, nu, drifted, noisy), strict=True):
            assert float(found[index]) == pytest.approx(expected, rel=20 * tolerance, abs=20 * tolerance)


@pytest.mark.parametrize("shape", [(), (0,), (7,), (3, 4), (2, 3, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "profile", [PCM, IDEAL, GAUSSIAN, PCM.scaled(0, 0, 0)], ids=lambda profile: profile.name
)
def test_shape_and_type_stay_and_no_argument_changes(profile, shape, dtype):
    target, normals = targets(*shape, dtype=dtype), draws(*shape, dtype=dtype)
    before = [tensor.clone() for tensor in (target, *normals)]
    programmed, nu, drifted, noisy = history(profile, target, normals, 3600.0)
    kept = [tensor.clone() for tensor in (programmed, drifted)]
    physics.drift(programmed, nu, 7200.0, profile)
    physics.read(drifted, programmed, 3600.0, profile, normals[2])
    for tensor in (programmed, drifted, noisy, *(() if nu is None else (nu,))):
        assert tensor.shape == shape
        assert tensor.dtype == dtype
    for tensor, copy in zip((target, *normals, programmed, drifted), before + kept, strict=True):
        assert torch.equal(tensor, copy)


def test_absent_effects_return_their_input_and_need_no_numbers():
    target = targets(5)
    assert physics.program(target, IDEAL, None) is target
    assert physics.drift_coefficients(target, IDEAL, None) is None
    assert physics.drift(target, None, 3600.0, IDEAL) is target
    assert physics.read(target, target, 3600.0, IDEAL, None) is target
    assert physics.programming_sigma(target, IDEAL) == 0.0
    assert physics.drift_moments(target, IDEAL) == (0.0, 0.0)
    assert physics.relative_read_sigma(target, IDEAL) == 0.0
    assert physics.read_growth(3600.0, IDEAL) == 0.0


def test_missing_numbers_are_refused_and_not_taken_for_no_noise():
    target = targets(5)
    with pytest.raises(TypeError, match=r"\[programming\]"):
        physics.program(target, PCM, None)
    with pytest.raises(TypeError, match=r"\[drift\]"):
        physics.drift_coefficients(target, PCM, None)
    with pytest.raises(TypeError, match=r"\[drift\]"):
        physics.drift(target, None, 1.0, PCM)
    with pytest.raises(TypeError, match=r"\[read\]"):
        physics.read(target, target, 1.0, PCM, None)


@pytest.mark.parametrize(
    "profile",
    [
        PCM,
        PCM.replace(
            {
                "programming.sigma": 1.0,
                "drift.nu_mean": 0.05,
                "drift.nu_std": 0.01,
                "read.relative_sigma": 0.01,
            }
        ),
        GAUSSIAN,
        IDEAL,
    ],
)
def test_what_is_computed_once_gives_the_same_bits(profile):
    target, normals = targets(50, 20), draws(50, 20)
    programmed, nu, drifted, noisy = history(profile, target, normals, 3600.0)
    sigma = physics.programming_sigma(target, profile)
    moments = physics.drift_moments(target, profile)
    for _ in range(2):
        assert torch.equal(physics.program(target, profile, normals[0], sigma=sigma), programmed)
        again = physics.drift_coefficients(target, profile, normals[1], moments=moments)
        assert again is None if nu is None else torch.equal(again, nu)
    relative = physics.relative_read_sigma(programmed, profile)
    for _ in range(2):
        again = physics.read(drifted, programmed, 3600.0, profile, normals[2], relative_sigma=relative)
        assert torch.equal(again, noisy)


def test_a_mixture_of_constant_and_varying_exponents():
    target, (normal,) = targets(100, dtype=torch.float64), draws(100, count=1, dtype=torch.float64)
    mean, std = physics.drift_moments(target, PCM)
    fixed_std = PCM.replace({"drift.nu_std": 0.01})
    torch.testing.assert_close(
        physics.drift_coefficients(target, fixed_std, normal), (mean + 0.01 * normal).abs()
    )
    fixed_mean = PCM.replace({"drift.nu_mean": 0.06})
    torch.testing.assert_close(
        physics.drift_coefficients(target, fixed_mean, normal), (0.06 + std * normal).abs()
    )
    both = PCM.replace({"drift.nu_std": 0.1, "drift.nu_mean": 0.06})
    torch.testing.assert_close(physics.drift_coefficients(target, both, normal), (0.06 + 0.1 * normal).abs())
    line = PCM.replace({"drift.nu_mean": {"curve": "polynomial", "coefficients": [0.1, -0.05]}})
    expected = (0.1 - 0.05 * target / 25 + std * normal).abs()
    torch.testing.assert_close(physics.drift_coefficients(target, line, normal), expected)


def test_without_noise_every_conductance_stays_at_its_target():
    target, normals = targets(100), draws(100)
    for profile in (
        PCM.scaled(0, 0, 0),
        PCM.replace(
            {"programming.sigma": 0, "drift.nu_mean": 0, "drift.nu_std": 0, "read.relative_sigma": 0}
        ),
    ):
        for seconds in TIMES:
            programmed, nu, drifted, noisy = history(profile, target, normals, seconds)
            assert not nu.any()
            assert torch.equal(programmed, target)
            assert torch.equal(drifted, target)
            assert torch.equal(noisy, target)


def test_scaled_noise_is_proportionally_smaller():
    target, normals = 5 + targets(1000, dtype=torch.float64), draws(1000, dtype=torch.float64)
    half = PCM.scaled(programming=0.5)
    deviation = physics.program(target, PCM, normals[0]) - target
    torch.testing.assert_close(physics.program(target, half, normals[0]) - target, 0.5 * deviation)
    nu = physics.drift_coefficients(target, PCM, normals[1])
    torch.testing.assert_close(physics.drift_coefficients(target, PCM.scaled(drift=3.0), normals[1]), 3 * nu)
    noise = physics.read(target, target, 3600.0, PCM, normals[2]) - target
    half_read = physics.read(target, target, 3600.0, PCM.scaled(read=0.5), normals[2]) - target
    torch.testing.assert_close(half_read, 0.5 * noise)


def test_clamping_is_as_the_profile_says():
    target, normal = torch.zeros(1000), draws(1000)[0]
    assert (physics.program(target, PCM, normal) >= 0).all()
    assert (physics.program(target, PCM, normal) == 0).sum() == (normal <= 0).sum()
    free = PCM.replace({"programming.clamp_at_zero": False})
    torch.testing.assert_close(physics.program(target, free, normal), 0.26348 * normal)
    assert (physics.program(target, GAUSSIAN, normal) < 0).any()
    # With relative noise of 1.2 a factor 1 + noise is often negative.
    loud = PCM.replace({"read.relative_sigma": 0.3})
    ones = torch.ones(1000)
    assert (physics.read(ones, ones, 3600.0, loud, normal) == 0).any()
    unclamped = loud.replace({"read.clamp_at_zero": False})
    assert (physics.read(ones, ones, 3600.0, unclamped, normal) < 0).any()


def test_read_noise_of_negative_conductances_is_that_of_their_size():
    free = PCM.replace({"programming.clamp_at_zero": False})
    programmed, normal = torch.tensor([-3.0, 3.0, 0.0]), torch.ones(3)
    relative = physics.relative_read_sigma(programmed, free)
    assert relative[0] == relative[1]
    assert relative.isfinite().all()
    assert physics.read(programmed, programmed, 1.0, free, normal).isfinite().all()
    assert programmed.tolist() == [-3.0, 3.0, 0.0]


def test_drift_starts_at_the_programmed_value_and_falls():
    target, normals = targets(500), draws(500)
    programmed = physics.program(target, PCM, normals[0])
    nu = physics.drift_coefficients(target, PCM, normals[1])
    assert torch.equal(physics.drift(programmed, nu, 0.0, PCM), programmed)
    times = [physics.drift(programmed, nu, seconds, PCM) for seconds in TIMES]
    for earlier, later in pairwise(times):
        assert (later <= earlier).all()


def test_growth_of_read_noise():
    assert physics.read_growth(0.0, PCM) == pytest.approx(math.sqrt(math.log((20 + 250e-9) / 500e-9)))
    without_drift = PCM.replace({"drift": None})
    assert physics.read_growth(0.0, without_drift) == 0.0
    assert physics.read_growth(1e-7, without_drift) == 0.0, "the logarithm is negative there"
    assert physics.read_growth(250e-9, without_drift) == pytest.approx(0.0, abs=1e-7)
    assert physics.read_growth(80.0, without_drift) == pytest.approx(physics.read_growth(60.0, PCM))


def test_constants_made_in_inference_mode_serve_training_too():
    profile = PCM.replace({"programming.sigma": {"curve": "table", "x": [0, 0.123, 1], "y": [0.1, 0.2, 0.3]}})
    target, (normal,) = targets(5), draws(5, count=1)
    with torch.inference_mode():
        first = physics.program(target, profile, normal).clone()
    noisy = physics.program(target, profile, normal)
    weight = torch.ones(5, requires_grad=True)
    (noisy * weight).sum().backward()
    assert torch.equal(weight.grad, noisy)
    assert torch.equal(noisy, first)
