"""The metadata of a global model that travels from node to node: see `wire/PROTOCOL.md`."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from fedsim.forwarding_offer import HostName
from fedsim.messages import Message, Name, Seconds


class Successor(Message):
    """The node to which a global model is passed on, and where its receiver listens."""

    node: Name
    address: HostName
    port: Annotated[int, Field(ge=1, le=65535)]


class Forwarding(Message):
    """`forwarding` in the metadata of a `globalparam`: the way of its bytes, as far as it concerns this node.

    `predecessor` will send them, or the server if it is None; `successor` is to get them while they arrive; `seconds`:
    how long this node waits for its predecessor before the server sends it what is missing.
    """

    predecessor: Name | None = None
    successor: Successor | None = None
    seconds: Seconds


class ForwardedModel(Message):
    """`globalparam` from another node: its bytes alone; what belongs to it came from the server."""

    model_config = ConfigDict(extra="forbid", frozen=True)
