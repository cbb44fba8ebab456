"""The bill of materials of what was gathered for a release: a CycloneDX document with each wheel and Debian package.

Scanners compare it with lists of known vulnerabilities. The same packages give the same document.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from email.parser import HeaderParser
from pathlib import Path
from typing import Final

from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.utils import canonicalize_name, parse_wheel_filename

from fedsim_fleet.releases import Release

NAME: Final = "sbom.cdx.json"
_OWN: Final = "fedsim-lab"


def write_sbom(release: Release, folder: Path) -> Path:
    """Write the bill of materials of a release's `folder`, with `wheels/` and `debian/Packages`; returns its path."""
    components = [*_wheels(folder / "wheels"), *_debian_packages(folder / "debian" / "Packages", release)]
    own = [component for component in components if component.name == _OWN]
    others = sorted((component for component in components if component.name != _OWN), key=lambda one: str(one.purl))
    content = "\n".join(f"{one.purl} {one.hashes[0].content}" for one in (*own, *others))
    metadata = BomMetaData(component=own[0] if own else None, timestamp=datetime.fromtimestamp(0, UTC))
    serial = uuid.UUID(bytes=hashlib.sha256(content.encode()).digest()[:16], version=4)
    bom = Bom(components=others, serial_number=serial, metadata=metadata)
    for component in own:
        bom.register_dependency(component, others)
    path = folder / NAME
    path.write_text(JsonV1Dot6(bom).output_as_string(indent=1) + "\n", encoding="utf-8")
    return path


def _wheels(folder: Path) -> Iterator[Component]:
    for path in sorted(folder.glob("*.whl")):
        name, version, *_ = parse_wheel_filename(path.name)
        address = PackageURL("pypi", None, canonicalize_name(name), str(version))
        yield _component(address, hashlib.sha256(path.read_bytes()).hexdigest())


def _debian_packages(index: Path, release: Release) -> Iterator[Component]:
    parser, vendor = HeaderParser(), release.system.partition(" ")[0].lower()
    for stanza in index.read_text(encoding="utf-8").split("\n\n"):
        package = parser.parsestr(stanza.strip() + "\n")
        if package["Package"]:
            qualifiers = {"arch": package["Architecture"], "distro": release.name}
            address = PackageURL("deb", vendor, package["Package"], package["Version"], qualifiers)
            yield _component(address, package["SHA256"])


def _component(address: PackageURL, digest: str) -> Component:
    return Component(
        name=address.name,
        version=address.version,
        type=ComponentType.LIBRARY,
        purl=address,
        bom_ref=str(address),
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest)],
    )
