"""Prompts of logits: drawn from the seed, and as the arrays of a case's file. No torch: other engines read them too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from musespark.chat.images import PATCH_SIZE, PatchedImage, cut_patches
from musespark.conformance.recipes import NUM_SPECIAL, VOCAB_SIZE, LogitCase, Picture, Recipe, byte_tokenizer
from musespark.conformance.seeded import integers, raw
from musespark.conformance.suite import Arrays


@dataclass(frozen=True, slots=True)
class Prompt:
    """Image i fills the rows of the image token that are left when those before it are filled."""

    token_ids: list[int]
    images: list[PatchedImage]


def draw(recipe: Recipe, case: LogitCase, seed: int, name: str) -> Prompt:
    """Text tokens (never control tokens) and pictures of black and white noise, which every engine normalises alike."""
    tokenizer = byte_tokenizer(recipe.family)
    ids: list[int] = []
    images: list[PatchedImage] = []
    for i, part in enumerate(case.parts):
        if isinstance(part, Picture):
            shape = (part.rows * PATCH_SIZE, part.columns * PATCH_SIZE, 3)
            bits = raw(seed, f"{name} {i}", int(np.prod(shape))).reshape(shape) & np.uint64(1)
            patches = cut_patches(bits.astype(np.float32) * 2 - 1)
            images.append(PatchedImage(patches, (part.rows, part.columns), f"{name} {i}".encode()))
            ids += [tokenizer.special("<|patch|>")] * part.num_tokens
        elif isinstance(part, str):
            ids.append(tokenizer.special(part))
        else:
            ids += integers(seed, f"{name} {i}", NUM_SPECIAL, VOCAB_SIZE, part)
    return Prompt(ids, images)


def to_arrays(prompt: Prompt, positions: list[int]) -> Arrays:
    arrays = {"token_ids": np.array(prompt.token_ids, np.int64), "positions": np.array(positions, np.int64)}
    for i, image in enumerate(prompt.images):
        arrays[f"image.{i}.patches"] = image.patches
        arrays[f"image.{i}.grid"] = np.array(image.grid, np.int64)
    return arrays


def images_of(given: Mapping[str, np.ndarray]) -> list[PatchedImage]:
    """The pictures of a case that was read from a suite."""
    images: list[PatchedImage] = []
    while f"image.{len(images)}.patches" in given:
        i = len(images)
        rows, columns = given[f"image.{i}.grid"].tolist()
        patches = np.array(given[f"image.{i}.patches"])
        images.append(PatchedImage(patches, (rows, columns), patches.tobytes()[:32] + bytes([i])))
    return images
