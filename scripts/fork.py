"""Keep the fork and its upstream apart: lay out, compare, refresh, export.

The repository holds only what this project wrote. Upstream's files come from the
release pinned in ``pyproject.toml`` (``[tool.upstream]``), or from the checkout that
``PYMC_UPSTREAM`` names; ``patches/`` holds the changes to them, a file each.

``.upstream/`` is a git directory whose work tree is this checkout. It tracks upstream's
files and nothing else, under two refs:

- ``pristine``: upstream's files as released;
- ``laid-out``: the same with ``patches/`` applied, as they were last written to ``pymc/``.

So ``git --git-dir=.upstream diff pristine`` shows the whole change to upstream, and
``git --git-dir=.upstream diff laid-out`` shows the edits that are not in ``patches/`` yet.
"""

import argparse
import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile

from itertools import chain
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STATE = ROOT / ".upstream"
PATCHES = ROOT / "patches"
SERIES = ROOT / "scripts" / "series.toml"
# The build writes this one itself, so that pymc.__version__ names the fork.
VERSION_FILE = "pymc/_version.py"
DATA_FILE = "pymc/data.py"


class ForkError(SystemExit):
    """An error that ends the command with one paragraph and no traceback."""

    def __init__(self, message: str):
        super().__init__(f"\nfork: {message}\n")


def pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def series() -> list[dict]:
    """Return the commits of the exported series."""
    return tomllib.loads(SERIES.read_text(encoding="utf-8"))["commit"]


class GitError(ForkError):
    """A git command failed; ``reason`` is what it said."""

    def __init__(self, command: list[str], reason: str):
        self.reason = "; ".join(reason.strip().splitlines())
        super().__init__(
            f"'git {' '.join(command)}' failed ({self.reason}). If an interrupted run left .upstream "
            "broken or locked, delete that folder and run 'python scripts/fork.py layout': it is "
            "made anew, and edits in pymc/ are kept."
        )


def clean_environment() -> dict[str, str]:
    """Leave out what would make git work elsewhere or otherwise: a hook's variables, user config."""
    env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    env |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    env |= {f"GIT_{who}_NAME": "fork" for who in ("AUTHOR", "COMMITTER")}
    return env | {f"GIT_{who}_EMAIL": "fork@localhost" for who in ("AUTHOR", "COMMITTER")}


def git(
    *args: str | Path,
    git_dir: Path | None = None,
    work_tree: Path | None = None,
    index: Path | None = None,
    stdin: str | None = None,
    check: bool = True,
) -> str:
    """Run git and return what it printed; by default on ``.upstream/`` over this checkout."""
    env = clean_environment()
    if index is not None:
        env["GIT_INDEX_FILE"] = str(index)
    where = [f"--git-dir={git_dir or STATE}", f"--work-tree={work_tree or ROOT}"]
    options = ["-c", "core.autocrlf=false", "-c", "core.quotepath=false"]
    command = [str(arg) for arg in args]
    try:
        done = subprocess.run(
            ["git", *where, *options, *command],
            cwd=work_tree or ROOT,
            env=env,
            input=None if stdin is None else stdin.encode(),
            capture_output=True,
        )
    except FileNotFoundError:
        raise ForkError("git is not installed, and the patches are applied with it: install git.")
    if check and done.returncode:
        raise GitError(command, done.stderr.decode(errors="replace"))
    return done.stdout.decode()


def has_ref(name: str) -> bool:
    return (STATE / "HEAD").exists() and bool(git("rev-parse", "-q", "--verify", name, check=False))


def download(kind: str, folder: Path) -> Path:
    """Fetch the pinned upstream ``"wheel"`` or ``"sdist"`` with pip and check its sha256."""
    pin = pyproject()["tool"]["upstream"]
    form = "--only-binary=pymc" if kind == "wheel" else "--no-binary=pymc"
    requirement = f"pymc=={pin['version']}"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--disable-pip-version-check"]
    done = subprocess.run(
        [*command, "-q", form, "--dest", folder, requirement], capture_output=True, text=True
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ForkError(
            f"could not download the {kind} of {requirement} ({reason}). Check that the package "
            "index can be reached (pip's settings apply: PIP_INDEX_URL, PIP_CERT, proxies), or "
            "build on a PyMC source tree that is already on this machine: "
            "PYMC_UPSTREAM=/path/to/pymc pip install ."
        )
    [archive] = folder.glob("pymc-*")
    found = hashlib.sha256(archive.read_bytes()).hexdigest()
    if found != pin[f"{kind}-sha256"]:
        raise ForkError(
            f"{archive.name} has sha256 {found}, but pyproject.toml pins {pin[f'{kind}-sha256']}. "
            "Nothing was installed. The package index served another file than the one that this "
            "fork was made from: find out why, or, if the pin is what is wrong, correct "
            f"{kind}-sha256 under [tool.upstream] in pyproject.toml."
        )
    return archive


@contextlib.contextmanager
def upstream_tree(kind: str):
    """Give a folder with upstream's tree in it, and a name for it."""
    local = os.environ.get("PYMC_UPSTREAM")
    if local:
        folder = Path(local).expanduser().resolve()
        if not (folder / "pymc" / "__init__.py").is_file():
            raise ForkError(
                f"PYMC_UPSTREAM={local} is not a PyMC source tree: it has no pymc/__init__.py. "
                "Name the folder that holds upstream's pymc/ folder and pyproject.toml."
            )
        if folder == ROOT:
            raise ForkError("PYMC_UPSTREAM names this fork: name a checkout of PyMC itself.")
        yield folder, f"PYMC_UPSTREAM={folder}"
        return
    with tempfile.TemporaryDirectory() as temp:
        archive = download(kind, Path(temp))
        if kind == "wheel":
            with zipfile.ZipFile(archive) as zipped:
                zipped.extractall(Path(temp, "tree"))
            folder = Path(temp, "tree")
        else:
            with tarfile.open(archive) as tarred:
                tarred.extractall(temp, filter="data")
            [folder] = (p for p in Path(temp).glob("pymc-*") if p.is_dir())
        yield folder, release_name()


def release_name() -> str:
    pin = pyproject()["tool"]["upstream"]
    return f"PyMC {pin['version']} (wheel sha256 {pin['wheel-sha256']})"


def commit_tree(tree: str, message: str) -> str:
    return git("commit-tree", tree, "-m", message).strip()


def record(pristine: str, laid_out: str) -> None:
    """Set the two refs, to a commit of upstream's files and to the tree with the patches."""
    git("update-ref", "refs/heads/pristine", pristine)
    git(
        "update-ref", "refs/heads/laid-out", commit_tree(laid_out, "pristine with patches/ applied")
    )


def fetch_pristine() -> str:
    """Return the commit of upstream's files as they are pinned, fetched if they are not known."""
    if not (STATE / "HEAD").exists():
        git("init", "-q")
        git("config", "--unset", "core.worktree")  # the checkout may be moved
    known = git("log", "-1", "--format=%s", "pristine", "--", check=False).strip()
    if known == release_name() and not os.environ.get("PYMC_UPSTREAM"):
        return git("rev-parse", "pristine").strip()
    with upstream_tree("wheel") as (folder, name), tempfile.TemporaryDirectory() as temp:
        index = Path(temp, "index")
        git("add", "--all", "--force", "pymc", work_tree=folder, index=index)
        # Not upstream's: the version file is written below, caches may lie in a checkout.
        junk = ["*.pyc", VERSION_FILE]
        git("rm", "-q", "--cached", "--ignore-unmatch", *junk, work_tree=folder, index=index)
        return commit_tree(git("write-tree", index=index).strip(), name)


def patch_files() -> list[Path]:
    return sorted(PATCHES.rglob("*.patch"))


@contextlib.contextmanager
def index_of(tree: str):
    """Give a throw-away index that holds ``tree``, so that the main one is never in doubt."""
    with tempfile.TemporaryDirectory() as temp:
        index = Path(temp, "index")
        git("read-tree", tree, index=index)
        yield index


def patched_tree(pristine: str) -> str:
    """Apply ``patches/`` to upstream's files and return the tree, without touching ``pymc/``."""
    with index_of(pristine) as index:
        for patch in patch_files():
            try:
                git("apply", "--cached", "--whitespace=nowarn", patch, index=index)
            except GitError as error:
                name = git("log", "-1", "--format=%s", pristine).strip()
                raise ForkError(
                    f"{patch.relative_to(ROOT)} does not apply to {name} ({error.reason}). "
                    "Upstream changed these lines. Put the change into upstream's new file by "
                    "hand and refresh the patch: CONTRIBUTING.md, 'Rebase onto the next PyMC'."
                )
        return git("write-tree", index=index).strip()


def edited_since(tree: str) -> set[str]:
    """Name the files of ``tree`` whose copy in ``pymc/`` holds something else (missing ones not)."""
    with index_of(tree) as index:
        return set(git("diff", "--name-only", "--diff-filter=d", index=index).splitlines())


def files_of(tree: str) -> set[str]:
    return set(git("ls-tree", "-r", "--name-only", tree).splitlines())


def layout() -> None:
    """Write upstream's files with the patches applied into ``pymc/``."""
    pristine = fetch_pristine()
    target = patched_tree(pristine)
    edited = edited_since(target)
    if not has_ref("laid-out"):
        record(pristine, target)  # so that an edit found here can be kept with refresh
    else:
        # What stands as it was last written may be overwritten; all else is somebody's work.
        edited -= files_of("laid-out") - edited_since("laid-out")
    if edited:
        raise ForkError(
            f"{' '.join(sorted(edited))}: edited in place, and not in patches/ yet; laying out "
            "again would lose the edit. Keep it with 'python scripts/fork.py refresh', or drop "
            "it by deleting the file and laying out again."
        )
    git("read-tree", "--reset", "-u", target)
    record(pristine, target)
    version = pyproject()["project"]["version"]
    (ROOT / VERSION_FILE).write_text(
        "# Written by scripts/fork.py: the fork's version, from pyproject.toml.\n"
        f'def get_versions():\n    return {{"version": "{version}"}}\n',
        encoding="utf-8",
    )


def current_patches() -> dict[Path, str]:
    """Diff ``pymc/`` against ``pristine``: the patches as they should stand in ``patches/``."""
    if not has_ref("laid-out"):
        raise ForkError("upstream's files are not laid out yet: run 'pip install -e .' first.")
    patches = {}
    with index_of("pristine") as index:
        others = git("ls-files", "--others", "--", "pymc", index=index).splitlines()
        ours = {VERSION_FILE, *chain.from_iterable(step["files"] for step in series())}
        strays = [x for x in others if not (x in ours or "__pycache__" in x)]
        if strays:
            raise ForkError(
                f"{' '.join(strays)}: neither upstream's nor ours, so it would be lost. Name a new "
                f"module in {SERIES.relative_to(ROOT)} (and in .gitignore, so that git keeps it), "
                "or delete it."
            )
        for name in git("diff", "--name-only", index=index).splitlines():
            # One line of context: a patch should outlive upstream's edits nearby.
            text = git("diff", "--no-color", "--no-ext-diff", "-U1", "--", name, index=index)
            # The blob names in "index" lines mean nothing in another repository.
            kept = [x for x in text.splitlines(keepends=True) if not x.startswith("index ")]
            patches[PATCHES / f"{name}.patch"] = "".join(kept)
    return patches


def refresh() -> None:
    """Turn the edits in ``pymc/`` into ``patches/``."""
    patches = current_patches()
    if git("rev-parse", "laid-out^{tree}").strip() != patched_tree("pristine"):
        raise ForkError(
            "patches/ has changed since it was laid out (a git pull?), and a refresh would undo "
            "that. Put your edits aside first: git --git-dir=.upstream diff laid-out > my.diff; "
            "git --git-dir=.upstream checkout laid-out -- pymc; python scripts/fork.py layout; "
            "git apply my.diff; python scripts/fork.py refresh."
        )
    for path, text in patches.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_suffix(".new")
        aside.write_bytes(text.encode())
        aside.replace(path)
    for path in set(patch_files()) - patches.keys():
        path.unlink()
    record("pristine", patched_tree("pristine"))


def check() -> None:
    """Fail if ``patches/`` and the edits in ``pymc/`` do not agree."""
    wanted = current_patches()
    standing = {path: path.read_bytes().decode() for path in patch_files()}
    wrong = [p for p in wanted.keys() | standing.keys() if wanted.get(p) != standing.get(p)]
    if wrong:
        names = ", ".join(sorted(p.relative_to(ROOT).as_posix() for p in wrong))
        raise ForkError(
            f"{names}: not what pymc/ holds. If the edit in pymc/ is right, run "
            "'python scripts/fork.py refresh'; if the patch is right (after a git pull, say), "
            "lay out again with 'python scripts/fork.py layout'."
        )


def commit_upstream(folder: Path, target: Path) -> dict[str, Any]:
    """Make ``target`` a git tree whose one commit is the upstream tree in ``folder``."""
    if (folder / ".git").exists():  # a checkout: what git tracks there, as it stands
        listed = subprocess.run(
            ["git", "-C", folder, "ls-files", "-z"],
            env=clean_environment(),
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for name in filter(None, listed.split("\0")):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(folder / name, target / name)
    else:
        shutil.copytree(folder, target, dirs_exist_ok=True)
    here: dict[str, Any] = {"git_dir": target / ".git", "work_tree": target}
    git("init", "-q", **here)
    git("add", "--all", "--force", **here)
    git("commit", "-q", "-m", "Upstream PyMC", **here)
    return here


def author() -> str:
    """Name who exports, as git would: the series goes up under their name."""
    ident = subprocess.run(["git", "var", "GIT_AUTHOR_IDENT"], cwd=ROOT, capture_output=True)
    name = ident.stdout.decode().rpartition(">")[0]
    return f"{name}>" if name else "Streaming contributors <streaming@localhost>"


def peel(step: dict, upstream: str, here: dict[str, Any]) -> None:
    """Take what one commit of the series adds off a tree that holds it, and nothing after it."""
    for part in step.get("parts", []):
        try:
            git("apply", "--index", "--reverse", "--whitespace=nowarn", ROOT / part, **here)
        except GitError as error:
            raise ForkError(
                f"{part} does not come off the files as they stand ({error.reason}): they have "
                "changed where this part of them begins or ends. Bring the diff in line with them: "
                "CONTRIBUTING.md, 'Export the series'."
            )
    for patch in step.get("patches", []):
        # What later commits add to the file is off by now.
        name = Path(patch).relative_to(PATCHES.name).with_suffix("")
        git("checkout", "-q", upstream, "--", name, **here)
    for path in step.get("files", []):
        git("rm", "-q", "-f", path, **here)


def export(output: Path) -> None:
    """Write the change as a ``git am`` series on top of the upstream release."""
    if output.exists():
        raise ForkError(f"{output} exists already: remove it, or name another folder.")
    if has_ref("laid-out"):
        check()  # an edit that is not in patches/ would be left out
    steps = series()
    with upstream_tree("sdist") as (folder, name), tempfile.TemporaryDirectory() as temp:
        tree = Path(temp, "tree")
        tree.mkdir()
        here = commit_upstream(folder, tree)
        first = git("rev-parse", "HEAD", **here).strip()
        # All of it, and then commit by commit off again from the end: a file that grows over the
        # series stands in the repository in its last form.
        for path in chain.from_iterable(step.get("files", []) for step in steps):
            if (tree / path).exists():
                raise ForkError(f"{path} in {SERIES.name} stands in {name} already.")
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / path, tree / path)
            git("add", "--force", path, **here)
        for patch in chain.from_iterable(step.get("patches", []) for step in steps):
            git("apply", "--index", ROOT / patch, **here)
        trees = []
        for step in reversed(steps):
            trees.append(git("write-tree", **here).strip())
            peel(step, first, here)
        if git("write-tree", **here) != git("rev-parse", "HEAD^{tree}", **here):
            left = git("diff", "--cached", "--name-only", **here).split()
            raise ForkError(f"no commit of {SERIES.name} carries all of {' '.join(left)}.")
        for step in steps:
            git("read-tree", "--reset", "-u", trees.pop(), **here)
            git("commit", "-q", "--author", author(), "-F", "-", stdin=step["message"], **here)
        aside = Path(temp, "series")
        git("format-patch", "-q", "--no-signature", "-o", aside, first, **here)
        output.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(aside, output)


def prove() -> None:
    """Apply the exported series with ``git am`` to upstream's tree, and run its tests there.

    After each commit those that it carries, and upstream's own of the files that it patches. What
    stands after the last one must be what stands here, whose whole suite is ``make test``: so are the
    tests of the commit after which only documents follow.
    """
    with tempfile.TemporaryDirectory() as temp:
        mailbox, tree = Path(temp, "series"), Path(temp, "tree")
        export(mailbox)
        tree.mkdir()
        with upstream_tree("sdist") as (folder, _):
            here = commit_upstream(folder, tree)
        # The source release leaves upstream's tests/conftest.py out; ours has the same fixtures.
        shutil.copyfile(ROOT / "tests" / "conftest.py", tree / "tests" / "conftest.py")
        env = os.environ | {"PYTHONPATH": str(tree)}
        python = [sys.executable, "-c", "import pymc; print(pymc.__file__)"]
        where = subprocess.run(python, cwd=tree, env=env, capture_output=True, text=True).stdout
        if not Path(where.strip()).is_relative_to(tree):
            raise ForkError(f"the tests would run against {where.strip()}, not the series.")
        mails = sorted(mailbox.glob("*.patch"))
        code = [mail for mail in mails if "\n+++ b/pymc/" in mail.read_text(encoding="utf-8")]
        for mail in mails:
            git("am", "-q", mail, **here)
            changed = git("diff", "--name-only", "HEAD~", **here).splitlines()
            suites = [name for name in changed if Path(name).name.startswith("test_")]
            if DATA_FILE in changed:
                # Upstream's own test of the file that we patch; get_data needs the internet.
                theirs = "tests/test_data.py"
                suites += [theirs, f"--deselect={theirs}::test_get_data"]
            sys.stdout.write(f"{mail.name}: {len(changed)} files, {lines_of(mail)} lines\n")
            sys.stdout.flush()
            if mail >= code[-1]:  # make test
                continue
            pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
            pytest += ["-m", "not slow", "-o", "markers=slow"]
            if suites and subprocess.run([*pytest, *suites], cwd=tree, env=env).returncode:
                raise ForkError(f"{mail.name} applies, but its tests fail on upstream's tree.")
        carried = git("diff", "--name-only", f"HEAD~{len(mails)}", **here).splitlines()
        other = [x for x in carried if (tree / x).read_bytes() != (ROOT / x).read_bytes()]
        if other:
            raise ForkError(f"after the series {' '.join(other)} are not what stands here.")
        sys.stdout.write(
            f"series: {len(mails)} commits apply with git am, and their tests pass; those of the last are in make test\n"
        )


def lines_of(mail: Path) -> str:
    """Say how many lines a commit of the series adds and removes."""
    lines = mail.read_text(encoding="utf-8").splitlines()
    added = sum(line.startswith("+") and not line.startswith("+++") for line in lines)
    removed = sum(line.startswith("-") and not line.startswith("---") for line in lines)
    return f"+{added} -{removed}"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for function in (layout, refresh, check, export, prove):
        command = commands.add_parser(
            function.__name__, help=(function.__doc__ or "").splitlines()[0]
        )
        command.set_defaults(run=function)
    commands.choices["export"].add_argument("output", type=Path, nargs="?", default=ROOT / "series")
    options = vars(parser.parse_args())
    run = options.pop("run")
    options.pop("command")
    run(**options)


if __name__ == "__main__":
    main()
