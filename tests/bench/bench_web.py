"""The web while a task runs: 50 users with live pages, which ask as often as a browser does."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable
from html import unescape

import httpx
import psutil
from harness.lab import IMAGE, task_settings, tiny_lab
from harness.measure import Options, bench_folder
from harness.memory import tree
from harness.results import Row, at_most, ratio_at_most
from platform_support import Platform
from web_support import Browser

USERS, QUICK_USERS = 50, 5
SECONDS, QUICK_SECONDS = 30.0, 4.0
LIVE_SECONDS = 1.0
"""How often a live page of a task asks for what has changed, see `_task.html`."""
P99_SECONDS = 0.150
CPU_SHARE = 0.05
ROUNDS = 100_000
ADMIN_PASSWORD = "correct horse battery"
"""Of the account that the lab makes."""
_NEXT = re.compile(r'id="live" hx-get="([^"]+)"')


def run(options: Options) -> Iterable[Row]:
    """Measure."""
    users = QUICK_USERS if options.quick else USERS
    seconds = QUICK_SECONDS if options.quick else SECONDS
    with bench_folder() as folder, tiny_lab(folder, 2, shape=IMAGE) as lab:
        settings = {**task_settings(2, ROUNDS, model="2nn", partition_options={}), "evaluate_every": 10}
        number = lab.submit(**settings)
        lab.await_round(number, 2)
        before, rounds_before = cpu_seconds(lab), lab.task(number).round
        with Browser(base_url=lab.url) as browser:
            cookies = browser.log_in("researcher", ADMIN_PASSWORD).cookies
        waits = asyncio.run(browse(lab.url, f"/tasks/{number}", cookies, users, seconds))
        after, rounds = cpu_seconds(lab), lab.task(number).round - rounds_before
        lab.api.post(f"/tasks/{number}/stop").raise_for_status()
        lab.finish(number)
    spent = {name: after[name] - before[name] for name in before}
    task = sum(seconds for name, seconds in spent.items() if name != "web")
    ordered = sorted(waits)
    note = f"{users} users, {len(ordered)} answers, {rounds} rounds meanwhile"
    p99 = ordered[int(len(ordered) * 0.99)]
    yield Row("a live page, 99th percentile", p99, "s", bar=at_most(P99_SECONDS, "python"), note=note)
    yield Row("a live page, median", ordered[len(ordered) // 2], "s")
    bar = ratio_at_most(CPU_SHARE)
    yield Row("the web's processor time", spent["web"], "s", "the other daemons' and workers'", task, bar=bar)


def cpu_seconds(lab: Platform) -> dict[str, float]:
    """The processor time of each daemon with its workers so far, those that have ended included."""
    spent = {}
    for name, daemon in lab.processes.items():
        pids = [pid for group in tree({name: daemon.pid}).values() for pid in group]
        times = [psutil.Process(pid).cpu_times() for pid in pids if psutil.pid_exists(pid)]
        spent[name] = sum(one.user + one.system for one in times)
    return spent


async def browse(url: str, path: str, cookies: httpx.Cookies, users: int, seconds: float) -> list[float]:
    """Each user's page refreshes itself each second, begun at different moments; returns the seconds of each answer."""
    waits: list[float] = []
    ends = time.monotonic() + seconds

    async def user(number: int) -> None:
        due = time.monotonic() + LIVE_SECONDS * number / users
        address = path
        async with httpx.AsyncClient(base_url=url, cookies=cookies, timeout=60) as http:
            while due < ends:
                await asyncio.sleep(max(0.0, due - time.monotonic()))
                started = time.perf_counter()
                answer = await http.get(address, headers={"HX-Request": "true"})
                waits.append(time.perf_counter() - started)
                answer.raise_for_status()
                if found := _NEXT.search(answer.text):  # what the page itself asks for next
                    address = unescape(found[1])
                due = max(due + LIVE_SECONDS, time.monotonic())

    async with asyncio.TaskGroup() as group:
        for number in range(users):
            group.create_task(user(number))
    return waits
