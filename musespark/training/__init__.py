"""Training a model on the data pack. Starts at `loop.train`; recipes are in runs/."""

import os

# Read by libgomp when torch is loaded, so this must come first. Threads that spin at a barrier burn the very core their
# partner waits for: beside other programs on two cores a step took nine times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
