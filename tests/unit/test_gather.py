"""What hosts install is gathered so that a changed or missing file is seen, and nothing is packed twice."""

from __future__ import annotations

import tarfile
from pathlib import Path

from fedsim_fleet.gather import pack
from fedsim_fleet.wheels import REQUIREMENTS, requirements_of, verified, version_of


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
