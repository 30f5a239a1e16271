"""The pages in headless Chromium, opened as files: what a reader does with them; they ask nothing of any network."""

import base64
import json
import shutil

import nbformat
import pytest
from matplotlib.figure import Figure

from harvis_utils.figures import style
from harvis_utils.settings import REPOSITORY
from workflow import pages

REAL = REPOSITORY / "reports/published/desk/dsads/08_evidence.ipynb"
OUTSIDE, LOGGED = "https://example.org", ("requestWillBeSent", "loadingFailed")
#: what would leave the machine if it could
HOSTILE = f"""<img src="{OUTSIDE}/a.png"><script>document.title = "taken"; fetch("{OUTSIDE}/b")</script>
<link rel="stylesheet" href="{OUTSIDE}/c.css"><iframe src="{OUTSIDE}/d"></iframe>"""


@pytest.fixture(scope="module")
def site(browser, tmp_path_factory):
    """A run of two notebooks made by hand and a published one, as pages; a function that opens one."""
    figure = Figure(figsize=(8, 3))
    figure.subplots().plot([0, 1])
    picture = base64.b64encode(style.picture(figure)).decode()
    new = nbformat.v4
    wide = "<table border=1 class='dataframe'><tr>" + "<td>a_long_word_in_a_cell</td>" * 20 + "</tr></table>"
    shown = [
        new.new_output("display_data", {"image/png": picture}, metadata={"image/png": {"alt": "A line", "width": 800}}),
        new.new_output("display_data", {"text/html": wide}),
        new.new_output("display_data", {"text/html": HOSTILE}),
        new.new_output("display_data", {"text/markdown": "The xylophone finding: **0.25**."}),
    ]
    prose = r"# 01 · A <b>bold</b> title" + "\n\n" + r"$$\frac{a}{b} = \sum_t x_t$$ and [on](06b_more.ipynb)"
    cells = [new.new_markdown_cell(prose), new.new_code_cell("1 + 1  # the code", outputs=shown)]
    root = tmp_path_factory.mktemp("site")
    folder = root / "quick" / "synthetic"
    folder.mkdir(parents=True)
    nbformat.write(new.new_notebook(cells=cells), folder / "01_hand.ipynb")
    nbformat.write(new.new_notebook(cells=[new.new_markdown_cell("# 06b · More")]), folder / "06b_more.ipynb")
    published = root / "published" / "desk" / "dsads"
    published.mkdir(parents=True)
    shutil.copy(REAL, published)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HARVIS_REPORTS", str(root))
        pages.main([])

    def opened(path: str):
        browser.get(f"{root.as_uri()}/{path}")
        return lambda css: browser.find_elements("css selector", css)

    return opened


HAND, PUBLISHED, SMALL = "quick/synthetic/html/01_hand.html", "html/desk/dsads/08_evidence.html", (320, 800)
ALL = ("index.html", HAND, PUBLISHED, "api/metrics.html")


def test_what_a_reader_does_with_the_pages(browser, site):
    browser.get_log("performance")
    found = site("index.html")
    found("#query")[0].send_keys("xylophone")
    (hit,) = found("#found li a")
    assert found("#count")[0].text == "1 found" and found("#found mark")[0].text == "xylophone"
    hit.click()
    assert browser.current_url.split("#")[0].endswith(HAND) and browser.title == "01 · A bold title · quick · synthetic"
    assert found("main b") and found("math mfrac") and found('main a[href="06b_more.html"]')

    (large,) = found("#large")
    assert not large.is_displayed()
    found("main img[alt^='A line']")[0].click()
    assert large.is_displayed() and found("#large p")[0].text == "A line. made-up data"
    large.click()
    assert not large.is_displayed()

    code = "[...document.querySelectorAll('.highlight')].filter((of) => of.offsetHeight).length"
    assert browser.execute_script(f"return {code}") == 1
    found("#code")[0].click()
    assert browser.execute_script(f"return {code}") == 0 and found("#code")[0].text == "show code"
    site(PUBLISHED)  # remembered from page to page
    assert browser.execute_script(f"return {code}") == 0
    found("#code")[0].click()
    assert browser.execute_script(f"return {code}") > 5
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    hidden = browser.execute_script(f"return {code}"), found(".bar")[0].is_displayed()
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert hidden == (0, False)

    found = site("index.html#q=similarity.score")  # a function, from an address
    first = found("#found li a")[0]
    assert first.text == "harvis_utils.metrics.similarity.score"
    first.click()
    (section,) = found(":target")
    assert "score(" in section.text

    for path in ALL:
        site(path)
    log = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    told = {kind: [of["params"] for of in log if of["method"] == f"Network.{kind}"] for kind in LOGGED}
    asked = {of["requestId"]: of["request"]["url"] for of in told["requestWillBeSent"]}
    outside = {known for known, url in asked.items() if not url.startswith(("file:", "data:"))}
    assert len(asked) - len(outside) >= 7 and {asked[known] for known in outside} >= {f"{OUTSIDE}/a.png"}
    refused = {of["requestId"] for of in told["loadingFailed"] if of.get("blockedReason") == "csp"}
    assert [asked[known] for known in outside - refused] == []


def test_pages_fit_a_small_screen_and_stay_light_on_paper(browser, site):
    screen = {"width": SMALL[0], "height": SMALL[1], "deviceScaleFactor": 1, "mobile": False}
    dark = {"name": "prefers-color-scheme", "value": "dark"}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        for path in ALL:
            site(path)
            assert browser.execute_script("return document.documentElement.scrollWidth") <= SMALL[0], path
        for media, light in (("screen", False), ("print", True)):
            browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": media, "features": [dark]})
            paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
            assert (paper == "rgb(255, 255, 255)") == light
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "", "features": []})
