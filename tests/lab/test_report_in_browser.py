"""The report in a real browser: Chromium, as Qt brings it.

    pip install -e ".[test,browser]" && pytest tests/lab/test_report_in_browser.py

`.ci/run` does this. Screenshots are left as ``build/report-*.png``.
"""

import json
import os
from pathlib import Path

import pytest

import vidcache_jax as vj
from tests.lab.comparisons import comparison
from tests.lab.test_report import page, results  # noqa: F401, a fixture
from tests.toy import toy_model
from vidcache_jax import loading
from vidcache_jax.cli import main
from vidcache_jax.commands import compare
from vidcache_jax.lab import report
from vidcache_jax.sampling.output_file import write_text

webengine = pytest.importorskip(
    "PySide6.QtWebEngineCore",
    reason='no browser: pip install -e ".[browser]"; it needs the usual X11 and NSS libraries',
    exc_type=ImportError,
)
os.environ.setdefault("QT_QPA_PLATFORM", "offscreen")
# A container has neither a GPU nor the rights that the sandbox needs.
os.environ.setdefault("QTWEBENGINE_CHROMIUM_FLAGS", "--disable-gpu --no-sandbox")

from PySide6.QtCore import QEventLoop, QTimer, QUrl  # noqa: E402, once they are set
from PySide6.QtWebEngineWidgets import QWebEngineView  # noqa: E402
from PySide6.QtWidgets import QApplication  # noqa: E402

SCREENSHOTS = Path(__file__).parents[2] / "build"
SEEN = """JSON.stringify({
    pictures: [...document.images].map(image => [image.alt, image.naturalWidth]),
    plots: document.querySelectorAll("figure svg, figure img").length,
    fits: document.documentElement.scrollWidth <= window.innerWidth,
    requests: performance.getEntriesByType("resource").map(entry => entry.name)
        .filter(name => !name.startsWith("data:")),
})"""
CUT = """JSON.stringify([...document.querySelectorAll("body :not(svg *)")]
    .filter(each => each.clientWidth && each.scrollWidth > each.clientWidth + 1)
    .map(each => each.tagName + ": " + each.textContent.slice(0, 40)))"""
"""What does not show the whole of its content without scrolling, but for a pixel of rounding."""
LEGEND = """JSON.stringify([getComputedStyle(document.querySelector(".legend")).position,
    document.querySelector(".legend").clientHeight / window.innerHeight])"""
LONG = "future-forcing:budget_frames=18,query_frames=3,delta_max=6,merge=False,rope_remap=slot"


class Browser:
    """One window. Console messages are kept, and what a page does asynchronously is waited for."""

    def __init__(self, width: int, height: int):
        self.console: list[str] = []
        self.view = QWebEngineView()
        self.page = _Listening(self.view, self.console)
        self.view.setPage(self.page)
        self.view.resize(width, height)
        self.view.show()

    def open(self, path: Path) -> bool:
        url = QUrl.fromLocalFile(str(path))
        return _awaited(self.page.loadFinished.connect, lambda: self.page.load(url))

    def evaluate(self, script: str):
        return json.loads(_awaited(lambda done: self.page.runJavaScript(script, 0, done)))

    def printed(self) -> bytes:
        return bytes(_awaited(lambda done: self.page.printToPdf(done)))

    def screenshot(self, path: Path) -> None:
        # What has been loaded is drawn some frames later.
        _awaited(lambda done: QTimer.singleShot(500, lambda: done(None)))
        path.parent.mkdir(exist_ok=True)
        assert self.view.grab().save(str(path))


class _Listening(webengine.QWebEnginePage):
    def __init__(self, parent, messages: list[str]):
        super().__init__(parent)
        self.messages = messages

    def javaScriptConsoleMessage(self, level, message, line, source):  # noqa: N802, Qt's name
        self.messages.append(f"{level.name}: {message} ({source}:{line})")


def _awaited(begin, then=lambda: None):
    """What ``begin`` gives the callback that it is called with."""
    loop, given = QEventLoop(), []

    def done(value):
        given.append(value)
        loop.quit()

    begin(done)
    then()
    QTimer.singleShot(60_000, loop.quit)
    if not given:
        loop.exec()
    assert given, "the browser did not answer within a minute"
    return given[0]


@pytest.fixture(scope="module")
def application():
    return QApplication.instance() or QApplication([])


@pytest.mark.parametrize("width, height, name", [(390, 844, "phone"), (1280, 900, "desktop")])
def test_the_report_loads_whole(application, page, tmp_path, width, height, name):  # noqa: F811
    write_text(tmp_path / "report.html", page)
    browser = Browser(width, height)
    assert browser.open(tmp_path / "report.html")
    seen = browser.evaluate(SEEN)
    assert seen["pictures"] and all(width > 0 for _, width in seen["pictures"]), seen
    assert seen["plots"] == page.count("<figure>"), seen
    assert seen["fits"], "the page scrolls sideways"
    assert seen["requests"] == []
    assert browser.console == []
    assert browser.printed().startswith(b"%PDF")
    browser.screenshot(SCREENSHOTS / f"report-{name}.png")


def test_what_the_command_writes_loads_whole(application, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "MODELS", {**loading.MODELS, "toy": toy_model})
    monkeypatch.setattr(compare, "enable_compilation_cache", lambda folder: None)
    small = ("--model", "toy", "--seconds", "0.7", "--policies", "sliding-window,full")
    assert main(["compare", *small, "--prompts", "a red circle", "--out", str(tmp_path)]) == 0
    browser = Browser(390, 844)
    assert browser.open(tmp_path / "report.html")
    seen = browser.evaluate(SEEN)
    assert [width > 0 for _, width in seen["pictures"]] == [True], seen
    assert seen["plots"] == (tmp_path / "report.html").read_text().count("<figure>") > 8
    assert seen["fits"] and seen["requests"] == [] and browser.console == []
    browser.screenshot(SCREENSHOTS / "report-written.png")


@pytest.fixture(scope="module")
def crowded() -> str:
    """Six policies, each of a name as long as options make it."""
    policies = {f"{LONG},lam=0.{i}": vj.FullCache(12) for i in range(6)}
    six = comparison(policies=policies)
    return report.page(six, results(six), {}, {}, ())


def test_long_names_fit_a_phone(application, crowded, tmp_path):
    write_text(tmp_path / "report.html", crowded)
    browser = Browser(390, 844)
    assert browser.open(tmp_path / "report.html")
    assert browser.evaluate(SEEN)["fits"]
    # Tables of many columns scroll, each by itself; nothing else is cut.
    assert {line.partition(":")[0] for line in browser.evaluate(CUT)} <= {"DIV"}
    assert browser.evaluate(LEGEND)[0] == "static"
    browser.screenshot(SCREENSHOTS / "report-phone-long-names.png")
    desktop = Browser(1280, 900)
    assert desktop.open(tmp_path / "report.html")
    position, height = desktop.evaluate(LEGEND)
    assert position == "sticky" and height <= 0.2


def test_nothing_is_cut_on_paper(application, crowded, tmp_path):
    """The rules for print, at the width that A4 leaves between its margins."""
    assert crowded.count("@media print") == 1
    printed = crowded.replace("@media print", "@media all").replace("@media screen", "@media print")
    write_text(tmp_path / "report.html", printed)
    browser = Browser(700, 990)
    assert browser.open(tmp_path / "report.html")
    assert browser.evaluate(SEEN)["fits"] and browser.evaluate(CUT) == []
    browser.screenshot(SCREENSHOTS / "report-print.png")
    # The same on the screen, where tables scroll: the test would tell.
    write_text(tmp_path / "report.html", crowded)
    assert browser.open(tmp_path / "report.html")
    assert browser.evaluate(CUT) != []


def test_the_browser_would_tell(application, tmp_path):
    broken = '<img src="none.png"><script>console.log(1); nothing.there()</script>'
    write_text(tmp_path / "broken.html", f"<body style='width: 2000px'>{broken}</body>")
    browser = Browser(390, 844)
    assert browser.open(tmp_path / "broken.html")
    seen = browser.evaluate(SEEN)
    assert seen["pictures"] == [["", 0]] and not seen["fits"]
    assert len(browser.console) >= 2 and any("nothing" in line for line in browser.console)
