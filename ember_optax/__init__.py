"""Ember, the optimizer for token tables, as a first-class citizen of Optax."""

from ember_optax import lazy as lazy
from ember_optax._convert import from_adam as from_adam
from ember_optax._convert import resize_vocab as resize_vocab
from ember_optax._convert import to_adam as to_adam
from ember_optax._convert import untie as untie
from ember_optax._decay import adafactor_decay as adafactor_decay
from ember_optax._ember import EmberState as EmberState
from ember_optax._ember import ember as ember
from ember_optax._ember import scale_by_ember as scale_by_ember
from ember_optax._labels import label_token_tables as label_token_tables
from ember_optax._monitor import monitor as monitor
from ember_optax._rounding import stochastic_rounding as stochastic_rounding
from ember_optax._rule import TableMoments as TableMoments
from ember_optax._sharding import opt_state_shardings as opt_state_shardings
from ember_optax._summary import summarize as summarize
from ember_optax._with_ember import WithEmberState as WithEmberState
from ember_optax._with_ember import with_ember as with_ember

__all__ = [
    "EmberState",
    "TableMoments",
    "WithEmberState",
    "adafactor_decay",
    "ember",
    "from_adam",
    "label_token_tables",
    "lazy",
    "monitor",
    "opt_state_shardings",
    "resize_vocab",
    "scale_by_ember",
    "stochastic_rounding",
    "summarize",
    "to_adam",
    "untie",
    "with_ember",
]

__version__ = "0.1.0"
