"""Measurements: one package for each subject, and shared code in `common`."""

import examples as examples  # which keeps libtpu quiet
