"""The images from which hosts start: bare Debian as an installer leaves it, without anything of fedsim.

Each is built once and kept below FEDSIM_LAB_CACHE under a digest of its recipe; another recipe builds another image.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from commands import call

CACHE = Path(os.environ.get("FEDSIM_LAB_CACHE") or "/var/cache/fedsim-lab")
MIRROR = "http://deb.debian.org/debian"
PACKAGES = ("systemd", "systemd-sysv", "dbus", "iproute2", "procps", "python3", "openssh-server", "sudo")
# As in labs where root does not log in.
SUDOER = "admin"
FILES = {
    f"etc/sudoers.d/{SUDOER}": f"{SUDOER} ALL=(ALL) NOPASSWD: ALL\n",
    # All hosts share one disk, which dpkg would wait for after every file.
    "etc/dpkg/dpkg.cfg.d/lab": "force-unsafe-io\n",
    # A cut cable must not take the address away, as on a machine with a fixed one.
    "etc/systemd/network/10-lab.network": (
        "[Match]\nName=host0\n\n[Network]\nLinkLocalAddressing=no\nConfigureWithoutCarrier=yes\nIgnoreCarrierLoss=yes\n"
    ),
}
# No host asks a mirror that it cannot reach, and no one logs in at a console.
MASKED = [
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "console-getty.service",
    "systemd-networkd-wait-online.service",
]
BUILD_SECONDS = 1200


def bare_image(suite: str = "bookworm", packages: tuple[str, ...] = ()) -> Path:
    """The folder of the image of a release, with some packages more; builds it where it is not there.

    Raises:
        CommandError: debootstrap cannot, most often because there is no mirror.
    """
    recipe = json.dumps([suite, MIRROR, [*PACKAGES, *packages], FILES, MASKED])
    CACHE.mkdir(parents=True, exist_ok=True)
    image = CACHE / f"image-{suite}-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    with (CACHE / "image.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not image.is_dir():
            for old in CACHE.glob(f"image-{suite}-*"):
                shutil.rmtree(old)
            unfinished = CACHE / "unfinished-image"
            with suppress(FileNotFoundError):
                shutil.rmtree(unfinished)
            with tempfile.TemporaryDirectory(prefix="fedsim-image-") as memory:
                # In memory dpkg need not wait for a disk after every file.
                call(["mount", "-t", "tmpfs", "-o", "size=2g,mode=755", "tmpfs", memory])
                try:
                    _build(Path(memory), suite, [*PACKAGES, *packages])
                    call(["cp", "--archive", memory, str(unfinished)])
                finally:
                    call(["umount", memory])
            unfinished.rename(image)
    return image


def _build(folder: Path, suite: str, packages: list[str]) -> None:
    include = f"--include={','.join(packages)}"
    call(["debootstrap", "--variant=minbase", include, suite, str(folder), MIRROR], seconds=BUILD_SECONDS)
    for name, text in FILES.items():
        (folder / name).write_text(text, encoding="utf-8")
    call(["useradd", "--root", str(folder), "--create-home", "--shell", "/bin/bash", SUDOER])
    call(["systemctl", f"--root={folder}", "--quiet", "enable", "systemd-networkd.service"])
    call(["systemctl", f"--root={folder}", "--quiet", "mask", *MASKED])
    for key in (folder / "etc/ssh").glob("ssh_host_*"):
        key.unlink()  # each host gets its own
    shutil.rmtree(folder / "var/cache/apt/archives")
