"""Names and sizes: a class name is defined once in the whole tree, and a module can be read in one sitting."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
MODULES = {str(path.relative_to(ROOT)): path for top in ("daemons", "deploy") for path in (ROOT / top).rglob("*.py")}
MOST_LINES = 350


def test_a_class_name_is_defined_once() -> None:
    defined = defaultdict(list)
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ClassDef) and node.name != "Options":  # the contract of plug-ins
                defined[node.name].append(f"{name}:{node.lineno}")
    repeated = {name: places for name, places in defined.items() if len(places) > 1}
    assert repeated == {}, "rename all but one of each"


def test_a_module_can_be_read_in_one_sitting() -> None:
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in MODULES.items()}
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}, "divide each by concepts"
