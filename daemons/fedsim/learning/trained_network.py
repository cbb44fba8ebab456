"""A network while its clients are trained one after another: its tensors, and the vectors that rounds exchange.

Trained parameters of float32 are views of the vectors, so that training them needs no copy. Parameters of lower
precision follow the vector: it holds them in float32, steps are taken there, and each step is rounded into the network.
Buffers are copied before and after each client, because a module may replace its own.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fedsim.learning.examples import FloatArray
from fedsim.learning.networks import TaskNetwork, input_type, share_parts, split_vector
from fedsim.learning.tensor_roles import named_tensors


class TrainedNetwork:
    """A task's network on one device.

    Attributes:
        model: in training mode; modules whose statistics are frozen compute as in a test.
        flat: the flat vector of the client that is trained, float32 [P].
        own: its personal vector, float32 [Q].
        parameters: all that is trained: the shared parameters, then the personal ones.
        values: the same as float32, parts of the two vectors, unknown to autograd: the optimizer updates these.
        num_shared: how many of them are shared.
    """

    def __init__(self, network: TaskNetwork, device: torch.device) -> None:
        self.model = network.model.to(device).train()
        self.roles = roles = network.roles
        tensors = named_tensors(self.model)
        self.flat = torch.empty(roles.flat_size, device=device)
        self.own = torch.empty(roles.own_size, device=device)
        flat, own = (
            self.shared_parts(self.flat),
            split_vector(self.own, {name: roles.shapes[name] for name in roles.own}),
        )
        share_parts([tensors[name] for name in roles.flat], flat)
        share_parts([tensors[name] for name in roles.own], own)
        self.num_shared = len(roles.trained)
        self.parameters = [tensors[name] for name in roles.trained + roles.personal]
        self.values = flat[: self.num_shared] + own[: len(roles.personal)]
        self._rounded = [
            (parameter, value)
            for parameter, value in zip(self.parameters, self.values, strict=True)
            if parameter.dtype != value.dtype
        ]
        changing = () if roles.frozen_statistics else roles.statistics
        self._statistics = dict(zip(roles.statistics, flat[self.num_shared :], strict=True))
        self._changing = {name: self._statistics[name] for name in changing}
        personal = dict(zip(roles.personal_statistics, own[len(roles.personal) :], strict=True))
        self._statistics |= personal
        self._changing |= personal
        buffers = [name for name in roles.fixed if not isinstance(tensors[name], nn.Parameter)]
        self._fixed = {name: tensors[name].clone() for name in buffers}
        self._own_start = self.own.clone()
        self._input_type = input_type(self.model)
        for name in roles.statistics if roles.frozen_statistics else ():
            self.model.get_submodule(name.rpartition(".")[0]).training = False

    @property
    def num_statistics(self) -> int:
        """Numbers of the shared statistics, the last of the flat vector."""
        return self.roles.shared_statistics.count

    def shared_parts(self, vector: Tensor) -> list[Tensor]:
        """A vector like the flat one, as views of one tensor for each of the network's tensors in it."""
        return split_vector(vector, self.roles.flat_shapes)

    @torch.no_grad()
    def begin(self, start: Tensor, own: Tensor | None) -> None:
        """Set all tensors to what a client starts its round with; without `own` it is the client's first round."""
        self.flat.copy_(start)
        self.own.copy_(self._own_start if own is None else own)
        self.round_parameters()
        for name, part in self._statistics.items():
            self.model.get_buffer(name).copy_(part)
        for name, built in self._fixed.items():
            self.model.get_buffer(name).copy_(built)

    def round_parameters(self) -> None:
        """Let parameters of lower precision follow the vectors, after a step."""
        for parameter, value in self._rounded:
            parameter.data.copy_(value)

    @torch.no_grad()
    def finish(self) -> None:
        """Bring the statistics that training has changed into the vectors."""
        for name, part in self._changing.items():
            part.copy_(self.model.get_buffer(name))

    def __call__(self, inputs: Tensor) -> Tensor:
        """The network's outputs, at least float32."""
        outputs: Tensor = self.model(inputs.to(self._input_type))
        return outputs.float() if outputs.dtype in {torch.float16, torch.bfloat16} else outputs

    def with_statistics(self, shared: list[Tensor], like: Tensor | None = None) -> FloatArray:
        """The vector of one tensor for each shared parameter, followed by the statistics of `like`, or by zeros."""
        parts = [part.reshape(-1) for part in shared]
        if count := self.num_statistics:
            parts.append(self.flat.new_zeros(count) if like is None else like[-count:])
        vector: FloatArray = torch.cat(parts).cpu().numpy()
        return vector
