"""The example package, installed into an environment of its own, passes its tests and trains over two nodes."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
from pathlib import Path

import pytest
from platform_support import SMALL, digits_lab

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "robust-rules"
CHOSEN = {"strategy": "my_trimmed_mean", "strategy_options": {"share": 0.2}, "num_rounds": 2}
SIMULATE = f"""
from pathlib import Path
from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.engine import make_deterministic
from fedsim.learning.simulate import simulate
from fedsim.settings import parse_settings

make_deterministic(1)
digits = load_dataset(DataSetConfig(name="digits", path=Path("digits"), format="digits"), Path())
settings, _ = parse_settings({SMALL | CHOSEN!r})
print(simulate(settings, digits, chunk_clients=5, placement=[(0, 10), (10, 10)]).digest)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a new environment that holds the example and sees what this environment holds."""
    folder = tmp_path_factory.mktemp("example")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    (installed,) = (folder / "venv").glob("lib/python*/site-packages")
    lines = [f"import site; site.addsitedir({path!r})" for path in site.getsitepackages()]
    (installed / "outer.pth").write_text("\n".join(lines), encoding="utf-8")
    source = shutil.copytree(EXAMPLE, folder / "robust-rules")  # a build leaves files in its source
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-index", "--no-deps"]
    install += ["--disable-pip-version-check", "--no-build-isolation", str(source)]
    subprocess.run(install, check=True)
    assert list(installed.glob("robust_rules*.dist-info"))
    return python


def run(python: Path, *arguments: str, folder: Path) -> str:
    """What a program prints in the new environment."""
    result = subprocess.run([python, *arguments], capture_output=True, text=True, check=False, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_its_own_tests_pass(python: Path, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE / "tests", tmp_path / "tests")
    shutil.copy(EXAMPLE / "pyproject.toml", tmp_path)
    printed = run(python, "-m", "pytest", "-q", "-p", "no:cacheprovider", folder=tmp_path)
    assert "passed" in printed
    assert "failed" not in printed


@pytest.mark.parametrize("name", ["vision-models", pytest.param("lora-transformer", marks=pytest.mark.long)])
def test_the_tests_of_packages_with_models_pass(name: str, tmp_path: Path) -> None:
    package = shutil.copytree(EXAMPLE.parent / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    found = {**os.environ, "PYTHONPATH": str(package)}
    result = subprocess.run(command, capture_output=True, text=True, check=False, cwd=package, env=found)
    assert result.returncode == 0, result.stdout + result.stderr


def test_it_trains_over_two_nodes_to_what_one_process_gives(python: Path, tmp_path: Path) -> None:
    lab = digits_lab(tmp_path / "lab")
    for process in lab.processes.values():
        process.command = [str(python), *process.command]
    with lab:
        task = lab.completed(lab.submit(**CHOSEN))
    assert run(python, "-c", SIMULATE, folder=tmp_path).strip() == task.digest
