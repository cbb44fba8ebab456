"""Configuration: one YAML file per daemon, validated and loaded into a frozen model.

`load` reads a file, `models` defines each daemon's keys, `fields` their types and checks.
"""

from fedsim.config.fields import Address
from fedsim.config.load import load_config
from fedsim.config.models import (
    ClientConfig,
    DataSetConfig,
    Limits,
    Measured,
    NodeAddress,
    PeerConfig,
    ReceiverConfig,
    Retention,
    ServerConfig,
    TlsConfig,
    WebConfig,
)

__all__ = [
    "Address",
    "ClientConfig",
    "DataSetConfig",
    "Limits",
    "Measured",
    "NodeAddress",
    "PeerConfig",
    "ReceiverConfig",
    "Retention",
    "ServerConfig",
    "TlsConfig",
    "WebConfig",
    "load_config",
]
