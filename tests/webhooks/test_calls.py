"""The calls about webhooks: what they refuse, and whose they are."""

from __future__ import annotations

import dataclasses
import json
import re
from typing import Any

import aiohttp
from uuid_utils.compat import uuid7

from service.access import Role
from service.api.webhook_routes import WEBHOOK_ROUTES
from service.client import Client as AsyncClient
from service.models import JobOptions, JobWebhook
from tests.auth.conftest import Guarded, guarded, start  # noqa: F401 - fixtures

HOOK = "https://example.com/hook"


#: What is no webhook, and the place that the refusal names.
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({}, "/url"),
    ({"url": 1}, "/url"),
    ({"url": ""}, "/url"),
    ({"url": "https://example.com:22/"}, "/url"),
    ({"url": HOOK, "events": []}, "/events"),
    ({"url": HOOK, "events": ["job.started"]}, "/events/0"),
    ({"url": HOOK, "events": "job.failed"}, "/events"),
    ({"url": HOOK, "plugins": []}, "/plugins"),
    ({"url": HOOK, "plugins": ["a\0"]}, "/plugins/0"),
    ({"url": HOOK, "description": "x" * 501}, "/description"),
    ({"url": HOOK, "secret": "mine"}, "/secret"),
]
REFUSED_OF_JOBS: list[tuple[Any, str]] = [
    ({}, "/webhook/url"),
    ({"url": "http://example.com/"}, "/webhook/url"),
    ({"url": HOOK, "events": ["success"]}, "/webhook/events/0"),
    ({"url": HOOK, "plugins": ["echo"]}, "/webhook/plugins"),
    (HOOK, "/webhook"),
]


async def test_what_is_no_webhook_is_refused_by_the_name_of_the_field(guarded: Guarded) -> None:  # noqa: F811
    key = await guarded.key("default", *Role)
    for body, pointer in REFUSED:
        answer = await guarded.request("POST", "/v1/webhooks", key, json=body)
        assert (answer.status, [place["pointer"] for place in answer.json()["errors"]]) == (422, [pointer]), body
    for webhook, pointer in REFUSED_OF_JOBS:
        answer = await guarded.submit(key, webhook=webhook)
        assert (answer.status, [place["pointer"] for place in answer.json()["errors"]]) == (422, [pointer]), webhook
    for path in ("/v1/webhooks", "/v1/jobs"):
        assert (await guarded.request("GET", path, key)).json() == {"items": [], "next": None}


async def test_a_url_that_is_refused_is_named_by_its_place_in_a_request(
    guarded: Guarded,  # noqa: F811 - the fixture that is imported
) -> None:
    key = await guarded.key("default", *Role)
    options = {"webhook": {"url": "http://example.com/"}}
    job = {"plugin": "echo", "payload": {}, **options}
    form = aiohttp.FormData({"plugin": "echo", "job": json.dumps(options)}, default_to_multipart=True)
    query = {"job.webhook": json.dumps(options["webhook"])}
    raw = {"data": b"x", "headers": {"Content-Type": "text/plain"}}
    for method, path, sent, pointer in (
        ("POST", "/v1/jobs", {"json": job}, "/webhook/url"),
        ("PUT", f"/v1/jobs/{uuid7()}", {"json": job}, "/webhook/url"),
        ("POST", "/v1/jobs", {"data": form}, "/job/webhook/url"),
        ("POST", "/v1/plugins/echo/jobs", {"params": query, "json": {}}, "/job.webhook/url"),
        ("POST", "/v1/plugins/echo/jobs", {"params": query, **raw}, "/job.webhook/url"),
    ):
        answer = await guarded.request(method, path, key, **sent)
        assert (answer.status, [place["pointer"] for place in answer.json()["errors"]]) == (422, [pointer]), sent
    answer = await guarded.request("POST", "/v1/jobs/batch", key, json=[{"plugin": "echo", "payload": {}}, job])
    (place,) = answer.json()["items"][1]["problem"]["errors"]
    assert place["pointer"] == "/1/webhook/url"


async def test_what_is_left_out_of_a_change_stays(guarded: Guarded) -> None:  # noqa: F811
    key = await guarded.key("default", Role.ADMIN)
    body = {"url": HOOK, "events": ["job.failed"], "plugins": ["echo"], "description": "mine"}
    made = (await guarded.request("POST", "/v1/webhooks", key, json=body)).json()
    secret = made.pop("secret")
    path = made["links"]["self"]
    for change in (
        {},
        {"description": None},
        {"url": HOOK + "/2", "plugins": None},
        {"events": ["job.success", "job.failed", "job.success"]},
        {"enabled": False},
        {"enabled": True},
    ):
        made |= change
        made["events"] = list(dict.fromkeys(made["events"]))
        made["disabled_reason"] = None if made["enabled"] else "Disabled by request."
        changed = await guarded.request("PATCH", path, key, json=change)
        assert (changed.status, changed.json()) == (200, made)
    assert (await guarded.request("GET", path, key)).json() == made
    assert (await guarded.request("GET", path + "/secret", key)).json() == {"secret": secret, "old_until": None}
    refused = await guarded.request("PATCH", path, key, json={"url": "http://10.0.0.1/"})
    assert (refused.status, refused.json()["errors"][0]["pointer"]) == (422, "/url")


async def test_lists_have_pages(guarded: Guarded) -> None:  # noqa: F811
    key = await guarded.key("default", Role.ADMIN)
    made = [(await guarded.request("POST", "/v1/webhooks", key, json={"url": HOOK})).json()["id"] for _ in range(5)]
    found, path = [], "/v1/webhooks?limit=2"
    while path:
        page = await guarded.request("GET", path, key)
        found += [item["id"] for item in page.json()["items"]]
        link = page.headers.get("Link")
        path = re.fullmatch(r'<(.*)>; rel="next"', link)[1] if link else ""  # type: ignore[index]
    assert found == made[::-1]


async def test_anothers_webhook_is_answered_like_one_that_never_was(guarded: Guarded) -> None:  # noqa: F811
    owner, other = await guarded.key("acme", Role.ADMIN), await guarded.key("globex", Role.ADMIN)
    mine = (await guarded.request("POST", "/v1/webhooks", owner, json={"url": HOOK})).json()["id"]
    ping = (await guarded.request("POST", f"/v1/webhooks/{mine}/ping", owner)).json()["id"]
    theirs = (await guarded.request("POST", "/v1/webhooks", other, json={"url": HOOK})).json()["id"]
    calls = 0
    for route in WEBHOOK_ROUTES:
        if "{webhook_id}" not in route.path:
            continue
        more = {"json": {"description": "changed"}} if route.bodies else {}
        for foreign in (mine, mine.upper()):
            ids = (foreign, str(uuid7()))
            paths = [route.path.replace("{webhook_id}", id_).replace("{delivery_id}", ping) for id_ in ids]
            answers = [await guarded.request(route.method, path, other, **more) for path in paths]
            texts = [re.sub(id_, "ID", answer.text) for answer, id_ in zip(answers, ids, strict=True)]
            assert answers[0].status == answers[1].status == 404, route.name
            assert (texts[0], answers[0].headers) == (texts[1], answers[1].headers), route.name
            calls += 1
    assert calls >= 16
    redeliver = f"/v1/webhooks/{theirs}/deliveries/{ping}/redeliver"
    assert (await guarded.request("POST", redeliver, other)).json()["type"] == "/problems/unknown-delivery"
    assert [item["id"] for item in (await guarded.request("GET", "/v1/webhooks", owner)).json()["items"]] == [mine]


async def test_jobs_of_two_tenants_that_name_one_url_have_an_endpoint_each(guarded: Guarded) -> None:  # noqa: F811
    ids = set()
    for tenant in ("acme", "globex"):
        key = await guarded.key(tenant, *Role)
        for _ in range(2):
            record = (await guarded.submit(key, webhook={"url": HOOK}, run_at="2999-01-01T00:00:00Z")).json()
            ids.add((tenant, record["webhook_id"]))
            shown = (await guarded.request("GET", f"/v1/jobs/{record['id']}", key)).json()
            assert shown["webhook_id"] == record["webhook_id"]
        (webhook,) = (await guarded.request("GET", "/v1/webhooks", key)).json()["items"]
        refused = await guarded.request("PATCH", webhook["links"]["self"], key, json={"url": HOOK + "/2"})
        assert (refused.status, refused.json()["type"]) == (409, "/problems/wrong-state")
    assert len(ids) == 2


async def test_a_webhook_may_be_named_in_every_kind_of_submission(guarded: Guarded) -> None:  # noqa: F811
    key = await guarded.key("default", *Role)
    form = aiohttp.FormData(
        {"plugin": "echo", "job": json.dumps({"webhook": {"url": HOOK}})}, default_to_multipart=True
    )
    for path, more in (
        ("/v1/jobs", {"data": form}),
        (f'/v1/plugins/echo/jobs?job.webhook={{"url":"{HOOK}"}}', {"json": {}}),
        ("/v1/jobs", {"json": {"plugin": "echo", "payload": {}, "webhook": {"url": HOOK}}}),
    ):
        answer = await guarded.request("POST", path, key, **more)
        assert (answer.status, answer.json().get("webhook_id") is None) == (202, False), answer.text
    async with AsyncClient(guarded.url, key) as client:
        options = JobOptions(webhook=JobWebhook(url=HOOK, events=("job.failed",)))
        jobs = [
            await client.submit("echo", {}, options=options),
            await client.submit_file("echo", None, options=dataclasses.replace(options, webhook=JobWebhook(url=HOOK))),
        ]
    for job in jobs:
        shown = (await guarded.request("GET", f"/v1/jobs/{job.id}", key)).json()
        assert shown["webhook_id"] == answer.json()["webhook_id"]
