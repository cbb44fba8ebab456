"""Loading plug-ins, and what is known of their code."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from fedsim import plugins
from fedsim.errors import BadInput
from fedsim.learning.strategies.fedavg import FedAvg
from fedsim.learning.strategies.fedprox import FedProx

BASE = "from fedsim.learning.strategies.fedavg import FedAvg\n\nclass Base(FedAvg):\n    share = {share}\n"
LOAD_WITH_TORCH = """
import sys
from importlib.metadata import EntryPoint
from fedsim import plugins

with plugins.registered(plugins.MODELS, EntryPoint("heavy", "lab_heavy:Heavy", plugins.MODELS)):
    (problem,) = [plugin.problem for plugin in plugins.describe(plugins.MODELS) if plugin.problem]
print("torch" in sys.modules, problem)
"""
RULE = "from lab_base import Base\n\nclass Rule(Base):\n    power = {power}\n"


def _rule(folder: Path, share: float, power: float) -> Any:
    """A plug-in whose base class is another module's."""
    folder.mkdir()
    (folder / "lab_base.py").write_text(BASE.format(share=share))
    (folder / "lab_rule.py").write_text(RULE.format(power=power))
    for name in ("lab_base", "lab_rule"):
        sys.modules.pop(name, None)
    sys.path.insert(0, str(folder))
    try:
        return importlib.import_module("lab_rule").Rule
    finally:
        sys.path.remove(str(folder))


def test_a_digest_covers_the_plugin_and_its_bases_but_not_the_interface_of_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = plugins.source_digest(_rule(tmp_path / "one", 1, 2))
    assert one == plugins.source_digest(_rule(tmp_path / "same", 1, 2))
    assert one != plugins.source_digest(_rule(tmp_path / "power", 1, 3))
    changed = _rule(tmp_path / "share", 2, 2)
    assert one != plugins.source_digest(changed)
    (tmp_path / "share" / "lab_base.py").write_text(BASE.format(share=1))
    monkeypatch.setattr(sys.modules[FedAvg.__module__], "__file__", __file__)
    assert one == plugins.source_digest(changed)


def test_in_a_package_the_digest_covers_the_modules_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "lab_package_of_rules"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "rule.py").write_text(BASE.format(share=1))
    (package / "helper.py").write_text("POWER = 2")
    monkeypatch.syspath_prepend(tmp_path)
    rule = importlib.import_module("lab_package_of_rules.rule").Base
    before = plugins.source_digest(rule)
    (package / "helper.py").write_text("POWER = 3")
    assert plugins.source_digest(rule) != before


def test_a_plugin_that_imports_torch_with_its_module_is_refused_without_loading_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lab_heavy.py").write_text("import torch\n\nclass Heavy:\n    ...\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    run = subprocess.run([sys.executable, "-c", LOAD_WITH_TORCH], capture_output=True, text=True, check=True)
    loaded, _, problem = run.stdout.partition(" ")
    assert loaded == "False"
    assert "the model heavy (lab_heavy:Heavy) cannot be loaded: lab_heavy imports torch" in problem
    assert "import torch inside the functions that use it" in problem


@pytest.mark.parametrize(("found", "what"), [(len, "a builtin_function_or_method"), (int, "the class int")])
def test_what_is_no_plugin_is_refused(found: object, what: str) -> None:
    point = EntryPoint("odd", f"builtins:{getattr(found, '__name__', '')}", plugins.SAMPLERS)
    with (
        plugins.registered(plugins.SAMPLERS, point),
        pytest.raises(BadInput, match=f"the sampler odd .* is {what}; it must be a class that inherits from"),
    ):
        plugins.load(plugins.SAMPLERS, "odd")


def test_a_digest_of_a_plugin_of_fedsim_includes_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = plugins.source_digest(FedProx)
    assert before != plugins.source_digest(FedAvg)
    monkeypatch.setattr(plugins, "__version__", "9.9")
    assert plugins.source_digest(FedProx) != before
