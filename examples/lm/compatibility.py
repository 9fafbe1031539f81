"""Whether a checkpoint is of the run that is to go on."""

import hashlib
import zlib
from typing import Any

import jax
import numpy as np

from examples.lm import Config, fingerprints
from examples.lm.config_check import flat
from examples.lm.data import Tokens
from examples.lm.errors import UserError
from examples.lm.fingerprints import some
from examples.lm.program import State

_MAY_CHANGE = (
    "steps",
    "eval_every",
    "eval_batches",
    "checkpoint_every",
    "keep_checkpoints",
    "tensorboard",
    "workdir",
    "resume",
    "overwrite",
    "data.path",  # the text itself is compared
    "data.cache_dir",
    "mesh",
    "axis_rules",
    "loss_chunks",
    "model.remat",
    "compile_topology",
)
"""What of a config may differ when a run is resumed."""

Text = dict[str, str]
"""Fingerprints of the tokens of both sides and of the tokenizer, by name."""


class Unusable(UserError):
    """A checkpoint is of another run: the way out is not an earlier one."""


def text_of(tokens: Tokens) -> Text:
    """Returns what tells a text, its split and its vocabulary from others."""

    def of(side: np.ndarray) -> str:
        return f"{side.size} tokens, {zlib.crc32(np.ascontiguousarray(side).data):08x}"

    digest = hashlib.sha256(tokens.tokenizer.encode()).hexdigest()[:16]
    return {
        "text to train on": of(tokens.train),
        "text to validate on": of(tokens.validation),
        "tokenizer": digest,
    }


def check_arrays(metadata: Any, target: State, path: str) -> None:
    """Raises Unusable if the arrays of a checkpoint are not those of the run."""
    old = {x.name: tuple(x.shape) for x in jax.tree.leaves(metadata)}
    shapes = [x.shape for x in jax.tree.leaves(target)]
    new = dict(zip(fingerprints.paths(target), shapes, strict=True))
    # Parameters come first: what differs there explains the rest.
    names = sorted(old | new, key=lambda name: (not name.startswith("params"), name))
    listed = [
        f"{name} is {old.get(name, 'missing')} there, {new.get(name, 'missing')} here"
        for name in names
        if old.get(name) != new.get(name)
    ]
    if listed:
        raise Unusable(
            f"The checkpoint {path} is of another model or optimizer:"
            f" {some(listed, '; ')}. Resume with the flags of that run, or start a new"
            " one in another --config.workdir."
        )


def check_config(saved: dict[str, Any], config: Config) -> None:
    """Raises Unusable if a run would go on with settings that may not change."""
    old, new = flat(saved), flat(config.to_dict())
    changes = [
        f"{name} was {old.get(name)!r} and is {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
        and not f"{name}.".startswith(tuple(f"{may}." for may in _MAY_CHANGE))
    ]
    if changes:
        raise Unusable(
            f"The checkpoint in {config.workdir} is of another config:"
            f" {'; '.join(changes)}. Resume with the flags of that run, or start a new"
            " one in another --config.workdir."
        )


def check_text(saved: Text, text: Text, path: str) -> None:
    """Raises Unusable if a run would go on with another text or tokenizer."""
    if changed := [name for name in text if saved.get(name) != text[name]]:
        raise Unusable(
            f"The checkpoint {path} is of a run on other text: {' and '.join(changed)}"
            " have changed. Resume with the text of that run, or start a new one in"
            " another --config.workdir."
        )
