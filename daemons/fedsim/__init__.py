"""fedsim: horizontal federated learning on lab machines, moved by files over TCP."""

__version__ = "0.2.0"
