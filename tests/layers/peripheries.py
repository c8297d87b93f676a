"""Layers on tiles with a periphery, for its tests."""

import analognoise as an

IDEAL = an.load_profile("ideal")
FINE = {"bits": 22, "range": "fixed", "bound": 8.0}


def on_tiles(layer, periphery, rows=512, columns=512, profile=IDEAL, **options):
    """A programmed chip of the layer with this periphery."""
    changes = {"periphery": periphery, "tile.rows": rows, "tile.columns": columns}
    return an.program_(an.convert_to_analog(layer, profile.replace(changes), **options).eval())


PERIPHERIES = {
    "fixed": {"dac": FINE},
    "dynamic": {"dac": {"bits": 22}},
    "both": {"dac": FINE, "adc": {"bits": 24, "bound": 100.0}},
    "bit-serial": {"dac": FINE, "adc": {"bits": 24, "bound": 50.0}, "input_mode": "bit-serial"},
}


def in_blocks(monkeypatch, numbers):
    """Products of more than twice so many numbers are computed in blocks of so many."""
    monkeypatch.setattr("analognoise.layers.products._WHOLE", 2 * numbers)
    monkeypatch.setattr("analognoise.layers.products._BLOCK", numbers)
    monkeypatch.setattr("analognoise.layers.products._COLUMNS", 6)
