"""What the pages "Lessons" and "Glossary" say, in the languages that lessons are written in.

What the judge says is English in both: its sentences are quoted from the code.

Read next: `views/lessons.py`.
"""

from __future__ import annotations

import re

from viz.plain import code

LANGUAGES = {"en": "English", "zh": "中文"}

WORDS = {
    "title": ("Lessons", "课程"),
    "introduction": (
        "Each lesson is one idea of a server for language models, and takes about an hour: **read** what "
        "problem it solves, **step** through a real run, then **write** it yourself. Properties judge what "
        "you write: sentences that must hold in every story, not examples that you could guess.",
        "每一课讲大模型服务的一个想法，大约一小时：先**阅读**它解决什么问题，再**单步**看一次真实的运行，最后自己**编写**。"
        "评判你的是性质：在任何情形下都必须成立的句子，而不是能猜到的例子。",
    ),
    "progress": ("{passed} of {all} lessons passed", "已通过 {passed} / {all} 课"),
    "where to begin": ("Where to begin:", "从哪里开始："),
    "a beginner": ("a beginner", "初学者"),
    "an engineer": ("an engineer", "工程师"),
    "a writer of kernels": ("a writer of kernels", "写内核的人"),
    "open": ("Open", "打开"),
    "go on": ("Go on", "继续"),
    "all lessons": ("All lessons", "全部课程"),
    "place": ("Lesson {number} of {all}", "第 {number} 课，共 {all} 课"),
    "part": ("Part of the lesson", "本课的部分"),
    "language": ("Language", "语言"),
    "read": ("Read", "阅读"),
    "step": ("Step", "单步"),
    "write": ("Write", "编写"),
    "next part": ("Next: {part}", "下一步：{part}"),
    "next lesson": ("Next lesson: {lesson}", "下一课：{lesson}"),
    "previous lesson": ("Previous lesson: {lesson}", "上一课：{lesson}"),
    "last lesson": ("This is the last lesson so far.", "目前这是最后一课。"),
    "no lessons": ("There are no lessons in this installation.", "此安装中没有课程。"),
    # glossary
    "glossary": ("Glossary", "术语表"),
    "find a term": ("Find a term", "查找术语"),
    "terms shown": ("{shown} of {all} terms", "{all} 个术语中的 {shown} 个"),
    "no glossary": (
        "This installation comes without the glossary: the file `{file}` at the root of the repository.",
        "此安装中没有术语表，即代码仓库根目录下的文件 `{file}`。",
    ),
    # states
    "not started": ("not started", "未开始"),
    "started": ("started", "已开始"),
    "passed": ("passed", "已通过"),
    "properties hold": ("{state} properties hold", "{state} 条性质成立"),
    # step
    "no walkthrough": ("This lesson has no run to step through yet.", "本课还没有可以单步观看的运行。"),
    "about step": (
        "A real run, recorded: `{file}`. Before each of its answers it asks a question. "
        "Answer it first, then look.",
        "这是一次真实的运行，并被记录下来：`{file}`。每个结果之前都有一个问题，请先自己回答，再看结果。",
    ),
    "run it": ("Run it", "运行"),
    "run it again": ("Run it again", "重新运行"),
    "not run": ("It has not been run yet; it may take a minute or two.", "还没有运行过；可能需要一两分钟。"),
    "running": ("Running … {seconds:.0f} s", "运行中…… {seconds:.0f} 秒"),
    "printed": ("What it prints", "它打印的内容"),
    "questions": ("Its source, with the questions", "源代码，以及其中的问题"),
    "which run": ("Which of its runs", "哪一次运行"),
    "open page": ("Open this run on the page “{page}”", "在“{page}”页面打开这次运行"),
    "unknown page": (
        "The run is in `{file}`; no page draws it here.",
        "运行记录在 `{file}`；这里没有页面能画它。",
    ),
    # write
    "about start": (
        "The exercise is a Python file with signatures and docstrings, and without the bodies. **Start** "
        "puts it at `{file}`; nothing that you wrote is ever overwritten.",
        "练习是一个 Python 文件，有函数签名和文档字符串，没有函数体。点击**开始**会把它放到 `{file}`；"
        "你写过的东西绝不会被覆盖。",
    ),
    "start": ("Start", "开始"),
    "your file": (
        "Your file is `{file}`. Write in it with your own editor, save, and check.",
        "你的文件是 `{file}`。用自己的编辑器编写，保存，然后检查。",
    ),
    "check": ("Check my work", "检查我的代码"),
    "judging": ("Judging … {seconds:.0f} s", "评判中…… {seconds:.0f} 秒"),
    "stories": ("{count} stories", "{count} 个故事"),
    "playing": ("playing, {count} stories so far", "进行中，已有 {count} 个故事"),
    "unwritten": ("`{name}` is still to be written", "`{name}` 还没有写"),
    "waits": ("waits for {number}", "等待 {number}"),
    "lacks": ("{words}, which the exercise asks for", "{words}（练习要求有它）"),
    "unjudged": ("Your file could not be judged: {words}", "无法评判你的文件：{words}"),
    "all that Python says": ("All that Python says", "Python 的完整输出"),
    "nothing written": (
        "Nothing is written yet: `{file}` is as it was put there.",
        "还没有写任何代码：`{file}` 还是原样。",
    ),
    "all hold": ("All {all} properties hold. The lesson is passed.", "全部 {all} 条性质成立，本课通过。"),
    "some hold": ("{passed} of {all} properties hold.", "{all} 条性质中有 {passed} 条成立。"),
    "last time": (
        "Last time, {passed} of {all} properties held{failing}.",
        "上一次检查时，{all} 条性质中有 {passed} 条成立{failing}。",
    ),
    "last failing": (", and {number} failed", "，{number} 不成立"),
    "changed since": (
        "Your file has changed since it was judged: check again.",
        "评判之后你的文件有改动：请再检查一次。",
    ),
    "smallest": (
        "The smallest story in which **{number}** fails",
        "使 **{number}** 不成立的最小故事",
    ),
    "number": ("step", "步"),
    "operation": ("What is done", "操作"),
    "changed": ("What changed", "变化"),
    "more steps": ("… {count} more steps …", "……还有 {count} 步……"),
    "expected": ("Expected", "应当"),
    "got": ("Got", "实际"),
    "where": ("Where", "位置"),
    "tampered": (
        "This counts for nothing, the judge was tampered with: {words}.",
        "这次评判无效，评判程序被改动过：{words}。",
    ),
    "but": ("But", "但是"),
    "holds alone": (
        "it fails only after other stories: is something shared between your objects?",
        "只有在其他情形之后它才失败：你的对象之间是否共享了什么？",
    ),
    "in story": ("In this story", "在这个故事中"),
    "your code printed": ("What your code printed meanwhile", "你的代码在此期间打印的内容"),
    "see it": ("See it, step by step", "单步观看"),
    "see it by hand": ("To see it, step by step:", "要单步观看，请运行："),
    "hints": ("Hints for {number}", "{number} 的提示"),
    "next hint": ("Next hint ({number} of {count})", "下一条提示（{number} / {count}）"),
    "last hint": ("That was the last hint.", "这是最后一条提示。"),
    "your code": ("Your file, as it is now", "你的文件（当前内容）"),
    "last task": (
        "The last task: write the property that catches {name}",
        "最后的任务：写出能抓住{name}的性质",
    ),
    "about last task": (
        "One solution is wrong. In `{file}`, write a property that every right solution passes and this "
        "one fails. It is judged together with your solution, once that passes.",
        "有一份解答是错的。请在 `{file}` 中写一条性质：所有正确的解答都满足它，而这一份不满足。"
        "你的解答通过之后，它会一起被评判。",
    ),
    "untouched": ("It is still to be written.", "还没有写。"),
    "caught": ("It catches the wrong solution. {words}", "它抓住了错误的解答。{words}"),
    "missed": ("It does not catch it: {words}", "它没有抓住：{words}"),
    "too strict": ("It is too strict: {words}", "它太严格：{words}"),
    "broken": ("It could not be judged: {words}", "无法评判：{words}"),
    "diff": ("Your solution beside the reference", "你的解答与参考解答的对照"),
    "same": ("Your solution is the reference, letter by letter.", "你的解答与参考解答逐字相同。"),
}


def say(language: str, name: str, /, **values: object) -> str:
    """One of the sentences above. What stands between backticks there is shown as it is."""
    sentence = WORDS[name][language == "zh"]
    for key in re.findall(r"`{(\w+)}`", sentence):
        sentence = sentence.replace(f"`{{{key}}}`", f"{{{key}}}")
        values[key] = code(values[key])
    return sentence.format(**values)
