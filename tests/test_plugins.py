"""The package of docs/plugins.md, installed from the page: checked, shown, evaluated; numbers by formula."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import analognoise as an
from analognoise.cli import main
from analognoise.crossbar import CrossbarTile
from analognoise.devices import laws
from analognoise.seeds import Stream

ROOT = Path(__file__).parent.parent


def page() -> dict[str, str]:
    """The files that the page shows, by name."""
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    return dict(re.findall(r"\*\*`([^`]+)`\*\*\n\n```\w+\n(.*?)```", text, flags=re.DOTALL))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the package is installed, beside one whose law cannot be imported; profiles in ``profiles``."""
    source, site = (tmp_path_factory.mktemp(name) for name in ("source", "site"))
    files = page()
    assert set(files) == {"pyproject.toml", "charge_trap.py", "charge-trap.toml"}
    for name, content in files.items():
        (source / name).write_text(content, encoding="utf-8")
    offline = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet"]
    command = [sys.executable, "-m", "pip", "install", *offline, "--target", str(site), str(source)]
    subprocess.run(command, check=True, timeout=300)
    broken = site / "broken_laws-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken-laws\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[analognoise.laws]\nbroken = broken_laws:Law\n")
    (site / "broken_laws.py").write_text("import a_package_that_is_not_there\n")
    (site / "profiles").mkdir()
    own = files["charge-trap.toml"]
    (site / "profiles" / "charge-trap.toml").write_text(own)
    (site / "profiles" / "broken.toml").write_text(
        own[: own.index("[law]")].replace('name = "charge-trap"', 'name = "broken"')
        + '[law]\nname = "broken"\n'
    )
    (site / "profiles" / "wrong.toml").write_text(own.replace("lifetime = 3.0e9", "lifetime = -1.0"))
    return site


@pytest.fixture
def profiles(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder with the profiles, in a process that finds the packages."""
    monkeypatch.syspath_prepend(str(installed))
    monkeypatch.chdir(installed / "profiles")
    monkeypatch.setenv("COLUMNS", "150")
    for cached in (laws.load_law, laws.law_of):
        cached.cache_clear()
    yield installed / "profiles"
    for cached in (laws.load_law, laws.law_of):
        cached.cache_clear()
    sys.modules.pop("charge_trap", None)


def test_the_law_of_the_page_gives_its_numbers(profiles: Path) -> None:
    profile = an.load_profile(profiles / "charge-trap.toml")
    assert Path(sys.modules["charge_trap"].__file__ or "").is_relative_to(profiles.parent)
    quiet = profile.replace({"law.depth": 0.0})
    weights = torch.ones(200, 200)  # so that all of G+ hold g_max
    noisy, still = (CrossbarTile(p, "none").program(weights, Stream(0, "")) for p in (profile, quiet))
    month = 2_592_000.0
    error = 4 / math.sqrt(weights.numel())  # of a mean in standard deviations; of a deviation 1/√2 as much
    written = (still.programmed[0] / 10.0).log()
    assert float(written.mean()) == pytest.approx(0.0, abs=0.05 * error)
    assert float(written.std()) == pytest.approx(0.05, abs=0.05 * error / math.sqrt(2))
    # ln(ln(G_P/G)) = β (ln t − ln τ) is normal: mean β ln(t / lifetime), deviation β · spread
    rates = (still.programmed[0] / still.conductances_at(month)[0]).log().log()
    assert float(rates.mean()) == pytest.approx(0.5 * math.log(month / 3.0e9), abs=0.5 * error)
    assert float(rates.std()) == pytest.approx(0.5, abs=0.5 * error / math.sqrt(2))
    levels = noisy.conductances_at(month)[0] / still.conductances_at(month)[0]
    filled = levels < 0.95
    torch.testing.assert_close(levels, torch.where(filled, 0.9, 1.0))
    assert float(filled.float().mean()) == pytest.approx(0.2, abs=error * math.sqrt(0.2 * 0.8))
    assert profile.default_times[-1] == 31_536_000.0


def test_a_model_is_evaluated_with_the_law(profiles: Path) -> None:
    layer = torch.nn.Linear(400, 100, bias=False)
    torch.nn.init.ones_(layer.weight)
    analog = an.convert_to_analog(torch.nn.Sequential(layer), "charge-trap.toml", compensation="none")

    def mean_output(output: torch.Tensor, batch: object) -> tuple[torch.Tensor, int]:
        return output.sum(), output.numel()

    batch = [(torch.full((1, 400), 1 / 400), torch.zeros(1))]
    report = an.evaluate_drift(analog, batch, times=["1y"], chips=3, metric=mean_output)
    # 40 000 weights a chip, each of a deviation below a third of its mean
    assert report.values == pytest.approx(_kept_after_a_year(), rel=4 * 0.3 / math.sqrt(40_000))


def test_check_names_the_broken_package_and_goes_on_with_the_others(
    profiles: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profiles", "check", "broken.toml", "charge-trap.toml", "wrong.toml"]) != 0
    captured = capsys.readouterr()
    text = captured.out + captured.err
    assert "charge-trap.toml: valid, 'charge-trap' with law" in text
    assert re.search(
        r"broken\.toml.*law 'broken' of broken-laws \(broken_laws:Law\) cannot be imported", text
    )
    assert "No module named 'a_package_that_is_not_there'" in text
    assert re.search(r"wrong\.toml.*law 'charge-trap' refuses its parameters.*lifetime is -1\.0", text)


def test_show_and_list_work_beside_a_broken_law(profiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profiles", "show", "charge-trap.toml", "--json"]) == 0
    card = json.loads(capsys.readouterr().out)
    assert card["profile"]["law"]["lifetime"] == 3.0e9
    year = [row for row in card["retention"] if row["time_s"] == 31_536_000.0]
    assert year[-1]["retained"] == pytest.approx(_kept_after_a_year(), rel=0.01)
    assert main(["profiles", "list"]) == 0
    assert "pcm-ibm" in capsys.readouterr().out


def _kept_after_a_year() -> float:
    """Mean of lognormal errors, of exp(−√(t/τ)) over lognormal lifetimes, and of the traps."""
    places = [-6 + 0.05 * step for step in range(241)]
    weights = [0.05 * math.exp(-(x**2) / 2) / math.sqrt(2 * math.pi) for x in places]
    kept = [math.exp(-math.sqrt(31_536_000 / 3.0e9) * math.exp(-x / 2)) for x in places]
    leak = sum(w * k for w, k in zip(weights, kept, strict=True))
    return leak * math.exp(0.05**2 / 2) * (1 - 0.2 * 0.1)
