import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from musespark.model.checkpoint import open_checkpoint
from musespark.model.network import MuseSpark, load_network
from musespark.training.batch import make_batch
from musespark.training.checkpoints import STATE
from musespark.training.export import export
from musespark.training.loop import Trainer, TrainingDiverged, train
from musespark.training.recipe import Phase
from musespark.training.replay import documents_of, load_progress, seen_rows
from tests.training.pack import toy_recipe


def losses(run: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_weights(one: MuseSpark, other: MuseSpark) -> None:
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_the_loss_falls(tmp_path: Path, pack: Path) -> None:
    recipe = toy_recipe(tmp_path, phases=(Phase("pretrain", 40, {"stories": 3, "pictures": 1}),))
    train(recipe, data=pack, out=tmp_path / "run")
    seen = losses(tmp_path / "run")
    assert len(seen) == 40
    assert sum(seen[-5:]) / 5 < 0.6 * seen[0]


def test_a_run_that_is_interrupted_and_resumed_ends_with_the_same_bits(tmp_path: Path, pack: Path) -> None:
    recipe = toy_recipe(tmp_path)
    whole = train(recipe, data=pack, out=tmp_path / "whole")

    first = Trainer(recipe, data=pack, out=tmp_path / "parts")
    plan = first._open_phase(None)
    for _ in range(5):
        first.step(plan)
        first.progress.advance(recipe, seconds=1.0)
    first.save()
    resumed = train(recipe, data=pack, out=tmp_path / "parts", resume=True)

    assert_same_weights(whole, resumed)
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")[5:]


def test_a_run_that_is_killed_goes_on_from_its_last_state(tmp_path: Path, pack: Path) -> None:
    recipe = toy_recipe(tmp_path, save_every_s=0.0)
    whole = train(recipe, data=pack, out=tmp_path / "whole")
    script = (
        "import torch; torch.set_num_threads(1)\n"
        "import sys; from pathlib import Path; from tests.training.pack import toy_recipe\n"
        "from musespark.training.loop import train\n"
        "folder, pack = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "train(toy_recipe(folder, save_every_s=0.0), data=pack, out=folder / 'killed')\n"
    )
    run = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path), str(pack)], cwd=Path(__file__).parents[2])
    deadline = time.monotonic() + 60
    while not (run / STATE).exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the run had ended before it was killed"
    assert (run / STATE).exists()

    resumed = train(recipe, data=pack, out=run, resume=True)
    assert_same_weights(whole, resumed)


def test_a_loss_that_is_not_a_number_stops_the_run_and_keeps_the_state_before(tmp_path: Path, pack: Path) -> None:
    trainer = Trainer(toy_recipe(tmp_path), data=pack, out=tmp_path / "run")
    trainer.save()
    before = (tmp_path / "run" / STATE).read_bytes()
    with torch.no_grad():
        trainer.network.lm_head.weight[40, 0] = float("nan")
    with pytest.raises(TrainingDiverged, match=r"the loss is nan .* at step 0"):
        trainer.run()
    assert (tmp_path / "run" / STATE).read_bytes() == before


def test_gradients_of_two_forwards_add_up_to_those_of_one(tmp_path: Path, pack: Path) -> None:
    recipe = toy_recipe(tmp_path, router_bias_rate=0.0, image_name_loss=0.0)
    split, whole = (Trainer(replace(recipe, rows_per_forward=rows), data=pack, out=tmp_path / "run") for rows in (2, 4))
    metrics = [trainer.step(trainer._open_phase(None)) for trainer in (split, whole)]
    assert metrics[0]["loss"] == pytest.approx(metrics[1]["loss"], rel=1e-5)
    assert metrics[0]["grad_norm"] == pytest.approx(metrics[1]["grad_norm"], rel=1e-4)


def test_pictures_reach_the_vision_tower(tmp_path: Path, pack: Path) -> None:
    recipe = toy_recipe(tmp_path, phases=(Phase("pictures", 3, {"pictures": 1}),))
    network = train(recipe, data=pack, out=tmp_path / "run")
    fresh = MuseSpark(recipe.config)
    fresh.init_weights(recipe.seed)
    name = "model.vision_tower.layers.0.attn.q_proj.weight"
    assert not torch.equal(network.state_dict()[name], fresh.state_dict()[name])


def test_naming_pictures_teaches_the_tower_and_nothing_else(tmp_path: Path, pack: Path) -> None:
    trainer = Trainer(toy_recipe(tmp_path), data=pack, out=tmp_path / "run")
    trainer._open_phase(None)
    pictures = trainer.sources["pictures"]
    batch = make_batch([pictures.row(i) for i in range(len(pictures))])
    assert set(batch.named_images.tolist()) == set(range(len(batch.images)))
    features = trainer.network.encode_images(batch.images)
    trainer._name_loss(features, batch).backward()
    reached = {name for name, p in trainer.network.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert reached
    assert all(name.startswith("model.vision_") for name in reached)


def test_a_phase_of_vision_teaches_pictures_their_names_and_leaves_the_decoder_alone(
    tmp_path: Path, pack: Path
) -> None:
    phase = Phase("vision", 12, {"pictures": 1}, trains="vision")
    trainer = Trainer(toy_recipe(tmp_path, phases=(phase,)), data=pack, out=tmp_path / "run")
    before = {name: tensor.clone() for name, tensor in trainer.network.state_dict().items()}
    trainer.run()
    changed = {name for name, tensor in trainer.network.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("model.vision_") for name in changed)
    seen = losses(tmp_path / "run")
    assert sum(seen[-3:]) < 0.7 * sum(seen[:3])
    assert trainer.progress.tokens == 0


def test_the_router_bias_helps_the_expert_that_got_least(tmp_path: Path, pack: Path) -> None:
    trainer = Trainer(toy_recipe(tmp_path, router_bias_rate=0.5), data=pack, out=tmp_path / "run")
    trainer._update(1.0, [torch.tensor([9, 1, 5, 5]), torch.tensor([5, 5, 5, 5])])
    assert trainer.biases[0].tolist() == [-0.5, 0.5, 0.0, 0.0]
    assert trainer.biases[1].tolist() == [0.0] * 4


def test_the_exported_checkpoint_has_the_trained_logits(tmp_path: Path, pack: Path) -> None:
    recipe = toy_recipe(tmp_path)
    network = train(recipe, data=pack, out=tmp_path / "run")
    export(network, recipe, tmp_path / "checkpoint", card="# toy\n")
    loaded = load_network(tmp_path / "checkpoint")
    token_ids = torch.arange(32, 96)[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(token_ids), network(token_ids), atol=0.3, rtol=0.05)  # rounded to bfloat16
    assert open_checkpoint(tmp_path / "checkpoint").generation.eos_token_ids == (1, 6)
    assert (tmp_path / "checkpoint" / "model_card.md").read_text() == "# toy\n"


def test_replay_gives_exactly_the_tokens_that_the_decoder_saw(tmp_path: Path, pack: Path) -> None:
    mix = {"stories": 3, "pictures": 1}
    phases = (Phase("text", 7, mix), Phase("vision", 3, {"pictures": 1}, trains="vision"), Phase("both", 5, mix))
    recipe = toy_recipe(tmp_path, phases=phases)
    train(recipe, data=pack, out=tmp_path / "run")
    progress = load_progress(tmp_path / "run")
    rows = list(seen_rows(recipe, progress, data=pack, out=tmp_path / "run"))
    assert len(rows) == 12 * 4
    num_tokens = sum(len(document) for row in rows for document in documents_of(row))
    # Of each row without padding at its end, the last token is a target only.
    assert num_tokens - progress.tokens == sum(int(row.segments[-1] != -1) for row in rows)
