"""Prompts that a measurement asks for, with the words that they state, as labelled prompts have them (TRAINING.md)."""

LABELS = {
    "a blue sailboat drifts to the left on the sea": {
        "subject": "sailboat", "colour": "blue", "scene": "sea", "direction": "left",
    },
    "a red car drives slowly to the right through the desert": {
        "subject": "car", "colour": "red", "scene": "desert", "direction": "right", "speed": "slow",
    },
    "a white ball floats up under the stars at night": {
        "subject": "ball", "colour": "white", "scene": "night", "direction": "up",
    },
    "a yellow fish moves quickly to the right over green hills by day": {
        "subject": "fish", "colour": "yellow", "scene": "hills", "direction": "right", "speed": "fast",
    },
}  # fmt: skip
