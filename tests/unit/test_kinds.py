from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import fedsim
from fedsim.spool.kinds import KINDS, Kind, Role, permitted_kinds, received_kinds

MEMBER = '    STATISTICS = "statistics"\n'
ROW = """    Kind.STATISTICS: KindSpec(
        routes=(KindRoute(*CLIENT_TO_SERVER, ParametersBody()),),
        path=PathTemplate("statistics/{task}/round-{round}/{sender}.npy"),
        limit="max_parameter_bytes",
        on_demand=True,
    ),
"""
# Stands for the two other files of a new kind: the one that sends it and the one that handles it.
SEND_AND_HANDLE = """
import sys
from pathlib import Path

import numpy as np

from fedsim.array_layout import Layout
from fedsim.config import ReceiverConfig
from fedsim.errors import Refused
from fedsim.receiver.service import Receiver
from fedsim.spool.allowlist import want
from fedsim.spool.clear import clear_round, clear_task
from fedsim.spool.files import FileId, Kind, Role
from fedsim.spool.npy import write_vector
from fedsim.wire import Identity, Peer, Sender

folder, task = Path(sys.argv[1]), "a" * 32
settings = {"name": "server", "role": "server", "listen": {"port": 0}, "spool": folder / "spool"}
settings |= {"peers": [{"name": "node-1", "role": "client"}], "limits": {"min_free_bytes": 0}}
receiver = Receiver(ReceiverConfig.model_validate(settings))
receiver.start()
write_vector(folder / "good.npy", np.ones(4, np.float32))
write_vector(folder / "bad.npy", np.full(4, np.nan, np.float32))
peer = Peer("server", "127.0.0.1", receiver.port)


def send(name, identity, number):
    with Sender(identity) as sender:
        file = FileId(kind=Kind.STATISTICS, task=task, round=number)
        try:
            return sender.send_and_wait(peer, file, folder / name, give_up_after=30).delivered
        except Refused as refused:
            return refused.code


node = Identity("node-1", Role.CLIENT)
want(receiver.spool, task, {Kind.LOCALPARAM: None})
assert send("good.npy", node, 1) == "not_wanted"
want(receiver.spool, task, {Kind.STATISTICS: ["node-1"]}, layout=Layout({"statistics": (4,)}))
assert send("good.npy", node, 1) is True
assert send("good.npy", node, 2) is True
assert send("bad.npy", node, 3) == "bad_content"
found = receiver.spool.arrived(Kind.STATISTICS, task)
assert [(item.id.round, item.sender) for item in found] == [(1, "node-1"), (2, "node-1")], found
clear_round(receiver.spool, Kind.STATISTICS, task, 1)
assert [item.id.round for item in receiver.spool.arrived(Kind.STATISTICS, task)] == [2]
clear_task(receiver.spool, task)
assert receiver.spool.arrived(Kind.STATISTICS) == []
receiver.close()
"""


def test_a_new_kind_is_a_row_of_the_table_besides_its_sender_and_its_handler(tmp_path: Path) -> None:
    package = shutil.copytree(Path(fedsim.__file__).parent, tmp_path / "source" / "fedsim")
    table = package / "spool" / "kinds.py"
    text = table.read_text()
    last_member, end_of_table = '    STOP = "stop"\n', "    ),\n}\n"
    assert text.count(last_member) == text.count(end_of_table) == 1
    text = text.replace(last_member, last_member + MEMBER).replace(end_of_table, "    ),\n" + ROW + "}\n")
    table.write_text(text)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "source")}
    command = [sys.executable, "-c", SEND_AND_HANDLE, str(tmp_path)]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_every_kind_has_a_row_and_a_folder_of_its_own() -> None:
    assert KINDS.keys() == set(Kind)
    for kind, spec in KINDS.items():
        first, second, *_ = spec.path.text.split("/")
        assert first == kind.value
        assert not spec.of_task or second.split(".")[0] == "{task}", "files of a task can be found by its uid"


def test_the_table_says_who_may_send_what() -> None:
    assert permitted_kinds(Role.WEB, Role.SERVER) == {Kind.INITPARAM, Kind.STOP}
    assert permitted_kinds(Role.SERVER, Role.CLIENT) == {
        Kind.INITPARAM,
        Kind.GLOBALPARAM,
        Kind.MEASURE,
        Kind.REQUEST,
        Kind.EVALUATE,
        Kind.STOP,
    }
    assert permitted_kinds(Role.CLIENT, Role.SERVER) == {
        Kind.HELLO,
        Kind.LOCALPARAM,
        Kind.TESTSET,
        Kind.ANSWER,
        Kind.METRICS,
    }
    assert permitted_kinds(Role.CLIENT, Role.CLIENT) == frozenset()
    assert permitted_kinds(Role.CLIENT, Role.CLIENT, announced=True) == {Kind.GLOBALPARAM}
    announced = [(kind, route.sender) for kind, spec in KINDS.items() for route in spec.routes if route.announced]
    assert announced == [(Kind.GLOBALPARAM, Role.CLIENT)]
    assert received_kinds(Role.WEB) == permitted_kinds(Role.WEB, Role.CLIENT) == frozenset()
    assert {kind for kind, spec in KINDS.items() if spec.on_demand} == set(Kind) - {
        Kind.HELLO,
        Kind.INITPARAM,
        Kind.MEASURE,
        Kind.STOP,
    }
