"""Every tier is asked the same, so that it is known what each of them gets right.

Learns from the answers, and says whether routing between the tiers pays. From then on
`ChatTierwise` goes by that. What was asked is kept beside the family: stopped at any point, the
same command goes on where it was; run again when it is done, it asks nothing.

These are few tasks, so that they take three or four minutes. `tierwise calibrate FAMILY` asks more
of them, the Berkeley Function Calling Leaderboard (`--suite bfcl-multiple`), or your own prompts
(`--data FILE.jsonl`), and what is asked here counts there too.

    python examples/02_calibrate.py [FAMILY] [TASKS]
"""

import sys
import time

from tierwise import Family
from tierwise.evaluation.suites import load_suite
from tierwise.plugin.calibration_text import calibration_text, in_words
from tierwise.plugin.rendering import RichReporter, make_console
from tierwise.routing.calibrate import calibrate_family
from tierwise.routing.calibration_store import calibration_of

MINUTES = 4.0
"""For asking. What is left then is asked when the example runs again."""


def main() -> None:
    family = Family.load(sys.argv[1] if len(sys.argv) > 1 else "families/smollm2")
    suite = load_suite(f"tools:{sys.argv[2] if len(sys.argv) > 2 else 96}")
    console = make_console()
    began = time.perf_counter()
    found, unasked = calibration_of(family), 0
    if found is None or found.suites.get(suite.name, 0) < len(suite.tasks):
        with RichReporter(console).stage("Asking every tier") as progress:
            found, unasked = calibrate_family(family, [suite], minutes=MINUTES, progress=progress)
    print(calibration_text(found))
    print(f"\n{in_words(found)}")
    if unasked:
        print(f"{unasked} of {len(suite.tasks)} tasks are left to ask; run this again to go on.")
    print(f"({time.perf_counter() - began:.0f} s)")


if __name__ == "__main__":
    main()
