"""The dependency policy of deny.toml, checked against what Cargo.lock resolves to: licences, banned crates, sources, one major of shared crates.

`cargo deny check bans licenses sources` reads the same file; this needs nothing but Python and cargo.
"""

import collections
import json
import re
import subprocess
import sys
import tomllib

# Two majors of one of these are two incompatible kinds of record batches, streams or sockets in one process.
ONE_MAJOR = ["arrow", "parquet", "datafusion", "object_store", "tonic", "rustls"]


def allowed(expression, licences):
    """Whether an SPDX expression can be satisfied with allowed licences only."""
    words = re.findall(r"\(|\)|[^\s()/]+|/", expression.replace("/", " OR "))
    python, i = [], 0
    while i < len(words):
        word = words[i]
        if word in "()":
            python.append(word)
        elif word in ("AND", "OR"):
            python.append(word.lower())
        else:
            name = word
            if i + 2 < len(words) and words[i + 1] == "WITH":
                name, i = f"{word} WITH {words[i + 2]}", i + 2
            python.append(str(name in licences))
        i += 1
    return eval(" ".join(python))  # only True, False, and, or and parentheses are left


def main():
    with open("deny.toml", "rb") as file:
        policy = tomllib.load(file)
    packages = json.loads(subprocess.check_output(["cargo", "metadata", "--locked", "--format-version", "1"]))["packages"]
    licences, banned = set(policy["licenses"]["allow"]), {ban["crate"]: ban["reason"] for ban in policy["bans"]["deny"]}
    problems, majors = [], collections.defaultdict(set)
    for package in packages:
        name, version, source = package["name"], package["version"], package["source"]
        if source is None:
            continue
        if not source.startswith("registry+"):
            problems.append(f"{name} {version} comes from {source.split('+')[0]}, not from a registry")
        if name in banned:
            problems.append(f"{name} {version} is banned: {banned[name]}")
        if not package["license"] and not package["license_file"]:
            problems.append(f"{name} {version} has no licence")
        elif package["license"] and not allowed(package["license"], licences):
            problems.append(f"{name} {version} is under {package['license']}, which deny.toml does not allow")
        majors[name].add(version.split(".")[0] if version[0] != "0" else ".".join(version.split(".")[:2]))
    problems += [f"{name} is resolved in majors {sorted(majors[name])}, exactly one is allowed" for name in ONE_MAJOR if len(majors[name]) != 1]
    for problem in problems:
        print(problem, file=sys.stderr)
    print(f"dependency policy: {len(packages)} packages, {len(problems)} problems")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
