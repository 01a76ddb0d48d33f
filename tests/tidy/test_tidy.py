"""What a machine can check of the house style: the direction of imports, who may name which
library, calls that a deciding machine may not make, and lengths that may only shrink."""

from __future__ import annotations

import ast
import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("chunker", "peer", "gateway")
SOURCES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
FUNCTION_LINES_MAX = 50
FILE_LINES_MAX = 400
# Files and functions above the limits. This list may only shrink.
LONG_FILES = {"chunker/packs.py": 428}
LONG_FUNCTIONS: dict[str, int] = {}

MAY_IMPORT = {
    "chunker": {"chunker"},
    "peer": {"chunker", "peer"},
    "gateway": {"chunker", "peer", "gateway"},
}
VENDORS = {
    "libp2p": {"peer/handshake.py", "peer/host.py", "peer/muxers.py", "peer/sessions.py"},
    "multiaddr": {"peer/host.py", "peer/sessions.py"},
    "zeroconf": {"peer/lan.py"},
    "pyfastcdc": {"chunker/cut.py"},
    "ahocorasick_rs": {"chunker/references.py"},
    "sqlite3": {"chunker/packs.py", "chunker/pack_index.py", "gateway/nixstore.py"},
    "httptools": {"gateway/requests.py"},
    "pycurl": {
        f"gateway/{name}.py"
        for name in ("upstream", "handles", "pages", "transfers", "scout_process")
    },
    "rich": {
        "gateway/terminal.py",
        "gateway/watching.py",
        "gateway/pool_view.py",
        "gateway/explain_page.py",
    },
    "tomlkit": {"gateway/setup.py"},
    "nacl": {"gateway/signing.py", "peer/identity.py"},
}
STORES = ("packs", "pack_index", "disk", "manifests")
# Machines: no I/O, no trio, no clock, no chance of their own.
MACHINES = (
    [path for path in SOURCES if path.parent.name == "chunker" and path.stem not in STORES]
    + [ROOT / "peer" / f"{name}.py" for name in
       ("exchange", "effects", "picker", "parts", "standing", "serving", "growing", "fetchers",
        "catalogue", "summary", "ahead", "messages", "fields", "wire", "identity", "yamux", "noise",
        "acquaintances", "rates", "traffic", "certificates", "pools", "join_code")]
    + [ROOT / "gateway" / f"{name}.py" for name in
       ("narinfo", "trust", "policy", "alarms", "content_address", "git_tree", "proofs", "offer",
        "signing", "decompress", "redirects", "lookup", "memory", "prefetch", "requests",
        "completeness", "seals", "scout_frames")]
)  # fmt: skip
FORBIDDEN_TO_MACHINES = {"trio", "time", "random", "socket", "threading", "subprocess"}
PRINTS = {
    "gateway/cli.py",
    "gateway/run.py",
    "gateway/demo.py",
    "gateway/terminal.py",
    "gateway/setup.py",
    "gateway/setup_options.py",
    "gateway/pool_commands.py",
    "gateway/trust_options.py",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def imports(path: Path) -> set[str]:
    """Top-level names of everything imported anywhere in the file, TYPE_CHECKING included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0] if node.level == 0 else path.parent.name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_one_way(path: Path) -> None:
    foreign = set(PACKAGES) - MAY_IMPORT[path.parent.name]
    assert not imports(path) & foreign
    assert "tests" not in imports(path) and "benchmarks" not in imports(path)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_libraries_are_named_in_one_place(path: Path) -> None:
    for vendor in imports(path) & VENDORS.keys():
        assert name_of(path) in VENDORS[vendor], f"{vendor} is named in {name_of(path)}"


def test_the_bytes_below_know_no_network() -> None:
    for path in (ROOT / "chunker").glob("*.py"):
        assert not imports(path) & {"trio", "socket", "libp2p"}, path


@pytest.mark.parametrize("path", MACHINES, ids=name_of)
def test_machines_decide_and_do_nothing(path: Path) -> None:
    allowed = {"threading"} if path.stem == "block" else set()  # codecs are one per thread
    assert not imports(path) & (FORBIDDEN_TO_MACHINES - allowed)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_calls_that_nobody_makes(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"bare except, line {node.lineno}"
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in ("time.time", "random.random", "random.choice", "eval", "exec")
            if called == "print":
                assert name_of(path) in PRINTS, f"print, line {node.lineno}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_files_and_functions_fit(path: Path) -> None:
    text = path.read_text()
    lines = text.count("\n")
    assert lines <= LONG_FILES.get(name_of(path), FILE_LINES_MAX)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            most = LONG_FUNCTIONS.get(f"{name_of(path)}:{node.name}", FUNCTION_LINES_MAX)
            assert length <= most, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_every_file_opens_with_its_theory(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), name_of(path)


def test_every_mutant_names_a_test_that_exists() -> None:
    for patch in sorted((ROOT / "tests" / "mutants").glob("*.patch")):
        first = patch.read_text().splitlines()[0]
        match = re.fullmatch(r"# test: (\S+\.py)::(\w+)(\[.*\])?", first)
        assert match, f"{patch.name} must begin with '# test: FILE::NAME'"
        assert f"def {match[2]}(" in (ROOT / match[1]).read_text(), patch.name


def test_every_mutant_applies_to_the_code_of_today() -> None:
    stale = {
        patch.stem: done.stderr
        for patch in sorted((ROOT / "tests" / "mutants").glob("*.patch"))
        if (done := applied(patch)).returncode
    }
    assert not stale, "make these patches anew: the code they change has moved"


def applied(patch: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "apply", "--check", str(patch)],
        cwd=ROOT, capture_output=True, text=True, check=False,
        env={**os.environ, "GIT_DIR": str(ROOT / "none")},  # the files count, not the index
    )  # fmt: skip
