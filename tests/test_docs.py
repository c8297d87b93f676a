"""What the documentation says in numbers is what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from scipy import stats

from analognoise.devices import load_profile, physics
from analognoise.training.recipes import METHODS
from analognoise.units import parse_time
from benchmarks.scaling.__main__ import operators_per_tile

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(DOCS.glob("*.md"))


def table(page: str, heading: str) -> list[list[str]]:
    """Cells of the table whose first heading is ``heading``, without the heading and the rule."""
    lines = (DOCS / page).read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(f"| {heading} |"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    return rows


def test_method_table_is_the_one_in_the_code() -> None:
    found: dict[str, dict[str, tuple[str, str]]] = {}
    costs, sources = {}, {}
    for name, parameter, default, searched, cost, source in table("methods.md", "method"):
        if name:
            current, costs[name] = name, int(cost)
            found[name] = {}
        if parameter:
            found[current][parameter] = (default, searched)
            sources[current, parameter] = source
    named_elsewhere = {"samson"}
    assert set(found) == set(METHODS) - named_elsewhere
    for name, parameters in found.items():
        method = METHODS[name]
        assert costs[name] == method.gradients_per_step
        assert set(parameters) == set(method.hyperparameters)
        for parameter, (default, searched) in parameters.items():
            item = method.hyperparameters[parameter]
            if isinstance(item.default, str):
                assert default == item.default
            else:
                assert (parse_time(default) if item.is_time else float(default)) == item.default
            assert searched.split(";")[0] == range_text(item.search)
            own = sources[name, parameter] == "own choice"
            assert own == (item.source == "analognoise's own choice"), (name, parameter, item.source)
            assert own or item.source.startswith(sources[name, parameter])
    special = METHODS["samson-2"].search_weights_only["rho"]
    assert found["samson-2"]["rho"][1].endswith(f"with `perturb=weights` {range_text(special)}")


def range_text(search: object) -> str:
    if search is None:
        return ""
    return f"{search.low:g} – {search.high:g}{' log' * search.log}"  # type: ignore[attr-defined]


def test_the_example_device_of_the_physics_page() -> None:
    text = (DOCS / "physics.md").read_text(encoding="utf-8").replace("\n", " ")
    sigma, kept, nu, read = re.search(  # type: ignore[union-attr]
        r"to 12\.5 µS: σ = ([\d.]+) µS; after one day it has kept ([\d.]+) % \(ν = ([\d.]+)\), "
        r"with read noise of ([\d.]+) %",
        text,
    ).groups()
    profile = load_profile("pcm-ibm")
    target, zero = torch.tensor([12.5], dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    assert f"{float(physics.programming_sigma(target, profile)):.3f}" == sigma
    exponent = physics.drift_coefficients(target, profile, zero)
    assert exponent is not None
    assert f"{float(exponent):.3f}" == nu
    drifted = physics.drift(target, exponent, 86400.0, profile)
    assert f"{100 * float(drifted) / 12.5:.1f}" == kept
    one_sigma = physics.read(drifted, target, 86400.0, profile, zero + 1)
    assert f"{100 * float(one_sigma / drifted - 1):.1f}" == read


def test_constants_of_the_physics_page_are_the_profile_s() -> None:
    text = (DOCS / "physics.md").read_text(encoding="utf-8").replace("−", "-").replace("- ", "-")
    profile = load_profile("pcm-ibm").as_dict()
    numbers = [*profile["programming"]["sigma"]["coefficients"]]
    for curve in (profile["drift"]["nu_mean"], profile["drift"]["nu_std"]):
        numbers += [curve["slope"], curve["intercept"], curve["min"], curve["max"]]
    numbers += [profile["read"]["relative_sigma"][name] for name in ("coefficient", "exponent", "max")]
    for number in numbers:
        assert re.search(rf"(?<![\d.]){re.escape(f'{number:g}')}0?(?!\d)", text), number
    assert profile["drift"]["t_0"] == 20
    assert profile["read"]["t_read"] == pytest.approx(250e-9)


def test_student_s_factors_and_the_sampling_error_of_the_statistics_page() -> None:
    text = (DOCS / "statistics.md").read_text(encoding="utf-8").replace("\n", " ")
    factors = re.search(r"t is ([\d.]+) for two seeds, ([\d.]+) for three, ([\d.]+) for ten", text)
    assert factors is not None
    for factor, n in zip(factors.groups(), (2, 3, 10), strict=True):
        assert f"{stats.t.ppf(0.975, n - 1):.1f}" == factor
    assert f"{100 * (0.95 * 0.05 / 360) ** 0.5:.1f} percentage points for 95 % on 360 images" in text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_seven_billion_parameters_cost_what_the_assumptions_make_of_them() -> None:
    page = (DOCS / "scaling.md").read_text(encoding="utf-8")
    weights, tiles, chips, times, launch = 7e9, 7e9 / 512**2, 25, 5, 5e-6
    operators = {name: round(count) for name, count in operators_per_tile().items()}
    assert round(tiles, -2) == 26_700
    one_pass = 2 * weights * 330_000 / 400e12
    parts = {
        "passes": (one_pass, times),
        "programming": (tiles * operators["programming"] * launch, 1),
        "five drift times": (tiles * operators["a drift time"] * launch * times, 1),
    }
    found = {name: cells for name, *cells in table("scaling.md", "part")}
    for name, (seconds, each) in parts.items():
        how, own, all_chips = found[name]
        assert float(own.removeprefix("5 × ").removesuffix(" s")) == pytest.approx(seconds, rel=0.05), name
        assert float(all_chips.removesuffix(" min")) == pytest.approx(seconds * each * chips / 60, abs=0.51)
        if name != "passes":
            count = operators["programming" if name == "programming" else "a drift time"]
            assert how.startswith(f"26,700 tiles × {count} operators × 5 µs")
    whole = sum(seconds * each for seconds, each in parts.values())
    assert found["whole"][1:] == [f"{whole / 60:.1f} min", f"about {whole * chips / 60:.0f} min"]
    assert f"{whole * chips / 60:.0f} / N minutes, down to {whole / 60:.1f} minutes on 25" in page
    rows = table("scaling.md", "what")
    program, drift, _, one = (float(cells[3].split()[0]) for cells in rows)  # ns per weight
    devices, vectors = weights * chips * 1e-9, 330_000 / 256
    assert f"the 25 chips in {devices * program / 60:.0f} minutes" in page
    assert f"to all times in {devices * times * drift / 3600:.0f} hours" in page
    assert f"reach, {weights * vectors * one * 1e-9 / 3600:.0f} hours each" in page
