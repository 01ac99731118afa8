"""Filters that read how likely the model finds a text; no label, no sampling.

``contrast`` asks whether an instruction goes on a list of good ones rather than on a list of bad
ones: the difference of its log-probability after each (a noisy-channel classifier, Min et al.
2022, arXiv:2108.04106). ``likelihood`` reads a response three ways: how likely it is after its
instruction, by how much the instruction raises that, and how surely the model ends it there.

What they cannot see: an answer that is wrong and that the model itself believes.
"""

from collections.abc import Sequence
from statistics import fmean

from phases import prompts
from phases.engines import Engine
from phases.prompts import FewShot


def contrast(engine: Engine, shots: FewShot, instructions: Sequence[str]) -> list[dict[str, float]]:
    """``contrast`` of each instruction, in nats: positive where it goes with the good ones.

    The mean over several lists of examples, since one list's reading depends on what stands in it.
    """
    texts = [(prompts.INSTRUCTION, f" {text}\n") for text in instructions]
    good, bad = (
        [
            [sum(piece[0]) for piece in engine.text_logps(listed, texts)]
            for listed in prompts.example_lists(shots, good=label)
        ]
        for label in (True, False)
    )
    return [
        {"contrast": fmean(after_good) - fmean(after_bad)}
        for after_good, after_bad in zip(
            zip(*good, strict=True), zip(*bad, strict=True), strict=True
        )
    ]


def likelihood(
    engine: Engine, shots: FewShot, pairs: Sequence[tuple[str, str]]
) -> list[dict[str, float]]:
    """``fits``, ``gain`` and ``ends`` of each pair.

    ``fits`` is the mean log-probability of the response's tokens after its instruction, ``gain``
    how much of it the instruction gives, both in nats a token; ``ends`` is the log-probability
    that the response ends where it does.
    """
    asked = [
        (prompts.evaluation_prompt(instruction), f" {response}", prompts.ENDING)
        for instruction, response in pairs
    ]
    alone = [(prompts.BARE_RESPONSE, f" {response}") for _, response in pairs]
    after = engine.text_logps(prompts.response_prefix(shots), asked)
    bare = engine.text_logps(prompts.bare_response_prefix(shots), alone)
    return [
        {"fits": fmean(response), "gain": fmean(response) - fmean(without), "ends": ending[0]}
        for (response, ending), (without,) in zip(after, bare, strict=True)
    ]
