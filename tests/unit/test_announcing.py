"""A node's hello always fits, whatever a node has and however much is wrong there."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path

from fedsim import __version__, plugins
from fedsim.client.announcing import make_hello
from fedsim.config import ClientConfig
from fedsim.config.institution import Institution
from fedsim.label_counts import MOST_LABELS
from fedsim.messages import MAX_LISTED, MAX_PROBLEMS, MAX_RUNS, MAX_TEXT, DataSetInfo, GuardInfo, Hello, TaskReport
from fedsim.plugin_settings import TASK_GROUPS
from fedsim.worker.inspector import Inspected

CONFIG = ClientConfig.model_validate(
    {"name": "a", "server": {"port": 1}, "datasets": [{"name": "digits", "path": "digits", "share": True}]}
)
INFO = DataSetInfo(name="digits", digest="0" * 64, num_train=9, num_test=1, feature_shape=(8, 8), num_classes=10)


def report(number: int, runs: int = 1) -> TaskReport:
    return TaskReport(task=f"{number:032x}", state="ready", round=1, num_examples=((1, 2),) * runs)


def test_a_node_with_too_much_of_everything_announces_what_fits_and_says_what_does_not() -> None:
    infos = tuple(INFO.model_copy(update={"name": f"d{number}"}) for number in range(MAX_LISTED + 1))
    unusable = {f"bad{number}": f"{number} " + "ü" * 3000 for number in range(300)} | {"odd": "a file \udcff"}
    reports = [report(number) for number in range(MAX_LISTED + 2)]
    hello = make_hello(CONFIG, Inspected(infos, unusable), reports, ["the disk is full"])
    assert Hello.model_validate_json(hello.model_dump_json()) == hello
    assert (len(hello.datasets), len(hello.tasks), len(hello.problems)) == (MAX_LISTED, MAX_LISTED, MAX_PROBLEMS)
    assert hello.problems[0] == "the disk is full"
    assert f"there are {MAX_LISTED + 1} data sets here, only the first {MAX_LISTED} are listed" in hello.problems
    assert f"there are {MAX_LISTED + 2} tasks here, only the first {MAX_LISTED} are listed" in hello.problems
    assert hello.problems[-1] == "and 205 more problems, see this node's log"
    assert all(len(problem) <= MAX_TEXT for problem in hello.problems)
    assert any(problem.endswith("letters, cut)") for problem in hello.problems)


def test_a_problem_with_undecodable_bytes_can_be_reported() -> None:
    hello = make_hello(CONFIG, Inspected((), {"odd": "a file \udcff"}), [], [])
    assert Hello.model_validate_json(hello.model_dump_json()).problems == ("data set odd: a file ?",)


def test_sizes_that_do_not_fit_beside_others_wait_and_say_so() -> None:
    hello = make_hello(CONFIG, Inspected((INFO,)), [report(1, MAX_RUNS - 5), report(2, 6), report(3, 5)], [])
    assert [(task.state, len(task.num_examples)) for task in hello.tasks] == [
        ("ready", MAX_RUNS - 5),
        ("loading", 0),
        ("ready", 5),
    ]
    (problem,) = hello.problems
    assert f"{2:032x}" in problem


def shows(*names: str, **institution: int) -> ClientConfig:
    listed = [{"name": name, "path": name, "show_labels": True, "access": "open"} for name in names]
    return ClientConfig.model_validate(
        {"name": "a", "server": {"port": 1}, "datasets": listed, "institution": institution}
    )


def test_counts_of_labels_leave_where_the_owner_shows_them_and_by_the_institutions_rule() -> None:
    counted = INFO.model_copy(update={"label_counts": (5, 40, 25)})
    guarded = counted.model_copy(
        update={"guard": GuardInfo(secret_digest="a" * 64, block_size=2, num_blocks=3), "label_counts": (123, 456)}
    )
    for config, info, expected in (
        (CONFIG, counted, None),
        (shows("digits"), counted, (None, 40, None)),  # 5 alone would follow from the sum
        (shows("digits", min_count=5), counted, (5, 40, 25)),
        (shows("digits"), guarded, (120, 450)),
    ):
        hello = make_hello(config, Inspected((info,)), [], [])
        assert hello.datasets[0].label_counts == expected
        assert hello.problems == ()


def test_counts_of_labels_that_do_not_fit_are_left_out_with_the_reason() -> None:
    names = [f"d{number}" for number in range(22)]
    many = [INFO.model_copy(update={"name": name, "label_counts": (10,) * MOST_LABELS}) for name in names[:-1]]
    hello = make_hello(shows(*names), Inspected((*many, INFO.model_copy(update={"name": "d21"}))), [], [])
    assert [info.label_counts is not None for info in hello.datasets] == [True] * 20 + [False] * 2
    full, over = hello.problems
    assert full == "the counts of the labels of d20 do not fit next to those of other data sets"
    assert over == f"the data set d21 has more than {MOST_LABELS} labels: they are not counted"


def test_a_plugin_that_cannot_be_named_or_loaded_is_left_out_and_reported() -> None:
    points = [
        EntryPoint(name, "fedsim.learning.models.logistic:Logistic", plugins.MODELS)
        for name in ("good", "a name with blanks")
    ]
    gone = EntryPoint("gone", "no_such_module:model", plugins.MODELS)
    broken = EntryPoint("broken", "no_such_package.strategy:Broken", plugins.STRATEGIES)
    with plugins.registered(plugins.MODELS, *points, gone), plugins.registered(plugins.STRATEGIES, broken):
        hello = make_hello(CONFIG, Inspected((INFO,)), [], [])
    assert {"good", "2nn"} <= set(hello.offers(plugins.MODELS))
    assert not {"gone", "a name with blanks"} & set(hello.offers(plugins.MODELS))
    assert "broken" not in hello.offers(plugins.STRATEGIES)
    named, missing, unloaded = sorted(hello.problems, key=lambda problem: ("strategy" in problem, "gone" in problem))
    assert named == ("the model 'a name with blanks' cannot be offered: its package must give it a simpler name")
    assert missing.startswith("the model gone (no_such_module:model) cannot be loaded: No module named")
    assert unloaded.startswith("the strategy broken (no_such_package.strategy:Broken) cannot be loaded: No module")


def test_a_hello_names_the_code_of_each_plugin_and_comes_back_as_it_was() -> None:
    hello = make_hello(CONFIG, Inspected((INFO,)), [], [])
    assert Hello.model_validate_json(hello.model_dump_json()) == hello
    for group in TASK_GROUPS:
        offered = () if group == plugins.ATTACKS else plugins.names(group)  # each owner allows attacks first
        assert tuple(hello.offers(group)) == offered
        for name, plugin in hello.offers(group).items():
            assert plugin.provenance == plugins.provenance(group, name)
            assert (plugin.distribution, plugin.version, len(plugin.digest)) == ("fedsim-lab", __version__, 32)


def test_what_the_institution_does_not_allow_is_not_offered() -> None:
    rules = Institution(models=["mlp"], strategies=["fedavg", "median"], samplers=[])
    hello = make_hello(CONFIG.model_copy(update={"institution": rules}), Inspected((INFO,)), [], [])
    assert list(hello.offers(plugins.MODELS)) == ["mlp"]
    assert list(hello.offers(plugins.STRATEGIES)) == ["fedavg", "median"]
    assert list(hello.offers(plugins.SAMPLERS)) == []
    assert tuple(hello.offers(plugins.PARTITIONS)) == plugins.names(plugins.PARTITIONS)


def test_the_code_of_models_is_known_without_importing_torch() -> None:
    told = "import sys; from fedsim import plugins; "
    asked = "print(plugins.provenance(plugins.MODELS, '2nn').digest, 'torch' in sys.modules)"
    ran = subprocess.run([sys.executable, "-c", told + asked], capture_output=True, text=True, check=True)
    assert ran.stdout.split() == [plugins.provenance(plugins.MODELS, "2nn").digest, "False"]


def test_only_what_the_configuration_shares_is_shared() -> None:
    other = INFO.model_copy(update={"name": "other", "share_test": True})
    config = CONFIG.model_copy(update={"data": Path("/nowhere")})
    assert [info.share_test for info in make_hello(config, Inspected((INFO, other)), [], []).datasets] == [True, False]
