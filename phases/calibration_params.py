"""What a calibration is given: files of labelled rows, the filters to measure, and how good."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from phases.detectors import DETECTORS, DetectorProbe, load_detector_probes
from phases.probes import GeneratedPair, ProbeInstruction, ProbePair, load_probes
from phases.prompts import load_few_shot


class CalibrationParams(BaseModel):
    """The probes, the filters to measure, and how good what is kept must be."""

    model_config = ConfigDict(extra="forbid", strict=True)

    few_shot: str
    probe_instructions: str
    probe_pairs: str
    own_instructions: str | None = None
    own_pairs: str | None = None
    """A user's own labelled rows, beside those two; of the half that judges."""
    probe_generated: str | None = None
    """Rows that a model wrote itself, labelled by hand; reported, never judged."""
    probe_runaway: str | None = None
    probe_residue: str | None = None
    probe_truncation: str | None = None
    probe_near_duplicate: str | None = None
    probe_leakage: str | None = None
    """A user's own labelled rows, beside a detector's shipped ones."""
    instructions: list[Literal["critic", "linear_probe"]] = Field(min_length=1)
    pairs: list[Literal["critic", "likelihood"]] = Field(min_length=1)
    good_share: float = Field(gt=0.5, lt=1)
    """Share of good rows among the kept, on the tuning half, that sets the margin."""

    def check_files(self) -> None:
        """Read the few-shot file and the probes; raises ConfigError for one that is no use."""
        load_few_shot(Path(self.few_shot))
        self.filter_probes()
        if self.probe_generated:
            load_probes(Path(self.probe_generated), GeneratedPair)
        self.detector_probes()

    def filter_probes(self) -> tuple[list[ProbeInstruction], list[ProbePair]]:
        """The labelled instructions and pairs, a user's own included. Raises ConfigError."""
        return (
            load_probes(Path(self.probe_instructions), ProbeInstruction, self.own_instructions),
            load_probes(Path(self.probe_pairs), ProbePair, self.own_pairs),
        )

    def added(self) -> dict[str, str]:
        """The user's own files by detector, '' where there is none."""
        return {name: getattr(self, f"probe_{name}") or "" for name in DETECTORS}

    def detector_probes(self) -> dict[str, list[DetectorProbe]]:
        """The labelled rows of each detector. Raises ConfigError."""
        return {
            name: load_detector_probes(DETECTORS[name], Path(path) if path else None)
            for name, path in self.added().items()
        }
