"""Configuration: one YAML file per daemon, validated and loaded into a frozen model.

`load` reads a file, `models` and `web` define each daemon's keys, `fields` their types and checks.
"""

from fedsim.config.fields import Address
from fedsim.config.load import load_config
from fedsim.config.models import (
    AUTO,
    ClientConfig,
    DataSetConfig,
    Limits,
    Measured,
    NodeAddress,
    PeerConfig,
    ReceiverConfig,
    ServerConfig,
    TaskLimits,
    TlsConfig,
)
from fedsim.config.retention import Retention
from fedsim.config.web import OpenIdConfig, WebConfig

__all__ = [
    "AUTO",
    "Address",
    "ClientConfig",
    "DataSetConfig",
    "Limits",
    "Measured",
    "NodeAddress",
    "OpenIdConfig",
    "PeerConfig",
    "ReceiverConfig",
    "Retention",
    "ServerConfig",
    "TaskLimits",
    "TlsConfig",
    "WebConfig",
    "load_config",
]
