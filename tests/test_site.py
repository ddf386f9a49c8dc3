"""The built documentation in a real browser: no error, nothing from the network, nothing beyond the
width of a telephone, and a search that works without a server.
"""

from pathlib import Path

import karmafunnel
import pytest
from karmafunnel.benchmarks.validation.browser import Browser, chromium

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(chromium() is None, reason="no Chromium on this machine"),
]

SITE = Path(karmafunnel.__file__).parent / "out" / "site"
SEARCH = """(async () => {
  const box = document.querySelector("[data-md-component=search-query]");
  document.querySelector("label[for=__search]").click();
  box.value = "survival";
  box.dispatchEvent(new Event("focus"));
  for (const kind of ["input", "keyup"]) box.dispatchEvent(new Event(kind, { bubbles: true }));
  for (let tries = 0; tries < 200; tries++) {
    const found = document.querySelectorAll(".md-search-result__link");
    if (found.length) return [...found].map((link) => link.getAttribute("href"));
    await new Promise((done) => setTimeout(done, 50));
  }
  return [];
})()"""


@pytest.fixture(scope="module")
def site():
    if not (SITE / "index.html").is_file():
        pytest.skip("no out/site: `make docs` builds it")
    return SITE


def test_pages_fit_a_telephone_and_ask_for_nothing(site):
    # tests/test_browser.py visits reports; the page of a missing page needs a server
    pages = [p for p in sorted(site.rglob("*.html")) if "report" not in p.name and p.stem != "404"]
    assert len(pages) > 20
    with Browser() as browser:
        for page in pages:
            seen = browser.visit(page, width=390)
            assert seen.errors == [], page
            assert [url for url in seen.asked if not url.startswith("file:")] == [], page
            assert seen.facts["scroll"] <= 390, page


def test_the_search_needs_no_server(site):
    with Browser() as browser:
        seen = browser.visit(site / "index.html", script=SEARCH)
    assert any("measures.html" in link for link in seen.facts["script"]), seen
