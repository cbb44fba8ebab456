"""Compares the certificates of a host with what the inventory and the authority require."""

import json
from datetime import UTC, datetime
from pathlib import Path

from ansible.errors import AnsibleFilterError

# Ansible loads this file anew for each host in each task that uses any filter, and what it imports takes half a second. So
# the functions import what they need.
END = "-----END CERTIFICATE REQUEST-----\n"


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
    from cryptography import x509

    from fedsim_fleet.certificates import HTTPS, permitted_names

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
    from cryptography import x509

    from fedsim.spool.files import Role
    from fedsim_fleet.certificates import HTTPS, is_due, mismatch

    try:
        certificate = x509.load_pem_x509_certificate(file["pem"].encode()) if file and not file["problem"] else None
    except ValueError:
        certificate = None
    if certificate is None:
        return True
    use = HTTPS if identity["role"] == HTTPS else Role(identity["role"])
    return bool(mismatch(certificate, identity["name"], use, signer)) or is_due(certificate, signer, datetime.now(UTC))


def first_with_report(hosts, hostvars):
    """The first of these hosts that has been asked for its certificates: it does what is done once for all of them."""
    return next(host for host in hosts if "stdout" in hostvars[host].get("pki_found", {}))


def hosts_to_certify(hosts, hostvars, *arguments):
    """The identities of these hosts that need a new certificate: [{host, file, name, role}].

    Args:
        hosts: those that have not been asked for their certificates are left out.
        hostvars: the variables of all hosts.
        arguments: further ones of `identities_to_certify`.
    """
    asked = [host for host in hosts if "stdout" in hostvars[host].get("pki_found", {})]
    return [
        {"host": host, **identity}
        for host in asked
        for identity in identities_to_certify(
            hostvars[host]["fedsim_identities"], hostvars[host]["pki_found"]["stdout"], *arguments
        )
    ]


def signing_requests(plan, hostvars):
    """The input of `fedsim-ca sign-all` for each kind of authority: the requests that the hosts have printed.

    Args:
        plan: the identities of all hosts, in the order in which each host has printed its requests.
        hostvars: the variables of all hosts.
    """
    printed = {
        host: iter(hostvars[host]["pki_requests"]["stdout"].split(END))
        for host in dict.fromkeys(identity["host"] for identity in plan)
    }
    result = {"lab": [], "web": []}
    for identity in plan:
        request = {"name": identity["name"], "role": identity["role"], "request": next(printed[identity["host"]]) + END}
        result["web" if identity["role"] == "https" else "lab"].append(request)
    return result


def issued(identities, results):
    """The arguments of install.sh: file and certificate of each identity, from what `fedsim-ca sign-all` printed."""
    found = {
        (item["name"], item["role"]): item["certificate"]
        for result in results
        for item in json.loads(result.get("stdout") or '{"certificates": []}')["certificates"]
    }
    return [part for item in identities for part in (item["file"], found[item["name"], item["role"]])]


class FilterModule:
    """The filters of the role."""

    def filters(self):
        """By name."""
        return {
            "first_with_report": first_with_report,
            "hosts_to_certify": hosts_to_certify,
            "issued": issued,
            "signing_requests": signing_requests,
        }
