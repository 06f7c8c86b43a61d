"""API keys: what is kept of them, how long they open, and what is known of their use."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from service.access import Caller, Role
from service.db.database import Database
from service.errors import InvalidKeyError, KeyNotFoundError, StartupError
from service.key_management import KeyManagementService
from service.models import Timestamp, later, timestamp
from tests.conftest import sql

from .conftest import FAR, Guarded, Start, eventually


@pytest.fixture
def keys(database: Database) -> KeyManagementService:
    return KeyManagementService(database)


async def test_of_a_key_only_a_hash_is_kept(keys: KeyManagementService, database_url: str) -> None:
    key, secret = await keys.create("ci", tenant="acme", roles={Role.READ})
    assert secret.startswith(key.prefix + "_")
    (row,) = await asyncio.to_thread(sql, database_url, "SELECT * FROM api_keys")
    kept = " ".join(map(str, row))
    assert key.prefix in kept
    assert secret.removeprefix(key.prefix + "_") not in kept
    assert await keys.find(secret) == Caller(tenant="acme", roles=frozenset({Role.READ}), key_id=key.id)


async def test_two_keys_have_nothing_in_common(keys: KeyManagementService) -> None:
    made = [await keys.create("same name") for _ in range(20)]
    assert len({key.prefix for key, _ in made}) == len({secret for _, secret in made}) == 20


async def test_an_expired_key_opens_nothing(keys: KeyManagementService, database_url: str) -> None:
    key, secret = await keys.create("short", expires_at=later(timestamp(), 3600))
    assert await keys.find(secret) is not None
    past = f"UPDATE api_keys SET expires_at = '2020-01-01T00:00:00.000Z' WHERE prefix = '{key.prefix}'"
    await asyncio.to_thread(sql, database_url, past)
    assert await KeyManagementService(keys._database).find(secret) is None


async def test_a_known_key_expires_without_another_look_at_the_database(keys: KeyManagementService) -> None:
    _, secret = await keys.create("short", expires_at=later(timestamp(), 1))

    async def is_closed() -> bool:
        return await keys.find(secret) is None

    await eventually(is_closed)


async def test_a_revoked_key_opens_nothing_and_stays_revoked_since_the_first_time(keys: KeyManagementService) -> None:
    key, secret = await keys.create("lost")
    first = await keys.revoke(key.prefix)
    assert first.revoked_at is not None
    assert (await keys.revoke(secret)).revoked_at == first.revoked_at
    assert await keys.find(secret) is None


async def test_revoking_what_is_no_key_says_so(keys: KeyManagementService) -> None:
    with pytest.raises(KeyNotFoundError, match="jsk_0"):
        await keys.revoke("jsk_0")


async def test_a_service_knows_of_a_new_key_at_once_and_of_a_revoked_one_soon(
    guarded: Guarded,
    database_file: Path,  # nothing here is the database's affair, and waiting is dear
) -> None:
    key = await guarded.key("acme")
    assert (await guarded.request("GET", "/v1/jobs", key)).status == 200
    await guarded.keys.revoke(key)

    async def is_refused() -> bool:
        return (await guarded.request("GET", "/v1/jobs", key)).status == 401

    await eventually(is_refused)


async def test_keys_asked_for_at_once_are_each_told_what_they_are(keys: KeyManagementService) -> None:
    made = [await keys.create(f"key {n}", tenant=f"tenant {n}") for n in range(5)]
    asked = [secret for _, secret in made for _ in range(4)] + [f"jsk_{n:012}_no" for n in range(20)]
    found = await asyncio.gather(*map(keys.find, asked))
    assert [caller and caller.tenant for caller in found] == [f"tenant {n}" for n in range(5) for _ in range(4)] + [
        None
    ] * 20


async def test_the_last_use_is_written_at_most_once_a_minute(keys: KeyManagementService, database_url: str) -> None:
    _, secret = await keys.create("used")
    _, _never = await keys.create("unused")

    async def used_at() -> Timestamp | None:
        await keys.find(secret)
        await keys.record_use()
        used, never = await keys.list_keys()
        assert never.last_used_at is None
        return used.last_used_at

    first = await used_at()
    assert first is not None
    assert await used_at() == first
    long_ago = "UPDATE api_keys SET last_used_at = '2020-01-01T00:00:00.000Z' WHERE last_used_at IS NOT NULL"
    await asyncio.to_thread(sql, database_url, long_ago)
    again = await used_at()
    assert again is not None
    assert again >= first


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("", {}),
        ("a" * 101, {}),
        ("a\nb", {}),
        ("ok", {"tenant": ""}),
        ("ok", {"tenant": "-"}),
        ("ok", {"roles": ()}),
        ("ok", {"expires_at": "2020-01-01T00:00:00.000Z"}),
    ],
)
async def test_a_key_that_makes_no_sense_is_not_made(keys: KeyManagementService, name: str, more: dict) -> None:
    with pytest.raises(InvalidKeyError):
        await keys.create(name, **more)
    assert await keys.list_keys() == []


async def test_without_any_key_this_machine_needs_none_and_with_the_first_one_it_does(
    start: Start,
    database_file: Path,  # as above
) -> None:
    async with start() as running:
        assert (await running.request("GET", "/v1/jobs")).status == 200
        assert (await running.request("GET", "/v1/jobs", "jsk_000000000000_wrong")).status == 401
        key = await running.key()

        async def is_asked_for() -> bool:
            return (await running.request("GET", "/v1/jobs")).status == 401

        await eventually(is_asked_for)
        assert (await running.request("GET", "/v1/jobs", key)).status == 200
        await running.keys.revoke(key)
    async with start() as running:
        assert (await running.request("GET", "/v1/jobs")).status == 401, "revoking the last key opened the door"


async def test_other_machines_are_let_in_only_while_there_is_a_valid_key(
    start: Start, keys: KeyManagementService
) -> None:
    key, _ = await keys.create("only")
    await keys.revoke(key.prefix)
    for host in ("0.0.0.0", "::", "192.0.2.1", "jobs.example"):
        with pytest.raises(StartupError, match="jobservice keys create NAME"):
            async with start(host=host):
                pass


async def test_whoever_is_told_in_so_many_words_lets_everybody_in(start: Start, keys: KeyManagementService) -> None:
    _, secret = await keys.create("first", tenant="acme")
    async with start(allow_anyone_who_reaches_this_port=True) as running:
        assert (await running.submit(None, **FAR)).status == 202
        # A key still says whose its jobs are.
        assert (await running.request("GET", "/v1/jobs", secret)).json()["items"] == []
        assert (await running.request("GET", "/v1/jobs", "jsk_000000000000_wrong")).status == 401
