"""The network in torch: readable, exact in float32, and fast enough to train on a CPU."""

from musespark.model.network.model import MuseSpark, generate_greedy, load_network
from musespark.model.network.moe import Routing
from musespark.model.network.text import KVCache

__all__ = ["KVCache", "MuseSpark", "Routing", "generate_greedy", "load_network"]
