"""Makes ordinary calls from a process of its own, so that their times are the server's and not the readers'."""

import asyncio
import json
import sys
import time
from collections import defaultdict
from typing import Any

from benchmarks.lib.http import BadResponse, fetch


async def probe(task: dict[str, Any]) -> dict[str, list[float]]:
    """Return the milliseconds of each call by its name; of calls not answered with 200 under `failed`."""
    times: dict[str, list[float]] = defaultdict(list, failed=[])
    until = time.monotonic() + task["seconds"]
    address = (task["address"][0], int(task["address"][1]))
    while time.monotonic() < until:
        for name, method, path, payload in task["calls"]:
            began = time.monotonic()
            try:
                status = (await fetch(address, method, path, headers=task["headers"], payload=payload)).status
            except (OSError, TimeoutError, BadResponse):
                status = 0
            milliseconds = (time.monotonic() - began) * 1000
            times[name].append(milliseconds)
            if status != 200:
                times["failed"].append(milliseconds)
            await asyncio.sleep(0.02)
    return times


if __name__ == "__main__":
    print(json.dumps(asyncio.run(probe(json.loads(sys.argv[1])))))
