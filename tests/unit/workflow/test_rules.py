"""What a user reads of the rules: `snakemake --list-rules`."""

import re

from tests.tiny import ROOT


def test_every_rule_says_in_one_sentence_what_it_makes() -> None:
    texts = [path.read_text() for path in (ROOT / "Snakefile", *(ROOT / "rules").glob("*.smk"))]
    rules = [rule for text in texts for rule in re.findall(r"^(?:rule|checkpoint) (\w+):\n(.*)\n", text, re.MULTILINE)]
    assert len(rules) > 30
    assert [name for name, said in rules if not re.fullmatch(r'    """[A-Z].{10,110}\."""', said)] == []
