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
"""Objects in a store are read as files are: from an S3 server on this machine, which may fail."""

import glob
import itertools
import json
import pickle
import re
import sys
import threading
import time

from pathlib import PurePath

import numpy as np
import pytest

from pymc.streams.blocks import Blocks
from pymc.streams.shuffle.buffer import shuffle_buffer
from pymc.streams.shuffle.disk import pre_shuffle
from pymc.streams.sources import fetch, stores
from pymc.streams.sources.files import MANIFEST
from pymc.streams.sources.parquet import parquet_source
from pymc.variational.streaming import StreamingDataset
from tests.conftest import require

KEYS = {"access_key": "not", "secret_key": "secret"}


class Server:
    """A real S3 server, and what stands before it and spoils answers.

    Attributes
    ----------
    requests : list of tuple
        Method, path and range of each request.
    spoil : list
        What becomes of the next reads: a status; "drop", which ends the connection in the middle;
        or "slow".
    spoiled : str
        Pattern for what may be spoiled.
    together : Barrier or None
        Where reads wait for each other before they are answered.
    """

    def __init__(self):
        from moto.server import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            protocol_version = "HTTP/1.1"

            def log(self, *args):
                pass

        self._moto = DomainDispatcherApplication(create_backend_app)
        self._lock = threading.Lock()
        self._server = make_server("127.0.0.1", 0, self, threaded=True, request_handler=Quiet)
        self.endpoint = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        self.reset()

    def reset(self):
        self.requests, self.spoil, self.spoiled = [], [], "GET .*bytes="
        self.together = None

    def stop(self):
        self._server.shutdown()
        self._thread.join()

    def __call__(self, environ, start_response):
        request = environ["REQUEST_METHOD"], environ["PATH_INFO"], environ.get("HTTP_RANGE", "")
        with self._lock:
            self.requests.append(request)
            is_spoiled = self.spoil and re.search(self.spoiled, " ".join(request))
            fate = self.spoil.pop(0) if is_spoiled else None
        if self.together and request[2]:
            self.together.wait()
        if isinstance(fate, int):
            code = {403: "AccessDenied", 503: "SlowDown"}[fate]
            start_response(f"{fate} {code}", [("Content-Type", "application/xml")])
            return [f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode()]
        answer = b"".join(self._moto(environ, start_response))
        return {"drop": self._dropped, "slow": self._slowly}.get(fate, lambda x: [x])(answer)

    @staticmethod
    def _dropped(answer):
        yield answer[: len(answer) // 2]
        raise ConnectionAbortedError

    @staticmethod
    def _slowly(answer):
        for start in range(0, len(answer), 1 + len(answer) // 5):
            time.sleep(0.01)
            yield answer[start : start + 1 + len(answer) // 5]


@pytest.fixture(scope="module")
def server():
    for name in ("moto", "s3fs", "pyarrow.fs"):
        require(name)
    server = Server()
    yield server
    server.stop()


class Bucket:
    """A bucket of its own, opened through one library or the other.

    Attributes
    ----------
    name : str
        Its name.
    kind : {"arrow", "fsspec"}
        Which library.
    """

    def __init__(self, server, name, kind):
        from pyarrow.fs import AwsStandardS3RetryStrategy, S3FileSystem

        self.name, self.kind = name, kind
        self.options = {
            "key": KEYS["access_key"],
            "secret": KEYS["secret_key"],
            "endpoint_url": server.endpoint,
            "config_kwargs": {"retries": {"max_attempts": 0}},
        }
        self.fs = S3FileSystem(
            **KEYS,
            endpoint_override=server.endpoint,
            region="us-east-1",
            allow_bucket_creation=True,
            retry_strategy=AwsStandardS3RetryStrategy(max_attempts=1),
        )

    def write(self, path, columns, **kwargs):
        pa, pq = require("pyarrow"), require("pyarrow.parquet")
        pq.write_table(pa.table(columns), f"{self.name}/{path}", filesystem=self.fs, **kwargs)

    def put(self, path, data=b""):
        with self.fs.open_output_stream(f"{self.name}/{path}") as file:
            file.write(data)

    def delete(self, path):
        self.fs.delete_file(f"{self.name}/{path}")

    def names(self, folder):
        from pyarrow.fs import FileSelector

        infos = self.fs.get_file_info(FileSelector(f"{self.name}/{folder}"))
        return sorted(info.base_name for info in infos)

    def source(self, path, **kwargs):
        paths = [path] if isinstance(path, str) else path
        if self.kind == "fsspec":
            urls = [f"s3://{self.name}/{path}" for path in paths]
            return parquet_source(urls, storage_options=self.options, **kwargs)
        return parquet_source([f"{self.name}/{p}" for p in paths], filesystem=self.fs, **kwargs)


numbers = itertools.count()


@pytest.fixture(params=["arrow", "fsspec"])
def bucket(server, request, monkeypatch):
    monkeypatch.setattr(stores, "PAUSE", 1e-3)
    # The libraries' own attempts, with pauses of seconds, are left out here.
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    bucket = Bucket(server, f"bucket-{next(numbers)}", request.param)
    bucket.fs.create_dir(bucket.name)
    server.reset()
    yield bucket
    server.reset()


@pytest.fixture
def events(bucket, server):
    """Three objects of 25 rows, in row groups of 10: rows are numbered."""
    for i in range(3):
        bucket.write(f"events/part-{i}.parquet", part(i), row_group_size=10)
    server.reset()
    return bucket


def part(i, n=25):
    row = np.arange(25 * i, 25 * i + n)
    return {"row": row, "x": np.where(row % 7 == 0, np.nan, row / 2)}


@pytest.fixture
def folder(tmp_path):
    """The same on disk."""
    pa, pq = require("pyarrow"), require("pyarrow.parquet")
    for i in range(3):
        pq.write_table(pa.table(part(i)), tmp_path / f"part-{i}.parquet", row_group_size=10)
    return tmp_path


def rows_of(blocks, column="row"):
    return np.concatenate([block[column] for block in blocks]).tolist()


@pytest.mark.parametrize(
    "kwargs",
    [
        {"columns": ["row"]},
        {"missing": "drop", "shuffle_row_groups": True, "seed": 3},
    ],
)
@pytest.mark.parametrize("slice_rows", [4, 1000])
def test_the_rows_are_those_of_the_same_files_on_disk(
    events, folder, kwargs, slice_rows, monkeypatch
):
    monkeypatch.setattr("pymc.streams.sources.decoding.SLICE_ROWS", slice_rows)
    monkeypatch.setattr("pymc.streams.sources.decoding.OPEN_ROW_GROUPS", 3)
    stored, local = events.source("events/", **kwargs), parquet_source(folder, **kwargs)
    assert stored.stream_identity == local.stream_identity
    for start in (0, 30):
        assert rows_of(stored.read(1, start)) == rows_of(local.read(1, start))
    assert rows_of(stored.unshuffled(5)) == rows_of(local.unshuffled(5))
    assert rows_of(stored.by_row_group()) == rows_of(local.by_row_group())
    assert stored.first_rows(4, 3)["row"].tolist() == local.first_rows(4, 3)["row"].tolist()
    assert stored.row_group_ranges() == local.row_group_ranges()


def test_paths(events):
    events.write("events/below/part-9.parquet", part(3, n=1))
    for hidden in ("events/_temporary/0.parquet", "events/.hidden.parquet"):
        events.write(hidden, {"row": [-1], "x": [0.0]})
    events.put("events/_SUCCESS")
    assert events.source("events").n_rows == events.source("events/").n_rows == 76
    assert events.source("events/part-0.parquet").n_rows == 25
    assert events.source("events/part-*.parquet").n_rows == 75
    assert events.source("events/**/*.parquet").n_rows == 77  # a pattern sees _temporary
    columns = {"columns": ["row"]}
    listed = events.source(["events/part-[12].parquet", "events/part-0.parquet"], **columns)
    assert rows_of(listed) == [*range(25, 75), *range(25)]
    assert [str(file) for file in listed.files] == [
        f"s3://{events.name}/events/part-{i}.parquet" for i in (1, 2, 0)
    ]


@pytest.mark.parametrize(
    ("path", "error", "match"),
    [
        ("absent", FileNotFoundError, "no Parquet object or folder at s3://bucket-[0-9]+/absent"),
        ("events/absent-*", FileNotFoundError, "no object matches s3://"),
        ("texts", FileNotFoundError, r"no \*.parquet object in the folder s3://"),
        ("texts/a.txt", ValueError, "a.txt: not a readable Parquet file"),
        ("texts/empty.txt", ValueError, "empty.txt: not a readable Parquet file"),
        (["events", "events/part-1.parquet"], ValueError, "listed twice.*part-1.parquet"),
    ],
)
def test_bad_paths(events, path, error, match):
    events.put("texts/a.txt", b"no table, but long enough to be one")
    events.put("texts/empty.txt")
    with pytest.raises(error, match=match):
        events.source(path)


@pytest.mark.parametrize(
    "pattern",
    ["*", "*.parquet", "a/*", "**", "a/**", "**/*.parquet", "[ab]/?.parquet", "*/.*", "c"],
)
def test_patterns_match_as_those_of_glob(tmp_path, pattern):
    names = ["c", "a/1.parquet", "b/2.parquet", "b/c/3.parquet", ".h/4.parquet", "a/.5.parquet"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    found = glob.glob(pattern, root_dir=tmp_path, recursive=True)
    expected = {name for name in found if (tmp_path / name).is_file()}
    parts = PurePath(pattern).parts
    assert {name for name in names if stores._matches(PurePath(name).parts, parts)} == expected


def test_what_does_not_go_together(tmp_path):
    pytest.importorskip("fsspec")
    for path, kwargs, match in [
        (tmp_path, {"storage_options": {}}, "storage_options= is for a URL"),
        ("memory://a", {"filesystem": object()}, "filesystem= is for plain paths"),
        (["memory://a", str(tmp_path)], {}, "in one place at a time"),
    ]:
        with pytest.raises(ValueError, match=match):
            parquet_source(path, **kwargs)
    with pytest.raises(TypeError, match=r"filesystem must be .*S3FileSystem.*got int"):
        parquet_source("a", filesystem=5)


@pytest.mark.parametrize(
    ("url", "hidden", "error", "match"),
    [
        ("az://container/x", "adlfs", ImportError, "az://.* needs adlfs.*pip install adlfs"),
        ("memory://x", "fsspec.core", ImportError, "memory://x needs fsspec.*pip install fsspec"),
        ("nope://x", None, ValueError, "nope://x: .*nope"),
    ],
)
def test_urls_that_nothing_here_opens(url, hidden, error, match, monkeypatch):
    if hidden:
        monkeypatch.setitem(sys.modules, hidden, None)
    with pytest.raises(error, match=match):
        parquet_source(url)


def test_a_url_of_this_machine_is_a_path(folder):
    assert parquet_source(f"file://{folder}").files == parquet_source(folder).files


def test_only_the_columns_are_fetched(bucket, server):
    n = 50_000
    columns = {name: np.random.default_rng(1).normal(size=n) for name in "abcde"}
    bucket.write("a.parquet", columns, row_group_size=n, use_dictionary=False)
    source = bucket.source("a.parquet", columns=["a", "c"])
    server.reset()
    for name in "ac":
        np.testing.assert_array_equal(rows_of(source.read(0), name), columns[name])
    first_epoch = [spans for method, _, spans in server.requests[: len(server.requests) // 2]]
    fetched = [list(map(int, spans[6:].split("-"))) for spans in first_epoch if spans]
    assert len(fetched) == 2
    assert 2 * 8 * n < sum(last + 1 - first for first, last in fetched) < 2.2 * 8 * n


def test_columns_that_lie_together_are_one_request(events, server):
    source = events.source("events/part-0.parquet", missing="drop")
    server.reset()
    list(source)
    assert sum(bool(spans) for *_, spans in server.requests) == 3  # row groups


def test_several_requests_are_under_way(bucket, server):
    for i in range(8):
        bucket.write(f"events/{i}.parquet", {"row": np.arange(4) + 4 * i}, row_group_size=1)
    server.together = threading.Barrier(4, timeout=20)
    source = bucket.source("events")  # eight footers
    assert rows_of(source) == list(range(32))


@pytest.mark.parametrize("limit", ["row groups", "bytes"])
def test_no_more_is_fetched_than_may_be_held(bucket, server, monkeypatch, limit):
    bucket.write("a.parquet", {"row": np.arange(40_000)}, row_group_size=1000)
    if limit == "row groups":
        monkeypatch.setattr(fetch, "FIRST_AHEAD", 3)
    monkeypatch.setattr(fetch, "AHEAD" if limit == "row groups" else "AHEAD_BYTES", 3)
    source = bucket.source("a.parquet")
    server.reset()
    for n_given, _ in enumerate(source, 1):
        n_fetched = sum(bool(spans) for *_, spans in server.requests)
        assert n_fetched <= n_given + (4 if limit == "row groups" else 1)
    assert n_given == n_fetched == 40


def test_a_few_rows_are_a_few_requests(bucket, server):
    bucket.write("a.parquet", {"row": np.arange(1000)}, row_group_size=10)
    blocks = iter(bucket.source("a.parquet"))
    server.reset()
    next(blocks)
    blocks.close()
    assert sum(bool(spans) for *_, spans in server.requests) <= 1 + fetch.FIRST_AHEAD


def test_a_range_of_rows_is_its_row_groups_and_no_list(bucket, server):
    bucket.write("events/a.parquet", {"row": np.arange(1000)}, row_group_size=10)
    blocks = Blocks(bucket.source("events"))
    server.reset()
    assert rows_of(blocks.between(205, 231)) == list(range(205, 231))
    assert sum(bool(spans) for *_, spans in server.requests) == 4  # of 20, 21, 22 and 23
    assert not [path for _, path, _ in server.requests if not path.endswith("a.parquet")]


def test_large_row_groups_go_by_a_temporary_file(bucket, server, monkeypatch):
    monkeypatch.setattr(fetch, "MEMORY_BYTES", 1000)
    monkeypatch.setattr(fetch, "RANGE_BYTES", 10_000)
    columns = {name: np.random.default_rng(1).normal(size=20_000) for name in "ab"}
    bucket.write("a.parquet", columns, row_group_size=9000)
    source = bucket.source("a.parquet")
    server.reset()
    blocks = list(source)
    assert sum(bool(spans) for *_, spans in server.requests) > 30
    for name in "ab":
        np.testing.assert_array_equal(rows_of(blocks, name), columns[name])


def test_lists_and_names_with_dots_are_fetched(bucket, monkeypatch):
    pa = require("pyarrow")
    values = pa.array(np.arange(6.0)).cast(pa.float64())
    columns = {
        "list": pa.FixedSizeListArray.from_arrays(values, 2),
        "a.b": [1, 2, 3],
        "other": [1, 2, 3],
    }
    bucket.write("a.parquet", columns)
    source = bucket.source("a.parquet", columns=["a.b"])
    file, stamp = source.files[0], source._groups.stamps[0]
    row_group = fetch.footer_of(file, stamp).row_group(0)
    monkeypatch.setattr(fetch, "GAP_BYTES", -1)
    for name, n_columns in (("list", 1), ("a.b", 1), ("none", 0)):
        assert len(fetch.extents_of(row_group, fetch.Piece(file, stamp, 0, [name]))) == n_columns


@pytest.mark.parametrize("fate", [503, "drop", "slow"])
@pytest.mark.parametrize("shuffled", [False, True])
def test_what_passes_is_tried_again(events, server, fate, shuffled):
    source = events.source("events", columns=["row"], shuffle_row_groups=shuffled, seed=1)
    expected = rows_of(source.read(0))
    server.spoil = [fate, fate]
    assert rows_of(source.read(0)) == expected
    assert not server.spoil


def test_what_passes_is_tried_again_at_construction(events, server):
    server.spoil, server.spoiled = [503, 503, 503], "GET|HEAD"
    assert events.source("events", columns=["row"]).n_rows == 75
    assert not server.spoil


def test_a_store_that_stays_away_is_given_up(events, server, monkeypatch):
    monkeypatch.setattr(stores, "TRIES", 2)
    source = events.source("events", columns=["row"])
    server.spoil = [503] * 1000
    server.spoiled = "GET .*part-1.parquet bytes="
    blocks = iter(source)
    assert next(blocks)["row"][0] == 0
    with pytest.raises(OSError, match=r"part-1.parquet, row group 0: .*no answer.* in 2 attempts"):
        list(blocks)
    assert "pymc-store" not in {thread.name for thread in threading.enumerate()}


def test_what_does_not_pass_is_an_error_at_once(events, server):
    source = events.source("events", columns=["row"])
    server.reset()
    server.spoil, server.spoiled = [403] * 1000, "GET .*part-1.parquet bytes="
    with pytest.raises(OSError, match=r"part-1.parquet, row group 0: .*refused.*credentials"):
        list(source)
    refused = [path for *_, path, spans in server.requests if spans and "part-1" in path]
    assert len(refused) <= 3  # row groups


@pytest.mark.parametrize("change", ["size", "deleted"])
def test_an_object_that_changes_is_named(events, change):
    source = events.source("events", columns=["row"])
    if change == "size":
        events.write("events/part-1.parquet", part(1, n=30))
        with pytest.raises(RuntimeError, match=r"s3://.*part-1\.parquet: changed since"):
            list(source)
    else:
        blocks = source.read(0)
        events.delete("events/part-1.parquet")
        with pytest.raises(OSError, match=r"s3://.*part-1\.parquet, row group 0: .*not there"):
            list(blocks)


@pytest.mark.parametrize("bucket", ["fsspec"], indirect=True)
def test_an_object_of_the_same_size_is_told_by_its_etag(events):
    kwargs = {"compression": "none", "use_dictionary": False, "write_statistics": False}
    events.write("events/part-1.parquet", {"row": [1, 2]}, **kwargs)
    source = events.source("events", columns=["row"])
    events.write("events/part-1.parquet", {"row": [2, 1]}, **kwargs)
    again = events.source("events", columns=["row"])
    assert [size for size, _ in again._groups.stamps] == [size for size, _ in source._groups.stamps]
    with pytest.raises(RuntimeError, match=r"s3://.*part-1\.parquet: changed since"):
        list(source)


def test_an_object_that_is_cut_while_it_is_read_is_named(events, monkeypatch):
    """Its bytes are asked for, and are not there."""
    monkeypatch.setattr(stores, "TRIES", 1)
    source = events.source("events", columns=["row"])
    events.put("events/part-1.parquet", b"short")
    with pytest.raises(RuntimeError, match=r"s3://.*part-1\.parquet: changed since"):
        list(source)


@pytest.mark.parametrize("change", ["added", "removed"])
def test_an_object_that_is_added_or_removed_is_named(events, change):
    source = events.source("events", columns=["row"])
    if change == "added":
        events.write("events/part-9.parquet", part(9))
    else:
        events.delete("events/part-1.parquet")
    with pytest.raises(RuntimeError, match=r"s3://.*part-[19]\.parquet: added or removed since"):
        list(source)


def test_a_stream_goes_on_from_the_store_or_from_disk(events, folder):
    def stream(source):
        batches = shuffle_buffer(source, buffer_size=30, batch_size=8, seed=2)
        return StreamingDataset(batches, batch_size=8, check_order="ignore")

    def batches(ds, n):
        return np.concatenate(
            [(ds.advance(), ds.as_tensor().get_value().copy())[1] for _ in range(n)]
        )

    kwargs = {"columns": ["row"], "shuffle_row_groups": True, "seed": 3}
    whole = stream(parquet_source(folder, **kwargs))
    first, second, third = batches(whole, 7), batches(whole, 7), batches(whole, 7)
    stored = stream(events.source("events", **kwargs))
    np.testing.assert_array_equal(batches(stored, 7), first)
    again = stream(events.source("events", **kwargs))
    again.load_state_dict(json.loads(json.dumps(stored.state_dict())))
    np.testing.assert_array_equal(batches(again, 7), second)
    local = stream(parquet_source(folder, **kwargs))
    local.load_state_dict(again.state_dict())
    np.testing.assert_array_equal(batches(local, 7), third)


def test_a_source_is_pickled(events):
    source = events.source("events", columns=["row"])
    again = pickle.loads(pickle.dumps(source))
    assert rows_of(again) == rows_of(source)
    assert again.stream_identity == source.stream_identity


def test_threads_end_with_the_blocks(bucket, server):
    bucket.write("a.parquet", {"row": np.arange(1000)}, row_group_size=10)
    blocks = iter(bucket.source("a.parquet"))
    next(blocks)
    threads = [t for t in threading.enumerate() if t.name.startswith("pymc-store")]
    assert threads
    blocks.close()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()


def shuffled_from(bucket, source, out, **kwargs):
    kwargs = {"seed": 1, "progressbar": False, "storage_options": bucket.options} | kwargs
    return pre_shuffle(source, f"s3://{bucket.name}/{out}", **kwargs)


@pytest.fixture
def staged(tmp_path, monkeypatch):
    """The folder for temporary files."""
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    return tmp_path / "temporary"


@pytest.mark.parametrize("bucket", ["fsspec"], indirect=True)
def test_a_shuffle_from_a_store_to_the_store(events, server, staged, monkeypatch):
    monkeypatch.setattr("pymc.streams.shuffle.disk.ROW_GROUPS_IN_FILE", 1)
    monkeypatch.setattr("pymc.streams.shuffle.disk.ROW_GROUP_ROWS", 30)
    events.write("events/part-3.parquet", {"row": [75], "x": [1.0], "key": ["a"]})
    for i in range(3):
        columns = part(i) | {"key": ["b"] * 25}
        events.write(f"events/part-{i}.parquet", columns, row_group_size=10)
    url = f"s3://{events.name}/events"
    source = shuffled_from(events, url, "out/below")
    assert events.names("out/below") == [MANIFEST, *(f"part-0000{i}.parquet" for i in range(3))]
    assert source.in_random_order
    blocks = parquet_source(
        f"s3://{events.name}/out/below", storage_options=events.options, columns=["row"]
    )
    assert blocks.in_random_order
    assert sorted(rows_of(blocks)) == list(range(76)) != rows_of(blocks)
    assert not list(staged.iterdir())
    server.reset()
    again = shuffled_from(events, url, "out/below")
    assert again.stream_identity == source.stream_identity
    assert "PUT" not in {method for method, *_ in server.requests}
    with pytest.raises(FileExistsError, match="was shuffled with the seed 1, not 2"):
        shuffled_from(events, url, "out/below", seed=2)
    with pytest.raises(ValueError, match=r"destination s3://.*/events/out lies in the source"):
        shuffled_from(events, url, "events/out")


@pytest.mark.parametrize("bucket", ["fsspec"], indirect=True)
@pytest.mark.parametrize("fails", ["part-00001", MANIFEST])
def test_a_shuffle_that_stops_in_the_upload_is_never_seen(
    events, server, staged, fails, folder, monkeypatch
):
    monkeypatch.setattr("pymc.streams.shuffle.disk.ROW_GROUPS_IN_FILE", 1)
    monkeypatch.setattr("pymc.streams.shuffle.disk.ROW_GROUP_ROWS", 30)
    server.spoil, server.spoiled = [403] * 100, f"PUT .*out/{fails}"
    with pytest.raises(OSError, match=f"out/{fails}.*refused"):
        shuffled_from(events, folder, "out")
    server.reset()
    assert "_incomplete" in events.names("out")
    assert MANIFEST not in events.names("out")
    for path in ("out", "out/*.parquet"):
        with pytest.raises(ValueError, match="out/_incomplete: pre_shuffle has not uploaded all"):
            events.source(path)
    events.put("out/part-99999.parquet", b"of an earlier one, with more files")
    source = shuffled_from(events, folder, "out")
    assert source.n_rows == 75
    assert events.names("out") == [MANIFEST, *(f"part-0000{i}.parquet" for i in range(3))]


@pytest.mark.parametrize("bucket", ["fsspec"], indirect=True)
def test_a_shuffle_does_not_touch_what_is_not_its_own(events, server, staged, folder):
    with pytest.raises(FileExistsError, match="events exists, and pre_shuffle did not write it"):
        shuffled_from(events, folder, "events")
    events.put("events/_incomplete")
    events.put("events/notes.txt")
    with pytest.raises(FileExistsError, match=r"notes\.txt: pre_shuffle did not write it"):
        shuffled_from(events, folder, "events")
    events.put("others/_incomplete")
    events.put("others/mine/part-0.parquet")
    with pytest.raises(FileExistsError, match=r"mine/part-0.*: pre_shuffle did not write it"):
        shuffled_from(events, folder, "others")
    with pytest.raises(ValueError, match="storage_options= is for URLs"):
        pre_shuffle(folder, folder / "out", storage_options={})


def test_a_shuffle_of_a_source_in_a_store_to_disk(events, tmp_path):
    source = events.source("events", columns=["row"])
    shuffled = pre_shuffle(source, tmp_path / "out", seed=1, progressbar=False)
    assert sorted(rows_of(shuffled)) == list(range(75))
    again = pre_shuffle(events.source("events", columns=["row"]), tmp_path / "out", seed=1)
    assert again.stream_identity == shuffled.stream_identity


def test_memory_of_fsspec(folder, staged):
    fsspec = require("fsspec")
    fs = fsspec.filesystem("memory")
    fs.put(str(folder), "/stores", recursive=True)
    source = parquet_source("memory://stores/*.parquet", columns=["row"])
    assert rows_of(source) == list(range(75))
    assert str(source.files[0]) == "memory://stores/part-0.parquet"
    plain = parquet_source("/stores/", filesystem=fs, columns=["row"])
    assert plain.stream_identity == source.stream_identity
    pre_shuffle(folder, "memory://stores/out", seed=1, progressbar=False)
    assert parquet_source("memory://stores/out", columns=["row"]).n_rows == 75
    fs.rm("/stores", recursive=True)


def test_names_of_folders_are_columns(bucket):
    for month in (3, 11):
        bucket.write(f"events/month={month}/0.parquet", {"row": [month]})
    source = bucket.source("events")
    assert rows_of(source, "month") == rows_of(source, "row") == [11, 3]


def test_filters_and_keys(events):
    pc = require("pyarrow.compute")
    for i in range(3):
        events.write(f"events/part-{i}.parquet", part(i) | {"key": ["a", "b", "c", "d", "e"] * 5})
    source = events.source(
        "events", columns=["row", "key"], filters=pc.field("x") > 10, missing="drop"
    )
    expected = [row for row in range(21, 75) if row % 7]
    assert rows_of(source) == expected
    assert rows_of(source, "key") == [row % 5 for row in expected]


@pytest.mark.parametrize(
    ("log", "match"),
    [
        ("_delta_log/0.json", r"s3://.*/events is a Delta table.*DeltaTable\(\"s3://.*/events\"\)"),
        ("metadata/0.metadata.json", "s3://.*/events is an Iceberg table"),
    ],
)
def test_the_files_of_a_table_with_a_log_are_refused(events, log, match):
    events.put(f"events/{log}")
    with pytest.raises(ValueError, match=match):
        events.source("events")


def test_an_option_that_the_file_system_does_not_take():
    require("s3fs")
    with pytest.raises(ValueError, match=r"s3://events/rows.*Check storage_options= .*not asked"):
        parquet_source("s3://events/rows", storage_options={"endpoint": "http://localhost"})
