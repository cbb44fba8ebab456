"""Runs a job in NVIDIA FLARE's simulator: `job.py PARAMETERS NODES ROUNDS MARKS WORKSPACE`; runs in its environment."""

import sys

from flat_model import FlatModel
from nvflare.app_opt.pt.recipes.fedavg import FedAvgRecipe
from nvflare.recipe import SimEnv


def main() -> None:
    """Run it to its end."""
    parameters, nodes, rounds = map(int, sys.argv[1:4])
    marks, workspace = sys.argv[4:]
    recipe = FedAvgRecipe(
        name="bench",
        model=FlatModel(parameters),
        min_clients=nodes,
        num_rounds=rounds,
        train_script="train.py",
        train_args=marks,
    )
    recipe.execute(SimEnv(num_clients=nodes, num_threads=nodes, workspace_root=workspace))


if __name__ == "__main__":
    main()
