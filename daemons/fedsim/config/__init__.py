"""Configuration: one YAML file per daemon, read, checked and turned into a frozen model.

`load` reads a file, `models` says what each daemon's file may hold. Every error is reported at once, with its path.
"""

from fedsim.config.load import load_config
from fedsim.config.models import (
    Address,
    ClientConfig,
    DataSetConfig,
    Limits,
    Measured,
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
    "ReceiverConfig",
    "Retention",
    "ServerConfig",
    "TlsConfig",
    "WebConfig",
    "load_config",
]
