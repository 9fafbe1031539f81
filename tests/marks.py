"""Marks of several tests; `compiling.py` also serves benchmarks, without pytest."""

import importlib.util

import jax.numpy as jnp
import pytest

both_dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="libtpu is not installed: pip install 'jax[tpu]'",
)
