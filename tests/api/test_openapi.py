from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator, validate

from service.api.routes import ROUTES
from tests.api.conftest import Live, serving

PLUGINS = ("barcode", "echo", "image_info", "ocr", "sleep", "thumbnail")
DIALECT = "https://json-schema.org/draft/2020-12/schema"


def own_path(plugin: str) -> str:
    return f"/v1/plugins/{plugin}/jobs"


@pytest.fixture(scope="session")
def document(live: Live) -> dict[str, Any]:
    """The description once every plugin is known."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        value: dict[str, Any] = live.get("/openapi.json").json()
        if all(own_path(name) in value["paths"] for name in PLUGINS):
            return value
        time.sleep(0.1)
    raise AssertionError("not every plugin is described")


def resolved(document: dict[str, Any], value: Any) -> Any:
    """`value`, or what it refers to."""
    while isinstance(value, dict) and "$ref" in value:
        place = document
        for step in value["$ref"].removeprefix("#/").split("/"):
            place = place[step]
        value = place
    return value


def test_the_document_is_valid_openapi(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1")
    validate(document, cls=OpenAPIV31SpecValidator)


def test_the_document_is_of_the_routes_and_the_plugins_alone(document: dict[str, Any]) -> None:
    documented = {(method.upper(), path) for path, calls in document["paths"].items() for method in calls}
    assert documented == {(route.method, route.path) for route in ROUTES} | {
        ("POST", own_path(name)) for name in PLUGINS
    }
    assert len(operations(document)) == len(documented), "two calls have one name"


def test_every_documented_call_is_routed(live: Live, document: dict[str, Any]) -> None:
    for path, calls in document["paths"].items():
        for method, operation in calls.items():
            known = {
                parameter["name"]: parameter["schema"].get("enum", ["x"])[0]
                for parameter in operation["parameters"]
                if parameter.get("in") == "path"
            }
            with live.request(method.upper(), path.format(**known), stream=True) as answer:
                assert answer.status_code != 405
                assert answer.status_code != 404 or "unknown-route" not in answer.text


def operations(document: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Every call by its name."""
    return {operation["operationId"]: operation for item in document["paths"].values() for operation in item.values()}


def test_a_path_that_is_written_out_takes_its_own_methods_alone(live: Live) -> None:
    paths = {route.path for route in ROUTES if not route.path_parameters}
    assert "/v1/jobs/batch" in paths  # else taken for the job of the id "batch"
    for path in paths:
        own = {route.method for route in ROUTES if route.path == path}
        for method in {"GET", "POST", "PUT", "PATCH", "DELETE"} - own:
            answer = live.request(method, path, json={})
            assert (answer.status_code, answer.json()["type"]) == (405, "/problems/wrong-method"), (method, path)
            assert {*answer.headers["Allow"].split(",")} - {"HEAD"} == own


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    places: list[Any] = [document]
    while places:
        place = places.pop()
        assert resolved(document, place) is not None
        places += place.values() if isinstance(place, dict) else place if isinstance(place, list) else ()


def test_every_link_finds_what_its_call_needs(document: dict[str, Any]) -> None:
    calls = operations(document)
    linked = set()
    for operation in calls.values():
        for answer in operation["responses"].values():
            for link in answer.get("links", {}).values():
                wanted = calls[link["operationId"]]["parameters"]
                assert set(link["parameters"]) == {one["name"] for one in wanted if one.get("in") == "path"}
                linked.add(link["operationId"])
    # Whatever is about one job is reached from its submission.
    of_a_job = {route.name for route in ROUTES if route.path_parameters == ["job_id"]}
    assert of_a_job <= set(calls["submit_job"]["responses"]["202"]["links"])
    assert of_a_job | {"get_plugin", "submit_plugin_job"} <= linked


def test_examples_are_what_their_schemas_say(document: dict[str, Any]) -> None:
    checked = 0
    for operation in operations(document).values():
        answers = (resolved(document, answer) for answer in operation["responses"].values())
        for body in (operation.get("requestBody", {}), *answers):
            for content in body.get("content", {}).values():
                schema = {"$schema": DIALECT, **content["schema"], "components": document["components"]}
                for example in content.get("examples", {}).values():
                    jsonschema_rs.validate(schema, example["value"])
                    checked += 1
    assert checked > 50


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_plugin_is_a_call_of_its_own_with_its_schemas(live: Live, document: dict[str, Any], plugin: str) -> None:
    shown = live.get(f"/v1/plugins/{plugin}").json()
    operation = document["paths"][own_path(plugin)]["post"]
    payload = resolved(document, operation["requestBody"]["content"]["application/json"]["schema"])
    told = {key: value for key, value in shown["input_schema"].items() if key not in ("$defs", "$schema")}
    assert payload.keys() == told.keys()
    assert payload.get("required") == told.get("required")
    assert payload.get("properties", {}).keys() == told.get("properties", {}).keys()
    assert operation["summary"].endswith(plugin)
    job = resolved(document, operation["responses"]["202"]["content"]["application/json"]["schema"])
    assert job["allOf"][1]["properties"]["plugin"] == {"const": plugin}
    assert ("result" in job["allOf"][1]["properties"]) is (shown["output_schema"] is not None)


def test_a_job_is_as_the_call_of_its_plugin_says(live: Live, document: dict[str, Any], png: bytes) -> None:
    answer = live.post(
        own_path("thumbnail") + "?width=32", data=png, headers={"Content-Type": "image/png", "Prefer": "wait=30"}
    )
    assert answer.status_code == 200
    schema = document["paths"][own_path("thumbnail")]["post"]["responses"]["200"]["content"]["application/json"][
        "schema"
    ]
    validator = jsonschema_rs.Draft202012Validator({"$schema": DIALECT, **schema, "components": document["components"]})
    record = answer.json()
    validator.validate(record)
    del record["result"]["image"]["sha256"]
    assert not validator.is_valid(record)


#: What every answer may have, whatever the call.
COMMON_HEADERS = {
    "Cache-Control", "Content-Length", "Content-Security-Policy", "Content-Type", "Date", "Referrer-Policy", "Server",
    "Transfer-Encoding", "X-Content-Type-Options",
}  # fmt: skip


def test_every_header_that_comes_is_described(tmp_path: Path) -> None:
    body: dict[str, Any] = {"plugin": "echo", "payload": {"file": {"$bytes": "aGk="}}}
    key, wait = {"Idempotency-Key": "k"}, {"Prefer": "wait=30"}
    with serving(tmp_path, only_plugins={"echo"}, rate_per_s=1_000) as limited:
        schedule = limited.post("/v1/schedules", json={**body, "name": "s", "every_s": 9_000}).json()["id"]
        job = limited.post("/v1/jobs", json=body, headers=wait).json()["id"]
        calls: list[tuple[str, str, dict[str, Any]]] = [
            ("POST", "/v1/jobs", {"json": body, "headers": key | wait}),
            ("POST", "/v1/jobs", {"json": body, "headers": key | wait}),
            ("GET", "/v1/jobs", {"params": {"limit": "1"}}),
            ("GET", "/v1/jobs/{job_id}", {}),
            ("GET", "/v1/jobs/{job_id}/result", {}),
            ("GET", "/v1/jobs/{job_id}/payload", {"params": {"pointer": "/file"}}),
            ("POST", "/v1/jobs/{job_id}/retry", {"headers": {"Idempotency-Key": "again", **wait}}),
            ("POST", "/v1/jobs/{job_id}/retry", {"headers": {"Idempotency-Key": "again", **wait}}),
            ("GET", "/v1/schedules/{schedule_id}/payload", {"params": {"pointer": "/file"}}),
            ("GET", "/v1/reports/buckets", {"params": {"limit": "1"}}),
            ("GET", "/v1/reports/buckets", {"params": {"format": "csv"}}),
        ]
        answers = [
            limited.request(method, path.format(job_id=job, schedule_id=schedule), **more)
            for method, path, more in calls
        ]
        described = limited.get("/openapi.json").json()
    for (method, path, _), answer in zip(calls, answers, strict=True):
        told = described["paths"][path][method.lower()]["responses"][str(answer.status_code)]["headers"]
        came = {name for name in answer.headers if name.title() not in COMMON_HEADERS}
        assert {name.lower() for name in came} <= {name.lower() for name in told}, (method, path)
        assert "RateLimit" in came
    assert answers[6].headers["Preference-Applied"] == "wait=30"


def test_who_has_the_document_is_told_so(live: Live, document: dict[str, Any]) -> None:
    answer = live.get("/openapi.json")
    again = live.get("/openapi.json", headers={"If-None-Match": answer.headers["ETag"]})
    assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", answer.headers["ETag"])
    assert live.get("/openapi.json", headers={"If-None-Match": '"another"'}).status_code == 200
    assert live.get("/openapi.json", headers={"If-None-Match": "*"}).status_code == 304
    assert answer.headers["Cache-Control"] == "no-cache"
    assert live.get("/v1/jobs").headers["Cache-Control"] == "no-store"


def test_the_bare_address_leads_to_the_page(live: Live) -> None:
    answer = live.get("/", allow_redirects=False)
    assert (answer.status_code, answer.headers["Location"], answer.content) == (302, "/docs", b"")
    assert live.get("/").text == live.get("/docs").text
    assert live.request("HEAD", "/", allow_redirects=False).status_code == 302
    assert live.post("/").status_code == 405
