"""A small grammar of English stories.

A story is a plot: a list of steps, each with several ways to say it, and blanks for who, where and what.
Whatever is drawn for one step, the next one still fits, so every story is grammatical and hangs together;
the number of different stories is the product of all the choices, far more than a training run can see.

Read next: `stories.py`, which draws from it.
"""

WHO = {
    "animal": [
        "fox",
        "rabbit",
        "bear",
        "mouse",
        "cat",
        "dog",
        "squirrel",
        "hedgehog",
        "duck",
        "turtle",
        "robin",
        "frog",
        "lamb",
        "badger",
        "beaver",
        "penguin",
    ],
    "he": ["Tom", "Ben", "Max", "Leo", "Sam", "Finn", "Oscar", "Theo", "Jack", "Hugo"],
    "she": ["Mia", "Lily", "Anna", "Zoe", "Ruby", "Nora", "Ella", "Ivy", "Rosa", "Luna"],
}
WHERE = [
    "in a green forest",
    "near a quiet river",
    "in a small village",
    "on a windy hill",
    "by the sea",
    "beside a big lake",
    "in an old garden",
    "at the edge of a wide meadow",
]
BLANKS = {
    "thing": [
        "red ball",
        "blue kite",
        "silver key",
        "warm scarf",
        "wooden boat",
        "little bell",
        "yellow hat",
        "lucky stone",
    ],
    "spot": [
        "under a bush",
        "behind a big rock",
        "in the tall grass",
        "inside a hollow tree",
        "under the old bridge",
    ],
    "food": [
        "a basket of apples",
        "a warm loaf of bread",
        "a pot of soup",
        "a big carrot cake",
        "a bag of nuts",
    ],
    "fear": ["the dark", "deep water", "high places", "thunder", "the big old barn"],
    "work": ["a small boat", "a tree house", "a bridge of stones", "a warm nest", "a tall tower"],
    "weather": [
        "One sunny morning",
        "One rainy day",
        "One cold winter morning",
        "One bright afternoon",
        "One windy day",
    ],
}

OPENING = [
    "Once upon a time, there was a little {animal} named {name}. {He} lived {where}.",
    "{name} was a young {animal} who lived {where}.",
    "Long ago, a small {animal} called {name} lived {where}.",
    "There once was a {animal} named {name}, and {his} home was {where}.",
]
PLOTS = {
    "lost": [
        [
            "{He} had a {thing} that {he} loved very much.",
            "{His} favourite thing in the world was a {thing}.",
            "{He} took {his} {thing} wherever {he} went.",
        ],
        [
            "{weather}, the {thing} was gone.",
            "{weather}, {name} could not find the {thing}.",
            "{weather}, {name} woke up and saw that the {thing} was missing.",
        ],
        [
            "{He} looked in every corner of the house, but it was not there.",
            "{He} looked here and there and felt very sad.",
            '"Oh no!" said {name}. "Where can it be?"',
        ],
        [
            'Then {friend} the {other} came by. "Do not cry," said {friend}. "We will look for it together."',
            '{His} friend {friend} the {other} said, "Let me help you. Two can look better than one."',
            "{He} asked {friend} the {other} for help, and {friend} was glad to come along.",
        ],
        [
            "They walked along the path and looked {spot}. There it was!",
            "They searched all day, and at last they found the {thing} {spot}.",
            'Just before sunset {friend} looked {spot} and called, "I found it!"',
        ],
        [
            "{name} was so happy that {he} hugged {friend}.",
            "{name} laughed and danced for joy.",
            '"Thank you, {friend}!" said {name}. "You are a true friend."',
        ],
        [
            "From that day on, the two of them shared the {thing}.",
            "After that {name} took good care of {his} things.",
            "And {name} learned that it is good to ask for help.",
        ],
    ],
    "fear": [
        [
            "{name} was afraid of {fear}.",
            "There was only one thing {name} did not like: {fear}.",
            "{name} was brave in many ways, but {he} was afraid of {fear}.",
        ],
        [
            "The others laughed about it, and that made {name} sad.",
            "{He} never told anyone about it.",
            '"I wish I were not so afraid," {he} often said.',
        ],
        [
            "{weather}, {he} heard a voice. It was {friend} the {other}, and {friend} needed help.",
            "{weather}, {friend} the {other} got stuck {spot} and called for help.",
            "{weather}, little {friend} the {other} was lost and nobody else was there to help.",
        ],
        [
            "{name} thought of {fear} and {his} legs shook.",
            "To get there, {name} had to be brave.",
            "{name} wanted to run away, but {he} could not leave {friend} alone.",
        ],
        [
            "{He} took a deep breath and went on, step by step.",
            "{He} closed {his} eyes for a moment, and then {he} went on.",
            '"I am coming!" {he} called, and {he} ran as fast as {he} could.',
        ],
        [
            "Soon {friend} was safe.",
            "{He} took {friend} by the hand and brought {friend} home.",
            "Together they found the way back.",
        ],
        [
            '"You are the bravest {animal} I know," said {friend}.',
            "Everyone was proud of {name}.",
            "{name} smiled, because {fear} did not seem so bad any more.",
        ],
        [
            "To be brave does not mean to have no fear. It means to help all the same.",
            "Since then {name} has not been so afraid.",
            "That night {name} slept very well.",
        ],
    ],
    "share": [
        [
            "{weather}, {name} had {food}.",
            "{weather}, {name} found {food} at the door.",
            "{weather}, {name}'s grandmother gave {him} {food}.",
        ],
        [
            "{He} wanted to eat it all alone.",
            "It smelled so good that {he} could hardly wait.",
            '"This will be enough for a whole week," {he} thought.',
        ],
        [
            "On the way home {he} met {friend} the {other}, who looked very hungry.",
            "Then {friend} the {other} knocked at the door. {friend} had eaten nothing all day.",
            "Under a tree sat {friend} the {other}, cold and hungry.",
        ],
        [
            "{name} thought for a while.",
            "At first {name} did not know what to do.",
            "{name} looked at {friend} and felt sorry.",
        ],
        [
            '"Come and eat with me," {he} said, and they shared everything.',
            "{He} gave half of it to {friend}.",
            '"There is enough for two," said {name}, and {friend} smiled.',
        ],
        [
            "Some days later {name} was ill, and {friend} brought {him} hot tea.",
            "In the winter {name} had nothing left to eat, and {friend} came with a full bag.",
            "Soon after, a storm broke {name}'s roof, and {friend} helped to mend it.",
        ],
        [
            "What you give away often comes back to you.",
            '"That is what friends are for," said {friend}.',
            "From then on they ate together every evening.",
        ],
    ],
    "build": [
        [
            "{name} wanted to build {work}.",
            "{name} had a big plan: {he} would build {work}.",
            "All summer long {name} dreamed of building {work}.",
        ],
        [
            "{He} gathered wood and stones and began at once.",
            "{weather}, {he} set to work.",
            "{He} made a drawing first and then began.",
        ],
        [
            "But the wind came and everything fell down.",
            "But {he} was in a hurry, and soon it all broke.",
            "But the first try did not work at all.",
        ],
        [
            '"I will never finish this," said {name}.',
            "{name} sat down and almost gave up.",
            "{name} was angry and kicked a stone.",
        ],
        [
            'Old {friend} the {other} came by and said, "Slow and steady. Put each stone in its place."',
            '{friend} the {other} said, "Try again, and take your time."',
            "{friend} the {other} showed {him} how to make it strong.",
        ],
        [
            "So {name} began again and worked a little every day.",
            "The next day {he} tried once more, slowly and with care.",
            "They worked together until the evening.",
        ],
        [
            "At last it was done, and it stood firm even in the storm.",
            "After a week it was finished, and it was beautiful.",
            "When the work was done, everyone came to see it.",
        ],
        [
            "Good things take time.",
            "{name} was proud, and {he} thanked {friend} with all {his} heart.",
            '"I am glad I did not give up," said {name}.',
        ],
    ],
    "library": [
        [
            "{name} looked after the library of the animals.",
            "{name} had an important job: {he} kept all the books of the animals.",
            "Everyone came to {name} to read, because {he} kept the library.",
        ],
        [
            "Some books were long and some were short, and for every book {he} kept one long shelf free.",
            "{He} gave each book a whole shelf, even if the book was very short.",
        ],
        [
            "Soon the library was full, although most of the shelves were half empty.",
            "{weather}, there was no room for a new book, and yet there were gaps everywhere.",
        ],
        [
            '"What shall I do?" {he} asked {friend} the {other}.',
            "{He} told {friend} the {other} about the trouble.",
        ],
        [
            '"Cut each book into small parts of the same size," said {friend}. '
            '"Put each part wherever there is room."',
            '{friend} said, "Make small parts, all of the same size, and put them into any free place."',
        ],
        [
            '"And how shall I find them again?" asked {name}. "Write a list for each book," said {friend}.',
            '"But then I will lose them!" said {name}. "Not if you keep a list," said {friend}.',
        ],
        [
            "{name} did so, and now there was room for many more books.",
            "It worked, and hardly any place was wasted.",
        ],
        ["A good list is better than a long shelf.", "Since then nobody has had to wait for a book."],
    ],
    "stranger": [
        [
            "{weather}, a stranger came: {friend} the {other}.",
            "{weather}, {friend} the {other} moved in next door.",
            "{weather}, {name} saw somebody new. It was {friend} the {other}.",
        ],
        [
            "{friend} was shy and spoke to nobody.",
            "Nobody knew {friend}, and nobody said hello.",
            "The others whispered and stayed away from {friend}.",
        ],
        [
            '{name} was a little shy too, but {he} said, "Hello, I am {name}. What is your name?"',
            '{name} went over with a smile and said, "Would you like to play?"',
            '{name} thought, "It must be hard to be alone," and went to say hello.',
        ],
        ["{friend} was very glad.", '"I would love to," said {friend}.', "At once {friend} began to smile."],
        [
            "They played all day, and {friend} showed {name} a new game.",
            "{friend} could sing wonderful songs, and {name} listened for hours.",
            "{friend} knew stories from far away, and {name} had many questions.",
        ],
        [
            "Soon the others came as well, and they all played together.",
            "In the evening they looked at the stars together.",
            "When the sun went down, neither of them wanted to go home.",
        ],
        [
            "A friend can begin with one kind word.",
            "Now {name} and {friend} meet every day.",
            "And that is how {name} found a new friend.",
        ],
    ],
}
REQUESTS = [
    "Tell me a story.",
    "Tell me a short story.",
    "Tell me a story about a {animal}.",
    "Write a short story about a {animal}.",
    "Can you tell me a story about a {animal} named {name}?",
    "I would like to hear a story about a {animal}.",
    "Please tell me a bedtime story.",
    "Tell me a story about {name} the {animal}.",
]
