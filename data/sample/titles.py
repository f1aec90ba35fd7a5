"""Titles of the sample catalogue in four scripts, from a small vocabulary; they say only what can be seen."""

# Grammatical gender decides the ending of the colour in Russian and Greek: m, f, n, p (plural).
_ENGLISH = {
    "COATS": "Coat",
    "SHIRTS": "Shirt",
    "DRESSES": "Dress",
    "BAGS": "Bag",
    "TROUSERS": "Trousers",
    "SCARVES": "Scarf",
    "SHOES": "Shoes",
    "SKIRTS": "Skirt",
    "HATS": "Hat",
    "UMBRELLAS": "Umbrella",
}
_RUSSIAN = {
    "COATS": ("пальто", "n"),
    "SHIRTS": ("рубашка", "f"),
    "DRESSES": ("платье", "n"),
    "BAGS": ("сумка", "f"),
    "TROUSERS": ("брюки", "p"),
    "SCARVES": ("шарф", "m"),
    "SHOES": ("туфли", "p"),
    "SKIRTS": ("юбка", "f"),
    "HATS": ("шляпа", "f"),
    "UMBRELLAS": ("зонт", "m"),
}
_GREEK = {
    "COATS": ("παλτό", "n"),
    "SHIRTS": ("πουκάμισο", "n"),
    "DRESSES": ("φόρεμα", "n"),
    "BAGS": ("τσάντα", "f"),
    "TROUSERS": ("παντελόνι", "n"),
    "SCARVES": ("κασκόλ", "n"),
    "SHOES": ("παπούτσια", "p"),
    "SKIRTS": ("φούστα", "f"),
    "HATS": ("καπέλο", "n"),
    "UMBRELLAS": ("ομπρέλα", "f"),
}
_CHINESE = {
    "COATS": "大衣",
    "SHIRTS": "衬衫",
    "DRESSES": "连衣裙",
    "BAGS": "手袋",
    "TROUSERS": "长裤",
    "SCARVES": "围巾",
    "SHOES": "鞋",
    "SKIRTS": "半身裙",
    "HATS": "帽子",
    "UMBRELLAS": "雨伞",
}

_ENGLISH_COLOURS = {
    "black": "Black",
    "red": "Red",
    "yellow": "Yellow",
    "green": "Green",
    "blue": "Blue",
    "pink": "Pink",
    "ecru": "Écru",
    "grey": "Grey",
}
_RUSSIAN_ENDINGS = {"m": "ый", "f": "ая", "n": "ое", "p": "ые"}
_RUSSIAN_SOFT_ENDINGS = {"m": "ий", "f": "яя", "n": "ее", "p": "ие"}
_RUSSIAN_STEMS = {
    "black": "Чёрн",
    "red": "Красн",
    "yellow": "Жёлт",
    "green": "Зелён",
    "blue": "Син",
    "pink": "Розов",
    "ecru": "Кремов",
    "grey": "Сер",
}
_GREEK_ENDINGS = {"f": "η", "n": "ο", "p": "α"}
_GREEK_STEMS = {"black": "Μαύρ", "red": "Κόκκιν", "yellow": "Κίτριν", "green": "Πράσιν"}
_GREEK_FIXED = {"blue": "Μπλε", "pink": "Ροζ", "ecru": "Εκρού", "grey": "Γκρι"}
_CHINESE_COLOURS = {
    "black": "黑色",
    "red": "红色",
    "yellow": "黄色",
    "green": "绿色",
    "blue": "蓝色",
    "pink": "粉色",
    "ecru": "米色",
    "grey": "灰色",
}

# fabric -> how English, Russian, Greek and Chinese name it
_FABRICS = {
    "plain cotton": ("", "Cotton", "из хлопка", "από βαμβάκι", "棉质"),
    "striped linen": ("Striped", "Linen", "из льна", "από λινό", "亚麻"),
    "checked wool": ("Checked", "Wool", "из шерсти", "από μαλλί", "羊毛"),
    "dotted silk": ("Dotted", "Silk", "из шёлка", "από μετάξι", "真丝"),
}


def title(category: str, fabric: str, colour: str, script: str) -> str:
    """The title of an item in a script: latin (English), cyrillic (Russian), greek or han (Chinese)."""
    pattern, english, russian, greek, chinese = _FABRICS[fabric]
    if script == "cyrillic":
        noun, gender = _RUSSIAN[category]
        endings = _RUSSIAN_SOFT_ENDINGS if colour == "blue" else _RUSSIAN_ENDINGS
        return f"{_RUSSIAN_STEMS[colour]}{endings[gender]} {noun} {russian}"
    if script == "greek":
        noun, gender = _GREEK[category]
        word = _GREEK_FIXED.get(colour) or f"{_GREEK_STEMS[colour]}{_GREEK_ENDINGS[gender]}"
        return f"{word} {noun} {greek}"
    if script == "han":
        return f"{_CHINESE_COLOURS[colour]}{chinese}{_CHINESE[category]}"
    return f"{pattern} {_ENGLISH_COLOURS[colour]} {english} {_ENGLISH[category]}".strip()
