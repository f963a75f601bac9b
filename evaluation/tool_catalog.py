"""The tools, forms and phrasings that tasks are made from. All text here is our own.

A tool or form has slots: one per argument, with its JSON schema and a way to draw a value
together with the words that say it. A phrasing is a text with slot names in braces, and it
decides by itself what is right: the gold arguments are the slots that it names, no others.

The two splits share no tool, phrasing, name, place or product, so that text generated for
calibration or distillation gives nothing away about the test.
"""

from __future__ import annotations

import random
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from tierwise.evaluation.tasks import Grade
from tierwise.runtime.chat import JSONObject, Tool

Split = Literal["test", "calibration"]


# --- Slots ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drawn:
    """One value, as JSON and as a request says it."""

    value: Any
    said: str


@dataclass(frozen=True, slots=True)
class Slot:
    """One argument or field.

    Args:
        schema: JSON schema of the value.
        draw: Draws a value. Below grade hard it is said as it is written in JSON.
        optional: Whether a call may leave it out.
    """

    schema: JSONObject
    draw: Callable[[random.Random, Grade], Drawn]
    optional: bool = False


def text(description: str, pool: Sequence[str]) -> Slot:
    """A string from a pool, said verbatim."""

    def draw(rng: random.Random, grade: Grade) -> Drawn:
        value = rng.choice(pool)
        return Drawn(value, value)

    return Slot({"type": "string", "description": description}, draw)


def choice(description: str, *values: str) -> Slot:
    """A string from a closed set, said verbatim."""
    slot = text(description, values)
    return replace(slot, schema={**slot.schema, "enum": list(values)})


def integer(
    description: str,
    values: Sequence[int],
    unit: str = "",
    spoken: Mapping[str, int] | None = None,
) -> Slot:
    """A whole number, said in digits before its unit; at grade hard perhaps in other words.

    Args:
        description: For the schema; names the unit that counts.
        values: To draw from; with a unit none may be 1, for the unit is a plural.
        unit: Said after the digits.
        spoken: Other words, unit included, with the number that they mean: "half an hour", 30.
    """

    def draw(rng: random.Random, grade: Grade) -> Drawn:
        if grade == "hard" and spoken and rng.random() < 0.6:
            words = rng.choice(list(spoken))
            return Drawn(spoken[words], words)
        value = rng.choice(values)
        return Drawn(value, f"{value} {unit}".strip())

    return Slot({"type": "integer", "description": description}, draw)


def number(description: str, values: Sequence[float], unit: str = "") -> Slot:
    """A number with at most two decimals, said in digits before its unit."""

    def draw(rng: random.Random, grade: Grade) -> Drawn:
        value = rng.choice(values)
        return Drawn(value, f"{value} {unit}".strip())

    return Slot({"type": "number", "description": description}, draw)


def flag(description: str, yes: str, no: str) -> Slot:
    """A boolean, said by one of two clauses."""

    def draw(rng: random.Random, grade: Grade) -> Drawn:
        value = rng.random() < 0.5
        return Drawn(value, yes if value else no)

    return Slot({"type": "boolean", "description": description}, draw)


def texts(description: str, pool: Sequence[str], most: int = 3) -> Slot:
    """An array of 2 to ``most`` different strings, said as "a, b and c"."""

    def draw(rng: random.Random, grade: Grade) -> Drawn:
        values = rng.sample(pool, rng.randint(2, most))
        return Drawn(values, f"{', '.join(values[:-1])} and {values[-1]}")

    items = {"type": "string"}
    return Slot({"type": "array", "items": items, "description": description}, draw)


def record(description: str, said: str, **slots: Slot) -> Slot:
    """A nested object whose properties are all required; ``said`` is its phrasing."""

    def draw(rng: random.Random, grade: Grade) -> Drawn:
        drawn = draw_slots(slots, tuple(slots), rng, grade)
        values = {name: one.value for name, one in drawn.items()}
        return Drawn(values, said.format(**{name: one.said for name, one in drawn.items()}))

    return Slot({**object_schema(slots), "description": description}, draw)


def optional(slot: Slot, default: Any = None) -> Slot:
    """The slot as one that may be left out.

    A default goes into the schema and is never drawn: whether a call spells it out or leaves
    it out must not matter.
    """
    if default is None:
        return replace(slot, optional=True)

    def draw(rng: random.Random, grade: Grade) -> Drawn:
        while (drawn := slot.draw(rng, grade)).value == default:
            pass
        return drawn

    return Slot({**slot.schema, "default": default}, draw, optional=True)


def object_schema(slots: Mapping[str, Slot]) -> dict[str, Any]:
    """The JSON schema of an object with these properties and no others."""
    return {
        "type": "object",
        "properties": {name: dict(slot.schema) for name, slot in slots.items()},
        "required": [name for name, slot in slots.items() if not slot.optional],
        "additionalProperties": False,
    }


def draw_slots(
    slots: Mapping[str, Slot], names: Sequence[str], rng: random.Random, grade: Grade
) -> dict[str, Drawn]:
    """Draws the named slots, in the order of ``slots``; no two say the same.

    (A flight from Oslo to Oslo would leave the order of its arguments open.)
    """
    drawn: dict[str, Drawn] = {}
    for name, slot in slots.items():
        if name in names:
            one = slot.draw(rng, grade)
            while any(one.said == other.said for other in drawn.values()):
                one = slot.draw(rng, grade)
            drawn[name] = one
    return drawn


def slot_names(phrasing: str) -> tuple[str, ...]:
    """The slots that a phrasing names in braces."""
    return tuple(name for _, name, _, _ in string.Formatter().parse(phrasing) if name)


# --- What holds slots ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Pattern:
    """A tool or a form: slots, and phrasings by grade.

    Easy phrasings name 1 or 2 slots, medium ones 2 or 3, hard ones 3 or more. Arrays, nested
    objects and booleans are in hard ones only. Every phrasing of a tool names all that is
    required; a form's schema is made to fit the phrasing.
    """

    name: str
    description: str
    slots: Mapping[str, Slot]
    easy: tuple[str, ...] = ()
    medium: tuple[str, ...] = ()
    hard: tuple[str, ...] = ()

    def phrasings(self, grade: Grade) -> tuple[str, ...]:
        """Those of one grade; a tool with many required arguments has no easy ones."""
        return {"easy": self.easy, "medium": self.medium, "hard": self.hard}[grade]

    @property
    def tool(self) -> Tool:
        """The tool as a call offers it."""
        return Tool(self.name, self.description, object_schema(self.slots))


@dataclass(frozen=True, slots=True)
class Domain:
    """Tools of one field.

    Args:
        name: Of the field.
        tools: Close siblings, but no request fits two of them.
        beyond: Requests from the field that none of its tools can serve, each with what it
            asks for, in words that follow "I cannot". ``{city}`` and such stand for names.
    """

    name: str
    tools: tuple[Pattern, ...]
    beyond: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Talk:
    """Questions that need no tool, with their answers; both name the columns of ``rows``."""

    questions: tuple[str, ...]
    answer: str
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Catalog:
    """All that one split is generated from."""

    names: Mapping[str, tuple[str, ...]]
    domains: tuple[Domain, ...]
    forms: tuple[Pattern, ...]
    talks: tuple[Talk, ...]
    instructions: tuple[str, ...]
    """How a form's text is introduced; ``{name}`` is the form's name."""
    openings: tuple[str, ...]
    """Put before a request."""
    endings: tuple[str, ...]
    """Put after a request."""
    systems: tuple[str, ...]
    """System messages; "" stands for none."""
    refusals: tuple[str, ...]
    """Gold replies where no tool fits; ``{what}`` is what was asked for."""


# --- Test split -------------------------------------------------------------------------------

_TEST_NAMES: dict[str, tuple[str, ...]] = {
    "city": (
        *("Lisbon", "Oslo", "Nairobi", "Kyoto", "Montreal", "Valencia", "Tallinn", "Auckland"),
        *("Bogota", "Krakow", "Dublin", "Hanoi", "Seville", "Bergen", "Porto", "Quito"),
    ),
    "person": (
        *("Amara Diallo", "Jonas Lindqvist", "Mei Tanaka", "Rafael Ortega", "Priya Nair"),
        *("Tomasz Zielinski", "Leila Haddad", "Oscar Brandt", "Nadia Petrova", "Kofi Mensah"),
    ),
    "email": (
        *("office@harbourline.example", "desk4@fjordworks.example", "mail@north-pier.example"),
        *("team.blue@solventa.example", "hello@brightloom.example", "box17@tessaro.example"),
    ),
    "meeting": (
        *("Budget review", "Sprint planning", "Dentist visit", "Team lunch", "Board call"),
        *("Safety training", "Design critique", "Piano lesson", "Roof inspection", "Data audit"),
    ),
    "date": tuple(f"2026-{month:02}-{day:02}" for month in range(1, 13) for day in (3, 11, 19, 26)),
    "time": tuple(f"{hour:02}:{minute}" for hour in range(8, 19) for minute in ("00", "30")),
    "file": (
        *("report.pdf", "budget.xlsx", "minutes.txt", "logo.png", "contract.docx", "survey.csv"),
        *("roadmap.md", "invoice_88.pdf", "floorplan.svg", "backup.zip", "speech.txt"),
    ),
    "text_file": ("minutes.txt", "survey.csv", "roadmap.md", "speech.txt", "notes.md", "log.txt"),
    "file_title": ("final_version", "old_copy", "draft_two", "spring_issue", "for_printing"),
    "folder": (
        *("projects/alpha", "clients/fjordworks", "finance/2026", "archive/old", "team/shared"),
        *("drafts/spring", "legal/signed", "photos/harbour"),
    ),
    "phrase": (
        *("quarterly revenue", "fire exit", "renewal clause", "blue whale", "server outage"),
        *("maternity leave", "solar panel", "travel policy", "late fee", "supplier list"),
    ),
    "room": (
        *("kitchen", "living room", "bedroom", "hallway", "study", "bathroom", "garage"),
        *("dining room", "attic", "nursery"),
    ),
    "door": ("front door", "back door", "garage door", "cellar door", "garden door", "side door"),
    "color": ("red", "green", "blue", "orange", "purple", "warm white"),
    "table": (
        *("orders", "customers", "shipments", "employees", "payments", "products", "tickets"),
        *("suppliers", "visits", "subscriptions"),
    ),
    "column": ("status", "region", "category", "segment", "stage", "channel", "branch"),
    "value": ("alpha", "prime", "basic", "pilot", "legacy", "north", "core", "delta"),
    "product": (
        *("desk lamp", "steel kettle", "garden hose", "wool blanket", "phone stand"),
        *("bread knife", "rain jacket", "wall clock", "cork board", "bike pump"),
    ),
    "company": ("Harbourline", "Fjordworks", "Solventa", "Brightloom", "Northpier", "Tessaro"),
}
_T = _TEST_NAMES

_MINUTES_SPOKEN = {"half an hour": 30, "an hour and a half": 90, "two hours": 120}
_DAYS_SPOKEN = {"one week": 7, "two weeks": 14, "three days": 3}

_WEATHER = Domain(
    "weather",
    (
        Pattern(
            "get_current_weather",
            "Get the weather in a city at this moment.",
            {
                "city": text("City name only, without the country", _T["city"]),
                "detail": optional(
                    choice("Report only this", "temperature", "humidity", "wind", "pressure")
                ),
                "units": optional(choice("Unit of temperature", "celsius", "fahrenheit")),
                "include_alerts": optional(
                    flag(
                        "Whether to report official warnings",
                        "with official warnings included",
                        "with official warnings left out",
                    )
                ),
            },
            easy=(
                "What is the weather like in {city} right now?",
                "Tell me the current weather in {city}.",
            ),
            medium=(
                "What is the {detail} in {city} right now?",
                "How is the weather in {city} at the moment? Report it in {units}.",
            ),
            hard=(
                "Current weather in {city}, only the {detail}, {include_alerts}.",
                "I want the {detail} in {city} as of now, in {units}, {include_alerts}.",
            ),
        ),
        Pattern(
            "get_forecast",
            "Get the weather forecast for the coming days in a city.",
            {
                "city": text("City name only, without the country", _T["city"]),
                "days": integer("How many days ahead", range(2, 11), "days", _DAYS_SPOKEN),
                "units": optional(choice("Unit of temperature", "celsius", "fahrenheit")),
                "include": optional(
                    texts("Extra values to report", ("rain", "wind", "snow", "clouds", "fog"))
                ),
                "hourly": optional(
                    flag("Whether to report every hour", "hour by hour", "day by day")
                ),
            },
            easy=(
                "What will the weather be in {city} over the next {days}?",
                "Forecast for {city} for the coming {days}, please.",
            ),
            medium=(
                "Give me the forecast for {city} for the next {days}, in {units}.",
                "I am packing for {city}. How will the coming {days} be, in {units}?",
            ),
            hard=(
                "Forecast for {city} for the next {days}, {hourly}, and include {include}.",
                "For the coming {days} in {city} I need {include} as well, in {units}, {hourly}.",
            ),
        ),
        Pattern(
            "get_air_quality",
            "Get the air quality in a city.",
            {
                "city": text("City name only, without the country", _T["city"]),
                "pollutant": optional(
                    choice("Report only this pollutant", "ozone", "soot", "pollen", "dust")
                ),
                "scale": optional(choice("Index to use", "european", "american")),
                "hours_back": optional(
                    integer(
                        "Average over this many past hours",
                        (3, 6, 12),
                        "hours",
                        {"one day": 24, "half a day": 12, "two days": 48},
                    )
                ),
            },
            easy=("How clean is the air in {city}?", "Check the air quality in {city}."),
            medium=(
                "How much {pollutant} is in the air in {city}?",
                "Rate the air quality in {city} on the {scale} scale.",
            ),
            hard=(
                "Average level of {pollutant} in the air of {city} over the past {hours_back}.",
                "Air quality in {city} on the {scale} scale, {pollutant} only, averaged over the "
                "past {hours_back}.",
            ),
        ),
        Pattern(
            "get_sun_times",
            "Get the times of sunrise and sunset in a city on a date.",
            {
                "city": text("City name only, without the country", _T["city"]),
                "date": text("Date as YYYY-MM-DD", _T["date"]),
                "event": optional(choice("Report only this", "sunrise", "sunset")),
                "clock": optional(choice("How to write times", "12-hour", "24-hour")),
            },
            easy=(
                "When does the sun rise and set in {city} on {date}?",
                "Sunrise and sunset in {city} for {date}, please.",
            ),
            medium=(
                "When is {event} in {city} on {date}?",
                "Sun times for {city} on {date}, written on a {clock} clock.",
            ),
            hard=(
                "Only the {event} in {city} on {date}, written on a {clock} clock.",
                "With a {clock} clock: at what time is {event} on {date} in {city}?",
            ),
        ),
    ),
    (
        ("What was the hottest day ever recorded in {city}?", "look up weather records"),
        ("Will there be an earthquake in {city} this month?", "predict earthquakes"),
        ("How high is the tide in {city} today?", "look up tides"),
        ("How deep is the snow on the ski runs above {city}?", "look up snow depth on ski runs"),
        ("What is the water temperature at the beach of {city}?", "measure the sea"),
    ),
)

_CALENDAR = Domain(
    "calendar",
    (
        Pattern(
            "create_event",
            "Add a new event to the calendar.",
            {
                "title": text("Title of the event", _T["meeting"]),
                "date": text("Date as YYYY-MM-DD", _T["date"]),
                "start_time": optional(text("Start as HH:MM", _T["time"])),
                "duration_minutes": optional(
                    integer("Length in minutes", range(20, 100, 5), "minutes", _MINUTES_SPOKEN)
                ),
                "attendees": optional(texts("Full names of those invited", _T["person"])),
                "place": optional(text("City where it is held", _T["city"])),
            },
            easy=(
                'Put "{title}" in my calendar on {date}.',
                'Add a new event called "{title}" on {date}.',
            ),
            medium=(
                'Add "{title}" to my calendar on {date} at {start_time}.',
                'New event on {date}: "{title}", in {place}.',
            ),
            hard=(
                'Schedule a new event "{title}" on {date} at {start_time} for {duration_minutes} '
                "and invite {attendees}.",
                'Enter "{title}" in {place} on {date}. It lasts {duration_minutes}, and '
                "{attendees} are invited.",
            ),
        ),
        Pattern(
            "list_events",
            "Show the events that are already in the calendar on a date.",
            {
                "date": text("Date as YYYY-MM-DD", _T["date"]),
                "attendee": optional(text("Only events with this person", _T["person"])),
                "limit": optional(
                    integer("Show at most this many", range(2, 9), "events", {"a dozen events": 12})
                ),
                "include_declined": optional(
                    flag(
                        "Whether to show events that were declined",
                        "including those I declined",
                        "leaving out those I declined",
                    )
                ),
            },
            easy=("What is on my calendar on {date}?", "Which events do I have on {date}?"),
            medium=(
                "Which meetings with {attendee} do I have on {date}?",
                "Show me at most {limit} from my calendar on {date}.",
            ),
            hard=(
                "Show at most {limit} with {attendee} on {date}, {include_declined}.",
                "What do I have with {attendee} on {date}, {include_declined}? At most {limit}.",
            ),
        ),
        Pattern(
            "move_event",
            "Move an event that is already in the calendar to another date or time.",
            {
                "title": text("Title of the event", _T["meeting"]),
                "new_date": text("Date to move it to, as YYYY-MM-DD", _T["date"]),
                "new_time": optional(text("Time to move it to, as HH:MM", _T["time"])),
                "reason": optional(
                    text("Reason given to attendees", ("illness", "travel", "overlap", "holiday"))
                ),
                "notify": optional(
                    flag("Whether to tell attendees", "tell the others", "do not tell the others")
                ),
            },
            easy=('Move "{title}" to {new_date}.', 'Please push "{title}" back to {new_date}.'),
            medium=(
                'Move "{title}" to {new_date} at {new_time}.',
                '"{title}" must move to {new_date}; give {reason} as the reason.',
            ),
            hard=(
                'Move "{title}" to {new_date} at {new_time}, and {notify}.',
                'Shift "{title}" to {new_date}, {new_time}, give "{reason}" as the reason and '
                "{notify}.",
            ),
        ),
        Pattern(
            "delete_event",
            "Delete an event from the calendar.",
            {
                "title": text("Title of the event", _T["meeting"]),
                "date": optional(text("Date as YYYY-MM-DD, if known", _T["date"])),
                "repeats": optional(choice("Which of a series", "single", "following", "all")),
                "message": optional(text("Message to attendees, verbatim", _T["phrase"])),
            },
            easy=(
                'Delete "{title}" from my calendar.',
                'Remove the event "{title}" from {date}.',
            ),
            medium=(
                'Delete "{title}" on {date}, with repeats set to {repeats}.',
                'Take "{title}" off my calendar and send the message "{message}".',
            ),
            hard=(
                'Delete "{title}" on {date}, repeats: {repeats}, with the message "{message}".',
                'Cancel "{title}" of {date} with the message "{message}". Of the series, take '
                "{repeats}.",
            ),
        ),
    ),
    (
        ("Give {person} permission to see my calendar.", "share the calendar"),
        ("How many days of leave do I have left this year?", "look up leave"),
        ("Print my calendar for the week of {date}.", "print the calendar"),
        ("Write down what was said in the meeting with {person}.", "take minutes of a meeting"),
        ("Paint all my calendar entries with {person} in yellow.", "change colours of entries"),
    ),
)

_FILES = Domain(
    "files",
    (
        Pattern(
            "search_files",
            "Find files by the words that they contain.",
            {
                "query": text("Words to look for", _T["phrase"]),
                "folder": optional(text("Folder to look in", _T["folder"])),
                "extensions": optional(
                    texts("Only files of these types", ("pdf", "txt", "docx", "csv", "md"))
                ),
                "limit": optional(
                    integer("Most files to return", range(5, 50, 5), "files", {"a dozen files": 12})
                ),
                "changed_after": optional(text("Only newer ones, YYYY-MM-DD", _T["date"])),
            },
            easy=(
                'Find files that contain "{query}".',
                'Look in the folder {folder} for files about "{query}".',
            ),
            medium=(
                'Find at most {limit} that contain "{query}" in the folder {folder}.',
                'Which files in {folder} mention "{query}" and were changed after {changed_after}?',
            ),
            hard=(
                'Find at most {limit} of type {extensions} in {folder} that contain "{query}".',
                'Search {extensions} files for "{query}", changed after {changed_after}, and '
                "return {limit} at most.",
            ),
        ),
        Pattern(
            "move_file",
            "Move a file into another folder.",
            {
                "file": text("Name of the file", _T["file"]),
                "folder": text("Folder to move it into", _T["folder"]),
                "new_name": optional(text("Name to give it there, verbatim", _T["file_title"])),
                "overwrite": optional(
                    flag(
                        "Whether to replace a file of the same name",
                        "replacing any file of that name",
                        "without replacing a file of that name",
                    )
                ),
            },
            easy=(
                "Move {file} into the folder {folder}.",
                "Put the file {file} into {folder}.",
            ),
            medium=(
                "Move {file} into {folder} and call it {new_name} there.",
                "Move {file} to the folder {folder} under the new name {new_name}.",
            ),
            hard=(
                "Move {file} into {folder}, {overwrite}.",
                "Move {file} into {folder} as {new_name}, {overwrite}.",
            ),
        ),
        Pattern(
            "read_file",
            "Read the contents of a file.",
            {
                "file": text("Name of the file", _T["text_file"]),
                "first_line": optional(integer("Line to begin at", range(10, 90))),
                "line_count": optional(
                    integer("Lines to read", range(5, 40, 5), "lines", {"two dozen lines": 24})
                ),
                "encoding": optional(choice("Text encoding", "utf-8", "latin-1", "ascii")),
            },
            easy=("Read me the file {file}.", "What does {file} say? Open it, please."),
            medium=(
                "Read {line_count} of the file {file}.",
                "Open {file} and read it, beginning at line {first_line}.",
            ),
            hard=(
                "Read {line_count} of {file}, beginning at line {first_line}.",
                "Open {file} with the {encoding} encoding, go to line {first_line} and read "
                "{line_count} from there.",
            ),
        ),
        Pattern(
            "share_file",
            "Give another person access to a file.",
            {
                "file": text("Name of the file", _T["file"]),
                "person": text("Full name of the person", _T["person"]),
                "permission": optional(
                    choice("What they may do", "view", "comment", "edit"), default="view"
                ),
                "expires": optional(text("Last day of access, YYYY-MM-DD", _T["date"])),
                "notice": optional(
                    record(
                        "A message to send",
                        'to {address} with the subject "{subject}"',
                        address=text("Email address", _T["email"]),
                        subject=text("Subject line", _T["phrase"]),
                    )
                ),
            },
            easy=("Share {file} with {person}.", "Give {person} access to the file {file}."),
            medium=(
                "Give {person} {permission} access to the file {file}.",
                "Share {file} with {person} until {expires}.",
            ),
            hard=(
                "Share {file} with {person} until {expires}, with {permission} access.",
                "Give {person} {permission} access to {file}, and send a notice {notice}.",
            ),
        ),
    ),
    (
        ("Print three copies of {file}.", "print files"),
        ("Get back yesterday's version of {file}.", "restore old versions of files"),
        ("Pack the folder {folder} into one archive.", "pack archives"),
        ("Put a password on {file}.", "protect files with a password"),
        ("Translate the contents of {file} into French and save it.", "write translated files"),
    ),
)

_HOME = Domain(
    "smart home",
    (
        Pattern(
            "set_light",
            "Set the brightness and colour of the lights in a room.",
            {
                "room": text("Name of the room", _T["room"]),
                "brightness": integer(
                    "Brightness in percent, 0 to 100",
                    range(5, 100, 5),
                    "percent",
                    {"half brightness": 50, "full brightness": 100},
                ),
                "color": optional(text("Name of the colour", _T["color"])),
                "fade_seconds": optional(
                    integer(
                        "Seconds that the change takes",
                        range(2, 30),
                        "seconds",
                        {"half a minute": 30, "one minute": 60},
                    )
                ),
            },
            easy=(
                "Set the lights in the {room} to {brightness}.",
                "Lights in the {room} at {brightness}, please.",
            ),
            medium=(
                "Make the lights in the {room} {color}, at {brightness}.",
                "Bring the {room} lights to {brightness} over {fade_seconds}.",
            ),
            hard=(
                "Fade the {room} lights to {color} over {fade_seconds}, ending at {brightness}.",
                "Take {fade_seconds} to bring the lights in the {room} to {brightness}, {color}.",
            ),
        ),
        Pattern(
            "set_thermostat",
            "Set the room temperature to hold.",
            {
                "room": text("Name of the room", _T["room"]),
                "temperature": number(
                    "Degrees celsius", (17.5, 18.5, 19.5, 20.5, 21.5, 22.5), "degrees"
                ),
                "mode": optional(choice("What may run", "heating", "cooling", "automatic")),
                "hold_minutes": optional(
                    integer("Minutes to hold it", range(40, 100, 5), "minutes", _MINUTES_SPOKEN)
                ),
                "start": optional(text("When to begin, HH:MM", _T["time"])),
            },
            easy=(
                "Set the {room} to {temperature}.",
                "I want it to be {temperature} in the {room}.",
            ),
            medium=(
                "Keep the {room} at {temperature} in {mode} mode.",
                "Set the {room} to {temperature}, starting at {start}.",
            ),
            hard=(
                "Keep the {room} at {temperature} for {hold_minutes}, starting at {start}.",
                "In {mode} mode, hold {temperature} in the {room} for {hold_minutes}.",
            ),
        ),
        Pattern(
            "set_door_lock",
            "Lock or unlock a door.",
            {
                "door": text("Name of the door", _T["door"]),
                "state": choice("State to bring it to", "locked", "unlocked"),
                "minutes": optional(
                    integer(
                        "Return to the former state after this many minutes",
                        range(5, 30),
                        "minutes",
                        {"half an hour": 30, "a quarter of an hour": 15, "one hour": 60},
                    )
                ),
                "reason": optional(text("Note for the log, verbatim", _T["phrase"])),
            },
            easy=(
                "Make sure that the {door} is {state}.",
                "I want the {door} {state}.",
            ),
            medium=(
                "I want the {door} {state} for {minutes}.",
                'Set the {door} to {state} and log the reason "{reason}".',
            ),
            hard=(
                'The {door} should be {state} for {minutes}; log "{reason}" as the reason.',
                'Log "{reason}": the {door} has to be {state} for the next {minutes}.',
            ),
        ),
        Pattern(
            "start_vacuum",
            "Send the robot vacuum to clean a room.",
            {
                "room": text("Room to clean", _T["room"]),
                "power": optional(choice("Suction", "quiet", "normal", "strong")),
                "passes": optional(
                    integer("How often to go over it", range(2, 6), "passes"), default=1
                ),
                "then_rooms": optional(
                    texts("Rooms to clean afterwards", ("pantry", "workshop", "office", "cellar"))
                ),
                "mop": optional(
                    flag("Whether to mop as well", "mop as well", "do not mop anything")
                ),
            },
            easy=("Vacuum the {room}.", "Send the robot to clean the {room}."),
            medium=(
                "Vacuum the {room} on {power} power.",
                "Let the robot vacuum the {room}, with {passes}.",
            ),
            hard=(
                "Vacuum the {room} on {power} power, with {passes}, and {mop}.",
                "Let the robot clean the {room} on {power} power, then {then_rooms}, and {mop}.",
            ),
        ),
    ),
    (
        ("Play back what the doorbell filmed last night.", "show recordings of the doorbell"),
        ("Water the plants in the {room}.", "water plants"),
        ("Order new bulbs for the lights in the {room}.", "order bulbs"),
        ("How much power did the {room} use last month?", "read the use of power"),
        ("Run the dishwasher on the eco programme.", "run the dishwasher"),
    ),
)

_TRAVEL = Domain(
    "travel",
    (
        Pattern(
            "search_flights",
            "Search for flights between two cities.",
            {
                "origin": text("City of departure, name only", _T["city"]),
                "destination": text("City of arrival, name only", _T["city"]),
                "date": optional(text("Date of departure, YYYY-MM-DD", _T["date"])),
                "cabin": optional(choice("Cabin", "economy", "business")),
                "nonstop": optional(
                    flag("Whether to leave out flights with stops", "nonstop only", "stops allowed")
                ),
                "passengers": optional(
                    record(
                        "How many travel",
                        "{adults} and {children}",
                        adults=integer("Older than 11", range(2, 5), "adults"),
                        children=integer("2 to 11 years old", range(2, 5), "children"),
                    )
                ),
            },
            easy=(
                "Find flights from {origin} to {destination}.",
                "I want to fly to {destination} from {origin}. What is there?",
            ),
            medium=(
                "Find flights from {origin} to {destination} on {date}.",
                "Which flights go to {destination} from {origin} in {cabin} class?",
            ),
            hard=(
                "Flights from {origin} to {destination} on {date} for {passengers}, {nonstop}.",
                "We are {passengers} and fly to {destination} from {origin} on {date}, in {cabin} "
                "class.",
            ),
        ),
        Pattern(
            "search_hotels",
            "Search for hotel rooms in a city.",
            {
                "city": text("City name only, without the country", _T["city"]),
                "nights": integer(
                    "Number of nights",
                    range(2, 10),
                    "nights",
                    {"one week": 7, "two weeks": 14, "a single night": 1},
                ),
                "check_in": optional(text("First day, YYYY-MM-DD", _T["date"])),
                "guests": optional(integer("Number of guests", range(2, 7), "guests")),
                "max_price": optional(
                    integer("Highest price per night, in euros", range(60, 300, 10), "euros")
                ),
                "amenities": optional(
                    texts("What it must have", ("pool", "parking", "breakfast", "gym", "sauna"))
                ),
            },
            easy=(
                "Find a hotel in {city} for {nights}.",
                "I need a room in {city}, {nights}.",
            ),
            medium=(
                "Find a hotel in {city} for {nights} from {check_in}.",
                "A hotel in {city} for {nights} and {guests}, please.",
            ),
            hard=(
                "A hotel in {city} from {check_in} for {nights}, {guests}, with {amenities}.",
                "Find a hotel in {city} with {amenities} for {nights}, at most {max_price} a "
                "night.",
            ),
        ),
        Pattern(
            "rent_car",
            "Rent a car in a city.",
            {
                "city": text("City where the car is picked up", _T["city"]),
                "days": integer("Days of rental", range(2, 12), "days", _DAYS_SPOKEN),
                "car_class": optional(choice("Kind of car", "compact", "family", "electric")),
                "pickup_date": optional(text("First day, YYYY-MM-DD", _T["date"])),
                "driver": optional(
                    record(
                        "Who drives",
                        "{name}, aged {age}",
                        name=text("Full name", _T["person"]),
                        age=integer("Age in years", range(24, 70)),
                    )
                ),
            },
            easy=("Rent a car in {city} for {days}.", "I need a car in {city} for {days}."),
            medium=(
                "Rent a {car_class} car in {city} for {days}.",
                "I need a car in {city} for {days} from {pickup_date}.",
            ),
            hard=(
                "Rent a {car_class} car in {city} for {days} from {pickup_date}. The driver is "
                "{driver}.",
                "{driver}, will drive. Rent a {car_class} car for {days} in {city}.",
            ),
        ),
        Pattern(
            "search_trains",
            "Search for trains between two cities.",
            {
                "origin": text("City of departure, name only", _T["city"]),
                "destination": text("City of arrival, name only", _T["city"]),
                "date": optional(text("Date of departure, YYYY-MM-DD", _T["date"])),
                "leave_after": optional(text("Earliest departure, HH:MM", _T["time"])),
                "max_changes": optional(
                    integer("Most changes of train", range(2, 5), "changes", {"one change": 1})
                ),
                "bicycle": optional(
                    flag("Whether a bicycle comes along", "with my bicycle", "without a bicycle")
                ),
            },
            easy=(
                "Which trains go from {origin} to {destination}?",
                "Find a train to {destination} from {origin}.",
            ),
            medium=(
                "Which trains go from {origin} to {destination} on {date}?",
                "Find a train to {destination} from {origin} that leaves after {leave_after}.",
            ),
            hard=(
                "Trains from {origin} to {destination} on {date} after {leave_after}, {bicycle}.",
                "Find a train to {destination} from {origin} on {date}, {max_changes} at most, "
                "{bicycle}.",
            ),
        ),
    ),
    (
        ("Renew my passport before I go to {city}.", "renew passports"),
        ("Cancel the hotel that I booked in {city}.", "cancel bookings"),
        ("Do I need a visa for a month in {city}?", "look up rules about visas"),
        ("Check me in for my flight to {city} and choose a seat.", "check in for flights"),
        ("My suitcase did not arrive in {city}. Report it as lost.", "report lost luggage"),
    ),
)

_DATABASE = Domain(
    "database",
    (
        Pattern(
            "query_table",
            "Return rows of a database table.",
            {
                "table": text("Name of the table", _T["table"]),
                "limit": integer(
                    "Most rows to return", range(10, 100, 10), "rows", {"a dozen rows": 12}
                ),
                "sort_by": optional(text("Column to sort by", _T["column"])),
                "columns": optional(texts("Columns to return", _T["column"])),
                "where": optional(
                    record(
                        "Condition that rows must meet",
                        'where {column} equals "{equals}"',
                        column=text("Column to compare", _T["column"]),
                        equals=text("Value that it must have", _T["value"]),
                    )
                ),
            },
            easy=(
                "Show me {limit} of the table {table}.",
                "Fetch {limit} from the {table} table.",
            ),
            medium=(
                "Show {limit} of the table {table}, sorted by {sort_by}.",
                "Sort the table {table} by {sort_by} and return {limit}.",
            ),
            hard=(
                "Return {limit} of {table} {where}, sorted by {sort_by}.",
                "From the table {table} return the columns {columns}, {limit} at most, {where}.",
            ),
        ),
        Pattern(
            "count_rows",
            "Count the rows of a database table.",
            {
                "table": text("Name of the table", _T["table"]),
                "column": optional(text("Column to compare", _T["column"])),
                "equals": optional(text("Count only rows with this value there", _T["value"])),
                "group_by": optional(texts("Count separately for each of these", _T["column"])),
                "distinct": optional(
                    flag(
                        "Whether equal rows count once",
                        "counting equal rows once",
                        "counting equal rows each time",
                    )
                ),
            },
            easy=("How many rows does the table {table} have?", "Count the rows of {table}."),
            medium=(
                'How many rows of {table} have "{equals}" in the column {column}?',
                'Count the rows of {table} whose {column} is "{equals}".',
            ),
            hard=(
                'Count the rows of {table} whose {column} is "{equals}", {distinct}.',
                "How many rows are in {table}, {distinct}? Group the count by {group_by}.",
            ),
        ),
        Pattern(
            "describe_table",
            "Describe how a database table is built, without its rows.",
            {
                "table": text("Name of the table", _T["table"]),
                "part": optional(choice("Describe only this", "columns", "indexes", "triggers")),
                "style": optional(choice("How to write it", "short", "full")),
            },
            easy=("How is the table {table} built?", "Describe the structure of {table}."),
            medium=(
                "Describe the {part} of the table {table}.",
                "Give me a {style} description of the structure of {table}.",
            ),
            hard=(
                "Give me a {style} description of the {part} of the table {table}.",
                "How is the table {table} built? Just the {part}, in {style} style.",
            ),
        ),
        Pattern(
            "export_table",
            "Write a database table to a file.",
            {
                "table": text("Name of the table", _T["table"]),
                "format": choice("File format", "csv", "json", "parquet"),
                "folder": optional(text("Folder to write into", _T["folder"])),
                "columns": optional(texts("Columns to write; all if absent", _T["column"])),
                "compress": optional(
                    flag("Whether to compress the file", "compressed", "not compressed")
                ),
            },
            easy=("Export the table {table} as {format}.", "Save {table} to a {format} file."),
            medium=(
                "Export {table} as {format} into the folder {folder}.",
                "Write the table {table} to {folder} in {format} format.",
            ),
            hard=(
                "Export {columns} of {table} as {format}, {compress}.",
                "Write {table} to {folder} in {format} format, {compress}, only the columns "
                "{columns}.",
            ),
        ),
    ),
    (
        ("Add a new column called {column} to the table {table}.", "change tables"),
        ("Delete the table {table} for good.", "delete tables"),
        ("Make {person} an administrator of the database.", "appoint administrators"),
        ("Restore {table} from the backup of {date}.", "restore backups"),
        ("Draw a bar chart of {table} by {column}.", "draw charts"),
    ),
)

_TEST_FORMS = (
    Pattern(
        "contact",
        "A person's details.",
        {
            "name": text("Full name", _T["person"]),
            "email": text("Email address", _T["email"]),
            "city": text("City name", _T["city"]),
            "age": integer("Age in years", range(20, 80)),
            "employer": optional(text("Company", _T["company"])),
            "languages": texts("Languages spoken", ("Polish", "Arabic", "Dutch", "Swahili")),
            "subscribed": optional(
                flag("Whether they get the newsletter", "gets our newsletter", "gets no newsletter")
            ),
        },
        easy=(
            "You can reach {name} at {email}.",
            "{name} has moved to {city}.",
        ),
        medium=(
            "{name} ({email}) lives in {city}.",
            "We met {name}, who is {age} and comes from {city}.",
        ),
        hard=(
            "{name}, {age}, from {city}, speaks {languages} and {subscribed}. Mail: {email}.",
            "New contact at {employer}: {name} in {city}. Speaks {languages}, is {age} years old "
            "and can be reached at {email}.",
        ),
    ),
    Pattern(
        "order",
        "A customer's order.",
        {
            "customer": text("Full name", _T["person"]),
            "product": text("What was ordered", _T["product"]),
            "quantity": integer("Number of pieces", range(2, 40), "pieces", {"a dozen": 12}),
            "unit_price": number("Euros for each", (4.5, 7.25, 12.9, 18.75, 23.4, 61.5), "euros"),
            "delivery": optional(choice("How it is sent", "standard", "express")),
            "address": record(
                "Where it goes",
                "{number} {street} in {city}",
                street=text("Street name", ("Mill Lane", "Harbour Street", "Elm Road", "Kiln Row")),
                number=integer("House number", range(2, 99)),
                city=text("City name", _T["city"]),
            ),
            "gift": optional(
                flag("Whether it is wrapped as a gift", "Wrap it as a gift.", "No gift wrapping.")
            ),
        },
        easy=(
            "{customer} would like a {product}.",
            "Order received: one {product}, at {unit_price}.",
        ),
        medium=(
            "{customer} orders the {product}: {quantity}.",
            "Sold to {customer}: {quantity} of the {product} at {unit_price} each.",
        ),
        hard=(
            "{customer} orders {quantity} of the {product} at {unit_price} each, to be sent to "
            "{address}. {gift}",
            "Please send {quantity} of the {product} by {delivery} delivery to {address}. Each is "
            "{unit_price}. Signed, {customer}.",
        ),
    ),
    Pattern(
        "event",
        "An event that is announced.",
        {
            "title": text("Name of the event", _T["meeting"]),
            "date": text("Date as YYYY-MM-DD", _T["date"]),
            "start": text("Start as HH:MM", _T["time"]),
            "city": text("City name", _T["city"]),
            "speakers": texts("Full names of the speakers", _T["person"]),
            "length_minutes": integer(
                "Length in minutes", range(20, 100, 5), "minutes", _MINUTES_SPOKEN
            ),
            "fee": optional(number("Fee in euros", (5.5, 12.5, 20.75, 35.5), "euros")),
        },
        easy=('"{title}" takes place on {date}.', 'This year "{title}" is held in {city}.'),
        medium=(
            '"{title}" is on {date} at {start}.',
            'Join us in {city} for "{title}" on {date}.',
        ),
        hard=(
            '"{title}" with {speakers}: {date}, {start}, in {city}. It lasts {length_minutes}.',
            'On {date} at {start}, {speakers} present "{title}" in {city}. It lasts '
            "{length_minutes}, and the fee is {fee}.",
        ),
    ),
    Pattern(
        "incident",
        "A report of a fault.",
        {
            "place": text("Room", _T["room"]),
            "reporter": text("Full name of who reported it", _T["person"]),
            "severity": choice("How bad it is", "low", "moderate", "critical"),
            "reported_on": text("Date as YYYY-MM-DD", _T["date"]),
            "broken": texts("Things that are broken", _T["product"]),
            "repair_cost": optional(integer("Euros", range(100, 900, 50), "euros")),
            "resolved": flag("Whether it is settled", "has been settled", "is still unsettled"),
        },
        easy=(
            "{reporter} reports a fault in the {place}.",
            "Fault in the {place}, severity {severity}.",
        ),
        medium=(
            "{reporter} reported a {severity} fault in the {place}.",
            "On {reported_on} a fault of {severity} severity was found in the {place}.",
        ),
        hard=(
            "{reporter} reported on {reported_on} that {broken} broke in the {place}. The matter "
            "({severity}) {resolved}.",
            "Severity {severity}, {place}: {broken} broke. Reported by {reporter} on "
            "{reported_on}; the repair costs {repair_cost}, and it {resolved}.",
        ),
    ),
)

TEST = Catalog(
    names=_TEST_NAMES,
    domains=(_WEATHER, _CALENDAR, _FILES, _HOME, _TRAVEL, _DATABASE),
    forms=_TEST_FORMS,
    talks=(
        Talk(
            ("What is the capital of {country}?", "Which city is the capital of {country}?"),
            "The capital of {country} is {capital}.",
            (
                *(("France", "Paris"), ("Japan", "Tokyo"), ("Egypt", "Cairo")),
                *(("Greece", "Athens"), ("Chile", "Santiago"), ("Cuba", "Havana")),
                *(("Hungary", "Budapest"), ("Thailand", "Bangkok"), ("Iceland", "Reykjavik")),
                *(("Bulgaria", "Sofia"), ("Portugal", "Lisbon"), ("Mongolia", "Ulaanbaatar")),
            ),
        ),
        Talk(
            ("What is the opposite of {word}?", "Name a word that means the opposite of {word}."),
            "The opposite of {word} is {opposite}.",
            (
                *(("hot", "cold"), ("early", "late"), ("heavy", "light"), ("narrow", "wide")),
                *(("loud", "quiet"), ("cheap", "expensive"), ("brave", "cowardly")),
                *(("ancient", "modern"), ("smooth", "rough"), ("shallow", "deep")),
            ),
        ),
        Talk(
            ("How many legs does {animal} have?", "Tell me how many legs {animal} has."),
            "{animal} has {count} legs.",
            (("a spider", "eight"), ("an ant", "six"), ("a horse", "four"), ("a hen", "two")),
        ),
        Talk(
            ("{remark}",),
            "{reply}",
            (
                ("Hello! How are you?", "Hello! I am well, thank you. How can I help?"),
                ("Thanks, that was all for today.", "You are welcome. Have a good day!"),
                ("Can you tell me a joke?", "Why did the clock go home? It was out of time."),
                ("I feel a little tired.", "I am sorry to hear that. A short rest may help."),
                ("Good night!", "Good night, and sleep well!"),
                ("What rhymes with cat?", "Hat, mat and bat all rhyme with cat."),
                ("What should I call my new kitten?", "How about Pepper, Miso or Clementine?"),
                ("You have been very kind to me.", "That is good to hear. It was a pleasure."),
                ("Why is the sky blue?", "Air scatters blue light more than red light."),
                ("Who are you?", "I am an assistant. I answer questions and use tools."),
            ),
        ),
    ),
    instructions=(
        "Read this text and give the {name} as JSON.\n\n",
        "Extract the {name} from the text below.\n\n",
        "Which {name} does this text hold? Answer in JSON.\n\n",
    ),
    openings=("", "", "Hi! ", "I could use some help. ", "Good morning. "),
    endings=("", "", " Thanks!", " That would help me a lot."),
    systems=(
        "",
        "You are a careful assistant.",
        "You help the staff of a small company. Be brief.",
        "Answer exactly what is asked and add nothing.",
    ),
    refusals=(
        "I am sorry, but I cannot {what}.",
        "With what I have here I cannot {what}.",
    ),
)


# --- Calibration split --------------------------------------------------------------------------

_CALIBRATION_NAMES: dict[str, tuple[str, ...]] = {
    "city": (
        *("Vienna", "Helsinki", "Lima", "Osaka", "Toronto", "Zagreb", "Galway", "Perth", "Accra"),
        *("Gdansk", "Riga", "Manila", "Bologna", "Malmo", "Leipzig", "Antwerp"),
    ),
    "person": (
        *("Ingrid Solberg", "Mateo Rossi", "Hana Kobayashi", "Samuel Okafor", "Elif Yilmaz"),
        *("Pavel Novak", "Grace Whitfield", "Arjun Mehta", "Lucia Moreno", "Daniel Weiss"),
    ),
    "email": (
        *("front@stonebridge.example", "post@paperleaf.example", "orders@greywater.example"),
        *("unit6@lanternhouse.example", "crew@oakfield.example", "info@rivermark.example"),
        *("green.room@paperleaf.example", "night@oakfield.example", "west@greywater.example"),
    ),
    "subject": (
        *("Garden plans", "Lost umbrella", "Choir rehearsal", "New office keys", "Holiday rota"),
        *("Printer trouble", "Summer picnic", "Train tickets", "Book club", "Boiler service"),
    ),
    "sentence": (
        *("See you at the gate", "The parcel is here", "Please bring the folder"),
        *("We start without you", "The bus was full", "I found your glasses"),
        *("All seats are taken", "Soup is ready"),
    ),
    "date": tuple(f"2027-{month:02}-{day:02}" for month in range(1, 13) for day in (5, 14, 22, 28)),
    "time": tuple(f"{hour:02}:{minute}" for hour in range(7, 21) for minute in ("15", "45")),
    "item": (
        *("olive oil", "tennis racket", "winter boots", "coffee grinder", "camping tent"),
        *("violin strings", "office chair", "yoga mat", "headlamp", "picture frame"),
    ),
    "song": (
        *("Paper Boats", "Midnight Orchard", "Silver Tram", "Lullaby for Two", "Rust and Rain"),
        *("Seven Bridges", "The Quiet Mile", "Copper Sky"),
    ),
    "artist": ("The Lowland Foxes", "Vera Sundqvist", "Moss Parade", "Cedar Trio", "Ode Malik"),
    "speaker": ("desk speaker", "patio speaker", "car stereo", "headphones", "soundbar"),
    "landmark": (
        *("Central Station", "Old Mill Museum", "City Library", "North Gate", "Opera House"),
        *("Botanical Garden", "Ferry Terminal", "Town Hall"),
    ),
    "errand": (
        *("call the plumber", "water the tomatoes", "feed the parrot", "renew the lease"),
        *("pick up the cake", "return the ladder", "sign the form", "empty the mailbox"),
    ),
    "tag": ("family", "work", "ideas", "recipes", "garden", "school"),
    "company": ("Stonebridge", "Paperleaf", "Greywater", "Lanternhouse", "Oakfield", "Rivermark"),
}
_C = _CALIBRATION_NAMES
_EARLY, _LATE = _C["date"][:24], _C["date"][24:]

_PRICES = (8.5, 14.2, 19.9, 27.35, 42.6, 63.8, 120.4, 250.75)

_EMAIL = Domain(
    "email",
    (
        Pattern(
            "send_email",
            "Write and send a new email.",
            {
                "to": text("Email address of the recipient", _C["email"][:5]),
                "subject": text("Subject line", _C["subject"]),
                "body": optional(text("Text of the email, verbatim", _C["sentence"])),
                "cc": optional(texts("Email addresses that get a copy", _C["email"][5:])),
                "urgent": optional(
                    flag("Whether to mark it as urgent", "marked as urgent", "not urgent"),
                    default=False,
                ),
            },
            easy=('Send {to} an email with the subject "{subject}".',),
            medium=('Email {to} with the subject "{subject}" and the text "{body}".',),
            hard=(
                'Email {to}, subject "{subject}", text "{body}", {urgent}.',
                'Write to {to} about "{subject}". The text is "{body}", and copies go to {cc}.',
            ),
        ),
        Pattern(
            "find_emails",
            "Find emails that were received.",
            {
                "sender": text("Full name of who sent them", _C["person"]),
                "subject": optional(text("Words of the subject line", _C["subject"])),
                "since": optional(text("First day, YYYY-MM-DD", _C["date"])),
                "limit": optional(
                    integer("Most emails to return", range(3, 30), "emails", {"a dozen mails": 12})
                ),
            },
            easy=(
                "Find the emails that {sender} sent me.",
                'Did {sender} write to me about "{subject}"? Find those emails.',
            ),
            medium=('Find {limit} from {sender} about "{subject}".',),
            hard=(
                'Get me {limit} at most by {sender}, with the subject "{subject}", since {since}.',
            ),
        ),
        Pattern(
            "forward_email",
            "Forward an email that was received to another person.",
            {
                "subject": text("Subject line of the email", _C["subject"]),
                "to": text("Email address to forward it to", _C["email"]),
                "note": optional(text("Text to put above it, verbatim", _C["sentence"])),
                "keep_files": optional(
                    flag(
                        "Whether attached files go along",
                        "with the attached files",
                        "without the attached files",
                    )
                ),
            },
            easy=('Forward the email "{subject}" to {to}.',),
            medium=('Forward the email "{subject}" to {to} with the note "{note}".',),
            hard=('Forward "{subject}" to {to} {keep_files} and with the note "{note}" on top.',),
        ),
        Pattern(
            "set_auto_reply",
            "Answer all incoming email automatically for some time.",
            {
                "message": text("Text of the answer, verbatim", _C["sentence"]),
                "from_date": optional(text("First day, YYYY-MM-DD", _EARLY)),
                "to_date": optional(text("Last day, YYYY-MM-DD", _LATE)),
                "except_for": optional(texts("Names that get no such answer", _C["person"])),
            },
            easy=('Turn on an automatic reply that says "{message}".',),
            medium=('Reply automatically with "{message}" from {from_date} to {to_date}.',),
            hard=(
                'From {from_date} to {to_date}, answer mail automatically with "{message}", except '
                "to {except_for}.",
            ),
        ),
    ),
    (
        ("Block all future mail from {person}.", "block senders"),
        ("Change the password of my mailbox.", "change passwords"),
        ("Phone {person} and ask about {subject}.", "make phone calls"),
    ),
)

_CALCULATION = Domain(
    "calculation",
    (
        Pattern(
            "convert_units",
            "Convert a length or a weight from one unit to another.",
            {
                "value": number("How much", (2.5, 7.5, 12.4, 36.6, 88.2, 150.5)),
                "from_unit": choice("Unit that it is in", "miles", "feet", "inches", "yards"),
                "to_unit": choice("Unit to convert to", "meters", "kilometers", "centimeters"),
                "digits": optional(integer("Decimals to keep", range(2, 6), "decimals")),
            },
            medium=(
                "Convert {value} {from_unit} to {to_unit}.",
                "How many {to_unit} are {value} {from_unit}?",
            ),
            hard=("Convert {value} {from_unit} to {to_unit} and keep {digits}.",),
        ),
        Pattern(
            "convert_currency",
            "Convert an amount of money into another currency.",
            {
                "amount": number("Amount of money", _PRICES),
                "from_currency": choice("Currency that it is in", "EUR", "USD", "GBP", "JPY"),
                "to_currency": choice("Currency to convert to", "EUR", "USD", "CHF", "SEK"),
                "date": optional(text("Use the rate of this day, YYYY-MM-DD", _C["date"])),
            },
            medium=(
                "Convert {amount} {from_currency} to {to_currency}.",
                "How much is {amount} {from_currency} in {to_currency}?",
            ),
            hard=("How much is {amount} {from_currency} in {to_currency} at the rate of {date}?",),
        ),
        Pattern(
            "calculate_tip",
            "Work out the tip on a bill.",
            {
                "bill": number("Amount of the bill", _PRICES),
                "percent": optional(integer("Tip in percent", (5, 8, 12, 15, 18), "percent")),
                "people": optional(integer("Share it among so many", range(2, 9), "people")),
                "round_up": optional(
                    flag("Whether to round up", "rounded up", "not rounded in any way")
                ),
            },
            easy=("How much should I tip on a bill of {bill}?",),
            medium=("Work out a tip of {percent} on a bill of {bill}.",),
            hard=("A tip of {percent} on {bill}, shared by {people}, {round_up}.",),
        ),
        Pattern(
            "calculate_loan",
            "Work out the monthly payment of a loan.",
            {
                "amount": integer("Sum that is borrowed", range(2000, 90000, 500)),
                "years": integer("Years to pay it back", range(2, 31), "years", {"a decade": 10}),
                "rate": optional(
                    number("Interest per year, in percent", (2.5, 3.1, 4.75), "percent")
                ),
                "paid_first": optional(integer("Sum that is paid at once", range(300, 1900, 100))),
            },
            easy=("What is the monthly payment for a loan of {amount} over {years}?",),
            medium=("Monthly payment for a loan of {amount} over {years} at {rate} interest?",),
            hard=(
                "I borrow {amount} for {years} at {rate} interest and pay {paid_first} at once. "
                "What is the monthly payment?",
            ),
        ),
    ),
    (
        ("Plot the sine curve from zero to ten.", "plot curves"),
        ("File my tax return for last year.", "file tax returns"),
        ("What is the share price of {company} today?", "look up share prices"),
    ),
)

_SHOPPING = Domain(
    "shopping",
    (
        Pattern(
            "search_products",
            "Search the shop for products.",
            {
                "query": text("What to look for", _C["item"]),
                "max_price": optional(integer("Highest price, euros", range(20, 400, 10), "euros")),
                "sort": optional(choice("Order of the results", "price", "rating", "newest")),
                "shops": optional(texts("Only goods of these sellers", _C["company"])),
            },
            easy=("Search the shop for {query}.", "I am looking for {query}. What do you sell?"),
            medium=("Search for {query} up to {max_price}, sorted by {sort}.",),
            hard=("Look for {query} by {shops}, for {max_price} at most, sorted by {sort}.",),
        ),
        Pattern(
            "add_to_cart",
            "Put a product into the shopping cart.",
            {
                "product": text("Name of the product", _C["item"]),
                "quantity": integer("How many", range(2, 15), "times", {"a dozen times": 12}),
                "size": optional(choice("Size", "small", "medium", "large")),
                "gift_for": optional(
                    record(
                        "Who gets it as a gift",
                        'for {name} with a card that says "{card}"',
                        name=text("Full name", _C["person"]),
                        card=text("Text on the card, verbatim", _C["sentence"]),
                    )
                ),
            },
            easy=("Put {product} into my cart, {quantity}.",),
            medium=("Put {product} in size {size} into my cart, {quantity}.",),
            hard=("Add {product}, {quantity}, in {size}, to my cart as a gift {gift_for}.",),
        ),
        Pattern(
            "track_order",
            "Tell where an order is now.",
            {
                "order_number": integer("Number of the order", range(10_000, 99_999)),
                "detail": optional(choice("Tell only this", "place", "arrival", "carrier")),
                "notify": optional(text("Email address for news of it", _C["email"])),
            },
            easy=("Where is my order {order_number}?", "Track order number {order_number}."),
            medium=("Track order {order_number} and tell me only the {detail}.",),
            hard=("Track order {order_number}, only the {detail}, and send news to {notify}.",),
        ),
        Pattern(
            "return_product",
            "Send a product of an order back to the shop.",
            {
                "order_number": integer("Number of the order", range(10_000, 99_999)),
                "product": text("Name of the product", _C["item"]),
                "reason": optional(choice("Why", "broken", "wrong size", "not needed")),
                "refund": optional(choice("How to pay it back", "card", "voucher")),
            },
            easy=("I want to send back the {product} of order {order_number}.",),
            medium=("Send back the {product} of order {order_number}; the reason is: {reason}.",),
            hard=(
                "The {product} of order {order_number} goes back. Reason: {reason}; pay it back by "
                "{refund}.",
            ),
        ),
    ),
    (
        ("Write a bad review of {item}.", "write reviews"),
        ("Close my customer account for ever.", "close accounts"),
        ("Change the bank card that I pay with.", "change means of payment"),
    ),
)

_MUSIC = Domain(
    "music",
    (
        Pattern(
            "play_song",
            "Play a song.",
            {
                "title": text("Title of the song", _C["song"]),
                "artist": optional(text("Who plays it", _C["artist"])),
                "speaker": optional(text("Where to play it", _C["speaker"])),
                "repeat": optional(integer("How often to play it", range(2, 6), "times")),
            },
            easy=('Play "{title}".', 'Play "{title}" by {artist}.'),
            medium=('Play "{title}" by {artist} on the {speaker}.',),
            hard=('On the {speaker}, play "{title}" by {artist}, {repeat} in a row.',),
        ),
        Pattern(
            "create_playlist",
            "Make a new playlist.",
            {
                "name": text("Name of the playlist", _C["subject"]),
                "songs": optional(texts("Titles of the songs", _C["song"], most=4)),
                "shared_with": optional(text("Full name of who may see it", _C["person"])),
                "shuffle": optional(flag("Whether to mix the songs", "shuffled", "in that order")),
            },
            easy=('Make a new playlist called "{name}".',),
            medium=('Make a playlist called "{name}" and let {shared_with} see it.',),
            hard=(
                'Make a playlist "{name}" with {songs}, {shuffle}, and share it with '
                "{shared_with}.",
            ),
        ),
        Pattern(
            "set_volume",
            "Set how loud a speaker is.",
            {
                "speaker": text("Which speaker", _C["speaker"]),
                "level": integer("Percent", range(5, 95, 5), "percent", {"half volume": 50}),
                "fade_seconds": optional(
                    integer("Seconds to get there", range(2, 25), "seconds", {"half a minute": 30})
                ),
            },
            easy=("Set the {speaker} to {level}.",),
            medium=("Bring the {speaker} to {level} over {fade_seconds}.",),
            hard=("Over {fade_seconds}, take the {speaker} to {level}.",),
        ),
    ),
    (
        ("Buy two tickets to the next concert of {artist}.", "buy tickets"),
        ("Show me the sheet music of {song}.", "show sheet music"),
        ("Record me while I sing {song}.", "record sound"),
    ),
)

_MAPS = Domain(
    "maps",
    (
        Pattern(
            "get_directions",
            "Find the way from one place to another.",
            {
                "origin": text("Where to start", _C["landmark"]),
                "destination": text("Where to go", _C["landmark"]),
                "mode": optional(choice("How to travel", "walking", "cycling", "driving")),
                "avoid": optional(
                    texts("What to avoid", ("tolls", "ferries", "tunnels", "stairs"))
                ),
                "arrive_by": optional(text("Latest arrival, HH:MM", _C["time"])),
            },
            easy=("How do I get from {origin} to {destination}?",),
            medium=("Show me the way from {origin} to {destination} by {mode}.",),
            hard=(
                "The way to {destination} from {origin} by {mode}, avoiding {avoid}, to arrive by "
                "{arrive_by}.",
            ),
        ),
        Pattern(
            "find_places",
            "Find places of some sort near a landmark.",
            {
                "category": text("Sort of place", ("bakery", "pharmacy", "bank", "hostel", "gym")),
                "near": text("Landmark to look around", _C["landmark"]),
                "radius_meters": optional(
                    integer(
                        "How far away at most, in meters",
                        range(200, 900, 50),
                        "meters",
                        {"half a kilometer": 500, "one kilometer": 1000},
                    )
                ),
                "open_now": optional(
                    flag("Whether to show only open ones", "only if open now", "open now or not")
                ),
            },
            easy=("Is there a {category} near {near}?", "Find a {category} close to {near}."),
            medium=("Find a {category} within {radius_meters} of {near}.",),
            hard=("Look for a {category} within {radius_meters} of {near}, {open_now}.",),
        ),
        Pattern(
            "save_place",
            "Save an address under a name of your own.",
            {
                "name": text("Name to save it under", _C["tag"]),
                "address": record(
                    "The address",
                    "{street} {number} in {city}",
                    street=text("Street name", ("Birch Avenue", "Canal Walk", "Tower Hill")),
                    number=integer("House number", range(2, 99)),
                    city=text("City name", _C["city"]),
                ),
                "color": optional(choice("Colour of the pin", "yellow", "black", "pink")),
            },
            hard=(
                'Under the name "{name}", save {address} and mark it with a {color} pin.',
                'Save {address} as "{name}" with a {color} pin.',
            ),
        ),
    ),
    (
        ("Call me a taxi to {landmark}.", "call taxis"),
        ("Who built {landmark}, and in which year?", "look up the history of buildings"),
        ("Report a hole in the road near {landmark}.", "report damage to roads"),
    ),
)

_NOTES = Domain(
    "notes",
    (
        Pattern(
            "create_note",
            "Write a note and keep it.",
            {
                "title": text("Title of the note", _C["subject"]),
                "content": optional(text("Text of the note, verbatim", _C["sentence"])),
                "tags": optional(texts("Words to find it by", _C["tag"])),
                "pinned": optional(flag("Whether it stays on top", "pinned", "not pinned")),
            },
            easy=('Write a note titled "{title}" that says "{content}".',),
            medium=('Keep a note for me. Title: "{title}". Text: "{content}".',),
            hard=('Keep a note "{title}" that says "{content}", tagged {tags}, {pinned}.',),
        ),
        Pattern(
            "set_reminder",
            "Set a reminder for a date.",
            {
                "task": text("What to do, verbatim", _C["errand"]),
                "date": text("Date as YYYY-MM-DD", _C["date"]),
                "time": optional(text("Time as HH:MM", _C["time"])),
                "repeat": optional(choice("Whether to repeat it", "daily", "weekly", "monthly")),
                "minutes_before": optional(
                    integer(
                        "Also remind so many minutes earlier",
                        range(5, 60, 5),
                        "minutes",
                        {"an hour": 60, "half an hour": 30},
                    )
                ),
            },
            easy=("Remind me to {task} on {date}.",),
            medium=("Remind me to {task} on {date} at {time}.",),
            hard=(
                "Remind me to {task} on {date} at {time}, and also {minutes_before} earlier.",
                "From {date} on remind me {repeat} at {time} to {task}.",
            ),
        ),
        Pattern(
            "set_timer",
            "Start a countdown.",
            {
                "minutes": integer(
                    "Length in minutes",
                    range(3, 55),
                    "minutes",
                    {"half an hour": 30, "three quarters of an hour": 45, "an hour": 60},
                ),
                "label": optional(text("Name of the timer", _C["item"])),
                "sound": optional(choice("Sound at the end", "bell", "chime", "horn")),
            },
            easy=("Start a timer of {minutes}.", "Time {minutes} for me, starting now."),
            medium=('Start a timer of {minutes} called "{label}", ending with a {sound}.',),
            hard=('When {minutes} have passed, sound a {sound}. Call the timer "{label}".',),
        ),
        Pattern(
            "translate_text",
            "Translate a text into another language.",
            {
                "content": text("Text to translate, verbatim", _C["sentence"]),
                "language": choice("Language to translate into", "German", "Spanish", "Turkish"),
                "tone": optional(choice("Tone", "formal", "friendly")),
                "from_language": optional(choice("Language that it is in", "English", "French")),
            },
            easy=('Translate "{content}" into {language}.',),
            medium=('Translate "{content}" into {language} in a {tone} tone.',),
            hard=('Translate "{content}" from {from_language} into {language}, in a {tone} tone.',),
        ),
    ),
    (
        ("Turn my handwritten notes from the photo into text.", "read handwriting"),
        ("Publish my notes tagged {tag} as a website.", "publish websites"),
        ("Read the note about {subject} out loud to me.", "read notes out loud"),
    ),
)

_CALIBRATION_FORMS = (
    Pattern(
        "invoice",
        "An invoice.",
        {
            "seller": text("Company that sends it", _C["company"]),
            "total": number("Sum in euros", _PRICES, "euros"),
            "due": text("Last day to pay, YYYY-MM-DD", _C["date"]),
            "items": texts("What was sold", _C["item"]),
            "contact": record(
                "Who to ask",
                "{name} at {email}",
                name=text("Full name", _C["person"]),
                email=text("Email address", _C["email"]),
            ),
            "paid": optional(flag("Whether it is paid", "Already paid.", "Not paid yet.")),
        },
        easy=("{seller} asks for {total}.", "The invoice by {seller} is due on {due}."),
        medium=("Invoice from {seller}: {total}, to be paid by {due}.",),
        hard=(
            "{seller} sold {items} for {total} in all. Pay by {due}. Questions go to {contact}.",
            "{items}: {total}, due {due}, payable to {seller}. {paid} Ask {contact}.",
        ),
    ),
    Pattern(
        "appointment",
        "An appointment.",
        {
            "who": text("Full name", _C["person"]),
            "date": text("Date as YYYY-MM-DD", _C["date"]),
            "time": text("Time as HH:MM", _C["time"]),
            "place": text("Landmark", _C["landmark"]),
            "bring": texts("What to bring", _C["item"]),
            "minutes": optional(
                integer("Length in minutes", range(15, 60, 5), "minutes", {"half an hour": 30})
            ),
        },
        easy=("I see {who} on {date}.", "We meet {who} at {place}."),
        medium=("On {date} at {time} we meet {who}.", "{who} waits at {place} from {time} on."),
        hard=(
            "On {date} at {time}, {who} will be at {place}. Bring {bring}.",
            "{who} has {minutes} for us at {place}, at {time} on {date}. Bring {bring} along.",
        ),
    ),
    Pattern(
        "review",
        "A customer's review of a product.",
        {
            "product": text("Product", _C["item"]),
            "stars": integer("Stars out of five", range(2, 6), "stars", {"one star": 1}),
            "author": text("Full name of the reviewer", _C["person"]),
            "written_on": text("Date as YYYY-MM-DD", _C["date"]),
            "liked": texts("What was liked", ("price", "colour", "packaging", "design", "weight")),
            "recommended": flag("Whether it is recommended", "recommends it", "advises against it"),
            "seller": optional(text("Company that sold it", _C["company"])),
        },
        easy=("{author} gives it {stars}.", "{author} has tried the {product}."),
        medium=(
            "{author} gives the {product} {stars}.",
            "{stars} for the {product} on {written_on}.",
        ),
        hard=(
            "On {written_on}, {author} gave the {product} {stars}, liked the {liked}, and "
            "{recommended}.",
            "{author} bought the {product} from {seller}, praises its {liked}, gives it {stars} "
            "and {recommended}. Written on {written_on}.",
        ),
    ),
)

CALIBRATION = Catalog(
    names=_CALIBRATION_NAMES,
    domains=(_EMAIL, _CALCULATION, _SHOPPING, _MUSIC, _MAPS, _NOTES),
    forms=_CALIBRATION_FORMS,
    talks=(
        Talk(
            ("On which continent is {country}?", "{country} is part of which continent?"),
            "{country} is in {continent}.",
            (
                *(("Brazil", "South America"), ("Kenya", "Africa"), ("India", "Asia")),
                *(("Sweden", "Europe"), ("Vietnam", "Asia"), ("Peru", "South America")),
                *(("Ghana", "Africa"), ("Austria", "Europe"), ("Canada", "North America")),
                *(("Nepal", "Asia"), ("Norway", "Europe"), ("Bolivia", "South America")),
                *(("Algeria", "Africa"), ("Ireland", "Europe"), ("Mexico", "North America")),
            ),
        ),
        Talk(
            ("What is a young {animal} called?", "How does one call the young of a {animal}?"),
            "A young {animal} is called a {young}.",
            (
                *(("cow", "calf"), ("dog", "puppy"), ("sheep", "lamb"), ("goose", "gosling")),
                *(("bear", "cub"), ("deer", "fawn"), ("frog", "tadpole"), ("goat", "kid")),
                *(("duck", "duckling"), ("cat", "kitten"), ("swan", "cygnet"), ("horse", "foal")),
            ),
        ),
        Talk(
            ("{remark}",),
            "{reply}",
            (
                ("Hey, nice to meet you.", "Nice to meet you too! What can I do for you?"),
                ("What do you think of Mondays?", "They are a fresh start, at least."),
                ("I just finished a marathon!", "Congratulations! That is a great achievement."),
                ("Which is larger, the Sun or the Moon?", "The Sun is far larger than the Moon."),
                ("Do you ever sleep?", "No, I do not sleep. I am here whenever you need me."),
                ("That was a silly mistake of mine.", "No harm done. It happens to everyone."),
            ),
        ),
    ),
    instructions=(
        "Turn what follows into JSON that describes the {name}.\n\n",
        "Here is a text about one {name}. Note its fields.\n\n",
        "Fill in the {name} from these lines.\n\n",
    ),
    openings=("", "", "Hello there. ", "One more thing: ", "When you have a moment: "),
    endings=("", "", " Many thanks.", " I am in a hurry."),
    systems=(
        "",
        "You are a friendly helper.",
        "You work for a busy family. Keep it short.",
        "Do what the user asks, no more and no less.",
    ),
    refusals=(
        "Unfortunately I have no way to {what}.",
        "That is not something I can do: I am not able to {what}.",
    ),
)

CATALOGS: Mapping[Split, Catalog] = {"test": TEST, "calibration": CALIBRATION}
