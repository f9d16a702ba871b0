#!/usr/bin/env python3
"""Reads Delta tables with readers that are not ours, and prints one JSON line per table.

    read_tables.py FOLDER-OR-URL...      e.g. fletch-data/store/tables/samples

    {"table": …, "version": …, "files": …, "rows": …, "hash": …, "readers": ["deltalake", "polars", "duckdb"], "protocol": …}

`rows` and `hash` are the same for every reader, or the script fails and names the readers that disagree. The hash covers tenant, date
and the key and value columns of `samples` and its tiers (of `series`: tenant, date, metric, series_id) in key order, so two tables with
the same rows have the same hash, however their files are cut. Needs: pip install deltalake polars pyarrow; duckdb is used when it is there.
"""

import hashlib
import json
import sys

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
from deltalake import DeltaTable

KEYS = ["tenant", "date", "metric", "series_id", "time"]
STALE_BITS = 0x7FF0000000000002


def raw(column: pa.Array) -> bytes:
    """The bytes of a fixed-width column without nulls."""
    width = column.type.bit_width // 8
    return column.buffers()[1].to_pybytes()[column.offset * width : (column.offset + len(column)) * width]


def hash_of(table: pa.Table) -> str:
    """SHA-256 over the rows in key order, column by column; a NULL value is the stale marker's bits."""
    keys = [name for name in KEYS if name in table.column_names]
    values = [f.name for f in table.schema if f.name not in keys and pa.types.is_float64(f.type)]
    table = table.select(keys + values)
    table = table.sort_by([(name, "ascending") for name in keys])
    digest = hashlib.sha256()
    for name in keys + values:
        column = table.column(name).combine_chunks()
        if name in ("tenant", "metric"):
            digest.update("\0".join(pc.cast(column, pa.string()).to_pylist()).encode())
        elif name == "date":
            digest.update(raw(pc.cast(column, pa.date32())))
        elif name in values:
            stale = pa.array([STALE_BITS], pa.int64()).view(pa.float64())[0]
            digest.update(raw(column.fill_null(stale)))
        elif name == "time":
            digest.update(raw(pc.cast(column, pa.timestamp("us", tz="UTC"))))
        else:
            digest.update(raw(column))
    return digest.hexdigest()


def by_deltalake(path: str) -> pa.Table:
    return DeltaTable(path).to_pyarrow_table()


def by_polars(path: str) -> pa.Table:
    scan = pl.scan_delta(path)
    columns = [name for name, kind in scan.collect_schema().items() if not kind.is_nested()]
    return scan.select(columns).collect().to_arrow()


def by_duckdb(path: str) -> pa.Table:
    import duckdb

    dataset = DeltaTable(path).to_pyarrow_dataset()  # duckdb finds it by its name
    columns = ", ".join(f'"{f.name}"' for f in dataset.schema if not pa.types.is_nested(f.type))
    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    return connection.sql(f"SELECT {columns} FROM dataset").to_arrow_table()


def check(path: str) -> bool:
    table = DeltaTable(path)
    readers = {"deltalake": by_deltalake, "polars": by_polars}
    try:
        import duckdb  # noqa: F401

        readers["duckdb"] = by_duckdb
    except ImportError:
        pass
    answers = {}
    for name, read in readers.items():
        rows = read(path)
        answers[name] = (rows.num_rows, hash_of(rows))
    rows, digest = answers["deltalake"]
    report = {"table": path, "version": table.version(), "files": len(table.file_uris()), "rows": rows, "hash": digest}
    protocol = table.protocol()
    report["protocol"] = [protocol.min_reader_version, protocol.min_writer_version]
    report["readers"] = sorted(answers)
    if len(set(answers.values())) != 1:
        report["disagree"] = answers
    print(json.dumps(report))
    return "disagree" not in report


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.exit(0 if all([check(path) for path in sys.argv[1:]]) else 1)
