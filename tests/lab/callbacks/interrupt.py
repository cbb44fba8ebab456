"""A callback plugin of Ansible that ends a playbook, as kill -9 does, before its task number $INTERRUPT_AT begins."""

from __future__ import annotations

import os
import signal

from ansible.plugins.callback import CallbackBase


class CallbackModule(CallbackBase):  # type: ignore[misc] # Ansible has no types
    """Counts the tasks that begin."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "interrupt"

    def __init__(self) -> None:
        super().__init__()
        self._left = int(os.environ["INTERRUPT_AT"])

    def v2_playbook_on_task_start(self, task: object, is_conditional: object) -> None:  # noqa: ARG002 - Ansible's names
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
