"""The interactive documentation in a real browser, which may reach this service only."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import Locator, Page, expect, sync_playwright

from service.api.routes import ROUTES
from tests.api.browser import LAUNCH, Watch, needs_browser
from tests.api.conftest import Live

pytestmark = needs_browser


@pytest.fixture
def page() -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**LAUNCH)
        page = browser.new_page()
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        yield page
        browser.close()


@pytest.fixture
def described(live: Live) -> None:
    """The plugins that these tests look for are available."""
    for plugin in ("echo", "thumbnail"):
        live.ended(live.submit(plugin, {"image": "aGk=", "mime_type": "image/png"})["id"])


def tried(page: Page, tag: str, operation: str) -> Locator:
    """A call of the page, opened to be tried."""
    call = page.locator(f"#operations-{tag}-{operation}")
    call.locator(".opblock-summary-control").click()
    call.get_by_role("button", name="Try it out").click()
    return call


@pytest.mark.usefixtures("described")
def test_the_page_shows_every_call_and_submits_a_job(live: Live, page: Page) -> None:
    watch = Watch(page, live.url)
    page.goto(live.url + "/docs")
    expect(page.locator(".title")).to_contain_text("Job service")
    for path in [route.path for route in ROUTES] + ["/v1/plugins/thumbnail/jobs"]:
        expect(page.locator(f'.opblock-summary-path[data-path="{path}"]').first).to_be_visible()

    call = tried(page, "plugins", "submit_echo_job")
    call.locator("textarea.body-param__text").fill('{"text": "from the page"}')
    call.get_by_role("button", name="Execute").click()
    expect(call.locator(".live-responses-table .response-col_status").last).to_contain_text("202")
    answer = json.loads(call.locator(".live-responses-table .response-col_description code").first.inner_text())
    assert (answer["plugin"], answer["payload"]) == ("echo", {"text": "from the page"})
    assert live.ended(answer["id"])["result"] == {"text": "from the page"}

    assert watch.complaints == []
    assert watch.foreign == []
    assert "/openapi.json" in watch.asked


@pytest.mark.usefixtures("described")
@pytest.mark.parametrize(
    ("tag", "operation", "media_type", "status"),
    [
        ("plugins", "submit_thumbnail_job", "application/json", 202),
        ("plugins", "submit_plugin_job", "application/json", 202),
        ("jobs", "submit_job", "multipart/form-data", 202),
        ("jobs", "submit_batch", "application/x-ndjson", 202),
        ("jobs", "delete_jobs", "application/json", 200),
    ],
)
def test_what_a_form_begins_with_is_accepted(
    live: Live, page: Page, tag: str, operation: str, media_type: str, status: int
) -> None:
    page.goto(live.url + "/docs")
    call = tried(page, tag, operation)
    call.locator("select[aria-label='Request content type']").select_option(media_type)
    if operation == "submit_plugin_job":
        call.locator("tr[data-param-name=name] input").fill("echo")
    call.get_by_role("button", name="Execute").click()
    expect(call.locator(".live-responses-table .response-col_status").last).to_contain_text(str(status))


@pytest.mark.usefixtures("described")
def test_the_page_sends_a_picture(live: Live, page: Page, png: bytes) -> None:
    watch = Watch(page, live.url)
    page.goto(live.url + "/docs")
    call = tried(page, "plugins", "submit_thumbnail_job")
    call.locator("select[aria-label='Request content type']").select_option("*/*")
    call.locator("input[type=file]").set_input_files({"name": "page.png", "mimeType": "image/png", "buffer": png})
    call.get_by_role("button", name="Execute").click()
    expect(call.locator(".live-responses-table .response-col_status").last).to_contain_text("202")
    location = re.search(r"location: (\S+)", call.locator(".live-responses-table").inner_text())
    assert location
    record = live.ended(location[1].rpartition("/")[2])
    assert (record["status"], record["payload"]["mime_type"]) == ("SUCCESS", "image/png")
    assert (watch.complaints, watch.foreign) == ([], [])


@pytest.fixture
def answer_to(live: Live, page: Page) -> Callable[[str, str, str, str], str]:
    """What the page shows as the answer to a call with one parameter."""

    def answer(tag: str, operation: str, name: str, value: str) -> str:
        call = tried(page, tag, operation)
        call.locator(f"tr[data-param-name={name}] input").fill(value)
        call.get_by_role("button", name="Execute").click()
        shown = call.locator(".live-responses-table .response-col_description .microlight").first
        expect(shown).to_be_visible()
        return shown.inner_text()

    return answer


def test_the_page_shows_documents_as_they_came(
    live: Live, page: Page, answer_to: Callable[[str, str, str, str], str]
) -> None:
    watch = Watch(page, live.url)
    batch = [
        {
            "plugin": "echo",
            "payload": {"whole": 2**53 + 1, "half": 1.0, "text": 'a "quoted", \\ [{}]: é', "none": [{}, []]},
        },
        {"plugin": "echo", "payload": {"whole": 1}},
    ]
    made = live.post("/v1/jobs/batch", json=batch).json()
    assert live.get(f"/v1/batches/{made['batch_id']}?wait=30").status_code == 200
    job_id = made["items"][0]["id"]

    page.goto(live.url + "/docs")
    result = answer_to("jobs", "get_result", "job_id", job_id)
    assert json.loads(result) == batch[0]["payload"]
    assert '  "whole": 9007199254740993,\n  "half": 1.0,\n' in result
    lines = answer_to("batches", "get_batch_results", "batch_id", made["batch_id"])
    assert lines == live.get(f"/v1/batches/{made['batch_id']}/results").text
    assert (watch.complaints, watch.foreign) == ([], [])


def test_the_page_shows_the_beginning_of_a_stream(live: Live, page: Page) -> None:
    page.goto(live.url + "/docs")
    call = tried(page, "events", "follow_jobs")
    with page.expect_response("**/v1/events"):
        call.get_by_role("button", name="Execute").click()
    job = live.submit("echo", {})
    shown = call.locator(".live-responses-table .response-col_description .microlight").first
    expect(shown).to_contain_text(job["id"])
    expect(shown).to_contain_text("this page listened for 10 s")
    expect(call.get_by_role("button", name="Execute")).to_be_enabled()


def test_the_address_of_the_page_and_what_is_open_go_together(live: Live, page: Page) -> None:
    watch = Watch(page, live.url)
    page.goto(live.url + "/problems")
    page.goto(live.url + "/docs#/jobs/get_job")
    expect(page.locator("#operations-jobs-get_job")).to_have_class(re.compile("is-open"))
    before = page.evaluate("history.length")
    tried(page, "jobs", "list_jobs")
    expect(page).to_have_url(live.url + "/docs#/jobs/list_jobs")
    assert page.evaluate("history.length") == before + 1
    page.evaluate("location.hash = '#/plugins/get_plugin'")
    linked = page.locator("#operations-plugins-get_plugin")
    expect(linked).to_have_class(re.compile("is-open"))
    expect(linked).to_be_in_viewport()
    for address in ("/docs#/jobs/list_jobs", "/docs#/jobs/get_job", "/problems"):
        page.go_back()
        expect(page).to_have_url(live.url + address)
    assert (watch.complaints, watch.foreign) == ([], [])


def test_the_page_fits_a_narrow_window_and_the_dark(live: Live, page: Page) -> None:
    page.set_viewport_size({"width": 360, "height": 740})
    page.goto(live.url + "/docs#/jobs/get_job")
    name = page.locator("#operations-jobs-get_job .headers td").first
    expect(name).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 360
    page.emulate_media(color_scheme="dark")
    expect(page.locator("html")).to_have_class("dark-mode")
    expect(name).to_have_css("color", "rgb(228, 230, 230)")
    page.emulate_media(color_scheme="light")
    expect(page.locator("html")).not_to_have_class("dark-mode")


def test_the_page_of_a_problem_is_where_its_type_leads(live: Live, page: Page) -> None:
    watch = Watch(page, live.url)
    problem = live.get("/v1/jobs?limit=0").json()
    page.goto(live.url + problem["type"])
    expect(page.locator("h1")).to_have_text(problem["title"])
    page.get_by_role("link", name="All problems").click()
    expect(page.locator("h1")).to_have_text("Problems")
    page.get_by_role("link", name="Not for this key").click()
    expect(page.locator("h1")).to_have_text("Not for this key")
    assert "/docs/page.css" in watch.asked
    assert (watch.complaints, watch.foreign) == ([], [])


@pytest.mark.usefixtures("described")
def test_what_looks_like_html_in_a_description_is_shown_as_text(live: Live, page: Page) -> None:
    said = 'Reads <title> of a List<int> <img src="/x"> <input>, *all* `of <it>`'
    document = live.get("/openapi.json").json()
    submit = document["paths"]["/v1/plugins/echo/jobs"]["post"]
    submit["description"] = f"{said}.\n\nSo:\n\n    if a <b: pass\n"
    submit["parameters"][0]["description"] = said
    page.route("**/openapi.json", lambda route: route.fulfill(json=document))
    watch = Watch(page, live.url)
    page.goto(live.url + "/docs#/plugins/submit_echo_job")
    call = page.locator("#operations-plugins-submit_echo_job")
    for place in (".opblock-description", ".parameters-col_description"):
        described = call.locator(place).filter(has_text="Reads")
        expect(described).to_contain_text('Reads <title> of a List<int> <img src="/x"> <input>, all of <it>')
        expect(described.locator("em").first).to_have_text("all")
    expect(call.locator(".opblock-description pre")).to_have_text("if a <b: pass\n")
    assert (watch.complaints, watch.foreign) == ([], [])


def test_a_service_that_is_away_is_told_as_such(live: Live, page: Page) -> None:
    page.goto(live.url + "/docs")
    call = tried(page, "jobs", "list_jobs")
    page.context.set_offline(True)
    call.get_by_role("button", name="Execute").click()
    answer = call.locator(".live-responses-table")
    expect(answer).to_contain_text("The service did not answer. Try again when it is there.")
    expect(answer).not_to_contain_text("CORS")
    page.context.set_offline(False)
    call.get_by_role("button", name="Execute").click()
    expect(answer.locator(".response-col_status").last).to_contain_text("200")


@pytest.mark.usefixtures("described")
def test_plugins_appear_as_they_load_and_nothing_typed_is_lost(live: Live, page: Page) -> None:
    path = "/v1/plugins/thumbnail/jobs"
    whole = live.get("/openapi.json").json()
    beginning = {**whole, "paths": {known: calls for known, calls in whole["paths"].items() if known != path}}
    loaded = threading.Event()
    page.route("**/openapi.json", lambda route: route.fulfill(json=whole if loaded.is_set() else beginning))
    page.clock.install()
    page.goto(live.url + "/docs")
    call = tried(page, "plugins", "submit_echo_job")
    body = call.locator("textarea.body-param__text")
    body.fill('{"text": "from the page"}')
    shown = page.locator(f'.opblock-summary-path[data-path="{path}"]')
    expect(shown).to_have_count(0)
    loaded.set()
    body.blur()
    page.clock.fast_forward("00:40")
    expect(shown).to_be_visible()
    expect(body).to_have_value('{"text": "from the page"}')
    loaded.clear()  # as after a restart
    with page.expect_response("**/openapi.json"):
        page.clock.fast_forward("02:00")
    expect(shown).to_be_visible()
