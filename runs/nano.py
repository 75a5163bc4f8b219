"""The bundled model: 15M parameters, trained in two hours on two CPU cores.

musespark train runs/nano.py --data ../shared/data
"""

from pathlib import Path

from musespark.model.presets import preset
from musespark.training.recipe import ChatData, Phase, Recipe, TextData

FOLDER = Path(__file__).resolve().parent.parent / "musespark" / "model" / "checkpoints" / "muse-spark-nano"

TEXT = {
    "stories": TextData(("text/stories-00.jsonl.zst",)),
    "qa": TextData(("text/qa-00.jsonl.zst",)),
    "textbooks": TextData(("text/textbooks-00.jsonl.zst",), max_tokens=8_000_000),
    "docs": TextData(("text/docs-00.jsonl.zst",), max_tokens=6_000_000),
    "books": TextData(("text/books-00.jsonl.zst",), max_tokens=8_000_000),
    "python": TextData(("text/python-00.jsonl.zst",), max_tokens=4_000_000),
}
PRETRAIN = {"stories": 34, "textbooks": 20, "qa": 14, "docs": 12, "books": 12, "python": 5}
# Captions of photos take many tokens and teach few names, so most picture rows hold small named pictures.
NAMES = {
    "stories": 30,
    "textbooks": 16,
    "qa": 10,
    "docs": 8,
    "books": 7,
    "python": 3,
    "pictures": 4,
    "names": 22,
}
# The tower tells pictures apart by now, and the decoder is to look at what it says.
READING = {
    "stories": 24,
    "textbooks": 12,
    "qa": 9,
    "docs": 6,
    "books": 5,
    "python": 2,
    "pictures": 2,
    "names": 40,
}
DECAY = {
    "stories": 22,
    "textbooks": 10,
    "qa": 7,
    "docs": 4,
    "books": 3,
    "python": 2,
    "pictures": 2,
    "names": 30,
    "instructions": 13,
    "manners": 7,
}
FINETUNE = {
    "stories": 12,
    "textbooks": 6,
    "qa": 4,
    "docs": 2,
    "books": 2,
    "pictures": 2,
    "names": 30,
    "instructions": 15,
    "manners": 27,
}


def recipe() -> Recipe:
    return Recipe(
        name="muse-spark-nano",
        config=preset("muse-spark-nano"),
        tokenizer=FOLDER / "tokenizer.json",
        sources={
            **TEXT,
            "pictures": ChatData("pictures"),
            "names": ChatData("names"),
            "instructions": ChatData("instructions"),
            "manners": ChatData("manners"),
        },
        # The time limit makes the steps proportions; on an idle machine a step takes about 4 s.
        phases=(
            Phase("pretrain", 800, PRETRAIN),
            # About 50,000 looks at the 5,656 small pictures. The rates start at those of the decoder's matrices.
            Phase("vision", 400, {"names": 1}, lr_start=4.0, lr_end=0.5, trains="vision"),
            Phase("names", 180, NAMES),
            Phase("reading", 300, READING),
            Phase("decay", 450, DECAY, lr_start=1.0, lr_end=0.3),
            Phase("finetune", 220, FINETUNE, lr_start=0.3, lr_end=0.02),
        ),
        sequence_length=512,
        rows_per_step=16,
        rows_per_forward=8,
        compile=True,
        time_limit_s=120 * 60,
    )
