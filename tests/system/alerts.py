"""A PromQL rule and a streaming SQL rule fire on a real series, reach a webhook as Alertmanager-v4 JSON, survive a restart in pending, and resolve.

    alerts.py
"""

import http.server
import json
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
    assert server.stop() == 0, server.tail()
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


if __name__ == "__main__":
    main()
