"""A million devices per target and time: means and standard deviations within 4 standard errors of a witness.

The first witness has closed forms for programming and drift, and a numerical integral over the programmed
conductance for the read; it is written from the published formulas, not from the package. The second is
aihwkit's PCMLikeNoiseModel, used per device.
"""

import math

import numpy as np
import pytest
import torch
from scipy import special, stats

from analognoise.devices import load_profile, physics

DEVICES = 1_000_000
TARGETS = [0.0, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 12.5, 20.0, 25.0]
TIMES = [0.0, 1.0, 3600.0, 86400.0, 31536000.0]
G_MAX, T_0, T_READ = 25.0, 20.0, 250e-9
PCM = load_profile("pcm-ibm")


def clamped_moments(mean, std, order=4):
    """E[max(0, X)^k], k = 1…order, X normal: by parts, I_k = m I_(k-1) + (k-1) s² I_(k-2)."""
    mean, std = np.asarray(mean, dtype=float), np.asarray(std, dtype=float)
    with np.errstate(divide="ignore"):
        ratio = np.where(std > 0, mean / std, np.inf)
    moments = [special.ndtr(ratio), mean * special.ndtr(ratio) + std * stats.norm.pdf(ratio)]
    for power in range(2, order + 1):
        moments.append(mean * moments[-1] + (power - 1) * std**2 * moments[-2])
    return moments[1:]


def folded_transform(mean, std, rate):
    """E[exp(-rate · abs(X))], X normal."""
    up = np.exp(rate * mean + (rate * std) ** 2 / 2) * special.ndtr(-mean / std - rate * std)
    return np.exp(-rate * mean + (rate * std) ** 2 / 2) * special.ndtr(mean / std - rate * std) + up


def sigma_of(target):
    x = target / G_MAX
    return 0.26348 + 1.9650 * x - 1.1731 * x**2


def nu_of(target):
    log = math.log(max(target / G_MAX, 1e-7))
    return min(max(-0.0155 * log + 0.0244, 0.049), 0.1), min(max(-0.0125 * log - 0.0059, 0.008), 0.045)


def programmed_moments(target):
    return clamped_moments(target, sigma_of(target))


def decay_moments(target, seconds):
    """E[((t / t_0)^-nu)^k], k = 1…4; it multiplies what was programmed, as nu depends on the target alone."""
    rate = math.log((seconds + T_0) / T_0)
    return [float(folded_transform(*nu_of(target), power * rate)) for power in (1, 2, 3, 4)]


def read_moments(target, seconds):
    """E[G^k] = E[G_P^k · E[max(0, 1 + r(G_P) N)^k]] · E[decay^k], the first by quadrature over G_P > 0."""
    sigma, t = sigma_of(target), seconds + T_0
    low, high = max(0.0, target - 9 * sigma), target + 9 * sigma
    # Panels that shrink towards zero, where Q is a root, with an edge where Q reaches its limit.
    cut = G_MAX * (0.0088 / 0.2) ** (1 / 0.65)
    edges = np.unique([low, cut, *np.geomspace(1e-4, high, 60), high])
    edges = edges[(edges >= low) & (edges <= high)]
    nodes, weights = np.polynomial.legendre.leggauss(20)
    half = np.diff(edges)[:, None] / 2
    g = (edges[:-1, None] + half * (1 + nodes)).ravel()
    density = (half * weights).ravel() * stats.norm.pdf(g, target, sigma)
    relative = np.minimum(0.0088 / np.maximum((g / G_MAX) ** 0.65, 1e-3), 0.2)
    relative *= math.sqrt(math.log((t + T_READ) / (2 * T_READ)))
    kept = clamped_moments(np.ones_like(g), relative)
    decay = decay_moments(target, seconds)
    return [float(np.sum(density * g**k * kept[k - 1])) * decay[k - 1] for k in (1, 2, 3, 4)]


def check(sample, moments, what):
    """A sample's mean and standard deviation against those of raw moments 1 to 4, in standard errors."""
    first, second, third, fourth = moments
    variance = second - first**2
    central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
    std = math.sqrt(variance)
    values = sample.double()
    in_mean = (float(values.mean()) - first) / (std / math.sqrt(len(values)))
    in_std = (float(values.std()) - std) / (math.sqrt((central - variance**2) / len(values)) / (2 * std))
    assert abs(in_mean) < 4, f"{what}: the mean is off by {in_mean:.1f} standard errors"
    assert abs(in_std) < 4, f"{what}: the standard deviation is off by {in_std:.1f} standard errors"


def sampled(profile, target, seed):
    """Programmed conductances, and (seconds, drifted, read) at every time, of devices with one target."""
    generator = torch.Generator().manual_seed(seed)
    normals = iter(lambda: torch.randn(DEVICES, generator=generator), None)
    targets = torch.full((DEVICES,), target)
    programmed = physics.program(targets, profile, next(normals))
    nu = physics.drift_coefficients(targets, profile, next(normals))
    history = []
    for seconds in TIMES:
        drifted = physics.drift(programmed, nu, seconds, profile)
        history.append((seconds, drifted, physics.read(drifted, programmed, seconds, profile, next(normals))))
    return programmed, history


def check_all(profile, target, seed):
    programmed, history = sampled(profile, target, seed)
    check(programmed, programmed_moments(target), f"programmed to {target}")
    for seconds, drifted, noisy in history:
        moments = [
            a * b for a, b in zip(programmed_moments(target), decay_moments(target, seconds), strict=True)
        ]
        check(drifted, moments, f"drifted from {target} for {seconds:g} s")
        check(noisy, read_moments(target, seconds), f"read at {target} after {seconds:g} s")


def test_the_witness_agrees_with_brute_force():
    """The closed forms against sums over a fine grid in two normal numbers, where every clamp acts."""
    target, seconds = 0.5, 86400.0
    grid = np.linspace(-9, 9, 4001)
    weight = stats.norm.pdf(grid) * (grid[1] - grid[0])
    programmed = np.maximum(0, target + sigma_of(target) * grid)
    mean, std = nu_of(target)
    decay = ((seconds + T_0) / T_0) ** -np.abs(mean + std * grid)
    relative = np.minimum(0.0088 / np.maximum((programmed / G_MAX) ** 0.65, 1e-3), 0.2)
    relative = relative * math.sqrt(math.log((seconds + T_0 + T_READ) / (2 * T_READ)))
    noisy = np.maximum(0, programmed[:, None] * (1 + relative[:, None] * grid))
    for power in range(4):
        brute = np.sum(weight * decay ** (power + 1))
        assert decay_moments(target, seconds)[power] == pytest.approx(brute, rel=1e-5)
        assert programmed_moments(target)[power] == pytest.approx(
            np.sum(weight * programmed ** (power + 1)), rel=1e-5
        )
        brute *= weight @ noisy ** (power + 1) @ weight
        assert read_moments(target, seconds)[power] == pytest.approx(brute, rel=1e-5)


@pytest.mark.parametrize("target", TARGETS)
def test_moments_of_a_million_devices(target):
    check_all(PCM, target, seed=100 + TARGETS.index(target))


@pytest.mark.parametrize("change", [{"programming": 1.01}, {"drift": 1.01}, {"read": 1.01}])
def test_an_error_of_one_percent_would_be_noticed(change):
    with pytest.raises(AssertionError, match="standard errors"):
        check_all(PCM.scaled(**change), 12.5, seed=1)


@pytest.mark.parametrize("target", [0.0, 2.5, 50.0, 100.0])
def test_moments_of_generic_noise(target):
    """N(target, (5 % of g_max)²), negative conductances included."""
    programmed, history = sampled(load_profile("gaussian"), target, seed=7)
    m, s = target, 5.0
    check(programmed, [m, m**2 + s**2, m**3 + 3 * m * s**2, m**4 + 6 * m**2 * s**2 + 3 * s**4], f"{target}")
    for _, drifted, noisy in history:
        assert drifted is programmed
        assert noisy is programmed


@pytest.fixture(scope="module")
def aihwkit():
    """aihwkit's model of the same device, and the module that it draws from."""
    module = pytest.importorskip("aihwkit.inference.noise.pcm")
    return module, module.PCMLikeNoiseModel(g_max=G_MAX)


@pytest.mark.parametrize("seconds", TIMES)
def test_every_device_equals_that_of_aihwkit_for_the_same_normal_numbers(aihwkit, monkeypatch, seconds):
    module, model = aihwkit
    generator = torch.Generator().manual_seed(3)
    target = torch.cat([torch.tensor(TARGETS), 25 * torch.rand(100_000, generator=generator)])
    normals = [torch.randn(len(target), generator=generator) for _ in range(3)]
    left = iter(normals)
    monkeypatch.setattr(module, "randn_like", lambda _: next(left))
    theirs = model.apply_programming_noise_to_conductance(target)
    their_nu = model.generate_drift_coefficients(target)
    their_read = model.apply_drift_noise_to_conductance(theirs, their_nu, seconds)
    ours = physics.program(target, PCM, normals[0])
    nu = physics.drift_coefficients(target, PCM, normals[1])
    read = physics.read(physics.drift(ours, nu, seconds, PCM), ours, seconds, PCM, normals[2])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(nu, their_nu, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(read, their_read, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("target", [0.0, 1.0, 12.5, 25.0])
def test_moments_equal_those_of_devices_drawn_by_aihwkit(aihwkit, target):
    """Both sides sampled with their own numbers; the standard error of the difference holds both."""
    _, model = aihwkit
    programmed, history = sampled(PCM, target, seed=200 + TARGETS.index(target))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(300 + TARGETS.index(target))
        targets = torch.full((DEVICES,), target)
        theirs = model.apply_programming_noise_to_conductance(targets)
        nu = model.generate_drift_coefficients(targets)
        reads = [model.apply_drift_noise_to_conductance(theirs, nu, seconds) for seconds in TIMES]
    pairs = [("programmed", programmed, theirs)]
    pairs += [(f"read after {past[0]:g} s", past[2], read) for past, read in zip(history, reads, strict=True)]
    for what, ours, other in pairs:
        statistics = []
        for sample in (ours.double(), other.double()):
            mean = float(sample.mean())
            squares = (sample - mean).square_()
            variance, fourth = float(squares.mean()), float(squares.square_().mean())
            error = math.sqrt((fourth - variance**2) / DEVICES) / (2 * math.sqrt(variance))
            statistics.append((mean, math.sqrt(variance), math.sqrt(variance / DEVICES), error))
        (mean, std, *errors), (their_mean, their_std, *their_errors) = statistics
        in_mean = (mean - their_mean) / math.hypot(errors[0], their_errors[0])
        in_std = (std - their_std) / math.hypot(errors[1], their_errors[1])
        assert abs(in_mean) < 4, f"{what}, target {target}: means differ by {in_mean:.1f} standard errors"
        assert abs(in_std) < 4, (
            f"{what}, target {target}: standard deviations differ by {in_std:.1f} standard errors"
        )
