"""kill -9 at random moments under load: acknowledged ⊆ stored ⊆ sent, nothing twice.

    kill.py [--kills 50] [--seed 1] [--bus embedded|kafka] [--store local|s3] [--faults 0.05]

With `--store s3` the tables lie in a small S3 server that fails for a share of its requests (errors, throttling, delays, connections that end after
the effect) and is out altogether twice. Every second life of the server has a failpoint armed, at which it ends itself when it gets there before the
kill: in the middle of a group commit, of an upload, between the commits of two tables, around the commit of a compaction.

Senders behave as Prometheus does: in order per series, a request is sent again until it is answered with 2xx. Judged three times: by PromQL, by
SQL, and (server stopped) by the `deltalake` package on the table files. Every sample is known by (series, time) and carries its own number as value.
"""

import argparse
import collections
import json
import os
import random
import subprocess
import sys
import threading
import time

import fletchtest as ft

SENDERS, SERIES, SAMPLES = 3, 20, 3
# Failpoints, and up to which pass of them a life may last.
FAILPOINTS = {"log-before-fsync": 200, "log-after-fsync": 200, "flush-before-put": 2, "flush-after-put": 2, "commit-before-put": 4, "commit-after-put": 4,
              "series-after-commit": 2, "tier-before-commit": 1, "compact-before-commit": 2, "compact-after-commit": 2}


class Sender(threading.Thread):
    def __init__(self, number, server):
        super().__init__(daemon=True)
        self.number, self.server = number, server
        self.sent, self.acknowledged, self.stop = {}, {}, threading.Event()
        # Each sender has a stretch of time of its own that ends now, so that no two samples are equal by chance.
        self.next_ms = int(time.time() * 1000) - 3_600_000

    def labels(self, i):
        return {"__name__": "kill_test", "sender": str(self.number), "series": str(i), "pad": "x" * 60}

    def run(self):
        while not self.stop.is_set():
            batch = {}
            for _ in range(SAMPLES):
                self.next_ms += 7
                for i in range(SERIES):
                    batch[(self.number, i, self.next_ms)] = float(self.next_ms % 1_000_003)
            self.sent.update(batch)
            series = [(self.labels(i), [(v, ms) for (_, j, ms), v in batch.items() if j == i]) for i in range(SERIES)]
            while not self.stop.is_set():
                code = self.server.write(series, timeout=20)
                if 200 <= code < 300:
                    self.acknowledged.update(batch)
                    break
                assert code in (0, 429, 500, 503), f"a good request was refused with {code}"
                time.sleep(0.05)


class Compactor(threading.Thread):
    """Asks for a compaction again and again, so that kills meet merges, their commits and (embedded) the deletion of what they replaced."""

    def __init__(self, server, query):
        super().__init__(daemon=True)
        self.server, self.query, self.merges, self.stop = server, query, 0, threading.Event()

    def run(self):
        while not self.stop.wait(0.3):
            ft.request("POST", self.server.url + "/api/v1/admin/flush", timeout=60)
            code, body = ft.request("POST", self.server.url + "/api/v1/admin/compact" + self.query, timeout=60)
            if code == 200:
                self.merges += json.loads(body)["data"]["merges"]


def judge(how, rows, sent, acknowledged):
    seen = collections.Counter(key for key, _ in rows)
    twice = [key for key, n in seen.items() if n > 1]
    lost = acknowledged.keys() - seen.keys()
    invented = [key for key, value in rows if sent.get(key) != value]
    print(f"  {how:13} {len(rows)} rows; acknowledged {len(acknowledged)}, sent {len(sent)}; lost {len(lost)}, twice {len(twice)}, invented {len(invented)}")
    assert not lost and not twice and not invented, (sorted(lost)[:3], twice[:3], invented[:3])


def by_promql(server, start_ms):
    rows = []
    for sender in range(SENDERS):
        for result in server.query(f'kill_test{{sender="{sender}"}}[2h]', at=time.time())["result"]:
            labels = result["metric"]
            rows += [((sender, int(labels["series"]), round(t * 1000)), float(v)) for t, v in result["values"]]
    return rows


def by_sql(server):
    import datetime
    parse = lambda text: round(datetime.datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)
    rows = server.sql('SELECT sender, series, time, value FROM m."kill_test"')
    return [((int(r["sender"]), int(r["series"]), parse(r["time"])), r["value"]) for r in rows]


READ_TABLE = """
import json, os, sys
from deltalake import DeltaTable
store = sys.argv[1]
options = {k: v for k, v in os.environ.items() if k.startswith("AWS_")}
series = {}
for row in DeltaTable(store + "/tables/series", storage_options=options).to_pyarrow_table(columns=["series_id", "labels"]).to_pylist():
    series[row["series_id"]] = dict(row["labels"])
samples = DeltaTable(store + "/tables/samples", storage_options=options).to_pyarrow_table(columns=["metric", "series_id", "time", "value"]).to_pylist()
out = []
for row in samples:
    if row["metric"] != "kill_test":
        continue
    labels = series[row["series_id"]]
    out.append([int(labels["sender"]), int(labels["series"]), round(row["time"].timestamp() * 1000), row["value"]])
print(json.dumps(out))
"""


def by_deltalake(store, env):
    done = subprocess.run([ft.python(), "-c", READ_TABLE, str(store)], capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-2000:]
    return [((a, b, ms), v) for a, b, ms, v in json.loads(done.stdout)]


def start_s3(chosen):
    sys.path.insert(0, str(ft.ROOT / "tests/services"))
    import s3
    server = s3.serve(0, chosen.faults, chosen.seed)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--kills", type=int, default=10)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--bus", choices=["embedded", "kafka"], default="embedded")
    arguments.add_argument("--brokers", default="127.0.0.1:29092")
    arguments.add_argument("--store", choices=["local", "s3"], default="local")
    arguments.add_argument("--faults", type=float, default=0.05, help="share of the requests to the S3 server that go wrong")
    chosen = arguments.parse_args()
    random.seed(chosen.seed)
    folder = ft.scratch("kill")
    # A short flush interval, so that kills meet flushes and commits too.
    flags = ["--flush-interval", "2s"]
    env, s3 = {}, None
    if chosen.store == "s3":
        s3 = start_s3(chosen)
        env = {"AWS_ENDPOINT_URL": f"http://127.0.0.1:{s3.server_port}", "AWS_ALLOW_HTTP": "true", "AWS_REGION": "local",
               "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
        flags += ["--object-store", "s3://fletch/kill"]
    if chosen.bus == "kafka":
        config = folder / "kafka.yml"
        config.write_text(f"fletch:\n  kafka: {{brokers: '{chosen.brokers}', topic: 'kill-{folder.name}', group: 'kill-{folder.name}', partitions: 4,"
                          " properties: {session.timeout.ms: '6000', heartbeat.interval.ms: '1000'}}\n")
        server = ft.Fletch(folder / "data", *flags, config=config, env=env)
    else:
        server = ft.Fletch(folder / "data", *flags, env=env)
    server.start()
    senders = [Sender(n, server) for n in range(SENDERS)]
    compactor = Compactor(server, "?vacuum=true" if chosen.bus == "embedded" else "")
    for thread in [*senders, compactor]:
        thread.start()
    by_itself = collections.Counter()
    for n in range(chosen.kills):
        if s3 and n % (chosen.kills // 2 + 1) == chosen.kills // 4:
            s3.store.out_until = time.monotonic() + 8
        try:
            # A merge needs files first: with a failpoint there a life is given the time to reach it.
            server.process.wait(random.uniform(0.05, 3.0) + (5.0 if "compact" in server.env.get("FLETCH_FAILPOINTS", "") else 0.0))
            by_itself[server.env.get("FLETCH_FAILPOINTS", "nothing").split("=")[0]] += 1
        except subprocess.TimeoutExpired:
            server.kill()
        server.env.pop("FLETCH_FAILPOINTS", None)
        if n % 2 and n + 1 < chosen.kills:
            name, most = random.choice(list(FAILPOINTS.items()))
            server.env["FLETCH_FAILPOINTS"] = f"{name}=exit:{random.randint(1, most)}"
        # Every third start is itself killed before it is ready.
        server.start(wait=0)
        ready_or_gone = lambda: server.process.poll() is not None or ft.status(server.url + "/-/ready") == 200
        if n % 3 != 2 or n + 1 == chosen.kills:
            ft.eventually("the server is ready", ready_or_gone, 120)
    server.wait_ready(120)
    if s3:
        print(f"the object store: {dict(s3.store.counts)}")
        s3.store.share = 0.0
    time.sleep(1.0)
    assert not by_itself["nothing"], f"the server ended without a reason:\n{server.tail()}"
    for thread in [*senders, compactor]:
        thread.stop.set()
    for thread in [*senders, compactor]:
        thread.join(60)
    sent = {k: v for s in senders for k, v in s.sent.items()}
    acknowledged = {k: v for s in senders for k, v in s.acknowledged.items()}
    print(f"{chosen.bus}: {chosen.kills} crashes, seed {chosen.seed}; of them at failpoints: {dict(by_itself) or 'none'}; {compactor.merges} merges answered")
    ft.eventually("everything acknowledged is visible", lambda: acknowledged.keys() <= {k for k, _ in by_promql(server, 0)}, 60)
    judge("PromQL", by_promql(server, 0), sent, acknowledged)
    judge("SQL", by_sql(server), sent, acknowledged)
    server.flush()
    judge("SQL stored", by_sql(server), sent, acknowledged)
    # With Kafka the lease of a life that was killed while it compacted has to run out first.
    answers = []
    def compacted():
        answers.append(ft.request("POST", server.url + "/api/v1/admin/compact" + compactor.query, timeout=120))
        assert answers[-1][0] in (200, 503), answers[-1]
        return answers[-1][0] == 200
    ft.eventually("the compaction is done", compacted, 600)
    if len(answers) == 1:
        assert json.loads(answers[-1][1])["data"]["merges"], answers[-1]
    judge("SQL compacted", by_sql(server), sent, acknowledged)
    assert server.stop() == 0, server.tail()
    judge("deltalake", by_deltalake("s3://fletch/kill" if s3 else server.data / "store", {**os.environ, **env}), sent, acknowledged)


if __name__ == "__main__":
    main()
