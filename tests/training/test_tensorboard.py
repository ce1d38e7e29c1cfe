"""The real TensorBoard server, opened in a real browser, shows a run's curves and its sample replies."""

import re
import shutil
import subprocess
import sys
import time

import pytest

from empathax.training.tracking import Tracker

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WAIT_MS = 60_000

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs a browser: apt-get install chromium")


@pytest.fixture
def logdir(tmp_path):
    with Tracker(tmp_path, "dpo", 0, tensorboard=True) as tracker:
        for step in range(1, 21):
            tracker.scalars(step, "train", {"loss": 0.69 / step, "reward_margin": 0.1 * step})
        tracker.text(20, "replies", "> I feel stuck.\n\n- **reply**: What is the stuck part like?")
    return tmp_path / "tensorboard"


@pytest.fixture
def server(logdir):
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(logdir), "--port", "0", "--host", "127.0.0.1"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seen = []
    try:
        for line in process.stdout:
            seen.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield found.group()
                break
        else:
            pytest.fail(f"TensorBoard did not start:\n{''.join(seen)}")
    finally:
        process.terminate()
        process.wait(timeout=30)
        process.stdout.close()


def test_curves_and_replies_are_on_the_page(server, tmp_path):
    from playwright.sync_api import expect, sync_playwright

    with sync_playwright() as playwright:
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=flags)
        page = browser.new_page(viewport={"width": 1400, "height": 900})
        page.goto(f"{server}/#timeseries", timeout=WAIT_MS)
        for tag in ("train/loss", "train/reward_margin"):
            expect(page.get_by_text(tag, exact=True).first).to_be_visible(timeout=WAIT_MS)
        expect(page.locator("line-chart svg path").first).to_be_attached(timeout=WAIT_MS)
        time.sleep(1)
        page.screenshot(path=tmp_path / "curves.png")
        page.goto(f"{server}/#text", timeout=WAIT_MS)
        expect(page.get_by_text("What is the stuck part like?").first).to_be_visible(timeout=WAIT_MS)
        page.screenshot(path=tmp_path / "replies.png")
        browser.close()
