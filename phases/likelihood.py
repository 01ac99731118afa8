"""A filter of pairs that reads how likely the model finds a response; no label, no sampling.

A response is read three ways: how likely it is after its instruction, by how much the instruction
raises that, and how surely the model ends it there.

What it cannot see: an answer that is wrong and that the model itself believes.
"""

from collections.abc import Sequence
from statistics import fmean

from phases import prompts
from phases.engines import Engine
from phases.prompts import FewShot


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
