"""Where log lines cannot be written the service works on."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys

import pytest
import requests


@pytest.mark.parametrize("where", ["full disk", "closed pipe"])
def test_lines_are_lost_and_nothing_else(tmp_path, where):
    if where == "full disk":
        stderr = os.open("/dev/full", os.O_WRONLY)
    else:
        reading, stderr = os.pipe()
        os.close(reading)
    with subprocess.Popen(
        [sys.executable, "-m", "service", "serve", "--port", "0", "--data-dir", tmp_path / "data"],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
    ) as process:
        os.close(stderr)
        try:
            assert process.stdout
            found = re.search(r"http://\S+", process.stdout.readline())
            assert found
            for n in range(20):
                body = {"plugin": "echo", "payload": {"n": n}}
                job = requests.post(f"{found[0]}/v1/jobs", json=body, timeout=30).json()["id"]
            record = requests.get(f"{found[0]}/v1/jobs/{job}?wait=30", timeout=60).json()
            assert record["status"] == "SUCCESS"
            assert requests.get(f"{found[0]}/readyz", timeout=10).status_code == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) in (0, 120)  # 120: the interpreter's last flush has failed too
        finally:
            process.kill()
