"""The installed programs that start often: each is imported with the garbage collector off."""

from __future__ import annotations

from importlib import import_module

from fedsim.imports import without_collecting


def _run(module: str) -> int:
    with without_collecting():
        program = import_module(module)
    code: int = program.main()
    return code


def user() -> int:
    """`fedsim`."""
    return _run("fedsim.cli.main")


def server() -> int:
    """`fedsim-server`."""
    return _run("fedsim.server.main")


def receiver() -> int:
    """`fedsim-receiver`."""
    return _run("fedsim.receiver.main")


def client() -> int:
    """`fedsim-client`."""
    return _run("fedsim.owner.main")


def web() -> int:
    """`fedsim-web`."""
    return _run("fedsim.web.main")
