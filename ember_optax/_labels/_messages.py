"""Input validation and error messages of `label_token_tables`."""

import itertools
import math
import operator
import re
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import jax
from jax.sharding import get_abstract_mesh

from ember_optax._checks import check_pattern
from ember_optax._labels import _words
from ember_optax._paths import quoted

PAD_MULTIPLE = 256
"""A vocabulary may be padded up to the next multiple of this, by at most a third."""

_SHARD_MAP = (
    "Inside shard_map, shapes are those of one shard: compute the labels outside and"
    " pass the tree of labels to the optimizer."
)


def check_options(
    on_missing: str, embed: str | None, head: str | None, body: str
) -> None:
    """Raises ValueError if an option has an invalid value."""
    if on_missing not in ("raise", "ignore"):
        raise ValueError(f'on_missing must be "raise" or "ignore"; got {on_missing!r}.')
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


def vocab_sizes(sizes: int | Iterable[int] | None) -> tuple[int, ...]:
    """Returns the sizes of the vocabularies as a tuple, empty for None."""
    if sizes is None:
        return ()
    is_scalar = getattr(sizes, "ndim", 1) == 0  # arrays of rank 0 are Iterable as well
    if is_scalar or isinstance(sizes, str) or not isinstance(sizes, Iterable):
        return (_vocab_size(sizes),)
    several = tuple(map(_vocab_size, sizes))
    if not several:
        raise ValueError(
            f"vocab_size={sizes!r} is empty: pass the number of tokens, or None to use"
            " names alone."
        )
    return several


def matches(
    argument: str, patterns: str | Sequence[str], paths: Collection[str], needed: bool
) -> set[str]:
    """Returns the paths in which a pattern of `include` or `exclude` occurs.

    `needed` makes it an error if there are paths but a pattern matches none.
    """
    is_single = isinstance(patterns, str) or not isinstance(patterns, Iterable)
    several: list[Any] = [patterns] if is_single else list(patterns)
    matched = set()
    for pattern in several:
        check_pattern(argument, pattern)
        found = {path for path in paths if re.search(pattern, path)}
        if needed and paths and not found:
            raise ValueError(
                f"{argument}: {pattern!r} matches no parameter. It is searched in paths"
                f" such as {_first(map(quoted, paths))}; correct it or leave it out."
            )
        matched |= found
    return matched


def check_not_sharded(
    shapes: dict[str, tuple[int, ...]], sizes: tuple[int, ...]
) -> None:
    """Raises ValueError if parameters named like tables hold one shard each."""
    mesh = get_abstract_mesh()
    manual = [kind == jax.sharding.AxisType.Manual for kind in mesh.axis_types]
    n_shards = math.prod(itertools.compress(mesh.axis_sizes, manual))
    for path, shape in shapes.items():
        for axis, size in itertools.product(shape, sizes):
            if axis < size and size % axis == 0 and n_shards % (size // axis) == 0:
                raise ValueError(
                    f"{quoted(path)} {shape} seems to hold {axis} of {size} tokens."
                    f" {_SHARD_MAP}"
                )


def no_table(
    leaves: dict[str, Any], sizes: tuple[int, ...], widths: dict[int, str]
) -> str:
    """Returns the message for a tree without a table."""
    shapes = {path: tuple(getattr(x, "shape", ())) for path, x in leaves.items()}
    largest = sorted(shapes, key=lambda path: -math.prod(shapes[path]))
    if shapes == {"": ()}:
        return (
            "label_token_tables got one number and not parameters. In"
            " optax.inject_hyperparams a function counts as a schedule unless it is"
            " listed in static_args=: add 'labels', or 'param_labels'."
        )
    tokens = f" of {' or '.join(map(str, sizes))} tokens" if sizes else ""
    message = (
        f"No token table{tokens} was found. The largest parameters (of {len(leaves)})"
        f" are {_shown(largest, shapes)}."
    )
    for size, path in widths.items():
        message += (
            f" {size} is also a width of the model, see {_shown([path], shapes)}, so"
            " only parameters that are named like a table count."
        )
    if sizes and jax.sharding.AxisType.Manual in get_abstract_mesh().axis_types:
        message += f" {_SHARD_MAP}"
    lora = [quoted(path) for path in leaves if _words.is_lora(path)]
    if lora:
        message += (
            f" LoRA factors such as {_first(lora)} are not token tables, so do not"
            " include them."
        )
    else:
        message += " Name the tables with include=[...], regular expressions on paths"
        if not sizes:
            message += ", or pass vocab_size=, the number of tokens"
        elif not widths:
            message += (
                ", or pass vocab_size=, the padded size if it exceeds the next multiple"
                f" of {PAD_MULTIPLE} or the number of tokens by more than a third"
            )
        message += "."
    return message + (
        " If this tree has no trainable token table (LoRA, frozen tables), pass"
        ' on_missing="ignore" to label everything as body. For'
        " ember_optax.with_ember, pass labels=, or use the body's optimizer alone."
    )


def forgotten_table(
    table: str,
    similar: list[str],
    shapes: dict[str, tuple[int, ...]],
    sizes: tuple[int, ...],
) -> str:
    """Returns the message for parameters with the axes of a table but unknown names."""
    padded = "padded " if sizes else ""
    return (
        f"These parameters have the axes of the token table {_shown([table], shapes)},"
        " but their names do not tell whether they are token tables:"
        f" {_shown(similar, shapes)}. Pass vocab_size=, the {padded}number of tokens,"
        " so that shapes decide. Or name each in include=[...] if it is a token table,"
        " and in exclude=[...] if it is not."
    )


def _vocab_size(size: Any) -> int:
    try:
        number = operator.index(size)
    except TypeError:
        number = 0
    if number < 1 or isinstance(size, bool):
        raise ValueError(
            "vocab_size must be a positive integer or several, the number of tokens;"
            f" got {size!r}."
        )
    return number


def _shown(paths: list[str], shapes: dict[str, tuple[int, ...]]) -> str:
    return _first(f"{quoted(path)} {shapes[path]}" for path in paths)


def _first(names: Iterable[str]) -> str:
    """Joins the first three names, and tells how many more there are."""
    shown = list(names)
    more = [f"{len(shown) - 3} more"] if len(shown) > 3 else []
    return ", ".join(shown[:3] + more)
