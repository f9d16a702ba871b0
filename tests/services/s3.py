#!/usr/bin/env python3
"""A small S3 server for the tests: one process, objects in memory, writes with `If-None-Match: *` and `If-Match` are atomic.

    s3.py PORT [--faults SHARE] [--seed N]

Any bucket exists, signatures are not checked, loopback only. What object stores do on bad days can be asked for, for a share of all requests
(seeded), and for stretches of time:

    500       answered with an error, nothing was done          slow      done after up to a second
    503       SlowDown, nothing was done                        reset     done, and the connection is cut before the answer
    PUT /-/outage?seconds=N     from now on every request is answered with 503 for so long
    GET /-/counts               requests and faults so far, as JSON

Speaks: GET (ranges), HEAD, PUT, DELETE, copy, ListObjectsV2, multi-object delete, multipart uploads.
"""

import argparse
import collections
import datetime
import hashlib
import http.server
import json
import random
import socketserver
import threading
import time
import urllib.parse
import uuid
import xml.etree.ElementTree as xml
from email.utils import formatdate
from xml.sax.saxutils import escape

LIST_MAX = 1000
FAULTS = ("500", "503", "slow", "reset")


class Store:
    """Objects of all buckets: "bucket/key" → (bytes, etag, unix time)."""

    def __init__(self, share=0.0, seed=1):
        self.lock, self.objects, self.uploads = threading.Lock(), {}, {}
        self.share, self.random = share, random.Random(seed)
        self.counts, self.out_until = collections.Counter(), 0.0

    def fault(self):
        with self.lock:
            self.counts["requests"] += 1
            if time.monotonic() < self.out_until:
                self.counts["outage"] += 1
                return "503"
            if self.random.random() >= self.share:
                return None
            kind = self.random.choice(FAULTS)
            self.counts[kind] += 1
            return kind

    def put(self, key, body, none_match, match):
        """The etag, or None when a condition does not hold."""
        with self.lock:
            old = self.objects.get(key)
            if (none_match == "*" and old) or (match and (not old or old[1] != match)):
                return None
            etag = f'"{hashlib.md5(body).hexdigest()}"'
            self.objects[key] = (body, etag, time.time())
            return etag

    def list(self, prefix, delimiter, after):
        """[(key, object or None for a common prefix)] behind `after`, ascending, and whether there is more."""
        out = []
        with self.lock:
            keys = sorted(k for k in self.objects if k.startswith(prefix) and k > after)
            for key in keys:
                end = key.find(delimiter, len(prefix)) if delimiter else -1
                entry = (key, self.objects[key]) if end < 0 else (key[: end + 1], None)
                if out and out[-1][0] == entry[0]:
                    continue
                if entry[1] is None and after.startswith(entry[0]):
                    continue
                if len(out) == LIST_MAX:
                    return out, True
                out.append(entry)
        return out, False


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store = None

    def handle_one(self):
        url = urllib.parse.urlsplit(self.path)
        self.query = dict(urllib.parse.parse_qsl(url.query, keep_blank_values=True))
        self.key = urllib.parse.unquote(url.path).lstrip("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.key.startswith("-/"):
            return self.control()
        fault = self.store.fault()
        if fault == "500":
            return self.error(500, "InternalError")
        if fault == "503":
            return self.error(503, "SlowDown")
        if fault == "slow":
            time.sleep(self.store.random.uniform(0.05, 1.0))
        self.mute = fault == "reset"
        getattr(self, f"on_{self.command.lower()}")(body)
        if self.mute:
            self.close_connection = True
            self.connection.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = handle_one

    def control(self):
        self.mute = False
        if self.key == "-/outage":
            with self.store.lock:
                self.store.out_until = time.monotonic() + float(self.query["seconds"])
        self.answer(200, json.dumps(self.store.counts).encode())

    def answer(self, code, body=b"", headers=(), length=None):
        if self.mute:
            return
        self.send_response(code)
        for name, value in headers:
            self.send_header(name, value)
        if code != 204:
            self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def error(self, code, name):
        self.mute = getattr(self, "mute", False) and code < 500
        self.answer(code, f"<Error><Code>{name}</Code><Message>{name}</Message></Error>".encode(), [("Content-Type", "application/xml")])

    def xml(self, text):
        self.answer(200, ('<?xml version="1.0" encoding="UTF-8"?>' + text).encode(), [("Content-Type", "application/xml")])

    def on_get(self, _body):
        if "list-type" in self.query:
            return self.on_list()
        found = self.store.objects.get(self.key)
        if not found:
            return self.error(404, "NoSuchKey")
        data, etag, at = found
        headers = [("ETag", etag), ("Last-Modified", formatdate(at, usegmt=True)), ("Accept-Ranges", "bytes")]
        if (wanted := self.headers.get("If-Match")) and wanted != etag:
            return self.error(412, "PreconditionFailed")
        asked = self.headers.get("Range")
        if not asked or self.command == "HEAD":
            return self.answer(200, b"" if self.command == "HEAD" else data, headers, len(data))
        first, _, last = asked.removeprefix("bytes=").partition("-")
        start = int(first) if first else max(0, len(data) - int(last))
        end = min(int(last) + 1, len(data)) if first and last else len(data)
        if start >= len(data):
            return self.error(416, "InvalidRange")
        self.answer(206, data[start:end], headers + [("Content-Range", f"bytes {start}-{end - 1}/{len(data)}")])

    on_head = on_get

    def on_list(self):
        bucket, prefix = self.key.rstrip("/") + "/", self.query.get("prefix", "")
        token = self.query.get("continuation-token") or self.query.get("start-after")
        found, more = self.store.list(bucket + prefix, self.query.get("delimiter", ""), bucket + token if token else "")
        out = [f"<ListBucketResult><Name>{escape(bucket)}</Name><Prefix>{escape(prefix)}</Prefix><IsTruncated>{str(more).lower()}</IsTruncated>"]
        for key, entry in found:
            name = escape(key.removeprefix(bucket))
            if entry is None:
                out.append(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>")
                continue
            data, etag, at = entry
            stamp = datetime.datetime.fromtimestamp(at, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
            out.append(f"<Contents><Key>{name}</Key><LastModified>{stamp}</LastModified><ETag>{escape(etag)}</ETag><Size>{len(data)}</Size></Contents>")
        if more:
            out.append(f"<NextContinuationToken>{escape(found[-1][0].removeprefix(bucket))}</NextContinuationToken>")
        self.xml("".join(out) + "</ListBucketResult>")

    def on_put(self, body):
        if "uploadId" in self.query:
            with self.store.lock:
                self.store.uploads.setdefault(self.query["uploadId"], {})[int(self.query["partNumber"])] = body
            return self.answer(200, headers=[("ETag", f'"{hashlib.md5(body).hexdigest()}"')])
        if source := self.headers.get("x-amz-copy-source"):
            found = self.store.objects.get(urllib.parse.unquote(source).lstrip("/"))
            if not found:
                return self.error(404, "NoSuchKey")
            etag = self.store.put(self.key, found[0], None, None)
            return self.xml(f"<CopyObjectResult><ETag>{escape(etag)}</ETag></CopyObjectResult>")
        etag = self.store.put(self.key, body, self.headers.get("If-None-Match"), self.headers.get("If-Match"))
        if etag is None:
            return self.error(412, "PreconditionFailed")
        self.answer(200, headers=[("ETag", etag)])

    def on_post(self, body):
        if "uploads" in self.query:
            upload = uuid.uuid4().hex
            with self.store.lock:
                self.store.uploads[upload] = {}
            return self.xml(f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId></InitiateMultipartUploadResult>")
        if "uploadId" in self.query:
            with self.store.lock:
                parts = self.store.uploads.get(self.query["uploadId"])
            if parts is None:
                return self.error(404, "NoSuchUpload")
            etag = self.store.put(self.key, b"".join(parts[n] for n in sorted(parts)), self.headers.get("If-None-Match"), None)
            if etag is None:
                return self.error(412, "PreconditionFailed")
            return self.xml(f"<CompleteMultipartUploadResult><ETag>{escape(etag)}</ETag></CompleteMultipartUploadResult>")
        if "delete" in self.query:
            bucket = self.key.rstrip("/") + "/"
            keys = [node.text for node in xml.fromstring(body).iter() if node.tag.endswith("Key")]
            with self.store.lock:
                for key in keys:
                    self.store.objects.pop(bucket + key, None)
            return self.xml("<DeleteResult>" + "".join(f"<Deleted><Key>{escape(k)}</Key></Deleted>" for k in keys) + "</DeleteResult>")
        self.error(400, "InvalidRequest")

    def on_delete(self, _body):
        with self.store.lock:
            self.store.objects.pop(self.key, None)
            self.store.uploads.pop(self.query.get("uploadId"), None)
        self.answer(204)

    def log_message(self, *_):
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_):
        pass  # a client that went away


def serve(port, share=0.0, seed=1):
    """A server that is not running yet; its `store` can be looked at."""
    store = Store(share, seed)
    server = Server(("127.0.0.1", port), type("Bound", (Handler,), {"store": store}))
    server.store = store
    return server


def main():
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("port", type=int)
    arguments.add_argument("--faults", type=float, default=0.0, help="share of requests that go wrong, 0 to 1")
    arguments.add_argument("--seed", type=int, default=1)
    chosen = arguments.parse_args()
    serve(chosen.port, chosen.faults, chosen.seed).serve_forever()


if __name__ == "__main__":
    main()
