"""Training a model on the data pack. Starts at `loop.train`; recipes are in runs/."""

import os

# Read by libgomp when torch is loaded, so this must come first. Threads that spin at a barrier burn the very core their
# partner waits for: on two busy cores the tests of the loop took 34 s with sleeping threads and did not end in 300 s
# with spinning ones.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
