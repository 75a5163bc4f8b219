"""The published ways to store quantised weights: how a checkpoint declares one, and which tensors it then holds.

    compressed-tensors    config.json: int8 or int4 (pack_quantized.py), or FP8 with one scale an output
                          X.weight F8_E4M3 (out, in) · X.weight_scale (out, 1)
    fbgemm_fp8            config.json: the same, and Llama 4's fused experts as they are, (E, in, out)
                          experts.gate_up_proj · experts.gate_up_proj_scale (E, 1, out), but
                          experts.down_proj · experts.down_proj_scale (E, out, 1)
    ModelOpt NVFP4        hf_quant_config.json or config.json: fused experts of the Muse family
                          experts.down_proj U8 (E, out, in / 2) · …_weight_scale F8_E4M3 (E, out, in / 16)
                          …_weight_scale_2 F32 (E,), of gate_up_proj (E, 2) for its gate and up half
                          …_input_scale: for quantised activations; not used here, so never less exact

A weight that the declaration covers but that is stored in floats is taken as it is: its dtype says what it is. The
contrary, a module declared to be kept but stored quantised, is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from musespark.errors import CheckpointError
from musespark.model.json_file import read_json_object, show
from musespark.model.kept_modules import KeptModules
from musespark.model.pack_quantized import Quantization, expect_fields, weights_of
from musespark.model.tensor_file import FLOAT_DTYPES
from musespark.model.tensors import Shape, is_fused_experts, is_quantizable, is_transposed

MODELOPT_FILE = "hf_quant_config.json"
MAX_MODELOPT_BYTES = 16 << 20
NVFP4_GROUP = 16

Form = dict[str, tuple[Shape, tuple[str, ...]]]  # stored name -> (shape, allowed dtypes)


@dataclass(frozen=True, slots=True)
class WeightFormat:
    """What a checkpoint declares. `integers` only for the kind "int"."""

    kind: Literal["int", "fp8", "fbgemm_fp8", "nvfp4"]
    kept: KeptModules
    integers: Quantization | None = None

    def __str__(self) -> str:
        return f"{self.integers.bits} bits" if self.integers else self.kind.removeprefix("fbgemm_").upper()


def read_weight_format(folder: Path, config: Mapping[str, Any]) -> WeightFormat | None:
    """What `config.json`, given as `config`, and hf_quant_config.json declare; None without either.

    Raises CheckpointError naming the file or field that we can't honour.
    """
    declared = config.get("quantization_config")
    try:
        modelopt = read_json_object(folder / MODELOPT_FILE, MAX_MODELOPT_BYTES)
    except FileNotFoundError:
        return None if declared is None else _from_config(declared)
    except ValueError as error:
        raise CheckpointError(f"{folder / MODELOPT_FILE}: {error}") from None
    if declared is not None and _from_config(declared).kind != "nvfp4":
        raise CheckpointError(f"config.json and {MODELOPT_FILE} declare different formats; remove what is out of date")
    return _from_modelopt(modelopt.get("quantization"), f"{MODELOPT_FILE}: quantization", "exclude_modules")


def stored_form(name: str, shape: Shape, stored: str | None, weight_format: WeightFormat | None) -> Form:
    """The tensors that together are the matrix, or the fused experts, `name`; floats unless its dtype is declared.

    `stored` is the dtype of the tensor `name`, "packed" if there is only `name`_packed, None if there is neither.
    Raises CheckpointError for inputs that are not whole groups.
    """
    form: Form | None = None
    if weight_format is not None and is_quantizable(name):
        *stack, out, width = shape
        integers = weight_format.integers
        if integers is not None and not is_transposed(name) and stored == ("packed" if integers.is_packed else "I8"):
            form = _integers(name, shape, integers)
        elif weight_format.kind == "fbgemm_fp8" and stored == "F8_E4M3" and is_transposed(name):
            scale = (*stack, 1, width) if name.endswith(".gate_up_proj") else (*stack, width, 1)  # `width` is out here
            form = {name: (shape, ("F8_E4M3",)), f"{name}_scale": (scale, FLOAT_DTYPES)}
        elif weight_format.kind in ("fp8", "fbgemm_fp8") and stored == "F8_E4M3" and not is_transposed(name):
            form = {name: (shape, ("F8_E4M3",)), f"{name}_scale": ((*stack, out, 1), FLOAT_DTYPES)}
        elif weight_format.kind == "nvfp4" and stored == "U8" and is_fused_experts(name) and not is_transposed(name):
            form = _nvfp4(name, shape)
    return form or {name: (shape, FLOAT_DTYPES)}


def unused_form(name: str, shape: Shape, found: Shape | None) -> Form:
    """`name`_input_scale of NVFP4 experts, if `found`: one number a tensor, an expert or a half; nothing reads it."""
    if found is None:
        return {}
    num_experts = shape[0]
    known = ((), (1,), (num_experts,), (num_experts, 1), (num_experts, 2))
    return {f"{name}_input_scale": (found if found in known else (num_experts,), ("F32",))}


def _integers(name: str, shape: Shape, integers: Quantization) -> Form:
    *stack, out, width = shape
    group_size = integers.inputs_per_scale(width)
    if width % group_size:
        raise CheckpointError(f"{name} has {width:,} inputs, not a multiple of group_size {group_size:,}")
    scale: Form = {f"{name}_scale": ((*stack, out, width // group_size), FLOAT_DTYPES)}
    if not integers.is_packed:
        return {name: (shape, ("I8",)), **scale}
    packed = (*stack, out, integers.packed_width(width))
    return {f"{name}_packed": (packed, ("I32",)), **scale, f"{name}_shape": ((len(shape),), ("I64", "I32"))}


def _nvfp4(name: str, shape: Shape) -> Form:
    num_experts, out, width = shape
    if width % NVFP4_GROUP:
        raise CheckpointError(f"{name} has {width:,} inputs, not a multiple of {NVFP4_GROUP}, the group of NVFP4")
    halves = (2,) if name.endswith(".gate_up_proj") else ()
    return {
        name: ((num_experts, out, width // 2), ("U8",)),
        f"{name}_weight_scale": ((num_experts, out, width // NVFP4_GROUP), ("F8_E4M3",)),
        f"{name}_weight_scale_2": ((num_experts, *halves), ("F32",)),
    }


def _from_config(data: Any) -> WeightFormat:
    """`quantization_config` of `config.json`."""
    expect_fields(data, "quantization_config", {})
    method = data.get("quant_method")
    if method in ("modelopt", "modelopt_fp4"):
        return _from_modelopt(data, "quantization_config", "ignore")
    if method == "fbgemm_fp8":
        names = "modules_to_not_convert"
        kept = KeptModules.parse(data.get(names), f"quantization_config.{names}", "names of subtrees")
        return WeightFormat("fbgemm_fp8", kept)
    kept = KeptModules.parse(data.get("ignore"), "quantization_config.ignore", "exact names and expressions")
    if data.get("format") != "float-quantized":
        return WeightFormat("int", kept, Quantization.from_dict(data))
    _, where, weights = weights_of(data, ("float-quantized",))
    expected = {"type": "float", "num_bits": 8, "symmetric": True, "strategy": "channel"}
    expect_fields(weights, where, expected)
    if weights.get("dynamic"):
        raise CheckpointError(f"{where}.dynamic is {show(weights['dynamic'])}; it is not supported")
    return WeightFormat("fp8", kept)


def _from_modelopt(data: Any, where: str, kept: str) -> WeightFormat:
    expect_fields(data, where, {"quant_algo": "NVFP4"})
    if data.get("group_size", NVFP4_GROUP) != NVFP4_GROUP:
        raise CheckpointError(f"{where}.group_size is {show(data['group_size'])}; that of NVFP4 is {NVFP4_GROUP}")
    modules = KeptModules.parse(data.get(kept), f"{where}.{kept}", "shell patterns")
    return WeightFormat("nvfp4", modules)
