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
"""File systems of stores, such as S3: those of pyarrow and those of fsspec, called alike."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from pymc.streams.sources.files import Stamp

# Fields in which file systems of fsspec tell one version of an object from another, best first.
VERSIONS = "ETag etag generation blob_id oid version_id md5Hash mtime LastModified created".split()
PACKAGES = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "abfs": "adlfs", "hf": "huggingface_hub"}


@dataclass(frozen=True)
class ArrowFiles:
    """A file system of ``pyarrow.fs``. It tells versions by size and time, to the second."""

    fs: Any

    @property
    def scheme(self) -> str:
        """What URLs begin with."""
        return {"gcs": "gs"}.get(self.fs.type_name, self.fs.type_name)

    @property
    def is_local(self) -> bool:
        """Whether these are the files of this machine."""
        return self.fs.type_name == "local"

    def plain(self, path: str) -> str:
        """Name a place as lists do."""
        return path.rstrip("/")

    def below(self, path: str) -> dict[str, Stamp]:
        """List an object, or all that are in a folder and in those below, with their versions."""
        from pyarrow.fs import FileSelector, FileType

        infos = [self.fs.get_file_info(path)]
        if infos[0].type == FileType.Directory:
            infos = self.fs.get_file_info(FileSelector(path, recursive=True))
        return {info.path: _arrow_stamp(info) for info in infos if info.type == FileType.File}

    def stamp(self, path: str) -> Stamp:
        """Ask for the version of an object."""
        from pyarrow.fs import FileType

        info = self.fs.get_file_info(path)
        if info.type != FileType.File:
            raise FileNotFoundError(path)
        return _arrow_stamp(info)

    def reader(self, path: str) -> Callable[[int, int], bytes]:
        """Open an object, to read bytes from the first number to before the second."""
        file = self.fs.open_input_file(path)
        return lambda start, stop: file.read_at(stop - start, start)

    def put(self, local: Path, path: str) -> None:
        from pyarrow.fs import LocalFileSystem, copy_files

        copy_files(str(local), path, LocalFileSystem(), self.fs)

    def delete(self, path: str) -> None:
        self.fs.delete_file(path)


def _arrow_stamp(info: Any) -> Stamp:
    # In lists some stores give fractions of a second, which they do not for a single object.
    return info.size, (info.mtime_ns or 0) // 10**9


@dataclass(frozen=True)
class FsspecFiles:
    """A file system of fsspec. It tells versions by size and ETag, or what the store has for it."""

    fs: Any

    @property
    def scheme(self) -> str:
        """What URLs begin with."""
        return self.fs.protocol if isinstance(self.fs.protocol, str) else self.fs.protocol[0]

    @property
    def is_local(self) -> bool:
        """Whether these are the files of this machine."""
        return self.scheme == "file"

    def plain(self, path: str) -> str:
        """Name a place as lists do."""
        return self.fs._strip_protocol(path).rstrip("/")

    def below(self, path: str) -> dict[str, Stamp]:
        """List an object, or all that are in a folder and in those below, with their versions."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.find(path, detail=True)
        except FileNotFoundError:
            return {}
        return {name: _fsspec_stamp(info) for name, info in found.items()}

    def stamp(self, path: str) -> Stamp:
        """Ask for the version of an object."""
        self.fs.invalidate_cache(path)
        return _fsspec_stamp(self.fs.info(path))

    def reader(self, path: str) -> Callable[[int, int], bytes]:
        """Return what reads the bytes of an object from the first number to before the second."""
        return lambda start, stop: self.fs.cat_file(path, start=start, end=stop)

    def put(self, local: Path, path: str) -> None:
        self.fs.put_file(str(local), path)

    def delete(self, path: str) -> None:
        self.fs.rm_file(path)


def _fsspec_stamp(info: dict[str, Any]) -> Stamp:
    version = next((info[name] for name in VERSIONS if info.get(name)), "")
    if isinstance(version, datetime):
        version = version.timestamp()
    # The same version may come in quotes or not, and a time more exactly or less.
    return info["size"], str(int(version) if isinstance(version, float) else version).strip('"')


def open_url(url: str, storage_options: dict[str, Any] | None) -> tuple[Any, str]:
    """Find the file system of a URL, of pyarrow or fsspec, and what it calls the place."""
    scheme = url.partition("://")[0]
    if storage_options is None:
        try:
            import pyarrow as pa

            from pyarrow.fs import FileSystem

            return FileSystem.from_uri(url)
        except ImportError as error:  # what pyarrow reads by a package of its own
            raise _needs(PACKAGES.get(scheme, "pyarrow"), url) from error
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            if scheme in ("s3", "gs", "file"):
                raise ValueError(f"{url}: {error}") from error
    try:
        from fsspec.core import url_to_fs
    except ImportError as error:
        raise _needs("fsspec", url) from error
    try:
        return url_to_fs(url, **(storage_options or {}))
    except ImportError as error:
        raise _needs(PACKAGES.get(scheme, "fsspec"), url) from error
    except ValueError as error:  # an unknown scheme
        raise ValueError(f"{url}: {error}") from error


def _needs(package: str, url: str) -> ImportError:
    return ImportError(f"{url} needs {package}, which is not installed: pip install {package}")


def files_of(fs: Any) -> ArrowFiles | FsspecFiles:
    """Take a file system of either kind."""
    from pyarrow.fs import FileSystem, FSSpecHandler, PyFileSystem

    if isinstance(fs, PyFileSystem) and isinstance(fs.handler, FSSpecHandler):
        fs = fs.handler.fs
    if isinstance(fs, FileSystem):
        return ArrowFiles(fs)
    if hasattr(fs, "cat_file") and hasattr(fs, "find"):
        return FsspecFiles(fs)
    raise TypeError(
        "filesystem must be a file system of pyarrow.fs or fsspec, such as "
        f"pyarrow.fs.S3FileSystem(...); got {type(fs).__name__}."
    )
