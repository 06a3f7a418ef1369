"""Generates the Python code of the public contract, protos/onhand/**/*.proto.

Beside each .proto come its messages (_pb2.py), its services (_pb2_grpc.py) and the types of both
(.pyi). They are not committed. `make proto` runs this file; so does setuptools when it builds a
wheel or an editable install. Nothing is done while the sources, the generators and this file are
those of the last run.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
PACKAGE = ROOT / "onhand"
STAMP = PACKAGE / ".generated"
SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")

# protoc's own .pyi leaves services untyped; mypy-protobuf types them, and takes the comments along.
# Servicers are asyncio only: their methods are abstract and take and give awaitables.
TYPE_PLUGINS = ("protoc-gen-mypy", "protoc-gen-mypy_grpc")


def main() -> int:
    """Bring the generated code up to date. Returns the exit status: 1 if protoc refused a file."""
    sources = sorted(PACKAGE.rglob("*.proto"))
    wanted = _outputs(sources)
    digest = _digest(sources)
    if _stamp() == digest and all(path.exists() for path in wanted):
        return 0
    _remove(set(_generated()) - wanted)
    if sources:
        print(f"protos: generating code for {len(sources)} files")
        status = subprocess.run(_protoc(sources), cwd=ROOT, check=False).returncode
        if status != 0:
            return status
    STAMP.write_text(digest)
    return 0


class BuildPy(build_py):
    """The build step of setuptools that collects modules, after they have been generated."""

    def run(self) -> None:
        """Generate, then collect."""
        if main() != 0:
            raise SystemExit("protos: protoc refused the sources (see above)")
        super().run()


def _outputs(sources: Iterable[Path]) -> set[Path]:
    return {path.with_name(path.stem + suffix) for path in sources for suffix in SUFFIXES}


def _generated() -> Iterable[Path]:
    return (path for suffix in SUFFIXES for path in PACKAGE.rglob(f"*{suffix}"))


def _remove(paths: Iterable[Path]) -> None:
    """Code whose .proto is gone would still import."""
    for path in paths:
        path.unlink()


def _digest(sources: Iterable[Path]) -> str:
    """One hash of all that decides what is generated.

    Of contents, not times, so that a change of branch there and back does nothing.
    """
    digest = hashlib.sha256()
    for generator in ("grpcio-tools", "mypy-protobuf"):
        digest.update(f"{generator}=={version(generator)}\n".encode())
    for path in (Path(__file__), *sources):
        digest.update(f"{path.name} {path.stat().st_size}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _stamp() -> str:
    return STAMP.read_text() if STAMP.exists() else ""


def _protoc(sources: Iterable[Path]) -> list[str]:
    return [
        sys.executable,
        "-m",
        "grpc_tools.protoc",
        "--proto_path=.",
        "--python_out=.",
        "--grpc_python_out=.",
        *(f"--plugin={name}={_script(name)}" for name in TYPE_PLUGINS),
        "--mypy_out=quiet:.",
        "--mypy_grpc_out=quiet,only_async:.",
        *(os.fspath(path.relative_to(ROOT)) for path in sources),
    ]


def _script(name: str) -> str:
    """A script of this environment, which need not be on PATH; that of an isolated build is."""
    places = os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", "")))
    found = shutil.which(name, path=places)
    if found is None:
        raise SystemExit(f"protos: {name} is missing; run `make setup` (package mypy-protobuf)")
    return found


if __name__ == "__main__":
    sys.exit(main())
