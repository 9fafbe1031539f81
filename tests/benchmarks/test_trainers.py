"""Checks that run in every trainer, each shown to fail."""

import subprocess
import tomllib
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

import ember_optax
from benchmarks.trainers import checks, environment
from benchmarks.trainers.checks import Trained

PARAMS = {"embed": jnp.ones((16, 4)), "mlp": {"kernel": jnp.ones((4, 8))}}


def trained(params: Any = PARAMS) -> Trained:
    tx = ember_optax.with_ember(optax.adamw(1e-3), head_learning_rate=1e-2)
    return Trained([], params, tx.init(params))


def test_check_state_requires_v_plus_d_numbers() -> None:
    tables = checks.check_state(trained(), 16)
    assert tables == {"embed": {"role": "head", "shape": [16, 4]}}
    longer = {**PARAMS, "embed": jnp.ones((16, 5))}
    with pytest.raises(AssertionError, match="expected sizes"):
        checks.check_state(trained()._replace(params=longer), 16)


def test_check_state_requires_every_table() -> None:
    adam = Trained([], PARAMS, optax.adamw(1e-3).init(PARAMS))
    with pytest.raises(AssertionError, match="but the tables are"):
        checks.check_state(adam, 16)
    checks.check_only_adamw(adam.opt_state)
    with pytest.raises(AssertionError, match="no table is trained"):
        checks.check_only_adamw(trained().opt_state)


def test_names_with_dots_are_found() -> None:
    params = {"model.embed_tokens.weight": jnp.ones((16, 4))}
    found = trained(params)
    assert checks.check_state(found, 16).keys() == params.keys()
    checks.check_tables(found.opt_state, *params)


def test_check_state_requires_replication() -> None:
    sharding = NamedSharding(jax.make_mesh((8,), ("x",)), P("x"))

    def shard(x: jax.Array) -> jax.Array:
        return jax.device_put(x, sharding) if x.shape == (16,) else x

    found = trained()
    with pytest.raises(AssertionError, match="is sharded"):
        checks.check_state(
            found._replace(opt_state=jax.tree.map(shard, found.opt_state)), 16
        )


def test_check_equal_finds_a_small_difference() -> None:
    first = checks.host(PARAMS)
    checks.check_equal(first, checks.host(PARAMS))
    other = {**PARAMS, "embed": PARAMS["embed"].at[3, 1].add(1e-7)}
    with pytest.raises(AssertionError, match="embed"):
        checks.check_equal(first, checks.host(other))


def test_loss_must_fall_and_not_rise_after_a_change() -> None:
    checks.check_falls("Ember", [2.0, 1.0])
    with pytest.raises(AssertionError, match="does not fall"):
        checks.check_falls("Ember", [2.0, 1.99])
    kept = [3.0, 2.0, 1.0]
    assert checks.check_switch(kept, [2.0, 1.01])["adamw"] == [2.0, 1.0]
    with pytest.raises(AssertionError, match="bump"):
        checks.check_switch(kept, [2.0, 1.1])


def test_freeze_leaves_the_other_tables_to_ember() -> None:
    params = {**PARAMS, "lm_head": jnp.ones((4, 16))}
    tx = ember_optax.with_ember(optax.adamw(1e-3), head_learning_rate=1e-2)
    state = checks.freeze(tx, "embed").init(params)
    checks.check_tables(state, "lm_head")


def test_check_families_separates_wrong_labels_from_failed_builds() -> None:
    def build(name: str) -> tuple[Any, int]:
        if name == "broken":
            raise TypeError("no such layer")
        params = {"decoder": PARAMS["embed"]} if name == "unnamed" else PARAMS
        return params, 17 if name == "wrong" else 16

    found = checks.check_families(build, ["right", "unnamed", "wrong", "broken"])
    assert found["right"] == ["right"]
    assert found["with_vocab_size"] == ["unnamed"]
    assert found["wrong"].keys() == {"wrong"}
    assert found["not_built"] == {"broken": "TypeError: no such layer"}


def test_checkout_has_its_commit_and_is_on_the_path(tmp_path: Path) -> None:
    def git(*command: str) -> str:
        run = ["git", "-C", str(tmp_path), "-c", "user.name=n", "-c", "user.email=e"]
        done = subprocess.run([*run, *command], check=True, capture_output=True)
        return done.stdout.decode().strip()

    git("init", "--quiet")
    packages = tmp_path / "venv" / "lib" / "python3.12" / "site-packages"
    packages.mkdir(parents=True)
    commits = []
    for content in ("first", "second"):
        (tmp_path / "module.py").write_text(content)
        git("add", "module.py")
        git("commit", "--quiet", "--message", content)
        commits.append(git("rev-parse", "HEAD"))
    source = tmp_path / "venv" / "src"
    for content, commit in zip(("first", "second"), commits, strict=True):
        environment.check_out(tmp_path / "venv", tmp_path.as_uri(), commit)
        assert (source / "module.py").read_text() == content
    assert (packages / "checkout.pth").read_text() == f"{source}\n"


def test_oldest_environment_has_the_lower_bounds() -> None:
    project = tomllib.loads((environment.ROOT / "pyproject.toml").read_text())
    table = tomllib.loads(environment.TABLE.read_text())
    bounds = {x.replace(">=", "==") for x in project["project"]["dependencies"]}
    assert len(bounds) == 2
    assert bounds <= set(table["oldest"]["packages"])
    assert project["project"]["requires-python"] == f">={table['oldest']['python']}"
