"""Parameter trees of real models, with the role of every parameter."""

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from ember_optax import label_token_tables

label_roles = functools.partial(label_token_tables, embed="embed", head="head")


def from_shapes(params: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    return {k: jax.ShapeDtypeStruct(shape, "float32") for k, shape in params.items()}


class Leaf(NamedTuple):
    role: str  # "embed", "head" or "body"
    marks: str  # explained at the top of the file
    path: str
    struct: jax.ShapeDtypeStruct


class Model(NamedTuple):
    name: str
    vocab_sizes: tuple[int, ...]
    leaves: list[Leaf]

    @property
    def params(self) -> dict[str, jax.ShapeDtypeStruct]:
        return {leaf.path: leaf.struct for leaf in self.leaves}

    @property
    def roles(self) -> dict[str, str]:
        return {leaf.path: leaf.role for leaf in self.leaves}

    @property
    def unclear(self) -> list[str]:
        """Paths whose name does not tell a table from body."""
        return [leaf.path for leaf in self.leaves if "?" in leaf.marks]

    @property
    def included(self) -> list[str]:
        """Paths of the tables that the user has to include."""
        return [leaf.path for leaf in self.leaves if "+" in leaf.marks]


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
            role = re.sub(r"[?+!]", "", label)
            leaf = Leaf(role, label.removeprefix(role), path, struct)
            models[-1].leaves.append(leaf)
    return models


MODELS = read_models()
