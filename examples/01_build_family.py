"""One base model in, a measured family of tiers out.

The base is SmolLM2-135M-Instruct, which an installed package carries. Killed at any point, the
same command goes on where it was; run again when it is done, it returns at once.

    python examples/01_build_family.py [BASE] [FAMILY]
"""

import sys
import time

from tierwise import BuildConfig, build_family
from tierwise.plugin.rendering import RichReporter, family_table, make_console
from tierwise.runtime.profile import family_profiles


def main() -> None:
    base = sys.argv[1] if len(sys.argv) > 1 else "bundled:smollm2"
    out = sys.argv[2] if len(sys.argv) > 2 else "families/smollm2"
    console = make_console()
    began = time.perf_counter()
    family = build_family(base, out, BuildConfig(tiers=3), reporter=RichReporter(console))
    console.print(family_table(family, family_profiles(family)))
    console.print(f"The family is in {family.folder} ({time.perf_counter() - began:.0f} s).")


if __name__ == "__main__":
    main()
