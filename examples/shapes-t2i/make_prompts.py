"""Write the prompt files: held-out prompts for scoring, training prompts for calibration."""

import random
from pathlib import Path

import grammar
import pictures

HELD_OUT = 512
CALIBRATION = 128


def prompt_files() -> dict[str, list[str]]:
    """Return the prompts of every file by its name."""
    rng = random.Random("shapes-t2i held-out two")
    two: dict[str, None] = {}
    while len(two) < HELD_OUT:
        two[grammar.random_pair(rng, held_out=True).text()] = None
    rng = random.Random("shapes-t2i calibration")
    calibration: dict[str, None] = {}
    while len(calibration) < CALIBRATION:
        calibration[pictures.sample(rng)[0]] = None
    return {
        "heldout-one.txt": grammar.one_object_prompts(held_out=True)[:HELD_OUT],
        "heldout-two.txt": list(two),
        "calibration.txt": list(calibration),
    }


if __name__ == "__main__":
    for name, prompts in prompt_files().items():
        (Path(__file__).parent / "prompts" / name).write_text("\n".join(prompts) + "\n")
