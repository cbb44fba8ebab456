"""Types and checks of the fields of configuration files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from fedsim import plugins
from fedsim.errors import BadInput

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(gt=0, le=31_536_000)]
Bytes = Annotated[int, Field(ge=0)]


class StrictModel(BaseModel):
    """A frozen model in which an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def is_loopback(address: str) -> bool:
    """Whether `address` can only be reached from this machine."""
    if address == "localhost":
        return True
    try:
        return ip_address(address).is_loopback
    except ValueError:
        return False


class Address(StrictModel):
    """An address and a port to listen on."""

    address: str = Field("127.0.0.1", description="IP address or host name")
    port: Port = Field(description="TCP port")

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


def installed(group: str) -> AfterValidator:
    """A validator: the name must be one that an installed package provides in this entry-point group."""

    def check(name: str) -> str:
        if name not in plugins.names(group):
            raise ValueError(plugins.unknown(group, name))
        return name

    return AfterValidator(check)


def options_of(group: str, field: str) -> Callable[[dict[str, Any], ValidationInfo], dict[str, Any]]:
    """A validator: the options must be those of the plug-in that the field names, which precedes this one."""

    def check(options: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if field in info.data:
            try:
                plugins.make(group, info.data[field], options)
            except BadInput as error:
                raise ValueError(str(error)) from error
        return options

    return check


Guarded = Annotated[Address, AfterValidator(_guarded_address)]
DataPath = Annotated[Path, AfterValidator(_inside_data_folder)]
