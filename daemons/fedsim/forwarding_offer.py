"""What a node announces about global models that travel from node to node: part of its `hello`."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

HostName = Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[^\s/]+$")]


class ForwardingOffer(BaseModel):
    """What a node's owner allows of global models that travel from node to node (`forwarding` in client.yml)."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    accept: bool = Field(False, description="Whether the node accepts those that another node passes on")
    pass_on: bool = Field(False, description="Whether the node passes on those that it receives")
    address: HostName | None = Field(None, description="Where other nodes reach its receiver; None: as the server")
    port: Annotated[int, Field(ge=1, le=65535)] | None = None
