"""The report stands alone, and says what was measured."""

import base64
import html.parser
import io
import re

import numpy as np
import pytest
from PIL import Image

from tests.lab.comparisons import LABELS, comparison
from vidcache_jax.lab import report
from vidcache_jax.lab.comparison import Comparison
from vidcache_jax.lab.failures import Failure
from vidcache_jax.lab.figures import TABLES
from vidcache_jax.lab.result import Cost, Result
from vidcache_jax.lab.vbench import Scores

COMPARISON = comparison()


def results(of: Comparison = COMPARISON) -> list:
    rng = np.random.default_rng(0)
    frames = np.full(30, 3)
    return [
        (run, Result(run.settings, 8.0, frames, {
            "brightness": rng.uniform(size=30), "told_colours": rng.uniform(size=30)
        }, Cost(2**21, 3.25, 0.0125), {"jax": "0.10.2"}))
        for run in of.runs
    ]  # fmt: skip


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    picture = tmp_path_factory.mktemp("pictures") / "a.png"
    Image.new("RGB", (8, 8), (1, 2, 3)).save(picture)
    scores = {LABELS[1]: Scores({"imaging_quality": 0.61}, {"imaging_quality": 3.25}, "ab12", True)}
    failures = [Failure(COMPARISON.runs[0], "<b>no</b>")]
    unread = ["r_eval_results.json is none"]
    return report.page(COMPARISON, results(), {"a <picture>": picture}, scores, failures, unread)


class Elements(html.parser.HTMLParser):
    """All tags with their attributes, and which were left open."""

    VOID = {"meta", "link", "img", "br"}

    def __init__(self, page: str):
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        while self.open and self.open.pop() != tag:
            pass


def test_nothing_is_fetched(page):
    elements = Elements(page)
    assert not elements.open
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in elements.found}
    ids = {attributes.get("id") for _, attributes in elements.found}
    for tag, attributes in elements.found:
        for name in ("src", "href", "xlink:href", "srcset", "data", "action"):
            address = attributes.get(name)
            if address and address.startswith("#"):
                assert address[1:] in ids, (tag, address)
            elif address:
                assert address.startswith("data:"), (tag, address)
    for address in re.findall(r"url\(([^)]*)\)", page):
        assert address.strip("'\"")[1:] in ids, address
    assert "@import" not in page and "http" not in page


def test_ids_are_unique(page):
    ids = [attributes["id"] for _, attributes in Elements(page).found if "id" in attributes]
    assert len(ids) == len(set(ids)) > 0


def test_it_is_for_phones_print_and_dark_rooms(page):
    assert 'name="viewport"' in page
    assert "@media print" in page and "prefers-color-scheme: dark" in page
    assert "currentColor" in page and "#010203" not in page


def test_pictures_are_in_it(page):
    (picture,) = (a for tag, a in Elements(page).found if tag == "img")
    source = picture["src"] or ""
    data = base64.b64decode(source.removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(data)).getpixel((0, 0)) == (1, 2, 3)
    assert picture["alt"] == "a <picture>"


def test_it_says_what_was_measured_and_with_what(page):
    for text in (
        "Brightness drift", "Told sprites found", "2.00", "12.5", "3.2", "0.10.2", "ab12",
        "<td>6</td><td>2.00</td>", "<td>12</td>", "r_eval_results.json is none",
        'aria-label="Brightness drift over time', *TABLES,
        "0.61 (first clip minus last 3.25)", "prompts were extended", "RolloutConfig(",
        "SlidingWindow(window_size=6", "&lt;b&gt;no&lt;/b&gt;",
    ):  # fmt: skip
        assert text in page, text
    assert "Motion" not in page  # not in these results
    assert page.count("<figure>") == 3


def test_the_same_results_make_the_same_page(tmp_path):
    make = lambda: report.page(COMPARISON, results(), {}, {}, ())
    assert make() == make()
