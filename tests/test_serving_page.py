"""The page in a real browser."""

import base64
import io
import re
import shutil
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Browser, Error, Page, Playwright, expect, sync_playwright
from service import serving
from small_model import CLASSES, pictures, write_model

expect.set_options(timeout=30_000)  # ms, of a machine that is busy
FILES, LABELS = pictures(5000, 1)
DROP = """([text, type]) => {
  const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
  const dataTransfer = new DataTransfer();
  dataTransfer.items.add(new File([bytes], "picture", { type }));
  const how = { bubbles: true, cancelable: true, dataTransfer };
  for (const name of ["dragenter", "dragover", "drop"])
    document.querySelector("#drop").dispatchEvent(new DragEvent(name, how));
}"""
PASTE = """([text, type]) => {
  const bytes = Uint8Array.from(atob(text), (each) => each.charCodeAt(0));
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File([bytes], "picture", { type }));
  document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
}"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with serving(write_model(tmp_path_factory.mktemp("model") / "model.onnx"), "--version", "v1") as service:
        yield service.url


@pytest.fixture(scope="module")
def playwright():
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def browser(playwright: Playwright):
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    found = next(filter(None, map(shutil.which, names)), None)
    if not found:
        pytest.skip("no chromium here: apt-get install chromium")
    browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
    yield browser
    browser.close()


@pytest.fixture
def page(browser: Browser, url: str, request):
    """The page, open; its test fails where the page breaks its own rules or asks another host."""
    context = browser.new_context(**getattr(request, "param", {}))
    page = context.new_page()
    amiss: list[str] = []
    page.on("pageerror", lambda error: amiss.append(str(error)))
    page.on("console", lambda line: "Security Policy" in line.text and amiss.append(line.text))
    page.on("request", lambda asked: asked.url.startswith((url, "blob:")) or amiss.append(asked.url))
    page.goto(url)
    expect(page.locator("#model")).to_have_text("Model flowers v1: 3 kinds, macro F1 0.900 on validation.")
    yield page
    context.close()
    assert not amiss


def drop(page: Page, file: bytes, kind: str = "image/jpeg", how: str = DROP) -> None:
    page.evaluate(how, [base64.b64encode(file).decode(), kind])


def expect_flower(page: Page, name: str) -> None:
    expect(page.locator("#guesses li .name").first).to_have_text(name)
    expect(page.get_by_role("status")).to_have_text(f"Most likely {name}.")


@pytest.mark.parametrize("how", [DROP, PASTE], ids=["dropped", "pasted"])
def test_a_picture_gives_the_right_flower(page, how):
    for file, label in zip(FILES, LABELS, strict=True):
        drop(page, file, how=how)
        expect_flower(page, CLASSES[label])
        expect(page.locator("#preview")).to_be_visible()
    expect(page.locator("#guesses li")).to_have_count(3)
    shares = [float(text.strip("< %")) for text in page.locator("#guesses .share").all_inner_texts()]
    assert shares == sorted(shares, reverse=True)
    first, last = (page.locator(f"#guesses .bar >> nth={at}").bounding_box()["width"] for at in (0, -1))
    assert first > 10 * last


def test_the_keyboard_is_enough(page):
    page.on("filechooser", lambda _: None)  # takes choosers over from the desktop, well before there is one
    page.keyboard.press("Tab")
    expect(page.locator("#choose")).to_be_focused()
    assert page.locator(".button.first").evaluate("button => getComputedStyle(button).outlineStyle") == "solid"
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files({"name": "picture", "mimeType": "image/jpeg", "buffer": FILES[1]})
    expect_flower(page, CLASSES[LABELS[1]])


def test_the_keyboard_is_not_lost_when_its_button_vanishes(page):
    unanswered = []
    page.route("**/predict*", lambda route: unanswered.append(route))
    drop(page, FILES[0])
    page.get_by_role("button", name="Cancel").press("Enter")
    expect(page.locator("#choose")).to_be_focused()
    page.unroute("**/predict*")
    page.route("**/predict*", lambda route: route.abort(), times=1)
    drop(page, FILES[0])
    page.get_by_role("button", name="Try again").press("Enter")
    expect_flower(page, CLASSES[LABELS[0]])
    expect(page.locator("#outcome")).to_be_focused()
    for route in unanswered:
        with suppress(Error):  # the page has given it up
            route.abort()


def test_what_is_told_is_told_where_a_screen_reader_listens(page):
    page.evaluate("""() => {
      self.heard = [];
      const region = document.querySelector("[role=status]");
      new MutationObserver(() => heard.push([region.textContent, region.checkVisibility()])).observe(
        region, { childList: true });
    }""")
    drop(page, FILES[0])
    expect_flower(page, CLASSES[LABELS[0]])
    assert page.evaluate("heard") == [["Looking at it …", True], [f"Most likely {CLASSES[LABELS[0]]}.", True]]


def test_a_large_photograph_is_made_small_before_it_is_sent(page):
    grain = np.random.default_rng(0).normal(0, 20, (1800, 2400, 3))
    image = Image.open(io.BytesIO(FILES[2])).resize((2400, 1800))
    out = io.BytesIO()
    Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8)).save(out, "JPEG")
    with page.expect_request("**/predict*") as sent:
        page.locator("#choose").set_input_files({"name": "x", "mimeType": "image/jpeg", "buffer": out.getvalue()})
    expect_flower(page, CLASSES[LABELS[2]])
    assert int(sent.value.all_headers()["content-length"]) < len(out.getvalue()) / 3


def test_what_is_no_photograph_is_said_so_and_the_next_one_works(page):
    drop(page, b"not a picture", "text/plain")
    expect(page.get_by_role("status")).to_contain_text("not a photograph that can be read")
    expect(page.locator("#preview")).to_be_hidden()
    expect(page.locator("#again")).to_be_hidden()
    drop(page, FILES[0][:700])
    expect(page.get_by_role("status")).to_contain_text("damaged or cut short")
    drop(page, FILES[0])
    expect_flower(page, CLASSES[LABELS[0]])
    expect(page.get_by_role("status")).not_to_have_class("error")


def test_a_service_that_cannot_be_reached_can_be_tried_again(page):
    page.route("**/predict*", lambda route: route.abort())
    drop(page, FILES[0])
    expect(page.get_by_role("status")).to_have_text("The service cannot be reached.")
    page.unroute("**/predict*")
    page.get_by_role("button", name="Try again").click()
    expect_flower(page, CLASSES[LABELS[0]])


def test_a_busy_service_is_asked_again_as_it_wishes(page):
    page.route(
        "**/predict*",
        lambda route: route.fulfill(status=503, headers={"Retry-After": "1"}, json={"detail": "busy"}),
        times=1,
    )
    drop(page, FILES[0])
    expect(page.get_by_role("status")).to_have_text("The service is busy. Trying again …")
    expect_flower(page, CLASSES[LABELS[0]])


def test_a_service_that_is_late_is_not_asked_again_unasked(page):
    asked = []

    def late(route):
        asked.append(route.request)
        route.fulfill(status=503, json={"detail": "no answer within 10 seconds; try again later"})

    page.route("**/predict*", late)
    drop(page, FILES[0])
    expect(page.get_by_role("status")).to_have_text("The service is busy. Try again in a moment.")
    assert len(asked) == 1


def test_an_answer_that_cannot_be_shown_is_not_taken_for_none(page):
    page.route("**/predict*", lambda route: route.fulfill(json={"images": []}))
    drop(page, FILES[0])
    expect(page.get_by_role("status")).to_have_text("The service's answer cannot be shown.")


def test_a_photograph_can_be_given_up_while_it_is_made_small(page):
    page.evaluate("() => { self.createImageBitmap = () => new Promise(() => {}); }")
    drop(page, FILES[0] + bytes(400_000))
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#waiting")).to_be_hidden()
    expect(page.locator("#failure")).to_be_hidden()


def test_a_model_without_scores_is_named_all_the_same(page, url):
    told = page.request.get(f"{url}/model").json() | {"scores": {"macro_f1": None}}
    page.route("**/model", lambda route: route.fulfill(json=told))
    page.reload()
    expect(page.locator("#model")).to_have_text("Model flowers v1: 3 kinds.")


def test_a_slow_network_is_named_and_can_be_given_up(page):
    page.clock.install()
    unanswered = []
    page.route("**/predict*", lambda route: unanswered.append(route))
    drop(page, FILES[0])
    expect(page.get_by_role("status")).to_have_text("Looking at it …")
    page.clock.fast_forward(6_000)
    expect(page.get_by_role("status")).to_contain_text("A slow network takes a while")
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator("#waiting")).to_be_hidden()
    drop(page, FILES[0])
    page.clock.fast_forward(100_000)
    expect(page.get_by_role("status")).to_contain_text("No answer came")
    for route in unanswered:
        with suppress(Error):  # the page has given it up
            route.abort()


PHONE = {"viewport": {"width": 320, "height": 640}, "has_touch": True, "is_mobile": True}


@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_a_phone_has_a_camera_and_nothing_to_scroll_sideways(page):
    take = page.locator("#take")
    assert take.get_attribute("capture") == "environment"
    expect(page.get_by_text("Take a photograph")).to_be_visible()
    for button in page.locator(".button").all():
        assert button.bounding_box()["height"] >= 44
    drop(page, FILES[0])
    expect_flower(page, CLASSES[LABELS[0]])
    expect(page.locator("#guesses")).to_be_in_viewport()
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def luminance(colour: str) -> float:
    """Relative luminance of rgb(…), as WCAG 2.2 defines it."""
    levels = [int(each) / 255 for each in re.findall(r"\d+", colour)[:3]]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in levels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(
    "page", [{"color_scheme": "dark"}, {"color_scheme": "light"}], indirect=True, ids=["dark", "light"]
)
def test_text_can_be_read_in_the_dark_and_in_the_light(page, request):
    drop(page, FILES[0])
    expect_flower(page, CLASSES[LABELS[0]])
    paper = luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper < 0.02) is ("dark" in request.node.callspec.id)

    def can_be_read(selector: str) -> bool:
        ink = luminance(page.locator(selector).first.evaluate("each => getComputedStyle(each).color"))
        return (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5

    for selector in ("h1", "#told", "#guesses .name", "#guesses .share", "footer p", "footer a"):
        assert can_be_read(selector), selector
    drop(page, b"not a picture")
    expect(page.get_by_role("status")).to_have_class("error")
    assert can_be_read("#told")


def test_the_description_of_the_interface_can_be_tried_out(page, url):
    page.goto(url + "/docs")
    page.locator("#operations-model-predict_predict_post .opblock-summary-control").click()
    page.get_by_role("button", name="Try it out").click()
    page.locator(".opblock input[type=file]").first.set_input_files(
        {"name": "picture", "mimeType": "image/jpeg", "buffer": FILES[0]}
    )
    page.get_by_role("button", name="Execute").click()
    expect(page.locator(".live-responses-table")).to_contain_text(CLASSES[LABELS[0]])
