"""Roles of token tables: heads predict tokens, embeddings read them."""

from ember_optax._axes import longest_axis
from ember_optax._labels import _words


def heads(tables: dict[str, tuple[int, ...]], sizes: tuple[int, ...]) -> set[str]:
    """Returns the paths of the tables that predict tokens.

    Args:
      tables: shapes of all tables by path; () if only the name is known.
      sizes: sizes of the vocabularies, empty if not given.
    """
    by_name = {path: _words.is_output(path) for path in tables}
    unnamed = {path for path, output in by_name.items() if output is None}
    found = {path for path, output in by_name.items() if output}
    found |= {path for path in unnamed if _has_tokens_last(tables[path], sizes)}
    if not found and len(unnamed) < len(tables):
        # Linear layers of PyTorch and Equinox store [V, D] as embeddings do, but an
        # embedding has a name that says it is one.
        found = {path for path in unnamed if not _words.is_auxiliary(path)}
    return found or _tied(set(tables))


def _has_tokens_last(shape: tuple[int, ...], sizes: tuple[int, ...]) -> bool:
    matching = [axis for axis, size in enumerate(shape) if size in sizes]
    axis = matching[0] if matching else longest_axis(shape or (1,))
    return 0 < axis == len(shape) - 1


def _tied(embeddings: set[str]) -> set[str]:
    """Returns the main embedding of a model without a head, which is both."""
    if len(embeddings) == 1:
        return embeddings
    main = {path for path in embeddings if not _words.is_auxiliary(path)}
    if len(main) > 1:
        main = {path for path in main if _words.is_in_decoder(path)}
    return main
