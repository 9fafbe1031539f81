"""What `label_token_tables` tells a user about bad input."""

import itertools
import math
import operator
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
from jax.sharding import get_abstract_mesh

from ember_optax._labels import _words
from ember_optax._paths import quoted

PAD_MULTIPLE = 256
"""A vocabulary may be padded up to the next multiple of this, by at most a third."""

_SHARD_MAP = (
    "Inside shard_map, shapes are those of one shard: compute the labels outside and"
    " pass the tree of labels to the optimizer."
)

_SHOWN = 3
"""How many parameters a message names."""


def vocab_sizes(sizes: int | Iterable[int] | None) -> tuple[int, ...]:
    """Returns the sizes of the vocabularies as a tuple, empty for None.

    Raises:
      ValueError: one is not a positive integer, or there are none.
    """
    if sizes is None:
        return ()
    scalar = getattr(sizes, "ndim", 1) == 0  # an array, which is Iterable even so
    if scalar or isinstance(sizes, str) or not isinstance(sizes, Iterable):
        return (_vocab_size(sizes),)
    found = tuple(map(_vocab_size, sizes))
    if not found:
        raise ValueError(
            f"vocab_size={sizes!r} is empty: pass the number of tokens, or None to go"
            " by names alone."
        )
    return found


def matches(
    argument: str, patterns: str | Sequence[str], paths: Collection[str], needed: bool
) -> set[str]:
    """Returns the paths in which one of the patterns of `include` or `exclude` occurs.

    Args:
      argument: the name of the argument.
      patterns: one regular expression or several.
      paths: where to search.
      needed: whether each pattern has to match a path, if there are any paths.

    Raises:
      ValueError: a pattern is not a regular expression, or matches nothing.
    """
    one = isinstance(patterns, str) or not isinstance(patterns, Iterable)
    matched = set()
    for pattern in [patterns] if one else patterns:
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(
                f"{argument} must be a regular expression or several, as strings that"
                f" are not empty; got {pattern!r}."
            )
        try:
            found = {path for path in paths if re.search(pattern, path)}
        except re.error as error:
            raise ValueError(
                f"{argument}: {pattern!r} is not a valid regular expression: {error}."
                " To match a path literally, pass re.escape(path)."
            ) from error
        if needed and paths and not found:
            raise ValueError(
                f"{argument}: {pattern!r} matches no parameter. It is searched in paths"
                f" such as {_some(paths)}; correct it or leave it out."
            )
        matched |= found
    return matched


def check_not_sharded(shapes: dict[str, tuple[int, ...]], sizes: tuple[int, ...]) -> None:
    """Raises ValueError if a table holds one shard of a vocabulary, in `shard_map`.

    Args:
      shapes: shapes of parameters that are named like tables, but found to be none.
      sizes: sizes of the vocabularies.
    """
    mesh = get_abstract_mesh()
    manual = [kind == jax.sharding.AxisType.Manual for kind in mesh.axis_types]
    shards = math.prod(itertools.compress(mesh.axis_sizes, manual))
    for path, shape in shapes.items():
        for axis, size in itertools.product(shape, sizes):
            if axis < size and size % axis == 0 and shards % (size // axis) == 0:
                raise ValueError(
                    f"{quoted(path)} {shape} seems to hold {axis} of {size} tokens."
                    f" {_SHARD_MAP}"
                )


def no_table(
    leaves: dict[str, Any], sizes: tuple[int, ...], widths: dict[int, str]
) -> str:
    """Returns why no table may have been found, and the ways out.

    Args:
      leaves: all parameters by path.
      sizes: sizes of the vocabularies, empty if not given.
      widths: path of a parameter that shows it, for each size that is also a width.
      lora_paths: those of the paths that are LoRA factors.
    """
    tokens = f" of {' or '.join(map(str, sizes))} tokens" if sizes else ""
    by_size = sorted(leaves, key=lambda path: -math.prod(_shape(leaves[path])))
    largest = ", ".join(
        f"{quoted(path)} {_shape(leaves[path])}" for path in by_size[:_SHOWN]
    )
    message = [
        f"No token table{tokens} was found. The largest parameters (of"
        f" {len(leaves)}) are {largest}."
    ]
    message += [
        f"{size} is also a width of the model, see {quoted(path)}"
        f" {_shape(leaves[path])}, so only parameters named like a table would count."
        for size, path in widths.items()
    ]
    lora_paths = [path for path in leaves if _words.is_lora(path)]
    if sizes and jax.sharding.AxisType.Manual in get_abstract_mesh().axis_types:
        message.append(_SHARD_MAP)
    if lora_paths:
        message.append(
            f"LoRA factors such as {_some(lora_paths)} are not token tables, so do not"
            " include them."
        )
    else:
        advice = "Name the tables with include=[...], regular expressions on the paths"
        if not sizes:
            advice += ", or pass vocab_size=, the number of tokens"
        elif not widths:
            advice += (
                ", or pass vocab_size=, the padded size where it is above the next"
                f" multiple of {PAD_MULTIPLE} or more than a third above the number of"
                " tokens"
            )
        message.append(f"{advice}.")
    message.append(
        'If the tables are frozen or elsewhere, pass missing="body" to label everything'
        " as body."
    )
    return " ".join(message)


def _vocab_size(size: Any) -> int:
    try:
        number = operator.index(size)
    except TypeError:
        number = 0
    if number < 1 or isinstance(size, bool):
        raise ValueError(
            f"vocab_size must be a positive integer or several, the number of tokens;"
            f" got {size!r}."
        )
    return number


def _some(paths: Iterable[str]) -> str:
    return ", ".join(quoted(path) for path in list(paths)[:_SHOWN])


def _shape(leaf: Any) -> tuple[int, ...]:
    return tuple(getattr(leaf, "shape", ()))


def check_missing(missing: str) -> None:
    """Raises ValueError unless `missing` is one of its two values."""
    if missing not in ("error", "body"):
        raise ValueError(f'missing must be "error" or "body"; got {missing!r}.')


def check_roles(embed: str | None, head: str | None, body: str) -> None:
    """Raises ValueError unless both roles have a label of their own, or none has."""
    if (embed is None) != (head is None):
        raise ValueError(
            f"embed={embed!r}, head={head!r}: give both, the labels of input and output"
            " tables, or neither, for one label table=."
        )
    if embed is not None and len({embed, head, body}) < 3:
        raise ValueError(
            "embed, head and body must be three different labels; got"
            f" {embed!r}, {head!r} and {body!r}. For one label of all tables, pass"
            " table= instead of embed= and head=."
        )


def check_options(on_missing, embed, head, body):
    check_roles(embed, head, body)
    if on_missing not in ("raise", "ignore"):
        raise ValueError(f'on_missing must be "raise" or "ignore"; got {on_missing!r}.')

def forgotten_table(table, shape, similar, sizes):
    return f"GUARD {table} {shape} {similar}"
