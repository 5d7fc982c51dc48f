"""The report of a million documents: seconds to write it, its size, and how soon it shows a chart.

The generated run of `large_run.py`: two models, four scores, 20 words a document; the figures of
words are drawn. The page is opened from its file in Chromium, a fresh context each time; a chart is
there when its picture stands in the page.

    python benchmarks/report.py [--documents 1e6] [--rounds 7] [--folder FOLDER] [-o RESULT.json]
"""

import argparse
import json
import multiprocessing
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from large_run import MEAN_WORDS, MODELS, generate
from playwright.sync_api import sync_playwright
from queries import build, in_child, peak_mib

VIEWS = ((1280, "light"), (390, "dark"))


def write(run, output):
    from clsight import report

    started = time.perf_counter()
    report.write(run, output)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "bytes": output.stat().st_size, "peak_mib": peak_mib()}


def opened(browser, address, width, scheme):
    """Seconds to the first chart, and until all that is there is drawn."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, complaints = context.new_page(), []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    started = time.perf_counter()
    page.goto(address, wait_until="commit")
    page.wait_for_selector(".chart svg")
    first = time.perf_counter() - started
    page.wait_for_selector("html[data-drawn=true]")
    done = time.perf_counter() - started
    page.click("#words button.word")
    page.wait_for_function("document.querySelector('#said').textContent")
    context.close()
    if complaints:
        sys.exit(f"the page complains: {complaints}")
    return {"first_chart_s": first, "all_drawn_s": done}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--documents", type=float, default=1e6)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, help="where the run is made, and left")
    parser.add_argument("-o", "--output", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        run = (arguments.folder or Path(temporary)) / "run"
        generate(run, int(arguments.documents) * MEAN_WORDS * len(MODELS))
        if not (run / "clsight.duckdb").exists():
            in_child(build, str(run), False)
        print("generated", file=sys.stderr)
        page = run.with_name("report.html")
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            written = process.submit(write, run, page).result()
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=shutil.which("chromium"),
                                                 args=["--no-sandbox"])
            rounds = [opened(browser, page.as_uri(), *view)
                      for _ in range(arguments.rounds) for view in VIEWS]
            chromium = browser.version
            browser.close()
        n_rows = json.loads((run / "plan.json").read_text())["n_rows"]
    # Not before: it imports torch, whose memory is none of the report's.
    from result_file import finish, hardware

    first = sorted(one["first_chart_s"] for one in rounds)
    finish({"benchmark": "report", "hardware": hardware(), "documents": n_rows, **written,
            "chromium": chromium, "rounds": rounds,
            "first_chart_s": [statistics.median(first), first[0], first[-1]]}, arguments.output)


if __name__ == "__main__":
    main()
