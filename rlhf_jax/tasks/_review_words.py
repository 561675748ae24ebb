"""The words of the reviews: what there is to judge, and how good each word for it is (hidden from every model)."""

PLACES = {  # place -> what one can care about there
    "hotel": ("room", "bed", "staff", "price", "view", "food"),
    "inn": ("room", "bed", "food", "staff", "price", "garden"),
    "cafe": ("coffee", "food", "music", "service", "price", "light"),
    "restaurant": ("food", "service", "music", "price", "light", "view"),
    "bakery": ("bread", "coffee", "service", "price", "light", "staff"),
    "bookshop": ("collection", "coffee", "seat", "light", "staff", "price"),
    "museum": ("collection", "tour", "light", "staff", "price", "garden"),
    "castle": ("tour", "view", "path", "garden", "collection", "price"),
    "theater": ("seat", "music", "light", "staff", "price", "view"),
    "park": ("path", "view", "pool", "garden", "tour", "music"),
    "campsite": ("path", "view", "pool", "price", "staff", "garden"),
    "spa": ("pool", "room", "light", "music", "service", "price"),
}

PLACE_ADJECTIVES = ("", "small", "old", "new", "little", "busy", "famous", "hidden", "modern")

LOCATIONS = (
    "by the lake",
    "by the river",
    "by the sea",
    "near the station",
    "near the market",
    "near the bridge",
    "in the forest",
    "on the hill",
)

GENERIC = {  # fits everything
    "awful": -2.8,
    "terrible": -2.5,
    "bad": -1.7,
    "poor": -1.5,
    "disappointing": -1.35,
    "dull": -0.95,
    "plain": -0.45,
    "average": -0.15,
    "acceptable": 0.35,
    "decent": 0.7,
    "fine": 0.85,
    "nice": 1.15,
    "pleasant": 1.3,
    "good": 1.45,
    "lovely": 1.75,
    "great": 2.0,
    "fantastic": 2.35,
    "excellent": 2.45,
    "amazing": 2.5,
    "wonderful": 2.6,
    "superb": 2.7,
    "perfect": 2.8,
}

SPECIFIC = {  # says something only of some aspects
    "room": {"spacious": 1.75, "cosy": 1.5, "quiet": 1.4, "clean": 1.25, "dirty": -2.1, "cramped": -1.6, "noisy": -1.5},
    "bed": {"comfortable": 1.8, "soft": 1.4, "clean": 1.25, "lumpy": -1.8, "hard": -1.1, "narrow": -0.8},
    "food": {
        "delicious": 2.1,
        "tasty": 1.65,
        "fresh": 1.5,
        "bland": -1.2,
        "greasy": -1.55,
        "stale": -1.9,
        "cold": -1.0,
    },
    "coffee": {"rich": 1.6, "smooth": 1.45, "fresh": 1.5, "bitter": -1.3, "watery": -1.7, "cold": -1.0},
    "bread": {"crusty": 1.55, "fresh": 1.5, "warm": 1.2, "stale": -1.9, "dry": -1.4, "burnt": -2.0},
    "staff": {"attentive": 1.9, "helpful": 1.85, "friendly": 1.7, "polite": 1.35, "rude": -2.2, "careless": -1.75},
    "service": {"attentive": 1.9, "quick": 1.3, "polite": 1.35, "rude": -2.2, "slow": -1.15, "careless": -1.75},
    "price": {"fair": 1.5, "reasonable": 1.25, "low": 1.05, "unfair": -1.85, "steep": -1.45, "high": -1.05},
    "view": {"stunning": 2.15, "wide": 1.1, "clear": 1.2, "blocked": -1.65, "grey": -0.9, "narrow": -0.8},
    "garden": {"blooming": 1.7, "calm": 1.4, "shady": 1.0, "muddy": -1.25, "bare": -0.9, "overgrown": -1.05},
    "music": {"gentle": 1.35, "lively": 1.6, "soft": 1.4, "loud": -1.3, "shrill": -1.95},
    "light": {"warm": 1.2, "soft": 1.4, "natural": 1.65, "harsh": -1.5, "dim": -0.85},
    "tour": {"informative": 1.8, "lively": 1.6, "funny": 1.55, "boring": -1.8, "rushed": -1.6, "long": -0.65},
    "collection": {"rare": 1.7, "varied": 1.55, "rich": 1.6, "dusty": -1.25, "thin": -1.0, "boring": -1.8},
    "seat": {"comfortable": 1.8, "wide": 1.1, "soft": 1.4, "hard": -1.1, "narrow": -0.8, "cramped": -1.6},
    "path": {"shady": 1.0, "scenic": 1.75, "smooth": 1.45, "muddy": -1.25, "steep": -1.45, "overgrown": -1.05},
    "pool": {"clean": 1.25, "warm": 1.2, "sparkling": 1.9, "cold": -1.0, "dirty": -2.1, "crowded": -1.4},
}

MODIFIERS = {  # what an adjective's valence is multiplied with
    "not": -0.6,
    "hardly": -0.4,
    "slightly": 0.5,
    "fairly": 0.75,
    "rather": 0.85,
    "quite": 0.95,
    "truly": 1.15,
    "really": 1.2,
    "very": 1.3,
    "so": 1.35,
    "absolutely": 1.5,
    "extremely": 1.55,
}

HEAT = {  # how loud a word is; heat adds up over a review
    **dict.fromkeys(("fantastic", "excellent", "amazing", "wonderful", "superb", "perfect", "awful", "terrible"), 1.0),
    **dict.fromkeys(("absolutely", "extremely"), 1.0),
    **dict.fromkeys(("very", "so", "really", "truly"), 0.5),
}

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

DETAILS = ("we could see the {}", "the {} is close", "we walked to the {}")  # true only of the prompt's location
CLOSINGS = {"i would come again": 1, "i can recommend it": 1, "i would not come again": -1, "i cannot recommend it": -1}
FILLERS = tuple(f"i went there on a {day}" for day in DAYS)  # true, and of no use to a reader
CONNECTIVES = ("also", "but")  # of sentences; phrases are joined by "and", "but"

ASPECTS = tuple(SPECIFIC)
LANDMARKS = tuple(location.split()[-1] for location in LOCATIONS)


def vocabulary() -> tuple[str, ...]:
    """Every word of prompts and completions, once, in alphabetical order."""
    texts = [
        "review of the . i cared about and was",
        *PLACES,
        *PLACE_ADJECTIVES,
        *LOCATIONS,
        *ASPECTS,
        *GENERIC,
        *(adjective for adjectives in SPECIFIC.values() for adjective in adjectives),
        *MODIFIERS,
        *(detail.format("") for detail in DETAILS),
        *CLOSINGS,
        *FILLERS,
        *CONNECTIVES,
    ]
    return tuple(sorted({word for text in texts for word in text.split()}))
