"""A PromQL rule and a streaming SQL rule fire on a real series, reach a webhook as Alertmanager-v4 JSON, survive a restart in pending, and resolve.
Then a streaming rule over noisy targets that restart (stale markers), with a kill -9 between: when it fired and resolved must be what the same SQL says
over the stored table, window by window.

    alerts.py [--seed 1]
"""

import argparse
import datetime
import http.server
import json
import random
import sqlite3
import threading
import time

import fletchtest as ft

RULES = """
groups:
- name: system-test
  interval: 1s
  rules:
  - alert: HighLoad
    expr: test_load{job="alerts"} > 80
    for: 6s
    labels: {severity: page}
    annotations: {summary: 'load of {{ $labels.host }} is {{ $value | humanize }}'}
"""
STREAM_RULES = """
- name: StreamLoad
  sql: SELECT host, avg(value) AS value FROM m."test_load" WHERE job = 'alerts' GROUP BY host, tumble(time, INTERVAL '2 seconds') HAVING avg(value) > 80
  for: 0s
  lateness: 1s
  labels: {severity: page}
  annotations: {summary: 'windowed load of {{ $labels.host }}'}
- name: NoisyLoad
  sql: SELECT host, avg(value) AS value FROM m."noisy_load" GROUP BY host, tumble(time, INTERVAL '1 second') HAVING avg(value) > 80 AND count(value) > 0
  for: 0s
  lateness: 1s
"""


class Sink(http.server.BaseHTTPRequestHandler):
    received = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        Sink.received.append((time.time(), body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


def alerts_of(name, state):
    return [(at, a) for at, body in Sink.received for a in body["alerts"] if a["labels"]["alertname"] == name and a["status"] == state]


class Load(threading.Thread):
    """Sends one sample per series and 200 ms; `value` may be changed while it runs."""

    def __init__(self, server):
        super().__init__(daemon=True)
        self.server, self.value, self.stop = server, 10.0, False

    def run(self):
        while not self.stop:
            labels = {"__name__": "test_load", "job": "alerts", "host": "web-1"}
            self.server.write([(labels, [(self.value, int(time.time() * 1000))])], timeout=5)
            time.sleep(0.2)


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seed", type=int, default=1)
    chosen = arguments.parse_args()
    folder = ft.scratch("alerts")
    sink = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Sink)
    threading.Thread(target=sink.serve_forever, daemon=True).start()
    (folder / "rules.yml").write_text(RULES)
    (folder / "stream.yml").write_text(STREAM_RULES)
    config = folder / "fletch.yml"
    config.write_text("rule_files: [rules.yml]\nfletch:\n  stream_rule_files: [stream.yml]\n"
                      f"  alerting: {{webhooks: [{{url: 'http://127.0.0.1:{sink.server_port}/hook'}}]}}\n")
    server = ft.Fletch(folder / "data", config=config).start()
    load = Load(server)
    load.start()
    time.sleep(3)
    assert not Sink.received, Sink.received
    load.value, raised_at = 95.0, time.time()
    ft.eventually("HighLoad is pending", lambda: states(server) == ["pending"], 10)
    ft.eventually("the streaming rule reached the webhook", lambda: alerts_of("StreamLoad", "firing"), 15)
    print(f"streaming rule: webhook {alerts_of('StreamLoad', 'firing')[0][0] - raised_at:.2f} s after the first high sample (windows of 2 s, lateness 1 s)")
    assert not alerts_of("HighLoad", "firing"), "fired before its `for`"
    server.kill()
    server.start()
    ft.eventually("HighLoad reached the webhook after the restart", lambda: alerts_of("HighLoad", "firing"), 20)
    fired_at, alert = alerts_of("HighLoad", "firing")[0]
    print(f"PromQL rule: webhook {fired_at - raised_at:.2f} s after the first high sample (for: 6s, with a kill -9 in pending)")
    assert alert["annotations"]["summary"] == "load of web-1 is 95", alert
    assert alerts_of("StreamLoad", "firing")[0][1]["labels"] == {"alertname": "StreamLoad", "host": "web-1", "severity": "page"}, Sink.received
    body = next(body for _, body in Sink.received if any(a["labels"]["alertname"] == "HighLoad" for a in body["alerts"]))
    missing = {"version", "groupKey", "truncatedAlerts", "status", "receiver", "groupLabels", "commonLabels", "commonAnnotations", "externalURL", "alerts"} - body.keys()
    assert body["version"] == "4" and not missing, (missing, body)
    assert alert["endsAt"] == "0001-01-01T00:00:00Z" and len(alert["fingerprint"]) == 16, alert
    assert fired_at - raised_at < 6 + 12, "the `for` clock began again after the restart"
    load.value = 10.0
    ft.eventually("both resolved", lambda: alerts_of("HighLoad", "resolved") and alerts_of("StreamLoad", "resolved"), 30)
    load.stop = True
    windows_agree(server)
    expected = noise(server, random.Random(chosen.seed))
    assert server.stop() == 0, server.tail()
    history_agrees(server, expected)
    print("both rules fired, survived the restart, and resolved")


def states(server):
    alerts = json.loads(ft.request("GET", server.url + "/api/v1/alerts")[1])["data"]["alerts"]
    return [a["state"] for a in alerts if a["labels"]["alertname"] == "HighLoad"]


def windows_agree(server):
    """The windows that fired equal the same SQL over the stored table."""
    server.flush()
    rows = server.sql("SELECT host, tumble(time, INTERVAL '2 seconds') AS window_end, avg(value) AS value FROM m.\"test_load\" WHERE job = 'alerts' "
                      "GROUP BY host, tumble(time, INTERVAL '2 seconds') HAVING avg(value) > 80 ORDER BY window_end")
    assert rows, "the stored table has no such windows"
    first = alerts_of("StreamLoad", "firing")[0][1]
    assert rows[0]["window_end"][:19] == first["startsAt"][:19], (rows[0], first)
    print(f"{len(rows)} windows over the threshold in the stored table; the first ends when the alert began: {first['startsAt']}")


def noise(server, rng):
    """Two targets around the threshold; each restarts twice: a stale marker at the scrape that finds it gone, silence, and back again.

    Returns what the stored table says, host → [(first, last) window of each stretch above the threshold, ms]."""
    down = {}  # host → when it comes back
    restarts = {"a": [4, 13], "b": [6, 17]}  # seconds from the start
    begin, killed, markers = time.time(), False, 0
    while (elapsed := time.time() - begin) < 24:
        if elapsed > 10 and not killed:
            # Nothing is scraped while the server is away: a sample later than `lateness` would rightly miss its window.
            server.kill()
            server.start()
            killed = True
        for host, times in restarts.items():
            labels = {"__name__": "noisy_load", "job": "alerts", "host": host}
            if times and elapsed > times[0]:
                times.pop(0)
                down[host] = time.time() + rng.uniform(2.2, 3.0)
                markers += 1
                assert server.write([(labels, [(ft.STALE, int(time.time() * 1000))])]) in (200, 204)
            elif time.time() >= down.get(host, 0):
                assert server.write([(labels, [(rng.uniform(40, 120), int(time.time() * 1000))])]) in (200, 204)
        time.sleep(0.2)
    # The last windows close by heartbeats alone, and with them every alert.
    time.sleep(4)
    server.flush()
    stored = server.sql("SELECT count(*) AS n, count(value) AS v FROM samples WHERE metric = 'noisy_load'")[0]
    assert stored["n"] - stored["v"] == markers == 4, stored
    rows = server.sql("SELECT host, tumble(time, INTERVAL '1 second') AS at, avg(value) AS value FROM m.\"noisy_load\" "
                      "GROUP BY host, tumble(time, INTERVAL '1 second') HAVING avg(value) > 80 AND count(value) > 0 ORDER BY host, at")
    stretches = {}
    for row in rows:
        end = round(datetime.datetime.fromisoformat(row["at"].replace("Z", "+00:00")).timestamp() * 1000)
        mine = stretches.setdefault(row["host"], [])
        if mine and mine[-1][1] + 1000 == end:
            mine[-1] = (mine[-1][0], end)
        else:
            mine.append((end, end))
    return stretches


def history_agrees(server, expected):
    """The alert fired at the first window of each stretch and resolved at the first window after it."""
    with sqlite3.connect(server.data / "metadata.sqlite") as store:
        rows = store.execute("SELECT labels, kind, at FROM alert_transitions WHERE rule_name = 'NoisyLoad' AND kind IN ('firing', 'resolved') ORDER BY at").fetchall()
    seen = {}
    for labels, kind, at in rows:
        seen.setdefault(dict(json.loads(labels))["host"], []).append((kind, at))
    wanted = {host: [t for first, last in stretches for t in (("firing", first), ("resolved", last + 1000))] for host, stretches in expected.items()}
    assert seen == wanted, f"stream {seen}\nstored {wanted}"
    windows = sum((last - first) // 1000 + 1 for stretches in expected.values() for first, last in stretches)
    print(f"noisy targets with 4 restarts and a kill -9: {windows} windows in {sum(map(len, expected.values()))} stretches, the same on the stream as over the stored table")


if __name__ == "__main__":
    main()
