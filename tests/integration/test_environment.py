"""The environments on a host: a new version reuses what has not changed, and an earlier one is never written to."""

from __future__ import annotations

import getpass
import hashlib
import shutil
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "ansible" / "roles" / "packages" / "files" / "environment.py"
PROGRAM = "import sys\ndef main():\n    import numerics\n    print('fedsim', VERSION, numerics.VALUE)\n"


def wheel(folder: Path, name: str, version: str, files: dict[str, str], scripts: str = "") -> None:
    """A wheel as pip accepts it."""
    about = f"{name}-{version}.dist-info"
    content = {
        **files,
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        **({f"{about}/entry_points.txt": f"[console_scripts]\n{scripts}\n"} if scripts else {}),
    }
    rows = [
        f"{path},sha256={urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).decode().rstrip('=')},{len(text)}"
        for path, text in content.items()
    ]
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**content, f"{about}/RECORD": "\n".join([*rows, f"{about}/RECORD,,"]) + "\n"}.items():
            archive.writestr(zipfile.ZipInfo(path), text)  # with a constant time: equal bytes


class FakeHost:
    """A folder in which environments are installed as in /opt/fedsim."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "opt"
        self.gathered = folder / "gathered"

    def gather(self, version: str, value: int = 1, extra: str = "1") -> None:
        """What a control machine would gather: fedsim, a large package, and a small one."""
        shutil.rmtree(self.gathered, ignore_errors=True)
        self.gathered.mkdir(parents=True)
        own = f"VERSION = {version!r}\n{PROGRAM}"
        wheel(self.gathered, "fedsim_lab", version, {"fedsim_main.py": own}, "fedsim = fedsim_main:main")
        wheel(
            self.gathered,
            "numerics",
            "2.0",
            {"numerics/__init__.py": f"VALUE = {value}\n", "numerics/big.bin": "x" * 5000},
        )
        wheel(self.gathered, "tool_kit", extra, {"tool_kit.py": "def main(): print('tool')\n"}, "tool = tool_kit:main")

    def lacking(self) -> list[str]:
        """The wheels that a version would need; copies the list of wheels."""
        wheels = self.folder / "wheels"
        wheels.mkdir(parents=True, exist_ok=True)
        lines = [
            f"{path.name.split('-')[0]}=={path.name.split('-')[1]} "
            f"--hash=sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
            for path in sorted(self.gathered.glob("*.whl"))
        ]
        (wheels / "requirements.txt").write_text("".join(lines), encoding="utf-8")
        return self.script("missing").split()

    def install(self, version: str) -> list[str]:
        """Install a version from only the wheels that are lacking; returns these."""
        lacking = self.lacking()
        for pattern in lacking:
            (path,) = self.gathered.glob(pattern)
            shutil.copy(path, self.folder / "wheels")
        self.script("build", version, "0123", getpass.getuser())
        return lacking

    def script(self, action: str, *arguments: str) -> str:
        command = [sys.executable, str(SCRIPT), action, str(self.folder), *arguments]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def run(self, version: str, program: str) -> str:
        return subprocess.run(
            [self.folder / version / "bin" / program], check=True, capture_output=True, text=True
        ).stdout

    def file(self, version: str, name: str) -> Path:
        (path,) = (self.folder / version).glob(f"lib/*/site-packages/{name}")
        return path

    def content(self, version: str) -> dict[str, tuple[str, int, int]]:
        """Every file of an environment with its content, mode and time of change."""
        return {
            str(path): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mode, path.stat().st_mtime_ns)
            for path in (self.folder / version).rglob("*")
            if path.is_file() and not path.is_symlink()
        }


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> FakeHost:
    """A host with version 0.1."""
    host = FakeHost(tmp_path_factory.mktemp("host"))
    host.gather("0.1")
    assert len(host.install("0.1")) == 3
    return host


@pytest.fixture
def host(installed: FakeHost, tmp_path: Path) -> FakeHost:
    """A copy of that host."""
    shutil.copytree(installed.folder.parent, tmp_path, symlinks=True, dirs_exist_ok=True)
    host = FakeHost(tmp_path)
    for script in (path for path in (host.folder / "0.1" / "bin").iterdir() if not path.is_symlink()):
        text = script.read_text(encoding="utf-8")
        script.write_text(text.replace(str(installed.folder), str(host.folder)), encoding="utf-8")
    return host


def test_a_new_version_needs_only_what_changed_and_leaves_the_old_one_as_it_was(installed: FakeHost) -> None:
    host = installed
    assert (host.run("0.1", "fedsim"), host.run("0.1", "tool")) == ("fedsim 0.1 1\n", "tool\n")
    before = host.content("0.1")
    host.gather("0.2")
    assert host.install("0.2") == ["fedsim_lab-0.2-*.whl"]
    assert host.run("0.2", "fedsim") == "fedsim 0.2 1\n"
    assert host.content("0.1") == before
    for name in ("numerics/big.bin", "numerics/__pycache__/*.pyc", "pip/__init__.py"):
        assert host.file("0.2", name).samefile(host.file("0.1", name))
    # Its programs run with its own Python, also after the earlier version has been removed.
    (host.folder / "0.1").rename(host.folder.parent / "0.1")
    assert (host.run("0.2", "fedsim"), host.run("0.2", "tool")) == ("fedsim 0.2 1\n", "tool\n")
    scripts = [path for path in (host.folder / "0.2" / "bin").iterdir() if not path.is_symlink()]
    assert not [path for path in scripts if b"/0.1/" in path.read_bytes() or b"0.2.new" in path.read_bytes()]
    assert {path.name for path in host.folder.iterdir()} == {"0.2"}
    shutil.rmtree(host.folder / "0.2")
    (host.folder.parent / "0.1").rename(host.folder / "0.1")


def test_another_content_under_the_same_version_is_installed(host: FakeHost) -> None:
    inode = host.file("0.1", "tool_kit.py").stat().st_ino
    host.gather("0.1", value=2)
    assert host.install("0.1") == ["numerics-2.0-*.whl"]
    assert host.run("0.1", "fedsim") == "fedsim 0.1 2\n"
    assert host.file("0.1", "tool_kit.py").stat().st_ino == inode
    assert {path.name for path in host.folder.iterdir()} == {"0.1"}


def test_a_package_that_is_no_longer_wanted_is_not_there(host: FakeHost) -> None:
    host.gather("0.2", extra="3")
    next(host.gathered.glob("tool_kit-*")).unlink()
    host.install("0.2")
    assert not list((host.folder / "0.2").glob("lib/*/site-packages/tool_kit*"))
    assert not (host.folder / "0.2" / "bin" / "tool").exists()


@pytest.mark.parametrize("harm", ["cut", "deleted", "unreadable", "incomplete"])
def test_what_is_damaged_is_not_reused(host: FakeHost, harm: str) -> None:
    big = host.file("0.1", "numerics/big.bin")
    if harm == "cut":
        big.write_text("x", encoding="utf-8")
    elif harm == "deleted":
        big.unlink()
    elif harm == "unreadable":
        big.chmod(0o600)
    else:  # interrupted before it was complete
        next((host.folder / "0.1").glob("installed-*")).unlink()
    host.gather("0.2")
    assert "numerics-2.0-*.whl" in host.lacking()


def test_the_remains_of_an_interrupted_run_are_replaced(host: FakeHost) -> None:
    host.gather("0.1")
    (host.folder / "0.1").rename(host.folder / "0.1.old")  # between the two renamings
    (host.folder / "0.1.new" / "bin").mkdir(parents=True)
    assert host.install("0.1") == []
    assert host.run("0.1", "tool") == "tool\n"
    assert {path.name for path in host.folder.iterdir()} == {"0.1"}
