"""Rounds without training in Flower: the clients send back what they received. Runs in Flower's environment."""

import time
from pathlib import Path

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

server = ServerApp()
client = ClientApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run the rounds, and write the moment at which each of them began to the file `marks`."""
    config = context.run_config
    marks = Path(str(config["marks"]))

    def mark(_round: int, _arrays: ArrayRecord) -> None:
        with marks.open("a", encoding="utf-8") as file:
            file.write(f"{time.time()}\n")

    nodes = int(config["nodes"])
    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_evaluate_nodes=nodes, min_available_nodes=nodes)
    initial = ArrayRecord([np.zeros(int(config["parameters"]), np.float32)])
    strategy.start(grid, initial, num_rounds=int(config["rounds"]), evaluate_fn=mark)


@client.train()
def train(message: Message, _context: Context) -> Message:
    """Send the arrays back."""
    content = RecordDict({"arrays": message.content["arrays"], "metrics": MetricRecord({"num-examples": 4})})
    return Message(content=content, reply_to=message)
