"""A lab of hosts that run different releases of Debian.

It deploys to bare hosts, so it runs in a process of its own.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from deployment import SOURCE, Deployment, gather
from image import CACHE, bare_image
from laboratory import Laboratory

from fedsim_fleet.releases import RELEASES

pytestmark = [pytest.mark.long, pytest.mark.timeout(1700)]
RUNS = {"server": "trixie", "node-a": "bookworm", "node-b": "trixie"}
SERVICES = {
    "server": ["fedsim-receiver", "fedsim-server", "fedsim-web", "nginx", "mariadb"],
    "node-a": ["fedsim-receiver", "fedsim-client"],
    "node-b": ["fedsim-receiver", "fedsim-client"],
}
# PyTorch's own wheel for Python 3.13 is for GPUs, with gigabytes of libraries. Debian's build is for CPUs.
MORE = {"bookworm": (), "trixie": ("python3-torch",)}
PYTHON = "import sys; print('%d.%d' % sys.version_info[:2])"


def torch_of_the_system(folder: Path) -> Path:
    """A folder with a wheel that is called torch and makes the system's torch importable, behind all other packages."""
    pins = (SOURCE / "constraints.txt").read_text(encoding="utf-8").split()
    version = next(pin.removeprefix("torch==") for pin in pins if pin.startswith("torch==")) + "+system"
    tag = f"cp{RELEASES['trixie'].python.replace('.', '')}"
    info = f"torch-{version}.dist-info"
    files = {
        "torch_of_the_system.pth": "/usr/lib/python3/dist-packages\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}-{tag}-linux_x86_64\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"torch-{version}-{tag}-{tag}-linux_x86_64.whl", "w") as wheel:
        for name, text in files.items():
            wheel.writestr(zipfile.ZipInfo(name), text)
    return folder


@pytest.fixture(scope="module")
def laboratory(requirements: None) -> Iterator[Laboratory]:  # noqa: ARG001 - checked first
    """Three bare hosts, two with Debian 13."""
    images = {release: bare_image(release, MORE[release]) for release in set(RUNS.values())}
    with Laboratory.planned({name: images[release] for name, release in RUNS.items()}) as laboratory:
        laboratory.boot()
        yield laboratory


@pytest.fixture(scope="module")
def lab(laboratory: Laboratory) -> Deployment:
    """The lab that site.yml makes of them."""
    options = [part for release in sorted(set(RUNS.values())) for part in ("--release", release)]
    find_links = torch_of_the_system(CACHE / "torch")
    lab = Deployment.of(laboratory, packages=gather(SOURCE, CACHE / "packages", *options, find_links=find_links))
    lab.play("site.yml")
    lab.first_log_in()
    return lab


def test_every_host_installs_what_was_gathered_for_its_release(lab: Deployment) -> None:
    for name, release in RUNS.items():
        host = lab.laboratory[name]
        assert host.run("/opt/fedsim/current/bin/python", "-c", PYTHON).strip() == RELEASES[release].python
        assert host.run("systemctl", "is-active", *SERVICES[name]).split() == ["active"] * len(SERVICES[name])
        assert host.run("systemctl", "--failed", "--no-legend") == ""
        for unit in SERVICES[name]:
            if unit.startswith("fedsim-"):
                assert host.journal("--priority=warning", "--unit", unit) == ""
    assert {node["name"] for node in lab.fedsim("nodes")["nodes"] if node["online"]} == {"node-a", "node-b"}
    assert lab.changes("site.yml") == 0
    assert lab.outdated(RUNS) == {}


def test_nodes_of_both_releases_train_together(lab: Deployment) -> None:
    number = lab.submit()
    assert lab.completed(number)["nodes"] == ["node-a", "node-b"]
    assert lab.download(number) == 3


def test_hosts_reboot_and_renew_their_certificates(lab: Deployment) -> None:
    for name in RUNS:
        lab.laboratory[name].reboot()
    lab.play("rotate-certs.yml")
    lab.completed(lab.submit())


def test_uninstalling_leaves_nothing_and_a_backup_is_restored(lab: Deployment) -> None:
    lab.play("backup.yml")
    (backup,) = lab.inventory.with_name("backups").glob("*.tar")
    assert lab.uninstalled() == {name: [] for name in RUNS}
    lab.play("restore.yml", backup=str(backup))
    assert lab.download(1) == 3
