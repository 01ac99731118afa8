"""The reviewer ``command``: any program, the request on stdin, a JSON decision on stdout.

Rule: whatever is not a well-formed answer within the request's bounds is no decision, and a person
must decide; the cause then stands in ``error.txt``. The program starts in the review's folder with
the caller's whole environment and the workspace's mark, so it has the caller's credentials; what
it says goes through ``redact`` before it is read or written.

Beside ``request.md``: ``response.txt`` and ``stderr.log``, what it said; ``decision.json``, the
answer taken, which is returned again after a crash. Each start is reserved with the request's
account first, so that one whose end nobody saw is known, and is not repeated without end.
"""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agent import human, redaction
from agent import remedy as remedies
from agent.answer import Answer, UnusableError, check_bounds, instruction, open_actions, read_answer
from agent.program import Ended, run_program
from runbook.artifacts import canonical_json, sha256_bytes, write_bytes, write_json
from runbook.contract import MARK, Decision, Json, Reviewer, ReviewRequest


def reviewer(
    command: Sequence[str], timeout_s: float, redact: Callable[[bytes], bytes] = bytes
) -> Reviewer:
    """A reviewer that asks this program; a name without a slash is looked up on PATH.

    ``redact`` takes secrets out of bytes; by default there are none.
    """

    def ask(request: ReviewRequest) -> Decision | None:
        request = redaction.of_request(request, redact)
        human.ask(request, redact)
        if not open_actions(request):
            return None
        return _Review(request, tuple(command), redact).decide(timeout_s)

    return ask


@dataclass(frozen=True)
class _Review:
    request: ReviewRequest
    command: tuple[str, ...]
    redact: Callable[[bytes], bytes]

    @property
    def folder(self) -> Path:
        return self.request.workspace / self.request.path

    @property
    def prompt(self) -> str:
        """What stands on stdin: without override, and without the command a person answers by."""
        mine = replace(self.request, allowed=open_actions(self.request))
        return f"{human.question(mine)}\n{instruction(mine)}"

    @property
    def key(self) -> str:
        """What an answer holds for: this run, gate, attempt, question and program."""
        of = self.request
        fields = [of.run_id, of.step, of.attempt, self.prompt, self.command]
        return sha256_bytes(canonical_json(fields).encode("utf-8", "surrogatepass"))

    def decide(self, timeout_s: float) -> Decision | None:
        """The answer on disk, or else the program's; None where there is none."""
        try:
            answer = self._accepted() or self._ask(timeout_s)
        except UnusableError as cause:
            told = f"{cause}\n".encode("utf-8", "backslashreplace")
            self._tell_remedy(cause)
            write_bytes(self.folder / "error.txt", self.redact(told))
            return None
        return answer.decision(f"command {Path(self.command[0]).name}")

    def _accepted(self) -> Answer | None:
        known = _read(self.folder / "decision.json")
        if known.get("key") != self.key:
            return None
        try:
            answer = Answer.model_validate(known.get("answer"))
            check_bounds(answer, self.request)
        except ValueError:
            return None
        return answer

    def _ask(self, timeout_s: float) -> Answer:
        account = self.request.account
        if refusal := account.reserve(self.key):
            raise _RefusedError(refusal)
        ended = self._run(timeout_s)
        try:
            return self._take(ended)
        finally:
            if not ended.started:
                account.settle(self.key, 0.0)
            elif not ended.stopped:
                account.settle(self.key)

    def _run(self, timeout_s: float) -> Ended:
        self._forget("error.txt", remedies.NAME)
        said = run_program(
            self.command,
            self.prompt.encode(),
            folder=self.folder,
            environment={**os.environ, MARK: str(self.request.workspace)},
            timeout_s=timeout_s,
            stop=self.request.stop,
        )
        ended = replace(said, stdout=self.redact(said.stdout), stderr=self.redact(said.stderr))
        write_bytes(self.folder / "response.txt", ended.stdout)
        write_bytes(self.folder / "stderr.log", ended.stderr)
        return ended

    def _tell_remedy(self, cause: UnusableError) -> None:
        """A program is started again; what an account lacks is the journal's to tell."""
        if isinstance(cause, _RefusedError):
            self._forget(remedies.NAME)
        else:
            remedies.write(self.folder, remedies.Remedy(remedies.ASK))

    def _forget(self, *names: str) -> None:
        for name in names:
            (self.folder / name).unlink(missing_ok=True)

    def _take(self, ended: Ended) -> Answer:
        """The answer, once it is on disk. Raises UnusableError."""
        if ended.cause:
            raise UnusableError(ended.cause)
        answer = redaction.of_answer(read_answer(ended.stdout, self.request), self.redact)
        document = {"key": self.key, "answer": answer.model_dump(exclude_unset=True)}
        write_json(self.folder / "decision.json", document)
        return answer


class _RefusedError(UnusableError):
    """The program was not started: the account said no."""


def _read(path: Path) -> Mapping[str, Json]:
    """A file of this module's; empty where there is none that can be used."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
