"""`python -m fedsim.learning.model_shapes`: the shapes of a model's parameters, for processes that import no torch.

Reads a `ModelSpec` as JSON from standard input and writes {"shapes": {name: shape}} to standard output; null stands
for a model that cannot be described without memory for its numbers, and {"problem": text} says why there is no model.
"""

from __future__ import annotations

import json
import sys

from fedsim.errors import BadInput
from fedsim.learning.networks import shapes_on_meta
from fedsim.messages import ModelSpec


def main() -> None:
    """Describe one model."""
    try:
        shapes = shapes_on_meta(ModelSpec.model_validate_json(sys.stdin.read()))
        print(json.dumps({"shapes": shapes}))  # noqa: T201 - read by the web
    except BadInput as error:
        print(json.dumps({"problem": str(error)}))  # noqa: T201


if __name__ == "__main__":
    main()
