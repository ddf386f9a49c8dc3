"""The wheel in a clean environment, under the Python that runs this script, without torch.

    python3.13 benchmarks/validation/light.py

Makes out/light-3.13, installs the dependencies of pyproject.toml but torch and transformers, then
the wheel, and runs tests/test_wheel.py from there: import, measure, report, gate. Needs only the
standard library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers")
TESTED_WITH = ["pytest", "hypothesis"]


def main() -> None:
    """Raises subprocess.CalledProcessError where a step fails."""
    folder = ROOT / "out" / f"light-{sys.version_info.major}.{sys.version_info.minor}"
    venv.create(folder, with_pip=True, clear=True)
    python = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def run(*words: object, **settings: str) -> None:
        command = [str(python), "-m", *map(str, words)]
        subprocess.run(command, check=True, cwd=folder, env=os.environ | settings)

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = [d for d in project["dependencies"] if not d.startswith(HEAVY)]
    pip = ("pip", "--quiet", "--disable-pip-version-check")
    pins = ("--constraint", ROOT / "constraints.txt")
    run(*pip, "install", *pins, *needed, *TESTED_WITH)
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # modules of an earlier build would ship, too
    run(*pip, "wheel", "--no-deps", "--wheel-dir", folder / "wheel", ROOT)
    shutil.rmtree(ROOT / "build", ignore_errors=True)
    (wheel,) = (folder / "wheel").glob("*.whl")
    run(*pip, "install", "--no-deps", wheel)
    installed = sysconfig.get_path("purelib", vars={"base": str(folder)})
    tests = ROOT / "tests" / "test_wheel.py"
    run("pytest", "-p", "no:cacheprovider", tests, KARMAFUNNEL_WHEEL=installed, PYTHONPATH="")


if __name__ == "__main__":
    main()
