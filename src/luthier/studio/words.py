"""The words of the pages, in English and Chinese.  Settings explain themselves in English, as on the command line."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

Language = Literal["en", "zh"]
Words = Callable[[str], str]
"""From a word's name to the word in the reader's language."""

WORDS: Mapping[str, tuple[str, str]] = {
    # the frame
    "runs": ("Runs", "训练"),
    "train": ("Train", "新训练"),
    "data": ("Data", "数据"),
    "chat": ("Chat", "对话"),
    "reports": ("Reports", "报告"),
    "other_language": ("中文", "EN"),
    "brightness": ("Light or dark", "明暗"),
    "not_found": ("This page cannot be shown", "无法显示此页"),
    "copy": ("Copy", "复制"),
    "copied": ("Copied", "已复制"),
    # runs
    "no_runs": ("No runs below these folders yet.", "这些文件夹里还没有训练。"),
    "first_run": ("Start the first one", "开始第一个训练"),
    "name": ("Name", "名称"),
    "phase": ("State", "状态"),
    "step": ("Step", "步"),
    "loss": ("Loss", "损失"),
    "tokens_per_second": ("Tokens/s", "词元/秒"),
    "memory": ("Memory", "内存"),
    "eta": ("Left", "剩余"),
    "updated": ("Changed", "更新"),
    "preparing": ("preparing", "准备中"),
    "training": ("training", "训练中"),
    "stale": ("silent", "无响应"),
    "finished": ("finished", "已完成"),
    "stopped": ("stopped, can go on", "已停止，可继续"),
    "failed": ("failed", "失败"),
    "stopping": ("saving, then stopping", "保存后停止"),
    "ago": ("{} ago", "{}前"),
    "days": ("d", "天"),
    "hours": ("h", "小时"),
    "minutes": ("min", "分钟"),
    "seconds": ("s", "秒"),
    "commands": ("Commands started here", "在此启动的命令"),
    "running": ("running", "运行中"),
    "done": ("done", "完成"),
    "ended": ("ended", "已结束"),
    "command": ("Command", "命令"),
    "open_run": ("Open the run", "打开训练"),
    # forms
    "train_about": (
        "Name a model and data; everything else has a default. What is trained follows from the rows.",
        "指定模型和数据即可，其余都有默认值；训练什么由数据的形状决定。",
    ),
    "as_command": ("The same on the command line", "对应的命令行"),
    "all_settings": ("All settings", "全部设置"),
    "general": ("general", "通用"),
    "search": ("Search names and explanations", "搜索名称与说明"),
    "nothing_found": ("No setting is like that.", "没有匹配的设置。"),
    "unset": ("unset", "未设置"),
    "check": ("Check", "检查"),
    "look": ("Look at the data", "预览数据"),
    "start": ("Start", "开始"),
    "plan": ("Plan memory and time", "估算内存与时间"),
    "compare": ("Compare", "比较"),
    "settings_fit": (
        "These settings fit together. “Look at the data” reads the model's tokenizer and the rows. The whole settings:",
        "这些设置彼此相容。“预览数据”会读取模型的分词器和数据行。完整设置：",
    ),
    "browse": ("Browse", "浏览"),
    "use_folder": ("Take this folder", "选择此文件夹"),
    "close": ("Close", "关闭"),
    # data
    "data_about": (
        "Look at files and turn them into a training set. Files that are read are never changed.",
        "查看文件并整理成训练集。读取的文件不会被改动。",
    ),
    "verb": ("What to do", "操作"),
    "no_inputs": ("Choose files to read first", "请先选择要读取的文件"),
    # chat
    "model": ("Model, run or adapter", "模型、训练或适配器"),
    "sampling": ("How it answers", "回答方式"),
    "system": ("System message", "系统提示"),
    "system_about": ("Unset: the one that the model was trained with", "留空：使用模型训练时的系统提示"),
    "beside": ("Another model beside it", "并排另一个模型"),
    "say": ("Say something", "说点什么"),
    "send": ("Send", "发送"),
    "stop_answer": ("Stop", "停止"),
    "choose_model": ("Choose a model first", "请先选择模型"),
    "forget": ("Forget what was said", "清空对话"),
    "unload": ("Unload the model", "卸载模型"),
    "unloaded": ("The model is unloaded", "模型已卸载"),
    "loading": ("loading the model", "正在加载模型"),
    "thinking": ("answering", "正在回答"),
    "answer_stopped": ("stopped", "已停止"),
    # reports
    "no_reports": ("No reports yet. These commands write some:", "还没有报告。这些命令会生成报告："),
    # a run
    "stop": ("Stop and save", "停止并保存"),
    "stop_asked": ("Asked to stop: it finishes the step and saves", "已请求停止：完成当前步后保存"),
    "resume": ("Go on", "继续训练"),
    "talk": ("Chat with it", "与它对话"),
    "evaluation": ("Evaluation", "评估"),
    "in_training": ("Training", "训练"),
    "learning_rate": ("Learning rate", "学习率"),
    "grad_norm": ("Gradient norm", "梯度范数"),
    "no_curves": ("Nothing has been measured yet.", "还没有测量数据。"),
    "overview": ("Curves", "曲线"),
    "events": ("Events", "事件"),
    "preview": ("Trained tokens", "训练的词元"),
    "settings": ("Settings", "设置"),
    "report": ("Report", "报告"),
    "use": ("Use it", "使用"),
    "Go on where it stopped": ("Go on where it stopped", "从停下的地方继续"),
    "Talk to it": ("Talk to it", "与它对话"),
    "Teach it more, from other data": ("Teach it more, from other data", "用别的数据继续教它"),
    "Classify a file": ("Classify a file", "为文件分类"),
    "Let it write for a file": ("Let it write for a file", "为文件写出目标文本"),
    "checkpoints": ("Checkpoints", "检查点"),
    "environment": ("Environment", "环境"),
    "nothing_here": ("There is nothing here yet.", "这里还没有内容。"),
    "in_python": ("In Python, without Luthier", "在 Python 中使用，无需 Luthier"),
    "best": ("best", "最佳"),
    "latest": ("latest", "最新"),
    "rows": ("Rows", "行"),
    "kept": ("Kept", "保留"),
    "samples": ("Samples", "样本"),
    "tokens": ("Tokens", "词元"),
    "trained_share": ("Trained", "训练占比"),
}
"""Each word by its name: (English, Chinese)."""


def words_in(language: Language) -> Words:
    """The words of one language."""
    place = 1 if language == "zh" else 0
    return lambda name: WORDS[name][place]


def language_of(chosen: str | None, accepted: str) -> Language:
    """The language of a reader: what was chosen, or what the browser asks for.

    Args:
        accepted: the header Accept-Language.
    """
    if chosen in ("en", "zh"):
        return "zh" if chosen == "zh" else "en"
    return "zh" if accepted.strip().lower().startswith("zh") else "en"
