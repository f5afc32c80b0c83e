"""The table of a comparison, from ``compare.json``: for the terminal, Markdown and the page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from emptyset.report.quality import cosine_text, distance_text, features_text, variance_text

FLOAT = "float network"
TOP1 = "top-1 %"


@dataclass(frozen=True)
class Table:
    """A table of texts; columns in which nothing was measured are left out.

    Attributes:
        titles: One per column; the first names the row.
        rows: One text per column.
        meanings: What each column says, by its title.
        costs: Number of the last columns that tell what a row cost.
    """

    titles: list[str]
    rows: list[list[str]]
    meanings: dict[str, str]
    costs: int

    def halves(self) -> "tuple[Table, Table]":
        """What came of the images, and what they cost: two tables for a narrow screen."""
        first = len(self.titles) - self.costs
        return self._with(range(first)), self._with([0, *range(first, len(self.titles))])

    def _with(self, columns: Sequence[int]) -> "Table":
        rows = [[row[column] for column in columns] for row in self.rows]
        titles = [self.titles[column] for column in columns]
        # A row in which nothing is told is left out.
        rows = [row for row in rows if set(row[1:]) - {"–"}]
        return Table(titles, rows, self.meanings, 0)


@dataclass(frozen=True)
class _Column:
    title: str
    meaning: str
    read: Callable[[dict[str, Any]], str]
    cost: bool = False


def comparison_table(result: dict[str, Any]) -> Table:
    """All rows of a comparison; the float network stands first where its top-1 is known.

    Args:
        result: What ``compare.json`` holds.
    """
    rows = result["rows"]
    texts = {column: [column.read(row) for row in rows] for column in _COLUMNS}
    shown = [column for column, values in texts.items() if set(values) - {"–"}]
    table = [
        [row["name"], *(texts[column][index] for column in shown)] for index, row in enumerate(rows)
    ]
    seen = features_text([row["quality"] for row in rows])
    top1 = (result["teacher"].get("accuracy") or {}).get("top1")
    if top1 is not None:
        first = [_percent(top1) if column.title == TOP1 else "–" for column in shown]
        table.insert(0, [FLOAT, *first])
    return Table(
        titles=["images", *(column.title for column in shown)],
        rows=table,
        meanings={column.title: column.meaning.format(seen=seen) for column in shown},
        costs=sum(column.cost for column in shown),
    )


def facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What holds for every row: name and text."""
    judged, teacher = result["judged"], result["teacher"]
    kind = "labelled images" if judged["labelled"] else "images"
    return [
        ("teacher", f"{teacher['name']} (weights {teacher['weights_hash'][:12] or 'unknown'})"),
        ("images", f"{result['comparison']['count']:,} of each"),
        ("budget", result["budget"]),
        ("student", _student(result)),
        ("judged on", f"{judged['count']:,} {kind}: {judged['on']}"),
        ("seed", str(result["comparison"]["seed"])),
    ]


def notes(result: dict[str, Any]) -> list[str]:
    """What is to be said about single rows, and what the numbers are not."""
    told = [f"{row['name']}: {row['fault']}" for row in result["rows"] if row["fault"]]
    told += [f"{row['name']}: {row['remark']}" for row in result["rows"] if row["remark"]]
    plan = result["plan"]
    if plan and plan["float_inputs"]:
        told.append(
            f"This plan leaves {len(plan['float_inputs'])} inputs of layers in float: "
            f"{', '.join(plan['float_inputs'])}."
        )
    told.append(
        "Top-1 and agreement are of the simulated student; emptyset run with a row's recipe.yaml "
        "goes on to a file."
    )
    if not result["judged"]["labelled"]:
        told.append("No labels were given, so accuracy is not known.")
    return told


def markdown(result: dict[str, Any]) -> str:
    """The page ``compare.md``."""
    table = comparison_table(result)
    lines = [f"# Images for {result['teacher']['name']} compared", ""]
    lines += [f"* {name}: {text}" for name, text in facts(result)]
    lines += ["", *_markdown_table(table.titles, table.rows), ""]
    lines += [f"* **{title}**: {meaning}" for title, meaning in table.meanings.items()]
    lines += ["", *(f"* {note}" for note in notes(result))]
    lines += ["", "Repeat it:", "", "```", result["command"], "```", ""]
    return "\n".join(lines)


def _markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["---:"] * (len(titles) - 1)]
    cells = [[text.replace("|", "\\|") for text in row] for row in (titles, rule, *rows)]
    return ["| " + " | ".join(row) + " |" for row in cells]


def _student(result: dict[str, Any]) -> str:
    plan = result["plan"]
    where = f"{plan['bits']}, plan {plan['name']}" if plan else "none yet"
    return f"{where}; {' → '.join(result['refine'])}"


# One row's values ------------------------------------------------------------------------------


def _top1(row: dict[str, Any]) -> str:
    found = (row["student"] or {}).get("quantized")
    return _percent(found["top1"] if found else None)


def _agreement(row: dict[str, Any]) -> str:
    found = (row["student"] or {}).get("agreement")
    return _percent(found["share"] if found else None)


def _class_agreement(row: dict[str, Any]) -> str:
    found = (row["quality"] or {}).get("diversity") or {}
    return _percent(found.get("class_agreement"))


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.2f}"


def _quality(read: Callable[..., str], *arguments: str) -> Callable[[dict[str, Any]], str]:
    return lambda row: read(row["quality"] or {}, *arguments)


def _whole(name: str) -> Callable[[dict[str, Any]], str]:
    def read(row: dict[str, Any]) -> str:
        value = (row["images"] or {}).get(name)
        return "–" if value is None else f"{value:,}"

    return read


def _decimal(name: str) -> Callable[[dict[str, Any]], str]:
    def read(row: dict[str, Any]) -> str:
        value = (row["images"] or {}).get(name)
        return "–" if value is None else f"{value:,.1f}" if value < 1000 else f"{value:,.0f}"

    return read


def _student_seconds(row: dict[str, Any]) -> str:
    value = (row["student"] or {}).get("seconds")
    return "–" if value is None else f"{value:.1f}"


_COLUMNS = (
    _Column(TOP1, "of the student, on the labelled images", _top1),
    _Column("agreement %", "how often the student names the teacher's class", _agreement),
    _Column(
        "BN distance",
        "Σ over layers of the norms between the images' statistics and the stored ones, mean ± "
        "standard deviation over batches",
        _quality(distance_text, "sum_l2"),
    ),
    _Column(
        "BN mse",
        "the same, squares averaged over channels and layers",
        _quality(distance_text, "mean_mse"),
    ),
    _Column(
        "similarity",
        "mean cosine of the {seen} over all pairs of images; lower is more diverse",
        _quality(cosine_text, "diversity", "similarity"),
    ),
    _Column(
        "within class",
        "the same over the pairs of each class",
        _quality(cosine_text, "diversity", "similarity_within_class"),
    ),
    _Column(
        "variance within class",
        "of the {seen}, summed, mean over the classes; higher is more diverse",
        _quality(variance_text),
    ),
    _Column(
        "CLIP",
        "mean cosine of CLIP's embeddings over all pairs of images",
        _quality(cosine_text, "clip", "similarity"),
    ),
    _Column(
        "CLIP within class",
        "the same over the pairs of each class",
        _quality(cosine_text, "clip", "similarity_within_class"),
    ),
    _Column(
        "class agreement %",
        "how often the teacher gives an image the class it was made for",
        _class_agreement,
    ),
    _Column("number", "images that the student was fitted to", _whole("count"), cost=True),
    _Column(
        "image-iterations",
        "images times steps: forwards and backwards of one image through a teacher",
        _whole("image_iterations"),
        cost=True,
    ),
    _Column("steps", "of every batch", _whole("steps"), cost=True),
    _Column("seconds", "that making the images took", _decimal("seconds"), cost=True),
    _Column("images/s", "images made per second", _decimal("per_second"), cost=True),
    _Column("student s", "seconds that fitting the student took", _student_seconds, cost=True),
)
