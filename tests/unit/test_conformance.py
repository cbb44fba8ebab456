"""The conformance suite: every built-in plug-in passes it, and each check finds a plug-in that breaks its promise."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import broken_plugins as broken
import numpy as np
import polars as pl
import pytest
from PIL import Image

from fedsim import plugins
from fedsim.errors import BadInput
from fedsim.learning.strategies.fedavg import FedAvg
from fedsim.testing.conformance import Candidate, Check, check_plugin, checks

GROUPS = plugins.GROUPS
# Not the defaults, so that options are used.
OPTIONS: dict[str, dict[str, Any]] = {
    "fedavgm": {"momentum": 0.5, "learning_rate": 0.5},
    "fedprox": {"mu": 0.1},
    "scaffold": {"learning_rate": 0.5},
    "feddyn": {"alpha": 0.5},
    "fedper": {"personal": ("3.bias", "1")},
    "fedrep": {"head_epochs": 2},
    "ditto": {"regularization": 0.5},
    "fedadam": {"learning_rate": 0.1, "beta1": 0.5, "beta2": 0.9, "tau": 0.01},
    "trimmed_mean": {"attackers": 2, "pre_aggregation": "bucketing", "bucket_size": 1},
    "multi_krum": {"attackers": 2, "chosen": 3},
    "geometric_median": {"attackers": 2, "pre_aggregation": "nearest_neighbour_mixing", "iterations": 4},
    "centered_clipping": {"radius": 100.0, "iterations": 2},
    "dirichlet": {"alpha": 5.0},
    "natural": {"selection": "random"},
    "exclude": {"max_norm_ratio": 3.0, "min_cosine": -0.2},
    "over_selection": {"epsilon": 0.5},
    "schedule": {"cohorts": ["3", "0", "9"]},
    "sign_flip": {"s": 2.0, "clients": [0, 3]},
    "gaussian": {"sigma": 0.1, "attackers": 2},
    "alie": {"z": 1.5, "attackers": 3},
    "inner_product": {"epsilon": 0.5, "attackers": 2},
    "min_max": {"perturbation": "unit", "attackers": 3},
    "backdoor": {"target": 1, "gamma": 2.0, "size": 2},
    "mlp": {"hidden": (8, 8, 4)},
    "cnn": {"channels": (4, 8), "hidden": 16},
    "cifar_cnn": {"channels": 8, "hidden": (24, 16)},
    "shakespeare_lstm": {"embedding": 4, "hidden": 8, "layers": 1},
}
# What a plug-in does not promise.
SKIPPED: dict[str, set[str]] = {
    "schedule": {"rounds_differ"},
    "natural": {"another_seed_divides_differently"},  # all clients of the data are asked for
    "text": {"recognises_its_files", "a_wrong_line_is_named"},  # any line is text
}
WITH_PROCESSES = {"ray"}
"""Those that start processes are checked in the integration suite."""
BROKEN: dict[str, dict[str, tuple[Any, ...]]] = {
    plugins.STRATEGIES: {
        "has_title_and_description": (broken.Untitled, broken.Undocumented),
        "options_are_documented": (broken.UndescribedOption, broken.RequiredOption, broken.ChangeableOptions),
        "options_survive_json": (broken.ChangedByJson,),
        "combines_deterministically": (broken.Noisy,),
        "blocks_change_nothing": (broken.CentresBlocks,),
        "passes_add_up": (broken.AddsNorms,),
        "only_reads_its_input": (broken.WritesUpdates, broken.WritesReceived, broken.WritesState),
        "returns_blocks": (broken.ReturnsFloat32, broken.UndeclaredState),
        "continues_after_a_restart": (broken.RemembersItself,),
        "stays_finite": (broken.DividesByTheNorm,),
        "keeps_equal_updates": (broken.SumsUp,),
        "chunks_can_be_summed": (broken.MedianOfChunks,),
        "adjusts_only_gradients": (broken.MovesParameters, broken.PullsReceived),
        "declares_its_arrays": (broken.SendsNoParameters, broken.SendsDownWhatItDoesNotKeep),
        "finishes_clients": (broken.ForgetsAnArray, broken.FinishesInPlace),
        "client_state_survives_a_restart": (broken.RemembersClients,),
        "trains_reproducibly": (broken.NoisyGradients,),
    },
    plugins.PARTITIONS: {
        "divides_among_all_clients": (broken.Loses,),
        "gives_each_example_once": (broken.Repeats,),
        "respects_the_least_size": (broken.GivesAllToOne,),
        "divides_deterministically": (broken.ShufflesAnyhow,),
        "another_seed_divides_differently": (broken.IgnoresTheSeed,),
        "follows_from_counts_as_it_says": (broken.ClaimsToFollowFromCounts,),
        "tasks_train_reproducibly": (broken.ShufflesAnyhow,),
    },
    plugins.SAMPLERS: {
        "draws_a_valid_cohort": (broken.Unordered, broken.DrawsTwice, broken.DrawsNumpyIntegers),
        "draws_as_a_pure_function": (broken.CountsItsDraws, broken.DrawsAnyhow),
        "rounds_differ": (broken.AlwaysTheFirst,),
        "tasks_train_reproducibly": (broken.DrawsAnyhow,),
    },
    plugins.TRANSFORMS: {
        "uploads_have_the_declared_layout": (broken.SendsMore, broken.SendsOtherNumbers),
        "senders_keep_what_is_declared": (broken.KeepsSecretly,),
        "equal_inputs_give_equal_uploads": (broken.DrawsItsNoise,),
        "the_server_gets_the_strategys_arrays": (
            broken.KeepsItsArray,
            broken.ScalesWhatArrived,
            broken.RoundsTheWhole,
        ),
        "changes_only_what_it_returns": (broken.ScalesInPlace,),
        "tasks_train": (broken.Explodes,),
    },
    plugins.SCREENINGS: {
        "finds_something_of_each_update": (broken.FindsTheFirst,),
        "screens_deterministically": (broken.CountsItsRounds,),
        "screening_passes_add_up": (broken.AddsNormsOfBlocks,),
        "equal_updates_are_not_outside": (broken.SuspectsAll,),
        "an_update_that_is_not_finite_is_a_finding": (broken.TrustsAll,),
        "only_reads_the_updates": (broken.CentresInPlace,),
        "screened_tasks_train_reproducibly": (broken.ExcludesAnyhow,),
    },
    plugins.ATTACKS: {
        "changes_what_attackers_train_on_or_send": (broken.DoesNothing, broken.CraftsNothing),
        "crafts_a_difference_of_each_attacker": (broken.CraftsFloat32, broken.SendsOneMore, broken.ReversesInPlace),
        "poisons_with_labels_of_the_task": (broken.CountsClassesFromOne, broken.PoisonsInPlace),
        "attacks_as_a_pure_function": (broken.DrawsItsAttack, broken.CountsItsAttacks),
        "attacked_tasks_train_reproducibly": (broken.DrawsItsAttack,),
    },
    plugins.OBJECTIVES: {
        "loss_is_a_finite_scalar": (broken.NotReduced, broken.Infinite),
        "loss_is_deterministic": (broken.NoisyLoss,),
        "loss_is_a_mean": (broken.SummedLoss,),
        "gradient_reduces_the_loss": (broken.WrongGradient,),
        "objective_trains_reproducibly": (broken.NoisyLoss,),
        "metrics_do_not_depend_on_batches": (broken.MeanOfBatches, broken.NoHeadline),
    },
    plugins.OPTIMIZERS: {
        "a_step_reduces_a_convex_loss": (broken.Climbs, broken.Copies),
        "steps_are_deterministic": (broken.NoisyStep,),
        "clients_share_nothing": (broken.SharedVelocity, broken.LatestVelocity),
        "optimizer_trains_reproducibly": (broken.NoisyStep,),
    },
    plugins.SCHEDULES: {
        "factors_are_positive": (broken.EndsAtZero,),
        "schedules_as_a_pure_function": (broken.CountsItsCalls,),
        "depends_on_the_length_as_declared": (broken.LinearUndeclared,),
        "schedule_trains_reproducibly": (broken.NoisySchedule,),
    },
    plugins.ENGINES: {
        "yields_what_is_declared": (broken.Backwards, broken.SendsFloat64),
        "engine_trains_deterministically": (broken.NoisyEngine,),
        "clients_are_independent": (broken.CountsItsClients,),
        "equals_the_sequential_engine": (broken.LargerSteps,),
        "trains_every_role_of_tensors": (broken.ForgetsPersonalLayers, broken.LargerSteps),
        "leaves_everything_as_it_was": (broken.WritesTheGlobalModel, broken.DrawsFromTorch),
        "reports_divergence": (broken.SwallowsDivergence, broken.BlamesAnother),
        "engine_trains_whole_tasks": (broken.NoisyEngine,),
    },
    plugins.FORMATS: {
        "options_can_be_keys": (broken.OptionsThatAreKeys,),
        "recognises_its_files": (broken.RecognisesAll, broken.RecognisesNone),
        "loads_deterministically": (broken.NoisyFormat,),
        "gives_valid_examples": (broken.RoundLabels,),
        "only_reads_its_files": (broken.WritesAnIndex,),
        "a_short_file_is_named": (broken.NamesNoFile,),
        "damage_is_named": (broken.RaisesAnything,),
        "a_wrong_line_is_named": (broken.NamesNoLine, broken.SkipsWrongLines),
    },
    plugins.MODELS: {
        "begins_deterministically": (broken.AlwaysZero, broken.BeginsAnyhow, broken.HasAnUnusedParameter),
        "model_trains_reproducibly": (broken.DropsOutAnyhow,),
    },
}


pytestmark = pytest.mark.usefixtures("deterministic_torch")


def _candidate(group: str, plugin: Any, name: str, folder: Path) -> Candidate:
    """The plug-in, not with its default options; a data format with a sample that the format `name` reads."""
    if name == "shakespeare_lstm":
        return Candidate(plugin, OPTIONS[name], feature_shape=(8,))
    if group != plugins.FORMATS:
        return Candidate(plugin, OPTIONS.get(name, {}))
    if name == "digits":
        return Candidate(plugin)
    rng = np.random.default_rng(0)
    labels = np.arange(30, dtype=np.uint8) % 3
    pixels = rng.integers(256, size=(30, 3, 32, 32), dtype=np.uint8)
    sample = folder / {"csv": "table.csv", "parquet": "table.parquet", "npz": "arrays.npz"}.get(name, "images")
    match name:
        case "csv":
            rows = "".join(
                f"{label},{x:.3f},{y:.3f}\n" for label, (x, y) in zip(labels, rng.normal(size=(30, 2)), strict=True)
            )
            sample.write_text(f"class,x,y\n{rows}")
            return Candidate(plugin, sample=sample, dataset={"label_column": "class"})
        case "parquet":
            table = {
                "class": labels,
                "x": rng.normal(size=30),
                "word": [f"{value:.2f}" for value in rng.normal(size=30)],
            }
            pl.DataFrame(table).write_parquet(sample)
            return Candidate(plugin, sample=sample, dataset={"label_column": "class"})
        case "npz":
            np.savez(
                sample, x_train=pixels[:, 0, :6, :6], y_train=labels, x_test=pixels[:9, 0, :6, :6], y_test=labels[:9]
            )
        case "text":
            sample.write_text("Ann:\nHow now?\n\nBob:\nIt is I.\n", encoding="utf-8")
            return Candidate(plugin, sample=sample, dataset={"length": 4, "speakers": True})
        case "image_folder":
            for at, ending in enumerate(("png", "png", "pgm")):
                file = sample / f"class-{at % 2}" / f"{at}.{ending}"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels[at, 0, :6, :6]).save(file)
        case "idx":
            sample.mkdir()
            for file, array in (("images-idx3", pixels[:, 0, :6, :6]), ("labels-idx1", labels)):
                header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
                (sample / f"train-{file}-ubyte").write_bytes(header + array.tobytes())
        case "cifar10":
            sample.mkdir()
            records = np.concatenate([labels[:, None], pixels.reshape(30, -1)], axis=1)
            (sample / "data_batch_1.bin").write_bytes(records.tobytes())
            (sample / "test_batch.bin").write_bytes(records[:9].tobytes())
    return Candidate(plugin, sample=sample)


@pytest.mark.parametrize(
    ("group", "name"),
    [
        pytest.param(group, name, id=name)
        for group in GROUPS
        for name in plugins.names(group)
        if name not in WITH_PROCESSES
    ],
)
def test_a_built_in_plugin_passes_every_check(group: str, name: str, tmp_path: Path) -> None:
    skipped = {"does_not_import_torch", *SKIPPED.get(name, ())}  # of all at once: the next test
    check_plugin(group, _candidate(group, plugins.load(group, name), name, tmp_path), skip=skipped)


def test_no_built_in_plugin_imports_torch_with_its_module() -> None:
    modules = sorted({plugins.load(group, name).__module__ for group in GROUPS for name in plugins.names(group)})
    program = """
import sys
from importlib import import_module
for module in sys.argv[1:]:
    import_module(module)
    if "torch" in sys.modules:
        sys.exit(f"{module} imports torch")
"""
    run = subprocess.run([sys.executable, "-c", program, *modules], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    ("group", "name", "plugin"),
    [
        pytest.param(group, name, plugin, id=f"{name}-{plugin.__name__}")
        for group, found in BROKEN.items()
        for name, candidates in found.items()
        for plugin in candidates
    ],
)
def test_a_check_finds_a_plugin_that_breaks_its_promise(group: str, name: str, plugin: Any, tmp_path: Path) -> None:
    (check,) = (check for check in checks(group) if str(check) == name)
    with pytest.raises(AssertionError, match=f"broken_plugins:{plugin.__qualname__} fails {name}: "):
        check(_candidate(group, plugin, "csv", tmp_path))


def test_importing_torch_with_the_module_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "torch.py").touch()  # quick to import in the new process; this one has the real torch
    (tmp_path / "heavy_rules.py").write_text(
        "import torch\nfrom fedsim.learning.strategies.fedavg import FedAvg\n\nclass Heavy(FedAvg):\n    ...\n"
    )
    import heavy_rules  # type: ignore[import-not-found]  # noqa: PLC0415

    with pytest.raises(AssertionError, match="importing heavy_rules in a new process: torch was imported"):
        _check(plugins.STRATEGIES, "does_not_import_torch")(Candidate(heavy_rules.Heavy))


def _check(group: str, name: str) -> Check:
    return next(check for check in checks(group) if str(check) == name)


@pytest.mark.parametrize("group", GROUPS)
def test_every_check_has_a_plugin_that_fails_it(group: str) -> None:
    declarations = {*BROKEN[plugins.STRATEGIES], "does_not_import_torch"}
    assert {str(check) for check in checks(group)} - declarations == set(BROKEN[group]) - declarations


def test_an_error_of_the_plugin_is_reported_with_the_check() -> None:
    with pytest.raises(AssertionError, match="FedAvg fails options_survive_json: ValidationError: "):
        check_plugin(plugins.STRATEGIES, FedAvg, {"weighting": "none"}, skip={"options_are_documented"})


def test_a_check_can_be_skipped_by_its_name_only() -> None:
    check_plugin(
        plugins.PARTITIONS,
        broken.IgnoresTheSeed,
        skip={"another_seed_divides_differently", "has_title_and_description"},
    )
    with pytest.raises(BadInput, match="skip: another_seed: no such check"):
        check_plugin(plugins.PARTITIONS, broken.IgnoresTheSeed, skip={"another_seed"})
    with pytest.raises(BadInput, match=r"no conformance checks for 'fedsim\.codecs'"):
        checks("fedsim.codecs")
