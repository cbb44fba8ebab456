"""Run on a host: creates the virtual environment of a version, and reuses the packages of an earlier one.

Only the standard library. `environment.py missing FOLDER VERSION` prints patterns of the wheels that must be copied to
FOLDER/wheels, next to requirements.txt. `environment.py build FOLDER VERSION` then creates FOLDER/VERSION from them.

Packages of the same version and digest become hard links to the files of an environment that is already installed. The
files of that environment never change: pip and Python replace a file, they do not write into it. The new environment is
renamed to its place when it is complete, so an interrupted run leaves the previous one.
"""

import os
import pwd
import re
import shutil
import subprocess
import sys
from importlib.metadata import Distribution, distributions
from importlib.util import cache_from_source
from pathlib import Path

MARKER = "installed-"  # a file of a complete environment, with the requirements from which it was made
WORLD_READABLE = 0o004
# Most modules of these packages are never imported, and compiling them takes twice as long as all the rest.
LARGE = r"/(networkx|pip|scipy|setuptools|sklearn|sympy|torch)/"
IMPORTED = """
from importlib.util import find_spec
for name in ("torch", "scipy.stats", "sklearn.datasets"):
    if find_spec(name.partition(".")[0]):
        __import__(name)  # which compiles what it imports
"""


def requirements(path: Path) -> dict[str, str]:
    """The lines of a requirements file by the packages' normalised names."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return {normalised(line.partition("==")[0]): line for line in lines}


def normalised(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def site_packages(environment: Path) -> Path:
    """The packages' folder of this Python version."""
    return environment / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def files_of(package: Distribution, environment: Path) -> dict[str, Path]:
    """The files of an installed package by their paths in the environment.

    Raises:
        ValueError: a file is missing, has another length, or is not readable by every user.
    """
    result = {}
    for file in package.files or ():
        path = Path(os.path.normpath(str(package.locate_file(file))))
        relative = str(path.relative_to(environment))
        if not path.exists() and file.hash is None:
            continue  # bytecode, which Python creates again
        status = path.stat()
        # Scripts contain the environment's path, so their length differs from the recorded one.
        if file.size not in {None, status.st_size} and not relative.startswith("bin/"):
            raise ValueError(f"{path} is damaged")
        if not status.st_mode & WORLD_READABLE:
            raise ValueError(f"{path} is not readable by every user")
        result[relative] = path
        if path.suffix == ".py" and (compiled := Path(cache_from_source(path))).exists():
            result[str(compiled.relative_to(environment))] = compiled
    return result


def reusable(environment: Path, wanted: dict[str, str]) -> dict[str, dict[str, Path]]:
    """The intact packages of a complete environment that are also wanted, and pip, with their files."""
    markers = sorted(environment.glob(f"{MARKER}*"), key=lambda path: path.stat().st_mtime)
    if not markers:
        return {}
    present = requirements(markers[-1])
    result = {}
    for package in distributions(path=[str(site_packages(environment))]):
        name = normalised(package.metadata["Name"])
        if name == "pip" or (name in wanted and wanted[name] == present.get(name)):
            try:
                result[name] = files_of(package, environment)
            except (OSError, ValueError):
                continue  # it is installed again
    return result


def best(folder: Path, wanted: dict[str, str]) -> tuple[Path, dict[str, dict[str, Path]]]:
    """The environment with the most reusable packages, and these."""
    candidates = [(path, reusable(path, wanted)) for path in sorted(folder.glob("[0-9]*")) if path.is_dir()]
    return max(candidates, key=lambda candidate: len(candidate[1]), default=(folder / "none", {}))


def missing(folder: Path) -> list[str]:
    """Patterns of the wheels that no environment contains."""
    wanted = requirements(folder / "wheels" / "requirements.txt")
    _, packages = best(folder, wanted)
    return ["-".join(line.split()[0].split("==")) + "-*.whl" for name, line in wanted.items() if name not in packages]


def build(folder: Path, version: str, digest: str, user: str = "nobody") -> None:
    """Create the environment of a version in a temporary folder, check it as a user, and rename it to its place."""
    wheels, new, final, old = folder / "wheels", folder / f"{version}.new", folder / version, folder / f"{version}.old"
    wanted = requirements(wheels / "requirements.txt")
    shutil.rmtree(new, ignore_errors=True)
    base, packages = best(folder, wanted)
    run(sys.executable, "-m", "venv", "--without-pip", "--prompt", version, str(new))
    python = str(new / "bin" / "python")
    for files in packages.values():
        link(files, new)
    if "pip" not in packages:
        run(python, "-m", "ensurepip", "--default-pip")
    if rest := [line for name, line in wanted.items() if name not in packages]:
        (wheels / "rest.txt").write_text("\n".join(rest) + "\n", encoding="utf-8")
        offline = ("--no-index", "--no-deps", "--require-hashes", "--find-links", str(wheels))
        run(python, "-m", "pip", "--quiet", "--disable-pip-version-check", "--no-cache-dir", "install", "--no-compile",
            *offline, "--requirement", str(wheels / "rest.txt"))  # fmt: skip
    for path in [*(new / "bin").iterdir(), new / "pyvenv.cfg"]:
        relocate(path, (base, new), final)
    # Daemons cannot write here, and would compile what they import at each start.
    run(python, "-c", IMPORTED)
    run(python, "-m", "compileall", "-q", "-j", "0", "-x", LARGE, str(site_packages(new)))
    # Each daemon runs as a user of its own, also where root's umask is 077.
    run(python, str(new / "bin" / "fedsim"), "--version", user=user, group=pwd.getpwnam(user).pw_gid)
    os.sync()  # a power cut must not leave a marker without the files
    shutil.copy(wheels / "requirements.txt", new / f"{MARKER}{digest}")
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    new.rename(final)
    for path in (old, wheels):
        shutil.rmtree(path, ignore_errors=True)


def link(files: dict[str, Path], environment: Path) -> None:
    """Add a package's files to an environment: scripts as copies, which `relocate` changes, others as hard links."""
    for relative, path in files.items():
        target = environment / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if relative.startswith("bin/"):
            shutil.copy2(path, target)
        elif not target.exists():  # packages may share a file
            os.link(path, target)


def relocate(path: Path, before: tuple[Path, ...], after: Path) -> None:
    """Replace the path of an environment in one of its scripts, such as in its first line."""
    if path.is_symlink() or not path.is_file():
        return
    text = path.read_bytes()
    places = b"|".join(re.escape(os.fsencode(place)) for place in before)
    changed = re.sub(rb"(?:%s)(?=[/\"'\s]|$)" % places, os.fsencode(after).replace(b"\\", rb"\\"), text)
    if changed != text:
        path.write_bytes(changed)


def run(*command: str, **options: object) -> None:
    """Run a program; its output is shown only if it fails."""
    done = subprocess.run(command, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          cwd="/", **options)  # type: ignore[call-overload] # fmt: skip
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed with exit code {done.returncode}:\n{done.stdout}")


def main() -> None:
    """Run the command line."""
    os.umask(0o022)
    action, folder, *rest = sys.argv[1:]
    if action == "missing":
        print(*missing(Path(folder)), sep="\n")  # noqa: T201
    else:
        build(Path(folder), *rest)
        print("changed")  # noqa: T201


if __name__ == "__main__":
    main()
