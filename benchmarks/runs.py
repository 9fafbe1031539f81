"""Runs that are on file once they are finished, and are then not run again."""

import json
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from benchmarks import results

Run = dict[str, Any]


class Runs:
    """The runs in `benchmarks/results/NAME.json`."""

    def __init__(self, name: str):
        self._name = name
        path = results.RESULTS / f"{name}.json"
        text = path.read_text() if path.exists() else '{"runs": []}'
        self.all: list[Run] = json.loads(text)["runs"]

    def get(self, settings: Run, execute: Callable[[], Run]) -> Run:
        """Returns the run with these settings; executes it if there is none.

        Args:
          settings: what tells runs apart, part of the result.
          execute: returns the rest of it.
        """
        for run in self.all:
            if run.items() >= settings.items():
                return run
        run = settings | execute()
        self.all.append(run)
        packages = {"google-tunix": version("google-tunix")}
        results.write(self._name, packages | {"runs": self.all})
        print({k: v for k, v in run.items() if not isinstance(v, list)}, flush=True)
        return run
