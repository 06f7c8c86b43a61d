"""The contract this service grew from, as it was written down, in coroutines.

Here, and nowhere else, a part of our own is patched: `execute_plugin`.
"""

from __future__ import annotations

from service.job_management import JobManagementService
from service.plugin_management import PluginManagementService


async def test_job_management_delegates_to_plugin_management(jobs, monkeypatch):
    called = {}

    async def fake_execute(self, plugin_name, payload):
        called["plugin_name"] = plugin_name
        called["payload"] = payload
        return {"ok": True}, {}

    monkeypatch.setattr(PluginManagementService, "execute_plugin", fake_execute)

    svc: JobManagementService = jobs
    job_id = await svc.create_job(
        plugin_name="fake_plugin",
        payload={"image": b"123", "mime_type": "image/png"},
    )

    result, error = await svc.run_job(job_id)

    assert result == {"ok": True}
    assert error == {}
    assert called["plugin_name"] == "fake_plugin"
    assert called["payload"]["image"] == b"123"

    job = await svc.get_job(job_id)
    assert job["status"] == "SUCCESS"
    assert job["result"] == {"ok": True}


async def test_job_status_transitions_on_success(jobs, monkeypatch):
    async def fake_execute(self, plugin_name, payload):
        return {"result": "ok"}, {}

    monkeypatch.setattr(PluginManagementService, "execute_plugin", fake_execute)

    svc: JobManagementService = jobs
    job_id = await svc.create_job(
        plugin_name="fake_plugin",
        payload={"image": b"123", "mime_type": "image/png"},
    )

    job = await svc.get_job(job_id)
    assert job["status"] == "PENDING"

    await svc.run_job(job_id)

    job = await svc.get_job(job_id)
    assert job["status"] == "SUCCESS"
    assert job["result"] == {"result": "ok"}
    assert job["error"] is None


async def test_job_status_transitions_on_error(jobs, monkeypatch):
    async def fake_execute(self, plugin_name, payload):
        return {}, {
            "error": {
                "type": "ExecutionError",
                "message": "plugin failed",
                "plugin": "fake_plugin",
            }
        }

    monkeypatch.setattr(PluginManagementService, "execute_plugin", fake_execute)

    svc: JobManagementService = jobs
    job_id = await svc.create_job(
        plugin_name="fake_plugin",
        payload={"image": b"123", "mime_type": "image/png"},
    )

    result, error = await svc.run_job(job_id)

    assert result == {}
    assert "error" in error

    job = await svc.get_job(job_id)
    assert job["status"] == "FAILED"
    assert job["error"]["error"]["type"] == "ExecutionError"
    assert job["result"] is None
