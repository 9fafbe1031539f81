"""Parameter trees of real models, with the label of every parameter."""

import re
from pathlib import Path
from typing import NamedTuple

import jax


class Leaf(NamedTuple):
    role: str  # "embed", "head" or "body"
    marks: str  # as the file explains them
    path: str
    struct: jax.ShapeDtypeStruct

    @property
    def label(self) -> str:
        return "body" if self.role == "body" else "table"


class Model(NamedTuple):
    name: str
    vocab_sizes: tuple[int, ...]
    leaves: list[Leaf]

    @property
    def params(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {leaf.path: leaf.struct for leaf in self.leaves}

    @property
    def include(self) -> list[str]:
        """Patterns for the tables that the user has to name."""
        return [f"^{re.escape(x.path)}$" for x in self.leaves if "+" in x.marks]


def read_models() -> list[Model]:
    text = (Path(__file__).parent / "data" / "models.txt").read_text()
    models = []
    for line in text.splitlines():
        if line.startswith("model "):
            name, _, sizes = line.removeprefix("model ").partition("|")
            models.append(Model(name.strip(), tuple(map(int, sizes.split())), []))
        elif line and not line.startswith("#"):
            label, path, shape, *dtype = line.split()
            struct = jax.ShapeDtypeStruct(
                tuple(map(int, shape.split("x"))), *dtype or ["float32"]
            )
            role = label.rstrip("?+!")
            leaf = Leaf(role, label.removeprefix(role), path, struct)
            models[-1].leaves.append(leaf)
    return models


MODELS = read_models()
SHAPED_MODELS = [m for m in MODELS if m.vocab_sizes]
