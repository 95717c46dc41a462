"""What a look at a data set has shown: as tables, charts and sentences of its report."""

from __future__ import annotations

from collections.abc import Mapping

from luthier.base.records import Json
from luthier.prepare.advice import CLASSIFY, PRETRAIN, advice_for, judged
from luthier.prepare.census import USES
from luthier.prepare.distribution import Spread, bins, deviation_of, spread
from luthier.prepare.gaps import by_deviation, by_quartiles
from luthier.prepare.report import Chart, Report, Table
from luthier.prepare.spill import Spill

_REMEDIES = {
    "encoding": "luthier data clean repairs them",
    "control_characters": "luthier data clean removes them",
    "html": "--html true of luthier data clean takes the text out",
    "torn_tags": "--torn_tags drop of luthier data clean leaves these rows out",
    "damaged": "nothing repairs them; --damaged drop of luthier data clean leaves these rows out",
}
_PERSONAL = ("secret", "email", "phone", "id_number", "card", "ip")


def columns(counts: Mapping[str, Mapping[str, int]], total: int) -> Table:
    """What each column holds, and how often it is missing."""
    found: list[dict[str, Json]] = []
    for name, seen in counts["seen"].items():
        kinds = [kind for kind in ("text", "number", "truth", "list", "object") if counts[kind].get(name)]
        missing = counts["missing"].get(name, 0) + total - seen
        share = round(missing / total, 4)
        found.append(
            {"column": name, "holds": ", ".join(kinds), "rows": seen, "missing": missing, "share missing": share}
        )
    return Table("Columns", found)


def shares(title: str, name: str, counts: Mapping[str, int], total: int) -> Table:
    """How many rows each has of what `name` says, and their share."""
    return Table(title, [{name: key, "rows": n, "share": round(n / total, 4)} for key, n in counts.items()])


def chart(title: str, counts: Mapping[str, int], at_most: int = 20) -> Chart:
    """Bars of the first counts, and one of the others together."""
    shown = dict(list(counts.items())[:at_most])
    rest = sum(counts.values()) - sum(shown.values())
    if rest:
        shown["others"] = rest
    return Chart(title, list(shown), list(shown.values()))


def add_lengths(report: Report, lengths: Mapping[str, Spill], tokens: Spill, characters: Spread) -> None:
    """How long rows are, in characters and in tokens."""
    found: list[dict[str, Json]] = [{"of": "characters of a row", **characters.shown()}]
    for name in USES:
        if any(block.any() for block in lengths[name].blocks()):
            found.append({"of": f"characters of its {name}s", **spread(lengths[name]).shown()})
    found.append({"of": "tokens of a row", **spread(tokens).shown()})
    report.tables.append(Table("Lengths", found))
    report.charts += [
        Chart("Characters of a row", *bins(lengths["characters"]), x="characters"),
        Chart("Tokens of a row", *bins(tokens), x="tokens"),
    ]


def add_balance(report: Report, name: str, labels: Mapping[str, int]) -> None:
    """How many rows each class has, and whether that is enough to learn from."""
    counts = dict(sorted(labels.items(), key=lambda entry: -entry[1]))
    report.tables.append(shares(f"Classes in {name}", "label", counts, sum(counts.values())))
    report.charts.append(chart(f"Classes in {name}", counts))
    most, fewest = max(counts.values()), min(counts.values())
    report.summary["classes"] = len(counts)
    if len(counts) == 1:
        what = f"The column {name} holds one class only, {next(iter(counts))}: nothing can be learned from it"
        report.notes.append(f"{what}, neither by a classifier nor by KTO.")
    if most > 3 * fewest:
        what = (
            f"The largest class has {most / fewest:.1f} times the rows of the smallest; luthier data balance evens out"
        )
        report.notes.append(f"{what}.")


def add_outliers(report: Report, columns: Mapping[str, Spill], spreads: Mapping[str, Spread]) -> None:
    """How many numbers of each column are unusual, by two rules."""
    found: list[dict[str, Json]] = []
    for name, values in columns.items():
        row: dict[str, Json] = {"column": name}
        known = spreads[name]
        usual = by_quartiles(*known.quartiles)
        ranges = {"iqr": usual, "zscore": by_deviation(known.mean, deviation_of(values, known.mean))}
        for rule, (low, high) in ranges.items():
            outside = (int(((block < low) | (block > high)).sum()) for block in values.blocks())
            row[f"outliers by {rule}"] = sum(outside)
        low = max(0.0, usual.low) if name == "characters" else usual.low
        found.append({**row, "usual from": round(low, 3), "to": round(usual.high, 3)})
    report.tables.append(Table("Numbers", found))


def add_notes(
    report: Report, counts: Mapping[str, Mapping[str, int]], duplicates: int, total: int, tokenizer: str, counted: int
) -> None:
    """What is wrong and what mends it, and how tokens were counted."""
    if duplicates:
        what = f"{duplicates:,} of {total:,} rows {'repeats' if duplicates == 1 else 'repeat'} an earlier one"
        report.notes.append(f"{what}; luthier data dedup removes {'it' if duplicates == 1 else 'them'}.")
    trouble = counts["trouble"]
    for name, remedy in _REMEDIES.items():
        if trouble.get(name):
            what = "rows whose tags break their scheme" if name == "torn_tags" else "texts"
            report.notes.append(f"{name.replace('_', ' ')}: {trouble[name]:,} {what}; {remedy}.")
    personal = {name: trouble[name] for name in _PERSONAL if trouble.get(name)}
    if personal:
        shown = ", ".join(f"{name} {n:,}" for name, n in personal.items())
        report.notes.append(f"Personal data and secrets: {shown}; --mask of luthier data clean hides them.")
    if counts["shape"].get("unknown"):
        unknown = counts["shape"]["unknown"]
        rows = "1 row has" if unknown == 1 else f"{unknown:,} rows have"
        report.notes.append(f"{rows} no known shape; --columns renames their columns.")
    how = "all rows" if counted == total else f"{counted:,} rows, the others estimated by their characters"
    report.notes.append(f"Tokens were counted with the tokenizer of {tokenizer}, in {how}.")


def add_advice(
    report: Report,
    counts: Mapping[str, Mapping[str, int]],
    total: int,
    tokens: int,
    labels: tuple[str, Mapping[str, int]] | None,
) -> None:
    """Rules of thumb for what most rows are made for."""
    shape, task = next(iter(counts["shape"])), next(iter(counts["task"]))
    advice = advice_for(shape, task or None)
    if advice is None:
        return
    if advice is CLASSIFY:
        if labels is not None and len(labels[1]) > 1:
            report.notes.append(judged(advice, min(labels[1].values())))
        return
    report.notes.append(judged(advice, tokens if advice is PRETRAIN else total))
