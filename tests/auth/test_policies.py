"""Every call says whose it is, and the service holds to it."""

from __future__ import annotations

import dataclasses
import re

import pytest

from service.access import Role
from service.api.access import Policy
from service.api.route import Route
from service.api.routes import ROUTES

from .conftest import Guarded

#: What anybody may ask; each tells nothing about jobs.
PUBLIC = {"livez", "readyz", "openapi", "root", "docs", "docs_file", "list_problems", "get_problem"}
SOME_ID = "01890000-0000-7000-8000-000000000000"


def path_of(route: Route) -> str:
    return re.sub(r"{\w+}", "x", re.sub(r"{\w+_id}", SOME_ID, route.path))


def test_a_route_that_does_not_say_whose_it_is_cannot_be_made() -> None:
    route = ROUTES[0]
    fields = {field.name: getattr(route, field.name) for field in dataclasses.fields(route)}
    del fields["policy"]
    with pytest.raises(TypeError, match="policy"):
        Route(**fields)


def test_only_calls_that_tell_nothing_of_jobs_are_public() -> None:
    assert all(isinstance(route.policy, Policy) for route in ROUTES)
    assert {route.name for route in ROUTES if route.policy.roles is None} == PUBLIC


async def test_without_a_key_and_with_a_wrong_one_every_other_call_is_refused(guarded: Guarded) -> None:
    key = await guarded.key()
    for route in ROUTES:
        for wrong, words in (
            (None, 'Bearer realm="jobservice"'),
            ("jsk_000000000000_guess", 'Bearer realm="jobservice", error="invalid_token"'),
            (key[:-1], 'Bearer realm="jobservice", error="invalid_token"'),
        ):
            answer = await guarded.request(route.method, path_of(route), wrong)
            if route.policy.roles is None:
                assert answer.status in (*route.answers, *(404 for _ in route.path_parameters)), route.name
            else:
                assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, words), route.name
                assert answer.json()["type"] == "/problems/unauthenticated"


@pytest.mark.parametrize("role", Role)
async def test_a_key_makes_the_calls_of_its_roles_and_no_others(guarded: Guarded, role: Role) -> None:
    of_operator, of_tenant = await guarded.key("default", role), await guarded.key("acme", role)
    for route in ROUTES:
        policy = route.policy
        allowed = policy.roles is None or role is Role.ADMIN or role in policy.roles
        for key, is_allowed in ((of_operator, allowed), (of_tenant, allowed and not policy.of_operator)):
            answer = await guarded.request(route.method, path_of(route), key)
            assert (answer.status == 403) is not is_allowed, f"{route.name}: {answer}"
            if not is_allowed:
                assert answer.json()["type"] == "/problems/forbidden"


async def test_a_key_of_a_tenant_is_told_that_its_tenant_is_the_fault(guarded: Guarded) -> None:
    asked = "This call asks for a key of the default tenant with the role report; this one"
    for tenant, role, told in (
        ("acme", Role.REPORT, ", of the tenant acme, has report."),
        ("default", Role.READ, " has read."),
    ):
        answer = await guarded.request("GET", "/metrics", await guarded.key(tenant, role))
        assert answer.json()["detail"] == asked + told


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer  ", "Basic YTpi", "jsk_1", "Bearer a b", "Bearer " + "a" * 5000],
)
async def test_an_authorization_that_is_no_key_is_refused(guarded: Guarded, authorization: str) -> None:
    answer = await guarded.request("GET", "/v1/jobs", headers={"Authorization": authorization})
    assert answer.status in (400, 401)


async def test_the_scheme_may_be_written_in_any_case(guarded: Guarded) -> None:
    key = await guarded.key()
    answer = await guarded.request("GET", "/v1/jobs", headers={"Authorization": f"bEARER {key}"})
    assert answer.status == 200
