"""A headless browser for tests of pages: skipped, with the reason, where there is none."""

import os
import shutil
import time

import pytest

# Others may hold the processors.
PATIENCE_MS = 240_000
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


# Not of the session: while Playwright is started an event loop runs in this thread.
@pytest.fixture(scope="module")
def browser():
    """A headless Chromium. JEPA_FAST_BROWSER names its file where it is not on the PATH."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    file = os.environ.get("JEPA_FAST_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)
    if file is None:
        pytest.skip("no browser: install chromium (apt install chromium), or name one in JEPA_FAST_BROWSER")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=file, args=["--no-sandbox"], timeout=PATIENCE_MS)
        yield opened
        opened.close()


def wait_until(page, condition):
    """Wait for a JavaScript expression to hold. Playwright's own way needs eval, which the pages' policy forbids."""
    deadline = time.monotonic() + PATIENCE_MS / 1000
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, f"never came: {condition}"
        page.wait_for_timeout(10)


@pytest.fixture
def visit(browser):
    """Opens a file or an address; at the end it has said nothing on the console and asked for nothing else."""
    contexts, troubles = [], []

    def opened(address, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 850}, color_scheme=scheme)
        contexts.append(context)
        context.set_default_timeout(PATIENCE_MS)
        page = context.new_page()
        page.on("console", lambda message: troubles.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
        address = address if isinstance(address, str) else address.resolve().as_uri()
        page.on("request", lambda request: request.url == address or troubles.append(f"request: {request.url}"))
        page.goto(address)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        return page

    yield opened
    for context in contexts:
        context.close()
    assert [trouble for trouble in troubles if "request: data:" not in trouble] == []
