"""Arguments of made tools, shared by name; all text here is our own.

Each line is ``name: kind: description``, where the kind is a range (``integer 2 12``), a list of
values (``text: a, b``; ``texts`` for arrays of them, ``choice`` for a closed set), ``boolean``, or
``object`` with the names of its parts. A line that is indented goes on with the one before.
"""

ARGUMENTS = """
dish: text: pancakes, lentil soup, fish tacos, mushroom risotto, apple pie, pad thai: Name of the
        dish
diet: choice: vegan, vegetarian, gluten-free, low-carb: Diet that it must suit
ingredients: texts: tomatoes, rice, chickpeas, spinach, eggs, cheddar, ginger, lime: What must be
        in it
servings: integer 2 12: For how many people
minutes: integer 5 180: Duration in minutes
hours: integer 2 48: Duration in hours
days: integer 2 30: Number of days
weeks: integer 2 12: Number of weeks
months: integer 3 48: Number of months
years: integer 2 30: Number of years
month: choice: January, March, May, July, September, November: Month
date: text: 2024-03-09, 2024-07-21, 2025-01-30, 2023-11-02, 2025-05-17: Date as YYYY-MM-DD
until: text: 2025-06-01, 2025-08-15, 2025-12-24, 2026-02-10: Last date as YYYY-MM-DD
time: text: 08:30, 12:00, 14:45, 18:15, 21:00: Time as HH:MM
city: text: Nairobi, Kyoto, Porto, Denver, Tallinn, Bogota, Leeds, Hanoi, Turin, Quebec: City
other_city: text: Cairo, Seville, Boston, Krakow, Wellington, Izmir, Ghent, Busan: Second city
country: text: Kenya, Portugal, Japan, Chile, Estonia, Canada, Vietnam, Italy: Country
region: text: Tuscany, Patagonia, Hokkaido, Bavaria, Crimson Valley: Region
address: text: 12 Elm Street, 4 Harbour Lane, 77 Mill Road, 9 Castle Square: Street and number
latitude: number -80 80: Latitude in degrees
longitude: number -170 170: Longitude in degrees
radius_km: number 1 60: Radius in kilometres
distance_km: number 1 900: Distance in kilometres
speed_kmh: number 10 300: Speed in kilometres per hour
stars: integer 2 5: Fewest stars
price: number 5 900: Price
max_price: number 20 900: Highest price
budget: integer 100 9000: Money to spend at most
currency: choice: EUR, USD, GBP, JPY, CHF: Currency code
to_currency: choice: CAD, AUD, SEK, INR, BRL: Currency code to change to
amount: number 10 5000: Amount of money
percent: number 1 60: Percentage
rate: number 0.5 12: Yearly rate in percent
rooms: integer 2 6: Number of rooms
guests: integer 2 9: Number of guests
adults: integer 2 6: Number of adults
children: integer 2 5: Number of children
breakfast: boolean: Whether breakfast is included
pets: boolean: Whether pets come along
parking: boolean: Whether parking is needed
round_trip: boolean: Whether to come back as well
direct: boolean: Only without changes
seat: choice: window, aisle, middle: Kind of seat
travel_class: choice: economy, business, first: Class of travel
airline: text: Nordwing, Aerosol, Blue Heron Air, TransPacific: Airline
transport: choice: train, bus, ferry, car, bicycle: Means of transport
book: text: The Glass Harbour, Winter Letters, A Field of Crows, Moonfish: Title of the book
author: text: Edith Lang, Tomas Reyes, Ngozi Adeyemi, H. P. Winslow: Author
genre: choice: mystery, fantasy, history, romance, science: Genre
film: text: The Last Orchard, Red Tide Rising, Seven Doors, Paper Tigers: Title of the film
song: text: River Song, Blue Lantern, Stay a While, Northern Lights: Title of the song
artist: text: The Velvet Owls, Mira Chen, Delta Brothers, Ola Berg: Artist
playlist: text: road trip, workout, dinner, focus, rainy day: Name of the playlist
volume: integer 5 100: Volume in percent
team: text: Harbour United, the Red Foxes, Lions, Valley Rovers: Team
player: text: Jonas Eriksen, Maria Castillo, Kenji Watanabe, Ada Obi: Player
season: integer 1990 2024: Year of the season
league: text: Coastal League, First Division, Nordic Cup: League
person: text: Laura Kim, Peter Novak, Amina Yusuf, John Baker, Chloe Martin: Full name
email: text: laura@example.com, team@example.org, peter.n@example.net: Email address
phone: text: +44 20 7946 0958, 555-0172, +1 202 555 0143: Phone number
subject: text: Budget review, Lunch on Friday, Broken printer, Travel plans: Subject
message: text: I will be ten minutes late, Please call me back, The order has arrived: Text,
        verbatim
attendees: texts: Laura, Peter, Amina, John, Chloe, Ravi: Who takes part
title: text: Team meeting, Dentist, Piano lesson, Project kickoff, Yoga: Title
place: text: Room 204, Main Library, Cafe Luna, the gym, Pier 7: Place
task: text: water the plants, send the invoice, buy stamps, clean the garage: What to do
priority: choice: low, normal, high, urgent: Priority
language: choice: French, German, Spanish, Korean, Swahili, Polish: Language
text: text: Where is the nearest bank?, The weather is lovely today, I lost my keys: Text
keyword: text: climate, solar energy, chess, robotics, folk music: What to search for
count: integer 2 25: How many
page: integer 2 40: Page number
file: text: report.pdf, holiday.png, sales.csv, thesis.docx: File name
folder: text: Documents, backups, photos/2023, projects: Folder
new_name: text: final.pdf, beach.png, q3.csv, draft2.docx: New name
format: choice: pdf, png, csv, json, mp3: File format
width: integer 100 4000: Width
height: integer 100 3000: Height
angle: number 5 180: Angle in degrees
color: choice: red, blue, green, orange, black: Color
size: choice: small, medium, large: Size
product: text: running shoes, desk lamp, backpack, blender, wool scarf: Product
brand: text: Altura, Kestrel, Nimbus, Oakline: Brand
quantity: integer 2 60: How many pieces
order_number: text: A-10442, 77-3051, ORD-9921, X58813: Order number
coupon: text: SPRING10, WELCOME, FREESHIP: Coupon code
rating: number 1 5: Rating
in_stock: boolean: Only what can be had now
gift: boolean: Wrapped as a gift
weight_kg: number 1 120: Weight in kilograms
height_cm: integer 140 200: Height in centimetres
age: integer 5 90: Age in years
gender: choice: female, male: Gender
activity: choice: running, cycling, swimming, rowing, hiking: Kind of sport
steps: integer 1000 20000: Steps
heart_rate: integer 50 190: Beats per minute
medicine: text: ibuprofen, amoxicillin, loratadine, metformin: Medicine
dose_mg: integer 50 800: Dose in milligrams
symptom: text: headache, sore throat, back pain, fever: Symptom
doctor: text: Dr. Patel, Dr. Lindholm, Dr. Osei: Doctor
animal: text: red fox, barn owl, grey seal, honey badger: Animal
plant: text: basil, maple tree, orchid, cactus, lavender: Plant
species: text: Quercus robur, Apis mellifera, Vulpes vulpes: Scientific name
celsius: number -30 45: Degrees Celsius
unit: choice: celsius, fahrenheit, kelvin: Unit of temperature
length_m: number 0.5 80: Length in metres
width_m: number 0.5 40: Width in metres
height_m: number 0.5 30: Height in metres
depth_m: number 1 200: Depth in metres
radius_m: number 0.1 20: Radius in metres
area_m2: number 10 900: Area in square metres
volume_l: number 1 300: Volume in litres
mass_kg: number 0.5 500: Mass in kilograms
force_n: number 1 900: Force in newtons
voltage: number 1.5 240: Volts
current_a: number 0.1 20: Amperes
resistance: number 1 1000: Ohms
power_w: number 5 3000: Watts
pressure_kpa: number 20 400: Pressure in kilopascals
wavelength_nm: number 300 900: Wavelength in nanometres
frequency_hz: number 20 20000: Frequency in hertz
half_life: number 1 500: Half-life in hours
element: text: copper, argon, zinc, helium, cobalt: Chemical element
compound: text: NaCl, CH4, CO2, NH3, C2H5OH: Chemical formula
concentration: number 0.1 5: Moles per litre
planet: choice: Mars, Venus, Saturn, Neptune, Mercury: Planet
star: text: Vega, Rigel, Altair, Deneb: Star
numbers: numbers -20 100: Numbers
points: numbers 0 50: Points
counts: integers 1 90: Counts
matrix_size: integer 2 9: Rows and columns
digits: integer 2 8: Digits after the point
confidence: choice: 90, 95, 99: Confidence in percent
column: text: revenue, age, region, score: Column
table: text: customers, orders, employees, sensors: Table
descending: boolean: Largest first
server: text: web-01, db-main, cache-3, build-host: Server
service: text: nginx, postgres, mailer, scheduler: Service
port: integer 1024 9000: Port
repository: text: acme/site, tools/cli, lab/model: Repository
branch: text: main, develop, release-2, fix-login: Branch
version: text: 1.4.2, 2.0.0, 0.9.1, 3.11: Version
level: choice: debug, info, warning, error: Level
light: text: kitchen light, hall lamp, porch light, bedroom lamp: Lamp
room: choice: kitchen, bedroom, office, bathroom: Room
brightness: integer 5 100: Brightness in percent
temperature: number 15 28: Degrees to set
device: text: washing machine, robot vacuum, coffee maker, garage door: Device
company: text: Brightwater, Solace Foods, Ironleaf, Quantic Motors: Company
ticker: text: BRW, SLF, IRNL, QMT: Ticker symbol
shares: integer 5 400: Number of shares
loan: integer 1000 300000: Borrowed amount
down_payment: integer 500 40000: Paid at once
income: integer 12000 150000: Yearly income
account: text: savings, checking, joint account: Account
job: text: nurse, welder, data analyst, gardener: Job
skill: text: welding, Python, bookkeeping, sign language: Skill
course: text: Spanish for beginners, Linear Algebra, Pottery: Course
student: text: Nina Holt, Omar Said, Lucas Brandt: Student
grade: integer 2 12: School year
event: text: jazz festival, book fair, marathon, science night: Event
museum: text: Maritime Museum, Museum of Glass, Old Mint: Museum
century: integer 12 20: Century
ruler: text: Queen Isolde, King Harald, Emperor Teng: Ruler
law: text: Water Act, Data Charter, Tenancy Code: Law
court: text: High Court, County Court, Supreme Court: Court
case_number: text: C-204/19, 2021-778, K 33/08: Case number
car: text: Falcon GT, Mule 4x4, City Spark: Car model
fuel: choice: petrol, diesel, electric, hybrid: Fuel
license_plate: text: KL 52 XYZ, 7ABC123, M-TR 881: License plate
password_length: integer 8 40: Characters
symbols: boolean: With special characters
anonymous: boolean: Without a name
notify: boolean: Whether to tell everybody
tags: texts: home, urgent, travel, ideas, finance, health: Tags
contact: object person email phone?: Whom to reach
position: object latitude longitude: Where it is
period: object date until: First and last day
box: object length_m width_m height_m: Size of the box
filters: object brand? color? max_price?: What to keep
"""
