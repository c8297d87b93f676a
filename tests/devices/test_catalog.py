"""Finding profiles by name, path and noise level, wherever the package is installed."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import analognoise
from analognoise.devices import catalog, list_profiles, load_profile
from analognoise.errors import ProfileError

ROOT = Path(__file__).parents[2]
MINE = 'name = "mine"\n[conductance]\nunit = "nA"\ng_max = 3\n[programming]\nsigma = 0.3\n'


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An otherwise empty working folder with the profile mine.toml."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.toml").write_text(MINE, encoding="utf-8")
    return tmp_path


def test_the_shipped_profiles_are_the_files_of_the_folder():
    assert list_profiles() == sorted(path.stem for path in (ROOT / "hardware_profiles").glob("*.toml"))
    assert {"ideal", "pcm-ibm", "gaussian"} <= set(list_profiles())
    for name in list_profiles():
        assert load_profile(name).name == name


def test_names_paths_and_profiles_are_alike(here):
    mine = load_profile("mine.toml")
    assert mine.conductance.g_max == 3.0
    assert (
        load_profile(here / "mine.toml")
        == load_profile(str(here / "mine.toml"))
        == load_profile("./mine.toml")
        == mine
    )
    assert load_profile(mine) is mine
    os.rename("mine.toml", "mine")
    assert load_profile("mine") == mine
    assert load_profile(Path("pcm-ibm")) == load_profile("pcm-ibm")


@pytest.mark.parametrize(
    "text", ["gaussian@10%", "gaussian@0.1", "gaussian@1e-1", "gaussian@10.0%", "gaussian@ 10 %"]
)
def test_noise_level_behind_a_name(text):
    profile = load_profile(text)
    assert profile == load_profile("gaussian").at_noise_level(0.1)
    assert profile.name == "gaussian@10%"


def test_noise_level_behind_a_path(here):
    assert load_profile("mine.toml@5%").name == "mine@5%"
    assert load_profile("mine.toml@5%").programming.sigma.constant == pytest.approx(0.15)
    os.rename("mine.toml", "odd@5%.toml")
    assert load_profile("odd@5%.toml").name == "mine"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "pcm-ibn",
            "unknown profile 'pcm-ibn' (did you mean 'pcm-ibm'?): known are ",
        ),
        ("zzz", "unknown profile 'zzz': known are"),
        ("", "unknown profile ''"),
        ("mine", "unknown profile 'mine' (did you mean the file mine.toml?)"),
        ("yours.toml", "profile file yours.toml does not exist"),
        ("folder/mine", "profile file folder/mine does not exist"),
        (".", "profile '.' is a folder"),
        ("pcm-ibn@5%", "did you mean 'pcm-ibm'?"),
        ("gaussian@10", "noise level '10' of profile 'gaussian@10' is not between 0 and 100 % of g_max"),
        ("gaussian@ten", "noise level 'ten' of profile"),
        ("gaussian@-5%", "noise level '-5%'"),
        ("gaussian@", "noise level ''"),
        ("gaussian@5%@5%", "unknown profile 'gaussian@5%'"),
        ("ideal@5%", "profile 'ideal' has no programming noise"),
        ("binary.toml", "binary.toml is not UTF-8 text (byte 0)"),
        ("unended.toml", "unended.toml, line 2, column 8: not valid TOML: unterminated string, at the end"),
    ],
)
def test_what_cannot_be_found_is_said(here, text, expected):
    (here / "binary.toml").write_bytes(b"\xff\xfe")
    (here / "unended.toml").write_text('name = "a"\nb = """', encoding="utf-8")
    with pytest.raises(ProfileError) as caught:
        load_profile(text)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_may_not_be_read(here, monkeypatch):
    def refuse(self, **_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(ProfileError, match=r"mine\.toml cannot be read: Permission denied"):
        load_profile("mine.toml")


def test_profiles_inside_the_package_come_before_those_of_a_checkout(here, monkeypatch):
    inside = here / "package" / "hardware_profiles"
    inside.mkdir(parents=True)
    (inside / "installed.toml").write_text(
        MINE.replace("mine", "installed").replace(
            "sigma = 0.3", 'sigma = { curve = "table", csv = "a.csv" }'
        ),
        encoding="utf-8",
    )
    (inside / "a.csv").write_text("0,0.1\n1,0.2\n", encoding="utf-8")
    (inside / "SCHEMA.md").write_text("", encoding="utf-8")
    monkeypatch.setattr(catalog.importlib.resources, "files", lambda _: here / "package")
    assert list_profiles() == ["installed"]
    assert load_profile("installed").programming.sigma.y == (0.1, 0.2)


def test_an_installation_without_profiles_says_so(here, monkeypatch):
    monkeypatch.setattr(catalog.importlib.resources, "files", lambda _: here)
    monkeypatch.setattr(catalog, "__file__", str(here / "a" / "b" / "c.py"))
    with pytest.raises(ProfileError, match="the shipped profiles are missing"):
        list_profiles()


def test_profiles_are_found_in_a_zipped_package(here):
    """What a wheel holds, read without unpacking it: nothing may depend on the checkout or on real files."""
    package = Path(analognoise.__file__).parent
    with zipfile.ZipFile("package.zip", "w") as archive:
        for path in [package / "errors.py", package / "units.py", *(package / "devices").glob("*.py")]:
            archive.write(path, Path("analognoise") / path.relative_to(package))
        archive.writestr("analognoise/__init__.py", "")
        for path in (ROOT / "hardware_profiles").iterdir():
            archive.write(path, Path("analognoise") / "hardware_profiles" / path.name)
    code = (
        "import analognoise.devices as d; assert 'package.zip' in d.__file__; "
        "print([(name, d.load_profile(name).digest) for name in d.list_profiles()])"
    )
    # -P and the archive first on the path, so that it is not the checkout that is imported.
    script = f"import sys; sys.path.insert(0, {str(here / 'package.zip')!r}); {code}"
    result = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str([(name, load_profile(name).digest) for name in list_profiles()])


def test_a_byte_order_mark_is_no_error(tmp_path):
    path = tmp_path / "bom.toml"
    path.write_text(
        'schema = 1\nname = "bom"\n[conductance]\nunit = "uS"\ng_max = 1.0\n', encoding="utf-8-sig"
    )
    assert load_profile(path).name == "bom"


@pytest.mark.parametrize(
    ("what", "words"), [(None, "found NoneType"), ({"name": "x"}, "DeviceProfile.from_dict")]
)
def test_what_is_neither_name_nor_path(what, words):
    with pytest.raises(ProfileError, match=words):
        load_profile(what)
