"""Functions of everyday services and what people say when they want them called: the tables behind `tool_calls`.

A parameter is drawn by a function of the random generator, which gives the value and how it is said. Names, phrases and
values were written for this project.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from musespark.chat.messages import Tool
from musespark.evals.generated.sample import Rng, pick

Drawn = tuple[Any, str]  # the argument, and how it is said
CITIES = (
    "Paris",
    "London",
    "Rome",
    "Berlin",
    "Madrid",
    "Vienna",
    "Oslo",
    "Tokyo",
    "Boston",
    "Dublin",
    "Prague",
    "Lima",
    "Athens",
    "Cairo",
    "Delhi",
    "Lisbon",
    "New York",
    "San Francisco",
    "Mexico City",
    "Cape Town",
)
PEOPLE = ("Ann", "Ben", "Carla", "David", "Emma", "Felix", "Grace", "Henry", "Maria", "Noah")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
THINGS = (
    "milk",
    "bread",
    "a blue pen",
    "two tickets",
    "green tea",
    "a lamp",
    "running shoes",
    "a winter coat",
    "eggs",
    "rice",
)
TOPICS = (
    "space travel",
    "football",
    "old castles",
    "jazz",
    "cooking",
    "electric cars",
    "robots",
    "gardening",
    "chess",
    "whales",
)
ROOMS = ("kitchen", "bedroom", "bathroom", "living room", "garage", "office")
LANGUAGES = ("French", "German", "Spanish", "Italian", "Japanese", "Polish")
WORDS = ("hello", "good night", "thank you", "where is the station", "see you soon", "happy birthday", "I am hungry")
CURRENCIES = ("USD", "EUR", "GBP", "JPY", "CHF")


def among(options: tuple[str, ...]) -> Callable[[Rng], Drawn]:
    def draw(rng: Rng) -> Drawn:
        value = pick(options, rng)
        return value, value

    return draw


def between(low: int, high: int) -> Callable[[Rng], Drawn]:
    def draw(rng: Rng) -> Drawn:
        value = int(rng.integers(low, high + 1))
        return value, str(value)

    return draw


def a_time(rng: Rng) -> Drawn:
    hour, minute = int(rng.integers(0, 24)), int(rng.integers(0, 12)) * 5
    return f"{hour:02}:{minute:02}", f"{hour}:{minute:02}"


def on_or_off(rng: Rng) -> Drawn:
    return pick(((True, "on"), (False, "off")), rng)


@dataclass(frozen=True, slots=True)
class Function:
    """`asks` hold the required parameters in braces; `more` are optional ones with the words that add them."""

    name: str
    description: str
    schema: Mapping[str, Mapping[str, Any]]
    draws: Mapping[str, Callable[[Rng], Drawn]]
    asks: tuple[str, ...]
    result: Callable[[Rng], Drawn] = field(default=among(("done",)))
    answers: str = "{result}"  # what the assistant says of the result
    more: Mapping[str, str] = field(default_factory=dict)

    @property
    def tool(self) -> Tool:
        required = [name for name in self.schema if name not in self.more]
        parameters = {"type": "object", "properties": dict(self.schema), "required": required}
        return Tool(self.name, self.description, parameters)


def _text(description: str, options: tuple[str, ...] = ()) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string", "description": description}
    return schema | {"enum": list(options)} if options else schema


def _whole(description: str) -> dict[str, Any]:
    return {"type": "integer", "description": description}


FUNCTIONS = (
    Function(
        "get_weather",
        "Current weather of a city",
        {"city": _text("Name of the city"), "unit": _text("Unit", ("celsius", "fahrenheit"))},
        {"city": among(CITIES), "unit": among(("celsius", "fahrenheit"))},
        (
            "What is the weather in {city}?",
            "How is the weather in {city}",
            "Weather in {city}, please",
            "Is it warm in {city}?",
        ),
        lambda rng: (
            {"degrees": (d := int(rng.integers(-5, 36))), "sky": (s := pick(("clear", "cloudy", "rainy"), rng))},
            f"{d} degrees and {s}",
        ),
        "In {city} it is {result}.",
        {"unit": " in {unit}"},
    ),
    Function(
        "set_timer",
        "Start a timer",
        {"minutes": _whole("How long, in minutes")},
        {"minutes": between(1, 90)},
        ("Set a timer for {minutes} minutes.", "Start a {minutes} minute timer", "Wake me in {minutes} minutes"),
        answers="The timer is set for {minutes} minutes.",
    ),
    Function(
        "set_alarm",
        "Set an alarm",
        {"time": _text("Time of day, HH:MM"), "day": _text("Day of the week")},
        {"time": a_time, "day": among(DAYS)},
        ("Set an alarm for {time}.", "Wake me up at {time}", "I need an alarm at {time}"),
        answers="Your alarm is set for {time}.",
        more={"day": " on {day}"},
    ),
    Function(
        "send_message",
        "Send a text message to a person",
        {"recipient": _text("Name of the person"), "text": _text("The message")},
        {
            "recipient": among(PEOPLE),
            "text": among(
                ("I am late", "call me", "see you at noon", "the train is here", "dinner is ready", "good luck")
            ),
        },
        ("Tell {recipient}: {text}", "Send {recipient} the message: {text}", "Write to {recipient}: {text}"),
        answers="I sent your message to {recipient}.",
    ),
    Function(
        "play_music",
        "Play music of a kind",
        {"genre": _text("Kind of music")},
        {"genre": among(("jazz", "rock", "classical", "pop", "folk", "blues"))},
        ("Play some {genre} music.", "I want to hear {genre}", "Put on {genre}, please"),
        answers="Here is some {genre}.",
    ),
    Function(
        "search_web",
        "Search the web",
        {"query": _text("What to search for"), "limit": _whole("Most results")},
        {"query": among(TOPICS), "limit": between(2, 10)},
        ("Search the web for {query}.", "Find pages about {query}", "Look up {query}"),
        among(("nothing new", "three good pages", "one long article")),
        "I found {result} about {query}.",
        {"limit": ", at most {limit} results"},
    ),
    Function(
        "translate",
        "Translate a text",
        {"text": _text("The text"), "language": _text("Target language")},
        {"text": among(WORDS), "language": among(LANGUAGES)},
        ("Translate '{text}' into {language}.", "How do you say '{text}' in {language}?"),
        answers="I have the translation into {language}.",
    ),
    Function(
        "convert_currency",
        "Convert an amount of money",
        {"amount": _whole("How much"), "source": _text("Currency code"), "target": _text("Currency code")},
        {"amount": between(1, 900), "source": among(CURRENCIES), "target": among(CURRENCIES)},
        ("Convert {amount} {source} to {target}.", "How much is {amount} {source} in {target}?"),
        between(1, 999),
        "{amount} {source} are {result} {target}.",
    ),
    Function(
        "set_light",
        "Switch a light",
        {"room": _text("The room"), "on": {"type": "boolean", "description": "True for on"}},
        {"room": among(ROOMS), "on": on_or_off},
        ("Turn {on} the light in the {room}.", "Light {on} in the {room}", "Please switch the {room} light {on}"),
        answers="The light in the {room} is {on}.",
    ),
    Function(
        "set_temperature",
        "Set the heating of a room",
        {"room": _text("The room"), "degrees": _whole("Degrees Celsius")},
        {"room": among(ROOMS), "degrees": between(15, 26)},
        ("Set the {room} to {degrees} degrees.", "Make the {room} {degrees} degrees warm"),
        answers="The {room} will have {degrees} degrees.",
    ),
    Function(
        "add_to_list",
        "Add something to the shopping list",
        {"item": _text("What to buy")},
        {"item": among(THINGS)},
        ("Add {item} to my list.", "Put {item} on the shopping list", "I need to buy {item}"),
        answers="I added {item} to your list.",
    ),
    Function(
        "create_event",
        "Put an event into the calendar",
        {"title": _text("What it is"), "day": _text("Day of the week"), "time": _text("Start, HH:MM")},
        {
            "title": among(("lunch", "meeting", "dentist", "party", "training", "dinner")),
            "day": among(DAYS),
            "time": a_time,
        },
        ("Plan {title} on {day} at {time}.", "Put {title} in my calendar for {day} at {time}"),
        answers="{title} is in your calendar.",
    ),
    Function(
        "find_restaurant",
        "Find restaurants in a city",
        {"city": _text("Name of the city"), "cuisine": _text("Kind of food")},
        {"city": among(CITIES), "cuisine": among(("Italian", "Indian", "Thai", "Greek", "Mexican", "French"))},
        ("Find a {cuisine} restaurant in {city}.", "Where can I eat {cuisine} food in {city}?"),
        between(1, 20),
        "There are {result} {cuisine} restaurants in {city}.",
    ),
    Function(
        "book_train",
        "Book a train ticket",
        {"source": _text("From"), "target": _text("To"), "day": _text("Day of the week")},
        {"source": among(CITIES), "target": among(CITIES), "day": among(DAYS)},
        (
            "Book a train from {source} to {target} on {day}.",
            "I need a train ticket from {source} to {target} for {day}",
        ),
        answers="Your train to {target} is booked.",
    ),
    Function(
        "get_time",
        "Current time in a city",
        {"city": _text("Name of the city")},
        {"city": among(CITIES)},
        ("What time is it in {city}?", "Tell me the time in {city}"),
        a_time,
        "In {city} it is {result}.",
    ),
    Function(
        "add_numbers",
        "Add two numbers",
        {"a": _whole("First number"), "b": _whole("Second number")},
        {"a": between(10, 9999), "b": between(10, 9999)},
        ("Add {a} and {b}.", "What is {a} plus {b}?", "{a} + {b} = ?"),
        between(20, 19998),
        "The result is {result}.",
    ),
    Function(
        "get_steps",
        "Steps walked on a day",
        {"day": _text("Day of the week")},
        {"day": among(DAYS)},
        ("How many steps did I walk on {day}?", "My steps on {day}?"),
        between(500, 20000),
        "On {day} you walked {result} steps.",
    ),
    Function(
        "log_weight",
        "Record the body weight",
        {"kilograms": _whole("Weight in kilograms")},
        {"kilograms": between(45, 120)},
        ("My weight is {kilograms} kilograms, please note it.", "Record {kilograms} kg as my weight"),
        answers="I recorded {kilograms} kilograms.",
    ),
    Function(
        "open_door",
        "Open or lock a door",
        {"door": _text("Which door"), "action": _text("What to do", ("open", "lock"))},
        {"door": among(("front door", "back door", "garden gate", "garage")), "action": among(("open", "lock"))},
        ("Please {action} the {door}.", "{action} the {door}"),
        answers="I did: {action} the {door}.",
    ),
    Function(
        "track_package",
        "Where a package is",
        {"number": _text("Tracking number")},
        {"number": lambda rng: ((n := f"PK{int(rng.integers(1000, 9999))}"), n)},
        ("Where is my package {number}?", "Track package {number}"),
        among(("on its way", "delivered", "at the station")),
        "Your package {number} is {result}.",
    ),
)
