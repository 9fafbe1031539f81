"""How gradients and rows of token tables behave, compared with what chance gives.

Pure functions for any training loop. Streaming states are small: one number per token,
or a sample of rows that the user chooses. Statistics are float32 whatever the gradients
are, and replicated on every mesh of `jax.set_mesh`.

Tables are [V, *D], one row per token; give the kernel of a head [D, V] as its
transpose, which costs nothing.

===========================  ==========================  ==============================
Question                     Statistic                   Null model
===========================  ==========================  ==============================
Do gradients of a row        :func:`autocorrelation`     :func:`autocorrelation_null`:
resemble its last ones?                                  the same in random order
Is the second moment         :func:`factorization_error` :func:`factored_null`: it is,
row x col?                                               :func:`shuffled_null`: not at
                                                         all
How far does a step go?      :func:`mean_steps`          :func:`expected_step`, and
                                                         :func:`step_bound`
Does a row move along a      :func:`ray_share`,          :func:`random_walk` with the
line?                        :func:`ray_cosine`          same step lengths
Are tokens predicted as      :func:`frequency_error`     :func:`calibrated_targets`:
often as they occur?                                     drawn from the predictions
===========================  ==========================  ==============================
"""

from benchmarks.geometry.instrument._autocorrelation import (
    GradientHistory as GradientHistory,
)
from benchmarks.geometry.instrument._autocorrelation import (
    autocorrelation as autocorrelation,
)
from benchmarks.geometry.instrument._autocorrelation import (
    autocorrelation_null as autocorrelation_null,
)
from benchmarks.geometry.instrument._autocorrelation import history_init as history_init
from benchmarks.geometry.instrument._autocorrelation import (
    history_update as history_update,
)
from benchmarks.geometry.instrument._factorization import (
    FactorizationError as FactorizationError,
)
from benchmarks.geometry.instrument._factorization import SecondMoment as SecondMoment
from benchmarks.geometry.instrument._factorization import factored_null as factored_null
from benchmarks.geometry.instrument._factorization import (
    factorization_error as factorization_error,
)
from benchmarks.geometry.instrument._factorization import (
    second_moment_init as second_moment_init,
)
from benchmarks.geometry.instrument._factorization import (
    second_moment_update as second_moment_update,
)
from benchmarks.geometry.instrument._factorization import shuffled_null as shuffled_null
from benchmarks.geometry.instrument._frequencies import Frequencies as Frequencies
from benchmarks.geometry.instrument._frequencies import (
    calibrated_targets as calibrated_targets,
)
from benchmarks.geometry.instrument._frequencies import (
    frequencies_init as frequencies_init,
)
from benchmarks.geometry.instrument._frequencies import (
    frequencies_update as frequencies_update,
)
from benchmarks.geometry.instrument._frequencies import (
    frequency_error as frequency_error,
)
from benchmarks.geometry.instrument._steps import MeanSteps as MeanSteps
from benchmarks.geometry.instrument._steps import Steps as Steps
from benchmarks.geometry.instrument._steps import expected_step as expected_step
from benchmarks.geometry.instrument._steps import mean_steps as mean_steps
from benchmarks.geometry.instrument._steps import step_bound as step_bound
from benchmarks.geometry.instrument._steps import steps_init as steps_init
from benchmarks.geometry.instrument._steps import steps_update as steps_update
from benchmarks.geometry.instrument._trajectories import random_walk as random_walk
from benchmarks.geometry.instrument._trajectories import ray_cosine as ray_cosine
from benchmarks.geometry.instrument._trajectories import ray_share as ray_share
