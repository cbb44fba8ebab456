"""The command `fedsim-ca`: the lab's certificate authority and, on a host, its key and signing request."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec

import click
from cryptography.hazmat.primitives import hashes
from pydantic import BaseModel, ConfigDict, RootModel, ValidationError

from fedsim import __version__
from fedsim.cli.options import json_option
from fedsim.cli.output import NONE, Output
from fedsim.command import exit_codes, run_command
from fedsim.errors import EX_DATA, EX_NOINPUT, EX_OK, EX_UNAVAILABLE, EX_USAGE, BadInput, NotThere, Unavailable
from fedsim.spool.durable import replacing, write_all
from fedsim.spool.files import Role
from fedsim_fleet.authority import AUTHORITY_DAYS, CERTIFICATE_DAYS, Authority, Issued
from fedsim_fleet.certificates import HTTPS, MAX_REQUEST_BYTES, Use
from fedsim_fleet.request import request_for

P = ParamSpec("P")
FROM_ENVIRONMENT = "FEDSIM_CA_PASSPHRASE"

EPILOG = exit_codes(EX_OK, EX_USAGE, EX_DATA, EX_NOINPUT, EX_UNAVAILABLE)


@click.group(epilog=EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__)
def ca() -> None:
    """The lab's certificate authority.

    Create it once with `fedsim-ca init`, on the control machine. On a host, `fedsim-ca request` creates the key and
    prints a signing request. Sign it with `fedsim-ca sign`, for the name and role that you specify.
    """


def passphrase_from(path: Path | None) -> Callable[[], bytes]:
    """Return a function that reads the passphrase, from the file or else from the environment.

    Raises:
        BadInput: neither is set.
    """

    def passphrase() -> bytes:
        if path is not None:
            return _read(path).rstrip(b"\r\n")
        given = os.environb.get(FROM_ENVIRONMENT.encode())
        if not given:
            raise BadInput(f"the authority's passphrase is required: use --passphrase-file, or set {FROM_ENVIRONMENT}")
        return given

    return passphrase


def _read(path: Path) -> bytes:
    try:
        with click.open_file(str(path), "rb") as file:
            data: bytes = file.read(MAX_REQUEST_BYTES + 1)
    except OSError as error:
        raise NotThere(f"{path} cannot be read: {error.strerror}") from error
    return data


def _write(path: Path | None, data: bytes) -> None:
    """Write durably to the file, or else to standard output."""
    if path is None:
        click.echo(data, nl=False)
        return
    try:
        with replacing(path) as file:
            os.fchmod(file.fileno(), 0o644)
            write_all(file, data)
    except OSError as error:
        raise Unavailable(f"{path} cannot be written: {error.strerror}") from error


folder_option = click.option(
    "--folder",
    type=click.Path(path_type=Path),
    envvar="FEDSIM_CA",
    default=Path("ca"),
    show_default=True,
    help="The authority's folder [env: FEDSIM_CA].",
)
passphrase_option = click.option(
    "--passphrase-file",
    type=click.Path(path_type=Path),
    help=f"A file with the passphrase, - for standard input [else: ${FROM_ENVIRONMENT}].",
)
out_option = click.option(
    "--out", type=click.Path(path_type=Path), help="File for the result [default: standard output]."
)
days_option = click.option(
    "--days",
    type=click.IntRange(1, AUTHORITY_DAYS),
    default=CERTIFICATE_DAYS,
    show_default=True,
    help="Validity in days.",
)


def _with_authority(function: Callable[Concatenate[Authority, P], None]) -> Callable[P, None]:
    """Decorate a command on the authority: it is passed before the command's own parameters."""

    @folder_option
    @passphrase_option
    @wraps(function)
    def command(*args: P.args, **kwargs: P.kwargs) -> None:
        folder, file = kwargs.pop("folder"), kwargs.pop("passphrase_file")
        authority = Authority(Path(str(folder)), passphrase_from(None if file is None else Path(str(file))))
        function(authority, *args, **kwargs)

    return command


@ca.command()
@folder_option
@passphrase_option
@click.option("--name", default="fedsim lab", show_default=True, help="The authority's name, for people.")
@click.option("--days", type=click.IntRange(1), default=AUTHORITY_DAYS, show_default=True, help="Validity in days.")
@click.option(
    "--permit",
    "permitted",
    multiple=True,
    help="A name or address of the web: this authority certifies it for browsers, and nothing else (repeatable).",
)
@json_option
def init(
    folder: Path, passphrase_file: Path | None, name: str, days: int, permitted: Sequence[str], as_json: bool
) -> None:
    """Create a new authority: of the lab's hosts or, with --permit, of the web's certificate."""
    secret = passphrase_from(passphrase_file)
    authority = Authority.make(folder, secret, name=name, permitted=permitted, days=days)
    out = Output(as_json=as_json)
    if as_json:
        out.document(_plain_authority(authority))
    else:
        out.say(f"Created the authority {name!r} in {folder}, valid for {authority.days_left()} days.")
        use = "Import ca.crt into browsers." if permitted else "Copy ca.crt and crl.pem to every host."
        out.say(f"{use} Keep ca.key and its passphrase here, and back up the folder.")


@ca.command()
@click.argument("request", type=click.Path(path_type=Path))
@click.option("--name", required=True, help="Name of the host in the inventory; the name in the request is ignored.")
@click.option(
    "--role",
    type=click.Choice([*(role.value for role in Role), HTTPS]),
    required=True,
    help="Role of the host; https is the certificate that browsers see, of an authority with --permit.",
)
@days_option
@out_option
@json_option
@_with_authority
def sign(authority: Authority, request: Path, name: str, role: str, days: int, out: Path | None, as_json: bool) -> None:
    """Sign the signing REQUEST of a host (- for standard input)."""
    use: Use = HTTPS if role == HTTPS else Role(role)
    _hand_out(authority.sign(_read(request), name, use, days=days), out, as_json=as_json)


class SigningRequest(BaseModel):
    """One of the requests that `sign-all` signs."""

    model_config = ConfigDict(extra="forbid")

    name: str
    role: Use
    request: str


class SigningRequests(RootModel[list[SigningRequest]]):
    """The standard input of `sign-all`."""


@ca.command()
@days_option
@_with_authority
def sign_all(authority: Authority, days: int) -> None:
    """Sign the requests of several hosts at once, for programs such as the playbooks.

    Standard input is a JSON list of {"name": ..., "role": ..., "request": ...}, the output a document with the
    certificates.
    """
    try:
        requests = SigningRequests.model_validate_json(sys.stdin.buffer.read()).root
    except ValidationError as error:
        raise BadInput(f"standard input is not a JSON list of signing requests: {error}") from error
    issued = [authority.sign(one.request.encode(), one.name, one.role, days=days) for one in requests]
    Output(as_json=True).document({"certificates": [_plain(item) for item in issued]})


@ca.command()
@click.argument("name")
@days_option
@out_option
@json_option
@_with_authority
def renew(authority: Authority, name: str, days: int, out: Path | None, as_json: bool) -> None:
    """Issue a new certificate for the current key of NAME."""
    _hand_out(authority.renew(name, days=days), out, as_json=as_json)


@ca.command()
@click.argument("name_or_serial")
@click.option("--keep-newest", is_flag=True, help="Keep the newest certificate of the name: after a rotation.")
@json_option
@_with_authority
def revoke(authority: Authority, name_or_serial: str, keep_newest: bool, as_json: bool) -> None:
    """Revoke a certificate, or all of a name, and update crl.pem. It takes effect on hosts that have the new file."""
    revoked = authority.revoke(name_or_serial, keep_newest=keep_newest)
    out = Output(as_json=as_json)
    if as_json:
        out.document({"revoked": [_plain(item) for item in revoked]})
        return
    for item in revoked:
        out.say(f"Revoked {item.serial} of {item.role} {item.name}.")
    if revoked:
        out.say(f"Copy {authority.folder / 'crl.pem'} to every host and reload its daemons.")
    else:
        out.say("There is nothing to revoke.")


@ca.command()
@out_option
@_with_authority
def crl(authority: Authority, out: Path | None) -> None:
    """Print the certificate revocation list; a new one is signed if it is not up to date."""
    _write(out, authority.revocation_list())


@ca.command("list")
@json_option
@_with_authority
def list_(authority: Authority, as_json: bool) -> None:
    """List the certificates and the days until each expires."""
    out, now = Output(as_json=as_json), datetime.now(UTC)
    found = authority.issued()
    if as_json:
        out.document({"authority": _plain_authority(authority), "certificates": [_plain(item) for item in found]})
        return
    rows = [
        (item.name, item.role, item.state(now), f"{item.not_after:%Y-%m-%d}", _days(item, now), item.serial)
        for item in sorted(found, key=lambda item: (item.name, item.not_after))
    ]
    out.table(["name", "role", "state", "until", "days left", "serial"], rows, numbers=["days left"])
    out.note(f"The authority's own certificate is valid for {authority.days_left()} more days.")


@ca.command()
@click.argument("name_or_serial", required=False)
@json_option
@_with_authority
def show(authority: Authority, name_or_serial: str | None, as_json: bool) -> None:
    """Show the authority, or the newest certificate of a name or with a serial number."""
    out, now = Output(as_json=as_json), datetime.now(UTC)
    if name_or_serial is None:
        facts = _plain_authority(authority)
    else:
        facts = _plain(authority.issued(name_or_serial)[-1]) | {
            "state": authority.issued(name_or_serial)[-1].state(now)
        }
    if as_json:
        out.document(facts)
        return
    certificate = facts.pop("certificate")
    for key, value in facts.items():
        out.say(f"{key.replace('_', ' ')}: {NONE if value is None else value}")
    out.say("")
    click.echo(certificate, nl=False)


@ca.command()
@click.argument("name")
@click.option("--key", type=click.Path(path_type=Path), required=True, help="File of the key; created if missing.")
@out_option
def request(name: str, key: Path, out: Path | None) -> None:
    """On a host: create its private key and print a signing request for it. The key never leaves the host."""
    content, made = request_for(key, name)
    _write(out, content)
    click.echo(f"{'Created' if made else 'Used'} the key {key}, which stays on this host.", err=True)


def _hand_out(issued: Issued, path: Path | None, *, as_json: bool) -> None:
    if as_json:
        if path is not None:
            _write(path, issued.certificate.encode())
        Output(as_json=True).document(_plain(issued))
    else:
        _write(path, issued.certificate.encode())
        until = f"{issued.not_after:%Y-%m-%d}"
        Output(as_json=False).note(f"Certified {issued.role} {issued.name} until {until}, serial {issued.serial}.")


def _days(item: Issued, now: datetime) -> str:
    return str(item.days_left(now)) if item.state(now) == "valid" else NONE


def _plain(item: Issued) -> dict[str, Any]:
    document = item.model_dump(mode="json", exclude={"key"})
    return document | {"days_left": item.days_left(datetime.now(UTC))}


def _plain_authority(authority: Authority) -> dict[str, Any]:
    certificate = authority.certificate
    return {
        "name": certificate.subject.rfc4514_string(),
        "fingerprint": certificate.fingerprint(hashes.SHA256()).hex(),
        "not_after": certificate.not_valid_after_utc.isoformat(),
        "days_left": authority.days_left(),
        "certificate": (authority.folder / "ca.crt").read_text(encoding="ascii"),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    return run_command(ca, "fedsim-ca", arguments)
