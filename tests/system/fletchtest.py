"""What every system suite needs: a running fletch, remote write by hand, queries, and real peers.

A server started here listens on free loopback ports, is ended by its PID, and never outlives the suite.
The binary is $FLETCH_BIN, else target/release/fletch, else target/debug/fletch.
"""

import atexit
import http.client
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SERVICES = Path(os.environ.get("FLETCH_SERVICES", Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "fletch-services"))
STALE = struct.unpack("<d", struct.pack("<Q", 0x7FF0000000000002))[0]
_running = []


def binary():
    for candidate in (os.environ.get("FLETCH_BIN"), ROOT / "target/release/fletch", ROOT / "target/debug/fletch"):
        if candidate and Path(candidate).is_file():
            return str(candidate)
    sys.exit("no fletch binary: build it (`cargo build`) or set FLETCH_BIN")


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def scratch(name):
    return Path(tempfile.mkdtemp(prefix=f"fletch-{name}-"))


@atexit.register
def _end_all():
    for process in _running:
        if process.poll() is None:
            process.kill()
            process.wait()


def spawn(command, log, **more):
    """Starts a child that this suite ends at the latest when it ends itself."""
    process = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, stdout=open(log, "ab"), stderr=subprocess.STDOUT, **more)
    _running.append(process)
    return process


class Fletch:
    """One `fletch serve`. `http` stays the same over restarts, so that senders find it again."""

    def __init__(self, data, *flags, env=None, config=None):
        self.data, self.flags, self.env = Path(data), list(flags), dict(os.environ, **(env or {}))
        self.port, self.flight = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = self.data.parent / f"{self.data.name}.log"
        self.config, self.process = config, None

    def start(self, wait=60.0):
        command = [binary(), "serve", "--data-dir", self.data, "--http-addr", f"127.0.0.1:{self.port}", "--flight-addr", f"127.0.0.1:{self.flight}"]
        command += ["--config", self.config] if self.config else []
        self.process = spawn(command + self.flags, self.log, env=self.env)
        if wait:
            self.wait_ready(wait)
        return self

    def wait_ready(self, seconds):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                sys.exit(f"fletch ended with {self.process.returncode}:\n{self.tail()}")
            if status(self.url + "/-/ready") == 200:
                return
            time.sleep(0.02)
        sys.exit(f"fletch was not ready after {seconds} s:\n{self.tail()}")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self, seconds=60):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(seconds)
        return self.process.returncode

    def tail(self):
        return self.log.read_text(errors="replace")[-3000:]

    def flush(self):
        code, body = request("POST", self.url + "/api/v1/admin/flush", timeout=120)
        assert code == 200, (code, body)

    def query(self, promql, at=None, tenant=None, **more):
        return prometheus(self.url, "query", tenant, query=promql, **({"time": at} if at is not None else {}), **more)

    def query_range(self, promql, start, end, step, tenant=None):
        return prometheus(self.url, "query_range", tenant, query=promql, start=start, end=end, step=step)

    def sql(self, text, tenant=None):
        code, body = request("POST", self.url + "/api/v1/sql?format=json", text.encode(), tenant=tenant, timeout=120)
        assert code == 200, (code, body)
        return json.loads(body)

    def metric(self, name):
        """Sum of one of its own metrics over all labels; 0 when it is not there."""
        _, body = request("GET", self.url + "/metrics")
        found = re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)", body.decode(), re.M)
        return sum(float(v) for v in found)

    def write(self, series, tenant=None, timeout=30):
        """Remote write of [(labels dict, [(value, ms)])]; returns the status code, 0 when there was no answer."""
        code, _ = request("POST", self.url + "/api/v1/write", snappy(write_request(series)), tenant=tenant, timeout=timeout,
                          headers={"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy", "X-Prometheus-Remote-Write-Version": "0.1.0"})
        return code


def request(method, url, body=None, tenant=None, timeout=30, headers=None):
    headers = dict(headers or {})
    if tenant:
        headers["X-Scope-OrgID"] = tenant
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data=body, method=method, headers=headers), timeout=timeout) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except (OSError, urllib.error.URLError, http.client.HTTPException) as error:
        return 0, str(error).encode()


def status(url):
    return request("GET", url, timeout=5)[0]


def prometheus(url, path, tenant=None, **form):
    code, body = request("POST", f"{url}/api/v1/{path}", urllib.parse.urlencode(form).encode(), tenant=tenant, timeout=60,
                         headers={"Content-Type": "application/x-www-form-urlencoded"})
    assert code == 200, (form, code, body[:500])
    return json.loads(body)["data"]


def varint(n):
    out = bytearray()
    while n > 0x7F:
        out.append(n & 0x7F | 0x80)
        n >>= 7
    out.append(n)
    return bytes(out)


def field(number, payload):
    return varint(number << 3 | 2) + varint(len(payload)) + payload


def write_request(series):
    out = bytearray()
    for labels, samples in series:
        one = b"".join(field(1, field(1, n.encode()) + field(2, v.encode())) for n, v in sorted(labels.items()))
        for value, ms in samples:
            one += field(2, b"\x09" + struct.pack("<d", value) + b"\x10" + varint(ms & 0xFFFFFFFFFFFFFFFF))
        out += field(1, one)
    return bytes(out)


def snappy(data):
    """Snappy block format without compression: literals of up to 64 KiB."""
    out = bytearray(varint(len(data)))
    for start in range(0, len(data), 65536):
        chunk = data[start : start + 65536]
        out += bytes([61 << 2]) + struct.pack("<H", len(chunk) - 1) + chunk
    return bytes(out)


def service(package, program):
    """Path of a real peer, unpacked from Debian's packages on the first call."""
    folder = SERVICES / package
    subprocess.run([ROOT / "tests/services/debian.sh", package, "sid", folder], check=True)
    return folder / "usr/bin" / program


def python():
    """An interpreter with deltalake, polars, ADBC and confluent-kafka, made on the first call."""
    folder = SERVICES / "python"
    subprocess.run([ROOT / "tests/services/python.sh", folder], check=True)
    return str(folder / "bin/python")


def eventually(what, check, seconds=30):
    """Polls until `check()` is true; a suite that talks to real processes has to wait for them."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return
        time.sleep(0.05)
    sys.exit(f"did not happen within {seconds} s: {what}")
