"""`web.yml`: the pages and the JSON API."""

from __future__ import annotations

from importlib.util import find_spec
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, IPvAnyNetwork

from fedsim.config.database import DatabaseKeys
from fedsim.config.fields import Address, Guarded, Name, Seconds, Secret, StrictModel, guarded_web_address, is_loopback
from fedsim.config.models import Networked


def _encrypted_url(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname and is_loopback(parts.hostname)):
        raise ValueError("must begin with https://")
    return url


EncryptedUrl = Annotated[str, AfterValidator(_encrypted_url)]


def _installed(name: str) -> str:
    if find_spec("authlib") is None:
        raise ValueError("needs the extra openid: pip install 'fedsim-lab[openid]'")
    return name


class OpenIdConfig(StrictModel):
    """A provider of OpenID Connect by which people can log in, beside local accounts."""

    issuer: EncryptedUrl = Field(description="The provider's address, exactly as it names itself")
    client_id: Annotated[str, AfterValidator(_installed)] = Field(
        min_length=1, description="The name by which the provider knows this web"
    )
    client_secret_file: Secret = Field(description="File, or credential, with the secret of this web at the provider")
    web_url: EncryptedUrl = Field(description="Address of this web; the provider allows it with /login/openid/callback")
    label: str = Field("OpenID Connect", min_length=1, max_length=40, description="How the log-in page calls it")
    acr_values: list[Annotated[str, Field(pattern=r"^[!-~]{1,200}$")]] = Field(
        [],
        description="Kinds of authentication (claim `acr`) of which the provider must confirm one; empty: any, which "
        "may be a password alone",
    )
    registration: Literal["open", "approval", "closed"] = Field(
        "approval", description="Whose first log-in makes an account: anyone's, with approval, or no one's"
    )


class WebConfig(DatabaseKeys, Networked):
    """`web.yml`: the pages and the JSON API."""

    name: Name = Field("web", description="Name of the web, as in its certificate")
    listen: Annotated[Address, AfterValidator(guarded_web_address)] = Field(
        Address(port=8080), description="Where browsers connect"
    )
    server: Guarded = Field(Address(port=9001), description="Where the server's receiver listens")
    server_name: Name = Field("server", description="Name in the certificate of the server's receiver")
    checkpoints: Path = Field(
        Path("/var/lib/fedsim/server/checkpoints"), description="Folder of the checkpoints that can be downloaded"
    )
    models: Path = Field(
        Path("/var/lib/fedsim/models"), description="Folder of files from which tasks can start, as in server.yml"
    )
    registration: Literal["open", "approval", "closed"] = Field(
        "approval", description="Who may register: anyone, anyone with an administrator's approval, or no one"
    )
    openid: OpenIdConfig | None = Field(None, description="Log-in by an OpenID Connect provider, as well; see there")
    node_timeout_seconds: Seconds = Field(35, description="A node not heard from for this long is shown as offline")
    session_hours: Annotated[float, Field(gt=0, le=8760)] = Field(12, description="A session ends after this time")
    session_idle_hours: Annotated[float, Field(gt=0, le=8760)] = Field(
        4, description="A session that was not used for this long ends"
    )
    max_token_days: int = Field(365, ge=1, description="Longest time after which a token of the JSON API expires")
    require_second_factor: Literal["no", "admins", "all"] = Field(
        "no", description="Who must set up a second factor (one-time codes) before anything else"
    )
    login_attempts: int = Field(
        10,
        ge=1,
        description="Failed log-ins with a name from an address before further ones are refused; with all names, "
        "three times as many. Browsers in which a user has logged in before have a limit of their own",
    )
    login_window_seconds: Seconds = Field(900, description="Period over which failed log-ins are counted")
    registrations_per_address: int = Field(
        20, ge=1, description="Registrations from an address before further ones are refused"
    )
    registrations_overall: int = Field(200, ge=1, description="Registrations in total before further ones are refused")
    registration_window_seconds: Seconds = Field(3600, description="Period over which registrations are counted")
    max_unfinished_tasks: int = Field(
        1000, ge=1, description="Tasks of one user that wait or run; further ones are refused"
    )
    max_task_size: int | None = Field(
        None, ge=1, description="Largest task: rounds x epochs x clients in each round; null: no limit"
    )
    requests_per_minute: int = Field(1200, ge=1, description="Requests of one user, or of one address without a user")
    secure_cookies: bool = Field(True, description="Send cookies over HTTPS only (plain loopback works as well)")
    behind_proxy: bool = Field(False, description="Trust X-Forwarded-For and -Proto of a proxy on this machine")
    threads: int = Field(8, ge=1, le=256, description="Requests that are handled at once")
    request_timeout_seconds: Seconds = Field(20, description="A request must be complete within this time")
    min_bytes_per_second: int = Field(1024, ge=1, description="A browser must receive an answer at least at this rate")
    metrics_to: list[IPvAnyNetwork] = Field(
        [ip_network("127.0.0.0/8"), ip_network("::1/128")], description="Who may read /metrics, as networks"
    )
