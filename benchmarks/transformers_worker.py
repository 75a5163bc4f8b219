"""transformers in a process of its own, answering as ours_worker.py does: bf16, sdpa, its own cache.

{"do": "load", "model": FOLDER, "threads": 2, "context": 700, "streams": 1}     -> {"start_s": ..., "version": ...}
{"do": "prefill", "tokens": 512}                                      -> {"seconds": ...}
{"do": "decode", "depth": 128, "streams": 1, "count": 8}              -> {"seconds": ...}
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from musespark.model.checkpoint import open_checkpoint
from musespark.model.tensor_file import RawTensor

CLASSES = {"llama4": ("Llama4TextConfig", "Llama4ForCausalLM", "language_model.")}


class Worker:
    def load(self, model: str, threads: int, context: int, streams: int) -> dict[str, Any]:
        begun = time.perf_counter()
        torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        transformers.logging.set_verbosity_error()
        checkpoint = open_checkpoint(Path(model))
        data = json.loads((Path(model) / "config.json").read_text())
        config_name, class_name, prefix = CLASSES[data["model_type"]]
        config = getattr(transformers, config_name)(**data["text_config"])
        config._attn_implementation = "sdpa"
        with torch.device("meta"):
            self.model = getattr(transformers, class_name)(config)
        tensors = {name.removeprefix(prefix): _torch(checkpoint.tensor(name)) for name in checkpoint.names()}
        self.model.load_state_dict(tensors, strict=True, assign=True)
        with torch.device("cpu"):  # buffers that no file holds
            rotary = self.model.model.rotary_emb
            self.model.model.rotary_emb = type(rotary)(config)
        self.model.eval()
        self.vocab_size = config.vocab_size
        version = f"transformers {transformers.__version__}, torch {torch.__version__}"
        return {"start_s": time.perf_counter() - begun, "version": version}

    def prefill(self, tokens: int) -> dict[str, Any]:
        ids = torch.randint(self.vocab_size, (1, tokens))
        begun = time.perf_counter()
        self.model(ids, use_cache=True, logits_to_keep=1)
        return {"seconds": time.perf_counter() - begun}

    def decode(self, depth: int, streams: int, count: int) -> dict[str, Any]:
        cache = self.model(torch.randint(self.vocab_size, (streams, depth)), use_cache=True).past_key_values
        begun = time.perf_counter()
        for _ in range(count):
            ids = torch.randint(self.vocab_size, (streams, 1))
            cache = self.model(ids, past_key_values=cache, use_cache=True).past_key_values
        return {"seconds": time.perf_counter() - begun}


def _torch(raw: RawTensor) -> torch.Tensor:
    if raw.dtype == "BF16":
        return torch.from_numpy(raw.data.view("int16").copy()).view(torch.bfloat16)
    return torch.from_numpy(raw.data.copy()).to(torch.bfloat16)


def main() -> None:
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        action = getattr(worker, request.pop("do"))
        print(json.dumps(action(**request)), flush=True)


if __name__ == "__main__":
    main()
