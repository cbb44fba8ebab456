"""The conformance suite: what each plug-in must do, as checks that a package's own tests can run.

```python
@pytest.mark.parametrize("check", checks(plugins.STRATEGIES), ids=str)
def test_trimmed_mean(check):
    check(Candidate(TrimmedMean, {"share": 0.2}))
```

A check raises `AssertionError` with the plug-in, the check and what is wrong. fedsim's tests run the suite for every
built-in plug-in, and run each check against a plug-in that must fail it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from fedsim import plugins
from fedsim.errors import BadInput
from fedsim.plugins import Plugin
from fedsim.testing.conformance import (
    attacks,
    client_training,
    declarations,
    engines,
    formats,
    models,
    partitions,
    samplers,
    schedules,
    screenings,
    strategies,
    transforms,
)
from fedsim.testing.conformance.candidate import Candidate, Check

__all__ = ["Candidate", "Check", "check_plugin", "checks"]

_CHECKS: dict[str, tuple[Callable[[Candidate], None], ...]] = {
    plugins.STRATEGIES: (*declarations.CHECKS, *strategies.CHECKS),
    plugins.PARTITIONS: (*declarations.CHECKS, *partitions.CHECKS),
    plugins.TRANSFORMS: (*declarations.CHECKS, *transforms.CHECKS),
    plugins.SAMPLERS: (*declarations.CHECKS, *samplers.CHECKS),
    plugins.SCHEDULES: (*declarations.CHECKS, *schedules.CHECKS),
    plugins.SCREENINGS: (*declarations.CHECKS, *screenings.CHECKS),
    plugins.ATTACKS: (*declarations.CHECKS, *attacks.CHECKS),
    plugins.OBJECTIVES: (*declarations.CHECKS, *client_training.OBJECTIVE_CHECKS),
    plugins.OPTIMIZERS: (*declarations.CHECKS, *client_training.OPTIMIZER_CHECKS),
    plugins.MODELS: (*declarations.CHECKS, *models.CHECKS),
    plugins.ENGINES: (*declarations.CHECKS, *engines.CHECKS),
    plugins.FORMATS: (*declarations.CHECKS, *formats.CHECKS),
}


def checks(group: str) -> tuple[Check, ...]:
    """All checks for the plug-ins of a group of entry points, such as `fedsim.strategies`.

    Raises:
        BadInput: the suite has no checks for this group.
    """
    if group not in _CHECKS:
        raise BadInput(f"there are no conformance checks for {group!r} (available: {', '.join(_CHECKS)})")
    return tuple(Check(function) for function in _CHECKS[group])


def check_plugin(
    group: str,
    plugin: type[Plugin] | Candidate,
    options: Mapping[str, Any] | None = None,
    *,
    skip: Collection[str] = (),
) -> None:
    """Run all checks of a group on one plug-in.

    Args:
        group: of entry points, such as `fedsim.strategies`.
        plugin: the class, defined at the top level of a module that can be imported; or a candidate, which names what
            the checks need besides.
        options: values for the plug-in's options; the others have their defaults.
        skip: names of checks that do not apply, such as `another_seed_divides_differently` for a partition that
            draws nothing at random.

    Raises:
        AssertionError: a check failed.
        BadInput: the suite has no checks for this group, or `skip` names one that does not exist.
    """
    found = checks(group)
    unknown = set(skip) - {str(check) for check in found}
    if unknown:
        raise BadInput(f"skip: {', '.join(sorted(unknown))}: no such check (checks: {', '.join(map(str, found))})")
    candidate = plugin if isinstance(plugin, Candidate) else Candidate(plugin, options or {})
    for check in found:
        if str(check) not in skip:
            check(candidate)
