"""The rows of the sample catalogue: what is drawn, what it costs, and how the catalogue writes it down."""

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from data.sample import titles

COLUMNS = (
    "website_name",
    "competence_date",
    "country_code",
    "currency_code",
    "brand",
    "category1_code",
    "category2_code",
    "category3_code",
    "product_code",
    "title",
    "itemurl",
    "imageurl",
    "full_price",
    "price",
    "full_price_eur",
    "price_eur",
    "flg_discount",
)

# category -> (group, share of the rows in per cent, price of a plain one without trimming in US dollars)
CATEGORIES = {
    "COATS": ("CLOTHING", 19, 1300.0),
    "SHIRTS": ("CLOTHING", 14, 380.0),
    "DRESSES": ("CLOTHING", 13, 950.0),
    "BAGS": ("ACCESSORIES", 12, 1100.0),
    "TROUSERS": ("CLOTHING", 10, 550.0),
    "SCARVES": ("ACCESSORIES", 9, 290.0),
    "SHOES": ("ACCESSORIES", 8, 700.0),
    "SKIRTS": ("CLOTHING", 6, 450.0),
    "HATS": ("ACCESSORIES", 5, 240.0),
    "UMBRELLAS": ("ACCESSORIES", 4, 190.0),
}
# fabric -> (share in per cent, price factor); a fabric is a pattern and a material that always go together
FABRICS = {"plain cotton": (34, 1.0), "striped linen": (26, 1.3), "checked wool": (22, 1.7), "dotted silk": (18, 2.2)}
# trimming -> (share in per cent, price factor)
TRIMS = {"none": (50, 1.0), "ribbon": (30, 1.25), "gold": (20, 1.6)}
COLOURS = {"black": 15, "red": 14, "yellow": 11, "green": 13, "blue": 15, "pink": 11, "ecru": 11, "grey": 10}
# script of the title -> (share in per cent, country); the picture shows it by a label in a corner
SCRIPTS = {"latin": (92, "USA"), "cyrillic": (3, "KAZ"), "greek": (2.5, "GRC"), "han": (2.5, "CHN")}

PRICE_NOISE = 0.03
EUROS_A_DOLLAR = 0.92
# A prime just under 9e7: multiplying by a unit modulo a prime gives every row a product code of its own.
CODE_PRIME = 89_999_999
CODE_STEP = 48_271_597


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What a row is about: all that its picture shows and its price follows from."""

    number: int
    product_code: int
    category: str
    fabric: str
    colour: str
    trim: str
    script: str
    full_price: float


def generator(seed: int, number: int, purpose: int) -> np.random.Generator:
    """The random numbers of one row for one purpose; a function of its arguments alone."""
    return np.random.default_rng([seed, number, purpose])


def draw_item(seed: int, number: int) -> Item:
    """What row `number` (from 0) of the sample of `seed` is about."""
    rng = generator(seed, number, 0)
    category = _choose(rng, {name: values[1] for name, values in CATEGORIES.items()})
    fabric = _choose(rng, {name: values[0] for name, values in FABRICS.items()})
    trim = _choose(rng, {name: values[0] for name, values in TRIMS.items()})
    price = CATEGORIES[category][2] * FABRICS[fabric][1] * TRIMS[trim][1]
    return Item(
        number=number,
        product_code=10_000_000 + (number + 1 + seed * 7_919_017) * CODE_STEP % CODE_PRIME,
        category=category,
        fabric=fabric,
        colour=_choose(rng, COLOURS),
        trim=trim,
        script=_choose(rng, {name: values[0] for name, values in SCRIPTS.items()}),
        full_price=float(round(price * (1 + PRICE_NOISE * rng.standard_normal()) / 10) * 10),
    )


def catalogue_row(seed: int, item: Item, imageurl: str) -> dict[str, str | int | float]:
    """The seventeen columns of the catalogue, in their order, for one item.

    imageurl: the picture's path relative to the catalogue, "" or "None".
    """
    rng = generator(seed, item.number, 1)
    audience = ("WOMEN", "MEN", "CHILDREN")[rng.choice(3, p=(0.5, 0.4, 0.1))]
    discount = float(rng.choice((0.0, 0.3, 0.5), p=(0.8, 0.12, 0.08)))
    price = round(item.full_price * (1 - discount), 2)
    group = CATEGORIES[item.category][0]
    country = SCRIPTS[item.script][1]
    day = np.datetime64("2024-01-01") + int(rng.integers(0, 366))
    return {
        "website_name": "Harbour & Hill",
        "competence_date": str(day),
        "country_code": country,
        "currency_code": "USD",
        "brand": "Harbour & Hill",
        "category1_code": audience,
        "category2_code": group,
        "category3_code": item.category,
        "product_code": item.product_code,
        "title": titles.title(item.category, item.fabric, item.colour, item.script),
        "itemurl": f"https://shop.example/{country.lower()}/{item.category.lower()}/p{item.product_code}",
        "imageurl": imageurl,
        "full_price": item.full_price,
        "price": price,
        "full_price_eur": round(item.full_price * EUROS_A_DOLLAR, 2),
        "price_eur": round(price * EUROS_A_DOLLAR, 2),
        "flg_discount": int(discount > 0),
    }


def _choose(rng: np.random.Generator, shares: Mapping[str, float]) -> str:
    bounds = list(accumulate(shares.values()))
    return list(shares)[bisect_right(bounds, rng.random() * bounds[-1])]
