"""Run on a host: prints each certificate of a folder, and whether it matches its key. Only the standard library."""

import json
import ssl
import sys
from pathlib import Path


def key_problem(path: Path) -> str:
    """Why a certificate does not match its key; empty if it does."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(path, path.with_suffix(".key"))
    except OSError as error:  # also those of ssl
        return str(error)
    return ""


folder, *names = sys.argv[1:]
paths = {name: Path(folder, name + ".crt") for name in names}
found = {
    name: {"pem": path.read_text(encoding="utf-8", errors="replace"), "problem": key_problem(path)}
    for name, path in paths.items()
    if path.exists()
}
print("\n" + json.dumps(found))
