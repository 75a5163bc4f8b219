"""`musespark serve` with the talking model instead of a checkpoint: a process to be signalled and killed by tests.

The environment holds the settings; LOAD_S and STEP_S slow loading and every step down.
"""

from __future__ import annotations

import os
import time

from musespark.api.load import LoadedModel
from musespark.api.server import serve
from musespark.api.settings import Settings
from musespark.engine.service import EngineService
from tests.providers.talking import TalkingRunner, talking_engine, talking_provider


def load(settings: Settings) -> LoadedModel:
    time.sleep(float(os.environ.get("LOAD_S", "0")))
    runner = TalkingRunner(delay_s=float(os.environ.get("STEP_S", "0")))
    service = EngineService(talking_engine(runner, max_running=settings.max_running, max_waiting=settings.max_waiting))
    return LoadedModel(talking_provider(service), service, "muse_spark")


if __name__ == "__main__":
    serve(Settings.read(), load)
