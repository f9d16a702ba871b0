"""ADBC, Polars and pandas over Flight SQL return the same rows as /api/v1/sql; Polars, deltalake and DuckDB read the files with the server stopped.

    sql.py
"""

import json
import subprocess

import fletchtest as ft


def main():
    folder = ft.scratch("sql")
    server = ft.Fletch(folder / "data").start()
    subprocess.run([ft.python(), ft.ROOT / "tests/scripts/flight_sql.py", server.url, f"127.0.0.1:{server.flight}"], check=True)
    now = 1_700_000_000_000
    for second in range(0, 600, 10):
        assert server.write([({"__name__": "stored", "n": str(n)}, [(float(n * second), now + second * 1000)]) for n in range(20)]) == 204
    server.flush()
    counted = server.sql("SELECT count(*) AS n FROM samples WHERE metric = 'stored'")[0]["n"]
    assert counted == 1200, counted
    assert server.stop() == 0, server.tail()
    tables = [str(server.data / "store/tables" / name) for name in ("samples", "series")]
    done = subprocess.run([ft.python(), ft.ROOT / "tests/scripts/read_tables.py", *tables], check=True, capture_output=True, text=True)
    for line in map(json.loads, done.stdout.splitlines()):
        print(f"{line['table']}: {line['rows']} rows by {', '.join(line['readers'])}, server stopped")


if __name__ == "__main__":
    main()
