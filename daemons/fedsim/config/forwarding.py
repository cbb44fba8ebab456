"""The rules of a node about global models that travel from node to node."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from fedsim.config.fields import Host, StrictModel


class ForwardingRules(StrictModel):
    """Whether global models may travel from node to node: what `server.yml` and both nodes must allow.

    A node learns the name of the one from which it accepts, or to which it passes on, and that one learns its name.
    """

    accept: bool = Field(False, description="Accept global models that the server announced from a node that it names")
    pass_on: bool = Field(False, description="Pass global models on to a node that the server names")
    address: Host | None = Field(None, description="Where other nodes reach this receiver; null: as in server.yml")
    port: Annotated[int, Field(ge=1, le=65535)] | None = Field(None, description="Its port; null: as in server.yml")
