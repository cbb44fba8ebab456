"""What hosts install is gathered so that a changed or missing file is seen, and nothing is packed twice."""

from __future__ import annotations

import hashlib
import json
import tarfile
import zipfile
from pathlib import Path

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from fedsim_fleet.gather import pack
from fedsim_fleet.releases import RELEASES, release_problem
from fedsim_fleet.sbom import write_sbom
from fedsim_fleet.wheels import REQUIREMENTS, lacking, requirements_of, verified, version_of


def wheels(folder: Path) -> Path:
    folder.mkdir()
    (folder / "fedsim_lab-0.2.0-py3-none-any.whl").write_bytes(b"fedsim")
    (folder / "numpy-2.4.6-cp311-cp311-manylinux_2_27_x86_64.whl").write_bytes(b"numpy")
    (folder / REQUIREMENTS).write_text(requirements_of(folder), encoding="utf-8")
    return folder


def test_requirements_name_version_and_digest(tmp_path: Path) -> None:
    folder = wheels(tmp_path / "wheels")
    lines = (folder / REQUIREMENTS).read_text(encoding="utf-8").splitlines()
    assert [line.split()[0] for line in lines] == ["fedsim_lab==0.2.0", "numpy==2.4.6"]
    assert all(len(line.partition("--hash=sha256:")[2]) == 64 for line in lines)
    assert version_of(folder) == "0.2.0"


def test_a_changed_a_missing_and_a_further_wheel_are_seen(tmp_path: Path) -> None:
    folder = wheels(tmp_path / "wheels")
    numpy = next(folder.glob("numpy-*"))
    assert verified(folder)
    numpy.write_bytes(b"nunpy")
    assert not verified(folder)
    numpy.unlink()
    assert not verified(folder)
    numpy.write_bytes(b"numpy")
    assert verified(folder)
    (folder / "more-1-py3-none-any.whl").write_bytes(b"more")
    assert not verified(folder)
    assert not verified(tmp_path / "nothing")


def test_an_archive_is_packed_again_only_when_its_files_change(tmp_path: Path) -> None:
    folder = wheels(tmp_path / "wheels")
    first = pack(folder, "*.whl", REQUIREMENTS)
    archive = tmp_path / first["archive"]
    with tarfile.open(archive) as tar:
        assert {(item.uname, item.mode) for item in tar} == {("root", 0o644)}
        assert sorted(tar.getnames()) == sorted(path.name for path in folder.iterdir())
    packed = archive.stat().st_ino
    assert pack(folder, "*.whl", REQUIREMENTS) == first
    assert archive.stat().st_ino == packed
    next(folder.glob("numpy-*")).write_bytes(b"another")
    second = pack(folder, "*.whl", REQUIREMENTS)
    assert second["digest"] != first["digest"]
    assert [path.name for path in tmp_path.glob("*.tar")] == [second["archive"]]


def test_a_release_names_its_archives_its_keys_and_the_wheels_that_it_can_install() -> None:
    assert {release.system: release.python for release in RELEASES.values()} == {
        "Debian 12": "3.11",
        "Debian 13": "3.13",
        "Ubuntu 24.04": "3.12",
    }
    for name, release in RELEASES.items():
        suites = [line.split()[3] for line in release.sources().splitlines()]
        assert suites == [name, f"{name}-updates", f"{name}-security"]
        assert all(f"[signed-by={release.keyring}]" in line for line in release.sources().splitlines())
    assert "http://mirror.example/debian trixie main" in RELEASES["trixie"].sources("http://mirror.example/debian")
    assert "http://archive.ubuntu.com/ubuntu noble main universe" in RELEASES["noble"].sources()
    tags = RELEASES["bookworm"].platforms("x86_64")
    assert tags[0] == "manylinux_2_36_x86_64"
    assert {"manylinux_2_17_x86_64", "manylinux2014_x86_64", "manylinux1_x86_64", "linux_x86_64"} < set(tags)


def test_a_host_whose_release_is_unknown_or_was_not_gathered_is_told_what_to_do() -> None:
    gathered = {"Debian 12": {}}
    assert release_problem("Debian 12", gathered) == ""
    assert 'run `make gather RELEASES="bookworm trixie"`' in release_problem("Debian 13", gathered)
    assert "it runs Fedora 41: install Debian 12 or Debian 13 or" in release_problem("Fedora 41", gathered)


@pytest.mark.parametrize(("python", "missing"), [("3.11", {"tomli>=2"}), ("3.13", {"setuptools"})])
def test_dependencies_are_those_of_the_hosts_python(tmp_path: Path, python: str, missing: set[str]) -> None:
    metadata = (
        "Metadata-Version: 2.1\nName: kit\nVersion: 1\nRequires-Dist: numpy\n"
        'Requires-Dist: setuptools; python_version >= "3.12"\nRequires-Dist: tomli>=2; python_version < "3.12"\n'
        'Requires-Dist: pytest; extra == "test"\n'
    )
    for name, text in (("kit", metadata), ("numpy", "Metadata-Version: 2.1\nName: numpy\nVersion: 1\n")):
        with zipfile.ZipFile(tmp_path / f"{name}-1-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}-1.dist-info/METADATA", text)
    assert lacking(tmp_path, python) == missing


def test_what_logging_in_by_openid_connect_needs_is_gathered(tmp_path: Path) -> None:
    metadata = "Metadata-Version: 2.1\nName: fedsim-lab\nVersion: 1\nRequires-Dist: authlib; extra == 'openid'\n"
    metadata += "Requires-Dist: ansible-core; extra == 'fleet'\n"
    with zipfile.ZipFile(tmp_path / "fedsim_lab-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("fedsim_lab-1.dist-info/METADATA", metadata)
    assert lacking(tmp_path, "3.11") == {"authlib"}


def test_a_bill_of_materials_lists_every_wheel_and_debian_package(tmp_path: Path) -> None:
    wheels(tmp_path / "wheels")
    (tmp_path / "debian").mkdir()
    stanzas = [
        f"Package: {name}\nVersion: 1:2.{number}-1+deb12u1\nArchitecture: amd64\nSHA256: {number:064d}\n"
        for number, name in enumerate(["nginx-light", "mariadb-server"])
    ]
    (tmp_path / "debian" / "Packages").write_text("\n".join(stanzas), encoding="utf-8")
    path = write_sbom(RELEASES["bookworm"], tmp_path)
    text = path.read_text(encoding="utf-8")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None
    found = json.loads(text)
    assert found["metadata"]["component"]["purl"] == "pkg:pypi/fedsim-lab@0.2.0"
    assert [part["purl"] for part in found["components"]] == [
        "pkg:deb/debian/mariadb-server@1:2.1-1%2Bdeb12u1?arch=amd64&distro=bookworm",
        "pkg:deb/debian/nginx-light@1:2.0-1%2Bdeb12u1?arch=amd64&distro=bookworm",
        "pkg:pypi/numpy@2.4.6",
    ]
    assert found["components"][2]["hashes"][0]["content"] == hashlib.sha256(b"numpy").hexdigest()
    assert write_sbom(RELEASES["bookworm"], tmp_path).read_text(encoding="utf-8") == text
