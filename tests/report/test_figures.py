"""Figures: readable alone, the same bytes each time, and a sentence where nothing can be drawn."""

import importlib
import sys
from xml.etree import ElementTree

import polars as pl
import pytest

from tests.conftest import in_child
from wsrun.report import drawing, effect_figures, frames, retained_figures, tile_figures

matplotlib = pytest.importorskip("matplotlib")
SVG = "{http://www.w3.org/2000/svg}"
WORDS = {"keep_a": "kept: part a", "drop_a": "removed: part a", "keep_b": "kept: part b"}
SHARES = {"full": 1.0, "keep_a": 0.25, "drop_a": 0.75, "keep_b": 0.5}
ENERGY = {"full": 1.0, "keep_a": 0.5, "drop_a": 0.5, "keep_b": 0.9}
PART = {"keep_a": "keep", "drop_a": "drop", "keep_b": "control"}


def summary(shares=SHARES, datasets=("claims",), families=("lora", "ia3"), k=8, **more):
    """Lines as in a summary table, with twenty null draws at shares 0.00 to 0.19."""
    draws = {f"spectrum_null#{i:02d}": i / 100 for i in range(20)}
    lines = [
        {"model": "tiny", "behaviour": "honest", "prompt_style": "chat", "dataset": dataset}
        | {"family": family, "variant": variant, "k": k if variant in WORDS else None, "alpha": 2.0}
        | {"n": 96, "clusters": 48, "seeds": 3, "effect": None if r is None else 2 * r}
        | {"retained": r, "energy": ENERGY.get(variant), "keep_or_drop": PART.get(variant)}
        | {
            f"retained_{end}": None if r is None else r + d
            for end, d in (("lo", -0.1), ("hi", 0.2))
        }
        | {"system": "own" if variant in WORDS else None}
        | more
        for dataset in datasets
        for family in families
        for variant, r in (shares | draws).items()
    ]
    return pl.DataFrame(lines, infer_schema_length=None)


def cells():
    at = {("lora", 0, "up"): 0.5, ("lora", 1, "q_proj"): -0.123, ("ia3", 0, "down"): None}
    lines = [(*key, share, "claims", 96, 48) for key, share in at.items()]
    names = ["family", "layer", "module", "retained", "dataset", "n", "clusters"]
    return pl.DataFrame(lines, schema=names, orient="row")


def truths():
    lines = [("late", "locus", 5, 0, 0, 5, "supported"), ("late", "core", 4, 1, 0, 5, None)]
    lines += [("none", "locus", 1, 2, 2, 5, "not supported")]
    names = ["plant", "rule", "supported", "refuted", "undetermined", "seeds", "expected"]
    return pl.DataFrame(lines, schema=names, orient="row")


def curves(top=2.0):
    """Two families at doses -1, 0 and 2, effect = top * alpha / 2, in two data sets."""
    lines = [
        {"model": "tiny", "behaviour": "honest", "dataset": dataset, "family": family}
        | {"alpha": a, "effect": top * a / 2, "lo": top * a / 2 - abs(a), "hi": top * a / 2 + 1}
        | {"n": 96, "clusters": 48, "seeds": 3}
        for dataset in BOTH
        for family in ("lora", "ia3")
        for a in (2.0, -1.0, 0.0)
    ]
    return pl.DataFrame(lines)


def grid():
    """effect = layer + c / 2, one less in the second data set; coefficient c = 4 is flagged."""
    places = [("mean_diff@layer 2", 2), ("mean_diff@layer 10", 4), ("mean_diff_all@all layers", 0)]
    lines = [
        {"model": "tiny", "behaviour": "honest", "dataset": dataset, "variant": variant, "alpha": a}
        | {"effect": layer + a / 2 - i, "flagged_share": 0.2 if a == 4 else 0.0}
        | {"n": 96, "clusters": 48}
        for i, dataset in enumerate(BOTH)
        for variant, layer in places
        for a in (1.0, 4.0)
    ]
    return pl.DataFrame(lines)


MODULES = (retained_figures, tile_figures, effect_figures)
ASK = "Which part carries the behaviour?"
BOTH = ("claims", "dilemmas")
TABLES = {
    "retained_by_family": lambda: summary(datasets=BOTH),
    "retained_by_slice": summary,
    "retained_by_layer_and_module": cells,
    "retained_by_energy": summary,
    "confusion": truths,
    "effects_by_dose": curves,
    "effects_by_layer": grid,
}
MORE = {
    "retained_by_family": (WORDS, "full"),
    "retained_by_slice": ({"a": "part a", "b": "part b"}, "full"),
    "retained_by_layer_and_module": (),
    "retained_by_energy": ("system", {"own": "own directions"}),
    "confusion": ({"late": "late layers only"},),
    "effects_by_dose": (),
    "effects_by_layer": (0.1,),
}
TEXTS = {  # axis labels, legends and captions
    "retained_by_family": """effect kept (share of the whole's effect) | adapter family; below
        it, the effect of its whole weight change (nats) | kept: part a | removed: part a | data
        set: dilemmas | IA³ | thresholds of the rule: 0.7 and 0.3 | Grey band: lowest to highest of
        20 null changes | Bars: 95 % cluster-bootstrap intervals | Data set claims: 96 items in 48
        clusters. Data set dilemmas: 96 items in 48 clusters. Seeds: 3. Dose alpha: 2. Model: tiny.
        Behaviour: honest. | And a note.""",
    "retained_by_slice": """part a | part b | kept: the slice alone | removed: all but the slice
        | LoRA (+2.00) | effect kept (share of the whole's effect) | Data set claims: 96 items in 48
        clusters | Grey band: | 95 % cluster-bootstrap | And a note.""",
    "retained_by_layer_and_module": """q | up | down | module | layer (0 is the first) | 50 |
        -12 | Hatched: | in % of the whole's | Data set claims: 96 items in 48 clusters | And a
        note.""",
    "retained_by_energy": """own directions | kept: the part alone | removed: all but the part |
        control: random part of the same norm | energy (share of the whole's squared norm) | effect
        kept | On the dotted diagonal a part keeps as much effect as it has energy | Grey band: |
        Seeds: 3. Dose alpha: 2. | And a note.""",
    "confusion": """5 / 0 / 0 truth: yes | 4 / 1 / 0 truth: open | 1 / 2 / 2 truth: no | locus |
        late layers only | decision rule | what was planted | 100 % agree | Each cell: in how many
        runs | Seeds: 5. | And a note.""",
    "effects_by_dose": """LoRA | IA³ | data set claims | data set dilemmas | dose alpha of dW |
        effect (nats) | Bands: 95 % cluster-bootstrap intervals | Dose 0 is the model as it is. |
        Data set claims: 96 items in 48 clusters. | Seeds: 3. Model: tiny. Behaviour: honest. | And
        a note.""",
    "effects_by_layer": """mean diff | mean diff all | coefficient | layer (0 is the first) |
        +4.0 nats | Framed: the largest of a method. | more than 10% of the rows | Data set
        dilemmas: 96 items in 48 clusters. Model: tiny. Behaviour: honest. | And a note.""",
}


def draw(kind, path, table=None, **more):
    table = TABLES[kind]() if table is None else table
    (module,) = (m for m in MODULES if hasattr(m, kind))
    return getattr(module, kind)(table, path, ASK, *MORE[kind], note="And a note.", **more)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Each figure once: (sentence, path of its table)."""
    folder = tmp_path_factory.mktemp("figures")
    paths = {kind: folder / kind / "t.x.parquet" for kind in TABLES}
    return {kind: (draw(kind, path), path) for kind, path in paths.items()}


def text(path):
    """All text of the SVG beside a table, in drawing order, with single spaces."""
    parts = ElementTree.parse(path.with_suffix(".svg")).iter(f"{SVG}text")
    return " ".join(" ".join("".join(part.itertext()) for part in parts).split())


def tint(share):
    """The colour that is `share` of the way from WRONG to RIGHT."""
    mixed = [w + share * (r - w) for w, r in zip(drawing.WRONG, drawing.RIGHT, strict=True)]
    return matplotlib.colors.to_hex(mixed)


def marks(path, colour, of="axes_1"):
    """(x, y, filled) of the marks with lines of this colour in one panel of an SVG, by place."""
    root = ElementTree.parse(path.with_suffix(".svg")).getroot()
    panel = next(g for g in root.iter(f"{SVG}g") if g.get("id") == of)
    uses = [u.attrib for u in panel.iter(f"{SVG}use")]
    uses = [u for u in uses if f"stroke: {colour.lower()}" in u.get("style", "")]
    return sorted((float(u["x"]), float(u["y"]), "#ffffff" not in u["style"]) for u in uses)


@pytest.mark.parametrize("kind", TABLES)
def test_a_figure_speaks_for_itself(drawn, kind):
    """title, axis labels, legend and caption stand in the SVG as text; nothing is cut in the PNG"""
    sentence, path = drawn[kind]
    files = [path.with_suffix(".png"), path.with_suffix(".svg")]
    assert sorted(path.parent.iterdir()) == files
    assert sentence == f"figures {files[0]} and {files[1]}"
    found = text(path)
    for words in (ASK, *TEXTS[kind].split("|")):
        assert " ".join(words.split()) in found
    image = matplotlib.image.imread(files[0])
    height, width = image.shape[:2]
    assert width == 1280 and height > 400
    for edge in (image[:4], image[-4:], image[:, :4], image[:, -4:]):
        assert (edge == 1).all()


@pytest.mark.parametrize("kind", TABLES)
def test_same_table_same_bytes(drawn, kind, tmp_path):
    """bytes(table) are the same under any settings of the user, whose settings stay as they are"""
    path = drawn[kind][1]
    with matplotlib.rc_context({"font.size": 22, "svg.fonttype": "path", "lines.linewidth": 7}):
        before = matplotlib.rcParams.copy()
        draw(kind, tmp_path / "t.parquet")
        assert matplotlib.rcParams.copy() == before
    for suffix in (".png", ".svg"):
        again = (tmp_path / "t").with_suffix(suffix).read_bytes()
        assert again == path.with_suffix(suffix).read_bytes()
        assert b"Matplotlib v" not in again and b"dc:date" not in again


def test_a_share_stands_where_it_is(tmp_path):
    """x(r) = x(0) + r (x(1) - x(0)) for kept (filled) and removed (hollow) marks"""
    shares = {"full": 1.0, "keep_a": 0.0, "keep_b": 1.0, "keep_c": 0.25, "drop_c": 0.75}
    table = summary(shares | {"control_c": 0.5}, families=("lora",))
    path, words = tmp_path / "t.parquet", {name: f"part {name}" for name in "abc"}
    retained_figures.retained_by_slice(table, path, ASK, words, "full")
    kept, removed, control = (
        marks(path, colour) for colour in (drawing.COLOURS[0], drawing.COLOURS[6], drawing.FAINT)
    )
    (x0, y0, _), (x, y, _), (x1, y1, _) = kept
    assert x == pytest.approx(x0 + 0.25 * (x1 - x0), abs=1e-3)
    assert y0 < y1 < y  # in the order of the words, downwards
    assert removed[0][0] == pytest.approx(x0 + 0.75 * (x1 - x0), abs=1e-3)
    assert all(filled for *_, filled in kept) and not removed[0][2]
    assert y < control[0][1] < removed[0][1] < y + (y - y1)  # all on the line of c
    assert control[0][0] == pytest.approx((x0 + x1) / 2, abs=1e-3)


def test_scatter_places_energy_and_share(drawn):
    """kept and removed parts of one energy share x; the higher share stands higher, hollow"""
    kept, removed = sorted(
        marks(drawn["retained_by_energy"][1], drawing.COLOURS[0]), key=lambda m: -m[1]
    )
    assert kept[0] == removed[0] and kept[1] > removed[1]
    assert kept[2] and not removed[2]


def test_a_dose_stands_where_it_is(drawn):
    """x(0) - x(-1) = (x(2) - x(-1)) / 3, and so for the effect, which is alpha"""
    points = [m for m in marks(drawn["effects_by_dose"][1], drawing.COLOURS[0]) if m[2]]
    (x0, y0, _), (x1, y1, _), (x2, y2, _) = points[:3]
    assert x1 - x0 == pytest.approx((x2 - x0) / 3, abs=1e-3)
    assert y1 - y0 == pytest.approx((y2 - y0) / 3, abs=1e-3) and y2 < y1 < y0  # svg: y goes down


def test_a_layer_and_coefficient_stand_where_they_are(drawn):
    """mean effect of (layer l, c) = l + c/2 - 1/2: 2.0 and 4.0 at c = 1, 5.5 hatched at c = 4"""
    found = text(drawn["effects_by_layer"][1]).partition("mean diff ")[0].split()
    numbers = [float(x) for x in found if x.count(".") == 1 and x.replace(".", "").isdigit()]
    assert numbers == [2.0, 3.5, 4.0, 5.5]


def test_a_method_stands_at_its_effect(tmp_path):
    """(x(3) - x(0)) = 3 (x(1) - x(0)); the largest effect on top; controls hollow"""
    lines = [
        {"model": "tiny", "behaviour": "honest", "prompt_style": "chat", "dataset": "claims"}
        | {
            "method_name": w,
            "variant": f"{w}@a",
            "family": None,
            "alpha": 1.0,
            "role": role,
            "n": 9,
        }
        | {"effect": e, "lo": e - 1, "hi": e + 1, "clusters": 9, "seeds": 1}
        for w, e, role in (("b", 1.0, "selected"), ("c", 3.0, "selected"), ("zero", 0.0, "control"))
    ]
    assert "figures" in effect_figures.effects_by_method(
        pl.DataFrame(lines), tmp_path / "w.parquet", "Which method?"
    )
    chosen = sorted(m for m in marks(tmp_path / "w.parquet", drawing.COLOURS[0]))[-2:]
    zero = next(m for m in marks(tmp_path / "w.parquet", drawing.FAINT) if m[0] < chosen[0][0])
    (x1, y1, _), (x3, y3, _) = chosen
    assert x3 - zero[0] == pytest.approx(3 * (x1 - zero[0]), abs=1e-2)
    assert y3 < y1 < zero[1]  # svg: y goes down


def test_agreement_is_tinted(drawn):
    """5 of 5 supported where true is RIGHT; 1 of 5 supported where not true is 4/5 of the way"""
    svg = drawn["confusion"][1].with_suffix(".svg").read_text()
    for share in (1.0, 0.8):
        assert f"fill: {tint(share)}; stroke: #ffffff" in svg


def test_no_share_is_not_zero(tmp_path):
    """a null share and a missing line are drawn as n/a, and the caption says what that means"""
    table = summary(SHARES | {"keep_b": None}).filter(
        (pl.col("family") != "ia3") | (pl.col("variant") != "drop_a")
    )
    path = tmp_path / "t.parquet"
    draw("retained_by_family", path, table)
    assert text(path).split().count("n/a") == 3 and "n/a: the family has no such part" in text(path)
    assert len(marks(path, drawing.COLOURS[0])) == 3  # of 2 x 2, one line is missing
    draw("retained_by_family", path, summary(SHARES | {"drop_a": -7.5}))
    assert "n/a" not in text(path)
    assert text(path).split().count("-7.5") == 2 and "A number at the edge" in text(path)
    draw("retained_by_energy", path, table)
    assert "not clear of 0: 2 lines." in text(path)


def test_without_null_draws_no_band(tmp_path):
    """no draws: no grey band in legend or caption"""
    table = summary().filter(~pl.col("variant").str.contains("#"))
    draw("retained_by_family", tmp_path / "t.parquet", table)
    assert "null changes" not in text(tmp_path / "t.parquet")


def test_one_k_of_several(tmp_path):
    """k = 8 draws the lines of k = 8 and the whole; without k several lines are refused"""
    both = pl.concat([summary(), summary(SHARES | {"keep_a": 0.9}, k=16)]).unique(
        ["family", "variant", "k"], maintain_order=True
    )
    path = tmp_path / "t.parquet"
    with pytest.raises(ValueError, match="several lines of .*; give k"):
        draw("retained_by_family", path, both)
    draw("retained_by_family", path, both, k=8)
    of_8 = marks(path, drawing.COLOURS[0])
    assert "k = 8" in text(path) and text(path).split().count("+2.00") == 2
    draw("retained_by_family", path, summary(), k=8)
    assert marks(path, drawing.COLOURS[0]) == of_8


@pytest.mark.parametrize(
    "kind", ["retained_by_slice", "retained_by_layer_and_module", "retained_by_energy"]
)
def test_datasets_apart(drawn, kind, tmp_path):
    """a table of two datasets gives the figure of each, under its name"""
    table = TABLES[kind]()
    two = pl.concat([table, table.with_columns(dataset=pl.lit("dilemmas"))])
    said = draw(kind, tmp_path / "t.parquet", two)
    names = [f"t.{d}.{s}" for d in BOTH for s in ("png", "svg")]
    assert sorted(p.name for p in tmp_path.iterdir()) == names
    assert all(str(tmp_path / name) in said for name in names)
    for suffix in (".png", ".svg"):
        alone = drawn[kind][1].with_suffix(suffix).read_bytes()
        assert (tmp_path / f"t.claims{suffix}").read_bytes() == alone


def test_agreement_counted_by_the_table(tmp_path):
    """`agree` and `misplaced` of the table decide: 5 supported, 2 of another part, agree 3/5"""
    table = truths().with_columns(agree=pl.Series([3, None, 4]), misplaced=pl.Series([2, 0, 0]))
    draw("confusion", tmp_path / "t.parquet", table)
    found = text(tmp_path / "t.parquet")
    assert "5 / 0 / 0 truth: yes 2 misplaced" in found and found.count("misplaced") == 1
    assert "Misplaced: supported, but of another part" in found
    assert f"fill: {tint(0.6)}; stroke: #ffffff" in (tmp_path / "t.svg").read_text()


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        ("retained_by_family", lambda t: t.drop("retained_lo"), r"lacks \['retained_lo'\]; pass"),
        ("retained_by_slice", lambda t: t.drop("variant"), r"lacks \['variant'\]; pass"),
        (
            "retained_by_layer_and_module",
            lambda t: t.drop("layer", "module"),
            r"lacks \['layer', 'module'\]; pass",
        ),
        ("retained_by_energy", lambda t: t.drop("energy"), r"lacks \['energy'\]; pass"),
        ("confusion", lambda t: t.drop("expected"), r"lacks \['expected'\]; pass"),
        *((kind, lambda t: t.clear(), "has no lines.*; score first") for kind in TABLES),
        (
            "retained_by_family",
            lambda t: t.filter(variant="full"),
            r"no lines of \['keep_a', .*; score first",
        ),
        (
            "retained_by_family",
            lambda t: pl.concat([t, t]),
            "several lines of .*; give k, or filter",
        ),
        ("effects_by_dose", lambda t: t.drop("lo"), r"lacks \['lo'\]; pass"),
        ("effects_by_layer", lambda t: t.drop("flagged_share"), r"lacks \['flagged_share'\]; pass"),
        ("effects_by_layer", lambda t: pl.concat([t, t]), "several lines of .*; give k, or filter"),
        ("effects_by_dose", lambda t: pl.concat([t, t]), "several lines of .*; give k, or filter"),
        (
            "retained_by_layer_and_module",
            lambda t: pl.concat([t, t]),
            "several lines of .*; give k, or filter",
        ),
        (
            "retained_by_family",
            lambda t: pl.concat([t, t.with_columns(alpha=1.0)]),
            r"one alpha, found \[1.0, 2.0\]; filter",
        ),
        (
            "retained_by_energy",
            lambda t: t.with_columns(keep_or_drop=pl.lit("kept")),
            r"keep_or_drop must be keep, drop, control or null, got \['kept'\]",
        ),
        (
            "retained_by_energy",
            lambda t: t.with_columns(retained=pl.lit(None, pl.Float64)),
            "no lines with keep_or_drop, energy and retained",
        ),
        (
            "retained_by_layer_and_module",
            lambda t: t.with_columns(module=pl.lit(None, pl.String)),
            "no lines with layer",
        ),
        (
            "confusion",
            lambda t: t.with_columns(expected=pl.lit("refuted")),
            r"expected must be supported, not supported or null, got \['refuted'\]",
        ),
    ],
)
def test_refusals(kind, change, words, tmp_path):
    """a table that cannot be drawn gets one sentence, and no file"""
    with pytest.raises(ValueError, match=f"^{kind}: .*{words}") as refusal:
        draw(kind, tmp_path / "t.parquet", change(TABLES[kind]()))
    assert "\n" not in str(refusal.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", TABLES)
def test_without_matplotlib(kind, tmp_path, monkeypatch):
    """no matplotlib: the sentence that says how to get it, no file, no exception"""
    for name in [m for m in sys.modules if m.split(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert not frames.has_matplotlib()
    assert draw(kind, tmp_path / "t.parquet") == frames.MISSING
    assert "pip install 'weight-steering[plot]'" in frames.MISSING and not list(tmp_path.iterdir())


def test_matplotlib_is_asked_for_late():
    """importing the figures imports no matplotlib"""

    def anew():
        for name in [*sys.modules]:
            if name.split(".")[0] in ("wscore", "wsrun", "matplotlib"):
                del sys.modules[name]
        sys.meta_path[:] = [f for f in sys.meta_path if "jaxtyping" not in type(f).__module__]
        for name in ("retained_figures", "tile_figures"):
            importlib.import_module(f"wsrun.report.{name}")
        assert "matplotlib" not in sys.modules

    assert in_child(anew) == 0
