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
"""A full shuffle on disk: the rows of a source in a uniformly random order, in bounded memory."""

import errno
import json
import os
import re
import shutil

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import asdict
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from rich.progress import Progress

from pymc.streams.blocks import bytes_of
from pymc.streams.prefetch import Prefetch
from pymc.streams.shuffle.records import Records
from pymc.streams.shuffle.upload import is_uploaded, staging_folder, upload
from pymc.streams.sources.decoding import READ_ROWS
from pymc.streams.sources.files import MANIFEST, Disk
from pymc.streams.sources.parquet import parquet_source
from pymc.streams.sources.stores import INCOMPLETE, files_at, is_url, is_within
from pymc.streams.sources.tables import (
    BlockTables,
    Contents,
    FileTables,
    numeric_columns,
    tables_of,
)
from pymc.streams.standardize import scales_of

__all__ = ["pre_shuffle"]

# The layout of the result: what `python -m benchmarks.layout` found to be read fastest.
ROW_GROUP_ROWS = READ_ROWS
ROW_GROUPS_IN_FILE = 64
# Columns of row groups in a file: their metadata are in memory until it is closed.
COLUMNS_IN_FILE = 2**13
COMPRESSION = "lz4"
# Rows that tell which columns hold few values, and get a dictionary.
SAMPLE_ROWS = 8192
# Rows that are scattered at a time, and rows in a bucket, where memory allows as many: few columns
# of these fit into a CPU's cache, where rows are moved fastest, and a bucket gets enough at once.
PIECE_ROWS = 262_144
# Each bucket is an open file in the first pass, and macOS allows 256 in all. One that turns out
# too large for memory is split again.
MAX_BUCKETS = 128
# Parts of the rows that the memory limit stands for: held at a time are parts in their old and in
# their new order, and what readers, writers and the allocator keep (`python -m benchmarks.layout`).
PARTS_IN_LIMIT = 20
# Tables of up to READ_ROWS rows that a thread keeps ready.
TABLES_AHEAD = 4
# Arrow's strings have offsets of 32 bits, and a bucket may be twice as large as a part.
MAX_PART_BYTES = 2**29
# A limit that leaves room for parts of some rows each.
MIN_MEMORY = 16 * 10**6


def pre_shuffle(
    source: Any,
    destination: str | os.PathLike,
    *,
    seed: int | None = None,
    memory_limit: int | str = "256MB",
    progressbar: bool = True,
    storage_options: dict[str, Any] | None = None,
) -> parquet_source:
    """Write the rows of a source to disk in a uniformly random order.

    A first pass scatters the rows over buckets on disk at random, a second one shuffles each
    bucket in memory and writes Parquet files. Each of these is read again once it is complete, and
    number and checksums of all rows are compared with the source's.

    ``destination`` appears when all is done. A run that is killed leaves a folder
    ``<destination>.partial``, which the next call clears away. A call for a source and seed whose
    finished result is there already returns at once.

    Either of the two may be in an object store. A result for a store is made in the system's
    folder for temporary files (``TMPDIR``), which must have room for it, and uploaded. Until all
    is there, a file ``_incomplete`` is in its folder, and :class:`parquet_source` refuses it.

    Parameters
    ----------
    source : str, Path, sequence of these, or source
        Parquet files, named as for :class:`parquet_source`: all columns are kept, whatever their
        type; only the categories of a column lose their order. Or a source of tables or arrays
        that :class:`StreamingDataset` takes: what it gives is kept, in the types that Parquet
        knows. Columns of arrays are named by its ``columns``, or "0", "1", ...
    destination : str or Path
        Folder for the result, outside the folder of the source; or its URL in a store, such as
        ``s3://bucket/folder``.
    seed : int, optional
        Seed. The order of the rows depends on the source, the seed and ``memory_limit``.
    memory_limit : int or str, default "256MB"
        Memory for rows: bytes, or a number with a unit (kB, MB, GB, KiB, MiB, GiB); at least
        16 MB.
    progressbar : bool, default True
        Whether to show progress.
    storage_options : dict, optional
        Where ``source``, ``destination`` or both are URLs: what opens them, as for
        :class:`parquet_source`.

    Returns
    -------
    parquet_source
        A source over the result, whose row groups come in a new random order each epoch. Of a
        :class:`parquet_source` it has the columns, with their categories and units; else the
        columns of numbers and booleans. The files keep the keys and times that these stand for.

    Raises
    ------
    ImportError
        If pyarrow is not installed.
    FileExistsError
        If ``destination`` exists and is not the finished result for this source and seed, or
        ``<destination>.partial`` holds other files.
    OSError
        If there is no such file, or the disk has no room for the rows, uncompressed.
    TypeError, ValueError
        If an argument has no meaning, a block is no table, a type is unknown to Parquet, or the
        source has no rows or no column of numbers.
    RuntimeError
        If a file changes meanwhile, another call is writing to ``destination``, or the rows that
        were written are not those of the source.

    Notes
    -----
    Each row draws a bucket, and each bucket is put into a uniformly random order. That is a sort
    by random keys with the leading digit first, so each of the N! orders has the same probability
    [1]_ [2]_.

    ``_manifest.json`` in the result records source, seed, the files and their sizes, the number of
    rows, and checksums that do not depend on the order: sums, modulo 2**64, of a hash of each
    value in a column, and of each whole row. Whether a source that is not files has changed since
    is found by reading it and comparing these.

    References
    ----------
    .. [1] Rao, C. R. (1961). Generation of random permutations of given number of elements using
       random sampling numbers. Sankhya A, 23, 305-307.
    .. [2] Sanders, P. (1998). Random permutations on distributed, external and hierarchical
       memory. Information Processing Letters, 67, 305-309.

    Examples
    --------
    >>> import tempfile
    >>> import numpy as np
    >>> from pymc.variational.streaming import pre_shuffle
    >>> rows = {"time": np.arange(1000), "x": np.linspace(0, 1, 1000)}
    >>> folder = f"{tempfile.mkdtemp()}/shuffled"
    >>> shuffled = pre_shuffle(rows, folder, seed=1, progressbar=False)
    >>> shuffled.n_rows, shuffled.columns
    (1000, ('time', 'x'))
    """
    if seed is not None and (isinstance(seed, bool) or not hasattr(seed, "__index__") or seed < 0):
        raise ValueError(f"seed must be an integer from 0 on, or None; got {seed!r}.")
    seed = None if seed is None else int(seed)
    if scales_of(source):
        raise TypeError(
            "the source is standardised, and files would not say by which scales: shuffle first, "
            f'standardize(pre_shuffle(rows, "{destination}"), {list(scales_of(source))}).'
        )
    limit = bytes_of(memory_limit, "memory_limit", at_least=MIN_MEMORY)
    if storage_options is not None and not (is_url(source) or is_url(destination)):
        raise ValueError("storage_options= is for URLs, such as s3://bucket/folder.")
    of_destination = storage_options if is_url(destination) else None
    target, [place] = files_at(destination, storage_options=of_destination)
    on_disk = isinstance(target, Disk)
    partial = Path(f"{place}.partial") if on_disk else staging_folder(place)
    rows = tables_of(source, storage_options if is_url(source) else None)
    rows.scratch = partial
    for path in rows.paths:
        if is_within(place, path):
            raise ValueError(f"destination {place} lies in the source, {path}.")
    for file in rows.files:
        if is_within(file, place) or is_within(file, partial):
            raise ValueError(f"destination {place} or {partial.name} holds {file}, of the source.")
    if os.path.lexists(place) if on_disk else is_uploaded(place):
        _check_finished(target, place, rows, seed)
    else:
        partial.parent.mkdir(parents=True, exist_ok=True)
        with (
            _partial_folder(partial),
            Progress(disable=not progressbar) as progress,
            ExitStack() as threads,
        ):
            _write(rows, seed, partial, limit, progress, threads)
            if on_disk:
                os.rename(partial, place)
            else:
                upload(partial, place, progress)
                shutil.rmtree(partial)
    if isinstance(source, parquet_source):
        return source._over(destination, seed, of_destination)
    columns = numeric_columns(FileTables(target, target.find([place])[:1]).schema)
    return parquet_source(
        destination,
        columns=columns,
        shuffle_row_groups=True,
        seed=seed,
        storage_options=of_destination,
    )


def _write(
    rows: FileTables | BlockTables,
    seed: int | None,
    folder: Path,
    limit: int,
    progress: Progress,
    threads: ExitStack,
) -> None:
    """Write the shuffled rows and the manifest into an empty folder."""
    rng = np.random.default_rng(seed)
    part_bytes = min(limit // PARTS_IN_LIMIT, MAX_PART_BYTES)
    tables: Iterator[Any] = iter(rows)
    first = next(tables, None)
    if first is None:
        raise ValueError("the source has no rows.")
    if not numeric_columns(rows.schema):
        raise TypeError(f"no column of numbers to stream: {rows.schema.names}.")
    records = Records(first.schema)
    row_bytes = max(1.0, first.nbytes / first.num_rows)
    piece_bytes = min(part_bytes, int(PIECE_ROWS * row_bytes))
    n_buckets = MAX_BUCKETS
    if rows.n_rows is not None:
        _check_disk(folder, int(rows.n_rows * row_bytes) + part_bytes)
        n_buckets = min(MAX_BUCKETS, 1 + int(1.1 * rows.n_rows * row_bytes / piece_bytes))

    pieces = _parts(chain([first], tables), piece_bytes)
    del first
    # Files are read beside the work on them; a source of another kind in the caller's thread.
    parts: Iterator[Any] = _ahead(pieces, 1, threads) if rows.files else pieces
    task = progress.add_task("Scattering rows", total=rows.n_rows)
    contents = Contents()

    def counted() -> Iterator[Any]:
        for part in parts:
            contents.add(part)
            yield records.pack(part)
            progress.advance(task, part.num_rows)

    buckets = _scatter(counted(), folder / "buckets", n_buckets, rng)
    for file, stamp, now in zip(rows.files, rows.stamps, rows.storage.stamps(rows.files)):
        if now != stamp:
            raise RuntimeError(f"{file}: changed while it was read.")
    progress.update(task, total=contents.n_rows)
    task = progress.add_task("Shuffling buckets", total=contents.n_rows)
    group_rows = min(ROW_GROUP_ROWS, 1 + int(part_bytes / row_bytes))
    row_groups = _row_groups(_shuffled(buckets, part_bytes, rng), group_rows)
    unpacked = (records.unpack(table) for table in row_groups)
    checking = progress.add_task("Checking rows", total=contents.n_rows)
    check = _Check(contents, lambda n_rows: progress.advance(checking, n_rows), threads)

    def wrote(n_rows: int) -> None:
        progress.advance(task, n_rows)
        check.wrote(n_rows)

    files = []
    n_ahead = max(1, min(TABLES_AHEAD, int(part_bytes / (group_rows * row_bytes))))
    tables = _ahead(unpacked, n_ahead, threads)
    for file, n_rows in _write_files(tables, folder, rows.schema, wrote):
        check.start(file, n_rows)
        files.append(file)
    (folder / "buckets").rmdir()
    check.finish()
    sizes = {file.name: file.stat().st_size for file in files}
    manifest = {"source": rows.identity, "seed": seed, "files": sizes, **asdict(contents)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1))


class _Check:
    """Read files again, each while the next one is written, and compare them with the source.

    Parameters
    ----------
    expected : Contents
        What is in the source.
    advance : callable
        Called with the number of rows whenever some were read.
    threads : ExitStack
        Where the thread that reads is ended.
    """

    def __init__(self, expected: Contents, advance: Callable[[int], None], threads: ExitStack):
        self._expected, self._found, self._advance = expected, Contents(), advance
        self._n_written = 0
        self._reader = ThreadPoolExecutor(1, "pymc-stream")
        threads.callback(self._reader.shutdown, cancel_futures=True)
        self._readings: list[Future] = []

    def wrote(self, n_rows: int) -> None:
        """Count rows that were written, and raise an error if one is known by now."""
        self._n_written += n_rows
        if self._n_written > self._expected.n_rows:
            self._fail(f"{self._n_written} rows or more", f"{self._expected.n_rows}")
        for reading in self._readings:
            if reading.done():
                reading.result()

    def start(self, file: Path, n_rows: int) -> None:
        """Begin to read a file of so many rows."""
        self._readings.append(self._reader.submit(self._read, file, n_rows))

    def _read(self, file: Path, n_rows: int) -> None:
        n_before = self._found.n_rows
        for table in FileTables(Disk(), [file]):
            self._found.add(table)
            self._advance(table.num_rows)
        n_read = self._found.n_rows - n_before
        if n_read != n_rows:
            self._fail(f"{n_read} rows in {file.name}", f"{n_rows}")

    def finish(self) -> None:
        """Wait until all files are read, and raise an error unless the rows are the source's."""
        if self._n_written != self._expected.n_rows:
            self._fail(f"{self._n_written} rows", f"{self._expected.n_rows}")
        for reading in self._readings:
            reading.result()
        if self._found != self._expected:
            self._fail(f"{self._found}", f"{self._expected}")

    def _fail(self, found: str, expected: str) -> NoReturn:
        raise RuntimeError(
            f"the rows that were written are not those of the source: {found} instead of "
            f"{expected}. Nothing is kept."
        )


def _ahead(tables: Generator, n_ahead: int, threads: ExitStack) -> Prefetch:
    """Let a thread read tables ahead."""
    one_by_one = ([table] for table in tables)
    return threads.enter_context(closing(Prefetch(one_by_one, n_ahead)))


def _check_finished(
    target: Any, place: Any, rows: FileTables | BlockTables, seed: int | None
) -> None:
    """Raise unless ``place`` is the finished result for these rows and this seed."""
    remedy = "Choose another destination, or remove this one."
    try:
        manifest = json.loads(target.read(place / MANIFEST))
        files = set(manifest["files"].items())
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        raise FileExistsError(f"{place} exists, and pre_shuffle did not write it. {remedy}")
    found = set(target.sizes(place).items())
    if found != files:
        changed = sorted({name for name, _ in found ^ files})
        raise FileExistsError(f"{place}: {', '.join(changed)} changed since. {remedy}")
    if manifest.get("seed") != seed:
        raise FileExistsError(
            f"{place} was shuffled with the seed {manifest.get('seed')}, not {seed}. {remedy}"
        )
    if manifest.get("source") != rows.identity:
        raise FileExistsError(
            f"{place} is a shuffle of another source, or the files of this one changed since. "
            f"{remedy}"
        )
    if rows.identity is None:
        contents = Contents()
        for table in rows:
            contents.add(table)
        for name, value in asdict(contents).items():
            if manifest.get(name) != value:
                raise FileExistsError(
                    f"{place} is a shuffle of other rows ({name}: {manifest.get(name)}, now "
                    f"{value}). {remedy}"
                )


@contextmanager
def _partial_folder(folder: Path) -> Iterator[None]:
    """Make an empty folder that no other call uses, and remove it if something goes wrong."""
    lock = _lock(folder)
    try:
        _remove_contents(folder)
        try:
            yield
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise
    finally:
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int | None:
    """Make a folder and lock it, until the descriptor is closed or the process ends."""
    try:
        import fcntl
    except ImportError:  # Windows, which removes no file that another process has open
        folder.mkdir(exist_ok=True)
        return None
    while True:
        folder.mkdir(exist_ok=True)
        try:
            lock = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise RuntimeError(f"another pre_shuffle is writing to {folder}.") from None
        except OSError:  # a file system that cannot lock a folder, as NFS
            return lock
        # Its last owner may have renamed or removed it after it was opened here.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), os.stat(folder)):
                return lock
        os.close(lock)


def _remove_contents(folder: Path) -> None:
    """Remove what a call that was killed has left, and nothing else."""
    for item in folder.iterdir():
        if not re.fullmatch(rf"buckets|part-\d+\.parquet|{MANIFEST}|{INCOMPLETE}", item.name):
            raise FileExistsError(f"{item}: pre_shuffle did not write it. Remove {folder}.")
    for item in folder.iterdir():
        if item.is_dir():
            shutil.rmtree(item)
        else:
            item.unlink()


def _check_disk(folder: Path, n_bytes: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < n_bytes:
        raise OSError(
            errno.ENOSPC,
            f"pre_shuffle needs {n_bytes / 1e9:.1f} GB beside {folder}, where {free / 1e9:.1f} GB "
            "are free. Nothing was written",
        )


def _parts(tables: Iterable[Any], part_bytes: int) -> Generator[Any, None, None]:
    """Join and cut tables into parts of about ``part_bytes`` in memory."""
    import pyarrow as pa

    held: list[Any] = []
    n_bytes = 0.0
    for table in tables:
        row_bytes = max(1, table.nbytes) / max(1, table.num_rows)
        start = 0
        while start < table.num_rows:
            piece = table.slice(start, max(1, int((part_bytes - n_bytes) / row_bytes)))
            held.append(piece)
            start += piece.num_rows
            n_bytes += piece.num_rows * row_bytes
            if n_bytes + row_bytes > part_bytes:
                yield pa.concat_tables(held).combine_chunks()
                held, n_bytes = [], 0.0
    if held:
        yield pa.concat_tables(held).combine_chunks()


def _scatter(
    parts: Iterable[Any], folder: Path, n_buckets: int, rng: np.random.Generator
) -> list[Path]:
    """Write each row to a bucket of its own drawing."""
    import pyarrow as pa

    folder.mkdir()
    paths = [folder / f"{i:03d}.arrow" for i in range(n_buckets)]
    writers: list[Any] = []
    with ExitStack() as opened:
        for part in parts:
            if not writers:
                files = [opened.enter_context(pa.OSFile(str(path), "wb")) for path in paths]
                writers = [
                    opened.enter_context(pa.ipc.new_stream(file, part.schema)) for file in files
                ]
            bucket = rng.integers(n_buckets, size=part.num_rows, dtype=np.uint16)
            scattered = part.take(pa.array(np.argsort(bucket, kind="stable")))
            start = 0
            for writer, n_rows in zip(writers, np.bincount(bucket, minlength=n_buckets).tolist()):
                if n_rows:
                    writer.write_table(scattered.slice(start, n_rows))
                start += n_rows
    return paths


def _shuffled(
    buckets: list[Path], part_bytes: int, rng: np.random.Generator, depth: int = 1
) -> Iterator[Any]:
    """Give the rows of each bucket in random order, and remove the bucket."""
    import pyarrow as pa

    for path in buckets:
        n_bytes = path.stat().st_size
        with pa.OSFile(str(path)) as file:
            table = pa.ipc.open_stream(file)
            if n_bytes > 2 * part_bytes and depth < 4:  # else a few huge rows
                n_buckets = min(MAX_BUCKETS, 1 + n_bytes // part_bytes)
                pieces = (pa.Table.from_batches([batch]) for batch in table)
                parts = _parts(pieces, part_bytes)
                split = _scatter(parts, path.with_suffix(""), n_buckets, rng)
            else:
                table, split = table.read_all().combine_chunks(), []
        path.unlink()
        if split:
            yield from _shuffled(split, part_bytes, rng, depth + 1)
            path.with_suffix("").rmdir()
        elif table.num_rows:
            # Let go of the old order, which else stays until the next one is asked for.
            table = table.take(pa.array(rng.permutation(table.num_rows)))
            yield table


def _write_files(
    tables: Iterable[Any],
    folder: Path,
    schema: Any,
    advance: Callable[[int], None],
) -> Iterator[tuple[Path, int]]:
    """Write Parquet files, a row group for each table; give each with its rows when complete."""
    import pyarrow.parquet as pq

    repeating: list[str] = []
    n_groups = max(1, min(ROW_GROUPS_IN_FILE, COLUMNS_IN_FILE // len(schema)))
    tables = iter(tables)
    for i in count():
        file = folder / f"part-{i:05d}.parquet"
        groups = islice(tables, n_groups)
        first = next(groups, None)
        if first is None:
            return
        if i == 0:
            repeating = _repeating(first)
        n_rows = 0
        # Minimum and maximum would be those of all rows in each row group, and fill the memory.
        with pq.ParquetWriter(
            file,
            schema,
            compression=COMPRESSION,
            use_dictionary=repeating,
            write_statistics=False,
        ) as writer:
            for group in chain([first], groups):
                if not group.schema.equals(schema):
                    group = group.cast(schema)
                writer.write_table(group, row_group_size=group.num_rows)
                n_rows += group.num_rows
                advance(group.num_rows)
        yield file, n_rows


def _repeating(table: Any) -> list[str]:
    """Name the columns to write with a dictionary, given rows in random order.

    A dictionary of values that hardly repeat costs the writer and the reader time for nothing.
    """
    import pyarrow.compute as pc
    import pyarrow.types as pt

    def repeats(column: Any) -> bool:
        if pt.is_integer(column.type) or pt.is_temporal(column.type):
            return 2 * pc.count_distinct(column).as_py() <= len(column)
        return not pt.is_floating(column.type)

    sample = table.slice(0, SAMPLE_ROWS)
    return [name for name in sample.schema.names if repeats(sample[name])]


def _row_groups(tables: Iterable[Any], n_rows: int) -> Generator[Any, None, None]:
    """Join and cut tables into tables of ``n_rows`` rows; the last one may be shorter."""
    import pyarrow as pa

    held: list[Any] = []
    n_held = 0
    for table in tables:
        held.append(table)
        n_held += table.num_rows
        if n_held >= n_rows:
            joined = pa.concat_tables(held)
            whole = n_held - n_held % n_rows
            for start in range(0, whole, n_rows):
                yield joined.slice(start, n_rows)
            held, n_held = [joined.slice(whole)], n_held - whole
    if n_held:
        yield pa.concat_tables(held)
