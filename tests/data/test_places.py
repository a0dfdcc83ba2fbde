"""Places: near-duplicates share cluster and split, and nothing else decides either."""

import random
from collections import Counter
from itertools import combinations

from wsrun.data.places import NEAR, SHARES, content_words, places

SUBJECTS = "otter violin castle tractor lemon glacier pilot candle harbour beetle".split()
VERBS = "swims sings stands ploughs ripens melts lands burns floods crawls".split()


def texts(number: int, seed: int = 0) -> list[str]:
    """Sentences of four words each out of a small stock, so that some are nearly alike."""
    rng = random.Random(seed)
    stock = SUBJECTS + VERBS + [f"word{i}" for i in range(20)]
    return [" ".join(rng.sample(stock, rng.randint(1, 6))) for _ in range(number)]


def test_known_groups():
    """3 of 5 content words (0.6) join two texts, 2 of 4 do not; a chain is one cluster"""
    a, b = "The red otter swims far.", "A red otter swims home!"  # {red otter swims far}, ... home
    c = "Would the otter swims home?"  # with b: {otter swims home} of {red otter swims home}
    far = "The red otter sings badly."  # with a: 2 of 6
    found = places([a, b, c, far])
    assert len({found[0], found[1], found[2]}) == 1 and found[3].cluster == 3
    assert content_words(a) == {"red", "otter", "swims", "far"}
    assert content_words("It is not so.") == {"it", "is", "not", "so"}  # nothing else is left


def test_negations_and_damaged_letters_stay_together():
    """ "is" and "isn't", a typographic and a damaged apostrophe: one cluster each"""
    pairs = [
        ("The castle is made of sand.", "The castle isn't made of sand."),
        ("Take your friend’s violin", "Take your friend\ufffd\ufffd\ufffds violin"),
    ]
    for pair in pairs:
        assert len(set(places(pair))) == 1
        alone = {places([text])[0].split for text in pair[:1]} | {places(pair)[1].split}
        assert len(alone) == 1


def test_clusters_are_the_components_of_near_duplicates():
    """the same groups as all pairs compared, and no near-duplicates in two splits"""
    sample = texts(300)
    found = places(sample)
    label = list(range(len(sample)))
    words = [content_words(t) for t in sample]
    for i, j in combinations(range(len(sample)), 2):
        if len(words[i] & words[j]) >= NEAR * len(words[i] | words[j]):
            label = [label[i] if x == label[j] else x for x in label]
            assert found[i] == found[j]
    clusters = [place.cluster for place in found]
    assert len(set(clusters)) == len(set(label)) == len(set(zip(clusters, label, strict=True)))
    assert len(set(clusters)) < len(sample)


def test_the_order_of_the_texts_does_not_matter():
    """places(shuffled) = shuffled(places), up to the index"""
    sample = texts(200, seed=1)
    order = list(range(len(sample)))
    random.Random(2).shuffle(order)
    before, after = places(sample), places([sample[i] for i in order])
    for new, old in enumerate(order):
        assert after[new].split == before[old].split
        named = sample[before[old].cluster], sample[order[after[new].cluster]]
        assert content_words(named[0]) == content_words(named[1])


def test_appended_texts_change_no_place_but_that_of_their_near_duplicates():
    """places(a + b)[:len(a)] = places(a) outside the clusters that b's texts join"""
    sample, more = texts(150, seed=3), texts(30, seed=4)
    before, after = places(sample), places(sample + more)
    joined = {after[len(sample) + i].cluster for i in range(len(more))}
    same = [i for i in range(len(sample)) if after[i].cluster not in joined]
    assert same and all(before[i] == after[i] for i in same)
    assert places([*sample, "zebra quilt"])[: len(sample)] == before


def test_splits_have_their_shares():
    """4,000 unrelated texts: 50, 15 and 35 %, within 3 %"""
    drawn = Counter(p.split for p in places([f"subject{i} verb{i}" for i in range(4000)]))
    assert set(drawn) == set(SHARES)
    assert all(abs(drawn[split] / 4000 - share) < 0.03 for split, share in SHARES.items())
