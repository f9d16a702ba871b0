#!/usr/bin/env python3
"""Reads a running server through Flight SQL with the clients that people use, and compares with /api/v1/sql.

    flight_sql.py HTTP-URL FLIGHT-HOST:PORT         e.g. http://127.0.0.1:9090 127.0.0.1:31337

Writes a few samples of its own (tenant `flight-sql-<pid>`), some flushed and some not, then asks the same questions over ADBC, Polars,
pandas and HTTP. Prints one line per check and fails on the first difference. Needs: pip install adbc-driver-flightsql adbc-driver-manager
pyarrow polars pandas.
"""

import io
import json
import math
import os
import sys
import time
import urllib.error
import urllib.request

import adbc_driver_flightsql.dbapi as flight_sql
import adbc_driver_manager
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

HEADER = "adbc.flight.sql.rpc.call_header."


class Server:
    def __init__(self, http, flight, tenant=f"flight-sql-{os.getpid()}"):
        self.http, self.flight, self.tenant = http.rstrip("/"), flight, tenant

    def post(self, path, body, **headers):
        headers["X-Scope-OrgID"] = self.tenant
        request = urllib.request.Request(self.http + path, data=body, method="POST", headers=headers)
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.read()

    def sql(self, statement, kind="json"):
        body = self.post(f"/api/v1/sql?format={kind}", statement.encode(), **{"Content-Type": "text/plain"})
        if kind == "json":
            return json.loads(body)
        if kind == "jsonl":
            return [json.loads(line) for line in body.splitlines()]
        if kind == "arrow":
            return pa.ipc.open_stream(body).read_all()
        if kind == "parquet":
            return pq.read_table(io.BytesIO(body))
        return pa_csv.read_csv(io.BytesIO(body), convert_options=pa_csv.ConvertOptions(strings_can_be_null=True))

    def connect(self, **options):
        tenant = {HEADER + "x-scope-orgid": self.tenant}
        return flight_sql.connect(f"grpc://{self.flight}", db_kwargs={**tenant, **options}, autocommit=True)

    def load(self, now):
        """Series a and b over ten minutes; the first half is flushed, the second is in memory; a NaN among them."""
        for half in (0, 1):
            lines = []
            for step in range(half * 20, half * 20 + 20):
                ms = (now - 600 + step * 15) * 1000
                for host, factor in (("a", 1.5), ("b", -2.25)):
                    value = "NaN" if (host, step) == ("b", 7) else repr(step * factor)
                    lines.append(f'flight_test{{host="{host}",zone="eu"}} {value} {ms}')
            answer = json.loads(self.post("/api/v1/metrics/write", "\n".join(lines).encode(), **{"Content-Type": "text/plain"}))
            assert answer["accepted"] == 40, answer
            if half == 0:
                self.post("/api/v1/admin/flush", b"")


def plain(table):
    """Rows as JSON prints them: times as milliseconds, NaN as text, missing as None."""
    rows = []
    for row in table.to_pylist():
        rows.append({name: cell(value) for name, value in row.items()})
    return rows


def cell(value):
    if isinstance(value, float) and math.isnan(value):
        return "NaN"
    if isinstance(value, (pd.Timestamp,)) or hasattr(value, "timestamp"):
        return round(value.timestamp() * 1000)
    return value


def from_json(rows):
    def one(name, value):
        if name == "time" and isinstance(value, str):
            return round(pd.Timestamp(value).timestamp() * 1000)
        return value

    return [{name: one(name, value) for name, value in row.items()} for row in rows]


def check(what, got, expected):
    if got != expected:
        sys.exit(f"DIFFERENT: {what}\n got      {str(got)[:1500]}\n expected {str(expected)[:1500]}")
    print(f"ok  {what}")


def refused(what, run, word):
    try:
        run()
    except (adbc_driver_manager.Error, urllib.error.HTTPError) as error:
        text = error.read().decode() if isinstance(error, urllib.error.HTTPError) else str(error)
        check(f"{what} is refused", word in text or text, True)
        return
    sys.exit(f"NOT REFUSED: {what}")


ROWS = 'SELECT time, value, host, zone FROM m."flight_test" ORDER BY host, time'
STATEMENTS = [
    ROWS,
    'SELECT host, count(*) AS n, max(value) AS top FROM m."flight_test" WHERE NOT isnan(value) GROUP BY host ORDER BY host',
    "SELECT metric, count(*) AS n FROM samples GROUP BY metric ORDER BY metric",
    "SELECT tumble(time, INTERVAL '1 minute') AS time, count(*) AS n FROM samples GROUP BY 1 ORDER BY 1",
    "SELECT table_schema, table_name, table_type FROM information_schema.tables WHERE table_schema IN ('m', 'public') ORDER BY 1, 2",
    "SELECT 1 AS one, 'x' AS text, true AS yes, NULL AS nothing",
]


def statements(server, now):
    window = f"SELECT time, value, labels FROM promql('sum by (host) (flight_test)', {now - 600}, {now - 300}, 60) ORDER BY labels, time"
    with server.connect() as connection, connection.cursor() as cursor:
        for statement in STATEMENTS + [window]:
            expected = from_json(server.sql(statement))
            cursor.execute(statement)
            check(f"ADBC rows: {statement[:60]}", plain(cursor.fetch_arrow_table()), expected)
            check(f"HTTP jsonl: {statement[:60]}", from_json(server.sql(statement, "jsonl")), expected)
        for kind in ("arrow", "parquet"):
            check(f"HTTP {kind}", plain(server.sql(ROWS, kind)), from_json(server.sql(ROWS)))
        check("HTTP csv rows", server.sql(ROWS, "csv").num_rows, len(server.sql(ROWS)))
        cursor.execute(ROWS)
        kinds = [str(f.type) for f in cursor.fetch_arrow_table().schema]
        check("types on the wire", kinds, ["timestamp[ns, tz=UTC]", "double", "string", "string"])
    with server.connect(**{HEADER + "timestamp_unit": "us"}) as connection, connection.cursor() as cursor:
        cursor.execute(ROWS)
        check("timestamp_unit=us", str(cursor.fetch_arrow_table().schema.field("time").type), "timestamp[us, tz=UTC]")


def parameters(server):
    with server.connect() as connection, connection.cursor() as cursor:
        cursor.execute('SELECT count(*) FROM m."flight_test" WHERE host = ? AND value > ?', parameters=("a", 10.0))
        check("parameters with ?", cursor.fetchone(), (33,))
        cursor.execute('SELECT count(*) FROM m."flight_test" WHERE host = $1', parameters=("b",))
        check("parameters with $1", cursor.fetchone(), (40,))
        cursor.execute("SELECT $1 AS x", parameters=("text",))
        check("a parameter of any type", cursor.fetchone(), ("text",))
        cursor.adbc_prepare("SELECT metric FROM samples WHERE metric = $1 LIMIT 1")
        cursor.execute("SELECT metric FROM samples WHERE metric = $1 LIMIT 1", parameters=("flight_test",))
        check("prepared, then run", cursor.fetchone(), ("flight_test",))


def metadata(server):
    with server.connect() as connection:
        objects = connection.adbc_get_objects(depth="tables").read_all().to_pylist()
        names = {s["db_schema_name"]: {t["table_name"] for t in s["db_schema_tables"] or []} for c in objects for s in c["catalog_db_schemas"]}
        check("get_objects", ("flight_test" in names["m"], {"samples", "series"} <= names["public"]), (True, True))
        columns = connection.adbc_get_objects(depth="all", table_name_filter="flight_test").read_all().to_pylist()
        found = [c["column_name"] for cat in columns for s in cat["catalog_db_schemas"] for t in s["db_schema_tables"] for c in t["table_columns"]]
        check("columns of a view", found, ["time", "value", "host", "zone"])
        check("get_table_schema", connection.adbc_get_table_schema("samples").names,
              ["tenant", "date", "metric", "series_id", "time", "value", "start_time"])
        check("table types", sorted(connection.adbc_get_table_types()), ["TABLE", "VIEW"])
        info = connection.adbc_get_info()
        check("server name", info["vendor_name"], "Fletch")


def frames(server):
    expected = from_json(server.sql(ROWS))
    with server.connect() as connection:
        check("polars.read_database", plain(pl.read_database(ROWS, connection).to_arrow()), expected)
        frame = pd.read_sql(ROWS, connection)
        check("pandas.read_sql", (list(frame.columns), len(frame)), (["time", "value", "host", "zone"], len(expected)))
    # A URI cannot name a tenant: read_database_uri sees tenant `default`.
    default = Server(server.http, server.flight, "default")
    lines = [f'flight_uri{{pid="{os.getpid()}"}} {n}.5 {(int(time.time()) - n) * 1000}' for n in range(20)]
    default.post("/api/v1/metrics/write", "\n".join(lines).encode(), **{"Content-Type": "text/plain"})
    statement = f"""SELECT time, value, pid FROM m."flight_uri" WHERE pid = '{os.getpid()}' ORDER BY time"""
    frame = pl.read_database_uri(statement, f"flightsql://{server.flight}?transport=tcp", engine="adbc")
    check("polars.read_database_uri", (plain(frame.to_arrow()), len(frame)), (from_json(default.sql(statement)), 20))


def errors(server):
    with server.connect() as connection, connection.cursor() as cursor:
        refused("a syntax error", lambda: cursor.execute("SELEC 1"), "syntax error")
        refused("an unknown table", lambda: cursor.execute("SELECT * FROM nope"), "not found")
        refused("COPY", lambda: cursor.execute("COPY samples TO '/tmp/x'"), "not allowed")
        refused("CREATE EXTERNAL TABLE", lambda: cursor.execute("CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '/etc'"), "not allowed")
        refused("a long chain", lambda: cursor.execute("SELECT " + "+".join(["1"] * 5000)), "chained")
        refused("ingestion", lambda: cursor.adbc_ingest("t", pa.table({"a": [1]})), "read-only")
        refused("executemany", lambda: cursor.executemany("INSERT INTO samples VALUES (?)", [(1,), (2,)]), "not allowed")
        cursor.execute("SELECT 1")
        check("the connection still works", cursor.fetchone(), (1,))
    refused("another tenant's metric", lambda: Server(server.http, server.flight, "somebody-else").sql("SELECT * FROM m.flight_test"), "not found")
    with flight_sql.connect(f"grpc://{server.flight}", db_kwargs={HEADER + "x-scope-orgid": "somebody-else"}, autocommit=True) as other:
        with other.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM samples")
            check("another tenant sees nothing", cursor.fetchone(), (0,))
    with server.connect(username="user", password="secret") as connection, connection.cursor() as cursor:
        cursor.execute("SELECT 1")
        check("name and password are tolerated", cursor.fetchone(), (1,))


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    server, now = Server(sys.argv[1], sys.argv[2]), int(time.time()) // 15 * 15
    server.load(now)
    statements(server, now)
    parameters(server)
    metadata(server)
    frames(server)
    errors(server)
    print("all the same")


if __name__ == "__main__":
    main()
