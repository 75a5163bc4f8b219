"""Examples may take as long as a busy machine needs: time is tested where it matters, in CPU seconds."""

from hypothesis import settings

settings.register_profile("without deadline", deadline=None)
settings.load_profile("without deadline")
