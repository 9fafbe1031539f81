"""Ember in NumPy float64, from its equations and not from the library.

For a table with gradient G, tokens i and columns j, at step t = 1, 2, ...

    row_i = b2 row_i + (1 - b2) mean_j G_ij^2
    col_j = b2 col_j + (1 - b2) mean_i G_ij^2
    vhat_ij = row_i col_j / (scale (1 - b2^t))
    update_ij = G_ij / (sqrt(vhat_ij) + eps)
    theta = theta - lr (update + weight_decay theta)

`column_mean="all"`: mean_i is over all tokens and scale = mean(col).
`column_mean="active"`: mean_i is over the tokens whose gradient is not zero, and
scale = mean(row).
"""

import numpy as np


class Oracle:
    """One table; `theta`, `row`, `col` and the last `update` are there to be read."""

    def __init__(
        self,
        theta: np.ndarray,
        learning_rate: float = 1.0,
        b2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        column_mean: str = "all",
        vocab_axis: int | None = None,
    ) -> None:
        self.theta = np.array(theta, np.float64)
        self.update = np.zeros_like(self.theta)
        self.learning_rate = learning_rate
        self.b2 = b2
        self.eps = eps
        self.weight_decay = weight_decay
        self.column_mean = column_mean
        longest = int(np.argmax(self.theta.shape))
        self.vocab_axis = longest if vocab_axis is None else vocab_axis
        self.t = 0
        tokens_first = np.moveaxis(self.theta, self.vocab_axis, 0).shape
        self.row = np.zeros(tokens_first[0])
        self.col = np.zeros(tokens_first[1:])

    def step(self, grad: np.ndarray) -> None:
        self.t += 1
        tokens_first = np.moveaxis(np.asarray(grad, np.float64), self.vocab_axis, 0)
        g = tokens_first.reshape(self.row.size, self.col.size)

        rows = self.row.size
        if self.column_mean == "active":
            rows = max(1, np.count_nonzero(np.any(g != 0, axis=1)))
        row_mean = np.sum(g**2, axis=1) / self.col.size
        col_mean = np.sum(g**2, axis=0) / rows
        self.row = self.b2 * self.row + (1 - self.b2) * row_mean
        self.col = self.b2 * self.col + (1 - self.b2) * col_mean.reshape(self.col.shape)

        scale = self.col.mean() if self.column_mean == "all" else self.row.mean()
        update = np.zeros_like(g)  # and stays so where 0 / 0 has no value
        if scale > 0:
            product = np.outer(self.row, self.col.ravel())
            vhat = product / (scale * (1 - self.b2**self.t))
            np.divide(g, np.sqrt(vhat) + self.eps, out=update, where=g != 0)
        update = update.reshape(tokens_first.shape)
        self.update = np.moveaxis(update, 0, self.vocab_axis)
        decay = self.weight_decay * self.theta
        self.theta = self.theta - self.learning_rate * (self.update + decay)
