"""The engine that runs the model: batched generation and label reading with transformers.

It feeds nothing but what ``BaseModel.encode`` made, and is opened by ``phases.engines`` alone.
"""

import copy
from collections.abc import Sequence
from os.path import commonprefix
from typing import Any, Final

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.cache_utils import DynamicCache

from phases.base_model import BaseModel
from phases.engines import Generation, Sampling
from runbook.contract import Json
from runbook.errors import ConfigError

_SHARED: Final = 16
"""Tokens that all prompts of a batch must begin with to be read once for all of them."""
_HEAD_ROWS: Final = 128
"""Positions that go through the output layer together."""
_HEAD_COLUMNS: Final = 8192
"""Rows of the vocabulary at a time, so that the logits stay in the processor's cache."""


class TransformersEngine:
    """Batched generation and last-position label reading with transformers."""

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self._prefixes: dict[str, tuple[DynamicCache, int]] = {}

    def generate(
        self, prompts: Sequence[str], sampling: Sampling, stop: Sequence[str], seed: int
    ) -> list[Generation]:
        rows = [self.base.encode(p) for p in prompts]
        shared = self._shared(rows, sampling.max_new_tokens)
        ids, mask = self._padded([row[len(shared) :] for row in rows], side="left")
        start = torch.tensor([shared] * len(rows), dtype=ids.dtype, device=ids.device)
        ids = torch.cat([start, ids], dim=1)
        mask = torch.cat([torch.ones_like(start), mask], dim=1)
        processors = LogitsProcessorList()
        if sampling.temperature > 0:
            generator = torch.Generator(device=self.base.device).manual_seed(seed)
            processors.append(_Draw(sampling, generator))
        stopper = _Stopper(self.base, ids.shape[1], tuple(stop))
        with torch.inference_mode():
            out = self.base.model.generate(
                input_ids=ids,
                attention_mask=mask,
                past_key_values=self._read_once(start) if shared else None,
                max_new_tokens=sampling.max_new_tokens,
                do_sample=False,
                logits_processor=processors,
                stopping_criteria=StoppingCriteriaList([stopper]),
                pad_token_id=self.base.pad_id,
                eos_token_id=self.base.eos_id,
            )
        made = out[:, ids.shape[1] :].tolist()
        return [self._generation(row, sampling, stop) for row in made]

    def _shared(self, rows: Sequence[list[int]], new: int) -> list[int]:
        """What all rows begin with, where it is worth reading once; each keeps a token of its own.

        The padding stands behind it. A sliding window counts padding, so what reaches beyond the
        window shares nothing.
        """
        shared = list(commonprefix([row[:-1] for row in rows]))
        window = getattr(self.base.model.config, "sliding_window", None)
        fits = window is None or max(len(row) for row in rows) + new <= window
        return shared if len(rows) > 1 and len(shared) >= _SHARED and fits else []

    def _read_once(self, start: torch.Tensor) -> DynamicCache:
        """Keys and values of a start that all rows share. start: (rows, tokens)."""
        cache = DynamicCache(config=self.base.model.config)
        self._body()(input_ids=start[:1], past_key_values=cache, use_cache=True)
        cache.batch_repeat_interleave(len(start))
        return cache

    def _generation(self, row: list[int], sampling: Sampling, stop: Sequence[str]) -> Generation:
        ended = self.base.eos_id in row
        if ended:
            row = row[: row.index(self.base.eos_id)]
        while row and row[-1] == self.base.pad_id:
            row.pop()
        text = self.base.decode(row)
        stopped = ended or _stop_at(text, stop) is not None
        return Generation(text, len(row), not stopped and len(row) >= sampling.max_new_tokens)

    def label_logps(
        self, prefix: str, suffixes: Sequence[str], labels: tuple[str, str]
    ) -> list[tuple[float, float]]:
        label_ids = [self._label_ids(label) for label in labels]
        rows = [self.base.encode(s, continues=True) for s in suffixes]
        hidden = self._hidden(prefix, rows)
        last = torch.tensor([len(row) - 1 for row in rows], device=self.base.device)
        wanted = torch.tensor([[i for pair in label_ids for i in pair]], device=self.base.device)
        with torch.inference_mode():
            logps = self._head_logps(
                hidden[torch.arange(len(rows), device=last.device), last],
                wanted.expand(len(rows), -1),
            )
        first = len(label_ids[0])
        return [(float(row[:first].logsumexp(0)), float(row[first:].logsumexp(0))) for row in logps]

    def text_logps(self, prefix: str, texts: Sequence[tuple[str, ...]]) -> list[list[list[float]]]:
        pieces = [[self.base.encode(piece, continues=True) for piece in text] for text in texts]
        rows = [[i for piece in text for i in piece] for text in pieces]
        hidden = self._hidden(prefix, rows)
        places = [
            (row, at)
            for row, text in enumerate(pieces)
            for at in range(len(text[0]), len(rows[row]))
        ]
        found: list[float] = []
        for start in range(0, len(places), _HEAD_ROWS):
            part = places[start : start + _HEAD_ROWS]
            before = torch.stack([hidden[row, at - 1] for row, at in part])
            wanted = torch.tensor([[rows[row][at]] for row, at in part], device=before.device)
            with torch.inference_mode():
                found += self._head_logps(before, wanted)[:, 0].tolist()
        each = iter(found)
        return [[[next(each) for _ in piece] for piece in text[1:]] for text in pieces]

    def _hidden(self, prefix: str, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Last hidden states after a cached prefix. Shape: (rows, longest row, width)."""
        cache, length = self._prefix_cache(prefix, len(rows))
        ids, mask = self._padded(rows, "right")
        ones = torch.ones((len(rows), length), dtype=mask.dtype, device=mask.device)
        positions = torch.arange(length, length + ids.shape[1], device=ids.device)
        with torch.inference_mode():
            hidden: torch.Tensor = self._body()(
                input_ids=ids,
                attention_mask=torch.cat([ones, mask], dim=1),
                position_ids=positions.unsqueeze(0).expand_as(ids),
                past_key_values=cache,
                use_cache=True,
            ).last_hidden_state
        return hidden

    def _body(self) -> Any:
        return self.base.model.get_decoder()

    def _head_logps(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """fp32 log-probabilities of a few tokens a row.

        hidden: (rows, width); ids: (rows, k) -> (rows, k). The wanted tokens' logits come from an
        fp32 product. The normaliser is summed over the vocabulary in slices, scaled by the
        largest logit so far: torch's own logsumexp over the whole takes three times as
        long as the product on a CPU (measured on two cores, 262k tokens: 3.2 and 1.1 ms a row).
        """
        weight = self.base.model.get_output_embeddings().weight
        cap = getattr(self.base.model.config, "final_logit_softcapping", None)
        exact = _capped(torch.einsum("rw,rkw->rk", hidden.float(), weight[ids].float()), cap)
        peak, total = exact[:, :1], torch.zeros_like(exact[:, :1])
        for part in weight.split(_HEAD_COLUMNS):
            logits = _capped((hidden @ part.T).float(), cap)
            higher = torch.maximum(peak, logits.amax(dim=-1, keepdim=True))
            summed = logits.sub_(higher).exp_().sum(dim=-1, keepdim=True)
            peak, total = higher, total * (peak - higher).exp() + summed
        return exact - peak - total.log()

    def _label_ids(self, label: str) -> list[int]:
        found = []
        for text in (label, " " + label):
            ids = self.base.encode(text, continues=True)
            if len(ids) != 1:
                raise ConfigError(
                    f"the label {text!r} is {len(ids)} tokens in this tokenizer, not one",
                    where="critic labels",
                    fix="use labels that are single tokens with and without a leading space",
                )
            found.append(ids[0])
        return found

    def _prefix_cache(self, prefix: str, rows: int) -> tuple[DynamicCache, int]:
        """Keys and values of a shared prefix, repeated for a batch."""
        if prefix not in self._prefixes:
            ids = torch.tensor([self.base.encode(prefix)], device=self.base.device)
            cache = DynamicCache(config=self.base.model.config)
            with torch.inference_mode():
                self._body()(input_ids=ids, past_key_values=cache, use_cache=True)
            self._prefixes[prefix] = (cache, int(ids.shape[1]))
        kept, length = self._prefixes[prefix]
        batch = copy.deepcopy(kept)
        batch.batch_repeat_interleave(rows)
        return batch, length

    def _padded(
        self, rows: Sequence[Sequence[int]], side: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Ids and attention mask, each (rows, longest)."""
        longest = max(len(row) for row in rows)
        ids, mask = [], []
        for row in rows:
            gap = longest - len(row)
            pad, off = [self.base.pad_id] * gap, [0] * gap
            on = [1] * len(row)
            ids.append([*pad, *row] if side == "left" else [*row, *pad])
            mask.append([*off, *on] if side == "left" else [*on, *off])
        device = self.base.device
        return torch.tensor(ids, device=device), torch.tensor(mask, device=device)

    def count_tokens(self, text: str) -> int:
        return len(self.base.encode(text, continues=True))

    def end_of_turn_logps(self) -> dict[str, float]:
        return self.base.end_of_turn_logps()

    def stated(self) -> dict[str, Json]:
        return {"engine": "transformers", **self.base.stated()}


def _capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    return cap * torch.tanh(logits / cap) if cap else logits


class _Draw(LogitsProcessor):  # type: ignore[misc]  # transformers ships no types
    """Draws the next token itself and leaves one finite score, so that argmax finds it.

    Sampling over the whole of a 262k vocabulary costs more than the forward pass (measured:
    multinomial alone 200 ms for 32 rows on two cores). Here top_k cuts first, then temperature
    and top_p act on what is left, then one uniform number a row decides.
    """

    def __init__(self, sampling: Sampling, generator: torch.Generator) -> None:
        self.sampling = sampling
        self.generator = generator

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        s = self.sampling
        if s.repetition_penalty != 1.0:
            seen = scores.gather(1, input_ids)
            seen = torch.where(seen < 0, seen * s.repetition_penalty, seen / s.repetition_penalty)
            scores = scores.scatter(1, input_ids, seen)
        top, ids = torch.topk(scores, min(s.top_k, scores.shape[-1]), dim=-1)
        p = (top.float() / s.temperature).softmax(dim=-1)
        kept = p * ((p.cumsum(dim=-1) - p) < s.top_p)
        edges = kept.cumsum(dim=-1)
        point = torch.rand((len(p), 1), generator=self.generator, device=p.device) * edges[:, -1:]
        choice = ids.gather(
            1, torch.searchsorted(edges, point, right=True).clamp(max=ids.shape[1] - 1)
        )
        drawn = torch.full_like(scores, torch.finfo(scores.dtype).min)
        return drawn.scatter(1, choice, 0.0)


class _Stopper(StoppingCriteria):  # type: ignore[misc]  # transformers ships no types
    """Ends a row once a stop string stands in its continuation."""

    _TAIL: Final = 12
    """Tokens decoded at each step; longer than any stop string."""

    def __init__(self, base: BaseModel, start: int, stop: tuple[str, ...]) -> None:
        self.base = base
        self.start = start
        self.stop = stop
        self.done: torch.Tensor | None = None
        self.spoken: torch.Tensor | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **_: Any) -> torch.Tensor:  # noqa: ARG002 - the hook's signature
        rows = len(input_ids)
        if self.done is None or self.spoken is None:
            self.done = torch.zeros(rows, dtype=torch.bool, device=input_ids.device)
            self.spoken = torch.zeros(rows, dtype=torch.bool, device=input_ids.device)
        tail = input_ids[:, max(self.start, input_ids.shape[1] - self._TAIL) :].tolist()
        for i in range(rows):
            if bool(self.done[i]):
                continue
            text = self.base.decode(tail[i])
            if not bool(self.spoken[i]):
                text = text.lstrip()
                self.spoken[i] = bool(text)
            if _stop_at(text, self.stop) is not None:
                self.done[i] = True
        return self.done


def _stop_at(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string begins; leading white space does not count as a blank line."""
    body = text.lstrip()
    places = [at for s in stop if (at := body.find(s)) >= 0]
    return min(places) if places else None
