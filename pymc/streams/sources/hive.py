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
"""Columns in the names of folders: ``month=3/part-0.parquet``, as Hive and Spark write them."""

import glob
import re

from pathlib import PurePath, PurePosixPath
from typing import Any
from urllib.parse import unquote

# What Hive calls the folder of rows whose value is missing.
NULL = "__HIVE_DEFAULT_PARTITION__"


def hive_columns(paths: list[Any], files: list[Any]) -> dict[str, Any]:
    """Read columns off the names of the folders that files lie in.

    Parameters
    ----------
    paths : list of Path or StoredPath
        Where the files were looked for: what counts is in their names below these.
    files : list of Path or StoredPath
        The files.

    Returns
    -------
    dict of str to pyarrow.Array
        Each column with its value in each file: integers, where all of them are, or strings.

    Raises
    ------
    ValueError
        If files lie in folders of different columns.
    """
    import pyarrow as pa

    roots = [_root(_pure(path)) for path in paths]
    pairs = [_pairs(_pure(file), roots) for file in files]
    for file, found in zip(files, pairs):
        if found.keys() != pairs[0].keys():
            raise ValueError(
                f"{file}: its folders name the columns {list(found)}, and those of {files[0]} "
                f"{list(pairs[0])}. Give the files of one table."
            )
    columns = {}
    for name in pairs[0]:
        values = [None if found[name] == NULL else _text(found[name]) for found in pairs]
        integers = all(value is None or re.fullmatch(r"-?[0-9]{1,18}", value) for value in values)
        column = pa.array(values, pa.string())
        columns[name] = column.cast(pa.int64()) if integers else column
    return columns


def labels(files: list[Any], columns: dict[str, Any]) -> list[str]:
    """Name files with the values that the names of their folders give to columns."""
    return [
        "/".join([*(f"{name}={values[i]}" for name, values in columns.items()), file.name])
        for i, file in enumerate(files)
    ]


def constant(values: Any, i: int, n_rows: int) -> Any:
    """Return the value in file ``i`` of a column as an array of ``n_rows`` rows."""
    import pyarrow as pa

    if values.type == "string":  # the text once
        places = pa.repeat(pa.scalar(0, pa.int32()), n_rows)
        return pa.DictionaryArray.from_arrays(places, values.slice(i, 1))
    return pa.repeat(values[i], n_rows)


def _text(part: str) -> str:
    return unquote(part, errors="strict")


def _pure(path: Any) -> PurePath:
    """Take a path for its names alone."""
    return path if isinstance(path, PurePath) else PurePosixPath(path.path)


def _root(path: PurePath) -> PurePath:
    """Return the part of a path before what stands for many names."""
    if not glob.has_magic(str(path)):
        return path
    fixed = [glob.has_magic(part) for part in path.parts].index(True)
    return type(path)(*path.parts[:fixed])


def _pairs(file: PurePath, roots: list[PurePath]) -> dict[str, str]:
    for root in roots:
        if file.is_relative_to(root):
            folders = file.relative_to(root).parts[:-1]
            pairs = (folder.partition("=") for folder in folders)
            return {_text(name): value for name, equals, value in pairs if equals and name}
    return {}
