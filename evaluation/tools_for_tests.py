"""The tools, forms and phrasings that measured tasks are made from. All text here is our own.

A change to any text changes the tasks: give the suite a new name (`tasks.SUITE_NAME`) with it.
"""

from tierwise.evaluation.tool_patterns import Catalog, Talk, domain, pattern, pools
from tierwise.evaluation.tool_slots import (
    choice,
    flag,
    integer,
    number,
    record,
    text,
    texts,
    with_default,
)

_NAMES = pools("""
    city: Lisbon, Oslo, Nairobi, Kyoto, Montreal, Valencia, Tallinn, Auckland, Bogota, Krakow,
        Dublin, Hanoi, Seville, Bergen, Porto, Quito
    person: Amara Diallo, Jonas Lindqvist, Mei Tanaka, Rafael Ortega, Priya Nair, Tomasz Zielinski,
        Leila Haddad, Oscar Brandt, Nadia Petrova, Kofi Mensah
    email: office@harbourline.example, desk4@fjordworks.example, mail@north-pier.example,
        team.blue@solventa.example, hello@brightloom.example, box17@tessaro.example
    meeting: Budget review, Sprint planning, Dentist visit, Team lunch, Board call, Safety
        training, Design critique, Piano lesson, Roof inspection, Data audit
    file: report.pdf, budget.xlsx, minutes.txt, logo.png, contract.docx, survey.csv, roadmap.md,
        invoice_88.pdf, floorplan.svg, backup.zip, speech.txt
    text_file: minutes.txt, survey.csv, roadmap.md, speech.txt, notes.md, log.txt
    file_title: final_version, old_copy, draft_two, spring_issue, for_printing
    folder: projects/alpha, clients/fjordworks, finance/2026, archive/old, team/shared,
        drafts/spring, legal/signed, photos/harbour
    phrase: quarterly revenue, fire exit, renewal clause, blue whale, server outage, maternity
        leave, solar panel, travel policy, late fee, supplier list
    room: kitchen, living room, bedroom, hallway, study, bathroom, garage, dining room, attic,
        nursery
    door: front door, back door, garage door, cellar door, garden door, side door
    color: red, green, blue, orange, purple, warm white
    table: orders, customers, shipments, employees, payments, products, tickets, suppliers, visits,
        subscriptions
    column: status, region, category, segment, stage, channel, branch
    value: alpha, prime, basic, pilot, legacy, north, core, delta
    product: desk lamp, steel kettle, garden hose, wool blanket, phone stand, bread knife, rain
        jacket, wall clock, cork board, bike pump
    company: Harbourline, Fjordworks, Solventa, Brightloom, Northpier, Tessaro
    """) | {
    "date": tuple(f"2026-{month:02}-{day:02}" for month in range(1, 13) for day in (3, 11, 19, 26)),
    "time": tuple(f"{hour:02}:{minute}" for hour in range(8, 19) for minute in ("00", "30")),
}

_MINUTES_SPOKEN = {"half an hour": 30, "an hour and a half": 90, "two hours": 120}
_DAYS_SPOKEN = {"one week": 7, "two weeks": 14, "three days": 3}

_WEATHER = domain(
    "weather",
    """
    look up weather records: What was the hottest day ever recorded in {city}?
    predict earthquakes: Will there be an earthquake in {city} this month?
    look up tides: How high is the tide in {city} today?
    look up snow depth on ski runs: How deep is the snow on the ski runs above {city}?
    measure the sea: What is the water temperature at the beach of {city}?
    """,
    pattern(
        """
        get_current_weather(city): Get the weather in a city at this moment.
        easy: What is the weather like in {city} right now?
        easy: Tell me the current weather in {city}.
        medium: What is the {detail} in {city} right now?
        medium: How is the weather in {city} at the moment? Report it in {units}.
        hard: Current weather in {city}, only the {detail}, {include_alerts}.
        hard: I want the {detail} in {city} as of now, in {units}, {include_alerts}.
        """,
        city=text("City name only, without the country", _NAMES["city"]),
        detail=choice("Report only this", "temperature", "humidity", "wind", "pressure"),
        units=choice("Unit of temperature", "celsius", "fahrenheit"),
        include_alerts=flag(
            "Whether to report official warnings",
            "with official warnings included",
            "with official warnings left out",
        ),
    ),
    pattern(
        """
        get_forecast(city, days): Get the weather forecast for the coming days in a city.
        easy: What will the weather be in {city} over the next {days}?
        easy: Forecast for {city} for the coming {days}, please.
        medium: Give me the forecast for {city} for the next {days}, in {units}.
        medium: I am packing for {city}. How will the coming {days} be, in {units}?
        hard: Forecast for {city} for the next {days}, {hourly}, and include {include}.
        hard: For the coming {days} in {city} I need {include} as well, in {units}, {hourly}.
        """,
        city=text("City name only, without the country", _NAMES["city"]),
        days=integer("How many days ahead", range(2, 11), "days", _DAYS_SPOKEN),
        units=choice("Unit of temperature", "celsius", "fahrenheit"),
        include=texts("Extra values to report", ("rain", "wind", "snow", "clouds", "fog")),
        hourly=flag("Whether to report every hour", "hour by hour", "day by day"),
    ),
    pattern(
        """
        get_air_quality(city): Get the air quality in a city.
        easy: How clean is the air in {city}?
        easy: Check the air quality in {city}.
        medium: How much {pollutant} is in the air in {city}?
        medium: Rate the air quality in {city} on the {scale} scale.
        hard: Average level of {pollutant} in the air of {city} over the past {hours_back}.
        hard: Air quality in {city} on the {scale} scale, {pollutant} only, averaged over the past
            {hours_back}.
        """,
        city=text("City name only, without the country", _NAMES["city"]),
        pollutant=choice("Report only this pollutant", "ozone", "soot", "pollen", "dust"),
        scale=choice("Index to use", "european", "american"),
        hours_back=integer(
            "Average over this many past hours",
            (3, 6, 12),
            "hours",
            {"one day": 24, "half a day": 12, "two days": 48},
        ),
    ),
    pattern(
        """
        get_sun_times(city, date): Get the times of sunrise and sunset in a city on a date.
        easy: When does the sun rise and set in {city} on {date}?
        easy: Sunrise and sunset in {city} for {date}, please.
        medium: When is {event} in {city} on {date}?
        medium: Sun times for {city} on {date}, written on a {clock} clock.
        hard: Only the {event} in {city} on {date}, written on a {clock} clock.
        hard: With a {clock} clock: at what time is {event} on {date} in {city}?
        """,
        city=text("City name only, without the country", _NAMES["city"]),
        date=text("Date as YYYY-MM-DD", _NAMES["date"]),
        event=choice("Report only this", "sunrise", "sunset"),
        clock=choice("How to write times", "12-hour", "24-hour"),
    ),
)

_CALENDAR = domain(
    "calendar",
    """
    share the calendar: Give {person} permission to see my calendar.
    look up leave: How many days of leave do I have left this year?
    print the calendar: Print my calendar for the week of {date}.
    take minutes of a meeting: Write down what was said in the meeting with {person}.
    change colours of entries: Paint all my calendar entries with {person} in yellow.
    """,
    pattern(
        """
        create_event(title, date): Add a new event to the calendar.
        easy: Put "{title}" in my calendar on {date}.
        easy: Add a new event called "{title}" on {date}.
        medium: Add "{title}" to my calendar on {date} at {start_time}.
        medium: New event on {date}: "{title}", in {place}.
        hard: Schedule a new event "{title}" on {date} at {start_time} for {duration_minutes} and
            invite {attendees}.
        hard: Enter "{title}" in {place} on {date}. It lasts {duration_minutes}, and {attendees}
            are invited.
        """,
        title=text("Title of the event", _NAMES["meeting"]),
        date=text("Date as YYYY-MM-DD", _NAMES["date"]),
        start_time=text("Start as HH:MM", _NAMES["time"]),
        duration_minutes=integer(
            "Length in minutes", range(20, 100, 5), "minutes", _MINUTES_SPOKEN
        ),
        attendees=texts("Full names of those invited", _NAMES["person"]),
        place=text("City where it is held", _NAMES["city"]),
    ),
    pattern(
        """
        list_events(date): Show the events that are already in the calendar on a date.
        easy: What is on my calendar on {date}?
        easy: Which events do I have on {date}?
        medium: Which meetings with {attendee} do I have on {date}?
        medium: Show me at most {limit} from my calendar on {date}.
        hard: Show at most {limit} with {attendee} on {date}, {include_declined}.
        hard: What do I have with {attendee} on {date}, {include_declined}? At most {limit}.
        """,
        date=text("Date as YYYY-MM-DD", _NAMES["date"]),
        attendee=text("Only events with this person", _NAMES["person"]),
        limit=integer("Show at most this many", range(2, 9), "events", {"a dozen events": 12}),
        include_declined=flag(
            "Whether to show events that were declined",
            "including those I declined",
            "leaving out those I declined",
        ),
    ),
    pattern(
        """
        move_event(title, new_date): Move an event that is already in the calendar to another date
            or time.
        easy: Move "{title}" to {new_date}.
        easy: Please push "{title}" back to {new_date}.
        medium: Move "{title}" to {new_date} at {new_time}.
        medium: "{title}" must move to {new_date}; give {reason} as the reason.
        hard: Move "{title}" to {new_date} at {new_time}, and {notify}.
        hard: Shift "{title}" to {new_date}, {new_time}, give "{reason}" as the reason and
            {notify}.
        """,
        title=text("Title of the event", _NAMES["meeting"]),
        new_date=text("Date to move it to, as YYYY-MM-DD", _NAMES["date"]),
        new_time=text("Time to move it to, as HH:MM", _NAMES["time"]),
        reason=text("Reason given to attendees", ("illness", "travel", "overlap", "holiday")),
        notify=flag("Whether to tell attendees", "tell the others", "do not tell the others"),
    ),
    pattern(
        """
        delete_event(title): Delete an event from the calendar.
        easy: Delete "{title}" from my calendar.
        easy: Remove the event "{title}" from {date}.
        medium: Delete "{title}" on {date}, with repeats set to {repeats}.
        medium: Take "{title}" off my calendar and send the message "{message}".
        hard: Delete "{title}" on {date}, repeats: {repeats}, with the message "{message}".
        hard: Cancel "{title}" of {date} with the message "{message}". Of the series, take
            {repeats}.
        """,
        title=text("Title of the event", _NAMES["meeting"]),
        date=text("Date as YYYY-MM-DD, if known", _NAMES["date"]),
        repeats=choice("Which of a series", "single", "following", "all"),
        message=text("Message to attendees, verbatim", _NAMES["phrase"]),
    ),
)

_FILES = domain(
    "files",
    """
    print files: Print three copies of {file}.
    restore old versions of files: Get back yesterday's version of {file}.
    pack archives: Pack the folder {folder} into one archive.
    protect files with a password: Put a password on {file}.
    write translated files: Translate the contents of {file} into French and save it.
    """,
    pattern(
        """
        search_files(query): Find files by the words that they contain.
        easy: Find files that contain "{query}".
        easy: Look in the folder {folder} for files about "{query}".
        medium: Find at most {limit} that contain "{query}" in the folder {folder}.
        medium: Which files in {folder} mention "{query}" and were changed after {changed_after}?
        hard: Find at most {limit} of type {extensions} in {folder} that contain "{query}".
        hard: Search {extensions} files for "{query}", changed after {changed_after}, and return
            {limit} at most.
        """,
        query=text("Words to look for", _NAMES["phrase"]),
        folder=text("Folder to look in", _NAMES["folder"]),
        extensions=texts("Only files of these types", ("pdf", "txt", "docx", "csv", "md")),
        limit=integer("Most files to return", range(5, 50, 5), "files", {"a dozen files": 12}),
        changed_after=text("Only newer ones, YYYY-MM-DD", _NAMES["date"]),
    ),
    pattern(
        """
        move_file(file, folder): Move a file into another folder.
        easy: Move {file} into the folder {folder}.
        easy: Put the file {file} into {folder}.
        medium: Move {file} into {folder} and call it {new_name} there.
        medium: Move {file} to the folder {folder} under the new name {new_name}.
        hard: Move {file} into {folder}, {overwrite}.
        hard: Move {file} into {folder} as {new_name}, {overwrite}.
        """,
        file=text("Name of the file", _NAMES["file"]),
        folder=text("Folder to move it into", _NAMES["folder"]),
        new_name=text("Name to give it there, verbatim", _NAMES["file_title"]),
        overwrite=flag(
            "Whether to replace a file of the same name",
            "replacing any file of that name",
            "without replacing a file of that name",
        ),
    ),
    pattern(
        """
        read_file(file): Read the contents of a file.
        easy: Read me the file {file}.
        easy: What does {file} say? Open it, please.
        medium: Read {line_count} of the file {file}.
        medium: Open {file} and read it, beginning at line {first_line}.
        hard: Read {line_count} of {file}, beginning at line {first_line}.
        hard: Open {file} with the {encoding} encoding, go to line {first_line} and read
            {line_count} from there.
        """,
        file=text("Name of the file", _NAMES["text_file"]),
        first_line=integer("Line to begin at", range(10, 90)),
        line_count=integer("Lines to read", range(5, 40, 5), "lines", {"two dozen lines": 24}),
        encoding=choice("Text encoding", "utf-8", "latin-1", "ascii"),
    ),
    pattern(
        """
        share_file(file, person): Give another person access to a file.
        easy: Share {file} with {person}.
        easy: Give {person} access to the file {file}.
        medium: Give {person} {permission} access to the file {file}.
        medium: Share {file} with {person} until {expires}.
        hard: Share {file} with {person} until {expires}, with {permission} access.
        hard: Give {person} {permission} access to {file}, and send a notice {notice}.
        """,
        file=text("Name of the file", _NAMES["file"]),
        person=text("Full name of the person", _NAMES["person"]),
        permission=with_default(choice("What they may do", "view", "comment", "edit"), "view"),
        expires=text("Last day of access, YYYY-MM-DD", _NAMES["date"]),
        notice=record(
            "A message to send",
            'to {address} with the subject "{subject}"',
            address=text("Email address", _NAMES["email"]),
            subject=text("Subject line", _NAMES["phrase"]),
        ),
    ),
)

_HOME = domain(
    "smart home",
    """
    show recordings of the doorbell: Play back what the doorbell filmed last night.
    water plants: Water the plants in the {room}.
    order bulbs: Order new bulbs for the lights in the {room}.
    read the use of power: How much power did the {room} use last month?
    run the dishwasher: Run the dishwasher on the eco programme.
    """,
    pattern(
        """
        set_light(room, brightness): Set the brightness and colour of the lights in a room.
        easy: Set the lights in the {room} to {brightness}.
        easy: Lights in the {room} at {brightness}, please.
        medium: Make the lights in the {room} {color}, at {brightness}.
        medium: Bring the {room} lights to {brightness} over {fade_seconds}.
        hard: Fade the {room} lights to {color} over {fade_seconds}, ending at {brightness}.
        hard: Take {fade_seconds} to bring the lights in the {room} to {brightness}, {color}.
        """,
        room=text("Name of the room", _NAMES["room"]),
        brightness=integer(
            "Brightness in percent, 0 to 100",
            range(5, 100, 5),
            "percent",
            {"half brightness": 50, "full brightness": 100},
        ),
        color=text("Name of the colour", _NAMES["color"]),
        fade_seconds=integer(
            "Seconds that the change takes",
            range(2, 30),
            "seconds",
            {"half a minute": 30, "one minute": 60},
        ),
    ),
    pattern(
        """
        set_thermostat(room, temperature): Set the room temperature to hold.
        easy: Set the {room} to {temperature}.
        easy: I want it to be {temperature} in the {room}.
        medium: Keep the {room} at {temperature} in {mode} mode.
        medium: Set the {room} to {temperature}, starting at {start}.
        hard: Keep the {room} at {temperature} for {hold_minutes}, starting at {start}.
        hard: In {mode} mode, hold {temperature} in the {room} for {hold_minutes}.
        """,
        room=text("Name of the room", _NAMES["room"]),
        temperature=number("Degrees celsius", (17.5, 18.5, 19.5, 20.5, 21.5, 22.5), "degrees"),
        mode=choice("What may run", "heating", "cooling", "automatic"),
        hold_minutes=integer("Minutes to hold it", range(40, 100, 5), "minutes", _MINUTES_SPOKEN),
        start=text("When to begin, HH:MM", _NAMES["time"]),
    ),
    pattern(
        """
        set_door_lock(door, state): Lock or unlock a door.
        easy: Make sure that the {door} is {state}.
        easy: I want the {door} {state}.
        medium: I want the {door} {state} for {minutes}.
        medium: Set the {door} to {state} and log the reason "{reason}".
        hard: The {door} should be {state} for {minutes}; log "{reason}" as the reason.
        hard: Log "{reason}": the {door} has to be {state} for the next {minutes}.
        """,
        door=text("Name of the door", _NAMES["door"]),
        state=choice("State to bring it to", "locked", "unlocked"),
        minutes=integer(
            "Return to the former state after this many minutes",
            range(5, 30),
            "minutes",
            {"half an hour": 30, "a quarter of an hour": 15, "one hour": 60},
        ),
        reason=text("Note for the log, verbatim", _NAMES["phrase"]),
    ),
    pattern(
        """
        start_vacuum(room): Send the robot vacuum to clean a room.
        easy: Vacuum the {room}.
        easy: Send the robot to clean the {room}.
        medium: Vacuum the {room} on {power} power.
        medium: Let the robot vacuum the {room}, with {passes}.
        hard: Vacuum the {room} on {power} power, with {passes}, and {mop}.
        hard: Let the robot clean the {room} on {power} power, then {then_rooms}, and {mop}.
        """,
        room=text("Room to clean", _NAMES["room"]),
        power=choice("Suction", "quiet", "normal", "strong"),
        passes=with_default(integer("How often to go over it", range(2, 6), "passes"), 1),
        then_rooms=texts("Rooms to clean afterwards", ("pantry", "workshop", "office", "cellar")),
        mop=flag("Whether to mop as well", "mop as well", "do not mop anything"),
    ),
)

_TRAVEL = domain(
    "travel",
    """
    renew passports: Renew my passport before I go to {city}.
    cancel bookings: Cancel the hotel that I booked in {city}.
    look up rules about visas: Do I need a visa for a month in {city}?
    check in for flights: Check me in for my flight to {city} and choose a seat.
    report lost luggage: My suitcase did not arrive in {city}. Report it as lost.
    """,
    pattern(
        """
        search_flights(origin, destination): Search for flights between two cities.
        easy: Find flights from {origin} to {destination}.
        easy: I want to fly to {destination} from {origin}. What is there?
        medium: Find flights from {origin} to {destination} on {date}.
        medium: Which flights go to {destination} from {origin} in {cabin} class?
        hard: Flights from {origin} to {destination} on {date} for {passengers}, {nonstop}.
        hard: We are {passengers} and fly to {destination} from {origin} on {date}, in {cabin}
            class.
        """,
        origin=text("City of departure, name only", _NAMES["city"]),
        destination=text("City of arrival, name only", _NAMES["city"]),
        date=text("Date of departure, YYYY-MM-DD", _NAMES["date"]),
        cabin=choice("Cabin", "economy", "business"),
        nonstop=flag("Whether to leave out flights with stops", "nonstop only", "stops allowed"),
        passengers=record(
            "How many travel",
            "{adults} and {children}",
            adults=integer("Older than 11", range(2, 5), "adults"),
            children=integer("2 to 11 years old", range(2, 5), "children"),
        ),
    ),
    pattern(
        """
        search_hotels(city, nights): Search for hotel rooms in a city.
        easy: Find a hotel in {city} for {nights}.
        easy: I need a room in {city}, {nights}.
        medium: Find a hotel in {city} for {nights} from {check_in}.
        medium: A hotel in {city} for {nights} and {guests}, please.
        hard: A hotel in {city} from {check_in} for {nights}, {guests}, with {amenities}.
        hard: Find a hotel in {city} with {amenities} for {nights}, at most {max_price} a night.
        """,
        city=text("City name only, without the country", _NAMES["city"]),
        nights=integer(
            "Number of nights",
            range(2, 10),
            "nights",
            {"one week": 7, "two weeks": 14, "a single night": 1},
        ),
        check_in=text("First day, YYYY-MM-DD", _NAMES["date"]),
        guests=integer("Number of guests", range(2, 7), "guests"),
        max_price=integer("Highest price per night, in euros", range(60, 300, 10), "euros"),
        amenities=texts("What it must have", ("pool", "parking", "breakfast", "gym", "sauna")),
    ),
    pattern(
        """
        rent_car(city, days): Rent a car in a city.
        easy: Rent a car in {city} for {days}.
        easy: I need a car in {city} for {days}.
        medium: Rent a {car_class} car in {city} for {days}.
        medium: I need a car in {city} for {days} from {pickup_date}.
        hard: Rent a {car_class} car in {city} for {days} from {pickup_date}. The driver is
            {driver}.
        hard: {driver}, will drive. Rent a {car_class} car for {days} in {city}.
        """,
        city=text("City where the car is picked up", _NAMES["city"]),
        days=integer("Days of rental", range(2, 12), "days", _DAYS_SPOKEN),
        car_class=choice("Kind of car", "compact", "family", "electric"),
        pickup_date=text("First day, YYYY-MM-DD", _NAMES["date"]),
        driver=record(
            "Who drives",
            "{name}, aged {age}",
            name=text("Full name", _NAMES["person"]),
            age=integer("Age in years", range(24, 70)),
        ),
    ),
    pattern(
        """
        search_trains(origin, destination): Search for trains between two cities.
        easy: Which trains go from {origin} to {destination}?
        easy: Find a train to {destination} from {origin}.
        medium: Which trains go from {origin} to {destination} on {date}?
        medium: Find a train to {destination} from {origin} that leaves after {leave_after}.
        hard: Trains from {origin} to {destination} on {date} after {leave_after}, {bicycle}.
        hard: Find a train to {destination} from {origin} on {date}, {max_changes} at most,
            {bicycle}.
        """,
        origin=text("City of departure, name only", _NAMES["city"]),
        destination=text("City of arrival, name only", _NAMES["city"]),
        date=text("Date of departure, YYYY-MM-DD", _NAMES["date"]),
        leave_after=text("Earliest departure, HH:MM", _NAMES["time"]),
        max_changes=integer("Most changes of train", range(2, 5), "changes", {"one change": 1}),
        bicycle=flag("Whether a bicycle comes along", "with my bicycle", "without a bicycle"),
    ),
)

_DATABASE = domain(
    "database",
    """
    change tables: Add a new column called {column} to the table {table}.
    delete tables: Delete the table {table} for good.
    appoint administrators: Make {person} an administrator of the database.
    restore backups: Restore {table} from the backup of {date}.
    draw charts: Draw a bar chart of {table} by {column}.
    """,
    pattern(
        """
        query_table(table, limit): Return rows of a database table.
        easy: Show me {limit} of the table {table}.
        easy: Fetch {limit} from the {table} table.
        medium: Show {limit} of the table {table}, sorted by {sort_by}.
        medium: Sort the table {table} by {sort_by} and return {limit}.
        hard: Return {limit} of {table} {where}, sorted by {sort_by}.
        hard: From the table {table} return the columns {columns}, {limit} at most, {where}.
        """,
        table=text("Name of the table", _NAMES["table"]),
        limit=integer("Most rows to return", range(10, 100, 10), "rows", {"a dozen rows": 12}),
        sort_by=text("Column to sort by", _NAMES["column"]),
        columns=texts("Columns to return", _NAMES["column"]),
        where=record(
            "Condition that rows must meet",
            'where {column} equals "{equals}"',
            column=text("Column to compare", _NAMES["column"]),
            equals=text("Value that it must have", _NAMES["value"]),
        ),
    ),
    pattern(
        """
        count_rows(table): Count the rows of a database table.
        easy: How many rows does the table {table} have?
        easy: Count the rows of {table}.
        medium: How many rows of {table} have "{equals}" in the column {column}?
        medium: Count the rows of {table} whose {column} is "{equals}".
        hard: Count the rows of {table} whose {column} is "{equals}", {distinct}.
        hard: How many rows are in {table}, {distinct}? Group the count by {group_by}.
        """,
        table=text("Name of the table", _NAMES["table"]),
        column=text("Column to compare", _NAMES["column"]),
        equals=text("Count only rows with this value there", _NAMES["value"]),
        group_by=texts("Count separately for each of these", _NAMES["column"]),
        distinct=flag(
            "Whether equal rows count once",
            "counting equal rows once",
            "counting equal rows each time",
        ),
    ),
    pattern(
        """
        describe_table(table): Describe how a database table is built, without its rows.
        easy: How is the table {table} built?
        easy: Describe the structure of {table}.
        medium: Describe the {part} of the table {table}.
        medium: Give me a {style} description of the structure of {table}.
        hard: Give me a {style} description of the {part} of the table {table}.
        hard: How is the table {table} built? Just the {part}, in {style} style.
        """,
        table=text("Name of the table", _NAMES["table"]),
        part=choice("Describe only this", "columns", "indexes", "triggers"),
        style=choice("How to write it", "short", "full"),
    ),
    pattern(
        """
        export_table(table, format): Write a database table to a file.
        easy: Export the table {table} as {format}.
        easy: Save {table} to a {format} file.
        medium: Export {table} as {format} into the folder {folder}.
        medium: Write the table {table} to {folder} in {format} format.
        hard: Export {columns} of {table} as {format}, {compress}.
        hard: Write {table} to {folder} in {format} format, {compress}, only the columns {columns}.
        """,
        table=text("Name of the table", _NAMES["table"]),
        format=choice("File format", "csv", "json", "parquet"),
        folder=text("Folder to write into", _NAMES["folder"]),
        columns=texts("Columns to write; all if absent", _NAMES["column"]),
        compress=flag("Whether to compress the file", "compressed", "not compressed"),
    ),
)

_FORMS = (
    pattern(
        """
        contact(name, email, city, age, languages): A person's details.
        easy: You can reach {name} at {email}.
        easy: {name} has moved to {city}.
        medium: {name} ({email}) lives in {city}.
        medium: We met {name}, who is {age} and comes from {city}.
        hard: {name}, {age}, from {city}, speaks {languages} and {subscribed}. Mail: {email}.
        hard: New contact at {employer}: {name} in {city}. Speaks {languages}, is {age} years old
            and can be reached at {email}.
        """,
        name=text("Full name", _NAMES["person"]),
        email=text("Email address", _NAMES["email"]),
        city=text("City name", _NAMES["city"]),
        age=integer("Age in years", range(20, 80)),
        employer=text("Company", _NAMES["company"]),
        languages=texts("Languages spoken", ("Polish", "Arabic", "Dutch", "Swahili")),
        subscribed=flag(
            "Whether they get the newsletter", "gets our newsletter", "gets no newsletter"
        ),
    ),
    pattern(
        """
        order(customer, product, quantity, unit_price, address): A customer's order.
        easy: {customer} would like a {product}.
        easy: Order received: one {product}, at {unit_price}.
        medium: {customer} orders the {product}: {quantity}.
        medium: Sold to {customer}: {quantity} of the {product} at {unit_price} each.
        hard: {customer} orders {quantity} of the {product} at {unit_price} each, to be sent to
            {address}. {gift}
        hard: Please send {quantity} of the {product} by {delivery} delivery to {address}. Each is
            {unit_price}. Signed, {customer}.
        """,
        customer=text("Full name", _NAMES["person"]),
        product=text("What was ordered", _NAMES["product"]),
        quantity=integer("Number of pieces", range(2, 40), "pieces", {"a dozen": 12}),
        unit_price=number("Euros for each", (4.5, 7.25, 12.9, 18.75, 23.4, 61.5), "euros"),
        delivery=choice("How it is sent", "standard", "express"),
        address=record(
            "Where it goes",
            "{number} {street} in {city}",
            street=text("Street name", ("Mill Lane", "Harbour Street", "Elm Road", "Kiln Row")),
            number=integer("House number", range(2, 99)),
            city=text("City name", _NAMES["city"]),
        ),
        gift=flag("Whether it is wrapped as a gift", "Wrap it as a gift.", "No gift wrapping."),
    ),
    pattern(
        """
        event(title, date, start, city, speakers, length_minutes): An event that is announced.
        easy: "{title}" takes place on {date}.
        easy: This year "{title}" is held in {city}.
        medium: "{title}" is on {date} at {start}.
        medium: Join us in {city} for "{title}" on {date}.
        hard: "{title}" with {speakers}: {date}, {start}, in {city}. It lasts {length_minutes}.
        hard: On {date} at {start}, {speakers} present "{title}" in {city}. It lasts
            {length_minutes}, and the fee is {fee}.
        """,
        title=text("Name of the event", _NAMES["meeting"]),
        date=text("Date as YYYY-MM-DD", _NAMES["date"]),
        start=text("Start as HH:MM", _NAMES["time"]),
        city=text("City name", _NAMES["city"]),
        speakers=texts("Full names of the speakers", _NAMES["person"]),
        length_minutes=integer("Length in minutes", range(20, 100, 5), "minutes", _MINUTES_SPOKEN),
        fee=number("Fee in euros", (5.5, 12.5, 20.75, 35.5), "euros"),
    ),
    pattern(
        """
        incident(place, reporter, severity, reported_on, broken, resolved): A report of a fault.
        easy: {reporter} reports a fault in the {place}.
        easy: Fault in the {place}, severity {severity}.
        medium: {reporter} reported a {severity} fault in the {place}.
        medium: On {reported_on} a fault of {severity} severity was found in the {place}.
        hard: {reporter} reported on {reported_on} that {broken} broke in the {place}. The matter
            ({severity}) {resolved}.
        hard: Severity {severity}, {place}: {broken} broke. Reported by {reporter} on
            {reported_on}; the repair costs {repair_cost}, and it {resolved}.
        """,
        place=text("Room", _NAMES["room"]),
        reporter=text("Full name of who reported it", _NAMES["person"]),
        severity=choice("How bad it is", "low", "moderate", "critical"),
        reported_on=text("Date as YYYY-MM-DD", _NAMES["date"]),
        broken=texts("Things that are broken", _NAMES["product"]),
        repair_cost=integer("Euros", range(100, 900, 50), "euros"),
        resolved=flag("Whether it is settled", "has been settled", "is still unsettled"),
    ),
)

TEST = Catalog(
    names=_NAMES,
    domains=(_WEATHER, _CALENDAR, _FILES, _HOME, _TRAVEL, _DATABASE),
    forms=_FORMS,
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
