"""What belongs to one tenant does not exist for another."""

from __future__ import annotations

import re

import pytest
from uuid_utils.compat import uuid7

from service.access import Role
from service.api.routes import ROUTES
from service.job_actions import Action

from .conftest import FAR, Guarded, eventually

ALL = tuple(Role)


def masked(text: str, job_id: str) -> str:
    return re.sub(job_id, "ID", text, flags=re.IGNORECASE)


@pytest.mark.parametrize("stranger", ["default", "globex"])
async def test_anothers_job_is_answered_like_one_that_never_was(guarded: Guarded, stranger: str) -> None:
    owner, other = await guarded.key("acme", *ALL), await guarded.key(stranger, *ALL)
    ended = (await guarded.submit(owner, payload={"text": "mine"})).json()["id"]
    waiting = (await guarded.submit(owner, **FAR)).json()["id"]

    async def has_ended() -> bool:
        record = (await guarded.request("GET", f"/v1/jobs/{ended}?wait=5", owner)).json()
        return bool(record["status"] == "SUCCESS")

    await eventually(has_ended)
    before = [(await guarded.request("GET", f"/v1/jobs/{job_id}", owner)).text for job_id in (ended, waiting)]
    calls = 0
    for route in ROUTES:
        if "{job_id}" not in route.path or route.name == "put_job":
            continue
        for query in ("", "?wait=0.1", "?pointer=/text", "?unknown=1"):
            for foreign, written in ((ended, str), (waiting, str), (ended, str.upper)):
                path = re.sub(r"{\w+}", "x", route.path.replace("{job_id}", "ID")) + query
                never = str(uuid7())
                found = await guarded.request(route.method, path.replace("ID", written(foreign)), other)
                random = await guarded.request(route.method, path.replace("ID", written(never)), other)
                assert found.status == random.status, path
                assert found.headers == random.headers, path
                assert masked(found.text, foreign) == masked(random.text, never), path
                assert found.status in (400, 404), path
                calls += 1
    assert calls >= 60
    assert [(await guarded.request("GET", f"/v1/jobs/{id_}", owner)).text for id_ in (ended, waiting)] == before


async def test_anothers_batch_is_answered_like_one_that_never_was(guarded: Guarded) -> None:
    owner, other = await guarded.key("acme", *ALL), await guarded.key("globex", *ALL)
    body = [{"plugin": "echo", "payload": {}, **FAR}] * 2
    batch = (await guarded.request("POST", "/v1/jobs/batch", owner, json=body)).json()["batch_id"]
    routes = [route for route in ROUTES if "{batch_id}" in route.path]
    assert len(routes) >= 2
    for route in routes:
        for query in ("", "?wait=0.1", "?unknown=1"):
            never = str(uuid7())
            path = route.path + query
            found, random = [
                await guarded.request(route.method, path.replace("{batch_id}", batch_id), other)
                for batch_id in (batch, never)
            ]
            assert (found.status, found.headers) == (random.status, random.headers), path
            assert masked(found.text, batch) == masked(random.text, never), path
            assert found.status in (400, 404), path
    assert (await guarded.request("GET", f"/v1/batches/{batch}", owner)).json()["counts"]["PENDING"] == 2


@pytest.mark.parametrize("action", Action)
async def test_an_action_on_anothers_jobs_finds_none(guarded: Guarded, action: Action) -> None:
    owner, other = await guarded.key("acme", *ALL), await guarded.key("globex", *ALL)
    made = [(await guarded.submit(owner, tags=["t"], **FAR)).json()["id"] for _ in range(2)]
    await guarded.request("POST", f"/v1/jobs/{made[0]}/cancel", owner)
    before = [(await guarded.request("GET", f"/v1/jobs/{job_id}", owner)).text for job_id in made]
    path, never = f"/v1/jobs/actions/{action}", [str(uuid7()) for _ in made]
    for more in ({}, {"dry_run": True}):
        for headers in ({}, {"Idempotency-Key": "k"}):
            found, random = [
                await guarded.request("POST", path, other, headers=headers, json={"ids": ids, **more})
                for ids in (made, never)
            ]
            assert found.status == random.status == 200
            assert [item["outcome"] for item in found.json()["items"]] == ["unknown"] * 2
            assert found.headers == random.headers
            assert masked(found.text, "|".join(made)) == masked(random.text, "|".join(never))
        answer = await guarded.request("POST", path, other, json={"filter": {"tag": "t"}, **more})
        assert (answer.json()["matched"], answer.json()["items"]) == (0, [])
    assert [(await guarded.request("GET", f"/v1/jobs/{job_id}", owner)).text for job_id in made] == before


async def test_an_id_that_is_anothers_is_answered_like_one_that_is_taken(guarded: Guarded) -> None:
    owner, other = await guarded.key("acme"), await guarded.key("globex")
    body = {"plugin": "echo", "payload": {"n": 1}, **FAR}
    foreign = str(uuid7())
    assert (await guarded.request("PUT", f"/v1/jobs/{foreign}", owner, json=body)).status == 202
    own = (await guarded.submit(other, **FAR)).json()["id"]
    before = (await guarded.request("GET", f"/v1/jobs/{foreign}", owner)).text
    for sent in (body, {**body, "payload": {"n": 2}}, {"plugin": "never", "payload": {}}):
        found = await guarded.request("PUT", f"/v1/jobs/{foreign}", other, json=sent)
        taken = await guarded.request("PUT", f"/v1/jobs/{own}", other, json=sent)
        assert found.status == taken.status == 422
        assert found.headers == taken.headers
        assert masked(found.text, foreign) == masked(taken.text, own)
    assert (await guarded.request("GET", f"/v1/jobs/{foreign}", owner)).text == before


async def test_a_key_of_a_batch_and_of_a_retry_is_the_tenants_own(guarded: Guarded) -> None:
    keys = [await guarded.key(tenant, *ALL) for tenant in ("acme", "globex")]
    headers, body = {"Idempotency-Key": "nightly"}, [{"plugin": "echo", "payload": {"n": n}} for n in range(2)]
    made = [(await guarded.request("POST", "/v1/jobs/batch", key, headers=headers, json=body)).json() for key in keys]
    assert made[0]["batch_id"] != made[1]["batch_id"]
    ids = [item["id"] for batch in made for item in batch["items"]]
    assert len(set(ids)) == 4
    assert not any(item["replayed"] for batch in made for item in batch["items"])
    retries = []
    for key, batch in zip(keys, made, strict=True):
        state = await guarded.request("GET", f"/v1/batches/{batch['batch_id']}?wait=60", key)
        assert state.json()["counts"]["SUCCESS"] == 2
        old = batch["items"][0]["id"]
        headers = {"Idempotency-Key": "again"}
        retries.append(await guarded.request("POST", f"/v1/jobs/{old}/retry", key, headers=headers))
    assert [(answer.status, answer.headers.get("Idempotency-Replayed")) for answer in retries] == [(202, None)] * 2


async def test_a_list_shows_the_tenants_own_jobs_whatever_it_is_filtered_by(guarded: Guarded) -> None:
    keys = {tenant: await guarded.key(tenant, *ALL) for tenant in ("default", "acme", "globex")}
    made = {
        tenant: [(await guarded.submit(key, tags=["same"], **FAR)).json()["id"] for _ in range(3)]
        for tenant, key in keys.items()
    }
    for tenant, key in keys.items():
        for query in ("", "?tag=same", "?plugin=echo", "?status=PENDING", "?created_after=2000-01-01T00:00:00Z"):
            items = (await guarded.request("GET", f"/v1/jobs{query}", key)).json()["items"]
            assert [job["id"] for job in items] == made[tenant][::-1], query


async def test_anothers_cursor_is_as_good_as_a_made_up_one(guarded: Guarded) -> None:
    owner, other = await guarded.key("acme"), await guarded.key("globex")
    older = (await guarded.submit(other, **FAR)).json()["id"]
    made_up = str(uuid7())
    foreign = (await guarded.submit(owner, **FAR)).json()["id"]
    await guarded.submit(other, **FAR)
    pages = [await guarded.request("GET", f"/v1/jobs?cursor={cursor}", other) for cursor in (made_up, foreign)]
    assert pages[0] == pages[1]
    assert [job["id"] for job in pages[0].json()["items"]] == [older]


async def test_an_idempotency_key_is_the_tenants_own(guarded: Guarded) -> None:
    headers = {"Idempotency-Key": "order-1"}
    first, second = await guarded.key("acme"), await guarded.key("globex")
    answers = [
        await guarded.request("POST", "/v1/jobs", key, headers=headers, json={"plugin": "echo", "payload": payload})
        for key, payload in ((first, {"n": 1}), (second, {"n": 2}), (first, {"n": 1}), (first, {"n": 2}))
    ]
    assert [answer.status for answer in answers] == [202, 202, 202, 422]
    assert [answer.headers.get("Idempotency-Replayed") for answer in answers] == [None, None, "true", None]
    assert answers[0].json()["id"] == answers[2].json()["id"] != answers[1].json()["id"]


async def test_a_tenants_bytes_are_not_another_ones(guarded: Guarded) -> None:
    owner, other = await guarded.key("acme"), await guarded.key("globex")
    payload = {"file": {"$bytes": "c2VjcmV0"}}
    mine = (await guarded.submit(owner, payload=payload)).json()
    url = mine["payload"]["file"]["url"]
    assert (await guarded.request("GET", url, owner)).text == "secret"
    assert (await guarded.request("GET", url, other)).status == 404
