"""Checks of what every plug-in that is a class declares: documentation, options, imports."""

from __future__ import annotations

import os
import subprocess
import sys

from fedsim.plugins import PluginOptions
from fedsim.testing.conformance.candidate import Candidate, require


def has_title_and_description(candidate: Candidate) -> None:
    """The class has a title and a docstring of its own: menus and catalogues show them."""
    own = vars(candidate.plugin)
    require(own.get("title"), "the class has no `title`")
    require((own.get("__doc__") or "").strip(), "the class has no docstring")


def options_are_documented(candidate: Candidate) -> None:
    """Options are a frozen `PluginOptions` with a default, a title and a description for each field."""
    model = candidate.plugin.Options
    require(issubclass(model, PluginOptions), "`Options` does not inherit from fedsim.plugins.PluginOptions")
    require(model.model_config.get("frozen"), "`Options` is not frozen")
    require(model.model_config.get("extra") == "forbid", "`Options` accepts fields that it does not declare")
    for name, field in model.model_fields.items():
        require(not field.is_required(), f"the option {name} has no default")
        require(field.title, f"the option {name} has no title")
        require(field.description, f"the option {name} has no description")


def options_survive_json(candidate: Candidate) -> None:
    """Options that were written as JSON and read again are equal: the database and the nodes get them in this way."""
    model = candidate.plugin.Options
    options = model.model_validate(dict(candidate.options))
    again = model.model_validate_json(options.model_dump_json())
    require(again == options, f"the options {options} become {again} after they were written as JSON and read")


def does_not_import_torch(candidate: Candidate) -> None:
    """Importing the module does not import torch: the server and the web read the options, and have no use for it."""
    program = f"import sys, importlib; importlib.import_module({candidate.plugin.__module__!r})\n"
    program += "sys.exit('torch' in sys.modules and 'torch was imported')"
    path = os.pathsep.join(entry for entry in sys.path if entry)
    run = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    problem = (run.stderr.strip().splitlines() or ["no output"])[-1]
    require(run.returncode == 0, f"importing {candidate.plugin.__module__} in a new process: {problem}")


CHECKS = (has_title_and_description, options_are_documented, options_survive_json, does_not_import_torch)
