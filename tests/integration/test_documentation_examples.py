"""The examples of the documentation run as written: programs, certificates, packages of one's own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from documentation_support import named

from fedsim.config import TlsConfig
from fedsim.spool.files import Role
from fedsim.wire import Identity
from fedsim.wire.tls import Credentials

PACKAGES = ("our-lab", "robust-rules")


def test_certificates_are_made_as_documented(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for name in ("certificates.sh", "request.sh", "https.sh"):
        (script,) = named("sh", name)
        subprocess.run(["/bin/sh", "-ec", script], cwd=tmp_path, env=environment, check=True)
    files = {"certificate": "host.crt", "key": "host.key", "authority": "ca/ca.crt", "revoked": "ca/crl.pem"}
    tls = TlsConfig(**{key: tmp_path / file for key, file in files.items()})
    assert Credentials(tls, Identity("node-a", Role.CLIENT)).not_after > time.time()


def test_the_simulation_runs_as_written(tmp_path: Path) -> None:
    (program,) = named("python", "simulate.py")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    accuracy, digest = run.stdout.split()
    assert float(accuracy) > 0.8
    assert re.fullmatch("[0-9a-f]{64}", digest)


def test_a_table_of_ones_own_is_trained_on_as_written(tmp_path: Path) -> None:
    (program,) = named("python", "customers.py")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) > 0.8


def test_an_objective_of_ones_own_trains_as_written(tmp_path: Path) -> None:
    (program,) = named("python", "huber.py")
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    huber, squared = map(float, run.stdout.split())
    assert huber < 0.1 < squared


USE_OUR_LAB = """
from pathlib import Path
import numpy as np
from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.simulate import simulate
from fedsim.settings import parse_settings

rng = np.random.default_rng(0)
Path("mine").mkdir()
labels = rng.integers(3, size=300)
np.save("mine/features.npy", rng.normal(size=(300, 4)) + labels[:, None] * 3)
np.save("mine/labels.npy", labels)
mine = load_dataset(DataSetConfig(name="mine", path=Path("mine"), test_share=0.2), Path())
settings, _ = parse_settings({"model": "narrow", "model_options": {"width": "32"}, "dataset": "mine",
                              "partition": "iid", "num_clients": 10, "fraction_train": 1, "num_rounds": 5,
                              "local_learning_rate": 0.05})
print(simulate(settings, mine).rounds[-1].metrics["accuracy"])
"""


USE_ROBUST_RULES = """
from pathlib import Path
from fedsim.config import DataSetConfig
from fedsim.data import load_dataset
from fedsim.learning.simulate import simulate
from fedsim.settings import parse_settings

digits = load_dataset(DataSetConfig(name="digits", path=Path("digits"), format="digits"), Path())
settings, _ = parse_settings({"dataset": "digits", "partition": "iid", "num_clients": 10, "fraction_train": 1,
                              "num_rounds": 3, "local_learning_rate": 0.1, "strategy": "my_trimmed_mean",
                              "strategy_options": {"share": 0.2}})
print(simulate(settings, digits).rounds[-1].metrics["accuracy"])
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the packages whose files the pages show are installed, by one pip."""
    folder = tmp_path_factory.mktemp("packages")
    for package in PACKAGES:
        module = package.replace("-", "_")
        for language, name in (("toml", f"{package}/pyproject.toml"), ("python", f"{package}/{module}.py")):
            (content,) = named(language, name)
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(content, encoding="utf-8")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-index"]
    install += ["--no-build-isolation", "--no-deps", "--target", str(folder / "installed")]
    subprocess.run([*install, *(str(folder / package) for package in PACKAGES)], check=True)
    return folder / "installed"


def use(program: str, installed: Path, folder: Path) -> float:
    """Run a program that uses the packages, and return the number it prints."""
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    run = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=folder, env=environment
    )
    assert run.returncode == 0, run.stderr
    return float(run.stdout)


def test_a_model_and_a_format_of_ones_own_are_found_once_installed(installed: Path, tmp_path: Path) -> None:
    assert use(USE_OUR_LAB, installed, tmp_path) > 0.8


def test_a_strategy_of_ones_own_trains_with_its_option_once_installed(installed: Path, tmp_path: Path) -> None:
    assert use(USE_ROBUST_RULES, installed, tmp_path) > 0.8
