"""aihwkit configurations, and a network that was trained once."""

import pytest
import torch

import analognoise as an
from analognoise.tasks import get_task


@pytest.fixture
def make_config():
    """A function that makes a configuration for aihwkit's torch tile around a noise model."""
    pytest.importorskip("aihwkit")
    from aihwkit.simulator.configs import TorchInferenceRPUConfig

    def make(noise_model, columnwise=True, size=512):
        config = TorchInferenceRPUConfig()
        config.forward.is_perfect = True
        config.noise_model = noise_model
        config.mapping.weight_scaling_omega = 1.0
        config.mapping.weight_scaling_columnwise = columnwise
        config.mapping.max_input_size = config.mapping.max_output_size = size
        return config

    return make


@pytest.fixture(scope="session")
def digits():
    """The network of the digits task, trained briefly, and its test batches."""
    task = get_task("digits")
    model = task.build(0)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        an.fit(model, task.train(0), recipe="sgd", epochs=12, lr=0.05, seed=0)
    finally:
        torch.set_num_threads(threads)
    return model.eval(), list(task.test)
