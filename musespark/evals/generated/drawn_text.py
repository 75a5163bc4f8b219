"""Pictures of digits and short words, to be read."""

from __future__ import annotations

from PIL import Image, ImageDraw

from musespark.chat.images import CELL_SIZE
from musespark.evals.generated.drawing import Colour, canvas, font, ink_and_paper, speckle
from musespark.evals.generated.sample import Rng, Sample, asked, pick


def _words(table: str) -> tuple[str, ...]:
    return tuple(table.split())


WORDS = _words(
    """
    ant arm art bag bat bed bee box boy bus cap car cat cow cup day dog ear egg end eye fan fly fox fun gas hat hen ice
    ink jam jar joy key kit lab leg lid lip map mud net nut oil owl pan pen pie pig pot red rug sea sky sun tap tea tie
    toe toy van wax web wig zoo back ball band bank bath bell bird boat book cake card chef city coal coat corn desk
    door drum duck face farm fire fish flag foot fork game gate gift girl goat gold hand hill home horn king kite lake
    lamp leaf lion milk moon nest nose open park pear pond rain ring road rock roof room rose salt sand ship shoe shop
    snow soap sofa song star stop taxi tent tree vase wall wind wolf wood yard zero
    """
)
ASK_NUMBER = ("Which number is this?", "Read the number.", "What number is in the picture?")
ASK_WORD = ("Which word is this?", "Read the word.", "What does the picture say?", "What is written here?")
MARGIN = 6  # pixels, for the tilt
MAX_TILT_DEG = 6.0


def digits(rng: Rng) -> Sample:
    number = "".join(str(int(d)) for d in rng.integers(0, 10, size=int(rng.integers(1, 5))))
    return asked(pick(ASK_NUMBER, rng), f"{number}", image=written(number, rng))


def word(rng: Rng) -> Sample:
    text = pick(WORDS, rng)
    shown = pick((text, text.upper(), text.capitalize()), rng)
    return asked(pick(ASK_WORD, rng), shown, image=written(shown, rng))


def drawn_text(rng: Rng) -> Sample:
    return pick((digits, word), rng)(rng)


def written(text: str, rng: Rng) -> Image.Image:
    """`text` somewhere on a canvas that is just large enough."""
    ink, paper = ink_and_paper(rng)
    face = font(int(rng.integers(20, 30)))
    left, top, right, bottom = face.getbbox(text)
    size = (int(right - left), int(bottom - top))
    columns, rows = (-(-(side + 2 * MARGIN) // CELL_SIZE) for side in size)
    image, _ = canvas(columns, rows, paper)
    place = tuple(
        int(rng.integers(MARGIN, whole - side - MARGIN + 1)) for whole, side in zip(image.size, size, strict=True)
    )
    ImageDraw.Draw(image).text((place[0] - left, place[1] - top), text, fill=ink, font=face)
    tilted = image.rotate(rng.uniform(-MAX_TILT_DEG, MAX_TILT_DEG), Image.Resampling.BILINEAR, fillcolor=_rgb(paper))
    if rng.random() < 0.3:
        speckle(tilted, rng)
    return tilted


def _rgb(colour: Colour) -> tuple[int, ...]:
    return colour
