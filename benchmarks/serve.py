"""Does the server hold? 64 clients, 10,000 requests, then whatever a fuzzer makes up.

A real `clsight serve` on a free port of this machine, for a run of the demo's reviews (or RUN).
Clients ask a mix of addresses in an order by a seed: pages of every relation and query, documents
one by one, the page, the status; some again with the ETag that they have, some as CSV, Arrow or
Parquet. Counted are answers that are neither 200 nor 304; times are from sending to the last byte
and hold the waiting that 64 clients are for each other. Memory is the server's resident set before
the first request, after each fifth of them and at the end.

`cold` is one request at a time, each question for the first time: what an answer costs by itself.
`fuzz` is schemathesis on the server's own description, with free SQL allowed: so many examples for
each operation, and how many answers had a status from 500 on.

    python benchmarks/serve.py [--run RUN] [--requests 10000] [--clients 64] [--examples 50]
        [-o benchmarks/results/serve.json]
"""

import argparse
import asyncio
import random
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
from result_file import finish, hardware

FORMATS = ("json", "json", "json", "csv", "arrow", "parquet")
LONGEST = 60
"""Seconds for one request."""


@contextmanager
def served(run, *options):
    """The address of a server of its own, and its process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "clsight.cli", "serve", str(run), "--port", "0", *options],
        stderr=subprocess.PIPE, text=True)
    try:
        yield re.search(r"http://\S+", process.stderr.readline())[0].rstrip("/"), process
    finally:
        process.terminate()
        process.wait(10)


def demo_run(folder, documents):
    """A complete run of the demo's reviews and models."""
    from clsight import demo, pipeline

    data = demo.write_reviews(folder / "reviews", documents, 1)
    return pipeline.run(str(data), text="text", label="label", models=demo.models(),
                        output=folder / "run").folder


def mib(process):
    """Its resident memory."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def addresses(url):
    """Every relation, query and check, first page."""
    with httpx.Client(base_url=url, timeout=LONGEST) as client:
        listed = [one for kind in ("relations", "queries", "checks")
                  for one in client.get(f"/api/{kind}").json()]
        n_rows = client.get("/api/status").json()["n_rows"]
    return [one["url"] + ("?form=the" if "form" in one["parameters"] and "/queries/" in one["url"]
                          else "") for one in listed], n_rows


def mix(url, n_requests, seed=0):
    """What is asked, in order."""
    drawn, (whole, n_rows) = random.Random(seed), addresses(url)
    asked = []
    for _ in range(n_requests):
        kind = drawn.random()
        if kind < 0.5:
            one = drawn.choice(whole)
            one += ("&" if "?" in one else "?") + f"format={drawn.choice(FORMATS)}"
        elif kind < 0.8:
            document = drawn.randrange(n_rows)
            one = drawn.choice(["words", "predictions"])
            one = f"/api/relations/{one}?document_id={document}"
        elif kind < 0.9:
            one = f"/api/browse?outcome=errors&offset={10 * drawn.randrange(20)}"
        else:
            one = drawn.choice(["/", "/api/status", "/api/relations"])
        asked.append(one)
    return asked


async def storm(url, process, asked, clients):
    """Times and statuses of all requests, and the memory on the way."""
    queue, seconds, statuses, etags = iter(asked), [], Counter(), {}
    memory = [mib(process)]

    async def one_client():
        async with httpx.AsyncClient(base_url=url, timeout=LONGEST) as client:
            for address in queue:
                headers = {"If-None-Match": etags[address]} if address in etags else {}
                started = time.perf_counter()
                answer = await client.get(address, headers=headers)
                seconds.append(time.perf_counter() - started)
                statuses[answer.status_code] += 1
                if len(seconds) % 3 == 0 and "etag" in answer.headers:
                    etags[address] = answer.headers["etag"]
                if len(seconds) % (len(asked) // 5) == 0:
                    memory.append(mib(process))

    await asyncio.gather(*(one_client() for _ in range(clients)))
    return seconds, statuses, memory


def percentiles(seconds):
    named = {f"p{q}_ms": round(float(np.percentile(seconds, q)) * 1e3, 1) for q in (50, 90, 99)}
    return named | {"max_ms": round(max(seconds) * 1e3, 1)}


def cold(url):
    """Every question once, one after the other."""
    seconds = {}
    with httpx.Client(base_url=url, timeout=LONGEST) as client:
        for address in (*addresses(url)[0], "/"):
            started = time.perf_counter()
            client.get(address).raise_for_status()
            seconds[address] = time.perf_counter() - started
    slowest = sorted(seconds, key=seconds.get)[-3:]
    return percentiles([*seconds.values()]) | {
        "questions": len(seconds), "slowest_ms": {a: round(seconds[a] * 1e3, 1) for a in slowest}}


def fuzz(url, examples):
    """Requests made up from the description; statuses, and those that are the server's fault."""
    import schemathesis
    from hypothesis import HealthCheck, given, settings

    statuses, faults = Counter(), []
    for found in schemathesis.openapi.from_url(f"{url}/openapi.json").get_all_operations():
        operation = found.ok()
        # A statement takes a process each.
        n = examples // 5 if operation.path == "/api/sql" else examples

        @settings(max_examples=n, deadline=None, database=None,
                  suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def ask(case):
            answer = case.call(timeout=LONGEST)
            statuses[answer.status_code] += 1
            if answer.status_code >= 500:
                faults.append(case.as_curl_command())

        ask()
    return {"requests": statuses.total(), "statuses": dict(sorted(statuses.items())),
            "server_errors": len(faults), "first_fault": faults[0] if faults else None}


def measured(run, arguments):
    with served(run) as (url, process):
        before = mib(process)
        alone = cold(url)
        asked = mix(url, arguments.requests)
        started = time.perf_counter()
        seconds, statuses, memory = asyncio.run(storm(url, process, asked, arguments.clients))
        wall = time.perf_counter() - started
    with served(run, "--allow-sql") as (url, _):
        fuzzed = fuzz(url, arguments.examples)
    return {
        "cold": alone, "clients": arguments.clients, "requests": len(seconds),
        "requests_per_second": round(len(seconds) / wall, 1), "seconds": round(wall, 1),
        "latency": percentiles(seconds), "statuses": dict(sorted(statuses.items())),
        "errors": sum(n for status, n in statuses.items() if status not in (200, 304)),
        "memory_mib": {"at_start": round(before), "during": [round(m) for m in memory]},
        "fuzz": fuzzed,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--documents", type=int, default=4000)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--examples", type=int, default=50)
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = arguments.run or demo_run(Path(temporary), arguments.documents)
        found = measured(run, arguments)
    finish({"benchmark": "serve", "hardware": hardware(), "documents": arguments.documents,
            **found}, arguments.output)


if __name__ == "__main__":
    main()
