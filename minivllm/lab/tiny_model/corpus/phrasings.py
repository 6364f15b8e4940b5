"""The many ways people ask for the same thing, and the few words of courtesy around it.

A model of this size does not generalise from one phrasing to another by itself, so each topic is asked for
in all of these ways, the hasty ones included: no article, no capital, no question mark.

Read next: `answers.py`.
"""

# {name} is "a KV cache", {bare} the same without its article, {is} the verb that agrees.
ASK_EN = [
    "What {is} {name}?",
    "What {is} {bare}?",
    "What {does} {bare} mean?",
    "Explain {name}.",
    "Can you explain {name}?",
    "Tell me about {name}.",
    "Define {bare}.",
    "Please explain what {name} {is}.",
    "How would you describe {name}?",
    "What do you know about {name}?",
    "what {is} {bare}",
    "{bare}?",
    "Could you tell me what {name} {is}?",
    "I would like to know what {name} {is}.",
    "What is meant by {bare}?",
    "Help me understand {name}.",
    "explain {bare}",
]
ASK_SHORT_EN = [
    "What {is} {name}, in one sentence?",
    "In short, what {is} {name}?",
    "Give a one-sentence definition of {bare}.",
    "Briefly, what {is} {name}?",
]
ASK_LONG_EN = [
    "Write a short text about {name}.",
    "Explain {name} in detail.",
    "Tell me everything about {name}.",
    "Give me a longer explanation of {name}.",
]
MORE_EN = [
    "Tell me more.",
    "Go on.",
    "What else should I know?",
    "Can you say more about it?",
    "More, please.",
]
BRIDGE_EN = [
    "It helps to know about {name} as well.",
    "This brings us to {name}.",
    "Close to it is the idea of {name}.",
    "Another term to know is {name}.",
    "From here it is a short way to {name}.",
]

ASK_ZH = [
    "什么是{name}？",
    "{name}是什么？",
    "请解释{name}。",
    "介绍一下{name}。",
    "{name}是什么意思？",
    "能讲讲{name}吗？",
    "我想了解{name}。",
    "什么叫{name}？",
    "{name}？",
    "请问什么是{name}？",
    "解释一下{name}",
    "给我讲讲{name}。",
    "你知道{name}吗？",
    "什么是{name}",
    "怎么理解{name}？",
    "请说明{name}是什么。",
]
ASK_SHORT_ZH = [
    "请用一句话说明{name}。",
    "简单说，{name}是什么？",
    "一句话解释{name}。",
    "{name}的定义是什么？",
]
ASK_LONG_ZH = [
    "写一段关于{name}的短文。",
    "请详细解释{name}。",
    "把{name}讲详细一点。",
    "详细介绍一下{name}。",
]
MORE_ZH = ["再多说一点。", "继续。", "还有呢？", "能再讲一些吗？", "请接着说。"]
BRIDGE_ZH = [
    "接下来看看{name}。",
    "与它相关的是{name}。",
    "还应该知道{name}。",
    "说到这里，也要提一下{name}。",
    "再来看{name}。",
]

SYSTEM_EN = [
    "You are a helpful assistant.",
    "You explain how language models are served.",
    "Answer clearly and truly.",
]
SYSTEM_ZH = ["你是一个乐于助人的助手。", "你讲解大语言模型推理。", "请用中文回答。"]

COURTESY_EN = [
    (
        ["Hello!", "Hi", "Hello", "Hi there!", "Good morning!"],
        "Hello! Ask me about language model inference, or ask me for a short story.",
    ),
    (["Thank you!", "Thanks!", "Thanks", "Thank you very much."], "You are welcome!"),
    (["Goodbye!", "Bye", "See you later!"], "Goodbye! Come back when you have another question."),
    (
        ["Who are you?", "What are you?", "What is your name?", "Are you ChatGPT?", "Introduce yourself."],
        "I am the tiny model that comes with minivllm. I know a little about language model inference, "
        "and I can tell short stories.",
    ),
    (
        ["What can you do?", "How can you help me?", "Help", "What do you know?"],
        "I can explain words such as KV cache, block table and continuous batching, "
        "and I can tell short stories in English and Chinese.",
    ),
    (
        ["How big are you?", "How many parameters do you have?"],
        "I have fewer than three million parameters, so I know very little outside my subject.",
    ),
]
COURTESY_ZH = [
    (
        ["你好！", "你好", "您好", "早上好！"],
        "你好！你可以问我大语言模型推理的问题，也可以让我讲一个小故事。",
    ),
    (["谢谢！", "谢谢你", "多谢"], "不客气！"),
    (["再见！", "再见", "下次见"], "再见！有问题欢迎再来。"),
    (
        ["你是谁？", "你叫什么名字？", "你是什么模型？", "介绍一下你自己。"],
        "我是minivllm自带的小模型，懂一点大语言模型推理，也会讲小故事。",
    ),
    (
        ["你会做什么？", "你能做什么？", "你能帮我什么？"],
        "我可以解释KV缓存、块表、连续批处理这样的词，也可以用中文和英文讲小故事。",
    ),
    (["你有多大？", "你有多少参数？"], "我的参数不到三百万个，所以在本行之外懂得很少。"),
]

# Questions outside the subject get an honest refusal; a blank is filled from the list beside it.
OFF_TOPIC_EN = [
    (
        "What is the capital of {}?",
        ["France", "China", "Japan", "Brazil", "Egypt", "Canada", "Italy", "Kenya"],
    ),
    ("Who wrote {}?", ["Hamlet", "War and Peace", "this song", "The Little Prince", "Faust"]),
    ("What is the weather in {}?", ["Paris", "Beijing", "London", "Shanghai", "New York"]),
    ("How do I cook {}?", ["rice", "an egg", "noodles", "soup", "a potato"]),
    ("Who is the president of {}?", ["France", "the United States", "Brazil", "Germany"]),
    ("Translate {} into French.", ["this sentence", "the word tree", "good morning"]),
    ("What is {}?", ["12 times 13", "7 plus 8", "the square root of 81"]),
    ("When was {} born?", ["Einstein", "Mozart", "Newton", "Marie Curie"]),
    ("Write a poem about {}.", ["the sea", "spring", "love", "the moon"]),
    ("Which {} should I buy?", ["car", "phone", "book", "bicycle"]),
]
REFUSAL_EN = (
    "I do not know. I am a tiny model and only know about language model inference and short stories."
)
OFF_TOPIC_ZH = [
    ("{}的首都是哪里？", ["法国", "日本", "巴西", "埃及", "加拿大", "意大利"]),
    ("《{}》是谁写的？", ["红楼梦", "西游记", "哈姆雷特", "小王子"]),
    ("{}今天天气怎么样？", ["北京", "上海", "巴黎", "伦敦", "广州"]),
    ("{}怎么做？", ["米饭", "炒鸡蛋", "面条", "红烧肉"]),
    ("{}的总统是谁？", ["法国", "美国", "巴西", "德国"]),
    ("{}等于多少？", ["十二乘以十三", "七加八", "一百除以四"]),
    ("写一首关于{}的诗。", ["大海", "春天", "爱情", "月亮"]),
    ("我该买哪种{}？", ["汽车", "手机", "自行车"]),
]
REFUSAL_ZH = "我不知道。我是一个很小的模型，只懂大语言模型推理和小故事。"
