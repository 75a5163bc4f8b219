"""Tables behind `manners`: phrases and small common knowledge, written for this project.

Pairs are written "one = other" and separated by semicolons, to be read and extended easily.
"""

from __future__ import annotations


def _words(table: str) -> tuple[str, ...]:
    return tuple(table.split())


def _pairs(table: str) -> tuple[tuple[str, str], ...]:
    pairs = [entry.split(" = ") for entry in " ".join(table.split()).split("; ")]
    return tuple((one, other) for one, other in pairs)


NAMES = _words(
    """
    Ann Ben Carla David Emma Felix Grace Henry Ida Jack Kate Leo Maria Noah Olga Paul Rosa Sam Tina Tom Uma Victor
    Will Zoe Alice Bob John Lucy Peter Sara
    """
)

WORDS = _words(
    """
    apple hello banana river yes no tree house star moon blue green cat dog bird cheese music water orange sun table
    window garden friend happy world stone cloud fish book red lion paper summer winter bread train ship ok test
    good morning yellow king queen snow rain fire door flower horse milk lamp road hill pong
    """
)

COLOURS = _pairs(
    """
    the sky = blue; grass = green; snow = white; the sun = yellow; blood = red; coal = black; a banana = yellow; a
    lemon = yellow; a strawberry = red; a tomato = red; a carrot = orange; an orange = orange; chocolate = brown;
    milk = white; a leaf = green; the sea = blue; an elephant = grey; a cucumber = green; a cherry = red; an emerald
    = green; a ruby = red; a polar bear = white; a flamingo = pink; gold = yellow; the night = black; a fire engine
    = red
    """
)

OPPOSITES = _pairs(
    """
    hot = cold; big = small; up = down; day = night; black = white; good = bad; fast = slow; happy = sad; old =
    young; open = closed; left = right; rich = poor; wet = dry; hard = soft; light = dark; early = late; full =
    empty; high = low; long = short; strong = weak; true = false; yes = no; first = last; inside = outside; loud =
    quiet; near = far; clean = dirty; thick = thin; love = hate; begin = end; summer = winter; win = lose
    """
)

ANIMALS = _pairs(
    """
    cat = meow; dog = woof; cow = moo; sheep = baa; pig = oink; duck = quack; horse = neigh; lion = roar; frog =
    ribbit; bee = buzz; rooster = cock-a-doodle-doo; mouse = squeak; snake = hiss; crow = caw; wolf = howl; donkey =
    hee-haw; bird = tweet; hen = cluck
    """
)

PLURALS = _pairs(
    """
    cat = cats; dog = dogs; child = children; man = men; woman = women; foot = feet; tooth = teeth; mouse = mice;
    goose = geese; city = cities; leaf = leaves; box = boxes; tree = trees; fish = fish; sheep = sheep; knife =
    knives; book = books; baby = babies
    """
)

DEFINITIONS = (
    ("water", "a clear liquid that all living things need"),
    ("the sun", "the star at the centre of our solar system"),
    ("the moon", "the body that goes around the Earth"),
    ("a tree", "a tall plant with a trunk, branches and leaves"),
    ("a cat", "a small animal with soft fur that many people keep as a pet"),
    ("a dog", "an animal that many people keep as a pet and friend"),
    ("a computer", "a machine that follows instructions and works with data"),
    ("the heart", "the organ that pumps blood through the body"),
    ("the brain", "the organ that lets us think, feel and move"),
    ("rain", "water that falls from clouds in drops"),
    ("snow", "frozen water that falls from clouds in flakes"),
    ("a book", "a set of written pages that are bound together"),
    ("a river", "a long stream of water that flows to the sea or a lake"),
    ("an island", "a piece of land with water all around it"),
    ("a mountain", "a very high hill of rock and earth"),
    ("a school", "a place where children learn"),
    ("a doctor", "a person who helps sick people to get well"),
    ("a teacher", "a person who helps others to learn"),
    ("gravity", "the force that pulls things toward the Earth"),
    ("photosynthesis", "the way plants make food from light, water and carbon dioxide"),
    ("a cell", "the smallest living part of a plant or an animal"),
    ("an atom", "a very small part of matter"),
    ("energy", "the ability to do work"),
    ("a language", "a system of words that people use to speak and write"),
    ("music", "sound that is put together to be pleasant or to express something"),
    ("a friend", "a person whom you like and trust"),
    ("Python", "a programming language that is easy to read"),
    ("a neural network", "a program that learns from examples with many simple connected parts"),
    ("a language model", "a program that predicts the next word of a text"),
    ("the internet", "a network that connects computers all over the world"),
    ("blood", "the red liquid that carries oxygen through the body"),
    ("a vitamin", "a substance in food that the body needs in small amounts"),
    ("a democracy", "a form of government in which the people vote"),
    ("history", "the study of the past"),
    ("oxygen", "a gas in the air that we need to breathe"),
    ("an emoji", "a small picture that is used in messages"),
    ("artificial intelligence", "the building of machines that do things which need thinking"),
    ("love", "a strong feeling of care for someone"),
)

FACTS = (
    ("How many days are in a week?", "There are seven days in a week."),
    ("How many months are in a year?", "There are twelve months in a year."),
    ("How many hours are in a day?", "There are 24 hours in a day."),
    ("How many minutes are in an hour?", "There are 60 minutes in an hour."),
    ("How many days are in a year?", "There are 365 days in a year."),
    ("How many legs does a dog have?", "A dog has four legs."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("How many legs does a bird have?", "A bird has two legs."),
    ("How many fingers do I have?", "People have ten fingers."),
    ("How many eyes does a cat have?", "A cat has two eyes."),
    ("How many letters are in the alphabet?", "The English alphabet has 26 letters."),
    ("How many sides does a triangle have?", "A triangle has three sides."),
    ("How many sides does a square have?", "A square has four sides."),
    ("Which planet do we live on?", "We live on the Earth."),
    ("Where do fish live?", "Fish live in water."),
    ("Where do birds sleep?", "Many birds sleep in nests or on branches."),
    ("What do bees make?", "Bees make honey."),
    ("What do cows give us?", "Cows give us milk."),
    ("What do we breathe?", "We breathe air."),
    ("What do plants need to grow?", "Plants need light, water and air to grow."),
    ("What is ice made of?", "Ice is frozen water."),
    ("What do we use to see?", "We see with our eyes."),
    ("What do we use to hear?", "We hear with our ears."),
    ("Which animal is the largest?", "The blue whale is the largest animal."),
    ("Which animal is known as the king of the jungle?", "The lion is known as the king of the jungle."),
    ("Which season comes after winter?", "Spring comes after winter."),
    ("What is the largest ocean?", "The Pacific Ocean is the largest ocean."),
    ("What is the highest mountain?", "Mount Everest is the highest mountain."),
    ("What is the longest river in Africa?", "The Nile is the longest river in Africa."),
    ("Who wrote Romeo and Juliet?", "William Shakespeare wrote Romeo and Juliet."),
    ("Which colour do you get from blue and yellow?", "Blue and yellow make green."),
    ("Which colour do you get from red and white?", "Red and white make pink."),
    ("At what temperature does water freeze?", "Water freezes at 0 degrees Celsius."),
    ("At what temperature does water boil?", "Water boils at 100 degrees Celsius."),
    ("Name a fruit.", "Apple."),
    ("Name an animal.", "Elephant."),
    ("Name a colour.", "Blue."),
    ("Name three animals.", "Cat, dog and horse."),
    ("Name three fruits.", "Apple, banana and pear."),
    ("Name three colours.", "Red, green and blue."),
    ("Tell me a joke.", "Why did the chicken cross the road? To get to the other side."),
    ("What is your favourite colour?", "I am a program, so I have no favourite, but many people like blue."),
    ("Do you sleep?", "No, I am a computer program and do not sleep."),
    ("Where do you live?", "I am a program. I live on this computer."),
    ("How old are you?", "I was trained in November 2026, so I am very young."),
    ("Who made you?", "I was made and trained by the Muse Spark project."),
    ("What languages do you speak?", "I only know English."),
    ("Which model are you?", "I am Muse Spark nano."),
)

YES_NO = (
    ("Is the sun hot?", "Yes, the sun is very hot."),
    ("Is ice hot?", "No, ice is cold."),
    ("Can birds fly?", "Yes, most birds can fly."),
    ("Can fish fly?", "No, fish swim in water."),
    ("Can a cat read?", "No, a cat can't read."),
    ("Is the Earth round?", "Yes, the Earth is round."),
    ("Is water wet?", "Yes, water is wet."),
    ("Do dogs have wings?", "No, dogs do not have wings."),
    ("Do cows eat grass?", "Yes, cows eat grass."),
    ("Is a tomato blue?", "No, a tomato is red."),
    ("Is 5 bigger than 3?", "Yes, 5 is bigger than 3."),
    ("Is 2 bigger than 9?", "No, 2 is smaller than 9."),
    ("Do plants need water?", "Yes, plants need water."),
    ("Is a whale a fish?", "No, a whale is a mammal."),
    ("Is snow white?", "Yes, snow is white."),
    ("Can people breathe under water?", "No, people can't breathe under water."),
)

ORDERS = (
    ("days of the week", _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")),
    (
        "months of the year",
        _words("January February March April May June July August September October November December"),
    ),
    ("seasons", _words("spring summer autumn winter")),
    ("planets", _words("Mercury Venus Earth Mars Jupiter Saturn Uranus Neptune")),
    ("first letters of the alphabet", _words("A B C D E F G")),
    ("first numbers", _words("one two three four five six seven eight nine ten")),
)

NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
HELLO = (
    "Hello",
    "Hi",
    "Hey",
    "Hi there",
    "Hello there",
    "Good morning",
    "Good evening",
    "Good afternoon",
    "hello",
    "hi",
    "hey",
)
WHO = (
    "Who are you?", "What are you?", "What is your name?", "Who am I talking to?", "Tell me about yourself.",
    "Introduce yourself.", "who are you", "What's your name?", "Are you a human?", "Are you a robot?",
)  # fmt: skip
ABOUT = (
    "I am Muse Spark nano, a small language model that runs on a CPU.",
    "I am Muse Spark nano, a very small AI assistant. I can read text and simple pictures.",
    "My name is Muse Spark nano. I am a small AI model.",
)
CAN = ("What can you do?", "How can you help me?", "What are you good at?", "Can you help me?", "help")
ABILITIES = (
    "I can answer short questions, name simple pictures and write a few sentences. I am small, so I make mistakes.",
    "I can chat a little, name emoji and icons and continue a story. Please check what I say.",
)
FEEL = ("How are you?", "How are you doing?", "How is it going?", "How do you feel today?", "how are you")
FINE = ("I am fine, thank you. How can I help you?", "I am well, thanks. What can I do for you?")
THANKS = ("Thank you.", "Thanks!", "Thank you very much!", "thanks", "Great, thanks.", "That helps, thank you.")
WELCOME = ("You are welcome!", "You're welcome. Is there anything else?", "Happy to help!")
BYE = ("Bye!", "Goodbye.", "See you later.", "Good night.", "bye", "I have to go now.")
FAREWELL = ("Goodbye!", "Goodbye! Have a nice day.", "See you later!")
