"""TPU slices to compile for on a machine that has no TPU."""

import importlib.util
import os
from typing import Any

import jax
from jax.experimental import topologies

from examples.lm.errors import MissingPackage, UserError

# Of one device, which is a chip, or half of one of tpu7x;
# https://cloud.google.com/tpu/docs/v6e (v5e as well), /v5p and /tpu7x.
_HBM_BYTES = {
    "v5e": 16 * 10**9,
    "v5p": 95 * 10**9,
    "v6e": 32 * 10**9,
    "tpu7x": 96 * 10**9,
}
# What libtpu would look for on a TPU machine. One type serves slices of all families.
_ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5p-128",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # else a second process is refused
}


def devices(name: str) -> list[Any]:
    """Returns the devices of a TPU slice, for `jax.make_mesh(..., devices=...)`.

    Programs are compiled for them and cannot run.

    Args:
      name: family and shape, such as "v6e:4x4", "v5p:4x4x4" or "tpu7x:4x4x4".

    Raises:
      MissingPackage: libtpu, which holds the compiler, is not installed.
      UserError: there is no such slice.
    """
    _check_family(name)
    if importlib.util.find_spec("libtpu") is None:
        raise MissingPackage(
            "The TPU compiler is missing; on Linux on x86_64,"
            " `pip install 'jax[tpu]'` brings it."
        )
    for key, value in _ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    try:
        return list(topologies.get_topology_desc(name, platform="tpu").devices)
    except jax.errors.JaxRuntimeError as error:
        raise UserError(
            f"The topology is {name!r}, but libtpu knows no such slice ({error})."
            " Examples are 'v6e:4x4', 'v5p:4x4x4' and 'tpu7x:4x4x4'."
        ) from error


def hbm_bytes(name: str) -> int:
    """Returns the memory of one device of a slice.

    Raises:
      UserError: the family is unknown.
    """
    return _HBM_BYTES[_check_family(name)]


def _check_family(name: str) -> str:
    family = name.partition(":")[0]
    if family not in _HBM_BYTES:
        raise UserError(
            f"The topology is {name!r}, but it must be one of the families"
            f" {', '.join(_HBM_BYTES)} and a shape: 'v5p:4x4x4'."
        )
    return family
