"""An action of Ansible that runs a script of a role on a host, in one round trip where `script` needs five.

The script travels as standard input, so nothing is written on the host. A script that changes something prints a line
with the word "changed".

- fedsim_script:
    name: select.sh  # of the role's folder files/; .py runs with the system's Python, everything else with /bin/sh
    arguments: ["{{ fedsim_version }}"]
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

ARGUMENTS = {
    "name": {"type": "str", "required": True},
    "arguments": {"type": "list", "elements": "str", "default": []},
}


class ActionModule(ActionBase):
    """What Ansible loads."""

    TRANSFERS_FILES = False  # no temporary folder on the host
    _supports_check_mode = False  # it is skipped, unless the task says `check_mode: false`

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Run the script; returns its exit code and what it printed."""
        result: dict[str, Any] = super().run(tmp, task_vars)
        _, given = self.validate_argument_spec(argument_spec=ARGUMENTS)
        script = Path(self._loader.get_real_file(self._find_needle("files", given["name"])))
        # The outer shell reads the whole script before it starts the inner one, which finds its standard input at its end.
        shell = ["/usr/bin/python3"] if script.suffix == ".py" else ["/bin/sh"]
        name = [] if script.suffix == ".py" else [script.name]
        command = f'{shlex.join(shell)} -c "$(cat)" {shlex.join([*name, *map(str, given["arguments"])])}'
        result |= self._low_level_execute_command(
            f"{self._compute_environment_string()} {command}".strip(), in_data=script.read_bytes()
        )
        result["changed"] = "changed" in result["stdout"].splitlines()
        if result["rc"] != 0:
            result |= {"failed": True, "msg": f"{script.name} ended with exit code {result['rc']}"}
        return result
