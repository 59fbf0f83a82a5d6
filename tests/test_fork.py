"""The machinery that keeps the fork and its upstream apart. Not part of the exported series."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile

from pathlib import Path

import pytest
import yaml

import pymc as pm

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DATA = "pymc/data.py"


def run(*command, cwd, **env):
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")} | env
    return subprocess.run(list(map(str, command)), cwd=cwd, env=env, capture_output=True, text=True)


def git(*args, cwd):
    done = run("git", "-c", "user.name=t", "-c", "user.email=t@localhost", *args, cwd=cwd)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def upstream(tmp_path):
    """Upstream's files as released, from the state that the build has left."""
    if not (ROOT / ".upstream").exists():
        pytest.skip("pymc is not installed from this checkout with pip install -e")
    tree = tmp_path / "upstream"
    tree.mkdir()
    archive = tmp_path / "pristine.tar"
    git("--git-dir", ROOT / ".upstream", "archive", "-o", archive, "pristine", cwd=ROOT)
    shutil.unpack_archive(archive, tree, filter="data")
    return tree


@pytest.fixture
def checkout(tmp_path):
    """A clone of the repository as it stands in the working tree, nothing laid out yet."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    clone = tmp_path / "clone"
    for name in git(
        "ls-files", "--cached", "--others", "--exclude-standard", cwd=ROOT
    ).splitlines():
        if (ROOT / name).is_file():
            (clone / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, clone / name)
    return clone


@pytest.fixture
def fork(checkout, upstream):
    """Return a function that runs scripts/fork.py in the clone, on the local upstream tree."""

    def call(*args, **env):
        env = {"PYMC_UPSTREAM": str(upstream)} | env
        return run(sys.executable, "scripts/fork.py", *args, cwd=checkout, **env)

    return call


def ok(done):
    assert done.returncode == 0, done.stderr
    return done


def fails(done):
    """Return the message of a command that failed, which must be one paragraph."""
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    message = done.stderr.strip()
    assert message.startswith("fork: ")
    assert "\n" not in message
    return message


def test_version_names_the_fork():
    version = PROJECT["project"]["version"]
    assert pm.__version__ == version
    assert importlib.metadata.version("pymc") == version
    assert version.startswith(PROJECT["tool"]["upstream"]["version"] + "+")


def test_layout_makes_the_tree_that_is_installed(fork, checkout):
    ok(fork("layout"))
    for name in (DATA, "pymc/variational/inference.py", "pymc/model/core.py", "pymc/_version.py"):
        assert (checkout / name).read_bytes() == (ROOT / name).read_bytes()
    ok(fork("check"))
    ok(fork("layout"))


def test_laying_out_restores_what_was_deleted(fork, checkout):
    ok(fork("layout"))
    (checkout / DATA).unlink()
    ok(fork("layout"))
    assert (checkout / DATA).exists()


def test_edit_refresh_and_check(fork, checkout):
    ok(fork("layout"))
    path = checkout / "pymc" / "vartypes.py"
    edited = path.read_text() + "\nEDITED = True\n"
    path.write_text(edited)
    assert "pymc/vartypes.py: edited in place" in fails(fork("layout"))
    assert path.read_text() == edited
    assert "patches/pymc/vartypes.py.patch: not what pymc/ holds" in fails(fork("check"))
    ok(fork("refresh"))
    ok(fork("check"))
    patch = (checkout / "patches" / "pymc" / "vartypes.py.patch").read_text()
    assert re.findall(r"^[+-](?![+-]).*", patch, flags=re.M) == ["+", "+EDITED = True"]
    # The other patches are untouched, and the edit is now what is laid out.
    for name in (DATA, "pymc/variational/inference.py"):
        name += ".patch"
        assert (checkout / "patches" / name).read_text() == (ROOT / "patches" / name).read_text()
    ok(fork("layout"))
    assert path.read_text() == edited


def test_an_edit_taken_back_leaves_no_patch(fork, checkout):
    ok(fork("layout"))
    path = checkout / "pymc" / "vartypes.py"
    original = path.read_text()
    path.write_text(original + "\nEDITED = True\n")
    ok(fork("refresh"))
    path.write_text(original)
    ok(fork("refresh"))
    assert not (checkout / "patches" / "pymc" / "vartypes.py.patch").exists()
    ok(fork("check"))


def test_a_new_patch_is_laid_out_over_unedited_files(fork, checkout):
    ok(fork("layout"))
    patch = checkout / "patches" / "pymc" / "data.py.patch"
    kept = patch.read_text()
    patch.unlink()  # as after a git pull
    assert "patches/pymc/data.py.patch: not what pymc/ holds" in fails(fork("check"))
    ok(fork("layout"))
    assert "is_stream_source" not in (checkout / DATA).read_text()
    patch.write_text(kept)
    ok(fork("layout"))
    assert (checkout / DATA).read_bytes() == (ROOT / DATA).read_bytes()


def test_refresh_does_not_undo_a_pulled_patch(fork, checkout):
    ok(fork("layout"))
    pulled = checkout / "patches" / "pymc" / "data.py.patch"
    pulled.write_text(
        pulled.read_text().replace("Or a source of blocks", "Or any source of blocks")
    )
    kept = pulled.read_text()
    path = checkout / "pymc" / "math.py"
    path.write_text(path.read_text() + "\nEDITED = True\n")
    assert "pymc/math.py: edited in place" in fails(fork("layout"))
    assert "patches/ has changed since it was laid out" in fails(fork("refresh"))
    assert pulled.read_text() == kept
    # The way out that the message names.
    edit = git("--git-dir=.upstream", "diff", "laid-out", cwd=checkout)
    (checkout / "my.diff").write_text(edit)
    git("--git-dir=.upstream", "checkout", "laid-out", "--", "pymc", cwd=checkout)
    ok(fork("layout"))
    git("apply", "my.diff", cwd=checkout)
    ok(fork("refresh"))
    assert pulled.read_text() == kept
    assert "+EDITED = True" in (checkout / "patches" / "pymc" / "math.py.patch").read_text()


def test_a_newer_upstream_is_not_taken_for_an_edit(fork, checkout, upstream):
    ok(fork("layout"))
    path = checkout / "pymc" / "math.py"
    path.write_text(path.read_text() + "\nEDITED = True\n")
    newer = upstream / "pymc" / "blocking.py"
    newer.write_text(newer.read_text() + "\nNEWER = True\n")
    assert "pymc/math.py: edited in place" in fails(fork("layout"))
    ok(fork("refresh"))
    assert not (checkout / "patches" / "pymc" / "blocking.py.patch").exists()
    ok(fork("layout"))
    assert "NEWER = True" in (checkout / "pymc" / "blocking.py").read_text()


def test_a_file_that_upstream_comes_to_have_is_not_overwritten(fork, checkout, upstream):
    ok(fork("layout"))
    ours = checkout / "pymc" / "variational" / "streaming.py"
    kept = ours.read_text()
    (upstream / "pymc" / "variational" / "streaming.py").write_text("merged = True\n")
    assert "pymc/variational/streaming.py: edited in place" in fails(fork("layout"))
    assert ours.read_text() == kept


def test_a_new_file_that_git_would_not_see_is_named(fork, checkout):
    ok(fork("layout"))
    (checkout / "pymc" / "brandnew.py").write_text("x = 1\n")
    for command in ("check", "refresh"):
        assert "pymc/brandnew.py: neither upstream's nor ours" in fails(fork(command))


def test_export_does_not_leave_edits_out(fork, checkout, tmp_path):
    ok(fork("layout"))
    path = checkout / DATA
    path.write_text(path.read_text() + "\nEDITED = True\n")
    assert "not what pymc/ holds" in fails(fork("export", tmp_path / "series"))


def test_the_users_git_settings_do_not_matter(fork, checkout, tmp_path):
    config = tmp_path / "gitconfig"
    config.write_text(
        "[diff]\n noprefix = true\n[format]\n coverLetter = true\n[core]\n autocrlf = true\n"
    )
    env = {"GIT_CONFIG_GLOBAL": str(config), "GIT_DIR": str(tmp_path / "elsewhere")}
    ok(fork("layout", **env))
    ok(fork("check", **env))
    ok(fork("export", tmp_path / "series", **env))
    assert not list((tmp_path / "series").glob("0000-*"))


def test_a_lock_that_an_interrupted_run_left(fork, checkout):
    ok(fork("layout"))
    (checkout / ".upstream" / "index.lock").touch()
    (checkout / DATA).unlink()
    assert "delete that folder and run" in fails(fork("layout"))
    shutil.rmtree(checkout / ".upstream")
    ok(fork("layout"))


def test_an_edit_can_be_kept_after_the_state_is_deleted(fork, checkout):
    ok(fork("layout"))
    path = checkout / "pymc" / "math.py"
    path.write_text(path.read_text() + "\nEDITED = True\n")
    shutil.rmtree(checkout / ".upstream")
    assert "pymc/math.py: edited in place" in fails(fork("layout"))
    ok(fork("refresh"))
    ok(fork("layout"))
    assert "EDITED = True" in path.read_text()


def test_a_patch_that_does_not_apply_says_what_to_do(fork, checkout, upstream):
    path = upstream / DATA
    path.write_text(path.read_text().replace("batch_size must be an integer", "no"))
    path.write_text(path.read_text().replace("if not isinstance(batch_size, int):", "if True:"))
    message = fails(fork("layout"))
    assert "patches/pymc/data.py.patch does not apply to PYMC_UPSTREAM=" in message
    assert "Rebase onto the next PyMC" in message
    assert not (checkout / DATA).exists()


def test_a_folder_that_is_no_upstream_tree(fork, tmp_path):
    message = fails(fork("layout", PYMC_UPSTREAM=str(tmp_path)))
    assert "is not a PyMC source tree" in message


def test_no_index_to_reach(fork, tmp_path):
    message = fails(
        fork("layout", PYMC_UPSTREAM="", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    )
    assert "could not download the wheel of pymc==" in message
    assert "PYMC_UPSTREAM=/path/to/pymc" in message


def test_wrong_hash(fork, checkout, tmp_path):
    version = PROJECT["tool"]["upstream"]["version"]
    info = f"pymc-{version}.dist-info"
    with zipfile.ZipFile(tmp_path / f"pymc-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr("pymc/__init__.py", "")
        wheel.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: pymc\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{info}/WHEEL",
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr(f"{info}/RECORD", "")
    message = fails(
        fork("layout", PYMC_UPSTREAM="", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    )
    assert PROJECT["tool"]["upstream"]["wheel-sha256"] in message
    assert "Nothing was installed" in message
    assert not (checkout / DATA).exists()


def test_exported_series_applies_to_upstream(fork, checkout, upstream, tmp_path):
    ok(fork("export", tmp_path / "series"))
    mails = sorted((tmp_path / "series").iterdir())
    assert len(mails) == len(tomllib.loads((ROOT / "scripts/series.toml").read_text())["commit"])
    git("init", "-q", cwd=upstream)
    git("add", "-A", cwd=upstream)
    git("commit", "-qm", "upstream", cwd=upstream)
    git("am", "-q", *mails, cwd=upstream)
    ok(fork("layout", PYMC_UPSTREAM=""))
    changed = git("diff", "--name-only", "HEAD~" + str(len(mails)), cwd=upstream).splitlines()
    for name in changed:
        assert (upstream / name).read_bytes() == (ROOT / name).read_bytes()
    ours = git("ls-files", "pymc", "tests/streams", "tests/variational", cwd=ROOT).splitlines()
    assert {name for name in changed if name.startswith("pymc/")} == {
        name for name in ours if name.startswith("pymc/")
    } | {
        path.relative_to(ROOT / "patches").as_posix()[: -len(".patch")]
        for path in (ROOT / "patches").rglob("*.patch")
    }
    # Only what upstream would merge: modules, tests of modules, docs.
    assert {Path(name).parts[0] for name in changed} == {"pymc", "tests", "docs"}
    assert {name for name in changed if name.startswith("tests/")} == {
        name for name in ours if name.startswith("tests/")
    }
    assert "exists already" in fails(fork("export", tmp_path / "series"))


def test_dependencies_are_upstreams(tmp_path, monkeypatch):
    """Streaming adds no hard dependency."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import fork

    try:
        wheel = fork.download("wheel", tmp_path)
    except fork.ForkError as error:
        pytest.skip(str(error))
    version = PROJECT["tool"]["upstream"]["version"]
    with zipfile.ZipFile(wheel) as zipped:
        metadata = zipped.read(f"pymc-{version}.dist-info/METADATA").decode()
    upstreams = re.findall(r"^Requires-Dist: ([^;\n]*)$", metadata, flags=re.M)
    assert pins(upstreams) == pins(PROJECT["project"]["dependencies"])


def pins(requirements):
    """Split ``name[extra]>=1,<2`` into name and version, as PyPI and conda both write them."""
    found = {}
    for requirement in requirements:
        name, version = re.fullmatch(r"([A-Za-z0-9._-]+)(.*)", requirement).groups()
        found[name.lower()] = ",".join(sorted(version.split(",")))
    return found


def extra(name):
    requirements = []
    for requirement in PROJECT["project"]["optional-dependencies"][name]:
        nested = re.fullmatch(r"pymc\[(.*)\]", requirement)
        if nested:
            requirements += [r for part in nested[1].split(",") for r in extra(part)]
        else:
            requirements.append(requirement)
    return requirements


@pytest.mark.parametrize("name", ["test", "dev"])
def test_conda_environments_agree_with_pyproject(name):
    environment = yaml.safe_load((ROOT / "conda-envs" / f"environment-{name}.yml").read_text())
    *conda, pip = environment["dependencies"]
    found = pins(conda + pip["pip"])
    assert found.pop("pip") == ""
    python = PROJECT["project"]["requires-python"]
    assert found.pop("python") == ",".join(sorted(python.split(",")))
    assert found == pins(PROJECT["project"]["dependencies"] + extra(name))


def test_hooks_are_local():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert {repo["repo"] for repo in config["repos"]} == {"local"}
    for hook in config["repos"][0]["hooks"]:
        for requirement in hook.get("additional_dependencies", []):
            assert "==" in requirement
