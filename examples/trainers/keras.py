"""Any Optax optimizer in Keras 3 and KerasHub on JAX, here Ember: copy this file.

    @keras.saving.register_keras_serializable()
    def my_optimizer():
        return make_optimizer(1e-5)

    model.compile(optimizer=OptaxOptimizer(my_optimizer), ...)
    model.fit(...)
    model.save("gemma.keras")

    # In the next program. KerasHub does not compile a model that it loads.
    model.compile(optimizer=OptaxOptimizer(my_optimizer), ...)
    model.optimizer.build(model.trainable_variables)
    model.load_weights("gemma.keras")  # parameters and optimizer state

Save it under another name than `keras.py`, which would shadow the package.

- Learning rates: those of `my_optimizer`. Keras's `learning_rate` multiplies all of
  them, so that callbacks such as `ReduceLROnPlateau` work.
- Clipping: `max_norm` clips. There is no `global_clipnorm`, which would read the
  gradients of the tables once more.
- Frozen layers and LoRA: Keras gives the optimizer only what is trainable when it is
  built. If that contains no table, as after `enable_lora`, AdamW trains all of it.
- `keras.saving.load_model` also restores a plain Keras model with its optimizer, once
  this file is imported and `my_optimizer` is registered.
"""

# pyright takes this file for the package.
# pyright: reportAttributeAccessIssue=false, reportMissingImports=false

from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import keras
import optax

import ember_optax


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    embed_learning_rate: optax.ScalarOrSchedule | None = None,
    head_learning_rate: optax.ScalarOrSchedule | None = None,
) -> optax.GradientTransformation:
    """Makes AdamW for the body and Ember for the tables, with one clipping norm.

    To finetune a trained model, keep the tables at the body's learning rate and at most
    at 0.001 of the table's root mean square, or freeze them.

    Args:
      learning_rate: learning rate of the body.
      embed_learning_rate: learning rate of input tables; None for the body's.
      head_learning_rate: learning rate of heads and tied tables; None for the body's.
    """
    if embed_learning_rate is None:
        embed_learning_rate = learning_rate
    if head_learning_rate is None:
        head_learning_rate = learning_rate
    is_matrix = partial(jax.tree.map, lambda x: x.ndim > 1)
    return ember_optax.with_ember(
        optax.adamw(learning_rate, weight_decay=0.01, mask=is_matrix),
        embed_learning_rate=embed_learning_rate,
        head_learning_rate=head_learning_rate,
        b2=0.999,
        max_norm=1.0,
        labels=partial(
            ember_optax.label_token_tables,
            embed="embed",
            head="head",
            on_missing="ignore",
        ),
    )


@keras.saving.register_keras_serializable("ember")
class OptaxOptimizer(keras.optimizers.Optimizer):
    """Runs an Optax transformation whose state is kept in Keras variables.

    Args:
      make: function that returns the transformation. Keras saves its registered name.
      learning_rate: factor of all updates.
      name: prefix of the variables' names.
    """

    def __init__(
        self,
        make: Callable[[], optax.GradientTransformation],
        learning_rate: Any = 1.0,
        name: str = "optax",
    ):
        super().__init__(learning_rate, name=name)
        self.make = make
        self.tx = optax.with_extra_args_support(make())

    def build(self, variables: list[Any]) -> None:
        super().build(variables)
        # A function, because Keras would add a list of variables to the state.
        self.trained = lambda: variables
        params = by_path(variables, [v.value for v in variables])
        init, is_sharded = self.tx.init, keras.distribution.distribution() is not None
        if is_sharded:
            shardings = jax.tree.map(lambda x: x.sharding, params)
            shardings = ember_optax.opt_state_shardings(self.tx, params, shardings)
            init = jax.jit(init, out_shardings=shardings)
        leaves, self.structure = jax.tree_util.tree_flatten_with_path(init(params))
        self.leaves = []
        for key_path, leaf in leaves:
            path = jax.tree_util.keystr(key_path, simple=True, separator="_")
            variable = self.add_variable(
                leaf.shape,
                dtype=leaf.dtype,
                layout=leaf.sharding if is_sharded else None,
                name=path.replace("/", "_"),
            )
            variable.assign(leaf)
            self.leaves.append(variable)

    # Keras's `update_step` has the gradient of one variable; clipping needs them all.
    def apply(self, grads: list[Any], trainable_variables: Any = None) -> None:
        if not self.built:
            self.build(list(trainable_variables))
        variables = self.trained()
        updates: Any
        updates, state = self.tx.update(
            by_path(variables, grads),
            self.opt_state(),
            by_path(variables, [v.value for v in variables]),
        )
        for variable in variables:
            variable.assign_add(self.learning_rate * updates[variable.path])
        self.iterations.assign_add(1)
        for variable, leaf in zip(self.leaves, jax.tree.leaves(state), strict=True):
            variable.assign(leaf)

    def opt_state(self) -> Any:
        """Returns the state as Optax knows it."""
        return jax.tree.unflatten(self.structure, [v.value for v in self.leaves])

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        names = ("learning_rate", "name")
        make = keras.saving.serialize_keras_object(self.make)
        return {"make": make} | {name: config[name] for name in names}

    @classmethod
    def from_config(cls, config: dict[str, Any], custom_objects: Any = None) -> Any:
        make = keras.saving.deserialize_keras_object(config["make"], custom_objects)
        return super().from_config(config | {"make": make}, custom_objects)


def by_path(variables: list[Any], values: list[Any]) -> dict[str, Any]:
    """Returns the values by the path of their variable."""
    # Keras stores states in the order of the variables. JAX sorts a plain dictionary,
    # in which `dense_10` precedes `dense_9` but `dense_1` follows `dense`.
    paths = [v.path for v in variables]
    found = OrderedDict(zip(paths, values, strict=True))
    if len(found) < len(paths):
        twice = {path for path in paths if paths.count(path) > 1}
        raise ValueError(f"Several variables are called {twice}: rename their layers.")
    return found
