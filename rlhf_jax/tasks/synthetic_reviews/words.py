"""The words of the reviews: what there is to judge, and how good each word for it is (hidden from
every model).
"""

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
    "awful": -2.2,
    "terrible": -2.0,
    "bad": -1.55,
    "poor": -1.35,
    "dull": -1.05,
    "plain": -0.75,
    "decent": 0.85,
    "fine": 1.0,
    "nice": 1.2,
    "pleasant": 1.35,
    "good": 1.5,
    "lovely": 1.7,
    "great": 1.85,
    "excellent": 2.3,
    "wonderful": 2.45,
    "superb": 2.6,
    "perfect": 2.75,
}

SPECIFIC = {  # says something of one aspect only; the aspects' lists share no word
    "room": {
        "spacious": 1.65,
        "cosy": 1.45,
        "quiet": 1.3,
        "dirty": -1.9,
        "cramped": -1.5,
        "noisy": -1.3,
    },
    "food": {
        "delicious": 1.8,
        "tasty": 1.55,
        "fresh": 1.35,
        "stale": -1.8,
        "greasy": -1.45,
        "bland": -1.15,
    },
    "staff": {
        "attentive": 1.75,
        "helpful": 1.6,
        "friendly": 1.5,
        "rude": -1.95,
        "careless": -1.65,
        "slow": -1.1,
    },
    "price": {
        "fair": 1.45,
        "reasonable": 1.25,
        "low": 1.1,
        "unfair": -1.75,
        "steep": -1.4,
        "high": -1.05,
    },
    "view": {
        "stunning": 1.9,
        "clear": 1.3,
        "wide": 1.15,
        "blocked": -1.6,
        "grey": -1.0,
        "narrow": -0.85,
    },
    "garden": {
        "blooming": 1.6,
        "calm": 1.4,
        "shady": 1.05,
        "muddy": -1.3,
        "overgrown": -1.1,
        "bare": -0.9,
    },
    "music": {
        "lively": 1.55,
        "soft": 1.35,
        "gentle": 1.25,
        "shrill": -1.85,
        "loud": -1.35,
        "flat": -1.0,
    },
    "coffee": {
        "rich": 1.6,
        "smooth": 1.45,
        "strong": 1.15,
        "burnt": -1.85,
        "watery": -1.6,
        "bitter": -1.25,
    },
    "tour": {
        "informative": 1.7,
        "funny": 1.5,
        "varied": 1.4,
        "boring": -1.7,
        "rushed": -1.35,
        "long": -0.8,
    },
}

MODIFIERS = {  # what an adjective's valence is multiplied with
    "not": -0.6,
    "slightly": 0.7,
    "fairly": 0.85,
    "quite": 0.95,
    "really": 1.1,
    "very": 1.2,
    "so": 1.25,
    "absolutely": 1.4,
    "extremely": 1.5,
}

HEAT = {  # how loud a word is; heat adds up over a review
    **dict.fromkeys(("excellent", "wonderful", "superb", "perfect", "awful", "terrible"), 1.0),
    **dict.fromkeys(("absolutely", "extremely"), 1.0),
    **dict.fromkeys(("very", "so", "really"), 0.5),
}

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")

DETAILS = (
    "we could see the {}",
    "we walked to the {}",
    "it is close to the {}",
)  # true only of the prompt's location
CLOSINGS = {
    "i would come again": 1,
    "i can recommend it": 1,
    "i would not come again": -1,
    "i cannot recommend it": -1,
}
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
