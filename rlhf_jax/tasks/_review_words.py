"""The words of the reviews: what there is to judge, and how good each word for it is (hidden from every model)."""

PLACES = {  # place -> what one can care about there
    "hotel": ("room", "food", "staff", "price", "view", "garden"),
    "inn": ("room", "food", "staff", "price", "music", "garden"),
    "cafe": ("coffee", "food", "music", "staff", "price", "view"),
    "restaurant": ("food", "staff", "music", "price", "view", "garden"),
    "museum": ("tour", "staff", "price", "garden", "coffee", "view"),
    "castle": ("tour", "view", "garden", "price", "staff", "music"),
    "theater": ("music", "staff", "price", "coffee", "view", "food"),
    "park": ("garden", "view", "music", "tour", "food", "coffee"),
    "palace": ("tour", "garden", "room", "view", "music", "staff"),
    "winery": ("tour", "food", "view", "staff", "price", "garden"),
    "spa": ("room", "staff", "price", "music", "garden", "food"),
    "resort": ("room", "food", "coffee", "staff", "tour", "view"),
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
    "awful": -2.6,
    "terrible": -2.3,
    "bad": -1.6,
    "poor": -1.3,
    "dull": -0.9,
    "plain": -0.4,
    "decent": 0.6,
    "fine": 0.85,
    "nice": 1.15,
    "pleasant": 1.35,
    "good": 1.5,
    "lovely": 1.8,
    "great": 2.05,
    "excellent": 2.4,
    "wonderful": 2.55,
    "superb": 2.7,
    "perfect": 2.85,
}

SPECIFIC = {  # says something of one aspect only; the aspects' lists share no word
    "room": {"spacious": 1.75, "cosy": 1.5, "quiet": 1.4, "dirty": -2.1, "cramped": -1.6, "noisy": -1.45},
    "food": {"delicious": 2.1, "tasty": 1.65, "fresh": 1.45, "stale": -1.9, "greasy": -1.55, "bland": -1.2},
    "staff": {"attentive": 1.95, "helpful": 1.85, "friendly": 1.7, "rude": -2.2, "careless": -1.75, "slow": -1.1},
    "price": {"fair": 1.55, "reasonable": 1.25, "low": 1.05, "unfair": -1.85, "steep": -1.5, "high": -1.05},
    "view": {"stunning": 2.15, "clear": 1.3, "wide": 1.1, "blocked": -1.65, "grey": -0.95, "narrow": -0.8},
    "garden": {"blooming": 1.75, "calm": 1.4, "shady": 1.0, "muddy": -1.3, "overgrown": -1.05, "bare": -0.85},
    "music": {"lively": 1.6, "soft": 1.35, "gentle": 1.2, "shrill": -1.95, "loud": -1.35, "flat": -1.0},
    "coffee": {"rich": 1.7, "smooth": 1.45, "strong": 1.15, "watery": -1.7, "bitter": -1.3, "burnt": -2.0},
    "tour": {"informative": 1.9, "funny": 1.55, "varied": 1.4, "boring": -1.8, "rushed": -1.4, "long": -0.7},
}

MODIFIERS = {  # what an adjective's valence is multiplied with
    "not": -0.6,
    "slightly": 0.6,
    "fairly": 0.8,
    "quite": 0.95,
    "really": 1.15,
    "very": 1.25,
    "so": 1.3,
    "absolutely": 1.4,
    "extremely": 1.5,
}

HEAT = {  # how loud a word is; heat adds up over a review
    **dict.fromkeys(("excellent", "wonderful", "superb", "perfect", "awful", "terrible"), 1.0),
    **dict.fromkeys(("absolutely", "extremely"), 1.0),
    **dict.fromkeys(("very", "so", "really"), 0.5),
}

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

DETAILS = ("we could see the {}", "we walked to the {}", "it is close to the {}")  # true only of the prompt's location
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
