"""Run on the server's host: waits until the pages answer through nginx and nodes are online. Only the standard library.

await_lab.py SECONDS METRICS_PORT NODE...
"""

import re
import ssl
import sys
import time
import urllib.request

POLL_SECONDS = 0.5


def get(url: str) -> str:
    """What an address answers. The certificate is not checked: this is this host itself, by another address."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with urllib.request.urlopen(url, timeout=10, context=context) as answer:  # noqa: S310 - constant schemes
        return str(answer.read().decode())


def problem(port: str, nodes: set[str]) -> str:
    """What is missing; empty if nothing is."""
    try:
        get("https://127.0.0.1/healthz")
    except OSError as error:
        return f"the pages do not answer through nginx ({error}): systemctl status nginx fedsim-web"
    try:
        online = set(re.findall(r'(?m)^fedsim_node_online\{node="(.*)"\} 1', get(f"http://127.0.0.1:{port}/metrics")))
    except OSError as error:
        return f"the server does not answer ({error}): systemctl status fedsim-server"
    if missing := ", ".join(sorted(nodes - online)):
        return f"the server has not heard from {missing}: run fedsim-fleet doctor"
    return ""


seconds, port, *nodes = sys.argv[1:]
until = time.monotonic() + float(seconds)
while found := problem(port, set(nodes)):
    if time.monotonic() > until:
        sys.exit(f"After {seconds} s {found}")
    time.sleep(POLL_SECONDS)
