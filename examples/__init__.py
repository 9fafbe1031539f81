"""Training programs to copy from; run them from the root of the repository."""

import os
from glob import glob

# libtpu is there to compile for TPUs; without one it says so at every start.
if not glob("/dev/accel[0-9]*") + glob("/dev/vfio/[0-9]*"):
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5p-128")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
