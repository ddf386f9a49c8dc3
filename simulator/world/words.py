"""The vocabulary of the invented marketplace: what is sold, how it looks, and the several words
people have for each.

Every value is followed by its synonyms; sellers and shoppers pick among them independently, so
titles and queries often disagree in words while they agree in meaning. Written as text, `name =
synonym, synonym; ...`, and read once at import.
"""

from __future__ import annotations

from typing import NamedTuple

Words = dict[str, tuple[str, ...]]


def read_words(text: str) -> Words:
    """`"navy = navy, dark blue; red = red"` -> {"navy": ("navy", "dark blue"), "red": ("red",)}."""
    pairs = [entry.split("=") for entry in " ".join(text.split()).split(";") if entry.strip()]
    return {name.strip(): tuple(word.strip() for word in said.split(",")) for name, said in pairs}


class Section(NamedTuple):
    """A shelf of the shop: its typical price, its main axis and the values that make sense there,
    its kinds of product.
    """

    price: float
    axis: str
    values: list[str]
    leaves: Words


class Department(NamedTuple):
    """Sections that share axes; `used_up`: its goods are bought again and again."""

    used_up: bool
    axes: list[str]
    sections: dict[str, Section]


def read_departments(text: str) -> dict[str, Department]:
    """Departments stand at the left margin, their sections are indented by 2, the leaves of a
    section by 4.
    """
    departments: dict[str, Department] = {}
    sections: dict[str, Section] = {}
    leaves: Words = {}
    for line in text.strip("\n").splitlines():
        name, _, rest = line.strip().partition(": ")
        if line.startswith("    "):
            leaves.update(read_words(line))
        elif line.startswith("  "):
            price, axis, *values = rest.split()
            leaves = {}
            sections[name] = Section(float(price), axis, values, leaves)
        else:
            used_up, *axes = rest.split()
            sections = {}
            departments[name] = Department(used_up == "again", axes, sections)
    return departments


AXES: dict[str, Words] = {
    "colour": read_words("""
        black = black, jet black; white = white, ivory; grey = grey, charcoal;
        navy = navy, dark blue, midnight blue;
        blue = blue, sky blue; green = green, emerald; olive = olive, khaki; red = red, scarlet;
        burgundy = burgundy, wine red; pink = pink, rose; yellow = yellow, mustard;
        brown = brown, tan, camel
    """),
    "style": read_words("""
        minimalist = minimalist, clean, simple; classic = classic, timeless, traditional;
        rustic = rustic, farmhouse, country; vintage = vintage, retro;
        sporty = sporty, athletic, active;
        industrial = industrial, urban; bohemian = bohemian, boho; luxury = luxury, premium, deluxe
    """),
    "pattern": read_words("""
        plain = plain, solid; striped = striped, stripe; dotted = dotted, polka dot;
        checked = checked, plaid, tartan;
        floral = floral, flowery
    """),
    "material": read_words("""
        cotton = cotton; wool = wool, merino; linen = linen, flax; silk = silk, satin;
        leather = leather, hide;
        denim = denim, jeans fabric; nylon = nylon, ripstop; canvas = canvas;
        fleece = fleece, sherpa;
        suede = suede, nubuck; rubber = rubber; steel = steel, stainless steel;
        iron = iron, cast iron;
        copper = copper; aluminium = aluminium, alloy; brass = brass; ceramic = ceramic, stoneware;
        porcelain = porcelain, china; glass = glass; oak = oak, oak wood;
        walnut = walnut, walnut wood;
        bamboo = bamboo; rattan = rattan, wicker; marble = marble, stone; velvet = velvet, plush;
        silicone = silicone;
        plastic = plastic, resin; carbon = carbon, carbon fibre; paper = paper, cardboard;
        foam = foam
    """),
    "flavour": read_words("""
        chocolate = chocolate, cocoa; vanilla = vanilla; caramel = caramel, toffee;
        hazelnut = hazelnut, filbert;
        lemon = lemon, citrus; mint = mint, peppermint; berry = berry, forest fruit;
        salted = salted, sea salt;
        smoked = smoked, smoky; chicken = chicken, poultry; salmon = salmon, fish; beef = beef
    """),
    "diet": read_words("""
        organic = organic, bio; vegan = vegan, plant based; sugar-free = sugar free, no added sugar;
        gluten-free = gluten free, grain free; fair-trade = fair trade, ethical; regular = regular
    """),
    "scent": read_words("""
        lavender = lavender; citrus = citrus, lemon; sandalwood = sandalwood, woody;
        rose = rose, floral;
        coconut = coconut, tropical; unscented = unscented, fragrance free; aloe = aloe, aloe vera;
        cedar = cedar, forest
    """),
    "size": read_words("""
        small = small, S, compact; medium = medium, M; large = large, L, big;
        extra-large = extra large, XL;
        set = set of 4, 4 pack
    """),
}  # fmt: skip
# how much each axis moves a shopper who cares
TASTE = {
    "brand": 1.0, "colour": 1.0, "style": 1.0, "flavour": 0.9, "scent": 0.9, "diet": 0.8,
    "material": 0.7,
    "pattern": 0.7, "size": 0.2,
}  # fmt: skip
UNSAID = ("plain", "regular")  # nobody mentions these

DEPARTMENTS = read_departments("""
Clothing: once colour style pattern size
  Outerwear: 95 material wool nylon leather fleece denim
    Jackets = jacket, windbreaker; Coats = coat, overcoat; Vests = vest, gilet;
    Parkas = parka, anorak
  Tops: 28 material cotton linen silk wool
    Shirts = shirt, button up; T-Shirts = t-shirt, tee; Sweaters = sweater, jumper, pullover
    Hoodies = hoodie, hooded sweatshirt
  Bottoms: 42 material denim cotton linen wool
    Trousers = trousers, pants, slacks; Shorts = shorts, bermudas; Skirts = skirt;
    Leggings = leggings, tights
  Accessories: 20 material wool silk leather cotton
    Scarves = scarf, shawl; Hats = hat, beanie, cap; Belts = belt; Gloves = gloves, mittens
Pantry: again colour diet size
  Drinks: 11 flavour vanilla caramel hazelnut lemon mint berry
    Coffee = coffee, coffee beans; Tea = tea, infusion; Syrups = syrup; Juices = juice, nectar
  Snacks: 6 flavour chocolate caramel hazelnut salted berry smoked
    Biscuits = biscuits, cookies; Crisps = crisps, chips; Nuts = nuts, trail mix;
    Bars = bar, cereal bar
  Dog: 22 flavour chicken salmon beef
    Dog Food = dog food, kibble for dogs; Dog Treats = dog treats, dog snacks;
    Puppy Food = puppy food
    Dog Chews = dog chew, chew stick
  Cat: 17 flavour chicken salmon beef
    Cat Food = cat food, kibble for cats; Cat Treats = cat treats, cat snacks;
    Kitten Food = kitten food
    Wet Cat Food = wet cat food, cat pouches
Kitchen: once colour style pattern size
  Cookware: 48 material steel iron copper aluminium
    Frying Pans = frying pan, skillet; Saucepans = saucepan, pot; Casseroles = casserole, dutch oven
    Woks = wok, stir fry pan
  Tableware: 24 material ceramic porcelain glass bamboo
    Mugs = mug, coffee cup; Plates = plate, dinner plate; Bowls = bowl, serving dish
    Tumblers = tumbler, drinking glass
  Appliances: 80 material steel plastic glass aluminium
    Kettles = kettle, water boiler; Toasters = toaster; Blenders = blender, smoothie maker
    Coffee Machines = coffee machine, espresso maker
  Food Storage: 18 material glass plastic silicone bamboo
    Jars = jar, canister; Lunch Boxes = lunch box, bento box; Bottles = bottle, flask
    Bread Bins = bread bin, bread box
Home: once colour style pattern size
  Seating: 160 material oak walnut velvet leather rattan
    Armchairs = armchair, easy chair; Stools = stool, bar stool; Dining Chairs = dining chair
    Sofas = sofa, couch
  Tables: 140 material oak walnut glass marble steel
    Desks = desk, writing table; Coffee Tables = coffee table; Side Tables = side table, end table
    Nightstands = nightstand, bedside table
  Lighting: 55 material brass steel glass rattan ceramic
    Floor Lamps = floor lamp; Table Lamps = table lamp, desk light;
    Pendants = pendant light, hanging lamp
    Lanterns = lantern
  Textiles: 35 material cotton linen wool velvet
    Cushions = cushion, throw pillow; Blankets = blanket, throw; Rugs = rug, carpet;
    Curtains = curtain, drapes
Electronics: once colour style pattern size
  Audio: 85 material plastic aluminium leather
    Headphones = headphones, headset; Earbuds = earbuds, in ear headphones;
    Speakers = speaker, loudspeaker
    Radios = radio, tuner
  Computing: 60 material plastic aluminium
    Keyboards = keyboard; Computer Mice = mouse, computer mouse; Monitors = monitor, screen;
    Webcams = webcam
  Phone Accessories: 19 material silicone leather plastic
    Phone Cases = phone case, phone cover; Chargers = charger, power adapter; Cables = cable, cord
    Power Banks = power bank, portable battery
  Wearables: 120 material silicone leather steel
    Smart Watches = smart watch; Fitness Trackers = fitness tracker, activity band
    Watch Straps = watch strap, watch band; Smart Rings = smart ring
Beauty: again colour style size
  Skin Care: 18 scent lavender rose aloe unscented coconut
    Face Creams = face cream, moisturiser; Cleansers = cleanser, face wash; Serums = serum
    Sunscreens = sunscreen, sun cream
  Hair Care: 12 scent coconut citrus aloe lavender
    Shampoos = shampoo; Conditioners = conditioner; Hair Oils = hair oil
    Hair Masks = hair mask, hair treatment
  Bath: 10 scent lavender citrus sandalwood rose unscented
    Soaps = soap, soap bar; Shower Gels = shower gel, body wash; Bath Salts = bath salt
    Hand Creams = hand cream, hand lotion
  Fragrance: 45 scent sandalwood rose citrus cedar
    Perfumes = perfume, eau de parfum; Candles = candle, scented candle
    Room Sprays = room spray, air freshener; Diffusers = diffuser
Outdoors: once colour style pattern size
  Camping: 75 material nylon canvas aluminium
    Tents = tent, shelter; Sleeping Bags = sleeping bag; Camp Stoves = camp stove, camping cooker
    Hammocks = hammock
  Cycling: 38 material carbon aluminium nylon rubber
    Helmets = helmet, bike helmet; Bike Lights = bike light; Bike Locks = bike lock
    Panniers = pannier, bike bag
  Fitness: 30 material rubber foam steel cotton
    Yoga Mats = yoga mat, exercise mat; Dumbbells = dumbbell, hand weight
    Resistance Bands = resistance band, exercise band; Foam Rollers = foam roller
  Water Sports: 48 material nylon foam silicone rubber
    Swim Goggles = swim goggles; Wetsuits = wetsuit; Dry Bags = dry bag, waterproof sack;
    Paddles = paddle, oar
Shoes and Bags: once colour style pattern size
  Shoes: 70 material leather suede canvas nylon
    Sneakers = sneakers, trainers; Loafers = loafers, slip ons; Sandals = sandals
    Slippers = slippers, house shoes
  Boots: 115 material leather suede rubber
    Ankle Boots = ankle boots; Hiking Boots = hiking boots, walking boots;
    Rain Boots = rain boots, wellingtons
    Winter Boots = winter boots, snow boots
  Bags: 65 material leather canvas nylon suede
    Backpacks = backpack, rucksack; Handbags = handbag, purse; Tote Bags = tote bag, shopper
    Messenger Bags = messenger bag, satchel
  Travel: 88 material nylon leather plastic canvas
    Suitcases = suitcase, trolley; Duffel Bags = duffel bag, holdall;
    Wash Bags = wash bag, toiletry bag
    Wallets = wallet
""")

PROMISES = (
    "Easy to look after.", "A gift that is used every day.", "Made to last for years.",
    "Tested by our own customers.",
    "Ships in recycled packaging.", "Designed for small spaces.", "Two year guarantee.",
    "New this season.",
    "A favourite of regular customers.", "Light and practical.",
)  # fmt: skip
ONSETS = (
    "Nor", "Cal", "Bel", "Tor", "Ash", "Har", "Mon", "Lin", "Vel", "Ost", "Kel", "Mar", "Fen",
    "Sol", "Dra", "Wil", "Pel",
    "Gran", "Hol", "Bry",
)  # fmt: skip
CODAS = (
    "vik", "der", "mont", "wood", "ford", "ella", "ano", "ton", "mere", "holm", "era", "ley", "by",
    "quist", "den", "ini",
    "stad", "wick", "ora", "sen",
)  # fmt: skip
