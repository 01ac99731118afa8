"""The reviewers ``openai`` and ``anthropic``: one question to a model, its answer within bounds.

Rule: whatever is not a well-formed answer within the request's bounds is no decision, and a person
must decide; the cause then stands in ``error.txt``, the text that was none in ``draft.txt``. Each
request is reserved with the request's account at what it may cost at worst, one at a time, and
settled by what the provider counted. One whose end nobody knows stays reserved, and the account
says how many follow it. See ``agent.review_files`` for what is stored and when.

An answer that cannot be read is asked for once more, with its error quoted. The declared fallback
is asked where the first model cannot answer at all: it failed for good, or was busy to the last
try. It is not asked after an answer, whatever that says, since a second opinion would be chosen by
what the first one was; nor after an unknown outcome, since both might then be paid for one answer.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

import tenacity

from agent import anthropic_provider, human, openai_provider, prompts, redaction
from agent.answer import (
    Answer,
    UnusableError,
    answer_schema,
    check_bounds,
    open_actions,
    read_answer,
)
from agent.exchange import fetch
from agent.failures import (
    PermanentError,
    ProviderError,
    RefusedError,
    StoppedError,
    TransientError,
    UnknownOutcomeError,
)
from agent.provider import (
    Call,
    Message,
    Provider,
    Served,
    Tokens,
    believed,
    is_key,
    load_body,
    request_size,
)
from agent.remedy import ASK, CHANGE, Remedy
from agent.review_files import ANSWERED, FAILED, SENT, DamagedError, ReviewFiles
from agent.review_files import Sent as SentRequest
from runbook.artifacts import canonical_json, sha256_bytes
from runbook.contract import Decision, Json, Reviewer, ReviewRequest

PROVIDERS: Mapping[str, Provider] = {
    "openai": openai_provider.PROVIDER,
    "anthropic": anthropic_provider.PROVIDER,
}
_LOCAL_KEY = "none-needed"
"""Sent to a server on this machine where no key is declared: the SDKs want one."""
_SLICE_S = 0.2
_FIRST_WAIT_S = 2.0


def reviewer(
    models: Sequence[Served],
    *,
    tries: int = 4,
    redact: Callable[[bytes], bytes] = bytes,
    environ: Mapping[str, str] = os.environ,
    sleep: Callable[[float], None] = time.sleep,
) -> Reviewer:
    """A reviewer that asks the first of these models, and the next as its fallback.

    Args:
        models: one or two.
        tries: how often one question is sent to a model that is busy or cannot be reached.
        redact: takes secrets out of bytes; by default there are none.
        environ: where the keys stand.
        sleep: waits between two tries, in slices.
    """

    def ask(request: ReviewRequest) -> Decision | None:
        request = redaction.of_request(request, redact)
        human.ask(request, redact)
        if not open_actions(request):
            return None
        mine = replace(request, allowed=open_actions(request))
        files = ReviewFiles(request.workspace / request.path, redact)
        try:
            prompt = _prompt(mine, models, files)
            asked = [_Asked(mine, files, each, prompt, tries, environ, sleep) for each in models]
            return _known(asked, files) or _ask_in_turn(asked, files)
        except (_NoPromptError, DamagedError) as error:
            is_damaged = isinstance(error, DamagedError)
            files.fail([str(error)], "", Remedy() if is_damaged else Remedy(CHANGE))
            return None

    return ask


class _NoPromptError(Exception):
    """There is no question that a model could be sent."""


def _prompt(request: ReviewRequest, models: Sequence[Served], files: ReviewFiles) -> str:
    limit = prompts.most_tokens(models)
    try:
        return files.prompt(request, limit, lambda: prompts.question(request, limit))
    except ValueError as error:
        fix = "raise context_tokens, or decide yourself"
        raise _NoPromptError(f"the dossier: {error}; {fix}") from error


def _known(asked: Sequence["_Asked"], files: ReviewFiles) -> Decision | None:
    """The answer that was taken before; it is held against the bounds again."""
    document = files.decision()
    for each in asked:
        if document.get("key") == each.key:
            try:
                answer = Answer.model_validate(document.get("answer"))
                check_bounds(answer, each.request)
            except ValueError:
                return None
            return answer.decision(each.served.name)
    return None


def _ask_in_turn(asked: Sequence["_Asked"], files: ReviewFiles) -> Decision | None:
    causes: list[str] = []
    draft = ""
    remedy = Remedy()
    _settle_failed(asked[0].request, files)
    # Where a fallback was asked before a crash, the first model is not asked again: it may be paid.
    begun = [i for i, each in enumerate(asked) if each.is_open]
    for each in asked[begun[-1] if begun else 0 :]:
        try:
            return each.decide()
        except (PermanentError, TransientError) as error:
            causes.append(f"{each.served.name}: {error}")
            remedy = _remedy_of(error)
            if each.is_open:
                break
        except (ProviderError, RefusedError, StoppedError) as error:
            causes.append(f"{each.served.name}: {error}")
            remedy = _remedy_of(error)
            break
        except NoAnswerError as error:
            causes.append(f"{each.served.name}: {error}")
            draft, remedy = error.draft, _remedy_of(error)
            break
    if len(causes) > 1 and not any(each.is_open for each in asked):
        # The first model is asked again, whatever kept the fallback from it.
        remedy = Remedy(ASK)
    files.fail(causes, draft, remedy)
    return None


def _remedy_of(error: BaseException | None) -> Remedy:
    """A reply that is stored is not asked for again; one that could not be mended for now is."""
    match error:
        case RefusedError():
            return error.remedy
        case ProviderError() | StoppedError():
            return Remedy(ASK)
        case NoAnswerError():
            return _remedy_of(error.__cause__)
        case _:
            return Remedy()


def _settle_failed(request: ReviewRequest, files: ReviewFiles) -> None:
    """Tell the account what failed and cost nothing, once that is on disk.

    The other way round, a kill in between would leave a request that seems to be out, and the
    fallback would never be asked.
    """
    for sent in files.requests():
        if sent.outcome == FAILED and sent.usd is None:
            request.account.settle(sent.key, 0.0)
            files.end(sent, FAILED, sent.cause, usd=0.0)


class NoAnswerError(Exception):
    """The model was asked to the end, and what it said is no answer."""

    def __init__(self, cause: str, draft: str) -> None:
        super().__init__(cause)
        self.draft = draft


class _RepairableError(Exception):
    """A reply that one more request may mend; holds the reply's text."""

    def __init__(self, cause: str, draft: str) -> None:
        super().__init__(cause)
        self.draft = draft


@dataclass(frozen=True)
class _Asked:
    """One model, asked one question."""

    request: ReviewRequest
    files: ReviewFiles
    served: Served
    prompt: str
    tries: int
    environ: Mapping[str, str] = field(repr=False)
    sleep: Callable[[float], None]

    @property
    def key(self) -> str:
        """The review key: what an answer holds for."""
        of, served = self.request, self.served
        asked = [served.provider, served.base_url, served.model]
        return _sha256([of.run_id, of.step, of.attempt, self.prompt, asked])

    @property
    def is_open(self) -> bool:
        """Whether a request was sent to this model that may have been charged."""
        sent = self.files.requests()
        return any(s.review_key == self.key and s.outcome != FAILED for s in sent)

    def decide(self) -> Decision:
        """The model's decision, on disk before it is returned. Raises as the module says."""
        try:
            answer, sent = self._answer(self.key, (("user", self.prompt),))
        except _RepairableError as wrong:
            answer, sent = self._repaired(wrong)
        document = {
            "key": self.key,
            "author": self.served.name,
            "answer": answer.model_dump(),
            "request": sent.number,
        }
        self.files.decide(document)
        return answer.decision(self.served.name)

    def _repaired(self, wrong: _RepairableError) -> tuple[Answer, SentRequest]:
        """The answer to the one request that quotes what was wrong. Raises NoAnswerError."""
        asked = prompts.repair(self.request, self.served, self.prompt, wrong.draft, str(wrong))
        try:
            # One key whatever is quoted: how much of it fits changes with context_tokens.
            return self._answer(_sha256([self.key, "repair"]), asked)
        except (_RepairableError, NoAnswerError) as again:
            draft = again.draft or wrong.draft
            raise NoAnswerError(f"{wrong}; asked to mend it: {again}", draft) from again
        except (ProviderError, RefusedError, StoppedError) as error:
            raise NoAnswerError(f"{wrong}; not mended: {error}", wrong.draft) from error

    def _answer(self, key: str, messages: tuple[Message, ...]) -> tuple[Answer, SentRequest]:
        """The answer to a conversation, asked for where no response to it is stored.

        Raises:
            _RepairableError: the reply is none, and may be mended.
            NoAnswerError: it is none.
        """
        stored = self.files.response(key)
        if stored and stored[0].outcome == SENT:
            self._settle(*stored)
        sent, body = stored or self._ask(key, messages)
        try:
            reply = self._provider.read(load_body(body))
        except UnusableError as error:
            raise NoAnswerError(str(error), "") from error
        if reply.cut_off:
            raise _RepairableError(reply.ended, reply.text)
        if reply.ended:
            raise NoAnswerError(reply.ended, reply.text)
        try:
            text = reply.text.encode("utf-8", "backslashreplace")
            answer = read_answer(text, self.request, complete=True)
            return redaction.of_answer(answer, self.files.redact), sent
        except UnusableError as error:
            raise _RepairableError(str(error), reply.text) from error

    @property
    def _provider(self) -> Provider:
        return PROVIDERS[self.served.provider]

    def _ask(self, key: str, messages: tuple[Message, ...]) -> tuple[SentRequest, bytes]:
        call = Call(
            self.served,
            messages,
            answer_schema(self.request),
            self.served.effort_for(self.request.reason),
        )
        secret = self._api_key()
        usd = self._worst(call)
        retrying = tenacity.Retrying(
            stop=tenacity.stop_after_attempt(self.tries),
            retry=tenacity.retry_if_exception_type((TransientError, UnknownOutcomeError)),
            wait=_wait,
            sleep=self._pause,
            reraise=True,
        )
        return retrying(self._send, key, call, secret, usd)

    def _send(
        self, key: str, call: Call, secret: str, usd: float | None
    ) -> tuple[SentRequest, bytes]:
        """One request: reserved, sent, stored, settled."""
        if reason := self.request.stop():
            raise StoppedError(reason)
        if refusal := self.request.account.reserve(key, usd):
            self._refuse(key, refusal, usd)
        served = self.served
        sent = self.files.begin(key, self.key, served.provider, served.model, usd)
        try:
            body = fetch(
                lambda http: self._provider.send(call, secret, http),
                timeout_s=served.timeout_s,
                stop=self.request.stop,
                key=secret,
                redact=self.files.redact,
            )
        except (TransientError, PermanentError) as error:
            self.files.end(sent, FAILED, str(error))
            _settle_failed(self.request, self.files)
            raise
        except (UnknownOutcomeError, StoppedError) as error:
            self.files.end(sent, SENT, str(error))
            raise
        body = self.files.keep_response(sent, body)
        self._settle(sent, body)
        return sent, body

    def _refuse(self, key: str, refusal: str, usd: float | None) -> NoReturn:
        before = self.files.requests(key)
        causes = [sent.cause for sent in before if sent.cause]
        # Where the end of one is not known, money may not be all that is missing.
        is_sure = usd is not None and not any(sent.outcome == SENT for sent in before)
        is_poor = is_sure and not self.request.account.affords(1, usd)
        told = f"{refusal} (the last try: {causes[-1]})" if causes else refusal
        raise RefusedError(told, Remedy(usd=usd if is_poor else None))

    def _settle(self, sent: SentRequest, body: bytes) -> None:
        """By what the provider counted; all that was reserved, where that cannot be right."""
        counted = self._counted(body)
        usd = self.served.cost(counted) if counted else None
        if usd is not None and sent.reserved_usd is not None and usd > sent.reserved_usd:
            # More than was sent and may have been written: a count that is not to be believed.
            usd = counted = None
        tokens = counted or Tokens(0, 0)
        self.request.account.settle(
            sent.key, usd, input_tokens=tokens.input, output_tokens=tokens.output
        )
        self.files.end(
            sent, ANSWERED, usd=usd, input_tokens=tokens.input, output_tokens=tokens.output
        )

    def _counted(self, body: bytes) -> Tokens | None:
        """What the provider counted; None where it says nothing that can be believed."""
        try:
            document = load_body(body)
        except UnusableError:
            return None
        try:
            text = self._provider.read(document).text
        except UnusableError:
            text = ""
        return believed(self._provider.tokens(document), text)

    def _worst(self, call: Call) -> float | None:
        """What a request costs at most; None: what the runbook declares of a request.

        Raises:
            RefusedError: more than ``max_usd``.
        """
        served = self.served
        usd = served.worst_usd(request_size(call.messages, call.schema))
        if usd is not None and served.max_usd is not None and usd > served.max_usd:
            what = f"one request may cost {usd:.4f} USD, more than max_usd: {served.max_usd:g}"
            fix = "lower context_tokens or max_output_tokens, or raise it"
            raise RefusedError(f"{what}; {fix}", Remedy(CHANGE))
        return usd

    def _api_key(self) -> str:
        """Raises PermanentError: there is none."""
        name = self.served.api_key_env
        key = self.environ.get(name, "").strip()
        if not key and self.served.is_local:
            return _LOCAL_KEY
        if not key:
            raise PermanentError(f"the environment variable {name} is not set; it holds the key")
        if not is_key(key):
            raise PermanentError(f"the environment variable {name} does not hold a key")
        return key

    def _pause(self, wait_s: float) -> None:
        """Wait, and give up within a slice of it. Raises StoppedError."""
        left = wait_s
        while left > 0:
            if reason := self.request.stop():
                raise StoppedError(reason)
            self.sleep(min(_SLICE_S, left))
            left -= _SLICE_S


_backoff = tenacity.wait_exponential_jitter(multiplier=_FIRST_WAIT_S, max=60.0, jitter=1.0)


def _wait(state: tenacity.RetryCallState) -> float:
    """What the server asked for, or else twice as long each time."""
    error = state.outcome.exception() if state.outcome else None
    asked = error.retry_after_s if isinstance(error, TransientError) else None
    return _backoff(state) if asked is None else asked


def _sha256(value: Json) -> str:
    return sha256_bytes(canonical_json(value).encode("utf-8", "surrogatepass"))
