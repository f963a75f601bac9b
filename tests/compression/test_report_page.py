"""The report: the page says what the records say, and nothing of it runs or is fetched."""

from __future__ import annotations

import math
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from build_tools import FileLimit
from family_factory import TierSpec, make_family
from report_factory import make_distillation, make_samples, rich_family, tried_of, write_files

from tierwise.compression.report.figures import rows_of
from tierwise.compression.report.training import students_of, training_table
from tierwise.compression.report.tried import TRIED, Tried, load_tried
from tierwise.compression.report.write import REPORT, report_html, write_report
from tierwise.runtime.errors import DiskFullError
from tierwise.runtime.family import Family, Quality
from tierwise.runtime.profile import Profile, family_profiles

VOID = {"meta", "link", "br", "img", "input", "hr"}
EVIL = "</title><script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;{{ 7 * 7 }}"


class Page(HTMLParser):
    """Checks nesting while it reads; keeps elements, tables and the text of each section."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.rows: dict[str, list[list[str]]] = {}
        self.words: dict[str, list[str]] = {"": []}
        self.section = ""
        self._cell: list[str] | None = None
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert len(found) == len(attrs), (tag, attrs)
        self.elements.append((tag, found))
        if tag in VOID:
            return
        self.open.append(tag)
        if tag == "section":
            self.section = found["id"] or ""
            self.words[self.section] = []
        elif tag == "tr":
            self.rows.setdefault(self.section, []).append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th"):
            self.rows[self.section][-1].append(" ".join("".join(self._cell or []).split()))
            self._cell = None
        elif tag == "section":
            self.section = ""

    def handle_data(self, data: str) -> None:
        self.words[self.section].append(data)
        if self._cell is not None:
            self._cell.append(data)

    def text(self, section: str) -> str:
        return " ".join(" ".join(self.words[section]).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [found for name, found in self.elements if name == tag]


@pytest.fixture(scope="module")
def files(wide_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_files(wide_gguf, tmp_path_factory.mktemp("tiers"))


@pytest.fixture
def family(files: dict[str, Path], tmp_path: Path) -> Family:
    return rich_family(tmp_path / "family", files)


@pytest.fixture
def plain_family(tiny_gguf: Path, tmp_path: Path) -> Family:
    """One adopted tier of which nothing was measured."""
    return make_family(tmp_path / "plain", [TierSpec("only", tiny_gguf, kl=None)])


def html_of(family: Family, *, tried: bool = True) -> str:
    candidates = tried_of(family) if tried else ()
    return report_html(family, tried=candidates, profiles=family_profiles(family))


def read(family: Family) -> Page:
    return Page(html_of(family))


# --- figures --------------------------------------------------------------------------------


def test_every_figure_of_the_table_is_that_of_the_records(family: Family) -> None:
    head, *rows = read(family).rows["front"]
    assert head[0] == "candidate"
    by_name = {row[0]: row[1:] for row in rows}
    assert list(by_name) == ["fast", "quick", "mixed", "best", "q2_k", "q6_k"]
    profiles = family_profiles(family)
    for tier in family.tiers:
        size, layers, kind, prefill, decode, call, kl, top1, success = by_name[tier.name]
        found, profile = tier.quality.divergence, profiles[tier.name]
        assert found is not None and tier.quality.tools is not None
        assert size == f"{tier.bytes / 1e3:,.0f} kB"
        assert (layers, kind) == (str(tier.layers), tier.lineage.quantization)
        assert float(prefill) == pytest.approx(300 / profile.prefill_tokens_per_s, abs=0.006)
        assert float(decode) == pytest.approx(40 / profile.decode_tokens_per_s, abs=0.006)
        assert float(call) == pytest.approx(profile.seconds(300, 40, cold=False), abs=0.006)
        assert kl == f"{found.kl_mean:.4f}"
        agreed, tools = found.top1_agreement, tier.quality.tools.overall
        assert top1 == f"{agreed.value:.1%} ({agreed.low:.1%}–{agreed.high:.1%})"
        assert success == f"{tools.value:.0%} ({tools.low:.0%}–{tools.high:.0%})"
    assert by_name["q2_k"][3:] == ["0.41", "0.33", "0.74", "1.6200", "41.0%", "–"]


def test_what_went_is_there_with_its_reason_and_grey(family: Family) -> None:
    page = read(family)
    for name, reason in family.dropped.items():
        assert f"{name} {reason}" in page.text("front")
    away = [found for found in page.all("tr") if found.get("class") == "away"]
    assert len(away) == 2
    marks = [found for found in page.all("path") if found.get("class") == "mark gone"]
    # Both in the large plot and in size, prefill and decode against KL and top-1; none of their
    # tool tasks were run. The rest are in the legend and the list.
    assert len(marks) == 2 * (1 + 6) + 1 + len(family.dropped)


def test_each_tier_is_drawn_alike_in_every_plot(family: Family) -> None:
    html = html_of(family)
    for index, tier in enumerate(family.tiers):
        found = re.findall(rf'class="mark (\w+)"><title>{tier.name}:|<title>{tier.name}:', html)
        titled = re.findall(
            rf'<path d="[^"]*" class="mark (\w+)"><title>{tier.name}: [\d,]+ kB', html
        )
        assert found and set(titled) == {f"t{index}"}
        assert len(titled) == 10  # the large plot, and three measures by three costs


def test_points_lie_where_their_figures_are(family: Family) -> None:
    """Cheaper is further left and closer to the base further up, in every plot."""
    html = html_of(family)
    plot = html[html.index("KL from the base, nats against seconds") :]
    places = {
        name: (float(x), float(y))
        for x, y, name in re.findall(
            r'd="M([\d.]+) ([\d.]+)[^"]*" class="mark t\d"><title>(\w+):',
            plot[: plot.index("</svg>")],
        )
    }
    order = ["fast", "quick", "mixed", "best"]
    assert sorted(places, key=lambda name: places[name][0]) == order
    assert sorted(places, key=lambda name: -places[name][1]) == order


def test_error_bars_are_the_intervals(family: Family) -> None:
    html = html_of(family)
    start = html.index('aria-label="success on tool tasks against file, MB')
    plot = html[start : html.index("</svg>", start)]
    ticks = {
        int(share): float(y) - 4
        for y, share in re.findall(r'y="([\d.]+)" class="tick" text-anchor="end">(\d+)%<', plot)
    }
    (low, at_low), *_, (high, at_high) = sorted(ticks.items())
    bars = re.findall(
        r'class="whisker t\d"><line x1="[\d.]+" y1="([\d.]+)" x2="[\d.]+" y2="([\d.]+)"', plot
    )
    assert len(bars) == len(family.tiers)

    def share(pixels: str) -> float:
        return (low + (float(pixels) - at_low) / (at_high - at_low) * (high - low)) / 100

    drawn = sorted((share(a), share(b)) for a, b in bars)
    real = sorted(
        (tier.quality.tools.overall.low, tier.quality.tools.overall.high)
        for tier in family.tiers
        if tier.quality.tools is not None
    )
    assert drawn == [pytest.approx(pair, abs=2e-3) for pair in real]


def test_seconds_come_from_the_build_or_else_from_the_profile(family: Family) -> None:
    profiles = family_profiles(family)
    by_build = rows_of(family, tried_of(family), {})
    by_profile = rows_of(family, (), profiles)
    for told, reckoned in zip(by_build[:4], by_profile[:4], strict=True):
        assert told.seconds == pytest.approx(reckoned.seconds)
    assert rows_of(family, (), {})[0].seconds is None
    fast = tried_of(family)[0].model_copy(update={"bytes": 1})  # of another file of that name
    assert rows_of(family, (fast,), {})[0].seconds is None


def test_estimates_are_marked(family: Family) -> None:
    guesses: dict[str, Profile] = {
        name: profile.model_copy(update={"estimated": True})
        for name, profile in family_profiles(family).items()
    }
    html = report_html(family, tried=(), profiles=guesses)
    page = Page(html)
    assert page.rows["front"][1][4].startswith("~")
    assert "reckoned, not measured" in page.text("tiers")
    assert "Speed was not measured" in html


# --- recipes --------------------------------------------------------------------------------


def test_recipes_say_how_each_tier_was_made(family: Family) -> None:
    text = read(family).text("recipes")
    assert "4 of 6; went: 2–3" in text
    assert "all 6" in text
    assert "KV cache q8_0" in text
    assert "the types of 2 tensors" in text
    assert "sha256 cdcdcdcdcdcd…" in text
    assert "43 × Q8_0, 13 × F32" in text
    for said in ("forward kl", "400 (2 skipped: not finite)", "819.2 k", "57 min"):
        assert said in text
    assert "1,200 agent tasks, 80 transcripts" in text
    assert "1.9000 → 0.2100" in text


def test_the_strip_shows_the_files_own_types(family: Family) -> None:
    html = html_of(family)
    strips = re.findall(r'<svg [^>]*class="strip">.*?</svg>', html)
    assert len(strips) == 4
    fast, _, mixed, best = strips
    assert fast.count('class="void"') == 2  # layers 2 and 3
    assert set(re.findall(r"<title>layer (\d) attn_q: Q4_0, 4.5 bits", fast)) == set("0145")
    assert set(re.findall(r"<title>layer (\d) attn_q: Q8_0, 8.5 bits", best)) == set("012345")
    assert len(set(re.findall(r"ffn_down: (\w+),", mixed))) == 2  # Q4_K_M mixes
    assert "norm" not in mixed


def test_types_are_also_said_in_words(family: Family) -> None:
    rows = {tuple(row) for row in read(family).rows["recipes"]}
    assert ("attn_q", "Q4_0 in every layer") in rows
    assert ("token_embd", "Q8_0") in rows
    mixed = [row for row in rows if row[0] == "ffn_down" and ";" in row[1]]
    assert len(mixed) == 1 and re.fullmatch(r"Q\w_K: [\d–, ]+; Q\w_K: [\d–, ]+", mixed[0][1])


def test_a_file_that_cannot_be_read_has_no_strip(family: Family) -> None:
    path = family.path("mixed")
    path.write_bytes(b"\0" * path.stat().st_size)
    page = read(family)
    assert len([found for found in page.all("svg") if found.get("class") == "strip"]) == 3


# --- training and samples -------------------------------------------------------------------


def test_tiers_of_one_student_share_a_curve(family: Family) -> None:
    (student,) = students_of(family)
    assert student.tiers == ("fast", "quick")
    page = read(family)
    curves = [found for found in page.all("path") if found.get("class") == "curve t0"]
    assert len(curves) == 4  # loss and KL, by seconds and by tokens
    assert "fast, quick: KL 1.9000 → 0.2100" in page.text("training")


def test_the_table_of_a_curve_has_its_ends(family: Family) -> None:
    rows = training_table(students_of(family))
    curve = make_distillation().curve
    assert len(rows) == 12
    for row, point in ((rows[0], curve[0]), (rows[-1], curve[-1])):
        assert row.step == f"{point.step:,}"
        assert row.loss == f"{point.loss:.4f}"
        assert row.seconds == f"{point.seconds:,.0f}"
    shown = read(family).rows["training"]
    assert shown[-1] == [rows[-1].student, *shown[-1][1:4], rows[-1].loss, rows[-1].kl]


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_loss_that_is_no_number_breaks_the_line_and_nothing_else(
    family: Family, broken: float
) -> None:
    run = make_distillation()
    point = run.curve[7].model_copy(update={"loss": broken, "kl": broken})
    run = run.model_copy(update={"curve": (*run.curve[:7], point, *run.curve[8:])})
    first = family.tiers[0]
    lineage = first.lineage.model_copy(update={"distillation": run})
    tiers = (first.model_copy(update={"lineage": lineage}), *family.tiers[1:])
    html = html_of(_with_folder(family, tiers=tiers))
    Page(html)
    assert "nan" not in "".join(re.findall(r' d="([^"]*)"', html))
    curves = re.findall(r'class="curve t0"', html)
    assert len(curves) == 4 + 4  # each in two pieces


@pytest.mark.parametrize("points", [0, 1, 2])
def test_short_curves_are_drawn_as_far_as_they_go(family: Family, points: int) -> None:
    run = make_distillation().model_copy(update={"curve": make_distillation().curve[:points]})
    tiers = tuple(
        tier.model_copy(update={"lineage": tier.lineage.model_copy(update={"distillation": run})})
        for tier in family.tiers[:1]
    )
    page = read(_with_folder(family, tiers=tiers))
    assert ("No curves were recorded." in page.text("training")) is (points == 0)


def test_samples_stand_side_by_side_with_their_verdicts(family: Family) -> None:
    text = read(family).text("samples")
    assert text.count("✓ right") == 1 + 2 + 3 + 3
    assert text.count("✗ wrong") == 2 + 1
    assert "choose_tool-hard-0031 2 of 4 right" in text
    assert text.index("fast ✗ wrong I am sorry") < text.index("quick ✓ right convert_units")
    assert 'get_weather({"value": "Oslo"})' in text


def test_a_tier_that_was_not_asked_says_so(family: Family) -> None:
    first = family.tiers[0]
    quality = first.quality.model_copy(update={"samples": make_samples((True, True, True))[:1]})
    empty = quality.samples[0].model_copy(update={"reply": "", "passed": False})
    quality = quality.model_copy(update={"samples": (empty,)})
    tiers = (first.model_copy(update={"quality": quality}), *family.tiers[1:])
    text = read(_with_folder(family, tiers=tiers)).text("samples")
    assert text.count("not asked") == 2
    assert "✗ wrong no reply" in text


# --- families that lack things --------------------------------------------------------------


def test_a_family_with_nothing_measured_still_has_a_report(plain_family: Family) -> None:
    page = Page(report_html(plain_family, tried=(), profiles={}))
    text = page.text("front")
    assert "Not measured of any tier: KL from the base, nats." in text
    assert "Not measured of any tier: success on tool tasks." in text
    assert "training" not in page.words and "samples" not in page.words
    assert page.rows["front"][1] == ["only", *page.rows["front"][1][1:4], *["–"] * 6]
    assert "One tier from one model" in page.text("")
    assert "adopted" in page.text("recipes")


def test_measured_things_without_a_divergence_are_drawn(family: Family) -> None:
    tiers = tuple(
        tier.model_copy(update={"quality": Quality(tools=tier.quality.tools)})
        for tier in family.tiers
    )
    page = Page(
        report_html(_with_folder(family, tiers=tiers), tried=(), profiles=family_profiles(family))
    )
    plots = [found["aria-label"] or "" for found in page.all("svg") if found.get("class") == "plot"]
    assert plots[0].startswith("success on tool tasks against seconds")


@pytest.mark.parametrize("kl", [0.0, math.inf, math.nan, 1e-9, 40.0])
def test_odd_divergences_neither_break_plots_nor_pass_for_others(family: Family, kl: float) -> None:
    first = family.tiers[0]
    assert first.quality.divergence is not None
    divergence = first.quality.divergence.model_copy(update={"kl_mean": kl})
    quality = first.quality.model_copy(update={"divergence": divergence})
    tiers = (first.model_copy(update={"quality": quality}), *family.tiers[1:])
    html = html_of(_with_folder(family, tiers=tiers))
    page = Page(html)
    numbers = "".join(re.findall(r' (?:d|x|y|x1|y1|cx)="([^"]*)"', html))
    assert "nan" not in numbers and "inf" not in numbers
    shown = page.rows["front"][1][7]
    assert shown == {"inf": "∞", "nan": "not a number"}.get(str(kl), f"{kl:.4f}")


def test_candidates_that_were_never_measured_are_only_listed(family: Family) -> None:
    bare = Tried(name="huge", kept=False, reason="over the limit")
    page = Page(report_html(family, tried=(bare,), profiles={}))
    assert "huge over the limit" in page.text("front")
    assert "huge" not in [row[0] for row in page.rows["front"]]


# --- the page itself ------------------------------------------------------------------------


def test_nothing_is_fetched_and_nothing_runs(family: Family) -> None:
    html = html_of(family)
    page = Page(html)
    assert not re.search(r"https?:|//\w|url\(|@import|javascript:", html)
    assert not {"script", "iframe", "img", "object", "embed", "form", "base"} & {
        tag for tag, _ in page.elements
    }
    for _, found in page.elements:
        assert not any(name.startswith("on") for name in found)
        assert (found.get("href") or "#").startswith(("#", "data:,"))
        assert "src" not in found
    policies = [f["content"] or "" for f in page.all("meta") if f.get("http-equiv")]
    assert policies[0].startswith("default-src 'none'")


def test_texts_of_others_stay_text(family: Family) -> None:
    """Names, prompts and replies come from model files and models."""
    first = family.tiers[0]
    sample = first.quality.samples[0]
    evil_sample = type(sample)(task=EVIL, prompt=EVIL, reply=EVIL, expected=EVIL, passed=False)
    run = make_distillation().model_copy(update={"loss": EVIL, "documents": {EVIL: 3}})
    lineage = first.lineage.model_copy(
        update={"quantization": EVIL, "distillation": run, "tensor_types": {EVIL: 1}}
    )
    quality = first.quality.model_copy(update={"samples": (evil_sample,)})
    tier = first.model_copy(update={"lineage": lineage, "quality": quality})
    base = family.base.model_copy(
        update={
            "name": EVIL,
            "source": EVIL,
            "licence": EVIL,
            "architecture": EVIL,
            "dequantized_from": EVIL,
        }
    )
    evil = _with_folder(
        family,
        tiers=(tier, *family.tiers[1:]),
        base=base,
        dropped={EVIL: EVIL},
        created=EVIL,
        tierwise=EVIL,
    )
    tried = (
        Tried(
            name=EVIL,
            bytes=5,
            seconds=1.0,
            kl_mean=0.1,
            prefill_s=1,
            decode_s=1,
            quantization=EVIL,
            kept=False,
            reason=EVIL,
        ),
    )
    html = report_html(evil, tried=tried, profiles=family_profiles(evil))
    page = Page(html)
    assert "<script" not in html and "<img" not in html
    tags = {tag for tag, _ in page.elements}
    assert tags == {tag for tag, _ in read(family).elements}
    assert EVIL in page.text("samples")
    assert page.text("").count(EVIL) >= 4
    assert "49" not in page.text("samples").replace(EVIL, "")


def test_the_same_input_gives_the_same_bytes(family: Family) -> None:
    profiles = family_profiles(family)
    first = write_report(family, tried=tried_of(family), profiles=profiles).read_bytes()
    again = Family.load(family.folder)
    assert (
        write_report(again, tried=load_tried(family.folder), profiles=profiles).read_bytes()
        == first
    )
    assert sorted(path.name for path in family.folder.iterdir() if path.suffix != ".gguf") == [
        "family.json",
        REPORT,
        TRIED,
    ]


def test_plots_have_names_and_tables_have_headings(family: Family) -> None:
    page = read(family)
    for svg in page.all("svg"):
        hidden = svg.get("aria-hidden") == "true"
        assert hidden or (svg["role"] == "img" and svg["aria-label"])
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(found.get("scope") in ("col", "row") for found in page.all("th"))
    assert page.all("html")[0]["lang"] == "en"
    targets = {found["id"] for _, found in page.elements if found.get("id")}
    links = [found["href"] or "" for found in page.all("a")]
    assert links and {link.removeprefix("#") for link in links} <= targets
    named = [found["aria-labelledby"] for _, found in page.elements if "aria-labelledby" in found]
    assert set(named) <= targets


def test_a_full_disk_leaves_the_old_report(family: Family, file_limit: FileLimit) -> None:
    path = family.folder / REPORT
    path.write_text("old")
    with file_limit(4096), pytest.raises(DiskFullError, match=r"report\.html|tried\.json"):
        write_report(family, tried=(), profiles={})
    assert path.read_text() == "old"


def test_a_damaged_list_of_candidates_is_as_good_as_none(family: Family) -> None:
    assert load_tried(family.folder) == ()
    (family.folder / TRIED).write_text('{"tried": [{"name": 3}]}')
    assert load_tried(family.folder) == ()
    (family.folder / TRIED).write_bytes(b"\xff\xfe")
    assert load_tried(family.folder) == ()
    write_report(family, tried=tried_of(family), profiles={})
    assert load_tried(family.folder) == tried_of(family)


def _with_folder(family: Family, **changes: object) -> Family:
    """A changed copy that still knows where its files are."""
    changed = family.model_copy(update=changes)
    changed._folder = family.folder
    return changed
