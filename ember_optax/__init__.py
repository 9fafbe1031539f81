"""Ember, the optimizer for token tables, as a first-class citizen of Optax."""

from ember_optax import geometry as geometry
from ember_optax import lazy as lazy
from ember_optax._ember import EmberState as EmberState
from ember_optax._ember import ember as ember
from ember_optax._ember import scale_by_ember as scale_by_ember
from ember_optax._labels import label_token_tables as label_token_tables
from ember_optax._moments import TableMoments as TableMoments
from ember_optax._resize import resize_vocab as resize_vocab
from ember_optax._state_shardings import opt_state_shardings as opt_state_shardings
from ember_optax._summary import Summary as Summary
from ember_optax._summary import TableSummary as TableSummary
from ember_optax._summary import summarize as summarize
from ember_optax._surgery import from_adam as from_adam
from ember_optax._surgery import to_adam as to_adam

__version__ = "0.1.0"
