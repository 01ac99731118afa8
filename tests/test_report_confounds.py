"""The report's tables of a lift read in other ways."""

from runbook.contract import Json
from runbook.report.confounds import tables

READ: dict[str, Json] = {
    "variant": "equal_truncation",
    "decides": True,
    "base_rate": 0.1125,
    "tuned_rate": 0.2,
    "lift": 0.0875,
    "lift_ci": [0.01, 0.16],
    "exact_p": 0.03,
    "remains": 0.46667,
}
LONGER: dict[str, Json] = {**READ, "stratum": "tuned longer", "n": 40}


def test_each_reading_and_stratum_is_a_row() -> None:
    """With rates, lift, interval, what remains, and whether it decides."""
    variants, strata = tables({"confounds": {"variants": [READ], "strata": [LONGER]}})

    assert variants.rows == (
        ("equal_truncation", "0.113", "0.200", "+0.087", "+0.010 to +0.160", "0.467", "yes"),
    )
    assert strata.rows[0][:2] == ("tuned longer", "40")
    assert strata.rows[0][-1] == "0.03"
    assert all(len(row) == len(t.header) for t in (variants, strata) for row in t.rows)


def test_details_of_another_shape_are_no_table() -> None:
    """A journal may hold anything; what is no number is shown as nothing."""
    assert tables({}) == []
    assert tables({"confounds": "none"}) == []
    assert tables({"confounds": {"variants": 3, "strata": None}}) == []
    (table,) = tables({"confounds": {"variants": [{"lift": "much"}, 7]}})
    assert [len(row) for row in table.rows] == [7, 7]
