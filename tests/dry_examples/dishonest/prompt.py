"""Writes prompts of its own. Instruction: and Response: are prose here."""

import logging

STOPS = ["\nInstruction:", "###END###"]  # finds: prompt-marker
LAYOUT = "Instruction: {}\nResponse:"  # finds: prompt-marker
log = logging.getLogger(__name__)


def build(engine, rows, text):
    """Label: is prose here, too."""
    one = f"Instruction: {text}\nResponse:"  # finds: prompt-marker
    two = "Instruction: " + text  # finds: prompt-marker
    three = "\n".join(["Instruction: x", text])  # finds: prompt-marker
    four = "### Response:\n%s" % text  # finds: prompt-marker
    five = "Instruct" + "ion: " + text  # finds: prompt-marker
    six = f"{text}\nLa" "bel:"  # finds: prompt-marker
    end = ("###"  # finds: prompt-marker
           r"END###")
    low = "instruction: %s\nresponse:" % text  # finds: prompt-marker
    lines = []
    lines.append(f"Response: {text}")  # finds: prompt-marker
    print(engine.generate([f"Label: {text}"], None, [], 0))  # finds: prompt-marker
    log.info("Response: %s", text)
    print(f"Instruction: {text}")
    if text.startswith("Response:") or "Label:" in text:
        raise ValueError(f"Response: opens {text}")
    return one, two, three, four, five, six, end, lines, LAYOUT.format(text), STOPS, rows


def few_shot(engine, question):
    shots = "Q: What is two and two?\nA: Four.\n\n"  # finds: prompt-few-shot
    asked = "Question: " + question + "\nAnswer:"  # finds: prompt-few-shot
    return engine.generate([shots + question, asked], None, [], 0)
