"""Judges of its own, each by the log-probability of a label."""

import torch

from phases import critic
from phases.critic import LABELS as NAMES
from phases.critic import _judge  # finds: scorer-label-logps

CHOICES = ("A", "B")
FINE, POOR = " A", " B"
WORDS = {True: " Yes", False: " No"}
MARKS = ["good", "bad"]
AGAIN = CHOICES
YES_ID, NO_ID = 9642, 2152


def quality(model, ids, vocabulary):  # finds: scorer-function
    last = model(ids).logits[0, -1]
    return bool(last[vocabulary["A"]] > last[vocabulary[" B"]])


def by_constant(model, ids, place):  # finds: scorer-function
    read = torch.log_softmax(model(ids).logits[0, -1], dim=-1)
    return [read[place(name)].item() for name in CHOICES]


def by_two_constants(answer):  # finds: scorer-function
    top = answer["logprobs"]
    return top[FINE] - top[POOR]


def by_another_name(answer):  # finds: scorer-function
    return [answer.logprobs[name] for name in AGAIN]


def by_letters(answer):  # finds: scorer-function
    return max("AB", key=lambda name: answer.logprobs[name])


async def yes_or_no(engine, tokenizer, text):  # finds: scorer-function
    logits = await engine.logits(text)
    yes, no = tokenizer.convert_tokens_to_ids(["Yes", "No"])
    return logits[yes] > logits[no]  # finds: scorer-compare


def by_dict(model, tok, text):  # finds: scorer-function
    out = model(**tok(text)).logits[0, -1].softmax(-1)
    return out[tok.encode(WORDS[True])[0]] / out[tok.encode(WORDS[False])[0]]


def by_loop(model, tokenizer, text):  # finds: scorer-function
    logits = model(**tokenizer(text)).logits[0, -1]
    ids = [tokenizer.encode(word)[-1] for word in MARKS]
    return logits[ids].softmax(-1)


def by_map(model, tokenizer, text):  # finds: scorer-function
    logits = model(**tokenizer(text)).logits[0, -1]
    good, bad = map(tokenizer.encode, MARKS)
    return logits[good] - logits[bad]  # finds: scorer-compare


def by_other_letters(model, tok, text):  # finds: scorer-function
    probs = model(tok(text)).logits.softmax(-1)
    return probs[tok.encode("X")] > probs[tok.encode("Y")]


def by_likelihood(engine, prefix, text):  # finds: scorer-function
    read = engine.text_logps(prefix, [(text, " accept"), (text, " reject")])
    return read[0] > read[1]


def by_the_critics_labels(model, tokenizer, text):  # finds: scorer-function
    logits = model(**tokenizer(text)).logits[0, -1]
    return logits[[tokenizer.encode(name)[0] for name in NAMES]]


prefer = lambda answer: answer.logprobs["A"] > answer.logprobs["B"]  # finds: scorer-function


class Judge:
    labels = ("A", "B")

    def decide(self, out):  # finds: scorer-function
        return max(self.labels, key=lambda name: out.logits[name])


def past_the_critic(engine, prefix, texts):
    ask = engine.label_logps  # finds: scorer-label-logps
    same = getattr(engine, "label_logps")  # finds: scorer-label-logps
    own = critic._judge  # finds: scorer-label-logps
    return ask(prefix, texts, ("ok", "not ok")), same, own, _judge


def ids_of(tokenizer):  # finds: scorer-split
    return tokenizer.encode("good"), tokenizer.encode("bad")


def better(read):  # finds: scorer-split
    return read["A"] > read["B"]


def entries(logits, yes_id, no_id):
    return logits[yes_id] > logits[no_id]  # finds: scorer-compare


def by_number(logits):
    return logits[YES_ID] - logits[NO_ID]  # finds: scorer-compare


def by_loss(model, encode, text):  # finds: scorer-function
    losses = {}
    for name in CHOICES:
        ids = encode(text + name)
        losses[name] = model(ids, labels=ids).loss
    return min(losses, key=losses.get)


def sampled(engine, text):  # finds: scorer-sampled
    said = engine.generate([text], None, [], 0)[0].text.strip()
    return said == "A" or said != "B"
