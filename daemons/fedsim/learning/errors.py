"""What can go wrong in training, because of the settings."""

from __future__ import annotations

from fedsim.errors import EX_DATA, FedsimError


class Diverged(FedsimError):  # noqa: N818 - what happened to the model; it ends a task, not a program
    """The model's parameters or its loss are no longer finite. `client` is None where only the aggregate is not."""

    exit_code = EX_DATA

    def __init__(self, round_number: int, client: int | None = None) -> None:
        self.round_number = round_number
        self.client = client
        whose = "" if client is None else f" at client {client}"
        super().__init__(
            f"diverged in round {round_number}{whose}: the model is no longer finite; "
            "try a smaller local_learning_rate, or fewer local_epochs"
        )

    def __reduce__(self) -> tuple[type[Diverged], tuple[int, int | None]]:
        """Of what it is made, for other processes."""
        return Diverged, (self.round_number, self.client)
