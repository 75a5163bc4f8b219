"""The command line: one thin command per verb. Rooms are imported inside the commands, so that `--help` is instant."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from musespark.cli import audit, billing, conformance, invoices, keys, ledger, organisations, people, releases, usage
from musespark.cli.state import StateOption
from musespark.errors import MuseSparkError

app = typer.Typer(
    name="musespark",
    help="A multimodal mixture-of-experts model: serve it, talk to it, train it, look inside.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(conformance.app, name="conformance")
app.add_typer(organisations.org_app, name="org")
app.add_typer(organisations.project_app, name="project")
app.add_typer(keys.app, name="key")
app.add_typer(keys.app, name="keys", hidden=True)  # its first name; scripts have it
app.add_typer(people.app, name="people")
app.add_typer(releases.app, name="release")
app.add_typer(billing.price_app, name="price")
app.add_typer(billing.plan_app, name="plan")
app.add_typer(billing.credit_app, name="credit")
app.add_typer(ledger.app, name="ledger")
app.add_typer(invoices.app, name="invoice")
app.add_typer(audit.app, name="audit")
app.add_typer(usage.limit_app, name="limit")
app.command("usage")(usage.show_usage)

Precision = Literal["float32", "bf16", "int8", "int4"]
CheckpointArgument = Annotated[
    Path | None, typer.Argument(help="Checkpoint folder; the model in the box if left out.", show_default=False)
]
PrecisionOption = Annotated[
    Precision | None, typer.Option(help="The integers of the checkpoint, else bf16, if left out.", show_default=False)
]
ThreadsOption = Annotated[
    int | None, typer.Option(min=1, max=256, help="Compute threads; one per usable CPU if left out.")
]


def main() -> None:
    """Entry point. What the user can mend is one sentence on standard error and exit status 2; no traceback."""
    try:
        app()
    except MuseSparkError as error:
        print(f"musespark: {error.message}", file=sys.stderr)
        sys.exit(2)


@app.callback(invoke_without_command=True)
def version(
    show: Annotated[bool, typer.Option("--version", is_eager=True, help="Print the version and end.")] = False,
) -> None:
    if show:
        from importlib import metadata

        print(f"musespark {metadata.version('musespark')}")
        raise typer.Exit


@app.command()
def serve(
    checkpoint: CheckpointArgument = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; 127.0.0.1 if left out.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="PORT or 8000 if left out.")] = None,
    precision: PrecisionOption = None,
    kv_precision: Annotated[
        Literal["float32", "bf16", "int8"] | None,
        typer.Option(help="Of the KV cache; int8 halves it. bf16 if left out, or float32 with float32."),
    ] = None,
    device: Annotated[
        Literal["cpu", "cuda", "torch-cpu"] | None, typer.Option(help="cuda: a GPU (needs torch); cpu if left out.")
    ] = None,
    threads: ThreadsOption = None,
    memory: Annotated[
        str | None, typer.Option(help="For everything together: 16GB, 12GiB. As much as the parts take if left out.")
    ] = None,
    kv_memory_mb: Annotated[int | None, typer.Option(min=1, help="Memory for the KV cache, in MiB.")] = None,
    state_dir: StateOption = None,
) -> None:
    """Serve the OpenAI-compatible API."""
    from musespark.api.server import serve as serve_api
    from musespark.api.settings import Settings
    from musespark.cli.loading import load_with_bar

    serve_api(
        Settings.read(
            checkpoint=checkpoint,
            host=host,
            port=port,
            precision=precision,
            kv_precision=kv_precision,
            device=device,
            threads=threads,
            memory=memory,
            kv_memory_mb=kv_memory_mb,
            state_dir=state_dir,
        ),
        load_with_bar,
    )


@app.command()
def chat(
    prompt: Annotated[str | None, typer.Argument(help="One question; leave it out for a conversation.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Image to ask about; may be repeated.")] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; the model in the box if left out.")
    ] = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    effort: Annotated[str | None, typer.Option(help="Reasoning effort: low, medium, high or xhigh.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Longest answer, reasoning included.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 is greedy; the model's own if left out.")] = None,
    seed: Annotated[int | None, typer.Option(help="Makes sampling repeatable.")] = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
) -> None:
    """Talk to the model in this terminal, without a server or a key."""
    from musespark.api.settings import Settings
    from musespark.cli.chat import Style, run_chat

    settings = Settings.read(checkpoint=checkpoint, precision=precision, threads=threads)
    style = Style(system=system, effort=effort, max_tokens=max_tokens, temperature=temperature, seed=seed)
    run_chat(settings, style, prompt, tuple(image or ()))


@app.command()
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe: a Python file with `recipe() -> Recipe`, see runs/.")],
    data: Annotated[Path, typer.Option(envvar="MUSESPARK_DATA", help="Folder of the data pack.")] = Path(
        "../shared/data"
    ),
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/out/RECIPE if left out.")] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the last state in the folder of the run.")] = False,
) -> None:
    """Train a model and write its checkpoint folder (needs the training extra: torch)."""
    _need_torch()
    from musespark.training.export import export
    from musespark.training.loop import train as train_recipe
    from musespark.training.recipe import load_recipe

    plan = load_recipe(recipe)
    folder = out or Path("runs/out") / recipe.stem
    network = train_recipe(plan, data=data, out=folder, resume=resume)
    export(network, plan, folder / "checkpoint")
    print(f"the checkpoint is {folder / 'checkpoint'}; serve it with: musespark serve {folder / 'checkpoint'}")


@app.command()
def finetune(
    data: Annotated[Path, typer.Argument(help="JSONL of conversations, see docs/finetune.md.")],
    out: Annotated[Path, typer.Option(help="Checkpoint folder to write; it appears whole or not at all.")],
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; the model in the box if left out.", show_default=False)
    ] = None,
    epochs: Annotated[
        float | None, typer.Option(help="How often each conversation is seen; 3, or 40 steps if more, if left out.")
    ] = None,
    lora_rank: Annotated[int, typer.Option(help="Rank of the adapters of the text matrices.")] = 8,
    full: Annotated[bool, typer.Option("--full", help="Learn all weights instead of adapters.")] = False,
    lr: Annotated[
        float | None, typer.Option(help="1 is the rate of pretraining; 4, or 0.3 with --full, if left out.")
    ] = None,
    sequence_length: Annotated[int, typer.Option(help="Tokens of a row; a longer conversation is left out.")] = 1024,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was cut.")] = False,
) -> None:
    """Teach a checkpoint the answers of your own conversations; the result serves at once (needs torch)."""
    _need_torch()
    from musespark.model.checkpoint import BUNDLED
    from musespark.training.finetune import FinetuneOptions
    from musespark.training.finetune import finetune as run

    options = FinetuneOptions(epochs, None if full else lora_rank, lr, sequence_length)
    run(checkpoint or BUNDLED, data, out, options, resume=resume)
    print(f"{out} is written; talk to it with: musespark chat --checkpoint {out}")


@app.command("eval")
def evaluate(
    checkpoint: CheckpointArgument = None,
    tasks: Annotated[str, typer.Option(help="Tasks and groups, comma-separated, or all.")] = "language",
    data: Annotated[Path, typer.Option(envvar="MUSESPARK_DATA", help="Folder of the data pack.")] = Path(
        "../shared/data"
    ),
    out: Annotated[Path | None, typer.Option(help="Folder of the results; runs/eval/CHECKPOINT if left out.")] = None,
    against: Annotated[Path | None, typer.Option(help="Results of another run, compared item by item.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Items of a task, at the most.")] = None,
    again: Annotated[bool, typer.Option(help="Run also what has a result in the folder.")] = False,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of the table.")] = False,
) -> None:
    """Score a checkpoint on tasks, with standard errors and baselines; compare it with an earlier run."""
    from musespark.api.settings import Settings
    from musespark.cli.evaluate import run_eval
    from musespark.evals.task import Source
    from musespark.model.checkpoint import BUNDLED

    settings = Settings.read(checkpoint=checkpoint, precision=precision, threads=threads)
    folder = out or Path("runs/eval") / (settings.checkpoint or BUNDLED).name
    run_eval(settings, tasks, Source(data, limit), folder, against=against, again=again, as_json=as_json)


@app.command()
def inspect(
    model: Annotated[
        str | None, typer.Argument(help="A preset or a checkpoint folder; with --image, all families if left out.")
    ] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Show this picture's size, grid, tiles and tokens.")] = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens of one sequence; the longest if left out.")] = None,
    memory_gb: Annotated[
        float | None, typer.Option(min=0, max=1e9, help="Memory to fit in, in GB; this machine's if left out.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of tables.")] = False,
) -> None:
    """Parameters, bytes and KV memory of a model, and whether it fits here; or what a picture costs.

    Nothing is loaded.
    """
    if image:
        if context is not None or memory_gb is not None:
            raise typer.BadParameter("--context and --memory-gb say nothing about a picture; leave them out")
        from musespark.cli.inspect_image import print_views

        print_views(image, model, as_json=as_json)
        return
    if model is None:
        raise typer.BadParameter("name a preset or a checkpoint folder, or give a picture with --image")
    from musespark.cli.inspect import print_report

    print_report(model, context, memory_gb, as_json=as_json)


@app.command()
def bench(
    checkpoint: CheckpointArgument = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    prompt: Annotated[int, typer.Option(min=1, max=1 << 20, help="Tokens of a prompt.")] = 512,
    decode: Annotated[int, typer.Option(min=1, max=4096, help="Tokens generated after it, each time.")] = 64,
    streams: Annotated[int, typer.Option(min=1, max=256, help="Streams that are decoded together.")] = 8,
    runs: Annotated[int, typer.Option(min=1, max=100, help="The medians of so many are shown.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of the table.")] = False,
) -> None:
    """Measure a checkpoint on this machine: prefill, decode, and how much of the memory's speed it reaches."""
    from musespark.cli.bench import run_bench

    run_bench(
        checkpoint,
        precision=precision,
        threads=threads,
        prompt_tokens=prompt,
        decode_tokens=decode,
        streams=streams,
        runs=runs,
        as_json=as_json,
    )


@app.command()
def quantize(
    source: Annotated[Path, typer.Argument(help="Checkpoint folder with float weights.")],
    target: Annotated[Path, typer.Argument(help="Folder to write; it appears whole or not at all.")],
    to: Annotated[Literal["int8", "int4"], typer.Option(help="Precision of the text matrices.")] = "int8",
    group: Annotated[int | None, typer.Option(min=8, help="Inputs that share a scale; 64 or 32 if left out.")] = None,
    calibration: Annotated[
        Path | None, typer.Option(help="Text file: choose the integers by what the model reads in it (needs torch).")
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Text file to compare with the original on; a part of --calibration's if left out."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of the table.")] = False,
) -> None:
    """Write a quantised copy of a checkpoint, in compressed-tensors' pack-quantized format."""
    from musespark.cli.quantize import run_quantize

    run_quantize(
        source,
        target,
        bits=8 if to == "int8" else 4,
        group_size=group,
        calibration_text=calibration,
        report_text=report,
        as_json=as_json,
    )


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Checkpoint folder.")],
    target: Annotated[Path, typer.Argument(help="Folder or .gguf file to write; it appears whole or not at all.")],
    to: Annotated[Literal["hf", "gguf"], typer.Option(help="Hugging Face layout, or one file for llama.cpp.")],
    dtype: Annotated[
        Literal["bf16", "f32"] | None, typer.Option(help="hf: type of all weights, quantised ones are expanded.")
    ] = None,
    experts: Annotated[
        Literal["fused", "unfused"] | None, typer.Option(help="hf: experts in one tensor, or one by one.")
    ] = None,
    shard_size: Annotated[
        str | None, typer.Option(help="hf: most of one file, such as 5GB; one file if left out.", show_default=False)
    ] = None,
    type: Annotated[
        Literal["f32", "bf16", "q8_0", "q4_0"] | None,
        typer.Option(help="gguf: type of the matrices; bf16 if left out."),
    ] = None,
) -> None:
    """Write a checkpoint in another layout, or for llama.cpp."""
    from musespark.cli.convert import run_convert

    run_convert(source, target, to, dtype=dtype, experts=experts, shard_size=shard_size, type=type)


def _need_torch() -> None:
    from importlib.util import find_spec

    from musespark.errors import SetupError

    if find_spec("torch") is None:
        raise SetupError("training needs torch, which serving does not install: pip install -e '.[training]'")
