"""The commands on a store (tables, verify, backup, restore), cardinality and quotas, on the real binary beside a running server.

    tools.py
"""

import json
import math
import shutil
import subprocess
import time

from deltalake import DeltaTable

import fletchtest as ft

CONFIG = """
fletch:
  limits: {values_per_label_max: 50, samples_per_second_max: 2000, samples_burst_max: 2000}
  tenants:
    small.t: {limits: {series_max: 3, values_per_label_max: 0}}
"""


def run(*command, code=0):
    done = subprocess.run([ft.binary(), *map(str, command)], capture_output=True, text=True, timeout=120)
    assert done.returncode == code, (command, done.returncode, done.stdout[-2000:], done.stderr[-2000:])
    return done.stdout + (done.stderr if code else "")


def push(server, text, tenant=None):
    code, body = ft.request("POST", server.url + "/api/v1/metrics/write", text.encode(), tenant=tenant)
    return code, json.loads(body)


def status(server, tenant=None, limit=5):
    _, body = ft.request("GET", f"{server.url}/api/v1/status/tsdb?limit={limit}", tenant=tenant)
    return json.loads(body)["data"]


def quotas(server):
    code, answer = push(server, "\n".join(f'load{{host="h{i}"}} {i}' for i in range(60)))
    assert (code, answer["accepted"], answer["rejected"]) == (200, 50, 10), answer
    assert answer["errors"][0]["reason"] == "label_values_limit" and answer["errors"][0]["label"] == "host", answer["errors"][0]
    code, answer = push(server, "\n".join(f'load{{host="h{i}"}} {i}' for i in range(50)))
    assert (code, answer["accepted"], answer["rejected"]) == (200, 50, 0), "known series go on"
    code, answer = push(server, "\n".join(f"m{i} 1" for i in range(5)), tenant="small.t")
    assert (answer["accepted"], answer["rejected"], answer["errors"][0]["reason"]) == (3, 2, "series_limit"), answer
    series = [({"__name__": f"w{i}"}, [(1.0, round(time.time() * 1000))]) for i in range(2)]
    assert server.write(series, tenant="small.t") == 400
    early = [({"__name__": "flood"}, [(1.0, 1_700_000_000_000 + i) for i in range(1999)])]
    codes = [server.write(early) for _ in range(3)]
    assert 429 in codes, codes
    assert server.metric("fletch_ingest_refused_samples_total") >= 14 + 1999
    print("quotas: new series are refused by reason and label, the rate by 429")


def cardinality(server):
    data = status(server)
    assert data["seriesCountByMetricName"][0] == {"name": "load", "value": 50}, data
    assert {"name": "host", "value": 50} in data["labelValueCountByLabelName"], data
    assert data["headStats"]["numSeries"] == 51 and data["headStats"]["minTime"] == 1_700_000_000_000, data["headStats"]
    assert status(server, "small.t")["headStats"]["numSeries"] == 3
    rows = server.sql("SELECT name, series FROM cardinality WHERE kind = 'metric' ORDER BY series DESC LIMIT 1")
    assert rows == [{"name": "load", "series": 50}], rows
    print("cardinality: status/tsdb and SQL agree with what was sent")


def answers(server):
    # Never before the newest sample, which stands at the moment of its push.
    at = math.ceil(time.time()) + 1
    found = {}
    for tenant in (None, "small.t"):
        result = server.query('{__name__=~".+"}[3000d]', at=at, tenant=tenant)["result"]
        found[tenant] = sorted((json.dumps(r["metric"], sort_keys=True), r["values"]) for r in result)
        assert found[tenant], tenant
    return found


def copies(server, folder):
    store, target = server.data / "store", f"file://{folder}/backups"
    server.flush()
    tables = {t["name"]: t for t in json.loads(run("tables", "--data-dir", server.data, "--format", "json"))["tables"]}
    assert tables["samples"]["rows"] == server.sql("SELECT count(*) AS n FROM samples")[0]["n"] + 3, tables["samples"]
    assert "encodings" in run("tables", "describe", "samples", "--object-store", f"file://{store}")
    assert "all good" in run("verify", "--data-dir", server.data)
    run("backup", "--data-dir", server.data, "--to", target, "--check")
    push(server, "late 1")
    server.flush()
    again = json.loads(run("backup", "--data-dir", server.data, "--to", target, "--format", "json"))
    assert 0 < again["copied_files"] < again["present_files"], again
    before = answers(server)
    assert server.stop() == 0

    restored = ft.Fletch(folder / "restored")
    run("restore", "--from", target, "--data-dir", restored.data)
    assert "not empty" in run("restore", "--from", target, "--data-dir", restored.data, "--no-metadata", code=1)
    assert "all good" in run("verify", "--data-dir", restored.data)
    for table in ("samples", "series"):
        rows = [len(DeltaTable(str(data / "store/tables" / table)).to_pyarrow_table()) for data in (server.data, restored.data)]
        assert rows[0] == rows[1] > 0, (table, rows)
    restored.start()
    assert answers(restored) == before, "the same answers under a new log"
    assert push(restored, "after 1")[0] == 200
    assert restored.stop() == 0
    print("backup, incremental backup, restore: the same answers, deltalake reads the same rows")

    old = ft.Fletch(folder / "old")
    shutil.copytree(server.data / "log", old.data / "log")
    run("restore", "--from", target, "--data-dir", old.data)
    refused = subprocess.run([ft.binary(), "serve", "--data-dir", old.data, "--http-addr", "127.0.0.1:0", "--flight-addr", "127.0.0.1:0"],
                             capture_output=True, text=True, timeout=60)
    assert refused.returncode == 1 and "--keep-bus" in refused.stderr, refused.stderr[-1000:]
    print("the old log is refused on a restored store and told how to go on")
    return restored


def damage(restored):
    victim = sorted((restored.data / "store/tables/samples").rglob("*.parquet"))[0]
    good = victim.read_bytes()
    victim.write_bytes(good[:40] + bytes([good[40] ^ 1]) + good[41:])
    assert victim.name in run("verify", "--data-dir", restored.data, code=1)
    run("verify", "--data-dir", restored.data, "--fast")
    victim.write_bytes(good[:-1])
    assert victim.name in run("verify", "--data-dir", restored.data, "--fast", code=1)
    victim.write_bytes(good)
    assert "all good" in run("verify", "--data-dir", restored.data)
    print("verify finds a flipped byte and a cut file, by name")


def main():
    folder = ft.scratch("tools")
    config = folder / "fletch.yml"
    config.write_text(CONFIG)
    server = ft.Fletch(folder / "data", config=config).start()
    quotas(server)
    cardinality(server)
    damage(copies(server, folder))


if __name__ == "__main__":
    main()
