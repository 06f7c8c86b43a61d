"""Every hostile plugin costs its own job only."""

from __future__ import annotations

import json

import requests

from tests.hostile_plugins import names
from tests.hostile_plugins.cases import CASES
from tests.service.conftest import until

#: They cannot even be described, so that no job is taken for them; the refusal says why.
UNLOADABLE = {"missing_module", "missing_attribute"}
#: The cases that reach a worker: the others are refused before they are queued.
RUNNABLE = [case for case in CASES if case[0] not in UNLOADABLE | {"not_installed"} and case[2] != "ValidationError"]


def test_each_hostile_job_fails_with_the_right_type_while_its_neighbours_succeed(serve):
    service = serve("--workers", "4", "--memory-mb", "200", "--timeout-s", "5", plugins=names())
    jobs = [
        (plugin, error_type, service.submit(plugin, payload), service.submit("echo", {"beside": plugin}))
        for plugin, payload, error_type, _ in RUNNABLE
    ]
    for plugin, error_type, job, neighbour in jobs:
        record = service.job(job, wait=60)
        assert (plugin, record["status"], record["error"] and record["error"]["type"]) == (plugin, "FAILED", error_type)
        assert "Traceback" not in record["error"]["message"]
        assert service.job(neighbour, wait=60)["status"] == "SUCCESS"
    assert service.sql("SELECT plugin, run_s FROM report_jobs WHERE status = 'FAILED' AND run_s > 5 + 2") == []
    assert requests.get(f"{service.url}/readyz", timeout=5).status_code == 200


def test_a_plugin_that_cannot_be_loaded_takes_no_jobs_and_says_why(serve):
    service = serve(plugins=sorted(UNLOADABLE))
    for plugin in UNLOADABLE:
        body = {"plugin": plugin, "payload": {}}
        answer = requests.post(f"{service.url}/v1/jobs", json=body, timeout=30)
        assert answer.status_code == 503
        assert "absent" in answer.json()["detail"]
        assert "Retry-After" not in answer.headers
    assert service.sql("SELECT count(*) FROM report_jobs") == [(0,)]


def test_whoever_reads_the_log_sees_the_traceback_and_what_was_printed(serve):
    service = serve("--log-format", "json", plugins=["raises", "prints"])
    raised = service.job(service.submit("raises", {"message": "of its own"}), wait=30)
    service.job(service.submit("prints", {"megabytes": 0, "then": "die"}), wait=30)

    def told():
        lines = (line for line in service.log.read_text().splitlines() if '"job ended"' in line and line[-1] == "}")
        by_plugin = {line["plugin"]: line for line in map(json.loads, lines)}
        return by_plugin if len(by_plugin) == 2 else None

    by_plugin = until(told)  # a thread writes the log
    assert "hostile.py" in by_plugin["raises"]["traceback"]
    assert by_plugin["prints"]["output"].endswith("the last line\n")
    assert "hostile.py" not in json.dumps(raised)
