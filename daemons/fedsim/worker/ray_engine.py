"""The engine that trains the clients of a chunk on a Ray cluster of the node's own."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field

from fedsim.errors import BadInput
from fedsim.learning.components import Components
from fedsim.learning.engines import ClientData, ClientTrainer, Engine
from fedsim.messages import ModelSpec
from fedsim.plugins import PluginOptions

LOCAL = "local"


def _not_itself(name: str) -> str:
    if name == "ray":
        raise ValueError("must be an engine that trains in its own process, such as sequential")
    return name


class RayEngine(Engine):
    """Trains on a node that is a cluster itself: data and model are in Ray's object store, each client is a Ray task.

    Which process trains a client changes nothing, so the updates are those of the engine `inner`, client by client.

    The data travels only inside the cluster. A program that reaches the ports of a Ray cluster and has its token can
    run code in it: its owner names an address that only the cluster's machines reach, and no message from the server
    changes it. With `address: local` Ray runs on this host alone, on 127.0.0.1. Ray's dashboard and usage statistics
    are off.
    """

    title = "ray – on a Ray cluster of the node"
    measured = False
    private_options = frozenset({"address"})

    class Options(PluginOptions):
        """Where Ray runs, and what trains in each of its processes."""

        address: Annotated[str, Field(pattern=r"^(local|[\w.\-\[\]:]+:\d+)$")] = Field(
            LOCAL, title="Address", description="HOST:PORT of the cluster's head; local: started here, on 127.0.0.1."
        )
        processes: Annotated[int, Field(ge=1, le=10_000)] = Field(
            2, title="Processes", description="How many clients are trained at once; local: that many processes."
        )
        object_store_megabytes: Annotated[int, Field(ge=80, le=1_000_000)] = Field(
            512, title="Object store", description="With local: shared memory for data, model and updates, MB."
        )
        inner: Annotated[str, AfterValidator(_not_itself)] = Field(
            "sequential", title="Inner engine", description="The engine in each process, with its default options."
        )

    options: Options

    def start(self, data: ClientData, model_spec: ModelSpec, components: Components, device: str) -> ClientTrainer:
        """Connect to the cluster, and put the data into its object store.

        Raises:
            BadInput: Ray is not installed or not reached, or `device` is no processor.
        """
        from fedsim.worker.ray_trainer import RayTrainer, connect  # noqa: PLC0415 - imports torch

        if device != "cpu":
            raise BadInput(f"engine ray: it trains on processors, not on {device}: set `device: cpu` in client.yml")
        address = None if self.options.address == LOCAL else self.options.address
        connect(address, self.options.processes, self.options.object_store_megabytes << 20)
        return RayTrainer(data, model_spec, components, self.options.inner, self.options.processes)
