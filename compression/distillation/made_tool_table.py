"""Tools of many fields with how people ask for them; all text here is our own.

``name(arguments): description``, then one request a line; what is indented further goes on with
the line before. An argument with ``?`` is optional. In a request, ``{name}`` is an argument's
value, ``[…{name}…]`` is said where the optional argument is given, and ``[name? yes | no]`` says a
boolean.
"""

TOOLS = """
recipe_search(dish, diet?, minutes?, servings?): Searches recipes by dish.
    Find a [{diet} ]recipe for {dish}[ that takes at most {minutes} minutes][, for {servings}
        people].
    How do I make {dish}[ for {servings} people]?[ It has to be {diet}.][ I have {minutes} minutes.]
plan_meal(ingredients, servings, diet?): Suggests a meal from what is at home.
    I have {ingredients}. What can I cook for {servings} people?[ It should be {diet}.]
    Plan a [{diet} ]meal for {servings} with {ingredients}.
scale_recipe(dish, servings, factor_of?): Changes the amounts of a recipe.
    Adjust the {dish} recipe so that it serves {servings}.
set_timer(minutes, title?): Starts a timer.
    Set a timer for {minutes} minutes[ called {title}].
    Wake me in {minutes} minutes.[ Name it "{title}".]
book_table(place, date, time, guests): Reserves a table.
    Reserve a table for {guests} at {place} on {date} at {time}.
    We are {guests} people and want to eat at {place}, {date}, {time}.
find_hotel(city, guests, stars?, max_price?, breakfast?, pets?): Finds hotels.
    Look for a hotel in {city} for {guests} guests[ with at least {stars} stars][ under {max_price}
        a night][breakfast?, breakfast included|, without breakfast].
    {guests} of us need somewhere to stay in {city}[, no more than {max_price} per night][pets?,
        and we bring our dog|, no pets].
search_flights(city, other_city, date, adults?, travel_class?, direct?): Finds flights between two
        cities.
    Are there flights from {city} to {other_city} on {date}[ for {adults} adults][ in
        {travel_class} class]?
    I want to fly {city} - {other_city}, {date}[, {travel_class}][direct?, direct only|, stops are
        fine].
reserve_seat(airline, order_number, seat): Picks a seat on a booked flight.
    Put me in a {seat} seat on my {airline} booking {order_number}.
plan_route(city, other_city, transport?, avoid_tolls?): Plans a trip between two places.
    What is the best way from {city} to {other_city}[ by {transport}]?
    Get me directions: {city} to {other_city}[, travelling by {transport}].
travel_time(distance_km, speed_kmh): Says how long a distance takes at a constant speed.
    How long do I need for {distance_km} km at {speed_kmh} km/h?
    I drive {distance_km} kilometres at {speed_kmh} kilometres per hour; how much time is that?
rent_car(city, date, days, car?, fuel?): Rents a car.
    Rent a car in {city} from {date} for {days} days[, preferably a {car}][, {fuel} if possible].
exchange_money(amount, currency, to_currency): Converts money at today's rate.
    How much is {amount} {currency} in {to_currency}?
    Change {amount} {currency} into {to_currency}.
visa_rules(country, days?): Tells which visa is needed.
    Do I need a visa for {country}[ if I stay {days} days]?
public_holidays(country, season): Lists the public holidays of a year.
    Which public holidays does {country} have in {season}?
find_place_nearby(position, radius_km, keyword?): Finds places around a position.
    What is there within {radius_km} km of {position}[ that has to do with {keyword}]?
search_books(author?, genre?, keyword?, count?): Searches a library.
    Show me [{count} ][{genre} ]books[ by {author}][ about {keyword}].
renew_book(book, weeks?): Keeps a borrowed book longer.
    Renew my copy of {book}[ for {weeks} weeks].
film_showtimes(film, city, date?): Lists when a film is shown.
    When is {film} on in {city}[ on {date}]?
rate_film(film, rating, anonymous?): Stores a rating.
    Give {film} a rating of {rating}[anonymous?, without my name|, with my name].
play_music(song?, artist?, volume?): Plays music.
    Play [{song} ][by {artist} ][at volume {volume}].
add_to_playlist(playlist, song, artist?): Adds a song to a playlist.
    Add {song}[ by {artist}] to my {playlist} playlist.
concert_tickets(artist, city, quantity, max_price?): Buys concert tickets.
    Get {quantity} tickets for {artist} in {city}[, at most {max_price} each].
team_results(team, season, league?): Results of a team in a season.
    How did {team} do in {season}[ in the {league}]?
player_statistics(player, season?, team?): Figures of one player.
    Show the statistics of {player}[ for {season}][ at {team}].
league_table(league, season): The final table of a league.
    What did the {league} table look like in {season}?
send_message(person, message, priority?): Sends a short message.
    Tell {person}: {message}.[ Priority {priority}.]
    Message {person} that "{message}"[ with {priority} priority].
send_mail(email, subject, message, tags?): Sends an email.
    Write to {email} about {subject}: {message}.[ Tag it {tags}.]
create_event(title, date, time, attendees?, place?): Puts an event into the calendar.
    Schedule {title} on {date} at {time}[ with {attendees}][ at {place}].
    Please add "{title}" to my calendar, {date}, {time}[, in {place}].
move_event(title, date, time?): Moves an event.
    Move {title} to {date}[ at {time}].
free_slots(period, minutes, attendees?): Finds time when all are free.
    When can we meet for {minutes} minutes between {period}[, with {attendees}]?
add_task(task, date?, priority?, tags?): Adds something to do.
    Remind me to {task}[ by {date}].[ It has {priority} priority.]
    Put "{task}" on my list[ with the tags {tags}].
save_contact(contact, tags?): Stores a contact.
    Save this contact: {contact}.[ Tags: {tags}.]
translate_text(text, language): Translates a text.
    How do you say "{text}" in {language}?
    Translate "{text}" into {language}.
count_words(text, keyword?): Counts words.
    How many words has "{text}"?
news_search(keyword, count?, date?, language?): Searches the news.
    Find [{count} ]news about {keyword}[ since {date}][ in {language}].
convert_file(file, format): Converts a file.
    Turn {file} into {format}.
    I need {file} as {format}, please.
rename_file(file, new_name, folder?): Gives a file another name.
    Rename {file}[ in {folder}] to {new_name}.
share_folder(folder, attendees, notify?): Shares a folder.
    Share {folder} with {attendees}[notify? and tell them|, but do not tell them].
resize_image(file, width, height?): Changes the size of an image.
    Make {file} {width} pixels wide[ and {height} high].
rotate_image(file, angle): Rotates an image.
    Rotate {file} by {angle} degrees.
product_search(product, filters?, in_stock?, count?): Searches a shop.
    I am looking for a {product}[, {filters}][in_stock?, in stock only|, even if sold out].
    Show [{count} ]offers for {product}[ with {filters}].
place_order(product, quantity, size?, color?, gift?): Orders a product.
    Order {quantity} {product}[ in {color}][, size {size}][gift?, gift-wrapped|, no gift wrap].
track_order(order_number): Says where an order is.
    Where is my order {order_number}?
    Track {order_number}.
return_order(order_number, quantity?, message?): Sends an order back.
    I want to return [{quantity} pieces of ]order {order_number}.[ Reason: {message}.]
apply_coupon(coupon, price): Price after a coupon.
    What do I pay for something at {price} with coupon {coupon}?
discount_price(price, percent): Price after a discount.
    What is {price} less {percent} percent?
    Take {percent}% off {price}.
sales_tax(price, percent, quantity?): Adds a tax to a price.
    What does it cost with {percent}% tax if the net price is {price}[ and I buy {quantity}]?
loan_payment(loan, rate, years, down_payment?): Monthly payment of a loan.
    What is the monthly payment on {loan} over {years} years at {rate}%[ with {down_payment} down]?
savings_goal(budget, amount, rate?): Months until a sum is saved.
    How many months until I have {budget} if I save {amount} a month[ at {rate} percent]?
income_tax(income, country, children?): Estimates the income tax.
    How much income tax on {income} in {country}[ with {children} children]?
transfer_money(account, person, amount, currency?): Sends money.
    Send {amount}[ {currency}] from my {account} to {person}.
buy_shares(ticker, shares, max_price?): Places an order at the exchange.
    Buy {shares} shares of {ticker}[ at {max_price} or less].
company_report(company, season, language?): Yearly report of a company.
    Get the {season} report of {company}[ in {language}].
bmi(weight_kg, height_cm): Body mass index.
    What is my BMI at {weight_kg} kg and {height_cm} cm?
calories_burned(activity, minutes, weight_kg?): Calories that a sport takes.
    How many calories does {minutes} minutes of {activity} burn[ at {weight_kg} kg]?
log_workout(activity, minutes, distance_km?, heart_rate?): Stores a workout.
    Log {minutes} minutes of {activity}[, {distance_km} km][, heart rate {heart_rate}].
daily_steps(steps, date?): Stores steps.
    I walked {steps} steps[ on {date}].
medicine_reminder(medicine, dose_mg, time, days?): Reminds of a medicine.
    Remind me to take {dose_mg} mg of {medicine} at {time}[ for {days} days].
check_interaction(medicine, age?, symptom?): Warns of side effects.
    Is {medicine} safe[ for somebody aged {age}][ with {symptom}]?
see_doctor(doctor, date, time?, symptom?): Makes an appointment.
    Get me an appointment with {doctor} on {date}[ at {time}][ about my {symptom}].
animal_facts(animal, count?, language?): Facts about an animal.
    Tell me [{count} ]facts about the {animal}[ in {language}].
classify_species(species, region?): Taxonomy of a species.
    What family does {species} belong to?
plant_care(plant, room?, month?): How to care for a plant.
    How do I look after {plant}[ in the {room}][ in {month}]?
water_need(area_m2, celsius, weeks?): Water that a garden needs.
    How much water does a garden of {area_m2} square metres need at {celsius} degrees[ over {weeks}
        weeks]?
forecast(city, days?, unit?): Weather of the next days.
    What will the weather be like in {city}[ for the next {days} days][ in {unit}]?
sea_temperature(region, month, unit?): Average temperature of the sea.
    How warm is the sea near {region} in {month}[, in {unit}]?
convert_temperature(celsius, unit): Converts from Celsius.
    Convert {celsius} degrees Celsius to {unit}.
box_volume(length_m, width_m, height_m): Volume of a box.
    A box is {length_m} m long, {width_m} m wide and {height_m} m high. How much fits in?
tank_fill_time(volume_l, rate_l_min?, count?): Time to fill a tank.
    How long does it take to fill {volume_l} litres[ with {count} taps]?
cylinder_surface(radius_m, height_m): Surface of a cylinder.
    What is the surface of a cylinder with radius {radius_m} m and height {height_m} m?
paint_needed(area_m2, count?, color?): Paint for a wall.
    How much [{color} ]paint for {area_m2} square metres[ with {count} coats]?
ohms_law(voltage, resistance): Current through a resistor.
    What current flows at {voltage} volts through {resistance} ohms?
energy_use(power_w, hours, price?): Energy that a device takes.
    How much energy does a {power_w} watt device use in {hours} hours[ at {price} per kWh]?
work_done(force_n, length_m, angle?): Work of a force along a way.
    A force of {force_n} N moves something {length_m} m[ at {angle} degrees]; how much work is that?
lift_height(mass_kg, power_w, minutes): Height to which a motor lifts.
    How high does a {power_w} W motor lift {mass_kg} kg in {minutes} minutes?
gas_volume(pressure_kpa, celsius, mass_kg?): Volume of a gas.
    What volume has the gas at {pressure_kpa} kPa and {celsius} °C?
photon_energy(wavelength_nm): Energy of a photon.
    What is the photon energy at {wavelength_nm} nm?
decay_remaining(mass_kg, half_life, hours): What is left after radioactive decay.
    How much of {mass_kg} kg is left after {hours} hours with a half-life of {half_life} hours?
molar_mass(compound, digits?): Molar mass of a compound.
    Give the molar mass of {compound}[ to {digits} digits].
dilute(concentration, volume_l, target_volume?): Dilutes a solution.
    I dilute {volume_l} litres of a {concentration} molar solution. What do I get?
element_info(element, count?): Properties of an element.
    What are the properties of {element}?
planet_weight(planet, mass_kg): Weight on another planet.
    What would {mass_kg} kg weigh on {planet}?
star_position(star, date, position?): Where a star stands.
    Where is {star} on {date}[ seen from {position}]?
tone_name(frequency_hz): Musical note of a frequency.
    Which note is {frequency_hz} Hz?
mean_of(numbers, digits?): Average of numbers.
    What is the average of {numbers}[, rounded to {digits} digits]?
weighted_score(points, counts): Score from points and their weights.
    Score the points {points} with the weights {counts}.
moving_average(numbers, count): Moving average of a series.
    Smooth {numbers} over {count} values.
confidence_interval(numbers, confidence): Interval of the mean.
    Give the {confidence}% confidence interval for {numbers}.
identity_matrix(matrix_size): Makes an identity matrix.
    Make an identity matrix of size {matrix_size}.
sort_table(table, column, descending?, count?): Sorts a table.
    Sort {table} by {column}[descending?, largest first|, smallest first][, only the first {count}
        rows].
query_table(table, column, period?, count?): Reads from a table.
    Show [{count} rows of ]{column} from {table}[ between {period}].
restart_service(service, server, notify?): Restarts a service.
    Restart {service} on {server}[notify? and let everyone know| quietly].
open_port(server, port): Opens a port.
    Open port {port} on {server}.
read_logs(service, level?, count?, server?): Reads log lines.
    Show [the last {count} ][{level} ]log lines of {service}[ on {server}].
create_branch(repository, branch, version?): Makes a branch.
    Make a branch {branch} in {repository}[ from version {version}].
release(repository, version, message?): Publishes a release.
    Release {repository} {version}[ with the note "{message}"].
make_password(password_length, symbols?, count?): Makes passwords.
    Generate [{count} ]passwords of {password_length} characters[symbols?, with symbols|, letters
        and digits only].
switch_light(light, brightness?, color?): Sets a lamp.
    Turn on the {light}[ at {brightness} percent][ in {color}].
set_thermostat(room, temperature, hours?): Sets the temperature of a room.
    Heat the {room} to {temperature} degrees[ for {hours} hours].
start_device(device, time?, minutes?): Starts a device.
    Start the {device}[ at {time}][ for {minutes} minutes].
find_jobs(job, city?, income?, skill?): Finds jobs.
    Any {job} jobs[ in {city}][ paying at least {income}][ that need {skill}]?
enroll(student, course, date?): Enrols a student.
    Sign {student} up for {course}[ from {date}].
report_card(student, grade, subject_count?): Marks of a student.
    Show the marks of {student} in year {grade}.
find_event(event, city?, period?): Finds events.
    Is there a {event}[ in {city}][ between {period}]?
museum_tickets(museum, date, adults, children?): Books museum tickets.
    {adults} adult tickets[ and {children} for children] for the {museum} on {date}, please.
ruler_dates(ruler, country?): When somebody ruled.
    When did {ruler} rule[ in {country}]?
events_of_century(century, country, count?): Main events of a century.
    What happened in {country} in the {century}th century?[ Name {count} events.]
find_law(law, country, language?): Text of a law.
    Get the {law} of {country}[ in {language}].
court_case(case_number, court?, language?): Looks up a case.
    Look up case {case_number}[ at the {court}].
fuel_cost(distance_km, fuel, price, car?): Cost of a drive.
    What does it cost to drive {distance_km} km[ in my {car}] on {fuel} at {price} per litre?
parking_fine(license_plate, city, date?): Looks up fines.
    Are there fines for {license_plate} in {city}[ since {date}]?
ship_parcel(box, weight_kg, country, notify?): Price of a parcel.
    Send a box of {box}, {weight_kg} kg, to {country}[notify? and notify the receiver|, without
        notice].
house_search(city, rooms, max_price?, parking?, pets?): Finds homes.
    Find a flat in {city} with {rooms} rooms[ below {max_price}][parking?, with parking|, parking
        not needed].
report_problem(place, message, priority?, anonymous?): Reports a problem to the town.
    Report from {place}: {message}.[ It is {priority}.]
"""
