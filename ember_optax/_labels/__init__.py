"""Labels that tell token tables from the body of a model."""

from ember_optax._labels._tables import label_token_tables as label_token_tables
