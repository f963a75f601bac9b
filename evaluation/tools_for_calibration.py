"""The tools, forms and phrasings that calibration and distillation may learn from.

They share no tool, phrasing, name, place or product with `tools_for_tests`, so that they give
nothing away about the test. All text here is our own.
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
    city: Vienna, Helsinki, Lima, Osaka, Toronto, Zagreb, Galway, Perth, Accra, Gdansk, Riga,
        Manila, Bologna, Malmo, Leipzig, Antwerp
    person: Ingrid Solberg, Mateo Rossi, Hana Kobayashi, Samuel Okafor, Elif Yilmaz, Pavel Novak,
        Grace Whitfield, Arjun Mehta, Lucia Moreno, Daniel Weiss
    email: front@stonebridge.example, post@paperleaf.example, orders@greywater.example,
        unit6@lanternhouse.example, crew@oakfield.example, info@rivermark.example,
        green.room@paperleaf.example, night@oakfield.example, west@greywater.example
    subject: Garden plans, Lost umbrella, Choir rehearsal, New office keys, Holiday rota, Printer
        trouble, Summer picnic, Train tickets, Book club, Boiler service
    sentence: See you at the gate, The parcel is here, Please bring the folder, We start without
        you, The bus was full, I found your glasses, All seats are taken, Soup is ready
    item: olive oil, tennis racket, winter boots, coffee grinder, camping tent, violin strings,
        office chair, yoga mat, headlamp, picture frame
    song: Paper Boats, Midnight Orchard, Silver Tram, Lullaby for Two, Rust and Rain, Seven
        Bridges, The Quiet Mile, Copper Sky
    artist: The Lowland Foxes, Vera Sundqvist, Moss Parade, Cedar Trio, Ode Malik
    speaker: desk speaker, patio speaker, car stereo, headphones, soundbar
    landmark: Central Station, Old Mill Museum, City Library, North Gate, Opera House, Botanical
        Garden, Ferry Terminal, Town Hall
    errand: call the plumber, water the tomatoes, feed the parrot, renew the lease, pick up the
        cake, return the ladder, sign the form, empty the mailbox
    tag: family, work, ideas, recipes, garden, school
    company: Stonebridge, Paperleaf, Greywater, Lanternhouse, Oakfield, Rivermark
    """) | {
    "date": tuple(f"2027-{month:02}-{day:02}" for month in range(1, 13) for day in (5, 14, 22, 28)),
    "time": tuple(f"{hour:02}:{minute}" for hour in range(7, 21) for minute in ("15", "45")),
}

_EARLY, _LATE = _NAMES["date"][:24], _NAMES["date"][24:]

_PRICES = (8.5, 14.2, 19.9, 27.35, 42.6, 63.8, 120.4, 250.75)

_EMAIL = domain(
    "email",
    """
    block senders: Block all future mail from {person}.
    change passwords: Change the password of my mailbox.
    make phone calls: Phone {person} and ask about {subject}.
    """,
    pattern(
        """
        send_email(to, subject): Write and send a new email.
        easy: Send {to} an email with the subject "{subject}".
        medium: Email {to} with the subject "{subject}" and the text "{body}".
        hard: Email {to}, subject "{subject}", text "{body}", {urgent}.
        hard: Write to {to} about "{subject}". The text is "{body}", and copies go to {cc}.
        """,
        to=text("Email address of the recipient", _NAMES["email"][:5]),
        subject=text("Subject line", _NAMES["subject"]),
        body=text("Text of the email, verbatim", _NAMES["sentence"]),
        cc=texts("Email addresses that get a copy", _NAMES["email"][5:]),
        urgent=with_default(
            flag("Whether to mark it as urgent", "marked as urgent", "not urgent"), False
        ),
    ),
    pattern(
        """
        find_emails(sender): Find emails that were received.
        easy: Find the emails that {sender} sent me.
        easy: Did {sender} write to me about "{subject}"? Find those emails.
        medium: Find {limit} from {sender} about "{subject}".
        hard: Get me {limit} at most by {sender}, with the subject "{subject}", since {since}.
        """,
        sender=text("Full name of who sent them", _NAMES["person"]),
        subject=text("Words of the subject line", _NAMES["subject"]),
        since=text("First day, YYYY-MM-DD", _NAMES["date"]),
        limit=integer("Most emails to return", range(3, 30), "emails", {"a dozen mails": 12}),
    ),
    pattern(
        """
        forward_email(subject, to): Forward an email that was received to another person.
        easy: Forward the email "{subject}" to {to}.
        medium: Forward the email "{subject}" to {to} with the note "{note}".
        hard: Forward "{subject}" to {to} {keep_files} and with the note "{note}" on top.
        """,
        subject=text("Subject line of the email", _NAMES["subject"]),
        to=text("Email address to forward it to", _NAMES["email"]),
        note=text("Text to put above it, verbatim", _NAMES["sentence"]),
        keep_files=flag(
            "Whether attached files go along",
            "with the attached files",
            "without the attached files",
        ),
    ),
    pattern(
        """
        set_auto_reply(message): Answer all incoming email automatically for some time.
        easy: Turn on an automatic reply that says "{message}".
        medium: Reply automatically with "{message}" from {from_date} to {to_date}.
        hard: From {from_date} to {to_date}, answer mail automatically with "{message}", except to
            {except_for}.
        """,
        message=text("Text of the answer, verbatim", _NAMES["sentence"]),
        from_date=text("First day, YYYY-MM-DD", _EARLY),
        to_date=text("Last day, YYYY-MM-DD", _LATE),
        except_for=texts("Names that get no such answer", _NAMES["person"]),
    ),
)

_CALCULATION = domain(
    "calculation",
    """
    plot curves: Plot the sine curve from zero to ten.
    file tax returns: File my tax return for last year.
    look up share prices: What is the share price of {company} today?
    """,
    pattern(
        """
        convert_units(value, from_unit, to_unit): Convert a length or a weight from one unit to
            another.
        medium: Convert {value} {from_unit} to {to_unit}.
        medium: How many {to_unit} are {value} {from_unit}?
        hard: Convert {value} {from_unit} to {to_unit} and keep {digits}.
        """,
        value=number("How much", (2.5, 7.5, 12.4, 36.6, 88.2, 150.5)),
        from_unit=choice("Unit that it is in", "miles", "feet", "inches", "yards"),
        to_unit=choice("Unit to convert to", "meters", "kilometers", "centimeters"),
        digits=integer("Decimals to keep", range(2, 6), "decimals"),
    ),
    pattern(
        """
        convert_currency(amount, from_currency, to_currency): Convert an amount of money into
            another currency.
        medium: Convert {amount} {from_currency} to {to_currency}.
        medium: How much is {amount} {from_currency} in {to_currency}?
        hard: How much is {amount} {from_currency} in {to_currency} at the rate of {date}?
        """,
        amount=number("Amount of money", _PRICES),
        from_currency=choice("Currency that it is in", "EUR", "USD", "GBP", "JPY"),
        to_currency=choice("Currency to convert to", "EUR", "USD", "CHF", "SEK"),
        date=text("Use the rate of this day, YYYY-MM-DD", _NAMES["date"]),
    ),
    pattern(
        """
        calculate_tip(bill): Work out the tip on a bill.
        easy: How much should I tip on a bill of {bill}?
        medium: Work out a tip of {percent} on a bill of {bill}.
        hard: A tip of {percent} on {bill}, shared by {people}, {round_up}.
        """,
        bill=number("Amount of the bill", _PRICES),
        percent=integer("Tip in percent", (5, 8, 12, 15, 18), "percent"),
        people=integer("Share it among so many", range(2, 9), "people"),
        round_up=flag("Whether to round up", "rounded up", "not rounded in any way"),
    ),
    pattern(
        """
        calculate_loan(amount, years): Work out the monthly payment of a loan.
        easy: What is the monthly payment for a loan of {amount} over {years}?
        medium: Monthly payment for a loan of {amount} over {years} at {rate} interest?
        hard: I borrow {amount} for {years} at {rate} interest and pay {paid_first} at once. What
            is the monthly payment?
        """,
        amount=integer("Sum that is borrowed", range(2000, 90000, 500)),
        years=integer("Years to pay it back", range(2, 31), "years", {"a decade": 10}),
        rate=number("Interest per year, in percent", (2.5, 3.1, 4.75), "percent"),
        paid_first=integer("Sum that is paid at once", range(300, 1900, 100)),
    ),
)

_SHOPPING = domain(
    "shopping",
    """
    write reviews: Write a bad review of {item}.
    close accounts: Close my customer account for ever.
    change means of payment: Change the bank card that I pay with.
    """,
    pattern(
        """
        search_products(query): Search the shop for products.
        easy: Search the shop for {query}.
        easy: I am looking for {query}. What do you sell?
        medium: Search for {query} up to {max_price}, sorted by {sort}.
        hard: Look for {query} by {shops}, for {max_price} at most, sorted by {sort}.
        """,
        query=text("What to look for", _NAMES["item"]),
        max_price=integer("Highest price, euros", range(20, 400, 10), "euros"),
        sort=choice("Order of the results", "price", "rating", "newest"),
        shops=texts("Only goods of these sellers", _NAMES["company"]),
    ),
    pattern(
        """
        add_to_cart(product, quantity): Put a product into the shopping cart.
        easy: Put {product} into my cart, {quantity}.
        medium: Put {product} in size {size} into my cart, {quantity}.
        hard: Add {product}, {quantity}, in {size}, to my cart as a gift {gift_for}.
        """,
        product=text("Name of the product", _NAMES["item"]),
        quantity=integer("How many", range(2, 15), "times", {"a dozen times": 12}),
        size=choice("Size", "small", "medium", "large"),
        gift_for=record(
            "Who gets it as a gift",
            'for {name} with a card that says "{card}"',
            name=text("Full name", _NAMES["person"]),
            card=text("Text on the card, verbatim", _NAMES["sentence"]),
        ),
    ),
    pattern(
        """
        track_order(order_number): Tell where an order is now.
        easy: Where is my order {order_number}?
        easy: Track order number {order_number}.
        medium: Track order {order_number} and tell me only the {detail}.
        hard: Track order {order_number}, only the {detail}, and send news to {notify}.
        """,
        order_number=integer("Number of the order", range(10000, 99999)),
        detail=choice("Tell only this", "place", "arrival", "carrier"),
        notify=text("Email address for news of it", _NAMES["email"]),
    ),
    pattern(
        """
        return_product(order_number, product): Send a product of an order back to the shop.
        easy: I want to send back the {product} of order {order_number}.
        medium: Send back the {product} of order {order_number}; the reason is: {reason}.
        hard: The {product} of order {order_number} goes back. Reason: {reason}; pay it back by
            {refund}.
        """,
        order_number=integer("Number of the order", range(10000, 99999)),
        product=text("Name of the product", _NAMES["item"]),
        reason=choice("Why", "broken", "wrong size", "not needed"),
        refund=choice("How to pay it back", "card", "voucher"),
    ),
)

_MUSIC = domain(
    "music",
    """
    buy tickets: Buy two tickets to the next concert of {artist}.
    show sheet music: Show me the sheet music of {song}.
    record sound: Record me while I sing {song}.
    """,
    pattern(
        """
        play_song(title): Play a song.
        easy: Play "{title}".
        easy: Play "{title}" by {artist}.
        medium: Play "{title}" by {artist} on the {speaker}.
        hard: On the {speaker}, play "{title}" by {artist}, {repeat} in a row.
        """,
        title=text("Title of the song", _NAMES["song"]),
        artist=text("Who plays it", _NAMES["artist"]),
        speaker=text("Where to play it", _NAMES["speaker"]),
        repeat=integer("How often to play it", range(2, 6), "times"),
    ),
    pattern(
        """
        create_playlist(name): Make a new playlist.
        easy: Make a new playlist called "{name}".
        medium: Make a playlist called "{name}" and let {shared_with} see it.
        hard: Make a playlist "{name}" with {songs}, {shuffle}, and share it with {shared_with}.
        """,
        name=text("Name of the playlist", _NAMES["subject"]),
        songs=texts("Titles of the songs", _NAMES["song"], most=4),
        shared_with=text("Full name of who may see it", _NAMES["person"]),
        shuffle=flag("Whether to mix the songs", "shuffled", "in that order"),
    ),
    pattern(
        """
        set_volume(speaker, level): Set how loud a speaker is.
        easy: Set the {speaker} to {level}.
        medium: Bring the {speaker} to {level} over {fade_seconds}.
        hard: Over {fade_seconds}, take the {speaker} to {level}.
        """,
        speaker=text("Which speaker", _NAMES["speaker"]),
        level=integer("Percent", range(5, 95, 5), "percent", {"half volume": 50}),
        fade_seconds=integer(
            "Seconds to get there", range(2, 25), "seconds", {"half a minute": 30}
        ),
    ),
)

_MAPS = domain(
    "maps",
    """
    call taxis: Call me a taxi to {landmark}.
    look up the history of buildings: Who built {landmark}, and in which year?
    report damage to roads: Report a hole in the road near {landmark}.
    """,
    pattern(
        """
        get_directions(origin, destination): Find the way from one place to another.
        easy: How do I get from {origin} to {destination}?
        medium: Show me the way from {origin} to {destination} by {mode}.
        hard: The way to {destination} from {origin} by {mode}, avoiding {avoid}, to arrive by
            {arrive_by}.
        """,
        origin=text("Where to start", _NAMES["landmark"]),
        destination=text("Where to go", _NAMES["landmark"]),
        mode=choice("How to travel", "walking", "cycling", "driving"),
        avoid=texts("What to avoid", ("tolls", "ferries", "tunnels", "stairs")),
        arrive_by=text("Latest arrival, HH:MM", _NAMES["time"]),
    ),
    pattern(
        """
        find_places(category, near): Find places of some sort near a landmark.
        easy: Is there a {category} near {near}?
        easy: Find a {category} close to {near}.
        medium: Find a {category} within {radius_meters} of {near}.
        hard: Look for a {category} within {radius_meters} of {near}, {open_now}.
        """,
        category=text("Sort of place", ("bakery", "pharmacy", "bank", "hostel", "gym")),
        near=text("Landmark to look around", _NAMES["landmark"]),
        radius_meters=integer(
            "How far away at most, in meters",
            range(200, 900, 50),
            "meters",
            {"half a kilometer": 500, "one kilometer": 1000},
        ),
        open_now=flag("Whether to show only open ones", "only if open now", "open now or not"),
    ),
    pattern(
        """
        save_place(name, address): Save an address under a name of your own.
        hard: Under the name "{name}", save {address} and mark it with a {color} pin.
        hard: Save {address} as "{name}" with a {color} pin.
        """,
        name=text("Name to save it under", _NAMES["tag"]),
        address=record(
            "The address",
            "{street} {number} in {city}",
            street=text("Street name", ("Birch Avenue", "Canal Walk", "Tower Hill")),
            number=integer("House number", range(2, 99)),
            city=text("City name", _NAMES["city"]),
        ),
        color=choice("Colour of the pin", "yellow", "black", "pink"),
    ),
)

_NOTES = domain(
    "notes",
    """
    read handwriting: Turn my handwritten notes from the photo into text.
    publish websites: Publish my notes tagged {tag} as a website.
    read notes out loud: Read the note about {subject} out loud to me.
    """,
    pattern(
        """
        create_note(title): Write a note and keep it.
        easy: Write a note titled "{title}" that says "{content}".
        medium: Keep a note for me. Title: "{title}". Text: "{content}".
        hard: Keep a note "{title}" that says "{content}", tagged {tags}, {pinned}.
        """,
        title=text("Title of the note", _NAMES["subject"]),
        content=text("Text of the note, verbatim", _NAMES["sentence"]),
        tags=texts("Words to find it by", _NAMES["tag"]),
        pinned=flag("Whether it stays on top", "pinned", "not pinned"),
    ),
    pattern(
        """
        set_reminder(task, date): Set a reminder for a date.
        easy: Remind me to {task} on {date}.
        medium: Remind me to {task} on {date} at {time}.
        hard: Remind me to {task} on {date} at {time}, and also {minutes_before} earlier.
        hard: From {date} on remind me {repeat} at {time} to {task}.
        """,
        task=text("What to do, verbatim", _NAMES["errand"]),
        date=text("Date as YYYY-MM-DD", _NAMES["date"]),
        time=text("Time as HH:MM", _NAMES["time"]),
        repeat=choice("Whether to repeat it", "daily", "weekly", "monthly"),
        minutes_before=integer(
            "Also remind so many minutes earlier",
            range(5, 60, 5),
            "minutes",
            {"an hour": 60, "half an hour": 30},
        ),
    ),
    pattern(
        """
        set_timer(minutes): Start a countdown.
        easy: Start a timer of {minutes}.
        easy: Time {minutes} for me, starting now.
        medium: Start a timer of {minutes} called "{label}", ending with a {sound}.
        hard: When {minutes} have passed, sound a {sound}. Call the timer "{label}".
        """,
        minutes=integer(
            "Length in minutes",
            range(3, 55),
            "minutes",
            {"half an hour": 30, "three quarters of an hour": 45, "an hour": 60},
        ),
        label=text("Name of the timer", _NAMES["item"]),
        sound=choice("Sound at the end", "bell", "chime", "horn"),
    ),
    pattern(
        """
        translate_text(content, language): Translate a text into another language.
        easy: Translate "{content}" into {language}.
        medium: Translate "{content}" into {language} in a {tone} tone.
        hard: Translate "{content}" from {from_language} into {language}, in a {tone} tone.
        """,
        content=text("Text to translate, verbatim", _NAMES["sentence"]),
        language=choice("Language to translate into", "German", "Spanish", "Turkish"),
        tone=choice("Tone", "formal", "friendly"),
        from_language=choice("Language that it is in", "English", "French"),
    ),
)

_FORMS = (
    pattern(
        """
        invoice(seller, total, due, items, contact): An invoice.
        easy: {seller} asks for {total}.
        easy: The invoice by {seller} is due on {due}.
        medium: Invoice from {seller}: {total}, to be paid by {due}.
        hard: {seller} sold {items} for {total} in all. Pay by {due}. Questions go to {contact}.
        hard: {items}: {total}, due {due}, payable to {seller}. {paid} Ask {contact}.
        """,
        seller=text("Company that sends it", _NAMES["company"]),
        total=number("Sum in euros", _PRICES, "euros"),
        due=text("Last day to pay, YYYY-MM-DD", _NAMES["date"]),
        items=texts("What was sold", _NAMES["item"]),
        contact=record(
            "Who to ask",
            "{name} at {email}",
            name=text("Full name", _NAMES["person"]),
            email=text("Email address", _NAMES["email"]),
        ),
        paid=flag("Whether it is paid", "Already paid.", "Not paid yet."),
    ),
    pattern(
        """
        appointment(who, date, time, place, bring): An appointment.
        easy: I see {who} on {date}.
        easy: We meet {who} at {place}.
        medium: On {date} at {time} we meet {who}.
        medium: {who} waits at {place} from {time} on.
        hard: On {date} at {time}, {who} will be at {place}. Bring {bring}.
        hard: {who} has {minutes} for us at {place}, at {time} on {date}. Bring {bring} along.
        """,
        who=text("Full name", _NAMES["person"]),
        date=text("Date as YYYY-MM-DD", _NAMES["date"]),
        time=text("Time as HH:MM", _NAMES["time"]),
        place=text("Landmark", _NAMES["landmark"]),
        bring=texts("What to bring", _NAMES["item"]),
        minutes=integer("Length in minutes", range(15, 60, 5), "minutes", {"half an hour": 30}),
    ),
    pattern(
        """
        review(product, stars, author, written_on, liked, recommended): A customer's review of a
            product.
        easy: {author} gives it {stars}.
        easy: {author} has tried the {product}.
        medium: {author} gives the {product} {stars}.
        medium: {stars} for the {product} on {written_on}.
        hard: On {written_on}, {author} gave the {product} {stars}, liked the {liked}, and
            {recommended}.
        hard: {author} bought the {product} from {seller}, praises its {liked}, gives it {stars}
            and {recommended}. Written on {written_on}.
        """,
        product=text("Product", _NAMES["item"]),
        stars=integer("Stars out of five", range(2, 6), "stars", {"one star": 1}),
        author=text("Full name of the reviewer", _NAMES["person"]),
        written_on=text("Date as YYYY-MM-DD", _NAMES["date"]),
        liked=texts("What was liked", ("price", "colour", "packaging", "design", "weight")),
        recommended=flag("Whether it is recommended", "recommends it", "advises against it"),
        seller=text("Company that sold it", _NAMES["company"]),
    ),
)

CALIBRATION = Catalog(
    names=_NAMES,
    domains=(_EMAIL, _CALCULATION, _SHOPPING, _MUSIC, _MAPS, _NOTES),
    forms=_FORMS,
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
