from typing import Any


def write(path: Any) -> None:
    pass
