"""Fails when Cargo.lock holds two majors of a crate whose types cross our seams (two majors = two incompatible kinds of record batches)."""
import collections
import re
import sys

ONE_MAJOR = ["arrow", "parquet", "datafusion", "object_store", "tonic", "rustls"]

found = collections.defaultdict(set)
with open("Cargo.lock", encoding="utf-8") as lock:
    for name, version in re.findall(r'name = "([^"]+)"\nversion = "([^"]+)"', lock.read()):
        major = version.split(".")[0]
        found[name].add(major if major != "0" else "0." + version.split(".")[1])
bad = {name: sorted(found[name]) for name in ONE_MAJOR if len(found[name]) != 1}
for name, majors in bad.items():
    print(f"Cargo.lock holds {name} in majors {majors}; exactly one is allowed", file=sys.stderr)
sys.exit(1 if bad else 0)
