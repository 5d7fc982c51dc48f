"""A real Chromium for tests of pages; what it complains of, and what it asks for, is kept."""

import shutil
from contextlib import contextmanager

import pytest


def chromium():
    """Path of the browser; skips where there is none."""
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium is installed here")
    return path


@contextmanager
def opened(browser, address, width=1280, scheme="light", drawn=True):
    """A page whose charts are drawn; fails where it complained, or asked for anything else."""
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page, complaints, asked = context.new_page(), [], []
    page.on("console", lambda said: said.type == "error" and complaints.append(said.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("dialog", lambda dialog: complaints.append(dialog.message) or dialog.dismiss())
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    if drawn:
        page.wait_for_selector("html[data-drawn=true]", timeout=30_000)
    try:
        yield page
        page.wait_for_timeout(50)
    finally:
        context.close()
    assert complaints == []
    own = address.split("?")[0].split("#")[0]
    origin = None if own.startswith("file:") else own
    assert [url for url in asked
            if not url.startswith("blob:") and url.split("#")[0].split("?")[0] != own
            and not (origin and url.startswith(origin))] == []
