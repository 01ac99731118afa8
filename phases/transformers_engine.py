"""The engine that runs the model: batched generation and label reading with transformers.

It feeds nothing but what ``BaseModel.encode`` made, and is opened by ``phases.engines`` alone.
"""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any, Final

import torch
from transformers.cache_utils import DynamicCache

from phases.base_model import BaseModel
from phases.engines import Generation, Sampling
from runbook.contract import Json
from runbook.errors import ConfigError

_SHARED: Final = 16
"""Tokens that all prompts of a batch must begin with to be read once for all of them."""
_TAIL: Final = 12
"""Tokens decoded at each step to look for a stop string; longer than any."""
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
        own, mask = self._padded([row[len(shared) :] for row in rows], side="left")
        start = torch.tensor([shared] * len(rows), dtype=own.dtype, device=own.device)
        with torch.inference_mode():
            made = self._continue(
                torch.cat([start, own], dim=1),
                torch.cat([torch.ones_like(start), mask], dim=1),
                self._read_once(start),
                _Draw(sampling, len(rows), seed, self.base.device),
                tuple(stop),
            )
        return [self._generation(row, sampling, stop) for row in made]

    def _continue(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        cache: DynamicCache,
        draw: "_Draw",
        stop: tuple[str, ...],
    ) -> list[list[int]]:
        """New tokens of each row, until all have ended; one that has is computed no further.

        ids, mask: (rows, tokens), padding included; the cache holds what is read of them.
        """
        made: list[list[int]] = [[] for _ in ids]
        live = list(range(len(ids)))
        read = int(cache.get_seq_length())
        for _ in range(draw.sampling.max_new_tokens):
            logits = self.base.model(
                input_ids=ids[:, read:],
                attention_mask=mask,
                position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0)[:, read:],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits[:, -1]
            read = ids.shape[1]
            drawn = draw(ids, logits, live)
            ids = torch.cat([ids, drawn], dim=1)
            mask = torch.cat([mask, torch.ones_like(drawn)], dim=1)
            for row, token in zip(live, drawn[:, 0].tolist(), strict=True):
                made[row].append(token)
            going = [at for at, row in enumerate(live) if not self._ended(made[row], stop)]
            if not going:
                break
            if len(going) < len(live):
                live = [live[at] for at in going]
                kept = torch.tensor(going, device=ids.device)
                ids, mask = ids[kept], mask[kept]
                cache.batch_select_indices(kept)
        return made

    def _ended(self, row: list[int], stop: tuple[str, ...]) -> bool:
        if row[-1] == self.base.eos_id:
            return True
        return bool(stop) and _stop_at(self.base.decode(row[-_TAIL:]), stop) is not None

    def _shared(self, rows: Sequence[list[int]], new: int) -> list[int]:
        """What all rows begin with, where it is worth reading once; each keeps a token of its own.

        The padding stands behind it. A sliding window counts padding, so what reaches beyond the
        window shares nothing.
        """
        columns = zip(*(row[:-1] for row in rows), strict=False)
        shared = [column[0] for column in takewhile(lambda c: len(set(c)) == 1, columns)]
        window = getattr(self.base.model.config.get_text_config(), "sliding_window", None)
        fits = window is None or max(len(row) for row in rows) + new <= window
        return shared if len(rows) > 1 and len(shared) >= _SHARED and fits else []

    def _read_once(self, start: torch.Tensor) -> DynamicCache:
        """Keys and values of a start that all rows share. start: (rows, tokens), or (rows, 0)."""
        cache = DynamicCache(config=self.base.model.config)
        if start.shape[1]:
            self._body()(input_ids=start[:1], past_key_values=cache, use_cache=True)
            cache.batch_repeat_interleave(len(start))
        return cache

    def _generation(self, row: list[int], sampling: Sampling, stop: Sequence[str]) -> Generation:
        ended = self.base.eos_id in row
        if ended:
            row = row[: row.index(self.base.eos_id)]
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

    def states(self, prefix: str, texts: Sequence[str]) -> list[list[float]]:
        rows = [self.base.encode(text, continues=True) for text in texts]
        layers = self._run(prefix, rows, output_hidden_states=True).hidden_states
        depth = len(layers) - 1
        middle = layers[round(0.45 * depth) : round(0.9 * depth) + 1]
        last = [len(row) - 1 for row in rows]
        ends = torch.stack([layer[range(len(rows)), last].float() for layer in middle])
        found: list[list[float]] = torch.nn.functional.normalize(ends, dim=-1).mean(0).tolist()
        return found

    @contextmanager
    def damaged(self) -> Iterator[None]:
        """As the protocol has it: the output layer reads each state shifted by one place.

        A hook, so that no weight changes, whatever its quantization.
        """
        head = self.base.model.get_output_embeddings()
        hook = head.register_forward_pre_hook(
            lambda _, inputs: (inputs[0].roll(1, dims=-1), *inputs[1:])
        )
        try:
            yield
        finally:
            hook.remove()

    def _hidden(self, prefix: str, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """Last hidden states after a cached prefix. Shape: (rows, longest row, width)."""
        hidden: torch.Tensor = self._run(prefix, rows).last_hidden_state
        return hidden

    def _run(self, prefix: str, rows: Sequence[Sequence[int]], **options: Any) -> Any:
        """The model without its output layer, over token ids that follow a cached prefix."""
        cache, length = self._prefix_cache(prefix, len(rows))
        ids, mask = self._padded(rows, "right")
        ones = torch.ones((len(rows), length), dtype=mask.dtype, device=mask.device)
        positions = torch.arange(length, length + ids.shape[1], device=ids.device)
        with torch.inference_mode():
            return self._body()(
                input_ids=ids,
                attention_mask=torch.cat([ones, mask], dim=1),
                position_ids=positions.unsqueeze(0).expand_as(ids),
                past_key_values=cache,
                use_cache=True,
                **options,
            )

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

    def fed(self, text: str) -> str:
        return self.base.spell(self.base.encode(text))

    def count_tokens(self, text: str) -> int:
        return len(self.base.encode(text, continues=True))

    def end_of_turn_logps(self) -> dict[str, float]:
        return self.base.end_of_turn_logps()

    def stated(self) -> dict[str, Json]:
        return {"engine": "transformers", **self.base.stated()}


def _capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    return cap * torch.tanh(logits / cap) if cap else logits


class _Draw:
    """Draws the next token of each row.

    Sampling over the whole of a 262k vocabulary costs more than the forward pass (measured:
    multinomial alone 200 ms for 32 rows on two cores). Here top_k cuts first, then temperature
    and top_p act on what is left, then one uniform number a row decides. Numbers are drawn for
    rows that have ended too, so that a row's own do not hang on when the others end.
    """

    def __init__(self, sampling: Sampling, rows: int, seed: int, device: torch.device) -> None:
        self.sampling = sampling
        self.rows = rows
        self.generator = torch.Generator(device=device).manual_seed(seed)

    def __call__(
        self, input_ids: torch.Tensor, logits: torch.Tensor, live: Sequence[int]
    ) -> torch.Tensor:
        """For the batch's rows in ``live``. logits: (live, vocabulary) -> (live, 1)."""
        s = self.sampling
        if s.temperature == 0:
            # In bf16 argmax takes twice as long on a CPU as in fp32, the cast included.
            return logits.float().argmax(dim=-1, keepdim=True)
        if s.repetition_penalty != 1.0:
            logits = logits.float()
            seen = logits.gather(1, input_ids)
            seen = torch.where(seen < 0, seen * s.repetition_penalty, seen / s.repetition_penalty)
            logits = logits.scatter(1, input_ids, seen)
        top, ids = torch.topk(logits, min(s.top_k, logits.shape[-1]), dim=-1)
        p = (top.float() / s.temperature).softmax(dim=-1)
        kept = p * ((p.cumsum(dim=-1) - p) < s.top_p)
        edges = kept.cumsum(dim=-1)
        luck = torch.rand((self.rows, 1), generator=self.generator, device=p.device)
        point = luck[live] * edges[:, -1:]
        at = torch.searchsorted(edges, point, right=True).clamp(max=ids.shape[1] - 1)
        return ids.gather(1, at)


def _stop_at(text: str, stop: Sequence[str]) -> int | None:
    """Where the first stop string begins; leading white space does not count as a blank line."""
    body = text.lstrip()
    places = [at for s in stop if (at := body.find(s)) >= 0]
    return min(places) if places else None
