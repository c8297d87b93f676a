"""One trained network on both simulators: accuracy over time.

The witness is aihwkit alone: its conversion, tiles, noise model, drift compensation and forward. Defect that
is stepped around: it splits the net weight again at drift, so ours is asked to merge pairs in the same way.
docs/aihwkit.md has what it makes without that.
"""

import math

import pytest
import torch
from scipy import stats

import analognoise as an

TIMES = ("1s", "1h", "1d", "1y")
CHIPS = 40


@pytest.fixture(scope="module")
def witness(digits):
    """Accuracies ``[chips, times]`` by aihwkit."""
    pytest.importorskip("aihwkit")
    from aihwkit.inference import GlobalDriftCompensation
    from aihwkit.inference.noise.pcm import PCMLikeNoiseModel
    from aihwkit.nn.conversion import convert_to_analog
    from aihwkit.simulator.configs import TorchInferenceRPUConfig

    model, data = digits
    config = TorchInferenceRPUConfig()
    config.forward.is_perfect = True
    config.noise_model = PCMLikeNoiseModel(g_max=25.0)
    config.drift_compensation = GlobalDriftCompensation()
    config.mapping.weight_scaling_omega = 1.0
    config.mapping.weight_scaling_columnwise = True
    analog = convert_to_analog(model, config).eval()
    found = torch.zeros(CHIPS, len(TIMES), dtype=torch.float64)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        for chip in range(CHIPS):
            analog.program_analog_weights()
            for number, seconds in enumerate(an.units.parse_times(TIMES)):
                analog.drift_analog_weights(seconds)
                right = sum(int((analog(x).argmax(1) == y).sum()) for x, y in data)
                found[chip, number] = right / sum(len(y) for _, y in data)
    return found


def measured(digits, profile, **options):
    model, data = digits
    analog = an.convert_to_analog(model, profile, **options)
    rows = an.evaluate_drift(analog, data, times=TIMES, chips=CHIPS, seed=0).rows
    return torch.tensor([row.value for row in rows], dtype=torch.float64).view(CHIPS, len(TIMES))


def apart(ours, theirs):
    """Differences of the means by time, in units of a simultaneous 95 % interval for all times (Welch)."""
    errors = [sample.var(0) / CHIPS for sample in (ours, theirs)]
    degrees = (errors[0] + errors[1]) ** 2 / ((errors[0] ** 2 + errors[1] ** 2) / (CHIPS - 1))
    limit = torch.tensor([stats.t.ppf(1 - 0.05 / (2 * len(TIMES)), df=float(df)) for df in degrees])
    return (ours.mean(0) - theirs.mean(0)).abs() / (limit * (errors[0] + errors[1]).sqrt())


@pytest.mark.parametrize("engine", ["analognoise", "aihwkit"])
def test_accuracy_over_time_is_that_of_aihwkit(engine, digits, witness):
    ours = measured(digits, "pcm-ibm", collapse_pairs=True, engine=engine)
    assert bool((apart(ours, witness) < 1).all()), (ours.mean(0), witness.mean(0))
    # With an interval of a point or so, at a year too: a statement, not a shrug.
    assert float(stats.t.ppf(0.975, CHIPS - 1)) * float(witness[:, -1].std()) / math.sqrt(CHIPS) < 0.015


def test_another_device_would_be_noticed(digits, witness):
    louder = an.load_profile("pcm-ibm").scaled(programming=1.5)
    assert bool((apart(measured(digits, louder, collapse_pairs=True), witness) > 1).any())
