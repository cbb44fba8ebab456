"""A transformer of which a task trains low-rank adapters only: an example of a model with a frozen base."""

from pathlib import Path

from pydantic import Field

from fedsim.errors import BadInput
from fedsim.learning.models import Model
from fedsim.plugins import PluginOptions

BASES = Path("/var/lib/fedsim/models")
"""Where the owner of a host puts bases."""


class LoraTransformer(Model):
    """A transformer on symbols with LoRA adapters (Hu et al. 2021) at the queries and values of each layer.

    The base is on each host and is never sent: what travels are the adapters. Hosts whose bases differ are found by
    their digests.
    """

    title = "transformer with LoRA adapters"
    targets = "tokens"

    class Options(PluginOptions):
        """The size of the network, and of its adapters."""

        width: int = Field(64, ge=4, le=8192, title="Width", description="Numbers for each symbol.")
        heads: int = Field(4, ge=1, le=128, title="Heads", description="They divide the width.")
        layers: int = Field(2, ge=1, le=96, title="Layers", description="Blocks of attention and feed-forward layer.")
        rank: int = Field(4, ge=1, le=1024, title="r", description="Rank of each adapter.")
        alpha: float = Field(8, gt=0, le=10_000, title="α", description="An adapter's output counts α / r.")
        base: str = Field(
            "",
            pattern=r"^([\w-][\w.-]*)?$",
            title="Base",
            description="NAME of the file NAME.safetensors with the base, the same on each host; empty: drawn from the "
            "seed.",
        )

    def build(self, feature_shape, num_classes):
        from peft import LoraConfig, inject_adapter_in_model  # noqa: PLC0415 - daemons load this module without torch
        from safetensors import SafetensorError  # noqa: PLC0415 - as above
        from safetensors.torch import load_file  # noqa: PLC0415 - as above
        from transformer import Transformer  # noqa: PLC0415 - as above

        size = self.options
        if len(feature_shape) != 1:
            raise BadInput(f"model lora_transformer needs sequences [length], not examples of {list(feature_shape)}")
        if size.width % size.heads:
            raise BadInput(f"model lora_transformer: {size.heads} heads do not divide the width {size.width}")
        network = Transformer(feature_shape[0], num_classes, size.width, size.heads, size.layers)
        if size.base:
            try:
                network.load_state_dict(load_file(BASES / f"{size.base}.safetensors"))
            except (OSError, RuntimeError, SafetensorError) as error:
                raise BadInput(f"model lora_transformer: there is no base {size.base} of this size here") from error
        adapters = LoraConfig(r=size.rank, lora_alpha=size.alpha, target_modules=["query", "value"])
        return inject_adapter_in_model(adapters, network)
