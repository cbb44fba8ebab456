"""`python -m fedsim.learning.model_shapes`: the shapes of a model's parameters, for processes that import no torch.

Reads a `ModelSpec` as JSON from standard input and writes {"shapes": {name: shape}, "others": [name]}, see
`WantedArrays`, to standard output; null stands for a model that cannot be described without memory for its numbers, and
{"problem": text} says why there is no model.
"""

from __future__ import annotations

import json
import sys

from fedsim.errors import BadInput
from fedsim.learning.fixed_arrays import wanted_by
from fedsim.learning.networks import network_on_meta
from fedsim.learning.tensor_roles import roles_of
from fedsim.messages import ModelSpec


def main() -> None:
    """Describe one model."""
    try:
        described = network_on_meta(ModelSpec.model_validate_json(sys.stdin.read()))
        wanted = None if described is None else wanted_by(roles_of(described))
        answer = {"shapes": wanted and wanted.shapes, "others": sorted(wanted.others) if wanted else []}
        print(json.dumps(answer))  # noqa: T201 - read by the web
    except BadInput as error:
        print(json.dumps({"problem": str(error)}))  # noqa: T201


if __name__ == "__main__":
    main()
