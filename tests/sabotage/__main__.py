"""``python -m sabotage [--write] [NAME ...]``: plant every fault, run honest sessions, tell all.

Exit 0 where every fault is caught that is not known to get through, and no honest session is
stopped; else 1, and 2 for a name that is none. Sessions run two abreast. With ``--write``, and all
of them run, the table in docs/sabotage.md is what was found.
"""

import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from sabotage.fault import Fault
from sabotage.faults import FAULTS, SEEDS
from sabotage.session import Ended, write_session
from sabotage.table import DOCS, markdown, write_table

ABREAST = 2


def run(fault: Fault, seed: int = 1) -> Ended:
    """An honest session with this fault."""
    with tempfile.TemporaryDirectory() as folder:
        session = write_session(Path(folder), seed)
        fault.plant(session)
        return session.run()


def run_honest(seed: int) -> Ended:
    with tempfile.TemporaryDirectory() as folder:
        return write_session(Path(folder), seed).run()


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def tell(fault: Fault, ended: Ended) -> bool:
    """One line a fault, and what was found where it is not what must be; whether it is well."""
    caught = fault.is_caught(ended)
    known = bool(fault.gets_through)
    states = {(True, False): "ok", (False, True): "gets by", (True, True): "CAUGHT NOW"}
    state = states.get((caught, known), "NOT CAUGHT")
    say(f"{state:12}{fault.name}: {ended.stopped_at or 'not stopped'}, {ended.verdict}")
    if not caught and not known:
        say(f"    declared: {fault.stopped_at}, {fault.verdict}, exit {fault.exit_code}")
        say(f"              {', '.join(sorted(fault.because))}")
        say(f"    found:    exit {ended.exit_code}")
        for reason in ended.reasons:
            say(f"              {reason[-600:]}")
    return caught is not known


def main(arguments: list[str]) -> int:
    """What the module says."""
    start = time.monotonic()
    names = {name for name in arguments if name != "--write"}
    if unknown := names - {fault.name for fault in FAULTS}:
        say(f"there is no fault named {', '.join(sorted(unknown))}")
        return 2
    chosen = [fault for fault in FAULTS if not names or fault.name in names]
    with ThreadPoolExecutor(ABREAST) as pool:
        found: dict[Fault, Ended] = {}
        well: list[bool] = []
        for fault, ended in zip(chosen, pool.map(run, chosen), strict=True):
            found[fault] = ended
            well.append(tell(fault, ended))
        seeds = () if names else SEEDS
        for seed, ended in zip(seeds, pool.map(run_honest, seeds), strict=True):
            honest = ended.exit_code == 0 and ended.verdict == "done"
            well.append(honest)
            say(f"{'ok' if honest else 'FALSE ALARM':12}honest session, seed {seed}")
            for reason in ended.reasons:
                say(f"              {reason}")
    say(
        f"{len(found)} faults, {sum(well)} of {len(well)} sessions as they must be, "
        f"{time.monotonic() - start:.0f} s"
    )
    if "--write" in arguments and not names:
        write_table(DOCS, markdown(found))
    return 0 if all(well) else 1


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
