"""Where the test set of a task comes from: the server's own data, or a node that shares its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fedsim.data_schema import some, unknown_words
from fedsim.messages import DataSetInfo, Hello
from fedsim.state_machines.candidates import Chosen, Impossible, Waiting


@dataclass(frozen=True)
class OwnTestSet:
    """The server's own data set, or why it cannot be used; and the node that is named to share one."""

    info: DataSetInfo | None
    problem: str | None
    node: str


@dataclass(frozen=True)
class TestSetSource:
    """Where the test set comes from: a node, or the server's own."""

    node: str | None


def choose_test_set(
    chosen: Chosen,
    hellos: Mapping[str, Hello],
    infos: Mapping[str, DataSetInfo],
    info: DataSetInfo,
    server: OwnTestSet,
    notes: list[str],
    *,
    own_data: bool,
    evaluation: str = "server",
) -> TestSetSource | Waiting | Impossible:
    """The test set: the server's own, if it has one whose numbers mean the same, else the one that a node shares.

    None is needed where `evaluation` says that only nodes test, or that nothing is tested.
    """
    if evaluation == "none":
        return TestSetSource(None)
    if evaluation == "nodes":
        return _on_nodes({name: infos[name] for name in hellos}, notes)
    own, problem = server.info, server.problem
    if own is not None and own.num_test > 0:
        # A test set may well lack a class; one that the nodes do not have cannot be tested.
        fits = own.num_classes <= chosen.num_classes if own_data else own.num_classes == chosen.num_classes
        if own.feature_shape != info.feature_shape or not fits:
            return Impossible(
                f"the server's data set {info.name} has features {own.feature_shape} and "
                f"{own.num_classes} classes, the nodes' has {info.feature_shape} and {chosen.num_classes}"
            )
        if own.data_schema is not None:
            schema, whose = chosen.data_schema, f"the data of {chosen.schema_from}"
            if text := own.data_schema.difference(schema, whose=whose, scaling=False):
                return Impossible(f"the server's data set {info.name} {text}")
            known = schema.words(chosen.num_classes)
            if unknown := unknown_words(own.data_schema.words(own.num_classes), known):
                return Impossible(
                    f"the server's data set {info.name} has the labels {some(unknown)}, the nodes' has {some(known)}"
                )
            if text := own.data_schema.scaling_difference(schema, whose):
                notes.append(f"the server's test set {text}")
        return TestSetSource(None)
    sharing = [name for name in hellos if infos[name].share_test and infos[name].num_test > 0]
    problem = "it has no test set" if own is not None else problem
    if server.node and server.node not in sharing:
        return Waiting(
            f"the test set of {info.name} is to come from {server.node}, which {_not_sharing(server.node, hellos)}"
        )
    if sharing and not server.node and len({infos[name].digest for name in sharing}) > 1:
        return Impossible(
            f"the nodes {', '.join(sharing)} share different test sets of {info.name}: name one of them with "
            "testset_from in the task or in server.yml, or put one into the server's data folder"
        )
    if sharing:
        return TestSetSource(server.node or sharing[0])
    if problem is not None:
        return Waiting(f"the server's own data set {info.name} cannot be used: {problem}")
    return Impossible(
        f"there is no test set of {info.name}: put one into the server's data folder, "
        "or let a node share its own (`share: true` at the data set in its client.yml)"
    )


def _on_nodes(infos: Mapping[str, DataSetInfo], notes: list[str]) -> TestSetSource | Impossible:
    """No test set at the server: each node tests on what it holds out; those that hold out nothing are noted."""
    without = sorted(name for name, info in infos.items() if not info.num_held_out)
    if len(without) == len(infos):
        return Impossible(
            f"no node has examples of {next(iter(infos.values())).name} on which it could test models: set "
            "validation_share at the data set in client.yml, or evaluation: server in the task"
        )
    notes += [f"{name} holds out no examples: models are not tested on its data" for name in without]
    return TestSetSource(None)


def _not_sharing(node: str, hellos: Mapping[str, Hello]) -> str:
    return "shares none (`share: true` in its client.yml)" if node in hellos else "does not take part"
