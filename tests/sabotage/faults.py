"""All the faults, in the order of the steps at which they show."""

from typing import Final

from sabotage.data_faults import LEAKS, RECORDS
from sabotage.evaluation_faults import NUMBERS, PAIRS, SCORER
from sabotage.model_faults import CODE, INSTRUMENTS, MODEL
from sabotage.preference_faults import PREFERENCES

FAULTS: Final = (
    *(*CODE, *MODEL, *INSTRUMENTS, *LEAKS, *RECORDS),
    *(*SCORER, *PAIRS, *NUMBERS, *PREFERENCES),
)
SEEDS: Final = tuple(range(1, 11))
"""Of the honest sessions."""
