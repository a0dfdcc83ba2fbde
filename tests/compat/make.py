"""Makes tests/compat/adapters.tar.xz: small adapters by every minor version of PEFT from 0.6 on.

    python tests/compat/make.py                     # all versions, some ten minutes
    python tests/compat/make.py --versions 0.12.0   # this one only

A virtual environment in a temporary folder gets torch once, then one PEFT after the other with a
transformers of its time, and runs write.py. It is removed at the end.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ADAPTERS = HERE / "adapters.tar.xz"
TORCH = "2.13.0"
OLDEST = ["transformers==4.36.2", "accelerate==0.25.0"]
MIDDLE = ["transformers==4.47.1", "accelerate==1.2.1"]
LATE = ["transformers==4.57.6", "accelerate==1.12.0"]
NEWEST = ["transformers==5.24.0", "accelerate==1.15.0"]
BESIDE = {
    "0.6.2": OLDEST, "0.7.1": OLDEST, "0.8.2": OLDEST, "0.9.0": OLDEST, "0.10.0": OLDEST,
    "0.11.1": OLDEST, "0.12.0": OLDEST, "0.13.2": MIDDLE, "0.14.0": MIDDLE, "0.15.2": MIDDLE,
    "0.16.0": LATE, "0.17.1": LATE, "0.18.1": LATE, "0.19.1": LATE, "0.20.0": NEWEST,
    "0.21.2": NEWEST,
}  # fmt: skip
"""PEFT version -> what it is installed with"""


def run(*command: str | Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    subprocess.run([str(c) for c in command], check=True, env=environment)


def install(python: Path, *requirements: str) -> None:
    run(python, "-m", "pip", "install", "--quiet", *requirements)


def make(versions: list[str]) -> None:
    """The folders <version>/<case> of these versions in the archive, written anew."""
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "-m", "venv", folder)
        python = Path(folder) / "bin" / "python"
        install(python, f"torch=={TORCH}", "numpy", "safetensors")
        cases, installed = Path(folder) / "cases", None
        if ADAPTERS.is_file():
            shutil.unpack_archive(ADAPTERS, cases, filter="data")
        for version in versions:
            if installed != BESIDE[version]:
                install(python, *BESIDE[version])
                installed = BESIDE[version]
            install(python, "--no-deps", f"peft=={version}")
            shutil.rmtree(cases / version, ignore_errors=True)
            run(python, "-W", "ignore", HERE / "write.py", cases / version)
        shutil.make_archive(str(ADAPTERS).removesuffix(".tar.xz"), "xztar", cases)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--versions", nargs="+", choices=BESIDE, default=list(BESIDE))
    make(parser.parse_args().versions)
