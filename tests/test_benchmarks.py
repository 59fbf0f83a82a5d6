"""The table of the benchmarks and their command line. Nothing is timed."""

import subprocess
import sys

from pathlib import Path
from types import SimpleNamespace

import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from benchmarks import passes  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.processes import NO_PEERS, in_turn, run, run_peer  # noqa: E402
from benchmarks.table import Row, compared, print_table, read_csv, write_csv  # noqa: E402
from examples.order_book.output import console  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def rows():
    """Two rounds of three things, one of which fails in the second."""
    values = {
        "static": iter([2.0, 4.0]),
        "stream": iter([3.0, 4.0]),
        "peer": iter([1.0, "it is absent"]),
    }

    def job(name):
        value = next(values[name])
        return value if isinstance(value, str) else {"seconds": value, "peak_mb": 100 * value}

    results = in_turn({name: lambda name=name: job(name) for name in values}, 2)
    return list(
        compared(
            results,
            "static",
            lambda result: 1e6 * result["seconds"],
            label="{}, warm",
            section="step",
            n_rows=1_000_000,
            floatX="float32",
            unit="µs",
        )
    )


def test_ratios_are_of_the_same_round(rows):
    static, stream, peer = rows
    assert (static.figure, static.ratio, static.peak_mb) == (3e6, None, 400)
    assert (stream.figure, stream.against) == (3.5e6, "static, warm")
    assert (stream.ratio, stream.ratio_low, stream.ratio_high) == (1.25, 1.0, 1.5)
    assert (stream.peak_mb, stream.more_mb) == (400, 0)
    assert (peer.figure, peer.ratio, peer.skipped) == (None, None, "it is absent")


def test_without_a_base_there_are_figures_and_no_ratios():
    [base, other] = compared(
        {"a": "absent", "b": [{"s": 2.0}]}, "a", lambda result: result["s"], section="fit"
    )
    assert base.skipped == "absent"
    assert (other.figure, other.ratio, other.against) == (2.0, None, "")


def test_csv_keeps_all(rows, tmp_path):
    path = tmp_path / "new" / "speed.csv"
    assert read_csv(path) == []
    write_csv(rows[:1], path)
    write_csv(rows, path)
    assert read_csv(path) == rows
    assert list(path.parent.iterdir()) == [path]


def test_csv_is_written_row_by_row(rows, tmp_path, monkeypatch):
    def sections(options):
        yield rows[1]
        raise KeyboardInterrupt

    path = tmp_path / "speed.csv"
    others = [Row("import", "ours"), Row("advance", "advance")]
    write_csv([rows[0], *others], path)
    monkeypatch.setitem(sys.modules, "benchmarks.steps", SimpleNamespace(rows=sections))
    monkeypatch.delenv("PYTHONDONTWRITEBYTECODE", raising=False)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "--only", "step", f"--csv={path}"])
    with pytest.raises(KeyboardInterrupt):
        main()
    assert read_csv(path) == [rows[1], *others[::-1]]


def test_table_prints(rows):
    with console.capture() as capture:
        print_table(rows)
    text = capture.get()
    for part in ("stream, warm", "float32", "1.25 (1 to 1.5)", "it is absent"):
        assert part in text


def test_processes_that_fail_say_why():
    assert run([sys.executable, "-c", "print('hello'); print('{\"a\": 1}')"]) == {"a": 1}
    assert run([sys.executable, "-c", "raise ValueError('no luck')"]) == "ValueError: no luck"


def test_what_needs_no_peers_runs_without(tmp_path):
    (tmp_path / "table").mkdir()
    pq.write_table(pa.table({"x": [1.0, 2.0, 3.0]}), tmp_path / "table" / "0.parquet")
    folders = [f"--folder={tmp_path / 'table'}", f"--destination={tmp_path / 'copy'}"]
    assert run_peer(None, "pre_shuffle", "copy", *folders)["rows"] == 3
    assert run_peer(None, "pre_shuffle", "duckdb", *folders) == NO_PEERS


def test_passes_are_timed_in_turn(tmp_path, monkeypatch):
    (tmp_path / "usual").mkdir()
    columns = {name: [0.5, 1.0, 0.0] for name in passes.COLUMNS[:3]} | {"up": [0, 1, 1]}
    pq.write_table(pa.table(columns), tmp_path / "usual" / "0.parquet")
    monkeypatch.setattr(passes, "KINDS", {"log-density": passes.KINDS["log-density"]})
    results = passes.time_passes(tmp_path, batch_size=2, n_rounds=2)
    assert list(results) == ["read", "log-density", "log-density, in memory"]
    assert all(len(runs) == 2 for runs in results.values())


def test_command_line():
    command = [sys.executable, "-m", "benchmarks", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert "sections:" in done.stdout
