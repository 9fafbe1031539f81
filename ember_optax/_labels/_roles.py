"""Which token tables predict tokens, and which only read them."""

from ember_optax._labels import _words
from ember_optax._axes import longest_axis


def heads(tables: dict[str, tuple[int, ...]], sizes: tuple[int, ...]) -> set[str]:
    """Returns the paths of the tables that predict tokens.

    Args:
      tables: shapes of all tables by path, () for one of which only the name is known.
      sizes: sizes of the vocabularies, empty if not given.
    """
    named = {path: _words.is_output(path) for path in tables}
    found = {path for path, output in named.items() if output}
    unnamed = {path for path, output in named.items() if output is None}
    found |= {path for path in unnamed if _is_kernel(tables[path], sizes)}
    if not found and len(unnamed) < len(tables):
        # Linear layers of PyTorch and Equinox store [V, D] as embeddings do, but
        # embeddings are called so.
        found = {path for path in unnamed if not _words.is_extra(path)}
    return found or _tied(set(tables))


def _is_kernel(shape: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
    """Whether tokens are on the last axis."""
    fitting = [axis for axis, size in enumerate(shape) if size in sizes]
    axis = fitting[0] if fitting else longest_axis(shape or (1,))
    return 0 < axis == len(shape) - 1


def _tied(embeddings: set[str]) -> set[str]:
    """Returns the main embedding of a model without a head, which it is as well."""
    if len(embeddings) == 1:
        return embeddings
    main = {path for path in embeddings if not _words.is_extra(path)}
    if len(main) > 1:
        main = {path for path in main if _words.is_decoded(path)}
    return main
