"""Ember in NumPy float64, from its equations and not from the library.

For a table with gradient G, tokens i and columns j, at step t = 1, 2, ...

    row_i = b2_t row_i + (1 - b2_t) mean_j G_ij^2
    col_j = b2_t col_j + (1 - b2_t) mean_i G_ij^2
    vhat_ij = row_i col_j / (mean(col) (1 - b2_1 b2_2 ... b2_t))
    update_ij = G_ij / (sqrt(vhat_ij) + eps)
    theta = theta - lr (update + weight_decay theta)

`b2` is a number or a function from t - 1, the number of earlier steps, to one.
"""

from collections.abc import Callable

import numpy as np


class Oracle:
    """One table, with its `theta`, `row`, `col` and last `update` as attributes."""

    def __init__(
        self,
        theta: np.ndarray,
        learning_rate: float = 1.0,
        b2: float | Callable[[int], float] = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        vocab_axis: int | None = None,
    ) -> None:
        self.theta = np.array(theta, np.float64)
        self.update = np.zeros_like(self.theta)
        self.learning_rate = learning_rate
        self.b2 = b2
        self.eps = eps
        self.weight_decay = weight_decay
        longest = int(np.argmax(self.theta.shape))
        self.vocab_axis = longest if vocab_axis is None else vocab_axis
        self.t = 0
        self.remaining = 1.0  # b2_1 b2_2 ... b2_t
        tokens_first = np.moveaxis(self.theta, self.vocab_axis, 0).shape
        self.row = np.zeros(tokens_first[0])
        self.col = np.zeros(tokens_first[1:])

    def step(self, grad: np.ndarray) -> None:
        b2 = float(self.b2(self.t) if callable(self.b2) else self.b2)
        self.t += 1
        self.remaining *= b2
        tokens_first = np.moveaxis(np.asarray(grad, np.float64), self.vocab_axis, 0)
        g = tokens_first.reshape(self.row.size, self.col.size)

        row_mean = np.sum(g**2, axis=1) / self.col.size
        col_mean = np.sum(g**2, axis=0) / self.row.size
        self.row = b2 * self.row + (1 - b2) * row_mean
        self.col = b2 * self.col + (1 - b2) * col_mean.reshape(self.col.shape)

        scale = self.col.mean()
        update = np.zeros_like(g)  # also the result of 0 / 0
        if scale > 0:
            product = np.outer(self.row, self.col.ravel())
            vhat = product / (scale * (1 - self.remaining))
            np.divide(g, np.sqrt(vhat) + self.eps, out=update, where=g != 0)
        update = update.reshape(tokens_first.shape)
        self.update = np.moveaxis(update, 0, self.vocab_axis)
        decay = self.weight_decay * self.theta
        self.theta = self.theta - self.learning_rate * (self.update + decay)
