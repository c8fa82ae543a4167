"""The page in the distribution's Chromium, against the service over real HTTP."""

from __future__ import annotations

import base64
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from laion_assets.clip.options import ClipOptions
from laion_assets.search.app import STATIC
from tests.search.conftest import FREE, HOSTILE, Serving, SmallLake, serving, stored

WIDE, PHONE = (1440, 900), (360, 740)
PAGE_BYTES = 300_000


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    chromium = shutil.which("chromium") or shutil.which("chromium-browser")
    assert chromium, "the page's tests need Chromium: install it by `make test` or apt-get"
    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield opened
        opened.close()


class Window:
    """A page, with the hosts that it requested and the errors that it logged."""

    def __init__(self, browser: Browser, size: tuple[int, int] = WIDE, dark: bool = False) -> None:
        self.context = browser.new_context(
            viewport={"width": size[0], "height": size[1]},
            color_scheme="dark" if dark else "light",
            reduced_motion="reduce",
        )
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(10_000)
        self.complaints: list[str] = []
        self.hosts: set[str] = set()
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on(
            "console",
            lambda message: (
                self.complaints.append(message.text)
                if message.type == "error" and "Failed to load resource" not in message.text
                else None
            ),
        )
        self.page.on("request", lambda request: self.hosts.add(urlsplit(request.url).netloc))

    def captions(self) -> list[str]:
        expect(self.page.locator("#results")).not_to_have_class("results busy")
        return self.page.locator(".caption").all_text_contents()


@pytest.fixture
def window(browser: Browser, served: Serving) -> Iterator[Window]:
    """The page of the shared service; it may log no error and request no other host."""
    opened = Window(browser)
    opened.page.goto(served.url)
    yield opened
    opened.context.close()
    assert opened.complaints == []
    assert opened.hosts <= {urlsplit(served.url).netloc, ""}


def search(page: Page, text: str) -> None:
    page.get_by_role("searchbox").fill(text)
    page.get_by_role("button", name="Search", exact=True).click()
    expect(page.get_by_role("status").first).to_contain_text("result")


def test_a_text_query_and_its_address(window: Window, served: Serving) -> None:
    page = window.page
    expect(page.get_by_text("What are you looking for?")).to_be_visible()
    search(page, "a red apple")
    assert "apple" in window.captions()[0]
    card = page.locator(".card").first
    expect(card.locator(".score")).to_have_text(
        f"{served.results(text='a red apple')[0]['score']:.2f}"
    )
    expect(card.get_by_role("link", name="page.test")).to_have_attribute(
        "href", "https://page.test/a"
    )
    page.wait_for_function("document.querySelector('.card img').naturalWidth === 256")
    assert urlsplit(page.url).query == "q=a+red+apple"

    page.get_by_text("Captions", exact=True).click()
    expect(page.locator("#results")).to_have_class("results texts")
    shared = page.url
    captions = window.captions()
    search(page, "a slice of pizza")
    page.go_back()
    expect(page.get_by_role("searchbox")).to_have_value("a red apple")
    page.goto(shared)
    expect(page.locator(".card").first).to_be_visible()
    assert window.captions() == captions


def test_what_strangers_wrote_is_only_text(window: Window, served: Serving) -> None:
    page = window.page
    search(page, HOSTILE)
    while HOSTILE not in window.captions():
        page.get_by_role("button", name="Load more").click()
    card = page.locator(".card", has_text=HOSTILE)
    assert card.locator("a").count() == 0, "javascript: must not become a link"
    card.locator(".picture").click()
    expect(page.get_by_role("dialog").get_by_role("heading")).to_have_text(HOSTILE)
    assert page.locator("img[src=x]").count() == 0
    assert "apple" not in page.title()
    page.goto(f"{served.url}?q=%3Cimg%20src%3Dx%20onerror%3Dalert(1)%3E&like=%22%3E%3Cb%3E")
    expect(page.get_by_role("alert")).to_contain_text("names no sample")


@pytest.mark.parametrize("way", ["drop", "paste", "file"])
def test_a_query_by_an_image_file(
    window: Window, small_lake: SmallLake, way: str, tmp_path: Path
) -> None:
    page = window.page
    apple = next(name for name in small_lake.pictures.names() if "red-apple" in name)
    body = stored(small_lake.pictures.read(apple), 90)[1]
    (tmp_path / "apple.jpg").write_bytes(body)
    if way == "file":
        page.locator("#file").set_input_files(tmp_path / "apple.jpg")
    else:
        page.evaluate(
            """([way, base64]) => {
                const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
                const transfer = new DataTransfer();
                transfer.items.add(new File([bytes], "apple.jpg", { type: "image/jpeg" }));
                const event = way === "drop"
                    ? new DragEvent("drop", { dataTransfer: transfer, bubbles: true })
                    : new ClipboardEvent("paste", { clipboardData: transfer, bubbles: true });
                document.body.dispatchEvent(event);
            }""",
            [way, base64.b64encode(body).decode()],
        )
    expect(page.locator(".card").first).to_be_visible()
    assert "apple" in window.captions()[0]
    expect(page.locator("#chip")).to_contain_text("Your image")
    page.get_by_role("button", name="Remove the image from the query").click()
    expect(page.locator("#chip")).to_be_hidden()
    expect(page.get_by_text("What are you looking for?")).to_be_visible()


def test_more_like_this_with_words(window: Window) -> None:
    page = window.page
    search(page, "a slice of pizza")
    pizza = window.captions()[0]
    page.locator(".card").first.get_by_role("button", name="More like this").click()
    expect(page.locator("#chip")).to_contain_text("More like this")
    expect(page.locator(".score").first).to_have_text("1.00")
    assert window.captions()[0] == pizza
    assert "like=CC-MAIN-2000-10" in page.url
    search(page, "a red apple")
    assert "q=a+red+apple" in page.url
    assert "like=" in page.url


def test_filters_safe_mode_and_nothing_found(window: Window) -> None:
    page = window.page
    search(page, "a picture")
    assert page.locator(".tag").count() == 0
    page.get_by_label("Safe mode").uncheck()
    page.get_by_role("button", name="Filters").click()
    page.get_by_label("Safety tag").select_option("NSFW")
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator(".tag")).to_have_text("NSFW")
    assert "safe=0" in page.url
    page.get_by_label("Safe mode").check()
    expect(page.locator(".card")).to_have_count(0)
    expect(page.get_by_role("status").first).to_contain_text("No results pass the filters")
    page.get_by_role("button", name="Reset filters").click()
    expect(page.locator(".card").first).to_be_visible()
    page.get_by_label("Licence").select_option("creative_commons")
    expect(page.locator(".card")).to_have_count(2)
    links = page.locator(".facts a", has_text="CC").all_text_contents()
    assert sorted(links) == ["CC BY-NC 2.0", "CC0"]
    page.get_by_role("button", name="Reset filters").click()
    page.get_by_label("Language").select_option("de")
    expect(page.locator(".card")).to_have_count(1)
    expect(page.locator("#filter-count")).to_have_text("1")
    page.get_by_label("Minimum width").fill("9999")
    page.get_by_label("Minimum width").press("Enter")
    expect(page.locator(".card")).to_have_count(0)


@pytest.fixture
def phone(browser: Browser, served: Serving) -> Iterator[Window]:
    """A small window in which the service gives ten results at a time."""
    window = Window(browser, PHONE)
    window.page.route("**/search", lambda route: route.continue_(post_data=ten(route.request)))
    window.page.goto(f"{served.url}?q=a+red+apple")
    expect(window.page.locator(".card")).to_have_count(10)
    yield window
    window.context.close()
    assert window.complaints == []


def ten(request: Any) -> str:
    return json.dumps({"limit": 10} | json.loads(request.post_data))


def to_the_end(page: Page, cards: int) -> None:
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    expect(page.locator(".card")).to_have_count(cards)


def test_folded_results_load_more_and_download(phone: Window) -> None:
    page = phone.page
    expect(page.locator(".badge").first).to_have_text("+1")
    page.locator("#more").evaluate("button => button.click()")
    expect(page.locator(".card")).to_have_count(20)
    page.wait_for_function("document.activeElement === document.querySelectorAll('.picture')[10]")
    with page.expect_download() as downloading:
        page.get_by_role("button", name="Download as JSON").click()
    rows = json.loads(Path(downloading.value.path()).read_text())
    assert [row["caption"] for row in rows] == phone.captions()
    assert len({row["sample"] for row in rows}) == len(rows)


def test_results_load_on_at_the_end(phone: Window, served: Serving) -> None:
    page = phone.page
    page.get_by_role("searchbox").focus()
    to_the_end(page, 20)
    whole = len(served.results(text="a red apple"))
    to_the_end(page, whole)
    expect(page.locator("#more")).to_be_hidden()
    expect(page.get_by_role("searchbox")).to_be_focused()
    assert phone.captions() == served.captions(text="a red apple")


def test_a_failed_load_is_not_repeated_by_itself(phone: Window) -> None:
    page, asked = phone.page, []

    def fail(route: Route) -> None:
        asked.append(route)
        route.abort()

    page.route("**/search", fail)
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    expect(page.get_by_role("alert")).to_contain_text("does not respond")
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    assert len(asked) == 1
    page.unroute("**/search", fail)
    page.locator("#more").evaluate("button => button.click()")
    expect(page.locator(".card")).to_have_count(20)


def test_going_back_keeps_the_place(phone: Window, served: Serving) -> None:
    page, asked = phone.page, []
    to_the_end(page, 20)
    page.locator(".like").nth(8).scroll_into_view_if_needed()
    top, captions = page.evaluate("scrollY"), phone.captions()
    assert top > 500
    page.locator(".like").nth(8).click()
    expect(page.locator("#chip")).to_contain_text("More like this")
    expect(page.locator(".score").first).to_have_text("1.00")
    page.on("request", lambda request: asked.append(urlsplit(request.url).path))
    page.go_back()
    expect(page.get_by_role("searchbox")).to_have_value("a red apple")
    assert phone.captions() == captions
    assert page.evaluate("scrollY") == top
    page.go_forward()
    expect(page.locator(".score").first).to_have_text("1.00")
    assert "/search" not in asked

    # From another page, too: then they are asked for again.
    page.go_back()
    page.goto(f"{served.url}docs")
    page.go_back()
    expect(page.locator(".card")).to_have_count(20)
    assert phone.captions() == captions
    page.wait_for_function(f"scrollY === {top}")


def test_errors_are_shown(browser: Browser, small_lake: SmallLake, window: Window) -> None:
    page = window.page
    page.get_by_role("searchbox").fill("http://127.0.0.1:1/picture.png")
    page.keyboard.press("Enter")
    expect(page.get_by_role("alert")).to_contain_text("could not be fetched (private_address)")
    search(page, "a red apple")
    expect(page.get_by_role("alert")).to_be_hidden()

    down = ClipOptions(model="laion-assets-tiny", pretrained="laion-assets-tiny", weights="/absent")
    with serving(small_lake.index, None, clip=down) as broken:
        like = f"{broken.url}?like={window.page.locator('.card img').first.get_attribute('src')}"
        lost = Window(browser)
        lost.page.goto(f"{broken.url}?q=a+cat")
        expect(lost.page.get_by_role("alert")).to_contain_text("temporarily unavailable")
        lost.page.goto(like.replace("/thumbnails/", ""))
        expect(lost.page.locator(".card").first).to_be_visible()
    lost.page.get_by_role("searchbox").fill("a dog")
    lost.page.keyboard.press("Enter")
    expect(lost.page.get_by_role("alert")).to_contain_text("does not respond")
    lost.context.close()


def test_a_removal_request_is_sent(browser: Browser, own_lake: SmallLake) -> None:
    with serving(own_lake.index, own_lake.model) as served:
        window = Window(browser)
        page = window.page
        page.goto(f"{served.url}?q=a+red+apple")
        page.locator(".picture").first.click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name="Request removal").click()
        dialog.get_by_label("Why it should be removed").fill("It is my picture.")
        dialog.get_by_role("button", name="Send request").click()
        expect(dialog.get_by_role("status")).to_contain_text("in the queue")
        window.context.close()
    line = (own_lake.root / "removals/queue/requests.jsonl").read_text()
    assert json.loads(line)["reason"] == "It is my picture."


def test_generated_samples_are_linked_where_there_are_any(
    browser: Browser, own_lake: SmallLake, served: Serving
) -> None:
    assert served.http.get("/generated").status_code == 404
    assert served.http.get("/about").json()["generated"] is False
    own_lake.write_samples("<style>h1 { color: #010203 }</style><h1>Drawn</h1>")
    with serving(own_lake.index, own_lake.model) as with_samples:
        page = browser.new_page()
        page.goto(with_samples.url)
        page.get_by_role("link", name="Generated samples").click()
        heading = page.get_by_role("heading", name="Drawn")
        expect(heading).to_have_css("color", "rgb(1, 2, 3)")
        page.close()


def test_the_report_is_linked_where_it_may_be_served(
    browser: Browser, own_lake: SmallLake, served: Serving
) -> None:
    folder = own_lake.root / "dataset_report"
    folder.mkdir()
    (folder / "report.html").write_text(
        "<style>h1 { color: #010203 }</style><h1>Figures</h1><script>document.title = 1</script>"
    )
    with serving(own_lake.index, own_lake.model) as silent:
        assert silent.http.get("/report").status_code == 404
        assert silent.http.get("/about").json()["report"] is False
    with serving(
        own_lake.index, own_lake.model, FREE.model_copy(update={"report": True})
    ) as showing:
        page = browser.new_page()
        page.goto(showing.url)
        page.get_by_role("link", name="Dataset report").click()
        expect(page.get_by_role("heading", name="Figures")).to_have_css("color", "rgb(1, 2, 3)")
        assert page.title() == "", "no script may run"
        page.close()
    assert served.http.get("/about").json()["report"] is False


def test_the_keyboard_is_enough(window: Window) -> None:
    page = window.page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the results")).to_be_focused()
    page.keyboard.press("/")
    page.keyboard.type("a red apple")
    page.keyboard.press("Enter")
    expect(page.locator(".card").first).to_be_visible()
    picture = page.locator(".picture").first
    for _ in range(12):
        page.keyboard.press("Tab")
        if picture.evaluate("element => element === document.activeElement"):
            break
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    expect(picture).to_be_focused()


@pytest.mark.parametrize("size", [WIDE, PHONE])
@pytest.mark.parametrize("dark", [False, True])
def test_the_page_is_accessible_at_any_size(
    browser: Browser, served: Serving, size: tuple[int, int], dark: bool
) -> None:
    """axe finds no fault and nothing is wider than the window.

    That holds as the page opens, with results and filters, with an error, and with details.
    """
    window = Window(browser, size, dark)
    page = window.page

    def sound() -> None:
        page.evaluate(Path(AXE_FILE_PATH).read_text())
        found = page.evaluate("axe.run(document, { resultTypes: ['violations'] })")
        faults = [
            (each["id"], each["impact"], [node["html"][:120] for node in each["nodes"][:3]])
            for each in found["violations"]
        ]
        assert faults == []
        assert page.evaluate("document.documentElement.scrollWidth") == size[0]

    page.goto(served.url)
    sound()
    page.goto(f"{served.url}?q=a+red+apple&safe=0")
    expect(page.locator(".card").first).to_be_visible()
    page.get_by_role("button", name="Filters").click()
    sound()
    page.locator(".picture").first.click()
    page.get_by_role("button", name="Request removal").click()
    sound()
    page.goto(f"{served.url}?image_url=http%3A%2F%2F127.0.0.1%2F&over=text")
    expect(page.get_by_role("alert")).to_be_visible()
    sound()
    window.context.close()


def test_the_page_is_small(served: Serving) -> None:
    names = [path.name for path in STATIC.iterdir() if not path.name.startswith("docs")]
    assert {"index.html", "page.css", "page.js", "icon.svg"} == set(names)
    assert sum((STATIC / name).stat().st_size for name in names) < PAGE_BYTES
    for name in names:
        assert served.http.get(f"/static/{name}").status_code == 200


def test_the_api_is_documented_without_another_host(browser: Browser, served: Serving) -> None:
    window = Window(browser)
    window.page.goto(f"{served.url}docs")
    expect(window.page.get_by_text("/knn-service", exact=True).first).to_be_visible()
    assert window.complaints == []
    assert window.hosts <= {urlsplit(served.url).netloc, ""}
    window.context.close()


def test_heads_have_sliders_and_an_order(browser: Browser, scored: Serving) -> None:
    opened = Window(browser)
    page = opened.page
    page.goto(f"{scored.url}?q=a+picture&safe=0&fold=0")
    assert len(opened.captions()) == 30
    page.get_by_role("button", name="Filters").click()
    slider = page.get_by_role("slider", name="Watermark at most any")
    slider.focus()
    for _ in range(60):
        page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("slider", name="Watermark at most 0.4")).to_be_visible()
    expect(page.locator("#filter-count")).to_have_text("1")
    asked = {"text": "a picture", "safe": False, "fold": False, "limit": 100}
    below = {result["caption"] for result in scored.results(**asked, max_scores={"watermark": 0.4})}
    expect(page.locator(".card")).to_have_count(len(below))
    assert set(opened.captions()) == below

    page.get_by_label("Sort by").select_option("High aesthetic")
    expect(page).to_have_url(re.compile("at_most_watermark=0.4&order_by=aesthetic"))
    best = scored.results(**asked, max_scores={"watermark": 0.4}, order_by="aesthetic")
    expect(page.locator(".caption").first).to_have_text(best[0]["caption"])
    page.reload()  # the address has it all
    page.get_by_role("button", name="Filters").click()
    expect(page.get_by_role("slider", name="Watermark at most 0.4")).to_have_value("0.4")
    assert opened.captions() == [result["caption"] for result in best]
    page.locator(".picture").first.click()
    expect(page.locator("#details-facts")).to_contain_text("Score: watermark")
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Reset filters").click()
    expect(page.locator(".card")).to_have_count(30)
    opened.context.close()
    assert opened.complaints == []
