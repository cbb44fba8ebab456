"""An Ansible module that writes a list of small files at once, because each task costs every host a round trip."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = """
module: fedsim_files
short_description: Write a list of small files, owned by root
description: A file is validated and replaced only if it differs. Supports check mode and diff.
options:
  files:
    description: The files, in this order. Missing folders are created.
    type: list
    elements: dict
    required: true
    suboptions:
      path: {type: path, required: true, description: Where the file is.}
      content: {type: str, description: What it contains.}
      link: {type: str, description: The target of a symbolic link instead.}
      folder: {type: bool, default: false, description: A folder instead. What is in it is not changed.}
      validate: {type: str, description: A command that must accept the new file, whose path replaces %s.}
      mode: {type: str, default: "0644", description: Its permissions.}
author: the fedsim authors
"""
EXAMPLES = """
- fedsim_files:
    files:
      - {path: /etc/fedsim/server.yml, content: "{{ lookup('ansible.builtin.template', 'server.yml.j2') }}"}
"""
RETURN = """
paths: {description: The files that were changed., type: list, returned: always}
"""
OWNER = (os.geteuid(), os.getegid())  # root
FILE = {
    "path": {"type": "path", "required": True},
    "content": {"type": "str"},
    "link": {"type": "str"},
    "folder": {"type": "bool", "default": False},
    "validate": {"type": "str"},
    "mode": {"type": "str", "default": "0644"},
}


def present(path: Path, wanted: dict[str, Any]) -> tuple[bool, str]:
    """Whether a file is as wanted, and what it contains."""
    if wanted["folder"]:
        return path.is_dir(), ""
    if wanted["link"] is not None:
        target = str(path.readlink()) if path.is_symlink() else ""
        return target == wanted["link"], target
    if path.is_symlink() or not path.is_file():
        return False, ""
    status, text = path.stat(), path.read_text(encoding="utf-8", errors="replace")
    same_mode = status.st_mode & 0o7777 == int(wanted["mode"], 8) and (status.st_uid, status.st_gid) == OWNER
    return text == wanted["content"] and same_mode, text


def write(module: AnsibleModule, path: Path, wanted: dict[str, Any]) -> None:
    """Replace a file at once."""
    folders = [path, *path.parents] if wanted["folder"] else path.parents
    for folder in [folder for folder in reversed(folders) if not folder.exists()]:
        folder.mkdir()
        folder.chmod(0o755)
    if wanted["folder"]:
        return
    new = path.with_name(f".{path.name}.fedsim-new")
    new.unlink(missing_ok=True)
    if wanted["link"] is not None:
        new.symlink_to(wanted["link"])
    else:
        new.write_text(wanted["content"], encoding="utf-8")
        new.chmod(int(wanted["mode"], 8))
        os.chown(new, *OWNER)
        if wanted["validate"]:
            command = shlex.split(wanted["validate"] % shlex.quote(str(new)))
            code, output, errors = module.run_command(command)
            if code:
                new.unlink()
                module.fail_json(
                    msg=f"{path} would not be valid: {(errors or output).strip()}".replace(str(new), str(path))
                )
    new.replace(path)


def main() -> None:
    """Run the module."""
    module = AnsibleModule(
        {"files": {"type": "list", "elements": "dict", "required": True, "options": FILE}}, supports_check_mode=True
    )
    paths, diff = [], []
    for wanted in module.params["files"]:
        path = Path(wanted["path"])
        same, before = present(path, wanted)
        if same:
            continue
        paths.append(str(path))
        after = wanted["link"] if wanted["link"] is not None else wanted["content"] or ""
        diff.append({"before_header": str(path), "after_header": str(path), "before": before, "after": after})
        if not module.check_mode:
            write(module, path, wanted)
    module.exit_json(changed=bool(paths), paths=paths, diff=diff)


if __name__ == "__main__":
    main()
