"""The example of docs/layers.md runs as it stands there."""

import re
from pathlib import Path

import torch

import analognoise as an
from analognoise.layers.registry import _REGISTERED

PAGE = Path(__file__).parent.parent / "docs" / "layers.md"


def test_the_layer_of_one_s_own(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    names: dict = {"__name__": "page"}
    try:
        exec(blocks[1], names)
        assert "Scaled" in capsys.readouterr().out
        exec(blocks[2], names)
        analog, x = names["analog"].eval(), torch.randn(3, 8)
        before = analog(x)
        an.load_chip(an.program_(analog, seed=5), "chip.safetensors")
        assert torch.equal(analog(x), before)
        ideal = an.program_(an.convert_to_analog(an.convert_to_digital(analog), "ideal")).eval()
        with an.digital(ideal):
            digital = ideal(x)
        torch.testing.assert_close(ideal(x), digital, rtol=1e-5, atol=1e-6)
    finally:
        _REGISTERED.pop(names.get("Scaled"), None)
