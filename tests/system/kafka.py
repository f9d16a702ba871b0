"""Foreign topics as collectors: JSON and remote-write records from a confluent-kafka producer, while two of our processes join and leave.

    kafka.py --brokers 127.0.0.1:29092 [--samples 1000000] [--source-brokers OTHER]

Both processes share one object store and one bus topic and have a data folder each. Afterwards every sample is in the tables exactly once, the counter of
dropped copies is 0 (a record read twice would hide in it), and poison messages lie in the dead-letter topic with their reason.
"""

import argparse
import json
import subprocess
import time

import confluent_kafka
from confluent_kafka.admin import AdminClient, NewTopic

import fletchtest as ft

SERIES, PER_RECORD = 100, 50


def configuration(folder, chosen, name):
    source = chosen.source_brokers or chosen.brokers
    path = folder / f"{name}.yml"
    path.write_text(f"""
fletch:
  kafka: {{brokers: '{chosen.brokers}', topic: 'bus-{folder.name}', group: 'bus-{folder.name}', partitions: 4,
           properties: {{session.timeout.ms: '6000', heartbeat.interval.ms: '1000'}}}}
  sources:
    kafka:
    - {{brokers: '{source}', topics: ['json-{folder.name}'], group: 'src-{folder.name}', decoder: json, dead_letter_topic: 'dead-{folder.name}',
        properties: {{session.timeout.ms: '6000', heartbeat.interval.ms: '1000'}}}}
    - {{brokers: '{source}', topics: ['rw-{folder.name}'], group: 'src-{folder.name}', decoder: remote_write, dead_letter_topic: 'dead-{folder.name}',
        properties: {{session.timeout.ms: '6000', heartbeat.interval.ms: '1000'}}}}
""")
    return path


def produce(brokers, folder, samples, start_ms):
    """Half of the samples as JSON, half as remote write, plus poison in both topics. Returns the number of good samples."""
    producer = confluent_kafka.Producer({"bootstrap.servers": brokers, "enable.idempotence": True, "linger.ms": 50, "queue.buffering.max.messages": 1_000_000})
    sent, n = 0, 0
    while sent < samples:
        base, kind = start_ms + (n // SERIES) * PER_RECORD, "json" if n % 2 else "rw"
        series = n % SERIES
        stamps = range(base, base + PER_RECORD)
        if kind == "json":
            metrics = [{"name": "kafka_json", "value": ms % 9973, "timestamp": ms, "labels": {"series": str(series)}} for ms in stamps]
            payload = json.dumps({"metrics": metrics}).encode()
        else:
            payload = ft.snappy(ft.write_request([({"__name__": "kafka_rw", "series": str(series)}, [(float(ms % 9973), ms) for ms in stamps])]))
        producer.produce(f"{kind}-{folder.name}", payload, key=str(series))
        producer.poll(0)
        sent, n = sent + PER_RECORD, n + 1
        if n % 2000 == 0:
            yield sent
    for topic in ("json", "rw"):
        producer.produce(f"{topic}-{folder.name}", b"\x00poison: neither JSON nor snappy")
    assert producer.flush(60) == 0, "the producer could not deliver everything"
    yield sent


COUNT = """
import sys, pyarrow.compute as pc
from deltalake import DeltaTable
table = DeltaTable(sys.argv[1] + "/tables/samples").to_pyarrow_table(columns=["metric", "series_id", "time"])
table = table.filter(pc.starts_with(table["metric"], "kafka_"))
keys = table.group_by(["metric", "series_id", "time"]).aggregate([])
print(table.num_rows, keys.num_rows)
"""


def dead_letters(chosen, folder):
    consumer = confluent_kafka.Consumer({"bootstrap.servers": chosen.source_brokers or chosen.brokers, "group.id": f"dead-{folder.name}", "auto.offset.reset": "earliest"})
    consumer.subscribe([f"dead-{folder.name}"])
    found, end = [], time.monotonic() + 20
    while len(found) < 2 and time.monotonic() < end:
        message = consumer.poll(0.5)
        if message is not None and not message.error():
            found.append((message.value(), {k: v.decode() for k, v in message.headers() or []}))
    consumer.close()
    return found


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--brokers", required=True)
    arguments.add_argument("--source-brokers")
    arguments.add_argument("--samples", type=int, default=1_000_000)
    chosen = arguments.parse_args()
    folder = ft.scratch("kafka")
    admin = AdminClient({"bootstrap.servers": chosen.source_brokers or chosen.brokers})
    topics = [NewTopic(f"{t}-{folder.name}", 4, 1) for t in ("json", "rw", "dead")]
    for future in admin.create_topics(topics).values():
        future.result()
    shared = ["--object-store", f"file://{folder}/store", "--flush-interval", "3s"]
    first = ft.Fletch(folder / "first", *shared, config=configuration(folder, chosen, "first")).start()
    second = ft.Fletch(folder / "second", *shared, config=configuration(folder, chosen, "second"))
    sent, start_ms = 0, int(time.time() * 1000) - 3_600_000
    for step, sent in enumerate(produce(chosen.source_brokers or chosen.brokers, folder, chosen.samples, start_ms)):
        if step % 4 == 1:
            second.start()
        elif step % 4 == 3:
            second.stop() if step % 8 == 3 else second.kill()
    if second.process is None or second.process.poll() is not None:
        second.start()
    count = "SELECT count(*) AS n FROM samples WHERE metric IN ('kafka_json', 'kafka_rw')"
    def stored():
        for server in (first, second):
            server.flush()
        time.sleep(1)
        return [server.sql(count)[0]["n"] for server in (first, second)]
    last = []
    ft.eventually("all samples are in the tables", lambda: last.append(stored()) or max(last[-1]) >= sent, 240)
    ft.eventually("both processes see the same", lambda: stored() == [sent, sent], 60)
    dropped = first.metric("fletch_storage_copies_dropped_total") + second.metric("fletch_storage_copies_dropped_total")
    print(f"{sent} samples sent, SQL on either: {stored()}, dropped copies {dropped:.0f}")
    letters = dead_letters(chosen, folder)
    for value, headers in letters:
        print(f"dead letter {value[:20]!r}: {headers}")
    for server in (first, second):
        assert server.stop() == 0, server.tail()
    done = subprocess.run([ft.python(), "-c", COUNT, str(folder / "store")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    rows, keys = map(int, done.stdout.split())
    print(f"deltalake: {rows} rows, {keys} distinct keys")
    assert rows == keys == sent and dropped == 0, "lost, double or hidden copies"
    assert len(letters) == 2 and all("__connect.errors.exception.message" in h for _, h in letters), letters


if __name__ == "__main__":
    main()
