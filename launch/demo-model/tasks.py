"""The tasks of the demo model: prompts, right answers, and how an answer is judged.

Used by train.py, evaluate.py and the end-to-end tests, so it needs the standard library alone. What a prompt is
about (its `key`) decides by a checksum whether it may be trained on or is held out for evaluation; both sides draw from
the same generator.
"""
import random
import re
import zlib
from collections import namedtuple

# prompt: text given to the model, without chat marks. answer: the right answer, without the space that leads it in raw
# form. turns: more (prompt, answer) pairs of the same conversation, only used in training.
Sample = namedtuple("Sample", "task prompt answer key turns", defaults=((),))

COLOURS = "red blue green yellow black white pink gray brown orange purple gold".split()
HOLDERS = "box bag chest drawer jar safe cup case basket barrel".split()
WORDS = (
    "apple river stone bread chair cloud door fish garden hat ice lamp moon night ocean paper queen rain ship table "
    "tree water wind wolf zebra bird cat dog fox sun star milk gold king leaf nest road salt wood book"
).split()
LETTERS = "abcdefghijklmnopqrstuvwxyz"
FILLER = (
    "The sun is warm.", "It rains today.", "The door is open.", "A bird sings.", "The tea is hot.",
    "Nobody is at home.", "The road is long.", "The lamp is on.",
)

ANIMALS = "fox cat dog wolf bird fish zebra mouse bear frog".split()
NAMES = "Anna Ben Lily Max Tom Mia Sam Rosa Leo Nina".split()
PLACES = ("a small house", "a big forest", "a quiet village", "a green garden", "an old castle")
ADJECTIVES = "little brave kind clever happy".split()
THINGS = ("golden key", "red ball", "small lamp", "blue stone", "warm hat", "sweet apple")

CAPITALS = {
    "France": "Paris", "Germany": "Berlin", "Italy": "Rome", "Spain": "Madrid", "Japan": "Tokyo", "China": "Beijing",
    "India": "Delhi", "Egypt": "Cairo", "Norway": "Oslo", "Sweden": "Stockholm", "Poland": "Warsaw",
    "Greece": "Athens", "Kenya": "Nairobi", "Peru": "Lima", "Cuba": "Havana", "Canada": "Ottawa",
}
SMALL_TALK = (
    ("Hello!", "Hello! Ask me to add, count, sort, copy, reverse or look something up."),
    ("Hello", "Hello! Ask me to add, count, sort, copy, reverse or look something up."),
    ("Hi", "Hello! Ask me to add, count, sort, copy, reverse or look something up."),
    ("Who are you?", "I am the demo model of Weft, a very small language model."),
    ("What are you?", "I am the demo model of Weft, a very small language model."),
    ("What can you do?", "I can add, count, sort, copy, reverse, compare, look things up and tell tiny stories."),
    ("Thank you", "You are welcome."),
)


def is_held_out(key):
    """One key in 16 is never trained on."""
    return zlib.crc32(key.encode()) % 16 == 0


def number(rng, digits_max=3):
    """A number of 1..digits_max digits, every length equally likely."""
    digits = rng.randint(1, digits_max)
    return rng.randint(0 if digits == 1 else 10 ** (digits - 1), 10**digits - 1)


def addition(rng, level):
    a, b = number(rng), number(rng)
    if rng.random() < 0.4:
        a, b = rng.randint(100, 999), rng.randint(100, 999)
    form = rng.choice(("{} + {} =", "{} + {} =", "{}+{}=", "What is {} + {}?", "Add {} and {}."))
    return Sample("addition", form.format(a, b), str(a + b), f"{a}+{b}")


def counting(rng, level):
    length = rng.randint(2, 12)
    first = rng.randint(0, 9) if rng.random() < 0.5 else rng.randint(0, 88)
    numbers = list(range(first, first + length))
    word = "from"
    if rng.random() < 0.3:
        numbers.reverse()
        word = "down from"
    form = rng.choice(("Count {} {} to {}:", "Count {} {} to {}.", "count {} {} to {}:"))
    text = form.format(word, numbers[0], numbers[-1])
    return Sample("counting", text, " ".join(map(str, numbers)), f"count {numbers[0]} {numbers[-1]}")


def sort_numbers(rng, level):
    values = [number(rng, 2) for _ in range(rng.randint(2, 3 + round(2 * level)))]
    text = " ".join(map(str, values))
    form = rng.choice(("Sort {}:", "Sort the numbers {}:", "Sort: {}."))
    return Sample("sort_numbers", form.format(text), " ".join(map(str, sorted(values))), text)


def sort_letters(rng, level):
    values = rng.sample(LETTERS, rng.randint(2, 4 + round(2 * level)))
    text = " ".join(values)
    form = rng.choice(("Sort {}:", "Sort the letters {}:", "Sort: {}."))
    return Sample("sort_letters", form.format(text), " ".join(sorted(values)), text)


def sequence(rng, length_max, level):
    """A few words, letters or digits; from the end of the curriculum on mostly without repetition."""
    length = rng.randint(2, length_max)
    pool = rng.choice((WORDS, WORDS + COLOURS, LETTERS, "0123456789"))
    if level >= 1 and rng.random() < 0.7:
        return rng.sample(pool, length)
    return [rng.choice(pool) for _ in range(length)]


def copying(rng, level):
    text = " ".join(sequence(rng, 4 + round(4 * level), level))
    form = rng.choice(("Repeat {}:", "Copy {}:", "Repeat after me: {}."))
    return Sample("copying", form.format(text), text, text)


def reversing(rng, level):
    values = sequence(rng, 4 + round(2 * level), level)
    text = " ".join(values)
    form = rng.choice(("Reverse {}:", "Reverse the order of {}:", "Say backwards: {}."))
    return Sample("reversing", form.format(text), " ".join(reversed(values)), text)


def lookup(rng, level, fact_count=None):
    """Facts, then a question about one of them; in training several questions about the same facts."""
    if fact_count is None:
        fact_count = rng.randint(1, 4 + round(4 * level))
        if rng.random() < (0.15 * level if level < 1 else 0.05):
            fact_count = rng.randint(8, 40)
    what = rng.choice(("key", "code", "number"))
    pairs = rng.sample([(c, h) for c in COLOURS for h in HOLDERS], fact_count)
    digits = rng.choice((1, 2, 3, 4, 4))
    values = [str(rng.randint(10 ** (digits - 1), 10**digits - 1)) for _ in pairs]
    sentences = []
    for (colour, holder), value in zip(pairs, values):
        sentences.append(f"The {what} of the {colour} {holder} is {value}.")
        if rng.random() < 0.1:
            sentences.append(rng.choice(FILLER))
    questions = [(f"What is the {what} of the {c} {h}?", v) for (c, h), v in zip(pairs, values)]
    rng.shuffle(questions)
    facts = " ".join(sentences)
    prompt = f"{facts} {questions[0][0]}"
    return Sample("lookup", prompt, questions[0][1], prompt, tuple(questions[1:6 if level < 1 else 4]))


def lookup_long(rng, level):
    """Prompts of some 350 to 600 tokens; only for evaluation, training meets them among the others."""
    return lookup(rng, level, fact_count=rng.randint(25, 40))._replace(task="lookup_long")


def comparing(rng, level):
    a, b = number(rng), number(rng)
    if rng.random() < 0.6:
        digits = rng.randint(1, 3)
        a, b = (rng.randint(10 ** (digits - 1), 10**digits - 1) for _ in range(2))
    if rng.random() < 0.1:
        b = max(0, a + rng.choice((-2, -1, 0, 1, 2)))
    kind = rng.randrange(4)
    if kind == 0:
        prompt, answer = f"Is {a} greater than {b}?", "yes" if a > b else "no"
    elif kind == 1:
        prompt, answer = f"Is {a} less than {b}?", "yes" if a < b else "no"
    elif kind == 2:
        prompt, answer = f"Which is larger, {a} or {b}?", str(max(a, b))
    else:
        prompt, answer = f"Which is smaller, {a} or {b}?", str(min(a, b))
    return Sample("comparing", prompt, answer, f"{a} {b}")


def story_text(rng, animal=None):
    animal = animal or rng.choice(ANIMALS)
    name, friend = rng.sample(NAMES, 2)
    place, thing = rng.choice(PLACES), rng.choice(THINGS)
    middle = rng.choice((
        f"One day {name} found a {thing}.",
        f"One morning {name} saw a {thing} under a tree.",
    ))
    end = rng.choice((
        f"{name} gave the {thing} to {friend}. {friend} was very happy.",
        f"{name} showed the {thing} to {friend}. They played all day.",
    ))
    return (
        f"Once upon a time there was a {rng.choice(ADJECTIVES)} {animal} named {name}. "
        f"{name} lived in {place}. {middle} {end} The end."
    )


def story(rng, level):
    animal = rng.choice(ANIMALS)
    text = story_text(rng, animal)
    kind = rng.randrange(4)
    if kind == 0:
        return Sample("story", f"Tell me a story about a {animal}.", text, text)
    if kind == 1:
        return Sample("story", "Tell me a story.", text, text)
    cut = "Once upon a time" if kind == 2 else text.split(".")[0] + "."
    return Sample("story", cut, text[len(cut) + 1:], text)


def talk(rng, level):
    """Learnt by heart: held-out prompts do not exist here."""
    if rng.random() < 0.4:
        prompt, answer = rng.choice(SMALL_TALK)
        return Sample("by_heart", prompt, answer, "")
    country, city = rng.choice(sorted(CAPITALS.items()))
    form = rng.choice(("The capital of {} is", "What is the capital of {}?"))
    return Sample("by_heart", form.format(country), city + ".", "")


# Prompts of these end in a mark; raw, it tells where the list ends and the answer begins.
LISTS = ("sort_numbers", "sort_letters", "copying", "reversing")

TASKS = {
    "addition": addition, "counting": counting, "sort_numbers": sort_numbers, "sort_letters": sort_letters,
    "copying": copying, "reversing": reversing, "lookup": lookup, "comparing": comparing, "story": story,
    "by_heart": talk,
}
# What is evaluated.
MAKERS = TASKS | {"lookup_long": lookup_long}


def draw(task, rng, level=1.0, held_out=False):
    """One sample; level in [0, 1] is how far the curriculum has come."""
    while True:
        sample = MAKERS[task](rng, level)
        if sample.key == "" or is_held_out(sample.key) == held_out:
            return sample


def held_out_samples(task, count, seed=2026):
    """The same `count` held-out samples for everybody, no prompt twice (by_heart: as many as exist)."""
    rng = random.Random(f"{seed} {task}")
    samples = {}
    for _ in range(50 * count):
        sample = draw(task, rng, held_out=True)
        if task != "story" and len(samples) < count:
            samples.setdefault(sample.prompt, sample)
        elif task == "story" and len(samples) < count:
            samples.setdefault(sample.key, sample)
    return list(samples.values())


STORY = re.compile(
    rf"Once upon a time there was a ({'|'.join(ADJECTIVES)}) (?P<animal>{'|'.join(ANIMALS)}) named (?P<name>\w+)\. "
    rf"(?P=name) lived in ({'|'.join(PLACES)})\. "
    rf"(One day (?P=name) found a (?P<a>{'|'.join(THINGS)})\.|"
    rf"One morning (?P=name) saw a (?P<b>{'|'.join(THINGS)}) under a tree\.) "
    rf"(?P=name) (gave the (?P<c>{'|'.join(THINGS)}) to (?P<friend>\w+)\. (?P=friend) was very happy\.|"
    rf"showed the (?P<d>{'|'.join(THINGS)}) to (?P<other>\w+)\. They played all day\.) The end\."
)


def is_story(text, animal=None):
    """Well formed, one hero, one thing from beginning to end, a friend who is somebody else."""
    match = STORY.fullmatch(text)
    if not match:
        return False
    part = match.groupdict()
    same_thing = (part["a"] or part["b"]) == (part["c"] or part["d"])
    friend = part["friend"] or part["other"]
    return same_thing and friend != part["name"] and animal in (None, part["animal"])


def is_right(sample, output):
    """Whether the model's text answers the prompt."""
    output = output.strip()
    if sample.task != "story":
        return output == sample.answer
    asked = re.fullmatch(r"Tell me a story about a (\w+)\.", sample.prompt)
    if sample.prompt.startswith("Once"):
        output = f"{sample.prompt} {output}"
    return is_story(output, asked.group(1) if asked else None)


SYSTEM = "You are a helpful assistant."


def chat(messages, is_open=True):
    """ChatML, as the chat template in tokenizer_config.json writes it."""
    text = "".join(f"<|im_start|>{role}\n{content}<|im_end|>\n" for role, content in messages)
    return text + ("<|im_start|>assistant\n" if is_open else "")
