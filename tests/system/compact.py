"""Compaction as others see it: overlapping files with copies become few, deltalake, Polars and DuckDB read the same rows, and the folder shrinks.

    compact.py

What is stored is computed here from what was sent: of two values at one time the larger one counts.
"""

import json
import random
import subprocess
import sys

import fletchtest as ft

START_MS = 1_700_000_000_000 // 86_400_000 * 86_400_000
SERIES, SAMPLES = 14, 3_000
KINDS = {
    "constant": lambda r, i: 42.5,
    "counter": lambda r, i: float(i * 100 + r.randrange(7)),
    "few": lambda r, i: float(r.randrange(90)),
    "measured": lambda r, i: r.gauss(0, 1),
}


def compact(server, query=""):
    code, body = ft.request("POST", server.url + "/api/v1/admin/compact" + query, timeout=300)
    return code, json.loads(body)


def send(server, expected, seed):
    """One batch of every kind; every third sample of every batch has the same time as one of each other batch."""
    r = random.Random(seed)
    for kind, value in KINDS.items():
        for number in range(SERIES):
            labels = {"__name__": f"compact_{kind}", "series": str(number)}
            times = [START_MS + i * 15_000 + (0 if i % 3 == 0 else seed) for i in range(SAMPLES)]
            samples = [(value(r, i), ms) for i, ms in enumerate(times)]
            assert server.write([(labels, samples)]) in (200, 204)
            for v, ms in samples:
                key = (labels["__name__"], number, ms)
                expected[key] = max(v, expected.get(key, v))


READ = """
import json, sys
from deltalake import DeltaTable
store = sys.argv[1]
labels = {r["series_id"]: dict(r["labels"]) for r in DeltaTable(store + "/series").to_pyarrow_table(columns=["series_id", "labels"]).to_pylist()}
rows = DeltaTable(store + "/samples").to_pyarrow_table(columns=["metric", "series_id", "time", "value"])
times = rows["time"].cast("int64").to_pylist()
print(json.dumps([[m, int(labels[s]["series"]), t // 1000, v] for m, s, t, v in zip(rows["metric"].to_pylist(), rows["series_id"].to_pylist(), times, rows["value"].to_pylist())]))
"""


def stored(tables):
    done = subprocess.run([ft.python(), "-c", READ, str(tables)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return [((m, s, t), v) for m, s, t, v in json.loads(done.stdout)]


ENCODINGS = """
import sys, pyarrow.parquet as pq
file = pq.read_metadata(sys.argv[1])
print(*sorted({e for g in range(file.num_row_groups) for e in file.row_group(g).column(3).encodings}))
"""


def encodings_of_values(file):
    return subprocess.run([ft.python(), "-c", ENCODINGS, str(file)], capture_output=True, text=True, check=True).stdout.split()


def readers_agree(tables):
    script = ft.ROOT / "tests/scripts/read_tables.py"
    done = subprocess.run([ft.python(), script, tables / "samples", tables / "series"], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def data_files(tables, name):
    return sorted((tables / name).glob("tenant=*/*/*.parquet"))


def main():
    folder = ft.scratch("compact")
    config = folder / "fletch.yml"
    config.write_text("fletch: {tiers: false}\n")
    server = ft.Fletch(folder / "data", config=config).start()
    tables = server.data / "store/tables"
    expected = {}
    for seed in (1, 2, 3):
        send(server, expected, seed)
        server.flush()
    assert len(data_files(tables, "samples")) == 3
    sums = lambda: [server.query(f"sum by (series) (sum_over_time(compact_{kind}[1d]))", at=START_MS / 1000 + 80_000)["result"] for kind in KINDS]
    before, bytes_before = sums(), sum(f.stat().st_size for f in data_files(tables, "samples"))
    code, body = compact(server, "?vacuum=yes")
    assert code == 400 and "vacuum=yes" in body["error"], body
    code, body = compact(server)
    assert code == 200 and body["data"]["files_added"] == 2 and body["data"]["conflicts"] == 0, body
    assert len(data_files(tables, "samples")) == 4, "the replaced files stay for readers of other processes"
    assert sums() == before, "answers are the same"
    rows = stored(tables)
    assert len(rows) == len(expected) and dict(rows) == expected, (len(rows), len(expected))
    reports = readers_agree(tables)
    assert [r["files"] for r in reports] == [1, 1], reports
    code, body = compact(server, "?vacuum=true")
    assert code == 200 and body["data"]["merges"] == 0 and body["data"]["vacuum"]["files"] == 4, body
    assert [len(data_files(tables, t)) for t in ("samples", "series")] == [1, 1]
    assert sums() == before
    used = encodings_of_values(data_files(tables, "samples")[0])
    assert {"RLE_DICTIONARY", "BYTE_STREAM_SPLIT"} <= set(used), f"every kind of page was read by every reader: {used}"
    # What comes later is merged in as well, also by a server that was started afresh.
    send(server, expected, 4)
    assert server.stop() == 0, server.tail()
    server.start()
    code, body = compact(server, "?vacuum=true")
    assert code == 200 and body["data"]["merges"] == 1, body
    rows = stored(tables)
    assert len(rows) == len(expected) and dict(rows) == expected, (len(rows), len(expected))
    bytes_after = sum(f.stat().st_size for f in data_files(tables, "samples"))
    readers = reports[0]["readers"]
    print(f"{len(rows)} samples; three flushes had {bytes_before} bytes, with a fourth compacted {bytes_after}; read alike by {', '.join(readers)} and PromQL")
    assert server.metric("fletch_compaction_runs_total") == 1
    assert server.stop() == 0, server.tail()


if __name__ == "__main__":
    sys.exit(main())
