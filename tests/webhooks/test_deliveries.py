"""What receivers get, whatever they do: delivered, or visibly given up."""

from __future__ import annotations

import asyncio
import json

import pytest

from .conftest import PATIENCE_S, Client, Receiver, Start, endless, receiving, silent, status, until


async def test_the_end_of_a_job_is_heard_of_signed_and_once(client: Client, receiver: Receiver) -> None:
    webhook = await client.webhook(receiver.url, events=["job.success", "job.cancelled"])
    job = await client.submit(payload={"text": "hello", "file": {"$bytes": "aGVsbG8="}})
    (message,) = await receiver.got(1)
    record = await client.ask("GET", f"/v1/jobs/{job}", 200)
    for beside in ("payload", "queue_position", "eta_s"):
        del record[beside]
    content = message.verify(webhook["secret"])
    assert content == {
        "type": "job.success",
        "timestamp": record["finished_at"],
        "data": {**record, "result_omitted": False},
    }
    assert content["data"]["result"]["file"]["url"].startswith(f"/v1/jobs/{job}/result?")
    (delivery,) = await client.ended(webhook)
    assert (delivery["id"], delivery["status"], delivery["job_id"]) == (message.id, "DELIVERED", job)
    assert [(line["attempt"], line["status_code"]) for line in delivery["attempts"]] == [(1, 204)]
    assert len(receiver.messages) == 1


async def test_each_end_is_heard_by_who_wants_to_hear_of_it(client: Client, receiver: Receiver) -> None:
    everything = await client.webhook(receiver.url + "/all")
    await client.webhook(receiver.url + "/failed", events=["job.failed"])
    await client.webhook(receiver.url + "/sleep", plugins=["sleep"])
    quiet = await client.webhook(receiver.url + "/quiet")
    await client.ask("PATCH", f"/v1/webhooks/{quiet['id']}", 200, {"enabled": False})
    await client.submit("echo")
    far = await client.submit("sleep", {"seconds": 0}, run_at="2999-01-01T00:00:00Z")
    await client.ask("POST", f"/v1/jobs/{far}/cancel", 200)
    await client.submit("sleep", {"seconds": 30}, timeout_s=0.2)
    await client.ended(everything, 3)
    await receiver.got(6)
    heard = sorted((message.path, message.data["type"]) for message in receiver.messages)
    assert heard == [
        ("/hook/all", "job.cancelled"),
        ("/hook/all", "job.failed"),
        ("/hook/all", "job.success"),
        ("/hook/failed", "job.failed"),
        ("/hook/sleep", "job.cancelled"),
        ("/hook/sleep", "job.failed"),
    ]
    failed = next(message.data for message in receiver.messages if message.data["type"] == "job.failed")
    assert (failed["data"]["result"], failed["data"]["error"]["type"]) == (None, "TimeLimitExceeded")


async def test_a_job_may_name_where_it_is_heard_of(client: Client, receiver: Receiver) -> None:
    jobs = [
        await client.submit(payload={"n": n}, webhook={"url": receiver.url, **events})
        for n, events in enumerate(({}, {"events": ["job.success"]}, {"events": ["job.failed"]}))
    ]
    await client.submit(payload={"n": 3})
    records = [await client.ask("GET", f"/v1/jobs/{job}?wait=30", 200) for job in jobs]
    (webhook_id,) = {record["webhook_id"] for record in records}
    webhook = await client.ask("GET", f"/v1/webhooks/{webhook_id}", 200)
    assert (webhook["of_jobs"], webhook["url"]) == (True, receiver.url)
    await client.ended(webhook, 2)
    secret = (await client.ask("GET", f"/v1/webhooks/{webhook_id}/secret", 200))["secret"]
    heard = [message.verify(secret)["data"]["id"] for message in await receiver.got(2)]
    assert sorted(heard) == jobs[:2]


async def test_what_fails_is_tried_again_with_the_same_id_and_content(client: Client, receiver: Receiver) -> None:
    receiver.answers = [status(500), status(302, Location="http://127.0.0.1:1/elsewhere"), status(200)]
    webhook = await client.webhook(receiver.url)
    await client.submit()
    (delivery,) = await client.ended(webhook)
    assert [line["status_code"] for line in delivery["attempts"]] == [500, 302, 200]
    assert delivery["attempts"][1]["error"] == "answered 302, and redirects are not followed"
    assert (delivery["status"], delivery["last_error"]) == ("DELIVERED", None)
    assert len({(message.id, message.body) for message in receiver.messages}) == 1
    for message in receiver.messages:
        message.verify(webhook["secret"])
    assert (await client.ask("GET", f"/v1/webhooks/{webhook['id']}", 200))["failing_since"] is None


async def test_what_fails_to_the_end_is_visibly_given_up_and_can_be_asked_for_again(
    client: Client, receiver: Receiver
) -> None:
    receiver.answers = [status(500)]
    webhook = await client.webhook(receiver.url)
    await client.submit()
    (delivery,) = await client.ended(webhook)
    assert (delivery["status"], delivery["last_error"], len(delivery["attempts"])) == ("EXHAUSTED", "answered 500", 4)
    assert [one["id"] for one in await client.deliveries(webhook, "?status=EXHAUSTED")] == [delivery["id"]]
    assert await client.deliveries(webhook, "?status=DELIVERED") == []
    assert (await client.ask("GET", f"/v1/webhooks/{webhook['id']}", 200))["failing_since"]
    receiver.answers = [status(500), status(204)]
    again = await client.ask("POST", delivery["links"]["redeliver"], 202)
    assert (again["id"], again["status"]) == (delivery["id"], "PENDING")
    (delivery,) = await client.ended(webhook)
    assert (delivery["status"], len(delivery["attempts"])) == ("DELIVERED", 6)
    assert {message.id for message in receiver.messages} == {delivery["id"]}


async def test_a_receiver_that_is_gone_is_never_asked_again(client: Client, receiver: Receiver) -> None:
    receiver.answers = [status(410)]
    webhook = await client.webhook(receiver.url)
    await client.submit()
    (delivery,) = await client.ended(webhook)
    assert (delivery["status"], delivery["last_error"]) == ("EXHAUSTED", "answered 410")
    shown = await client.ask("GET", f"/v1/webhooks/{webhook['id']}", 200)
    assert (shown["enabled"], shown["disabled_reason"]) == (False, "The receiver answered 410 Gone.")
    for path in (f"/v1/webhooks/{webhook['id']}/ping", delivery["links"]["redeliver"]):
        assert "410 Gone" in (await client.ask("POST", path, 409))["detail"]
    job = await client.submit()
    await client.ask("GET", f"/v1/jobs/{job}?wait=30", 200)
    assert len(await client.deliveries(webhook)) == len(receiver.messages) == 1
    receiver.answers = [status(204)]
    await client.ask("PATCH", f"/v1/webhooks/{webhook['id']}", 200, {"enabled": True})
    await client.ask("POST", f"/v1/webhooks/{webhook['id']}/ping", 202)
    assert (await client.ended(webhook, 2))[0]["status"] == "DELIVERED"


async def test_a_receiver_says_when_to_come_back(client: Client, receiver: Receiver) -> None:
    receiver.answers = [status(429, Retry_After="2"), status(204)]
    webhook = await client.webhook(receiver.url)
    await client.submit()
    await client.ended(webhook)
    first, second = receiver.messages
    assert second.at - first.at >= 1.9


@pytest.mark.parametrize("behaviour", [silent, endless], ids=["silent", "endless"])
async def test_a_receiver_that_takes_its_time_holds_up_nobody(
    client: Client, receiver: Receiver, behaviour: object
) -> None:
    receiver.answers = [behaviour]  # type: ignore[list-item]
    await client.webhook(receiver.url)
    async with receiving() as other:
        webhook = await client.webhook(other.url)
        for n in range(20):
            await client.submit(payload={"n": n})
        async with asyncio.timeout(PATIENCE_S):
            await other.got(20)
        assert {one["status"] for one in await client.ended(webhook, 20)} == {"DELIVERED"}
    await until(lambda: receiver.messages)


async def test_a_receiver_that_answers_without_end_has_answered(client: Client, receiver: Receiver) -> None:
    receiver.answers = [endless]
    webhook = await client.webhook(receiver.url)
    await client.submit()
    (delivery,) = await client.ended(webhook)
    took_s = delivery["attempts"][0]["took_s"]
    assert (delivery["status"], took_s < 5) == ("DELIVERED", True)
    assert took_s == round(took_s, 3)


async def test_a_receiver_that_was_away_gets_what_it_missed(client: Client) -> None:
    async with receiving() as receiver:
        url = receiver.url
    webhook = await client.webhook(url)
    await client.submit()
    (delivery,) = await client.ended(webhook)
    assert (delivery["status"], delivery["last_error"]) == ("EXHAUSTED", "no connection could be made")


async def test_while_a_secret_is_rotated_both_sign(client: Client, receiver: Receiver) -> None:
    webhook = await client.webhook(receiver.url)
    new = await client.ask("POST", f"/v1/webhooks/{webhook['id']}/rotate", 200)
    assert new["secret"] != webhook["secret"]
    assert await client.ask("GET", f"/v1/webhooks/{webhook['id']}/secret", 200) == new
    await client.submit()
    (message,) = await receiver.got(1)
    assert message.verify(new["secret"]) == message.verify(webhook["secret"])
    assert len(message.headers["webhook-signature"].split()) == 2


async def test_a_large_result_is_left_to_be_fetched(client: Client, receiver: Receiver) -> None:
    await client.webhook(receiver.url)
    job = await client.submit(payload={"text": "x" * 100_000})
    (message,) = await receiver.got(1)
    data = message.data["data"]
    assert (data["id"], data["result"], data["result_omitted"]) == (job, None, True)
    assert len(message.body) < 5_000


async def test_what_goes_with_a_deleted_webhook_is_all_of_it(client: Client, receiver: Receiver) -> None:
    receiver.answers = [status(500)]
    webhook = await client.webhook(receiver.url)
    await client.submit()
    await receiver.got(1)
    path = f"/v1/webhooks/{webhook['id']}"
    await client.ask("DELETE", path, 204)
    for method, rest in (("GET", ""), ("DELETE", ""), ("GET", "/deliveries"), ("POST", "/ping"), ("GET", "/secret")):
        assert (await client.ask(method, path + rest, 404))["type"] == "/problems/unknown-webhook"


async def test_with_the_settings_of_everybody_nothing_inside_is_reached(start: Start, receiver: Receiver) -> None:
    async with start(webhook_http=False, webhook_allow="") as client:
        for url in (receiver.url, receiver.url.replace("http:", "https:"), "https://127.0.0.1/", "https://[::1]/"):
            refused = await client.ask("POST", "/v1/webhooks", 422, {"url": url})
            assert refused["errors"][0]["pointer"] == "/url"
            body = {"plugin": "echo", "payload": {}, "webhook": {"url": url}}
            refused = await client.ask("POST", "/v1/jobs", 422, body)
            assert refused["errors"][0]["pointer"] == "/webhook/url"
        # A name is looked at when a connection is made.
        webhook = await client.webhook("https://localhost/hook")
        await client.submit()
        (delivery,) = await client.ended(webhook)
        assert delivery["last_error"] == "the host's address is not one that webhooks may go to"
        assert json.dumps(delivery).count("127.0.0.1") == 0
    assert receiver.messages == []
