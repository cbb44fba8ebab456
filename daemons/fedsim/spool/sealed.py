"""Small JSON files with the digest of their content: what a disk has damaged is noticed when it is read.

{"content": {"task": "…", "number": 7}, "digest": "3f…"}
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from blake3 import blake3

from fedsim.errors import DamagedFile
from fedsim.spool.durable import write_json


def write_sealed(path: Path, content: Any) -> None:
    """Durably write `content`, which is JSON, with its digest."""
    write_json(path, {"content": content, "digest": _digest(content)})


def read_sealed(path: Path) -> Any:
    """The content of a file that `write_sealed` wrote; None if there is no file.

    Raises:
        DamagedFile: it is not what was written.
    """
    try:
        sealed = json.loads(path.read_bytes())
        content, digest = sealed["content"], sealed["digest"]
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise DamagedFile(path, "it is not the JSON that was written") from error
    if digest != _digest(content):
        raise DamagedFile(path, "its content does not have the digest that is stored with it")
    return content


def _digest(content: Any) -> str:
    return blake3(json.dumps(content, allow_nan=False, sort_keys=True).encode()).hexdigest()
