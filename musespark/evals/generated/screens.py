"""Screens of devices with a number to read: blood pressure, pulse, scale, thermometer, watch, clock, phone."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import ImageDraw

from musespark.evals.generated.drawing import Colour, canvas, font
from musespark.evals.generated.sample import Rng, Sample, asked, pick

FRAMES: tuple[Colour, ...] = ((40, 44, 52), (90, 90, 96), (225, 228, 232), (60, 80, 110))
GLASS: tuple[tuple[Colour, Colour], ...] = (  # screen and what is shown on it
    ((196, 210, 190), (20, 30, 20)),
    ((12, 14, 18), (80, 240, 140)),
    ((12, 14, 18), (240, 240, 240)),
    ((240, 244, 250), (20, 40, 90)),
)


@dataclass(frozen=True, slots=True)
class Reading:
    """Lines on the screen (name, value, unit) and the questions about them with their answers."""

    lines: tuple[tuple[str, str, str], ...]
    questions: tuple[tuple[str, str], ...]


def blood_pressure(rng: Rng) -> Reading:
    systolic, pulse = int(rng.integers(95, 181)), int(rng.integers(48, 121))
    diastolic = int(rng.integers(55, min(110, systolic - 20)))
    return Reading(
        (("SYS", str(systolic), "mmHg"), ("DIA", str(diastolic), "mmHg"), ("PULSE", str(pulse), "/min")),
        (
            ("What is the systolic pressure?", f"{systolic} mmHg"),
            ("What is the diastolic pressure?", f"{diastolic} mmHg"),
            ("What is the pulse?", f"{pulse} per minute"),
            ("Read the blood pressure.", f"{systolic} over {diastolic} mmHg, pulse {pulse}"),
        ),
    )


def oximeter(rng: Rng) -> Reading:
    oxygen, pulse = int(rng.integers(85, 101)), int(rng.integers(48, 121))
    return Reading(
        (("SpO2", str(oxygen), "%"), ("PR", str(pulse), "bpm")),
        (("What is the oxygen saturation?", f"{oxygen} %"), ("What is the pulse?", f"{pulse} per minute")),
    )


def scale(rng: Rng) -> Reading:
    weight = f"{rng.integers(450, 1200) / 10:.1f}"
    return Reading(
        (("", weight, "kg"),), (("What does the scale show?", f"{weight} kg"), ("Read the weight.", f"{weight} kg"))
    )


def thermometer(rng: Rng) -> Reading:
    degrees = f"{rng.integers(355, 411) / 10:.1f}"
    return Reading(
        (("", degrees, "°C"),),
        (("What is the temperature?", f"{degrees} °C"), ("Read the thermometer.", f"{degrees} °C")),
    )


def glucose_meter(rng: Rng) -> Reading:
    value = int(rng.integers(55, 301))
    return Reading((("GLU", str(value), "mg/dL"),), (("What is the glucose value?", f"{value} mg/dL"),))


def clock(rng: Rng) -> Reading:
    time = f"{int(rng.integers(0, 24)):02}:{int(rng.integers(0, 60)):02}"
    return Reading((("", time, ""),), (("What time is it?", time), ("Read the clock.", time)))


def watch(rng: Rng) -> Reading:
    steps, pulse = int(rng.integers(100, 20000)), int(rng.integers(48, 181))
    return Reading(
        (("STEPS", str(steps), ""), ("HEART", str(pulse), "bpm")),
        (("How many steps does the watch show?", f"{steps}"), ("What is the heart rate?", f"{pulse} per minute")),
    )


DEVICES = (blood_pressure, oximeter, scale, thermometer, glucose_meter, clock, watch)


def screens(rng: Rng) -> Sample:
    """One question about one device."""
    reading = pick(DEVICES, rng)(rng)
    image, draw = canvas(5, max(2, len(reading.lines) + 1), pick(FRAMES, rng))
    glass, ink = pick(GLASS, rng)
    draw.rounded_rectangle((6, 6, image.width - 6, image.height - 6), radius=8, fill=glass)
    height = (image.height - 20) / len(reading.lines)
    for i, line in enumerate(reading.lines):
        _write(draw, line, 10 + i * height, height, ink, image.width)
    question, answer = pick(reading.questions, rng)
    return asked(question, answer, image=image)


def _write(
    draw: ImageDraw.ImageDraw, line: tuple[str, str, str], top: float, height: float, ink: Colour, width: int
) -> None:
    """Name at the left, value large towards the right, unit small behind it."""
    name, value, unit = line
    small, large = font(10), font(24)
    right = width - 12.0
    if unit:
        right -= draw.textlength(unit, font=small)
        draw.text((right, top + height - 16), unit, fill=ink, font=small)
        right -= 3
    draw.text((right - draw.textlength(value, font=large), top + (height - 28) / 2), value, fill=ink, font=large)
    if name:
        draw.text((11, top + (height - 12) / 2), name, fill=ink, font=small)
