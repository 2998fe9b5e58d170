"""The page in a real browser: one server, one browser, one walk for each thing that people do."""

import io
import shutil
from urllib.parse import urlsplit

import pytest
from PIL import Image
from playwright.sync_api import sync_playwright

from hf_clip import caption_images
from tests.helpers.coca import small_coca
from tests.helpers.search_toys import write_gray
from tests.helpers.served import TOKEN, gray_index, model_service, running, service_of

pytestmark = pytest.mark.slow

COUNT = 70


@pytest.fixture(scope="module")
def browser():
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if found is None:
        pytest.skip("the page is tested in a browser, and there is none: apt-get install chromium")
    # No sandbox: tests may run as root, and the browser sees this machine alone.
    arguments = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=found, args=arguments)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place") / "photos"
    exif = Image.Exif()
    exif[0x0132] = "2024:05:01 12:30:00"
    write_gray(folder / "old/<img src=x onerror=alert(1)>.jpg", 255, exif=exif)
    return service_of(gray_index(folder, range(COUNT)))


@pytest.fixture(scope="module")
def address(service):
    with running(service) as address:
        yield address
    service.close()


@pytest.fixture
def page(browser, address):
    """The page, loaded; no request of it may leave the server, and nothing in it may fail."""
    context = browser.new_context(viewport={"width": 1200, "height": 900})
    page = context.new_page()
    elsewhere, failures = [], []
    page.on("request", lambda one: _is_here(one.url, address) or elsewhere.append(one.url))
    page.on("pageerror", lambda error: failures.append(str(error)))
    page.on("dialog", lambda dialog: failures.append(dialog.message))
    page.set_default_timeout(10_000)
    page.goto(address)
    page.get_by_text("images ·").wait_for()
    yield page
    context.close()
    assert not elsewhere and not failures


def _is_here(url: str, address: str) -> bool:
    return urlsplit(url).scheme in ("blob", "data") or url.startswith(f"{address}/")


def names(page) -> list[str]:
    return page.locator(".card .name").all_text_contents()


def ask(page, text: str) -> None:
    page.get_by_label("Show me").fill(text)
    page.get_by_role("button", name="Search", exact=True).click()
    page.locator(".card").first.wait_for()


def png(value: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (value,) * 3).save(file, "PNG")
    return file.getvalue()


def test_a_text_finds_images_sixty_at_once(page):
    ask(page, "gray 7")
    assert names(page)[0] == "7.png" and page.locator(".card").count() == 60
    assert "60 images, and more · match probability " in page.locator("#status").text_content()
    assert float(page.locator(".score").first.text_content()) > float(page.locator(".score").nth(5).text_content())
    first = page.locator(".card img").first
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=first.element_handle())
    page.get_by_role("button", name="More", exact=True).click()
    page.locator(".card").nth(60).wait_for()
    assert page.locator(".card").count() == COUNT + 1
    assert page.get_by_role("button", name="More", exact=True).is_hidden()


def test_a_name_of_a_file_is_text(page):
    # The fixture fails for a script that runs, and for an alert.
    ask(page, "gray 255")
    assert names(page)[0] == "<img src=x onerror=alert(1)>.jpg"


def test_a_dropped_image_finds_its_like_and_more_like_this_the_next(page):
    data = page.evaluate_handle(
        """bytes => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "mine.png", { type: "image/png" }));
            return data;
        }""",
        list(png(33)),
    )
    page.locator("#drop").dispatch_event("drop", {"dataTransfer": data})
    page.locator(".card").first.wait_for()
    assert names(page)[0] == "33.png" and page.locator("#chosen-name").text_content() == "mine.png"
    page.locator(".card", has_text="35.png").get_by_role("button", name="More like this").click()
    page.wait_for_function("document.querySelector('#chosen-name').textContent === '35.png'")
    page.locator(".card").first.wait_for()
    assert "35.png" not in names(page)


def test_filters_and_an_empty_result(page):
    page.get_by_text("Filters").click()
    page.get_by_label("Taken from").fill("2024-05-01")
    page.get_by_label("To", exact=True).fill("2024-05-01")
    ask(page, "gray 7")
    assert page.locator(".card").count() == 1 and "2024-05-01" in page.locator(".facts").text_content()
    page.get_by_label("Path contains").fill("it's nowhere")
    page.get_by_role("button", name="Search", exact=True).click()
    page.get_by_text("No image: try it without filters.").wait_for()
    assert page.locator(".card").count() == 0


def test_a_broken_upload_is_a_line(page):
    page.locator("#image").set_input_files({"name": "broken.png", "mimeType": "image/png", "buffer": b"no image"})
    page.get_by_text("a damaged header").wait_for()
    assert page.locator("#status.bad").count() == 1 and page.locator(".card").count() == 0
    ask(page, "gray 3")


def test_labels_are_scored(page):
    page.get_by_role("tab", name="Classify").click()
    page.locator("#subject").set_input_files({"name": "mine.png", "mimeType": "image/png", "buffer": png(9)})
    page.get_by_label("Labels").fill("gray 9, gray 200\ngray 100")
    page.get_by_label("Templates").fill("{}")
    page.get_by_role("button", name="Classify", exact=True).click()
    page.locator("#scores li").nth(2).wait_for()
    assert page.locator("#scores li").first.text_content().startswith("gray 9")
    assert page.locator("#classify-status").text_content() == "Templates: {}"


def test_a_keyboard_alone_does(page):
    assert page.evaluate("document.activeElement.id") == "query"
    page.keyboard.type("gray 20")
    page.keyboard.press("Enter")
    page.locator(".card").first.wait_for()
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.className") == "open":
            break
    page.keyboard.press("ArrowRight")
    assert (
        page.evaluate("document.activeElement.closest('.card').querySelector('.name').textContent") == names(page)[1]
    )
    page.keyboard.press("Enter")
    page.locator("#large[open]").wait_for()
    assert page.locator("#large-name").text_content() == names(page)[1]
    page.keyboard.press("Escape")
    assert page.locator("#large[open]").count() == 0
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#chosen:not([hidden])").wait_for()


def test_four_hundred_pixels_are_wide_enough(page):
    page.set_viewport_size({"width": 400, "height": 800})
    ask(page, "gray 7")
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    boxes = [page.locator(".card").nth(at).bounding_box() for at in range(2)]
    assert boxes[0]["y"] == boxes[1]["y"] and all(box["width"] >= 140 for box in boxes)


def test_a_token_opens_the_page(browser, service):
    with running(service, TOKEN) as address:
        page = browser.new_page()
        page.goto(address)
        page.get_by_label("Token of this server").fill("something else, long enough")
        page.get_by_role("button", name="Enter").click()
        page.get_by_text("this is not the token").wait_for()
        page.get_by_label("Token of this server").fill(TOKEN)
        page.get_by_role("button", name="Enter").click()
        page.get_by_text("images ·").wait_for()
        page.close()


def test_a_model_that_writes_has_a_tab_for_it(browser, page):
    assert page.locator("#tab-caption").is_hidden()
    model, processor = small_coca()
    service = model_service(model, processor)
    content = png(40)
    [caption] = caption_images(model, processor, [Image.open(io.BytesIO(content))])
    with running(service) as address:
        page = browser.new_page()
        page.set_default_timeout(10_000)
        page.goto(address)
        page.get_by_role("tab", name="Caption").click()
        page.locator("#untitled").set_input_files({"name": "bad.png", "mimeType": "image/png", "buffer": b"no image"})
        page.locator("#caption-status.bad").wait_for()
        page.locator("#untitled").set_input_files({"name": "mine.png", "mimeType": "image/png", "buffer": content})
        page.locator("#written:not(:empty)").wait_for()
        assert page.locator("#written").text_content() == caption != ""
        assert page.locator("#caption-status.bad").count() == 0 and page.locator("#untitled-image").is_visible()
        page.close()
    service.close()
