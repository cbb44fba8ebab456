"""Types and checks of the fields of configuration files."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, model_validator
from pydantic_core import PydanticCustomError

from fedsim import plugins
from fedsim.errors import BadInput

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=31_536_000)]
Bytes = Annotated[int, Field(ge=0)]
MeasurableCount = Annotated[int, Field(ge=1, le=256)] | Literal["auto"]
WarmWorker = Annotated[
    bool,
    Field(description="Import torch when the daemon starts, so that the first task starts at once; takes 200 MB"),
]


class StrictModel(BaseModel):
    """A frozen model in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


IPV6_NETWORK_BITS = 64


def is_loopback(address: str) -> bool:
    """Whether `address` can only be reached from this machine."""
    if address == "localhost":
        return True
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


def network_of(address: str) -> str:
    """The address; of IPv6 the network, which one host usually has as a whole. Other text is returned unchanged."""
    try:
        found = ip_address(address)
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    return str(ip_network((int(found), IPV6_NETWORK_BITS), strict=False))


def _host(value: object) -> object:
    """Accept brackets around an IPv6 address, which YAML reads as a list; explain a port after a host."""
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str):
        value = f"[{value[0]}]"
    if not isinstance(value, str):
        return value
    host = value.strip()
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    if not host or any(character.isspace() or character == "/" for character in host):
        raise ValueError(f"{value!r} must be an IP address or the name of a host")
    name, colon, port = host.rpartition(":")
    if colon and (":" not in name or name.endswith("]")):
        raise ValueError(f"must be only the host, without its port: address: {name.strip('[]')}, port: {port or 9001}")
    return host


Host = Annotated[str, BeforeValidator(_host)]


class Address(StrictModel):
    """An address and a port to listen on."""

    address: Host = Field("127.0.0.1", description="IP address or host name")
    port: Port = Field(description="TCP port")

    @model_validator(mode="before")
    @classmethod
    def _explain_text(cls, given: object) -> object:
        if isinstance(given, str) and (match := re.fullmatch(r"\[?([^\[\]]*?)\]?:(\d+)", given.strip())):
            raise ValueError(f"must be written with two keys: {{address: {match[1]!r}, port: {match[2]}}}")
        if isinstance(given, str | int | list):
            raise ValueError("must be written with two keys, such as {address: 127.0.0.1, port: 9001}")  # noqa: TRY004 - pydantic reports it
        return given

    def __str__(self) -> str:
        """The address in the usual notation, with brackets around an IPv6 address."""
        return f"[{self.address}]:{self.port}" if ":" in self.address else f"{self.address}:{self.port}"


def _absolute_or_credential_name(path: Path) -> Path:
    if not path.is_absolute() and (path.parts != (path.name,) or path.name == ".."):
        raise ValueError(f"{path} must be an absolute path, or the bare name of a credential")
    return path


# See fedsim.config.secrets.
Secret = Annotated[Path, AfterValidator(_absolute_or_credential_name)]


class _Located(Protocol):
    @property
    def address(self) -> str: ...


class _Named(Protocol):
    @property
    def name(self) -> str: ...


# A check is attached to the field that it concerns, even where it reads other fields. So pydantic reports all errors at
# once, each with its path; a validator of the whole model would run only after every field is valid.


def check_guarded(addresses: Sequence[_Located], info: ValidationInfo) -> None:
    """Reject addresses beyond loopback without TLS, unless plaintext is explicitly allowed."""
    remote = [item.address for item in addresses if not is_loopback(item.address)]
    # An invalid value is missing from `data`; its own error has been reported.
    known = "tls" in info.data and "insecure_plaintext" in info.data
    if remote and known and info.data["tls"] is None and not info.data["insecure_plaintext"]:
        raise ValueError(
            f"{', '.join(remote)} is not on loopback: configure `tls:`, or set `insecure_plaintext: true` "
            "to send parameters unencrypted"
        )


def _guarded_address(address: Address, info: ValidationInfo) -> Address:
    check_guarded([address], info)
    return address


NamedList = TypeVar("NamedList", bound=Sequence[_Named])


def distinct_names(items: NamedList) -> NamedList:
    """Reject a list in which a name occurs more than once."""
    names = [item.name for item in items]
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is listed more than once")
    return items


def _inside_data_folder(path: Path) -> Path:
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"{path} must be inside the data folder")
    return path


def guarded_web_address(address: Address, info: ValidationInfo) -> Address:
    """Reject addresses beyond loopback: browsers get HTTPS from a proxy; `tls:` is for the connection to the server."""
    if not is_loopback(address.address) and info.data.get("insecure_plaintext") is False:
        raise ValueError(
            f"{address.address} is not on loopback: run the web behind an HTTPS proxy (`behind_proxy: true`), "
            "or set `insecure_plaintext: true` to send passwords unencrypted"
        )
    return address


def installed(group: str, *others: str) -> AfterValidator:
    """A validator: the name must be one that an installed package provides in this entry-point group, or an other."""

    def check(name: str) -> str:
        if name not in (known := (*others, *plugins.names(group))):
            raise ValueError(plugins.unknown(group, name, known))
        return name

    return AfterValidator(check)


def options_of(group: str, field: str) -> Callable[[dict[str, Any], ValidationInfo], dict[str, Any]]:
    """A validator: the options must be those of the plug-in that the field names, which precedes this one."""

    def check(options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if field in info.data and (options or info.data[field] in plugins.names(group)):
            try:
                problems = plugins.option_problems(group, info.data[field], options)
            except BadInput as error:
                raise ValueError(str(error)) from error
            if problems:
                text = "; ".join(f"{option}: {problem}" for option, problem in problems.items())
                raise ValueError(f"options of the {plugins.kind_of(group)} {info.data[field]}: {text}")
        return options

    return check


_DATA_SET_KEYS = ("name", "path", "test_path", "format", "share", "test_share")


def check_format_options(options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
    """A validator: the options must be those of the data format; without a named one, of any installed format."""
    if not options or "format" not in info.data:
        return options
    if (name := info.data["format"]) is None:
        known: set[str] = set()
        for other in plugins.names(plugins.FORMATS):
            with suppress(BadInput):  # a broken package concerns only the data sets that use it
                known |= set(plugins.load(plugins.FORMATS, other).Options.model_fields)
        unknown = [option for option in options if option not in known]
        available = ", ".join([*_DATA_SET_KEYS, *sorted(known)])
        problems = dict.fromkeys(unknown, f"unknown key (available: {available})")
    else:
        problems = plugins.option_problems(plugins.FORMATS, name, options)
    if problems:
        text = "; ".join(f"{option}: {problem}" for option, problem in problems.items())
        raise PydanticCustomError("option_problems", "{text}", {"text": text, "problems": problems})
    return options


Guarded = Annotated[Address, AfterValidator(_guarded_address)]
DataPath = Annotated[Path, AfterValidator(_inside_data_folder)]
