"""Curves against numpy, in every form a profile can write them."""

import copy
import pickle

import numpy as np
import pytest
import torch
from pydantic import BaseModel, ValidationError

from analognoise.devices.curves import Curve
from analognoise.devices.problems import Nested, Problem
from analognoise.errors import ProfileError

X = np.concatenate([[0.0, 1e-9, 1e-7], np.linspace(0.001, 1.3, 997)])
PIECES = [
    {"below": 0.3039, "curve": "log", "slope": -0.012, "intercept": -0.0023, "min": 0.0124, "max": 0.04},
    {"below": 0.7, "curve": "constant", "value": 0.5},
    {"curve": "polynomial", "coefficients": [0.0104, 0.0116, -0.0165], "scale": 2.0},
]


def log(x):
    with np.errstate(divide="ignore"):
        return np.log(x)


def power(x):
    with np.errstate(divide="ignore"):
        return np.minimum(0.0088 * x**-0.65, 0.2)


CASES = {
    "number": (0.25, lambda x: np.full_like(x, 0.25)),
    "whole number": (3, lambda x: np.full_like(x, 3.0)),
    "constant": ({"curve": "constant", "value": 2.0, "max": 1.5}, lambda x: np.full_like(x, 1.5)),
    "one coefficient": (
        {"curve": "polynomial", "coefficients": [1.5], "scale": 2.0},
        lambda x: np.full_like(x, 3.0),
    ),
    "line": ({"curve": "polynomial", "coefficients": [1.5, -1.0]}, lambda x: 1.5 - x),
    "parabola": (
        {"curve": "polynomial", "coefficients": [0.26348, 1.9650, -1.1731]},
        lambda x: np.polyval([-1.1731, 1.9650, 0.26348], x),
    ),
    "degree 4": (
        {
            "curve": "polynomial",
            "coefficients": [0.348, 16.03, -43.853, 45.393, -16.815],
            "min": 1.0,
            "max": 2.0,
        },
        lambda x: np.clip(np.polyval([-16.815, 45.393, -43.853, 16.03, 0.348], x), 1.0, 2.0),
    ),
    "log": (
        {"curve": "log", "slope": -0.0155, "intercept": 0.0244, "min": 0.049, "max": 0.1},
        lambda x: np.clip(-0.0155 * log(x) + 0.0244, 0.049, 0.1),
    ),
    "flat log": ({"curve": "log", "slope": 0.0, "intercept": 0.5}, lambda x: np.full_like(x, 0.5)),
    "power": ({"curve": "power", "coefficient": 0.0088, "exponent": -0.65, "max": 0.2}, power),
    "root": ({"curve": "power", "coefficient": 2.0, "exponent": 0.5, "scale": 0.5}, np.sqrt),
    "piecewise": (
        {"curve": "piecewise", "pieces": PIECES, "scale": 3.0, "max": 0.4},
        lambda x: (
            3.0
            * np.minimum(
                np.select(
                    [x < 0.3039, x < 0.7],
                    [np.clip(-0.012 * log(x) - 0.0023, 0.0124, 0.04), 0.5],
                    2.0 * (0.0104 + 0.0116 * x - 0.0165 * x**2),
                ),
                0.4,
            )
        ),
    ),
    "table": (
        {"curve": "table", "x": [0.1, 0.15, 0.4, 1.0], "y": [1.0, 3.0, 0.0, 2.0]},
        lambda x: np.interp(x, [0.1, 0.15, 0.4, 1.0], [1.0, 3.0, 0.0, 2.0]),
    ),
    "scaled table": (
        {"curve": "table", "x": [0, 1], "y": [1, 3], "scale": 0.1, "max": 2.5},
        lambda x: 0.1 * np.minimum(np.interp(x, [0, 1], [1, 3]), 2.5),
    ),
    "one point": ({"curve": "table", "x": [0.5], "y": [7.0]}, lambda x: np.full_like(x, 7.0)),
    "scale zero": (
        {"curve": "power", "coefficient": 0.0088, "exponent": -0.65, "scale": 0.0},
        lambda x: np.zeros_like(x),
    ),
}


class Holder(BaseModel):
    curve: Curve


def make(value):
    return Holder(curve=value).curve


def problem_of(value):
    with pytest.raises(ValidationError) as caught:
        make(value)
    cause = caught.value.errors()[0]["ctx"]["error"]
    while isinstance(cause, Nested):
        cause = cause.error.errors()[0].get("ctx", {}).get("error", cause.error)
    return cause


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)])
def test_curves_equal_numpy_in_shape_type_and_value(name, dtype, tolerance):
    definition, expected = CASES[name]
    curve, x = make(definition), torch.tensor(X, dtype=dtype)
    places = x.double().numpy()
    before = x.clone()
    result = curve(x)
    assert result.dtype == dtype
    assert result.shape == x.shape
    assert torch.equal(x, before), "the argument was changed"
    assert result.data_ptr() != x.data_ptr()
    # Where terms cancel, the rounding is that of the terms.
    np.testing.assert_allclose(result.double(), expected(places), rtol=tolerance, atol=50 * tolerance)
    np.testing.assert_array_equal(curve(x.view(10, -1).t()), result.view(10, -1).t())
    assert curve(x[0]).shape == ()
    assert curve(x[:0]).shape == (0,)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("g_max", [1.0, 25.0, 1800.0])
def test_a_function_of_conductance_is_the_curve_of_relative_conductance(name, g_max):
    curve = make(CASES[name][0])
    x = torch.tensor(X, dtype=torch.float64)
    result = curve.function(1 / g_max)(x * g_max)
    torch.testing.assert_close(result, curve(x), rtol=1e-12, atol=1e-13)
    assert curve.function(1 / g_max) is curve.function(1 / g_max), "built again at every call"


@pytest.mark.parametrize("name", CASES)
def test_constant_says_whether_the_curve_has_one_value(name):
    curve = make(CASES[name][0])
    values = curve(torch.tensor(X, dtype=torch.float64))
    flat = bool((values == values[0]).all())
    assert curve.constant == (pytest.approx(float(values[0]), rel=1e-15) if flat else None)


def test_a_piece_begins_at_its_limit_and_not_after_it():
    pieces = [{"below": 0.5, "curve": "constant", "value": 1}, {"curve": "constant", "value": 2}]
    curve = make({"curve": "piecewise", "pieces": pieces})
    half = torch.tensor(0.5, dtype=torch.float64)
    below = half.nextafter(torch.tensor(0.0, dtype=torch.float64))
    assert curve(torch.stack([below, half])).tolist() == [1.0, 2.0]


def test_a_table_holds_its_points_exactly():
    x, y = [0.1, 0.3, 0.7, 1.0], [0.3, 0.1, 0.9, 0.2]
    curve = make({"curve": "table", "x": x, "y": y})
    assert curve(torch.tensor(x, dtype=torch.float64)).tolist() == pytest.approx(y, rel=1e-15)


@pytest.mark.parametrize("name", CASES)
def test_curves_are_values(name):
    definition = CASES[name][0]
    curve = make(definition)
    curve(torch.ones(3))
    twin = make(copy.deepcopy(definition))
    assert curve == twin
    assert hash(curve) == hash(twin)
    assert copy.deepcopy(curve) == curve
    assert copy.copy(curve) == curve
    loaded = pickle.loads(pickle.dumps(curve))
    assert loaded == curve
    assert torch.equal(loaded(torch.ones(3)), curve(torch.ones(3)))
    assert make(curve.as_dict()) == curve
    assert (curve.scaled(0.5) == curve) == (curve.scale == 0)
    x = torch.tensor(X[3:], dtype=torch.float64)
    torch.testing.assert_close(curve.scaled(0.5)(x), 0.5 * curve(x), rtol=1e-12, atol=0)
    with pytest.raises(ValidationError):
        curve.scale = 2.0


@pytest.mark.parametrize("factor", [-1.0, float("nan"), float("inf")])
def test_a_curve_is_scaled_by_a_sensible_factor_only(factor):
    with pytest.raises(ProfileError, match="finite and not negative"):
        make(1.0).scaled(factor)


@pytest.mark.parametrize(
    ("definition", "field", "text"),
    [
        (None, "", "is null but must be a number, or a table"),
        (True, "", "is true but must be a number"),
        (float("nan"), "", "is nan but must be a finite number"),
        ({}, "", "does not say which curve it is"),
        ({"curve": "polinomial"}, "curve", "did you mean 'polynomial'?"),
        ({"curve": ["log"]}, "curve", 'is ["log"]'),
        (
            {"curve": "constant", "value": 1.0, "min": 2.0, "max": 1.0},
            "min",
            "is 2 but must not be above max = 1",
        ),
        ({"curve": "table", "x": [0, 0.5, 0.5], "y": [1, 1, 1]}, "x[2]", "is 0.5 but must be above the 0.5"),
        ({"curve": "table", "x": [0, 1], "y": [1, 1, 1]}, "y", "has 3 values but must have as many as x"),
        ({"curve": "table", "csv": "a.csv"}, "csv", "not read from a file"),
        (
            {"curve": "piecewise", "pieces": PIECES[:2]},
            "pieces[1].below",
            "is 0.7 but the last piece must have none",
        ),
        ({"curve": "piecewise", "pieces": PIECES[2:] * 2}, "pieces[0].below", "is missing"),
        (
            {"curve": "piecewise", "pieces": [PIECES[1], PIECES[0], PIECES[2]]},
            "pieces[1].below",
            "is 0.3039 but must be above the 0.7",
        ),
        ({"curve": "piecewise", "pieces": [3]}, "", "is 3 but must be a table with a curve"),
    ],
)
def test_what_is_wrong_with_a_curve_is_said(definition, field, text):
    problem = problem_of(definition)
    assert isinstance(problem, Problem)
    assert problem.field == field
    assert text in problem.text
