"""The robust rules next to those of byzfl (Allouah et al.), the library of the papers' authors, on the same updates."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from presence import missing

from fedsim.learning.aggregate import aggregate, initial_state
from fedsim.learning.strategies import make_strategy
from fedsim.settings import TaskSettings

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]
BYZFL = "byzfl==0.0.11"
CLIENTS, ATTACKERS, SIZE = 11, 2, 5000
EQUAL_TO = 1e-6
# The package's `__init__` imports data sets and benchmarks, whose dependencies are not installed.
SCRIPT = """
import sys
from pathlib import Path
from types import ModuleType

import numpy as np

package = ModuleType("byzfl")
package.__path__ = [str(Path(sys.argv[1]) / "byzfl")]
sys.modules["byzfl"] = package
from byzfl.aggregators import aggregators, preaggregators

given = np.load(sys.argv[2])
rows, start, f = given["rows"], given["start"], int(given["f"])
mean = rows.mean(axis=0)
mixed = preaggregators.NNM(f)(rows)
np.savez(
    sys.argv[3],
    median=aggregators.Median()(rows),
    trimmed_mean=aggregators.TrMean(f)(rows),
    # Blanchard et al. 2017 sum n - f - 2 distances, which is byzfl's rule for one attacker more.
    krum=aggregators.Krum(f + 1)(rows),
    multi_krum=aggregators.MultiKrum(f + 1)(rows),
    # Ours begin at the mean and at the received model, byzfl's at zero.
    geometric_median=mean + aggregators.GeometricMedian(nu=1e-6, T=8)(rows - mean),
    centered_clipping=start + aggregators.CenteredClipping(L=3, tau=2.0)(rows - start),
    mixed_median=aggregators.Median()(mixed),
    mixed_trimmed_mean=aggregators.TrMean(f)(mixed),
)
"""
MIXING = {"pre_aggregation": "nearest_neighbour_mixing"}
RULES: dict[str, tuple[str, dict[str, Any]]] = {
    "median": ("median", {}),
    "trimmed_mean": ("trimmed_mean", {}),
    "krum": ("krum", {}),
    "multi_krum": ("multi_krum", {"chosen": CLIENTS - ATTACKERS - 1}),
    "geometric_median": ("geometric_median", {}),
    "centered_clipping": ("centered_clipping", {"radius": 2.0}),
    "mixed_median": ("median", MIXING),
    "mixed_trimmed_mean": ("trimmed_mean", MIXING),
}


@pytest.fixture(scope="module")
def given() -> dict[str, np.ndarray]:
    """Updates of which two are outliers, float32 [11, 5000], and the model that the clients received."""
    rng = np.random.default_rng(5)
    start = rng.normal(size=SIZE).astype(np.float32)
    rows = start + rng.normal(scale=0.05, size=(CLIENTS, SIZE)).astype(np.float32)
    rows[3] = start - 2 * (rows[0] - start)
    rows[8] = start + rng.normal(scale=1.0, size=SIZE).astype(np.float32)
    return {"rows": rows, "start": start}


@pytest.fixture(scope="module")
def theirs(given: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    """What byzfl makes of them in float64, by rule."""
    folder = tmp_path_factory.mktemp("byzfl")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder / "lib"), BYZFL]
    installed = subprocess.run(install, check=False, capture_output=True, text=True)
    if installed.returncode:
        missing(f"{BYZFL} cannot be installed: {installed.stderr.strip()}")
    updates, results, script = folder / "updates.npz", folder / "results.npz", folder / "rules.py"
    np.savez(updates, f=ATTACKERS, **{name: array.astype(np.float64) for name, array in given.items()})
    script.write_text(SCRIPT, encoding="utf-8")
    subprocess.run([sys.executable, str(script), str(folder / "lib"), str(updates), str(results)], check=True)
    return dict(np.load(results))


@pytest.mark.parametrize("case", RULES)
def test_a_rule_gives_what_byzfl_gives(case: str, given: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    name, options = RULES[case]
    settings = TaskSettings(strategy=name, strategy_options={"attackers": ATTACKERS, **options})
    strategy, start = make_strategy(settings), given["start"]
    out = np.empty_like(start)
    state = initial_state(strategy, SIZE)
    assert aggregate(strategy, start, list(given["rows"]), [1.0] * CLIENTS, state, out, state)
    assert np.abs(out - theirs[case]).max() <= EQUAL_TO
