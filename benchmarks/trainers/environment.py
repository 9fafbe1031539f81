"""Creates the environment of a trainer with the versions of environments.toml.

    python3 benchmarks/trainers/environment.py maxtext   # makes .venv-maxtext

Needs only Python 3.11 or later. An environment that is up to date is not changed.
"""

import hashlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
TABLE = Path(__file__).with_name("environments.toml")


def main(name: str) -> None:
    table = tomllib.loads(TABLE.read_text())
    if name not in table:
        raise SystemExit(f"There is no environment {name!r}, only {', '.join(table)}.")
    wanted = table[name]
    folder = ROOT / f".venv-{name}"
    key = hashlib.sha256(json.dumps(wanted).encode()).hexdigest()
    ready = folder / ".ready"
    if ready.exists() and ready.read_text() == key:
        return
    run(find_python(wanted["python"]), "-m", "venv", str(folder))
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    run(*pip, "--upgrade", "pip")  # older versions lack --group
    if "group" in wanted:
        group = f"{ROOT / 'pyproject.toml'}:{wanted['group']}"
        run(*pip, *wanted["packages"], "--editable", str(ROOT), "--group", group)
    else:  # --no-deps also allows versions below the library's bounds
        run(*pip, *wanted["packages"])
        run(*pip, "--no-deps", "--editable", str(ROOT))
    if "checkout" in wanted:
        check_out(folder, **wanted["checkout"])
    ready.write_text(key)


def check_out(folder: Path, url: str, commit: str) -> None:
    """Adds a repository that cannot be installed to the environment's path."""
    source = folder / "src"
    git = ["git", "-C", str(source)]
    run("git", "init", "--quiet", str(source))
    run(*git, "fetch", "--quiet", "--depth=1", url, commit)
    run(*git, "checkout", "--quiet", "--force", "FETCH_HEAD")
    for packages in folder.glob("lib/python*/site-packages"):
        (packages / "checkout.pth").write_text(f"{source}\n")


def find_python(version: str) -> str:
    """Finds an interpreter of this version on the path or in pyenv."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    builds = sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))
    for python in [f"python{version}", *map(str, builds)]:
        try:
            found = subprocess.run([python, "-c", ""], capture_output=True)
        except FileNotFoundError:
            continue
        if found.returncode == 0:
            return python
    raise SystemExit(
        f"Python {version} is needed; it is neither on the path nor in {pyenv}."
    )


def run(*command: str) -> None:
    print(" ".join(command), flush=True)
    subprocess.run(command, check=True)


if __name__ == "__main__":
    main(sys.argv[1])
