"""Profiles as values: equal by digest, immutable, changed into valid ones; every error in one sentence."""

import copy
import pickle
import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from analognoise.devices import DeviceProfile, load_profile
from analognoise.devices.curves import CURVES
from analognoise.errors import ProfileError

FOLDER = Path(__file__).parents[2] / "hardware_profiles"
PCM = (FOLDER / "pcm-ibm.toml").read_text(encoding="utf-8")
SIGMA = 'sigma = { curve = "polynomial", coefficients = [0.26348, 1.9650, -1.1731] }'
# Results name the digest of their profile: if one changes, what was computed before does not count any more.
DIGESTS = {
    "ideal": "135fef2d6d058e0155701c4f6c253984dad3d13df62728c54f0b6e1f0a56f429",
    "pcm-ibm": "38fa027c5b0b1c5da58c3c41c70100c94f46594390d78529961c9e6ed3ee57af",
    "gaussian": "21e13eaf1d593ac625db37a60e8fd0e086edc28d392519acaede087a6502091c",
    "gaussian@10%": "ab274044318c18b746654cdffca00029f2bae57e1d0b753683fb0e2e38258eb3",
}


def write(folder, *changes):
    """The file of pcm-ibm with some text replaced."""
    text = PCM
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    path = folder / "my-device.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize("name", DIGESTS)
def test_digests_do_not_change(name):
    assert load_profile(name).digest == DIGESTS[name]


def test_digest_and_equality_are_of_the_device_and_not_of_the_text(tmp_path):
    pcm = load_profile("pcm-ibm")
    documented = write(
        tmp_path, ("technology = ", 'technology = "other" # '), ("citation = ", 'citation = "x" # ')
    )
    assert load_profile(documented) == pcm
    defaults = write(
        tmp_path, ("clamp_at_zero = true\n", ""), ("rows = 512\n", ""), ("g_min = 0.0\n", "g_min = 0\n")
    )
    assert load_profile(defaults) == pcm
    assert hash(load_profile(defaults)) == hash(pcm)
    sections = PCM.split("\n[")
    reordered = tmp_path / "reordered.toml"
    reordered.write_text("\n[".join([sections[0], *sections[:0:-1]]), encoding="utf-8")
    assert load_profile(reordered).digest == pcm.digest
    gaussian = load_profile("gaussian")
    assert gaussian == gaussian.replace({"programming.sigma": {"curve": "constant", "value": 5}})


@pytest.mark.parametrize(
    "change",
    [
        {"name": "other"},
        {"conductance.g_max": 25.5},
        {"conductance.unit": "nA"},
        {"mapping.scale": "tile"},
        {"programming": None},
        {"programming.clamp_at_zero": False},
        {"drift.t_0": 20.1},
        {"drift.nu_mean": 0.05},
        {"read.t_read": 1e-6},
        {"read.t_0": 20.0},
        {"tile.rows": 256},
    ],
)
def test_digest_sees_every_change_of_the_device(change):
    pcm = load_profile("pcm-ibm")
    assert pcm.replace(change) != pcm


def test_profiles_are_values():
    pcm = load_profile("pcm-ibm")
    pcm.programming.sigma(torch.ones(2))
    assert copy.deepcopy(pcm) == pcm
    assert copy.copy(pcm) == pcm
    loaded = pickle.loads(pickle.dumps(pcm))
    assert loaded == pcm
    assert hash(loaded) == hash(pcm)
    assert loaded.as_dict() == pcm.as_dict()
    assert {pcm: 1}[load_profile("pcm-ibm")] == 1
    assert DeviceProfile.from_dict(pcm.as_dict()) == pcm
    assert DeviceProfile.model_validate(pcm.model_dump(by_alias=True)) == pcm
    assert pcm.model_copy(update={"name": "other"}).digest != pcm.digest
    with pytest.raises(ValidationError):
        pcm.name = "other"
    with pytest.raises(ValidationError):
        pcm.drift.t_0 = 1.0
    assert pcm != "pcm-ibm"


def test_noise_levels():
    gaussian, pcm = load_profile("gaussian"), load_profile("pcm-ibm")
    assert gaussian.max_noise_level == 0.05
    assert load_profile("ideal").max_noise_level == 0.0
    # The vertex of 0.26348 + 1.9650 x - 1.1731 x².
    assert pcm.max_noise_level == pytest.approx((0.26348 + 1.9650**2 / (4 * 1.1731)) / 25, rel=1e-7)
    level = gaussian.at_noise_level(0.1)
    assert (level.name, level.programming.sigma.constant) == ("gaussian@10%", 10.0)
    assert level.at_noise_level(0.025).name == "gaussian@2.5%"
    assert level.at_noise_level(0.05).programming == gaussian.programming
    assert pcm.at_noise_level(0.2).max_noise_level == pytest.approx(0.2, rel=1e-12)
    assert pcm.at_noise_level(0.2).drift == pcm.drift
    assert gaussian.at_noise_level(0).max_noise_level == 0
    for level in (-0.1, 1.5, float("nan")):
        with pytest.raises(ProfileError, match="must be between 0 and 1"):
            gaussian.at_noise_level(level)
    with pytest.raises(ProfileError, match="'ideal' has no programming noise"):
        load_profile("ideal").at_noise_level(0.1)


def test_scaled_multiplies_each_effect():
    pcm = load_profile("pcm-ibm")
    scaled = pcm.scaled(programming=0.5, drift=2.0, read=0.0)
    x = torch.linspace(0.01, 1, 50, dtype=torch.float64)
    torch.testing.assert_close(scaled.programming.sigma(x), 0.5 * pcm.programming.sigma(x))
    torch.testing.assert_close(scaled.drift.nu_mean(x), 2 * pcm.drift.nu_mean(x))
    torch.testing.assert_close(scaled.drift.nu_std(x), 2 * pcm.drift.nu_std(x))
    assert scaled.read.relative_sigma.constant == 0.0
    assert pcm.scaled() == pcm
    assert load_profile("ideal").scaled(2, 2, 2) == load_profile("ideal")
    with pytest.raises(ProfileError, match="finite and not negative"):
        pcm.scaled(drift=-1)


def test_what_depends_on_time():
    assert load_profile("pcm-ibm").has_drift
    assert load_profile("pcm-ibm").replace({"drift": None}).has_drift
    assert not load_profile("pcm-ibm").replace({"drift": None, "read": None}).has_drift
    assert not load_profile("gaussian").has_drift


def test_defaults_that_depend_on_other_sections():
    pcm = load_profile("pcm-ibm")
    assert pcm.read_t_0 == 20.0
    assert pcm.replace({"drift": None}).read_t_0 == 0.0
    assert pcm.replace({"read.t_0": 0.0}).read_t_0 == 0.0
    assert pcm.read_clamps_at_zero
    assert not pcm.replace({"programming.clamp_at_zero": False}).read_clamps_at_zero
    assert pcm.replace({"programming.clamp_at_zero": False, "read.clamp_at_zero": True}).read_clamps_at_zero
    assert pcm.replace({"programming": None}).read_clamps_at_zero


def test_both_micro_signs_are_microsiemens(tmp_path):
    for sign in "\u00b5\u03bc":
        assert load_profile(write(tmp_path, ('"uS"', f'"{sign}S"'))) == load_profile("pcm-ibm")


def test_points_beside_the_profile(tmp_path):
    (tmp_path / "points.csv").write_text("# measured\nx,y\n0, 0.3\n\n0.5,1.0\n1,1.1\n", encoding="utf-8")
    beside = load_profile(write(tmp_path, (SIGMA, 'sigma = { curve = "table", csv = "points.csv" }')))
    inline = load_profile(
        write(tmp_path, (SIGMA, 'sigma = { curve = "table", x = [0, 0.5, 1], y = [0.3, 1, 1.1] }'))
    )
    assert beside == inline
    (tmp_path / "points.csv").unlink()
    assert pickle.loads(pickle.dumps(beside)) == inline
    assert beside.replace({"drift": None}).programming == inline.programming


BAD = [
    ("g_max = 25.0", "g_max = ", "my-device.toml, line 22, column 9: not valid TOML: invalid value"),
    ("[conductance]", "[conductance", "my-device.toml, line 20, column 13: not valid TOML: expected ']'"),
    ("columns = 512", 'columns = "512', "not valid TOML"),
    (
        "g_max = 25.0",
        "gmax = 25.0",
        "unknown field conductance.gmax = 25.0 (did you mean 'g_max'?)",
    ),
    ("[programming]", "[programing]", "unknown field programing (did you mean 'programming'?)"),
    ("t_0 = 20.0", "t_0 = 20.0\ng_max = 3", "unknown field drift.g_max = 3: it belongs in [conductance]"),
    ("t_0 = 20.0", "t_0 = 20.0\nzzz = 3", "unknown field drift.zzz = 3: known here are t_0, nu_mean, nu_std"),
    ("g_max = 25.0", 'g_max = "25"', 'conductance.g_max is "25" but must be a number'),
    ("g_max = 25.0", "g_max = true", "conductance.g_max is true but must be a number"),
    ("g_max = 25.0", "g_max = inf", "conductance.g_max is inf but must be a finite number"),
    ("g_max = 25.0", "g_max = 0", "conductance.g_max is 0 but must be greater than 0"),
    ("g_max = 25.0\n", "", "field conductance.g_max is missing: it must be the largest target conductance"),
    ('unit = "uS"', 'unit = "mS"', "conductance.unit is \"mS\" but must be 'uS' or 'nA'"),
    ("g_min = 0.0", "g_min = 25.0", "conductance.g_min is 25 but must be below g_max = 25"),
    ("g_min = 0.0", "g_min = 30", "conductance.g_min is 30 but must be below g_max = 25"),
    ("g_min = 0.0", "g_min = -1.0", "conductance.g_min is -1.0 but must be at least 0"),
    ("t_0 = 20.0", "t_0 = -20.0", "drift.t_0 is -20.0 but must be greater than 0 (seconds from"),
    ("t_0 = 20.0", 't_0 = "20s"', 'drift.t_0 is "20s" but must be a number (seconds from'),
    (
        "t_read = 250e-9",
        "t_read = 0",
        "read.t_read is 0 but must be greater than 0 (seconds: duration of a read)",
    ),
    ("schema = 1", "schema = 2", "schema is 2 but must be 1"),
    ('name = "pcm-ibm"', 'name = "my device"', 'name is "my device" but must be of letters'),
    ('name = "pcm-ibm"', "", "field name is missing: it must be a short name"),
    ('scale = "column"', 'scale = "row"', "mapping.scale is \"row\" but must be 'column', 'tile' or 'layer'"),
    ("rows = 512", "rows = 0", "tile.rows is 0 but must be at least 1"),
    ("rows = 512", "rows = 2.5", "tile.rows is 2.5 but must be a whole number"),
    ("clamp_at_zero = true", "clamp_at_zero = 1", "programming.clamp_at_zero is 1 but must be true or false"),
    ("[drift] ", "[[drift]] ", "drift is [{"),
    (SIGMA, "sigma = -1.0", "programming.sigma is -1 at x = G/g_max = 0 but must be finite and not negative"),
    (SIGMA, "sigma = nan", "programming.sigma is nan but must be a finite number"),
    (
        SIGMA,
        'sigma = "1"',
        'programming.sigma is "1" but must be a number, or a table with curve = one of constant',
    ),
    (SIGMA, "", "field programming.sigma is missing: it must be a number or a curve"),
    (SIGMA, "sigma = { coefficients = [1] }", "programming.sigma does not say which curve it is"),
    (
        SIGMA,
        SIGMA.replace('"poly', '"pol'),
        "programming.sigma.curve is \"polnomial\" (did you mean 'polynomial'?)",
    ),
    (
        SIGMA,
        SIGMA.replace("coeff", "coef"),
        "unknown field programming.sigma.coeficients (did you mean 'coefficients'?)",
    ),
    (SIGMA, SIGMA.replace("1.9650", '"a"'), 'programming.sigma.coefficients[1] is "a" but must be a number'),
    (SIGMA, SIGMA.replace("1.9650", "-1.9"), "programming.sigma is -4.052e-05 at x = G/g_max = 0.1285"),
    (
        SIGMA,
        'sigma = { curve = "table", x = [0, 1, 1], y = [1, 2, 3] }',
        "programming.sigma.x[2] is 1 but must be above",
    ),
    (
        SIGMA,
        'sigma = { curve = "table", x = [0, 1], y = [1, -3] }',
        "programming.sigma is -0.001 at x = G/g_max = 0.2503",
    ),
    (
        SIGMA,
        'sigma = { curve = "table", csv = "none.csv" }',
        'programming.sigma.csv is "none.csv", which cannot be read',
    ),
    (
        SIGMA,
        'sigma = { curve = "table", csv = "bad.csv" }',
        'where line 3 is "0.5;2" but must be two numbers x,y',
    ),
    (SIGMA, 'sigma = { curve = "table", csv = "empty.csv" }', "which holds no points"),
    (SIGMA, 'sigma = { curve = "table", csv = "bad.csv", x = [1] }', "give one or the other"),
    (
        SIGMA,
        'sigma = { curve = "piecewise", pieces = [{ curve = "log", slope = 1, intercpt = 0 }] }',
        "unknown field programming.sigma.pieces[0].intercpt = 0 (did you mean 'intercept'?)",
    ),
    (", max = 0.1 }", " }", ""),
    (", max = 0.2 }", " }", "read.relative_sigma is inf at x = G/g_max = 0"),
    ("min = 0.008, max", "min = 0.5, max", "drift.nu_std.min is 0.5 but must not be above max = 0.045"),
    ("slope = -0.0125", "slope = 0.0125", ""),
    (", min = 0.008,", ",", "drift.nu_std is -4.939e-06 at x = G/g_max = 0.624"),
]


@pytest.mark.parametrize(("old", "new", "expected"), [case for case in BAD if case[2]])
def test_bad_profiles_are_refused_in_one_sentence(tmp_path, old, new, expected):
    (tmp_path / "bad.csv").write_text("x,y\n0,1\n0.5;2\n", encoding="utf-8")
    (tmp_path / "empty.csv").write_text("x,y\n", encoding="utf-8")
    path = write(tmp_path, (old, new))
    with pytest.raises(ProfileError) as caught:
        load_profile(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert expected in message
    assert "\n" not in message
    assert "pydantic" not in message
    assert pickle.loads(pickle.dumps(caught.value)).args == caught.value.args


@pytest.mark.parametrize(("old", "new"), [case[:2] for case in BAD if not case[2]])
def test_unusual_profiles_are_accepted(tmp_path, old, new):
    load_profile(write(tmp_path, (old, new)))


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (
            {"drift.t_0": -1},
            "profile 'pcm-ibm' with drift.t_0 changed: drift.t_0 is -1 but must be greater than 0",
        ),
        ({"drift.t0": 1}, "unknown field drift.t0 = 1 (did you mean 't_0'?)"),
        ({"name.x": 1}, 'name.x does not exist, because name is "pcm-ibm"'),
        ({"conductance.g_min": 30.0}, "conductance.g_min is 30 but must be below g_max = 25"),
        ({"conductance": None}, "conductance is null but must be a table"),
    ],
)
def test_replace_refuses_what_a_file_could_not_say(change, expected):
    pcm = load_profile("pcm-ibm")
    with pytest.raises(ProfileError) as caught:
        pcm.replace(change)
    assert expected in str(caught.value)
    assert pcm.digest == DIGESTS["pcm-ibm"]


def test_a_read_curve_must_hold_for_what_programming_can_reach():
    # 1.2 - x is positive for every target, but not for a device that was programmed above g_max.
    falling = {"curve": "polynomial", "coefficients": [1.2, -1.0]}
    exact = load_profile("pcm-ibm").replace({"programming": None, "read.relative_sigma": falling})
    assert exact.read.relative_sigma(torch.ones(1)).item() == pytest.approx(0.2)
    with pytest.raises(ProfileError, match=r"read\.relative_sigma is -.* for every x from 0 to 1\.26"):
        load_profile("pcm-ibm").replace({"read.relative_sigma": falling})


def test_the_schema_page_names_every_field_and_curve():
    text = (FOLDER / "SCHEMA.md").read_text(encoding="utf-8")
    for name, field in DeviceProfile.model_fields.items():
        section = next(
            (
                item
                for item in [field.annotation, *getattr(field.annotation, "__args__", [])]
                if hasattr(item, "model_fields")
            ),
            None,
        )
        key = field.alias or name
        wanted = [f"`{key}.{inner}`" for inner in section.model_fields] if section else [f"`{key}`"]
        for entry in wanted:
            assert entry in text, f"SCHEMA.md does not document {entry}"
    for name, model in CURVES.items():
        assert f'`"{name}"`' in text
        for field in set(model.model_fields) - {"curve"}:
            assert re.search(rf"`{field}\b", text), f"SCHEMA.md does not document {field} of {name}"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.toml")), ids=lambda path: path.stem)
def test_shipped_profiles_are_named_as_their_files_and_say_their_source(path):
    profile = load_profile(path)
    assert profile.name == path.stem
    assert profile.technology
    assert profile.description
    if profile.name == "ideal":
        return
    source, validity = profile.source, profile.validity
    assert source is not None
    assert source.notes
    assert source.measured
    assert source.disagreements
    generic = source.measured.startswith("nothing: a generic model")
    assert generic == profile.technology.startswith("generic")
    if generic:
        assert source.citation or "recalled" in source.notes
    else:
        assert source.citation
        assert source.doi
        assert source.license
        assert source.url
    assert validity is not None
    assert validity.default_times
    assert validity.extrapolate is not None
    # Who may not be asked for other times must say which were measured.
    assert validity.measured or validity.extrapolate


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"conductance.g_max": 1e308}, r"g_max.*1e\+308"),
        ({"programming.sigma": 1e300}, r"programming.sigma reaches 1e\+300 but must be at most 250"),
        ({"drift.nu_mean": 500.0}, r"drift.nu_mean reaches 500 but must be at most 10"),
        ({"drift.nu_std": {"curve": "table", "x": [0, 0.5, 25], "y": [0.01, 0.01, 0.01]}}, r"x is G / g_max"),
        ({"tile.rows": 10**12}, r"tile.rows.*1000000000000"),
    ],
)
def test_figures_that_no_device_has_are_refused(changes, words):
    with pytest.raises(ProfileError, match=words):
        load_profile("pcm-ibm").replace(changes)


def test_a_csv_that_is_not_sorted_is_told_with_its_line(tmp_path):
    (tmp_path / "points.csv").write_text("# points\nx,y\n0.0,0.1\n0.5,0.2\n0.4,0.3\n", encoding="utf-8")
    (tmp_path / "mine.toml").write_text(
        'name = "mine"\n[conductance]\nunit = "uS"\ng_max = 1.0\n[programming]\n'
        'sigma = { curve = "table", csv = "points.csv" }\n',
        encoding="utf-8",
    )
    words = (
        r'mine\.toml, line 6: .*csv is "points\.csv", where line 5 has x = 0\.4 .*the line before it has 0\.5'
    )
    with pytest.raises(ProfileError, match=words):
        load_profile(tmp_path / "mine.toml")
