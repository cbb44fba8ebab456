"""Compares the certificates of a host with what the inventory and the authority require."""

import json
from datetime import UTC, datetime
from pathlib import Path

from ansible.errors import AnsibleFilterError
from cryptography import x509

from fedsim.spool.files import Role
from fedsim_fleet.certificates import HTTPS, is_due, mismatch, permitted_names


def identities_to_certify(identities, report, authority, web_authority, web_names, renew=False):
    """The identities that need a new certificate.

    Args:
        identities: of the host: [{file, name, role}].
        report: what files/certificates.py printed on the host.
        authority: the folder of the lab's authority.
        web_authority: the folder of the authority of the web's certificate.
        web_names: the names and addresses that the inventory gives the web.
        renew: all identities need one.
    """
    found = json.loads(report.splitlines()[-1])
    lab, web = (x509.load_pem_x509_certificate(Path(folder, "ca.crt").read_bytes()) for folder in (authority, web_authority))
    if set(web_names) != set(permitted_names(web)):
        raise AnsibleFilterError(
            f"the authority of the web's certificate permits {', '.join(permitted_names(web))}, and the web has the names "
            f"{', '.join(web_names)} (fedsim_https_names): move {web_authority} away and run this again, then import the "
            "new ca.crt of this folder into browsers"
        )
    return [
        identity
        for identity in identities
        if renew or _needs_one(identity, found.get(identity["file"]), web if identity["role"] == HTTPS else lab)
    ]


def _needs_one(identity, file, signer):
    try:
        certificate = x509.load_pem_x509_certificate(file["pem"].encode()) if file and not file["problem"] else None
    except ValueError:
        certificate = None
    if certificate is None:
        return True
    use = HTTPS if identity["role"] == HTTPS else Role(identity["role"])
    return bool(mismatch(certificate, identity["name"], use, signer)) or is_due(certificate, signer, datetime.now(UTC))


class FilterModule:
    """The filters of the role."""

    def filters(self):
        """By name."""
        return {"identities_to_certify": identities_to_certify}
