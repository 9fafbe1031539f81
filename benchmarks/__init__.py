"""What is measured: one package for each subject, and what they share in `common`."""

import examples as examples  # which keeps libtpu quiet
