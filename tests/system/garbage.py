"""Garbage in: a clear 4xx for each, the process lives, memory stays bounded.

    garbage.py
"""

import json
import urllib.parse

import fletchtest as ft

REMOTE_WRITE = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy", "X-Prometheus-Remote-Write-Version": "0.1.0"}
RSS_MAX_MIB = 700


def rss_mib(server):
    text = open(f"/proc/{server.process.pid}/status", encoding="ascii").read()
    return int(text.split("VmRSS:")[1].split()[0]) / 1024


def write(body):
    return "POST", "/api/v1/write", body, REMOTE_WRITE


def series(labels):
    return write(ft.snappy(ft.write_request([(labels, [(1.0, 1_700_000_000_000)])])))


def query(text):
    return "POST", "/api/v1/query", urllib.parse.urlencode({"query": text}).encode(), {"Content-Type": "application/x-www-form-urlencoded"}


def sql(text):
    return "POST", "/api/v1/sql", text.encode(), {}


def push(text):
    return "POST", "/api/v1/metrics/write", text.encode(), {}


GOOD = ft.snappy(ft.write_request([({"__name__": "ok"}, [(1.0, 1)])]))
# What is sent, the statuses that are right, and a word that the answer must contain.
CASES = [
    ("truncated snappy", write(GOOD[:-5]), (400,), "snappy"),
    ("not snappy at all", write(b"\x0a\x0b\x0c"), (400,), "snappy"),
    ("declares 4 GiB", write(ft.varint(0xFFFFFFFF) + b"\x00" * 10), (400, 413), "bytes"),
    ("declares 2^63", write(ft.varint(1 << 63) + b"\x00"), (400, 413), ""),
    ("empty body", write(b""), (400,), ""),
    ("protobuf cut in the middle", write(ft.snappy(ft.write_request([({"__name__": "ok"}, [(1.0, 1)])])[:-3])), (400,), ""),
    ("length beyond the end", write(ft.snappy(b"\x0a\xff\xff\x7f")), (400,), ""),
    ("random protobuf", write(ft.snappy(bytes(range(256)) * 20)), (400,), ""),
    ("NUL in a label name is a name like any other or refused", series({"__name__": "m", "a\0b": "c"}), (204, 400), ""),
    ("no metric name", series({"job": "x"}), (400,), "__name__"),
    ("10 MB label value", series({"__name__": "m", "big": "x" * 10_000_000}), (400,), "big"),
    ("1,000 labels", series({"__name__": "m", **{f"l{i}": "v" for i in range(1000)}}), (400,), "labels"),
    ("far future", write(ft.snappy(ft.write_request([({"__name__": "m"}, [(1.0, 9_999_999_999_999)])]))), (400,), "m"),
    ("remote write 2", ("POST", "/api/v1/write", b"", {**REMOTE_WRITE, "Content-Type": "application/x-protobuf;proto=io.prometheus.write.v2.Request"}), (415,), "1.0"),
    ("zstd", ("POST", "/api/v1/write", b"", {**REMOTE_WRITE, "Content-Encoding": "zstd"}), (415,), "snappy"),
    ("bad tenant", ("POST", "/api/v1/write", GOOD, {**REMOTE_WRITE, "X-Scope-OrgID": "../x"}), (400,), "X-Scope-OrgID"),
    ("text: not a sample", push("this is not a metric line at all\n"), (400,), '"line":1'),
    ("text: refused label", push('m{user_id="7"} 1\n'), (400,), "user_id"),
    ("json: cut", push('{"metrics":[{"name":"a","value":1'), (400,), ""),
    ("json: wrong types", push('{"metrics":[{"name":5,"value":{}}]}'), (400,), "name"),
    ("json: deep", push("[" * 100_000), (400,), ""),
    ("promql: parentheses", query("(" * 200_000 + "1" + ")" * 200_000), (400,), ""),
    ("promql: deep", query("(" * 7_000 + "1" + ")" * 7_000), (400,), ""),
    ("promql: 5,000 terms", query("+".join(["1"] * 5_000)), (200, 400, 422), ""),
    ("promql: nested calls", query("abs(" * 3_000 + "1"), (400,), ""),
    ("promql: syntax", query("sum(rate(x[5m])"), (400,), "parse error"),
    ("promql: regex", query('{__name__=~"(a{1,1000}){1,1000}"}'), (400, 422), ""),
    ("promql: empty selector", query("{}"), (400,), "empty"),
    ("sql: 1+1+… × 5,000", sql("SELECT " + "+".join(["1"] * 5_000)), (400, 413, 422), ""),
    ("sql: or × 5,000", sql("SELECT * FROM samples WHERE " + " OR ".join(f"series_id = {i}" for i in range(5_000))), (400, 413, 422), ""),
    ("sql: parentheses", sql("SELECT " + "(" * 5_000 + "1" + ")" * 5_000), (400,), ""),
    ("sql: create external table", sql("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc/passwd'"), (400, 403), "CREATE"),
    ("sql: copy", sql("COPY (SELECT 1) TO '/tmp/fletch-garbage.csv'"), (400, 403), "COPY"),
    ("sql: file as a table", sql("SELECT * FROM '/etc/passwd'"), (400, 404), ""),
    ("sql: url as a table", sql("SELECT * FROM 'file:///etc/passwd'"), (400, 404), ""),
    ("sql: insert", sql("INSERT INTO samples VALUES (1)"), (400, 403), ""),
    ("sql: drop", sql("DROP TABLE samples"), (400, 403), ""),
    ("sql: set", sql("SET datafusion.execution.batch_size = 1"), (400, 403), ""),
    ("sql: two statements", sql("SELECT 1; SELECT 2"), (400,), ""),
    ("sql: no such table", sql("SELECT * FROM nope"), (404, 400), "nope"),
    ("sql: syntax", sql("SELEC 1"), (400,), ""),
    ("sql: empty", sql(""), (400,), ""),
    ("bad step", ("GET", "/api/v1/query_range?query=1&start=0&end=1&step=0", None, {}), (400,), "step"),
    ("too many points", ("GET", "/api/v1/query_range?query=1&start=0&end=100000&step=1", None, {}), (400,), "11,000"),
    ("unknown path", ("GET", "/api/v1/nope", None, {}), (404,), ""),
    ("body above the limit", ("POST", "/api/v1/metrics/write", b"x" * (33 << 20), {}), (413,), "request_bytes_max"),
]


def main():
    folder = ft.scratch("garbage")
    server = ft.Fletch(folder / "data").start()
    failed = 0
    for name, (method, path, body, headers), statuses, word in CASES:
        code, answer = ft.request(method, server.url + path, body, headers=headers, timeout=90)
        text = answer.decode(errors="replace")
        right = code in statuses and word in text and len(text) < 20_000
        if code >= 400 and path not in ("/api/v1/nope",) and right:
            right = bool(json.loads(text).get("error") or json.loads(text).get("errors"))
        failed += not right
        print(f"{'ok' if right else 'WRONG':6} {code}  {name}: {text.strip()[:150]}")
        assert server.process.poll() is None, f"the process died of «{name}»:\n{server.tail()}"
    assert server.write([({"__name__": "still_alive"}, [(1.0, 1_700_000_000_000)])]) == 204
    assert server.query("still_alive", at=1_700_000_000)["result"], "it no longer stores"
    memory = rss_mib(server)
    print(f"{len(CASES) - failed} of {len(CASES)} answered as they should be; resident memory {memory:.0f} MiB (at most {RSS_MAX_MIB})")
    assert failed == 0 and memory < RSS_MAX_MIB
    assert server.stop() == 0


if __name__ == "__main__":
    main()
