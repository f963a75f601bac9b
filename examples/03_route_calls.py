"""How calls are routed: every tier's forecast and verdict, under different budgets.

It goes by what calibration found, where the family is calibrated. Nothing is generated here but the
last reply.

    python examples/03_route_calls.py [FAMILY]
"""

import sys

from tierwise import Budget, Family, Router
from tierwise.plugin.calibration_text import in_words
from tierwise.routing.calibration_store import calibration_of
from tierwise.routing.cascade import answer
from tierwise.runtime.chat import Call, Message, Tool
from tierwise.runtime.pool import Pool

WEATHER = Tool(
    "get_weather",
    "The weather in a city.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string"},
            "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
        },
        "required": ["city"],
    },
)
EASY = Call((Message("user", "What is the weather in Paris?"),), (WEATHER,), tool_choice="any")
LONG = Call((Message("user", "Sum this up: " + "It rained all day in the hills. " * 60),))


def main() -> None:
    family = Family.load(sys.argv[1] if len(sys.argv) > 1 else "families/smollm2")
    smallest = min(tier.bytes for tier in family.tiers)
    budgets = {
        "quality first": Budget(quality=1.0),
        "the default": Budget(),
        "half a second": Budget(seconds_per_call=0.5, quality=0.5),
        "little memory": Budget(memory=smallest * 2, quality=0.5),
    }
    calibration = calibration_of(family)
    print(in_words(calibration))
    with Pool(family) as pool:
        for name, budget in budgets.items():
            router = Router(family, pool, budget, calibration=calibration)
            for title, call in (("a tool call", EASY), ("a long text", LONG)):
                print(f"\n{title}, {name}")
                try:
                    router.explain(call)
                except Exception as error:  # noqa: BLE001 - shown, as a user would see it
                    print(f"  {type(error).__name__}: {error}")
        result = answer(Router(family, pool, calibration=calibration), EASY)
    print(f"\nThe reply to the first: {result.reply.tool_calls[0].to_json()}")
    print(f"from {result.final.decision.tier} in {result.seconds:.2f} s")


if __name__ == "__main__":
    main()
