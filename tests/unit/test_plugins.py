"""What is known of a plug-in's code."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from fedsim import plugins
from fedsim.learning.strategies.fedavg import FedAvg
from fedsim.learning.strategies.fedprox import FedProx

BASE = "from fedsim.learning.strategies.fedavg import FedAvg\n\nclass Base(FedAvg):\n    share = {share}\n"
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


def test_a_digest_of_a_plugin_of_fedsim_includes_the_version(monkeypatch: pytest.MonkeyPatch) -> None:
    before = plugins.source_digest(FedProx)
    assert before != plugins.source_digest(FedAvg)
    monkeypatch.setattr(plugins, "__version__", "9.9")
    assert plugins.source_digest(FedProx) != before
