"""The tables of the benchmarks and their command lines. Nothing is timed."""

import subprocess
import sys

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

from benchmarks import accuracy, passes  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.processes import NO_PEERS, in_turn, run, run_peer  # noqa: E402
from benchmarks.reference import newton  # noqa: E402
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


@pytest.mark.parametrize(
    "module, says", [("benchmarks", "sections:"), ("benchmarks.accuracy", "the wall time")]
)
def test_command_line(module, says):
    command = [sys.executable, "-m", module, "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert says in done.stdout


@pytest.fixture
def order_book(tmp_path):
    """A table of two files, and its features with a column of ones, and outcomes."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((3000, 3)).astype("f4")
    up = (rng.random(3000) < 1 / (1 + np.exp(-x @ [1.0, -0.5, 0.0]))).astype("i1")
    names = ["mid", "spread", "imbalance"]
    table = pa.table(dict(zip(names, x.T), up=up))
    folder = tmp_path / "table"
    folder.mkdir()
    pq.write_table(table[:1000], folder / "0.parquet")
    pq.write_table(table[1000:], folder / "1.parquet")
    return folder, np.column_stack([np.ones(3000), x]), up


def test_reference_is_the_mode_and_the_curvature_there(order_book):
    folder, x, up = order_book
    mode, precision = newton(folder)

    def gradient(b):
        return x.T @ (up - 1 / (1 + np.exp(-x @ b))) - b / 9

    np.testing.assert_allclose(gradient(mode), 0, atol=1e-6)
    steps = 1e-4 * np.eye(4)
    slopes = [(gradient(mode + step) - gradient(mode - step)) / 2e-4 for step in steps]
    np.testing.assert_allclose(precision, -np.array(slopes), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize(
    "error, ratio, seconds, note",
    [
        (0.09, 1.09, 40.0, ""),
        (0.11, 1.0, 40.0, "ends outside the bounds, after 40 s"),
        (0.0, 0.89, 40.0, "ends outside the bounds, after 40 s"),
        (0.0, np.nan, 40.0, "ends outside the bounds, after 40 s"),
        (0.0, 1.0, 301.0, "not within 5 minutes"),
    ],
)
def test_a_time_is_that_of_an_accurate_fit(error, ratio, seconds, note):
    mean, precision = np.arange(4.0), np.eye(4) + 1
    goals = accuracy.goals_of(mean, precision)
    # Unlike mean field's own sds, those of the posterior are not 1 / sqrt(2).
    sds = np.sqrt(np.diag(np.linalg.inv(precision)))
    fit = {
        "mean": (mean + error * sds).tolist(),
        "sd": (ratio / np.sqrt(np.diag(precision))).tolist(),
        "seconds": seconds,
        "peak_mb": 300.0,
    }
    contender = accuracy.Contender("ours", "advi")
    row = accuracy.judged(contender, 3000, goals, fit, {"seconds": 8.0})
    assert row.note == note
    assert row.means_off == pytest.approx(error)
    assert row.sd_high == pytest.approx(ratio, nan_ok=True)
    assert (row.seconds, row.seconds_without_compilation) == ((None,) * 2 if note else (40, 32))
    if not note:
        assert row.posterior_sd_high == pytest.approx(1.09 / np.sqrt(2 * 0.8), rel=1e-3)


def test_accuracy_keeps_why_a_contender_failed(tmp_path, order_book):
    contender = accuracy.Contender("NumPyro", "AutoNormal", note="all rows")
    folder, *_ = order_book
    goals = accuracy.goals_of(*newton(folder))
    row = accuracy.judged(contender, 3000, goals, "MemoryError", NO_PEERS)
    assert (row.seconds, row.means_off, row.note) == (None, None, "MemoryError")
    path = tmp_path / "accuracy.csv"
    write_csv([row], path)
    assert read_csv(path, accuracy.Row) == [row]
    with console.capture() as capture:
        accuracy.print_table([row])
    assert "MemoryError" in capture.get()


def test_a_contender_runs_as_a_script(order_book):
    folder, *_ = order_book
    goals = accuracy.goals_of(*newton(folder))
    goal = goals["means only"]
    assert accuracy.run_contender("sklearn_newton", None, folder, goal) == NO_PEERS
    done = accuracy.run_contender("sklearn_newton", sys.executable, folder, goal)
    assert "sklearn" in done if isinstance(done, str) else done["mean"]
