#   Copyright 2026 - present The PyMC Developers
#
#   Licensed under the Apache License, Version 2.0 (the "License");
#   you may not use this file except in compliance with the License.
#   You may obtain a copy of the License at
#
#       http://www.apache.org/licenses/LICENSE-2.0
#
#   Unless required by applicable law or agreed to in writing, software
#   distributed under the License is distributed on an "AS IS" BASIS,
#   WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
#   See the License for the specific language governing permissions and
#   limitations under the License.
"""Object stores: reading from one that takes 50 ms to answer, against the same files on disk.

``python -m benchmarks.stores`` writes the order-book table with ``pre_shuffle``, gives each file eight
names, and reads all of them in turn from the disk and from S3: rows alone, and batches through a shuffle buffer. The server is a
process of its own on this machine, and answers what :class:`parquet_source` asks, no more: a server
in Python that does more, such as moto, would itself be what is measured.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time

from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy as np

from rich.table import Table

from examples.order_book.events import make_events
from examples.order_book.fit import COLUMNS, peak_memory_mb
from examples.order_book.fold import fold_events
from examples.order_book.output import console
from pymc.variational.streaming import parquet_source, pre_shuffle, shuffle_buffer

ROUNDS = 3
# Names for each file, so that an epoch takes long against its first answers.
COPIES = 8
BATCH_SIZE, BUFFER_SIZE = 4096, 1_000_000


class Handler(BaseHTTPRequestHandler):
    """Answer as S3 does to lists, and to requests for an object or a range of its bytes."""

    protocol_version = "HTTP/1.1"
    folder: Path
    seconds: float

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        time.sleep(self.seconds)
        url = urlsplit(self.path)
        query = parse_qs(url.query)
        bucket, _, key = url.path.lstrip("/").partition("/")
        if "list-type" in query:
            self._list(bucket, query.get("prefix", [""])[0])
            return
        file = self.folder / bucket / key
        if not file.is_file():
            self.send_response(404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        stat = file.stat()
        spans = self.headers.get("Range")
        first, last = map(int, spans[6:].split("-")) if spans else (0, stat.st_size - 1)
        self.send_response(206 if spans else 200)
        self.send_header("Content-Length", str(last + 1 - first))
        self.send_header("Content-Range", f"bytes {first}-{last}/{stat.st_size}")
        self.send_header("Last-Modified", formatdate(stat.st_mtime, usegmt=True))
        self.end_headers()
        if self.command == "GET":
            with file.open("rb") as opened:
                self.wfile.flush()
                self.connection.settimeout(None)
                sent = 0
                while sent < last + 1 - first:
                    n_left = last + 1 - first - sent
                    sent += os.sendfile(
                        self.connection.fileno(), opened.fileno(), first + sent, n_left
                    )

    def _list(self, bucket: str, prefix: str) -> None:
        root = self.folder / bucket
        contents = "".join(
            f"<Contents><Key>{key}</Key><Size>{stat.st_size}</Size><LastModified>"
            f"{time.strftime('%Y-%m-%dT%H:%M:%S.000Z', time.gmtime(stat.st_mtime))}"
            "</LastModified></Contents>"
            for file in sorted(root.rglob("*.parquet"))
            for key, stat in [(file.relative_to(root).as_posix(), file.stat())]
            if key.startswith(prefix)
        )
        body = (
            '<?xml version="1.0"?><ListBucketResult>'
            f"<KeyCount>{contents.count('<Key>')}</KeyCount>"
            f"<IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        ).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve(folder: Path, seconds: float, port) -> None:
    """Serve the folders in a folder as buckets, on a port of the system's choice."""
    handler = type("Serving", (Handler,), {"folder": folder, "seconds": seconds})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    port.put(server.server_port)
    server.serve_forever()


def source_at(place: str, port: int) -> parquet_source:
    """Open the table on disk, or on the server at a port."""
    options = {"columns": COLUMNS, "shuffle_row_groups": True, "seed": 0}
    if not port:
        return parquet_source(place, **options)
    from pyarrow.fs import S3FileSystem

    store = S3FileSystem(
        access_key="not",
        secret_key="secret",
        region="us-east-1",
        endpoint_override=f"http://127.0.0.1:{port}",
    )
    return parquet_source(place, filesystem=store, **options)


def read(blocks: Iterator) -> float:
    """Read all there is, and return the seconds."""
    start = time.perf_counter()
    for _ in blocks:
        pass
    return time.perf_counter() - start


def measure(folder: Path, port: int) -> None:
    """Print the time to open and to read from the store, as a ratio to the disk."""
    places = {"disk": (f"{folder}/bucket/table", 0), "store": ("bucket/table", port)}
    kinds = ("open", "rows", "batches")
    seconds: dict[str, list[list[float]]] = {name: [] for name in places}
    for _ in range(ROUNDS):
        for name, place in places.items():
            start = time.perf_counter()
            source = source_at(*place)
            opened = time.perf_counter() - start
            batches = shuffle_buffer(source, buffer_size=BUFFER_SIZE, batch_size=BATCH_SIZE, seed=0)
            seconds[name].append([opened, read(source.read(0)), read(iter(batches))])
    n_rows = source.n_rows
    report = Table(title=f"{n_rows:,} rows of {len(COLUMNS)} columns from S3, against the disk")
    for name in ("", "disk", "store", "store / disk", "lowest", "highest"):
        report.add_column(name, justify="right")
    disk, store = (np.array(seconds[name]) for name in places)
    for j, kind in enumerate(kinds):
        ratio = np.quantile(disk[:, j] / store[:, j], [0.5, 0, 1])
        middle = np.median(disk[:, j]), np.median(store[:, j])
        figures = [
            f"{s:.3f} s" if kind == "open" else f"{n_rows / s / 1e6:.1f} M/s" for s in middle
        ]
        report.add_row(kind, *figures, *(f"{r:.2f}" for r in ratio))
    console.print(report)


def main() -> None:
    """Write the table, start the server and measure."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.stores", description=__doc__)
    parser.add_argument("--events", type=int, default=8_000_000)
    parser.add_argument(
        "--latency", type=float, default=0.05, help="seconds (default: %(default)s)"
    )
    parser.add_argument("--peak", metavar="PLACE:PORT", help="print the peak memory of an epoch")
    arguments = parser.parse_args()
    if arguments.peak:
        place, _, port = arguments.peak.rpartition(":")
        before = peak_memory_mb()
        read(source_at(place, int(port)).read(0))
        console.print(f"{place}: an epoch takes {peak_memory_mb() - before:.0f} MB")
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_events(folder, n_events=arguments.events, n_files=56, seed=0)
        fold_events(folder)
        pre_shuffle(folder / "table", folder / "bucket/table", seed=0, progressbar=False)
        for file in (folder / "bucket/table").glob("*.parquet"):
            for i in range(1, COPIES):
                os.link(file, file.with_name(f"copy-{i}-{file.name}"))
        ports: multiprocessing.Queue = multiprocessing.Queue()
        server = multiprocessing.Process(
            target=serve, args=(folder, arguments.latency, ports), daemon=True
        )
        server.start()
        port = ports.get()
        measure(folder, port)
        for place in (f"{folder}/bucket/table:0", f"bucket/table:{port}"):
            command = [sys.executable, "-m", "benchmarks.stores", f"--peak={place}"]
            subprocess.run(command, check=True)
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
