"""`import ember_optax`: its public names, and what it does not load."""

import subprocess
import sys

import ember_optax

SCRIPT = """
import sys, jax, optax
before = set(sys.modules)
import ember_optax
print(*set(sys.modules) - before)
print(*(name for name in sys.modules if "pallas" in name))
"""


def test_import_loads_nothing_but_jax_and_optax() -> None:
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True
    )
    new, pallas = (line.split() for line in run.stdout.splitlines())
    packages = {name.partition(".")[0] for name in new} - sys.stdlib_module_names
    assert packages <= {"ember_optax", "jax", "optax"}
    assert not pallas


def test_public_names() -> None:
    assert set(dir(ember_optax.lazy)) == set(ember_optax.lazy.__all__)
    assert set(ember_optax.__all__) <= set(dir(ember_optax))
