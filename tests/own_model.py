"""A user's model, data, device and weights, and commands on them, for the tests of the command line."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import torch
from safetensors.torch import save_file

MINE = """
    import torch
    from torch import nn
    from torch.utils.data import DataLoader, TensorDataset

    def build():
        return nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 3))

    def nothing_to_convert():
        return nn.Sequential(nn.Flatten(), nn.LayerNorm(20))

    def broken():
        raise KeyError("no such backbone")

    def no_model():
        return {"layers": 2}

    def _data(seed, samples):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(samples, 20, generator=generator)
        return TensorDataset(x, x[:, :3].argmax(1))

    def train_loader(batch_size=50):
        return DataLoader(_data(0, 600), batch_size=batch_size, shuffle=True)

    def test_loader():
        return DataLoader(_data(1, 200), batch_size=100)

    def shuffled():
        return DataLoader(_data(1, 200), batch_size=100, shuffle=True)

    def wrong_shape():
        return [(torch.zeros(4, 7), torch.zeros(4, dtype=torch.long))]

    def wrong_labels():
        return [(torch.zeros(4, 20), torch.tensor([0, 1, 2, 3]))]

    def no_loader():
        return 42

    def no_batches():
        return [torch.zeros(4, 20)]

    def margin(output, batch):
        return output.max(1).values.sum(), len(output)

    def bad_metric(output, batch):
        return "high"

    def swapped(model, batch):
        return model(-batch[0])
"""
PROFILE = """
    schema = 1
    name = "mine"
    technology = "a device of the user's own"

    [conductance]
    unit = "uS"
    g_max = 50.0
    g_min = 2.0

    [programming]
    sigma = { curve = "polynomial", coefficients = [0.4, 1.2] }

    [drift]
    t_0 = 1.0
    nu_mean = 0.02
    nu_std = { curve = "table", x = [0.0, 0.5, 1.0], y = [0.012, 0.006, 0.005] }

    [tile]
    rows = 16
    columns = 16
"""


def equip(home: Path) -> Path:
    """Give a folder the profile, and weights that fit the model."""
    (home / "my.toml").write_text(dedent(PROFILE))
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
    save_file(model.state_dict(), home / "weights.safetensors")
    return home


def snapshot(folder: Path) -> dict[str, bytes]:
    """All that is in a folder."""
    files = (path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts)
    found = {str(path.relative_to(folder)): path.read_bytes() for path in files}
    found |= {f"{path.relative_to(folder)}/": b"" for path in folder.rglob("*") if path.is_dir()}
    return {name: content for name, content in found.items() if "__pycache__" not in name}


EVALUATE = ["evaluate", "--model", "mine:build", "--data", "mine:test_loader", "--chips", "2", "--out", "out"]
TRAIN = ["train", "--model", "mine:build", "--data", "mine:train_loader", "--epochs", "1", "--out", "out"]
COMPARE = ["compare", "--methods", "sgd", "--epochs", "1", "--chips", "1", "--seeds", "1", "--out", "out"]
