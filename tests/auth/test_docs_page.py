"""The interactive documentation of a service that asks for keys."""

from __future__ import annotations

from playwright.async_api import async_playwright, expect

from service.access import Role
from tests.api.browser import LAUNCH, Watch, needs_browser

from .conftest import Guarded, eventually


async def plugin_paths(guarded: Guarded, key: str | None) -> set[str]:
    document = (await guarded.request("GET", "/openapi.json", key)).json()
    return {path for path in document["paths"] if path.startswith("/v1/plugins/") and "{" not in path}


async def test_the_description_names_plugins_only_to_those_who_may_list_them(guarded: Guarded) -> None:
    key = await guarded.key("acme", Role.REPORT)
    known = {f"/v1/plugins/{name}/jobs" for name in ("echo", "sleep")}

    async def described() -> bool:
        return await plugin_paths(guarded, key) == known

    await eventually(described)
    for stranger in (None, "jsk_000000000000_guess"):
        answer = await guarded.request("GET", "/openapi.json", stranger)
        assert await plugin_paths(guarded, stranger) == set()
        assert answer.headers["Vary"] == "Authorization"
        assert "echo" not in {*answer.json()["components"]["schemas"]}


@needs_browser
async def test_the_page_works_with_a_key(guarded: Guarded) -> None:
    key = await guarded.key("acme", Role.SUBMIT)

    async def described() -> bool:
        return "/v1/plugins/echo/jobs" in await plugin_paths(guarded, key)

    await eventually(described)
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(**LAUNCH)
        page = await browser.new_page()
        page.set_default_timeout(30_000)
        expect.set_options(timeout=30_000)
        watch = Watch(page, guarded.url)
        await page.goto(guarded.url + "/docs")
        await expect(page.locator("#operations-jobs-submit_job")).to_be_visible()
        await expect(page.locator("#operations-plugins-submit_echo_job")).to_have_count(0)

        await page.locator(".scheme-container").get_by_role("button", name="Authorize").click()
        dialog = page.locator(".dialog-ux")
        for wrong, words in (("jsk_…_…", "This is no API key."), (f"{key}x", "unknown, expired or revoked")):
            await dialog.get_by_role("textbox").fill(wrong)
            await dialog.get_by_role("button", name="Apply credentials").click()
            await expect(dialog).to_contain_text(words)
        # Chromium tells of every answer that is an error.
        assert [complaint for complaint in watch.complaints if "401" not in complaint] == []
        watch.complaints.clear()
        await dialog.get_by_role("textbox").fill(key)
        await dialog.get_by_role("button", name="Apply credentials").click()
        await dialog.get_by_role("button", name="Close", exact=True).click()

        call = page.locator("#operations-plugins-submit_echo_job")
        await call.locator(".opblock-summary-control").click()
        await call.get_by_role("button", name="Try it out").click()
        await call.locator("textarea.body-param__text").fill("{}")
        await call.get_by_role("button", name="Execute").click()
        await expect(call.locator(".live-responses-table .response-col_status").last).to_contain_text("202")
        assert (watch.complaints, watch.foreign) == ([], [])

        await page.context.set_offline(True)
        await page.locator(".scheme-container").get_by_role("button", name="Authorize").click()
        async with page.expect_event("requestfailed"):
            await dialog.get_by_role("button", name="Remove authorization").click()
        await expect(dialog.get_by_role("textbox")).to_be_visible()
        await dialog.get_by_role("button", name="Close", exact=True).click()
        await expect(call.locator("textarea.body-param__text")).to_have_value("{}")
        await browser.close()
