"""``analognoise profiles new, check, show, schema`` as their user sees them."""

from __future__ import annotations

import re
import tomllib
from functools import partial
from importlib.resources import files
from pathlib import Path

import pytest

from analognoise.devices import DeviceProfile, list_profiles, load_profile
from analognoise.devices.schema import profile_schema
from tests.command import Run

START = files("analognoise.devices").joinpath("new_profile.toml").read_text(encoding="utf-8")
BAD = """\
schema = 1
name = "bad"
[conductance]
unit = "uS"
gmax = 25.0
[drift]
t_0 = "20s"
nu_mean = 0.05
nu_std = 0.01
"""


@pytest.fixture
def run(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """``analognoise profiles``, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return partial(run, "profiles")


# new


def test_a_new_profile_is_valid_as_it_stands(run: Run) -> None:
    result = run("new", "my oxide.toml")
    assert (result.status, result.err) == (0, "")
    assert "my oxide.toml: written" in result.out
    assert load_profile("my oxide.toml").name == "my-oxide"
    assert run("check", "my oxide.toml").status == 0
    assert run("show", "my oxide.toml").status == 0
    assert run("new", "new.toml", "--json").json == {"file": "new.toml", "name": "new"}


def test_a_new_profile_overwrites_nothing_unasked(run: Run, tmp_path: Path) -> None:
    path = tmp_path / "my.toml"
    path.write_text("precious")
    result = run("new", "my.toml")
    assert result.status == 2
    assert result.err == "error: my.toml exists already: name another file, or replace it with --force\n"
    assert path.read_text() == "precious"
    assert run("new", "my.toml", "--force").status == 0
    assert load_profile(path).name == "my"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("my", "must end in .toml, found 'my': write my.toml"),
        ("my.json", "must end in .toml"),
        ("nowhere/my.toml", "the folder nowhere does not exist"),
        ("folder.toml", "folder.toml is a folder"),
    ],
)
def test_a_new_profile_needs_a_file_that_can_be_written(
    run: Run, tmp_path: Path, name: str, words: str
) -> None:
    (tmp_path / "folder.toml").mkdir()
    result = run("new", name)
    assert (result.status, result.out) == (2, "")
    assert words in result.err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.toml"]


def test_the_starting_file_names_every_field_of_every_section() -> None:
    schema = profile_schema()
    on = re.sub(r"(?m)^#(?=[a-z\[])", "", START)
    parts = re.split(r"(?m)^(?=\[)", on)
    found = {
        section[1 : section.index("]")]: set(re.findall(r"(?m)^(\w+) =", section)) for section in parts[1:]
    }
    found[""] = set(re.findall(r"(?m)^(\w+) =", parts[0]))
    expected: dict[str, set[str]] = {"": set()}
    for name, field in schema["properties"].items():
        reference = field.get("$ref") or field.get("allOf", [{}])[0].get("$ref")
        if reference is None:
            expected[""].add(name)
        else:
            expected[name] = set(schema["definitions"][reference.rsplit("/")[-1]]["properties"])
    assert found == expected
    for line in on.splitlines():
        assert len(line) <= 132
        if re.match(r"\w+ = ", line) and not line.startswith(("clamp_at_zero", "doi")):
            assert "#" in line, f"no comment: {line}"
    for kind in schema["definitions"]["Curve"]["anyOf"][1:]:
        curve = schema["definitions"][kind["$ref"].rsplit("/")[-1]]["properties"]["curve"]["const"]
        assert f'"{curve}"' in START or curve == "constant"


def sections(text: str) -> dict[str, str]:
    """The sections of a text by name, each with its heading; what is before the first under ""."""
    parts = re.split(r"(?m)^(?=#?\[)", text)
    return {"": parts[0]} | {re.sub(r"^#?\[(\w+).*", r"\1", part, flags=re.S): part for part in parts[1:]}


def test_what_is_switched_off_in_the_starting_file_is_valid_when_switched_on() -> None:
    parts = sections(START)
    on = {name: re.sub(r"(?m)^#(?=[a-z\[])", "", part) for name, part in parts.items()}
    own = "".join(parts.values())
    assert DeviceProfile.from_dict(tomllib.loads(own)).drift is not None

    def profile(**changes: str) -> DeviceProfile:
        return DeviceProfile.from_dict(tomllib.loads("".join({**parts, **changes}.values())))

    source = profile(source=on["source"], validity=on["validity"], conductance=on["conductance"])
    assert source.validity is not None
    assert source.source is not None
    relaxing = profile(drift="", relaxation=on["relaxation"])
    assert relaxing.relaxation is not None
    aging = profile(drift="", programming="", retention=on["retention"])
    assert aging.retention is not None
    surrounded = profile(periphery=on["periphery"])
    assert surrounded.surroundings is not None
    broken = profile(faults=re.sub("(?m)^map.*", "", on["faults"]))
    assert broken.faults is not None
    # Values that are switched off are those that hold without them.
    for name, change in (
        ("mapping", re.sub("(?m)^clip_percentile.*", "", on["mapping"])),
        ("read", re.sub("(?m)^(relative_)?sigma.*", "", on["read"]) + "relative_sigma = 0.1\n"),
    ):
        assert profile(**{name: change}).as_dict()[name]
    flat = re.sub("(?m)^relative_sigma.*", "", on["read"])
    assert profile(read=flat).read.sigma is not None


# check


def test_check_says_everything_at_once_with_lines(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(BAD)
    result = run("check", "bad.toml", "ideal", "nowhere.toml")
    assert result.status == 2
    assert result.out.splitlines() == [
        "bad.toml:5:1: unknown field conductance.gmax = 25.0 (did you mean 'g_max'?)",
        'bad.toml:7:7: drift.t_0 is "20s" but must be a number '
        "(seconds from programming to the first read-out)",
        f"ideal: valid, 'ideal' with no noise (digest {load_profile('ideal').digest[:12]})",
        "nowhere.toml: profile file nowhere.toml does not exist",
    ]
    assert result.err == "error: 2 of 3 profiles are not valid: 3 problems\n"


def test_check_tells_machines_the_same(run: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text(BAD.replace("0.05", "0,05"))
    result = run("check", "bad.toml", "pcm-ibm", "--json")
    assert result.status == 2
    assert result.err == "error: 1 of 2 profiles is not valid: 3 problems\n"
    bad, good = result.json["profiles"]
    assert [(item["line"], item["column"], item["path"]) for item in bad["problems"]] == [
        (5, 1, "conductance.gmax"),
        (7, 7, "drift.t_0"),
        (8, 12, ""),
    ]
    assert "numbers have a point, as in 0.5" in bad["problems"][2]["text"]
    assert (bad["file"], bad["valid"]) == ("bad.toml", False)
    assert (good["valid"], good["name"], good["problems"]) == (True, "pcm-ibm", [])
    assert good["effects"] == ["programming", "drift", "read"]
    assert good["digest"] == load_profile("pcm-ibm").digest


def test_check_of_valid_profiles(run: Run) -> None:
    result = run("check", *list_profiles())
    assert (result.status, result.err) == (0, "")
    assert len(result.out.splitlines()) == len(list_profiles())
    assert "valid, 'pcm-ibm' with programming, drift and read" in result.out


# show


def test_show_says_what_a_device_does(run: Run) -> None:
    """The golden values of the published model at half of g_max, after a day."""
    found = run("show", "pcm-ibm", "--json").json
    assert [row["target"] for row in found["behaviour"]] == [0.0, 6.25, 12.5, 18.75, 25.0]
    row = found["behaviour"][2]
    assert row["programmed_std"] == pytest.approx(0.953, abs=5e-4)
    spread = (row["drift_coefficient_mean"], row["drift_coefficient_std"])
    assert spread == pytest.approx((0.049, 0.008), abs=1e-4)
    later = {(row["target"], row["time_s"]): row for row in found["retention"]}
    assert {time for _, time in later} == {1.0, 3600.0, 86400.0, 2592000.0, 31536000.0, 315360000.0}
    day = later[12.5, 86400.0]
    assert day["retained"] == pytest.approx(0.664, abs=2e-3)
    assert day["read_noise"] / day["mean"] == pytest.approx(0.070, abs=1e-3)
    assert later[0.0, 1.0]["retained"] is None
    assert found["valid_times_s"] == [0.0, None]
    text = run("show", "pcm-ibm").out
    assert "10.1109/ICECS46596.2019.8964852" in text
    assert "10 years" in text
    assert re.search(r"12\.5 +± 0\.95 +3\.8 % +0\.049 ± 0\.008", text)
    assert max(map(len, text[text.index("Noise of one device") :].splitlines())) <= 92


def test_show_stays_within_what_is_known(run: Run) -> None:
    found = run("show", "reram-wan-2022", "--json").json
    assert sorted({row["time_s"] for row in found["retention"]}) == [1.0, 3600.0, 86400.0, 172800.0]
    assert found["behaviour"][0]["drift_coefficient_mean"] is None
    text = run("show", "reram-wan-2022").out
    assert "valid        from 1 s to 2 days after programming" in text
    assert "coefficient " not in text
    assert "measured: " in text


@pytest.mark.parametrize(
    ("name", "row", "words"),
    [
        ("reram-wan-2022-crosssim-fit", "up to 1 s", "nothing is known later than 1 s after programming."),
        ("reram-milo-hfo2", "programmed", "nothing is known later than programming."),
    ],
)
def test_show_claims_no_retention_that_nobody_measured(run: Run, name: str, row: str, words: str) -> None:
    text = run("show", name).out
    assert f"Not measured: {words}" in text
    assert f" {row} " in text
    assert "any time" not in text


def test_show_takes_a_file_and_a_noise_level(run: Run) -> None:
    run("new", "my.toml")
    assert run("show", "my.toml", "--json").json["behaviour"][0]["target"] == 0.1
    assert run("show", "gaussian@10%", "--json").json["max_noise_level"] == pytest.approx(0.1)
    text = run("show", "ideal").out
    assert "any time" in text
    assert "100.0 %" in text


def test_show_draws_a_picture_and_overwrites_none_unasked(run: Run, tmp_path: Path) -> None:
    result = run("show", "gaussian", "--plot", "device.png")
    assert result.status == 0
    assert result.out.endswith("picture: device.png\n")
    content = (tmp_path / "device.png").read_bytes()
    assert content[:4] == b"\x89PNG"
    result = run("show", "ideal", "--plot", "device.png")
    assert result.err == "error: device.png exists already: name another file, or replace it with --force\n"
    assert (tmp_path / "device.png").read_bytes() == content
    found = run("show", "ideal", "--plot", "device.png", "--force", "--json").json
    assert found["plot"] == "device.png"
    assert (tmp_path / "device.png").read_bytes() != content
    result = run("show", "ideal", "--plot", "device.bmp1")
    assert result.status == 2
    assert "no picture format" in result.err


# schema


def test_schema_prints_the_schema(run: Run) -> None:
    result = run("schema")
    assert (result.status, result.err) == (0, "")
    assert result.json == profile_schema()
