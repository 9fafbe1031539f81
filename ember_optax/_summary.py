"""Summary of the token tables of a model and of the memory that Ember saves."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ember_optax._axes import token_axes
from ember_optax._labels import label_token_tables
from ember_optax._paths import by_path
from ember_optax._rule import init_moments


@dataclasses.dataclass(frozen=True)
class TableSummary:
    """One token table and the optimizer state that it needs."""

    path: str
    role: str  # its label: "head" if it predicts tokens, else "embed"
    shape: tuple[int, ...]
    dtype: str
    size: int  # parameters
    state_bytes: int  # with Ember: the row and col statistics
    adam_bytes: int  # with optax.adam: two moments in the dtype of the table


@dataclasses.dataclass(frozen=True)
class Summary:
    """The token tables of a model; printing it gives a table for people."""

    tables: tuple[TableSummary, ...]
    body_size: int  # parameters that are in no token table

    @property
    def size(self) -> int:
        """Parameters in token tables."""
        return sum(t.size for t in self.tables)

    @property
    def state_bytes(self) -> int:
        """Bytes of Ember's statistics; its step count takes 4 more."""
        return sum(t.state_bytes for t in self.tables)

    @property
    def adam_bytes(self) -> int:
        """Bytes of the two moments that optax.adam would keep for the tables."""
        return sum(t.adam_bytes for t in self.tables)

    def __str__(self) -> str:
        rows = [("token table", "role", "shape", "dtype", "Ember state", "Adam state")]
        for t in self.tables:
            shape = " x ".join(map(str, t.shape))
            sizes = _readable(t.state_bytes), _readable(t.adam_bytes)
            rows.append((t.path, t.role, shape, t.dtype, *sizes))
        count = f"{len(self.tables)} table{'s' * (len(self.tables) != 1)}"
        share = f"{self.size / max(self.size + self.body_size, 1):.0%} of all"
        ratio = f"({self.adam_bytes / max(self.state_bytes, 1):,.0f}x)"
        sizes = _readable(self.state_bytes), f"{_readable(self.adam_bytes)} {ratio}"
        rows.append((count, "", f"{self.size:,} params", share, *sizes))
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        rule = "-" * max(map(len, lines))
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


_labels = functools.partial(label_token_tables, embed="embed", head="head")


def summarize(
    params: Any,
    labels: Any | Callable[[Any], Any] = _labels,
    *,
    table: str | Sequence[str] = ("table", "embed", "head"),
) -> Summary:
    """Summarizes the token tables of a model: roles, shapes, bytes of optimizer state.

    Args:
      params: any pytree of arrays or of `jax.ShapeDtypeStruct`, such as
        `jax.eval_shape` returns.
      labels: tree of labels like `params` or a prefix of it, or a function from
        `params` to one: the `param_labels` of `optax.multi_transform`, or the `labels`
        of `with_ember`. Pass `label_token_tables` with a `vocab_size` if you can.
      table: the label of the token tables among them, or several.

    Returns:
      A `Summary`: print it, or read its numbers.

    Raises:
      ValueError: a parameter labelled as a table cannot be one, or there are parameters
        but no table among them.

    Examples:
      >>> import jax.numpy as jnp, ember_optax
      >>> params = {"wte": jnp.ones((50304, 768)), "mlp": jnp.ones((768, 3072))}
      >>> print(ember_optax.summarize(params))
      token table  role  shape              dtype       Ember state  Adam state
      --------------------------------------------------------------------------------
      wte          head  50304 x 768        float32     204.3 kB     309.1 MB
      --------------------------------------------------------------------------------
      1 table            38,633,472 params  94% of all  204.3 kB     309.1 MB (1,513x)
    """
    tree = labels(params) if callable(labels) else labels
    leaves = by_path(params)
    each = jax.tree.leaves(jax.tree.broadcast(tree, params))
    roles = dict(zip(leaves, each, strict=True))
    wanted = {table} if isinstance(table, str) else set(table)
    if roles and wanted.isdisjoint(each):
        raise ValueError(
            f"No parameter has the label {' or '.join(sorted(map(repr, wanted)))}, but"
            f" there are {', '.join(sorted(map(repr, set(each))))}: pass the label of"
            " the tables as table=."
        )
    tables = {path: leaf for path, leaf in leaves.items() if roles[path] in wanted}
    axes = token_axes(tables, None)
    return Summary(
        tuple(_summarize_table(k, roles[k], tables[k], axes[k]) for k in tables),
        sum(
            math.prod(getattr(leaf, "shape", ()))
            for path, leaf in leaves.items()
            if path not in tables
        ),
    )


def _summarize_table(path: str, role: str, leaf: Any, axis: int) -> TableSummary:
    moments = jax.eval_shape(lambda: init_moments(leaf.shape, leaf.dtype, axis))
    size = math.prod(leaf.shape)
    dtype = jnp.dtype(leaf.dtype)
    state_bytes = sum(x.size * x.dtype.itemsize for x in moments)
    adam_bytes = 2 * size * dtype.itemsize
    shape = tuple(leaf.shape)
    return TableSummary(path, role, shape, str(dtype), size, state_bytes, adam_bytes)


def _readable(n_bytes: int) -> str:
    """Formats 1234567 as `1.2 MB`, in powers of 1000."""
    power = min(int(math.log10(max(n_bytes, 1))) // 3, 4)
    unit = ("B", "kB", "MB", "GB", "TB")[power]
    return f"{n_bytes / 1000**power:.{0 if power == 0 else 1}f} {unit}"
