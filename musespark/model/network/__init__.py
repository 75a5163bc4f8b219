"""The networks in torch: readable, exact in float32, and fast enough to train on a CPU.

`base.py` is what all families share around the text stack, `text.py` the stack. `model.py`, `glimmer.py` and
`llama4.py` are the families, `vision.py` and `tiles.py` their image towers.
"""

from musespark.model.network.base import Network
from musespark.model.network.glimmer import MuseGlimmer
from musespark.model.network.llama4 import Llama4
from musespark.model.network.loading import build_network, generate_greedy, load_network
from musespark.model.network.model import MuseSpark
from musespark.model.network.moe import Routing
from musespark.model.network.text import KVCache

__all__ = [
    "KVCache",
    "Llama4",
    "MuseGlimmer",
    "MuseSpark",
    "Network",
    "Routing",
    "build_network",
    "generate_greedy",
    "load_network",
]
