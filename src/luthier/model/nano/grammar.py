"""A small grammar that adds volume to the written prose: errands, sums, word lists, people, things.

Prose teaches the nano model what sentences look like; these paragraphs teach it, by sheer repetition in ever new
combinations, that a slot such as a name, a number or a colour can hold anything.  Everything is a pure function of
the random generator that is handed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

# English, Chinese, category, colour, place
THINGS = [
    ("apple", "苹果", "fruit", "red", "garden"),
    ("pear", "梨", "fruit", "green", "garden"),
    ("banana", "香蕉", "fruit", "yellow", "market"),
    ("melon", "西瓜", "fruit", "green", "market"),
    ("orange", "橙子", "fruit", "orange", "market"),
    ("carrot", "胡萝卜", "vegetable", "orange", "garden"),
    ("cabbage", "白菜", "vegetable", "white", "garden"),
    ("tomato", "番茄", "vegetable", "red", "garden"),
    ("onion", "洋葱", "vegetable", "white", "kitchen"),
    ("pumpkin", "南瓜", "vegetable", "orange", "garden"),
    ("hammer", "锤子", "tool", "black", "workshop"),
    ("saw", "锯子", "tool", "grey", "workshop"),
    ("ruler", "尺子", "tool", "yellow", "school"),
    ("knife", "小刀", "tool", "grey", "kitchen"),
    ("drill", "钻子", "tool", "blue", "workshop"),
    ("violin", "小提琴", "instrument", "brown", "workshop"),
    ("guitar", "吉他", "instrument", "brown", "school"),
    ("flute", "笛子", "instrument", "white", "school"),
    ("drum", "鼓", "instrument", "red", "school"),
    ("piano", "钢琴", "instrument", "black", "school"),
    ("cat", "猫", "animal", "grey", "house"),
    ("dog", "狗", "animal", "black", "house"),
    ("horse", "马", "animal", "brown", "field"),
    ("duck", "鸭子", "animal", "white", "field"),
    ("rabbit", "兔子", "animal", "white", "garden"),
    ("table", "桌子", "piece of furniture", "brown", "kitchen"),
    ("chair", "椅子", "piece of furniture", "brown", "house"),
    ("bed", "床", "piece of furniture", "white", "house"),
    ("shirt", "衬衫", "piece of clothing", "blue", "house"),
    ("hat", "帽子", "piece of clothing", "green", "market"),
    ("coat", "大衣", "piece of clothing", "black", "house"),
    ("book", "书", "thing to read", "blue", "school"),
    ("kite", "风筝", "toy", "red", "field"),
    ("lamp", "灯", "light", "yellow", "house"),
]
CATEGORIES = {
    "fruit": "水果",
    "vegetable": "蔬菜",
    "tool": "工具",
    "instrument": "乐器",
    "animal": "动物",
    "piece of furniture": "家具",
    "piece of clothing": "衣服",
    "thing to read": "读物",
    "toy": "玩具",
    "light": "灯具",
}
COLOURS = {
    "red": "红色",
    "green": "绿色",
    "yellow": "黄色",
    "orange": "橙色",
    "white": "白色",
    "black": "黑色",
    "grey": "灰色",
    "blue": "蓝色",
    "brown": "棕色",
}
PLACES = {
    "garden": "花园",
    "market": "市场",
    "kitchen": "厨房",
    "workshop": "工作室",
    "school": "学校",
    "house": "屋子",
    "field": "田野",
}
DAYS = [
    ("Monday", "星期一"),
    ("Tuesday", "星期二"),
    ("Wednesday", "星期三"),
    ("Thursday", "星期四"),
    ("Friday", "星期五"),
    ("Saturday", "星期六"),
    ("Sunday", "星期天"),
]
WEATHERS = [
    ("It was raining, so there was an umbrella over every head.", "外面下着雨，路上的人都打着伞。"),
    ("The sun was shining, and the birds were singing.", "太阳很好，小鸟在叫。"),
    ("Snow had fallen in the night, and the road was white.", "夜里下了雪，路上一片白。"),
    ("The wind was strong and blew the leaves over the road.", "风很大，把树叶吹过了路。"),
    ("There was fog, and the houses looked like ships.", "有雾，房子看起来像船。"),
]
ENDINGS = [
    ("In the evening everybody was tired and happy.", "到了晚上，大家又累又高兴。"),
    ("Then it was time to go home and eat soup.", "后来天晚了，就回家喝汤。"),
    ("At night there was a story, and then sleep.", "晚上听了一个故事，就睡着了。"),
    ("It was a small day, but a good one.", "这是小小的一天，也是很好的一天。"),
]
TRADES = [
    ("baker", "面包师"),
    ("luthier", "制琴师"),
    ("teacher", "老师"),
    ("doctor", "医生"),
    ("farmer", "农民"),
    ("carpenter", "木匠"),
    ("singer", "歌手"),
    ("painter", "画家"),
]
NUMBERS = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
]  # fmt: skip
DIGITS_ZH = "零一二三四五六七八九"
SURNAMES_ZH = (
    "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗梁宋郑谢韩唐冯于董萧程曹袁邓许傅沈曾彭吕苏卢"
    "蒋蔡贾丁魏薛叶阎余潘杜戴夏钟汪田任姜"
)
GIVEN_ZH = (
    "明华丽芳伟强敏静磊军洋勇艳杰娟涛超秀英霞平刚桂兰玉萍红鹏飞雪梅春秋月云龙凤海江山石文武德志建国新天宇"
    "浩博思雨欣怡佳琪梦瑶子涵晨阳光辉永清泉松柏竹青白安宁乐康健成功立信义仁智远达通宝金银星辰东南西北方圆"
    "心美慧灵巧木工坊室社团队科技大学"
)
SYLLABLES = [
    "an", "ar", "bel", "bo", "ca", "da", "del", "do", "el", "en", "fa", "fin", "ga", "gor", "ha", "hel", "in", "jo",
    "ka", "kel", "la", "len", "li", "lo", "ma", "mi", "mo", "na", "nel", "no", "o", "or", "pa", "per", "qui", "ra",
    "ri", "ro", "sa", "sel", "so", "ta", "ti", "to", "u", "va", "vel", "vi", "wa", "wen", "xa", "yo", "za", "zel",
]  # fmt: skip


def number_zh(n: int) -> str:
    """A number from 0 to 99 in Chinese numerals."""
    tens, ones = divmod(n, 10)
    if tens == 0:
        return DIGITS_ZH[ones]
    return ("" if tens == 1 else DIGITS_ZH[tens]) + "十" + (DIGITS_ZH[ones] if ones else "")


LETTERS = "abcdefghijklmnopqrstuvwxyzéèêëáàäåãçñóòôöøúùüßšžł0123456789"
MADE = [thing for thing in THINGS if thing[2] not in ("fruit", "vegetable", "animal")]


def name_en(rng: Random) -> str:
    """An invented name of one or two words; one in four is made of any letters and digits."""
    if rng.random() < 0.25:
        return "".join(rng.choices(LETTERS, k=rng.randint(3, 7))).capitalize()
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(2, 3))).capitalize() for _ in range(rng.randint(1, 2))]
    return " ".join(words)


def character_zh(rng: Random) -> str:
    """Any Chinese character, common or not."""
    return chr(rng.randint(0x4E00, 0x9FA5))


def name_zh(rng: Random) -> str:
    """A Chinese name: a surname and one to three further characters; one in four is made of any characters.

    Those show the model every byte of which a character it has no token for is made.
    """
    if rng.random() < 0.25:
        return "".join(character_zh(rng) for _ in range(rng.randint(2, 4)))
    return rng.choice(SURNAMES_ZH) + "".join(rng.choices(GIVEN_ZH, k=rng.randint(1, 3)))


def article(noun: str) -> str:
    """The noun with its indefinite article."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def paragraph_en(rng: Random) -> str:
    """One paragraph of English."""
    en, zh, kind, colour, place = rng.choice(THINGS)
    name, friend, (day, _), (trade, _) = name_en(rng), name_en(rng), rng.choice(DAYS), rng.choice(TRADES)
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    theme = rng.randrange(5)
    if theme == 0:
        count = rng.randint(2, 12)
        return (
            f"On {day} {name} went to the {place}. {rng.choice(WEATHERS)[0]} {name} was looking for {article(en)} and "
            f"found {NUMBERS[count]}. One of them went to {friend}, who said thank you. {rng.choice(ENDINGS)[0]}"
        )
    if theme == 1:
        return (
            f"{NUMBERS[a].capitalize()} plus {NUMBERS[b]} is {NUMBERS[a + b]}. "
            f"{NUMBERS[a + b].capitalize()} minus {NUMBERS[b]} is {NUMBERS[a]}. "
            f"If {name} has {NUMBERS[a]} coins and {friend} has {NUMBERS[b]}, together they have {NUMBERS[a + b]}."
        )
    if theme == 2:
        return (
            f"{article(en).capitalize()} is {article(kind)}. This {en} is {colour}, and it is in the {place}. "
            f"The Chinese word for {en} is {zh}."
        )
    if theme == 3:
        return (
            f"My name is {name}, and I am {article(trade)}. My friend is called {friend}. "
            f"We live near the {place}. On {day} we drink tea and talk about the day."
        )
    en, zh, kind, colour, place = rng.choice(MADE)
    return (
        f"The old {en} in the {place} was made by {name}. The new one was made by {friend}, {article(trade)} from the "
        f"next village. People say that {name} works slowly and well."
    )


def paragraph_zh(rng: Random) -> str:
    """One paragraph of Chinese."""
    en, zh, kind, colour, place = rng.choice(THINGS)
    name, friend, (_, day), (_, trade) = name_zh(rng), name_zh(rng), rng.choice(DAYS), rng.choice(TRADES)
    where, a, b = PLACES[place], rng.randint(1, 10), rng.randint(1, 10)
    theme = rng.randrange(5)
    if theme == 0:
        count = number_zh(rng.randint(3, 12))
        return (
            f"{day}，{name}去了{where}。{rng.choice(WEATHERS)[1]}{name}想找{zh}，一共找到了{count}个，送了一个给{friend}。"
            f"{friend}说谢谢。{rng.choice(ENDINGS)[1]}"
        )
    if theme == 1:
        x, y, total = number_zh(a), number_zh(b), number_zh(a + b)
        return f"{x}加{y}等于{total}，{total}减{y}等于{x}。{name}有{x}块糖，{friend}有{y}块糖，合起来是{total}块糖。"
    if theme == 2:
        return f"{zh}是一种{CATEGORIES[kind]}。这个{zh}是{COLOURS[colour]}的，放在{where}里。{zh}用英语说是 {en}。"
    if theme == 3:
        return f"我叫{name}，是一名{trade}。我的朋友叫{friend}。我们住在{where}旁边，{day}一起喝茶，聊一聊这一天。"
    en, zh, kind, colour, place = rng.choice(MADE)
    return (
        f"{PLACES[place]}里旧的{zh}是由{name}制作的，新的是由{friend}制作的。"
        f"{friend}是一名{trade}。大家都说{name}做得又慢又好。"
    )


def dialogue(rng: Random, chinese: bool) -> tuple[str, str]:
    """One question about a sum, a word, a colour or a kind of thing, and its answer."""
    en, zh, kind, colour, _ = rng.choice(THINGS)
    a, b = rng.randint(1, 10), rng.randint(1, 10)
    if chinese:
        x, y, total = number_zh(a), number_zh(b), number_zh(a + b)
        pairs = [
            (f"{x}加{y}是多少？", f"{x}加{y}是{total}。"),
            (f"{total}减{y}是多少？", f"{total}减{y}是{x}。"),
            (f"英语的 {en} 是什么意思？", f"{en} 的意思是{zh}。"),
            (f"{zh}是什么颜色的？", f"这个{zh}是{COLOURS[colour]}的。"),
            (f"{zh}是什么？", f"{zh}是一种{CATEGORIES[kind]}。"),
        ]
    else:
        pairs = [
            (f"How much is {NUMBERS[a]} plus {NUMBERS[b]}?", f"{NUMBERS[a]} plus {NUMBERS[b]} is {NUMBERS[a + b]}."),
            (
                f"How much is {NUMBERS[a + b]} minus {NUMBERS[b]}?",
                f"{NUMBERS[a + b]} minus {NUMBERS[b]} is {NUMBERS[a]}.",
            ),
            (f"What does {zh} mean?", f"{zh} means {en}."),
            (f"What colour is the {en}?", f"The {en} is {colour}."),
            (f"What is {article(en)}?", f"{article(en).capitalize()} is {article(kind)}."),
        ]
    question, answer = rng.choice(pairs)
    return question, answer[0].upper() + answer[1:]


def paragraphs(seed: int, count: int) -> Iterator[str]:
    """`count` paragraphs, English and Chinese in turn."""
    rng = Random(seed)
    for index in range(count):
        yield paragraph_zh(rng) if index % 2 else paragraph_en(rng)


def dialogues(seed: int, count: int) -> Iterator[tuple[str, str]]:
    """`count` pairs of question and answer, English and Chinese in turn."""
    rng = Random(seed)
    for index in range(count):
        yield dialogue(rng, chinese=bool(index % 2))
