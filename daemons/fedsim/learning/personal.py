"""What strategies with personal layers share: which tensors of a model stay with each client, named by patterns."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from fedsim.data_schema import some
from fedsim.errors import BadInput
from fedsim.learning.strategies import Weighted
from fedsim.plugins import gettext_noop

if TYPE_CHECKING:
    from torch import nn

Patterns = Annotated[tuple[Annotated[str, Field(min_length=1, max_length=200)], ...], Field(max_length=100)]


class PersonalLayers(Weighted):
    """A strategy that averages some layers of the model; each client keeps the others on its node."""

    class Options(Weighted.Options):
        """The weighting and the personal layers."""

        personal: Patterns = Field(
            (),
            title=gettext_noop("Personal layers"),
            description=gettext_noop(
                "Names of layers or tensors that stay with each client, with * for any text, separated by commas. "
                "Empty: the last layer."
            ),
        )

    options: Options

    def personal_tensors(self, model: nn.Module) -> frozenset[str]:
        """The tensors that the patterns name; without patterns those of the last layer that has parameters."""
        from fedsim.learning.tensor_roles import SHOWN_TENSORS, averaged_tensors  # noqa: PLC0415 - imports torch

        names = averaged_tensors(model)
        if not self.options.personal:
            last, _, _ = names[-1].rpartition(".")
            return frozenset(name for name in names if name.rpartition(".")[0] == last)
        found: set[str] = set()
        for pattern in self.options.personal:
            matching = {name for name in names if matches(name, pattern)}
            if not matching:
                raise BadInput(
                    f"personal: no tensor of the model is called {pattern} (it has {some(names, SHOWN_TENSORS)})"
                )
            found |= matching
        return frozenset(found)


def matches(name: str, pattern: str) -> bool:
    """Whether a pattern names a tensor, or a layer that the tensor belongs to: `head` names `head.0.weight`."""
    return fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
